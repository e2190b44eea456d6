"""Runs `research.main` as `tests.interruption_driver` does, and kills the process at a named point of its work.

CRASH_POINT=NAME:N lets the N-th passage of the point NAME (see POINTS) end in SIGKILL. The program itself has no such
hook. The environment names the file STATUS_FILE, as for `tests.interruption_driver`.
"""

import fnmatch
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable

POINTS: dict[str, Callable[[int], None]] = {}


def point(name: str):
    """Registers a function that arms a point to kill at its n-th passage."""

    def decorate(arm):
        POINTS[name] = arm
        return arm

    return decorate


def die() -> None:
    """As the kernel's out-of-memory killer would: no handler, no exit code of ours."""
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner, name: str, number: int, before: bool, condition=lambda *args, **kwargs: True) -> None:
    """Replaces a function of `owner` by one that dies before or after its n-th call that fulfils the condition."""
    function, count = getattr(owner, name), 0

    def dying(*args, **kwargs):
        nonlocal count
        counts = condition(*args, **kwargs)
        count += counts
        if before and counts and count == number:
            die()
        result = function(*args, **kwargs)
        if not before and counts and count == number:
            die()
        return result

    setattr(owner, name, dying)


def at_replace(pattern: str, number: int, before: bool = True) -> None:
    """Dies when a finished temporary file is about to get (or just got) a name that fits the pattern."""
    wrap(os, "replace", number, before, lambda source, target, **_: fnmatch.fnmatch(str(target), pattern))


def _checkpoints():
    from research.training import checkpoint

    return checkpoint


@point("checkpoint: before anything is written")
def _(number):
    wrap(_checkpoints().Checkpoints, "_write_arrays", number, before=True)


@point("checkpoint: arrays written, no manifest")
def _(number):
    wrap(_checkpoints().Checkpoints, "_write_arrays", number, before=False)


@point("checkpoint: complete, before the rename")
def _(number):
    wrap(_checkpoints().Checkpoints, "_replace", number, before=True)


@point("checkpoint: renamed, before the pruning")
def _(number):
    wrap(_checkpoints().Checkpoints, "_replace", number, before=False)


@point("checkpoint: an older one half pruned")
def _(number):
    module, count = _checkpoints(), 0
    remove = shutil.rmtree

    def dying(path, *args, **kwargs):
        nonlocal count
        count += pathlib.Path(path).name.isdigit()
        if pathlib.Path(path).name.isdigit() and count == number:
            (pathlib.Path(path) / "meta.json").unlink()
            die()
        remove(path, *args, **kwargs)

    module.shutil = type("shutil", (), vars(shutil) | {"rmtree": staticmethod(dying)})


@point("checkpoint: replaced, between the two renames")
def _(number):
    wrap(os, "rename", number, False, lambda source, target: ".tmp.old." in str(target))


@point("metrics.jsonl: half a row")
def _(number):
    from research.report import writer

    write, count = os.write, 0

    def half(descriptor, data):
        nonlocal count
        ours = data.startswith(b"{") and data.endswith(b"}\n")
        count += ours
        if ours and count == number:
            write(descriptor, data[: len(data) // 2])
            die()
        return write(descriptor, data)

    writer.os = type("os", (), vars(os) | {"write": staticmethod(half)})


@point("metrics.jsonl: after a row")
def _(number):
    from research.report.writer import JsonlLog

    wrap(JsonlLog, "append", number, before=False)


@point("evaluation: before")
def _(number):
    from research.training.inference import Predictor

    wrap(Predictor, "__call__", number, before=True)


@point("evaluation: after, before its row")
def _(number):
    from research.training.inference import Predictor

    wrap(Predictor, "__call__", number, before=False)


@point("ledger: written, before the rename")
def _(number):
    at_replace("*/trials.csv", number)


@point("ledger: after a row")
def _(number):
    at_replace("*/trials.csv", number, before=False)


@point("predictions: written, before the rename")
def _(number):
    at_replace("*/predictions/*.csv", number)


@point("report: pictures, no page")
def _(number):
    at_replace("*/index.html", number)


@point("report: page, no metrics.json")
def _(number):
    at_replace("*/report/metrics.json", number)


@point("config.json: before the rename")
def _(number):
    at_replace("*/config.json", number)


@point("environment.json: before the rename")
def _(number):
    at_replace("*/environment.json", number)


@point("plan.json: before the rename")
def _(number):
    at_replace("*/plan.json", number)


@point("rungs.json: before the rename")
def _(number):
    at_replace("*/rungs.json", number)


def main() -> int:
    """Arms the point, keeps even small programs, then runs the program as the command line says."""
    from research.training import compilation
    from tests import interruption_driver

    compilation._LEAST_SECONDS = 0.0
    if crash := os.environ.get("CRASH_POINT"):
        name, _, number = crash.rpartition(":")
        POINTS[name](int(number))
    return interruption_driver.main()


def leave(run) -> None:
    """Runs a `main` and leaves as the product does."""
    from input_pipeline import cli
    from research.training.signals import EXIT_STOPPED, Stopped
    from tests import interruption_driver

    interruption_driver.say("start")
    try:
        cli.run(run)
    except Stopped:
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    leave(main)
