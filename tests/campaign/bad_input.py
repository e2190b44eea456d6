"""Is every mistake and every hostile file answered with one sentence, in bounded memory and time?

    python -m tests.campaign.bad_input [--only=TEXT] [--seconds=90] [--megabytes=1500] [--seed=0] [--out=summary.json]

The cases of `bad_data` and `bad_tables` (prepare, train) and of `bad_runs` (weights, predict, pareto, ensemble,
explain, compare, genes, segment, compress, export), each a command in a process of its own. A case says whether the
command is to refuse (status 2 and one sentence, no traceback, no output begun) or to finish (status 0, and what it must
say about the input). In every case: peak memory and time below the limits, nothing changed or written but in the output
folder, no temporary file left, nothing executed.
"""

import contextlib
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from tests.campaign import bad_data, bad_runs, bad_tables, common
from tests.campaign.bad_cases import Case, Place
from tests.running import ENVIRONMENT, ROOT


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


def run(case: Case, place: Place, seconds: float, megabytes: float) -> tuple[int, str]:
    """Runs a case; gives its status and output.

    Raises:
      Fault: it took too long or too much memory.
    """
    arguments = case.build(place)
    place.before = snapshot(place.given)
    own = {"TMPDIR": str(place.tmp), "HOME": str(place.home), "XDG_CACHE_HOME": str(place.home),
           "CAMPAIGN": str(place.root), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
           "JAX_COMPILATION_CACHE_DIR": str(place.shared["data"].parent / "programs")}  # fmt: skip
    who = {"user": 65534, "group": 65534, "extra_groups": []} if case.unprivileged else {}
    with open(place.log, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", case.module, *arguments], cwd=place.cwd, env=ENVIRONMENT | own, stdout=log,
            stderr=log, start_new_session=True, **who,
        )  # fmt: skip
    begun = time.monotonic()
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > seconds:
            os.killpg(process.pid, signal.SIGKILL)
            os.wait4(process.pid, 0)
            raise common.Fault(f"still running after {seconds:.0f} s: {place.output()[-300:]!r}")
        time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if usage.ru_maxrss / 1024 > megabytes:
        raise common.Fault(f"took {usage.ru_maxrss / 1024:.0f} MB: {place.output()[-300:]!r}")
    return process.returncode, place.output()


def outputs(place: Place) -> list[str]:
    """Files of another command's output: `out.csv` and what lies beside it under that name."""
    return [path.name for path in place.root.iterdir() if path.name.startswith("out.")]


def judge(case: Case, place: Place, status: int, text: str) -> str:
    """What must hold after a case; returns its outcome."""
    if snapshot(place.given) != place.before:
        raise common.Fault("the input was changed")
    if rest := sorted(os.listdir(place.cwd)) + sorted(os.listdir(place.tmp)):
        raise common.Fault(f"written outside the output folder: {rest}")
    strangers = {p.name for p in place.root.iterdir()} - {"given", "cwd", "tmp", "home", "log", "out", *outputs(place)}
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
        if outputs(place) and not case.begun:
            raise common.Fault(f"output was begun: {outputs(place)}; {said}")
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


if __name__ == "__main__":
    options = {"only": (str, "", "cases whose command or name has this text"),
               "seconds": (float, 90.0, "that a command may take"),
               "megabytes": (float, 1500.0, "of memory that a command may take")}  # fmt: skip
    sys.exit(common.main("bad_input", __doc__, campaign, 10_000, **options))
