"""The entry of every launcher: data first if asked for, then the study, started again when a machine or process fails.

    python launch/run.py --config=configs/hpa.py --workdir=runs/hpa [all other flags of research.main]

runs `python -m research.main` with the same flags and needs nothing but Python. It starts it again when it ends with 75
(stopped with everything saved) or 76 (another process of the job has ended), or dies of a signal (out of memory), after
a pause that doubles from LAUNCH_BACKOFF to ten minutes; a run of ten minutes or more makes it small again. SIGTERM is
passed on, and then nothing is started any more: the state is saved and the exit status is 75, so that the machine's
manager starts this command again elsewhere. Exit status: that of the study (0 finished, 2 a mistake, never repeated),
75 stopped, or given up after LAUNCH_RESTARTS; see research.main.

Variables:
  LAUNCH_DATA      a prepared data set that the study reads; if it does not exist yet it is prepared there from
  LAUNCH_RAW       the raw download (a folder or .zip), which is itself fetched, if it does not exist, where
  LAUNCH_STUDY     names the study for input_pipeline.download and input_pipeline.prepare
  LAUNCH_RESTARTS  starts after the first, at most (100)
  LAUNCH_BACKOFF   first pause in seconds (10)
  LAUNCH_PYTHON    the Python that has the project's packages (this one)

The flag --config.data.dir is added from LAUNCH_DATA. Several hosts are started by the same command on each, with the
flags of research.main; those that share a disk prepare the data once.
"""

import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXIT_MISTAKE = 2
EXIT_STOPPED = 75
EXIT_PEER = 76
LONGEST_PAUSE = 600.0
LONG_RUN = 600.0
"""Seconds after which a run counts as one that worked, so that the next failure is a first one."""

_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Mistake(Exception):
    """A setting that cannot be used: one sentence."""


def number(name: str, default: float) -> float:
    """A variable as a number, 0 or more. Raises `Mistake`."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Mistake(f"{name}={text} must be a number, 0 or more.")
    return value


def say(text: str) -> None:
    """One line on stderr, in one piece also when several hosts write to one log."""
    os.write(2, f"launch: {text}\n".encode())


class Child:
    """Runs one process at a time, passes SIGTERM on to it and remembers that a stop was asked for."""

    def __init__(self) -> None:
        self.stopping = False
        # Signals wait in line from here on and are taken one by one, so that none falls between two lines of code.
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _in_child(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        # Whoever kills this process outright leaves no training behind that nobody watches.
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    def run(self, command: list[str]) -> int:
        """Starts `command` and waits for it; returns its exit status, 128 + N when it died of signal N."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(command, env=environment, preexec_fn=self._in_child)
        while process.poll() is None:
            self._take(1.0, process)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def pause(self, seconds: float) -> None:
        """Waits, but no longer than until a stop is asked for."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            self._take(min(left, 60.0), None)

    def _take(self, seconds: float, process: subprocess.Popen | None) -> None:
        """Takes one signal, if one comes within `seconds`."""
        found = signal.sigtimedwait(_WATCHED, seconds)
        if found is None or found.si_signo == signal.SIGCHLD:
            return
        self.stopping = True
        if process is None or process.poll() is not None:
            return
        if reaches_all(found):
            say(f"{signal.Signals(found.si_signo).name} reached the study as well; waiting for it to save")
            return
        say(f"{signal.Signals(found.si_signo).name}: passing it on, so that the study saves")
        process.send_signal(found.si_signo)


def reaches_all(found: signal.struct_siginfo) -> bool:
    """Whether the study has the signal already: a second one would make it leave without saving.

    A terminal's Ctrl-C goes to all processes in front of it, and SLURM signals all processes of a step.
    """
    return found.si_code == _SI_KERNEL or "SLURM_STEP_ID" in os.environ


def may_be_repeated(status: int) -> bool:
    """Whether a study with this exit status goes on when it is started again."""
    return status in (EXIT_STOPPED, EXIT_PEER) or status > 128


def in_words(status: int) -> str:
    """Why a study that may be repeated has ended."""
    words = {EXIT_STOPPED: "stopped", EXIT_PEER: "lost another process of its job"}
    return words.get(status) or f"died of signal {status - 128}"


def study(child: Child, command: list[str]) -> int:
    """Runs the study until it finishes, fails for good, or a stop is asked for; returns the exit status."""
    limit, first = number("LAUNCH_RESTARTS", 100), number("LAUNCH_BACKOFF", 10)
    starts, pause = 0, first
    while True:
        begin = time.monotonic()
        status = child.run(command)
        if child.stopping:
            return EXIT_STOPPED if may_be_repeated(status) else status
        if not may_be_repeated(status):
            return status
        if time.monotonic() - begin >= LONG_RUN:
            pause = first
        reason = in_words(status)
        if starts >= limit:
            say(f"the study {reason} and has been started {starts + 1} times: giving up; the same command goes on")
            return EXIT_STOPPED
        say(f"the study {reason}; starting it again in {pause:g} s ({starts + 1} of at most {limit:.0f})")
        child.pause(pause)
        if child.stopping:
            return EXIT_STOPPED
        starts, pause = starts + 1, min(2 * pause, max(LONGEST_PAUSE, first))


@contextlib.contextmanager
def locked(path: pathlib.Path, child: Child):
    """Holds a lock file, so that hosts with a common disk prepare once; gives up waiting when a stop is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        while not child.stopping:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            child.pause(1.0)
        yield


