"""What does a run do when the disk is full, or cannot be written?

    python -m tests.campaign.disk [--count=8] [--seed=0] [--out=summary.json] [--folder=DIR]

The run folder lies on a file system in memory (tmpfs; needs root, and says so otherwise). It is too small for the run
(one in four of the attempts), or somebody else fills it to the last block, or but for a few kB, while the run steps,
saves, evaluates or reports; and it is read-only at two more points: from the beginning of an interrupted run's second
start, and with checkpoints alone read-only. Each must end with status 2 and one sentence, keep the checkpoints that
were complete, and, once there is room, go on to the end of the undisturbed run.
"""

import contextlib
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator

from research.training import checkpoint
from tests.campaign import common

FILLED_IN = ("step", "save", "report", "", "evaluate", "report", "save", "")
"""Activities in which somebody fills the disk; "": it is too small from the beginning."""


@contextlib.contextmanager
def small_disk(place: pathlib.Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `place`."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-R", place], check=True)


def complete(workdir: pathlib.Path) -> dict[str, list[str]]:
    """The undamaged steps of each trial."""
    found: dict[str, list[str]] = {}
    for step in workdir.glob("checkpoints/*/*"):
        if step.name.isdigit() and not checkpoint.damage(step):
            found.setdefault(step.parent.name, []).append(step.name)
    return {name: sorted(steps) for name, steps in found.items()}


def refused(study: common.Study, workdir: pathlib.Path, log: pathlib.Path) -> str:
    """Runs into the wall: one sentence and status 2, no half checkpoint under a final name; returns the sentence."""
    log.write_bytes(b"")
    status = study.finish(workdir, log)
    said = common.assert_sentence(log.read_text(), status)
    check_whole(workdir, said)
    return said


def check_whole(workdir: pathlib.Path, said: str) -> None:
    """No checkpoint under its final name is half written."""
    for step in workdir.glob("checkpoints/*/*"):
        if step.name.isdigit() and (problem := checkpoint.damage(step)):
            raise common.Fault(f"{step} is half written ({problem}); said: {said}")


def go_on(study: common.Study, workdir: pathlib.Path, reference: pathlib.Path, log: pathlib.Path, said: str) -> None:
    """With room again, the run ends as the undisturbed one."""
    log.write_bytes(b"")
    if status := study.finish(workdir, log):
        raise common.Fault(f"after {said!r} the next start ended with {status}: {log.read_text()[-500:]!r}")
    try:
        common.assert_same(workdir, reference)
    except AssertionError as error:
        raise common.Fault(f"after {said!r}: {common.in_words(error)}") from error


def full(study: common.Study, reference: pathlib.Path, place: pathlib.Path, size: int) -> str:
    """A disk of `size` bytes, later a large one."""
    log = study.folder / f"{place.name}.log"
    with small_disk(place, size):
        workdir = place / "run"
        said = refused(study, workdir, log)
        before = complete(workdir)
        subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        after = complete(workdir)
        if before != after:
            raise common.Fault(f"checkpoints were lost: {before} became {after}")
        go_on(study, workdir, reference, log, said)
    return said


def filled(study: common.Study, reference: pathlib.Path, place: pathlib.Path, activity: str, left: int) -> str:
    """A disk on which somebody else leaves `left` bytes as soon as the run is in an activity."""
    log = study.folder / f"{place.name}.log"
    with small_disk(place, 2**26):
        workdir, filler = place / "run", place / "filler"
        process = study.start(workdir, log)
        while process.poll() is None and study.activity() != activity:
            time.sleep(0.001)
        try:
            fill(filler, left)
            status = process.wait(600)
        finally:
            process.kill()
            process.wait()
        if status:
            said = common.assert_sentence(log.read_text(), status)
            check_whole(workdir, said)
            said += " | " + refused(study, workdir, log) if left < 4096 else ""
        else:
            said = "what was left was enough"
        filler.unlink()
        go_on(study, workdir, reference, log, said)
    return said


def fill(file: pathlib.Path, left: int) -> None:
    """Writes until the disk is full, and then frees `left` bytes."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(2**12))
    os.truncate(file, max(0, file.stat().st_size - left))


def read_only(study: common.Study, reference: pathlib.Path, place: pathlib.Path, part: str) -> str:
    """An interrupted run whose folder, or a part of it, has become read-only."""
    log = study.folder / f"{place.name}.log"
    with small_disk(place, 2**30):
        workdir = place / "run"
        status = study.finish(workdir, log, CRASH_POINT="checkpoint: renamed, before the pruning:2")
        if status != -9:
            raise common.Fault(f"the run was to be killed and ended with status {status}")
        before = complete(workdir)
        target = workdir / part
        subprocess.run(["mount", "--bind", target, target], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        said = refused(study, workdir, log)
        subprocess.run(["umount", target], check=True)
        if complete(workdir) != before:
            raise common.Fault("checkpoints were lost")
        go_on(study, workdir, reference, log, said)
    return said


def campaign(count: int, seed: int, folder: pathlib.Path) -> common.Tally:
    """See the docstring of this file."""
    if os.geteuid():
        raise SystemExit("The disk campaign mounts file systems, which needs root.")
    rng = random.Random(seed)
    study = common.study("single", folder / "single", **common.SINGLE)
    reference, _ = common.undisturbed(study)
    used = [path.stat() for path in reference.rglob("*")]
    needed = sum(-(-status.st_size // 4096) * 4096 for status in used)
    leftovers = common.Leftovers(study.folder)
    tally = common.Tally("disk", seed, count + 2)
    for number in range(count):
        activity, place = FILLED_IN[number % len(FILLED_IN)], folder / f"full{number}"
        size, left = rng.randrange(4096, needed, 4096), rng.choice((0, 0, 8192, 40_960))
        label = f"filled in {activity} but for {left} bytes" if activity else f"full at {size} of {needed} bytes"
        with tally.attempt(label):
            if activity:
                said = filled(study, reference, place, activity, left)
            else:
                said = full(study, reference, place, size)
            print(f"{label}: {said}", flush=True)
            tally.count("enough, and the same" if "enough" in said else "refused, then the same")
            leftovers.check()
    for part in (".", "checkpoints"):
        with tally.attempt(f"read-only {part}"):
            said = read_only(study, reference, folder / f"read-only-{part.strip('.') or 'all'}", part)
            print(f"read-only {part}: {said}", flush=True)
            tally.count("refused, then the same")
            leftovers.check()
    return tally


if __name__ == "__main__":
    sys.exit(common.main("disk", __doc__, campaign, 8))
