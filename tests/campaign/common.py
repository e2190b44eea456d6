"""What the campaigns share: attempts that are counted, tiny studies to attack, and a look for what was left behind.

A campaign is a script: `python -m tests.campaign.NAME [--count=N] [--seed=S] [--out=summary.json] [--folder=DIR]`. It
prints each failure when it happens, progress with the time left, and one line of summary. Exit status: 0 without
failures, 1 with some. What an attempt writes lies in `--folder` (a temporary one if none is named, removed afterwards).
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator

import jax

from input_pipeline.cli import atomic_write
from tests import searching
from tests.running import ENVIRONMENT, ROOT, command

SENTENCES = re.compile(r"(ERROR|error|python -m [\w.]+: error): ")  # the last one is argparse's, about flags


class Fault(AssertionError):
    """What an attempt found wrong, in one sentence."""


@dataclasses.dataclass
class Tally:
    """The attempts of one campaign and what was found.

    Attributes:
      name: of the campaign.
      seed: of its draws.
      planned: number of attempts.
      outcomes: how many attempts ended in which way ("refused", "same", "killed in step", …).
      failures: what was found wrong, one sentence each.
    """

    name: str
    seed: int
    planned: int
    outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)
    attempts: int = 0
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def count(self, outcome: str) -> None:
        """Notes how an attempt ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    @contextlib.contextmanager
    def attempt(self, label: str) -> Iterator[None]:
        """One attempt: a failed check or an unexpected error inside is a failure of the campaign, not its end."""
        try:
            yield
        except (AssertionError, Exception) as error:  # noqa: BLE001 (whatever goes wrong is what is looked for)
            self.failures.append(f"{label}: {in_words(error)}")
            print(f"FAILURE {self.name}: {self.failures[-1]}", flush=True)
        self.attempts += 1
        self._progress()

    def _progress(self) -> None:
        step = max(1, self.planned // 20)
        if self.attempts % step and self.attempts != self.planned:
            return
        spent = time.monotonic() - self.begun
        left = spent / self.attempts * max(0, self.planned - self.attempts)
        text = f"{self.name}: {self.attempts}/{self.planned}, {len(self.failures)} failures, ETA {left:.0f} s"
        print(text, file=sys.stderr, flush=True)

    def summary(self) -> dict:
        """What goes into the table of all campaigns."""
        return {
            "campaign": self.name,
            "attempts": self.attempts,
            "failures": len(self.failures),
            "seed": self.seed,
            "seconds": round(time.monotonic() - self.begun, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "what_failed": self.failures,
        }


def in_words(error: BaseException) -> str:
    """What an error says; for a plain assertion the line that failed."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {pathlib.Path(last.filename).name}:{last.lineno}: {last.line}"
    return str(error) if isinstance(error, Fault) else f"{error} ({where})"


def main(name: str, description: str, campaign: Callable[..., Tally], count: int, **options: tuple[type, object, str]):
    """The command line of a campaign.

    Args:
      name: of the campaign.
      description: the script's docstring.
      campaign: given `count`, `seed`, `folder` and the options, gives a Tally.
      count: default number of attempts.
      options: further options: type, default, help.

    Returns:
      The exit status: 0, or 1 if something failed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help=f"number of attempts (default {count})")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--out", default="", help="file for the summary, as JSON")
    parser.add_argument("--folder", default="", help="where the attempts write; kept")
    for key, (kind, default, words) in options.items():
        parser.add_argument(f"--{key}", type=kind, default=default, help=f"{words} (default {default})")
    given = vars(parser.parse_args())
    out, folder = given.pop("out"), given.pop("folder")
    with contextlib.ExitStack() as stack:
        if not folder:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"campaign-{name}-"))
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tally = campaign(folder=pathlib.Path(folder).absolute(), **given)
    show(tally)
    if out:
        atomic_write(out, json.dumps(tally.summary(), indent=1) + "\n")
    return 1 if tally.failures else 0


def show(tally: Tally) -> None:
    """Prints the summary."""
    summary = tally.summary()
    outcomes = ", ".join(f"{key} {value}" for key, value in summary["outcomes"].items())
    counts = f"{summary['attempts']} attempts, {summary['failures']} failures"
    print(f"{tally.name}: {counts}, seed {tally.seed}, {summary['seconds']:.0f} s; {outcomes}.", flush=True)


# Studies to attack


@dataclasses.dataclass(frozen=True)
class Study:
    """A tiny study: its config file, what the command line adds, and its data."""

    name: str
    config: str
    given: tuple[str, ...]
    data: pathlib.Path
    folder: pathlib.Path

    def command(self, workdir: pathlib.Path) -> list[str]:
        """The command line, through the driver that can be told to die."""
        return command(self.config, workdir, *self.given, module="tests.campaign.driver")

    def environment(self, **more: str) -> dict[str, str]:
        """Of its processes: programs are kept, so that a second start is quick; temporary files lie in `folder`."""
        (self.folder / "tmp").mkdir(exist_ok=True)
        own = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "STATUS_FILE": str(self.folder / "status"),
            "TMPDIR": str(self.folder / "tmp"),
            "CAMPAIGN": str(self.folder),
        }
        return ENVIRONMENT | own | more

    def start(self, workdir: pathlib.Path, log: pathlib.Path, **environment: str) -> subprocess.Popen:
        """Starts a process in a session of its own; its output is added to `log`."""
        (self.folder / "status").unlink(missing_ok=True)
        with open(log, "ab") as file:
            return subprocess.Popen(
                self.command(workdir), cwd=ROOT, stdout=file, stderr=file, env=self.environment(**environment),
                start_new_session=True,
            )  # fmt: skip

    def finish(self, workdir: pathlib.Path, log: pathlib.Path, timeout: float = 600, **environment: str) -> int:
        """Runs to the end; returns the exit status."""
        process = self.start(workdir, log, **environment)
        try:
            return process.wait(timeout)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def activity(self) -> str:
        """What its process is, or was last, doing."""
        try:
            return (self.folder / "status").read_text(encoding="ascii")
        except OSError:
            return "start"