def data(child: Child, python: str) -> int:
    """Downloads and prepares what LAUNCH_DATA, LAUNCH_RAW and LAUNCH_STUDY name, unless it is there; exit status."""
    target, raw, name = (os.environ.get(f"LAUNCH_{part}", "") for part in ("DATA", "RAW", "STUDY"))
    if not target or "://" in target or pathlib.Path(target).exists():
        return 0
    if not raw or not name:
        raise Mistake(f"LAUNCH_DATA={target} does not exist: set LAUNCH_RAW and LAUNCH_STUDY to prepare it there.")
    with locked(pathlib.Path(target + ".lock"), child):
        if child.stopping or pathlib.Path(target).exists():
            return 0
        source = pathlib.Path(raw)
        # A download goes on where it stopped and checks what is complete, so a folder of its own is always offered it.
        if not source.exists() or (source / "download.json").exists() or list(source.glob("*.part")):
            command = [python, "-m", "input_pipeline.download", f"--study={name}", f"--out={raw}"]
            if status := child.run(command):
                return status
        if child.stopping:
            return EXIT_STOPPED
        archives = list(source.glob("*.zip")) if source.is_dir() else []
        source = archives[0] if len(archives) == 1 else source
        return child.run(
            [python, "-m", "input_pipeline.prepare", f"--study={name}", f"--source={source}", f"--out={target}"]
        )


def main(arguments: list[str]) -> int:
    """Runs everything; returns the exit status."""
    if any(a in ("--help", "-h", "-help") for a in arguments) or not arguments:
        print(__doc__)
        return 0 if arguments else EXIT_MISTAKE
    try:
        child, python = Child(), os.environ.get("LAUNCH_PYTHON") or sys.executable
        number("LAUNCH_RESTARTS", 100), number("LAUNCH_BACKOFF", 10)
        status = data(child, python)
        if status or child.stopping:
            return EXIT_STOPPED if child.stopping else status
        command = [python, "-m", "research.main", *arguments]
        if os.environ.get("LAUNCH_DATA"):
            command.append(f"--config.data.dir={os.environ['LAUNCH_DATA']}")
        return study(child, command)
    except Mistake as error:
        say(f"error: {error}")
        return EXIT_MISTAKE
    except OSError as error:
        say(f"error: {error.strerror or error}: {error.filename or ''}; check LAUNCH_PYTHON and the disk.")
        return EXIT_MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
