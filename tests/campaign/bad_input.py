"""Is every mistake and every hostile file answered with one sentence, in bounded memory and time?

    python -m tests.campaign.bad_input [--only=TEXT] [--seconds=90] [--megabytes=1500] [--seed=0] [--out=summary.json]

The cases of `bad_data` and `bad_tables` (prepare, train) and of `bad_runs` (weights, predict, pareto, ensemble,
explain, compare, genes, segment, compress, export), each a command in a process of its own, forked from one that has
imported the program. A case says whether the command is to refuse (status 2 and one sentence, no traceback, no
output begun) or to finish (status 0, and what it must say about the input). In every case: peak memory and time below
the limits, nothing changed or written but in the output folder, no temporary file left, nothing executed.
"""

import contextlib
import hashlib
import os
import pathlib
import random
import runpy
import shutil
import signal
import sys
import time
import traceback

os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # else commands would start themselves over

from tests.campaign import bad_data, bad_runs, bad_tables, common  # noqa: E402
from tests.campaign.bad_cases import Case, Place  # noqa: E402
from tests.running import ROOT  # noqa: E402


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """Every file and link below a folder, with a digest of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            with contextlib.suppress(OSError):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def child(case: Case, arguments: list[str], place: Place) -> None:
    """Becomes the command; never returns."""
    status = 99
    try:
        output = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.setsid()
        os.chdir(place.cwd)
        os.environ |= {"TMPDIR": str(place.tmp), "HOME": str(place.home), "XDG_CACHE_HOME": str(place.home),
                       "CAMPAIGN": str(place.root), "JAX_PLATFORMS": "cpu"}  # fmt: skip
        import tempfile

        tempfile.tempdir = None
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        if case.unprivileged:
            os.setgid(65534), os.setuid(65534)
        sys.argv, sys.orig_argv = [case.module, *arguments], [sys.executable, "-m", case.module, *arguments]
        sys.modules.pop(case.module, None)
        runpy.run_module(case.module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def run(case: Case, place: Place, seconds: float, megabytes: float) -> tuple[int, str]:
    """Runs a case; gives its status and output.

    Raises:
      Fault: it took too long or too much memory.
    """
    arguments = case.build(place)
    place.before = snapshot(place.given)
    number = os.fork()
    if not number:
        child(case, arguments, place)
    begun = time.monotonic()
    while True:
        ended, status, usage = os.wait4(number, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > seconds:
            os.killpg(number, signal.SIGKILL)
            os.wait4(number, 0)
            raise common.Fault(f"still running after {seconds:.0f} s: {place.output()[-300:]!r}")
        time.sleep(0.01)
    if usage.ru_maxrss / 1024 > megabytes:
        raise common.Fault(f"took {usage.ru_maxrss / 1024:.0f} MB: {place.output()[-300:]!r}")
    return os.waitstatus_to_exitcode(status), place.output()


def judge(case: Case, place: Place, status: int, text: str) -> str:
    """What must hold after a case; returns its outcome."""
    if snapshot(place.given) != place.before:
        raise common.Fault("the input was changed")
    if rest := sorted(os.listdir(place.cwd)) + sorted(os.listdir(place.tmp)):
        raise common.Fault(f"written outside the output folder: {rest}")
    strangers = {p.name for p in place.root.iterdir()} - {"given", "cwd", "tmp", "home", "log", "out"}
    if strangers:
        raise common.Fault(f"written beside the output folder: {sorted(strangers)}")
    if list(place.root.rglob("EXECUTED")):
        raise common.Fault("something was executed")
    if left := [p for p in common.descendants(str(place.root)) if p != os.getpid()]:
        raise common.Fault(f"orphan processes {left}")
    if case.refused or (case.refused is None and status == 2):
        said = common.assert_sentence(text, status)
        for word in case.words:
            if word not in said:
                raise common.Fault(f"the sentence lacks {word!r}: {said}")
        if place.out.exists() and not case.begun and (not place.out.is_dir() or any(place.out.iterdir())):
            raise common.Fault(f"output was begun: {sorted(p.name for p in place.out.iterdir())[:5]}; {said}")
        if len(said) > 1200:
            raise common.Fault(f"a sentence of {len(said)} characters: {said[:200]}")
        return "refused in one sentence"
    if status or "Traceback" in text:
        raise common.Fault(f"status {status}: {text[-600:]!r}")
    for word in case.words:
        if word not in text:
            raise common.Fault(f"the output lacks {word!r}: {text[-400:]!r}")
    if case.check:
        case.check(place)
    return "finished and reported"


def campaign(count: int, seed: int, folder: pathlib.Path, only: str, seconds: float, megabytes: float) -> common.Tally:
    """See the docstring of this file."""
    os.umask(0o022)
    folder.chmod(0o755)
    cases = bad_data.CASES + bad_tables.CASES + bad_runs.CASES
    cases = [case for case in cases if only in f"{case.module} {case.name}"]
    if count < len(cases):
        cases = random.Random(seed).sample(cases, count)
    tally = common.Tally("bad input", seed, len(cases))
    shared = bad_runs.prepare(folder / "shared", cases)
    import_everything(cases)
    for number, case in enumerate(cases):
        root = folder / f"case{number}"
        with tally.attempt(f"{case.module}: {case.name}"):
            if case.needs and shared.get(case.needs) is None:
                tally.count("left out: no such command here")
                continue
            place = Place(root, shared)
            tally.count(judge(case, place, *run(case, place, seconds, megabytes)))
        shutil.rmtree(root, ignore_errors=True)
    return tally


def import_everything(cases: list[Case]) -> None:
    """Imports what the commands need, once for all; JAX starts no device by that."""
    import importlib

    for name in ("research.study", "research.report.assemble", "research.runs", "sklearn.linear_model", "pandas"):
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT))


if __name__ == "__main__":
    options = {"only": (str, "", "cases whose command or name has this text"),
               "seconds": (float, 90.0, "that a command may take"),
               "megabytes": (float, 1500.0, "of memory that a command may take")}  # fmt: skip
    sys.exit(common.main("bad_input", __doc__, campaign, 10_000, **options))