SINGLE = {
    "search__grid": (searching.RATES,),
    "search__cohort": 1,
    "optimizer__ema": 0.9,
    "optimizer__accumulate": 2,
    "model__head_dropout": 0.3,
    "data__augment__mixup": 0.2,
    "schedule__plateau_factor": 0.5,
    "schedule__plateau_patience": 1,
}
"""Two trials, each by itself, with everything that a state can hold."""

COHORTS = {"search__grid": searching.GRID[:2], "search__plan": "scan"}
"""Four trials in two cohorts, each cohort one program."""

HALVING = {"search__grid": searching.GRID, **{key.replace(".", "__"): v for key, v in searching.HALVING.items()}}
"""Eight trials in cohorts, of which some are stopped at rungs."""


def study(name: str, folder: pathlib.Path, **changes) -> Study:
    """A study of the striped images in `folder` (made when first asked for) with changes of `searching.configure`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "prepared"
    if not data.exists():
        searching.write_dataset(folder)
    config = searching.config_file(folder, data)
    given = searching.arguments(searching.configure(data, **changes), data)
    return Study(name, config, tuple(given), data, folder)


def undisturbed(attacked: Study) -> tuple[pathlib.Path, float]:
    """The run folder of a run that nobody disturbs, and how many seconds a run with compiled programs takes."""
    log = attacked.folder / f"{attacked.name}.log"
    for number in range(2):
        reference = attacked.folder / f"{attacked.name}-undisturbed{number}"
        begun = time.monotonic()
        status = attacked.finish(reference, log)
        if status:
            raise SystemExit(f"The undisturbed run ended with status {status}; see {log}:\n{log.read_text()[-3000:]}")
    assert_same(reference, attacked.folder / f"{attacked.name}-undisturbed0")
    return reference, time.monotonic() - begun


# What must hold


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """State digests, ledger, metric rows, predictions and figures of the report are equal; no file more or less."""
    searching.assert_same(workdir, reference)
    ours, theirs = (json.loads((d / "report" / "metrics.json").read_text()) for d in (workdir, reference))
    for key in ("headline", "per_class", "settings"):
        assert ours.get(key) == theirs.get(key), f"report/metrics.json differs in {key}"
    assert all(len(row["state_sha256"]) == 64 for row in searching.rows_of(workdir)), "a state has no digest"
    names, expected = files(workdir), files(reference)
    if names != expected:
        raise Fault(f"files left over {sorted(names - expected)}, files missing {sorted(expected - names)}")


def files(workdir: pathlib.Path) -> set[str]:
    """The files of a run, without those whose names are never the same twice (event files, inside checkpoints)."""
    found = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("tensorboard/") and "/state/" not in name}


def descendants(mark: str) -> list[int]:
    """Processes that were started, directly or not, by a campaign in the folder `mark`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"CAMPAIGN={mark}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return found


class Leftovers:
    """Compares shared memory, temporary files and processes with what was there before a campaign."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.before = self._shared()

    def _shared(self) -> set[str]:
        return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    def check(self) -> None:
        """No process, no shared memory, no temporary file is left (processes get a moment to notice)."""
        deadline = time.monotonic() + 10
        while (left := descendants(str(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            raise Fault(f"orphan processes {left}")
        # Other programs of this machine use shared memory too, for a moment or while they live; ours would stay.
        while (new := self._shared() - self.before) and time.monotonic() < deadline:
            if all(_is_held(name) for name in new):
                break
            time.sleep(0.1)
        if new := {name for name in new if not _is_held(name)}:
            raise Fault(f"shared memory left over: {sorted(new)}")
        tmp = self.folder / "tmp"
        if tmp.exists() and (rest := sorted(os.listdir(tmp))):
            for name in rest:
                path = tmp / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise Fault(f"temporary files left over: {rest}")


def _is_held(name: str) -> bool:
    """Whether a living process has this shared memory mapped."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"/dev/shm/{name}" in (entry / "maps").read_text():
                    return True
    return False


def assert_sentence(text: str, status: int) -> str:
    """The command was refused as documented: status 2, one sentence, no traceback; returns the sentence."""
    lines = [line for line in text.splitlines() if SENTENCES.match(line)]
    if status != 2 or len(lines) != 1 or "Traceback" in text:
        raise Fault(f"status {status}, {len(lines)} sentences; the output ends with {text[-700:]!r}")
    return lines[0]


def one_device() -> None:
    """This process computes on one device, as the processes of the studies do."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", 1)
