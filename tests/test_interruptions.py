"""Interrupted = uninterrupted: killed at any moment, a run ends with the same state, rows and predictions."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from tests.running import ENVIRONMENT, ROOT, command, ledger, metric_rows, run

ARGUMENTS = (
    "--config.model.head_dropout=0.3",
    "--config.data.augment.mixup=0.2",
    "--config.optimizer.ema=0.9",
    "--config.optimizer.accumulate=2",
    "--config.schedule.plateau_factor=0.5",
    "--config.schedule.plateau_patience=1",
    "--config.log_every=3 steps",
    "--config.evaluate_every=7 steps",
    "--config.checkpoint_every=7 steps",
    "--config.evaluation.baselines=False",
)
CONFIG = "configs/hpa.py:smoke"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    result = run(CONFIG, workdir, *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    return workdir


def start(workdir: pathlib.Path, status: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    status.unlink(missing_ok=True)
    return subprocess.Popen(
        command(CONFIG, workdir, *ARGUMENTS, module="tests.interruption_driver"),
        cwd=ROOT,
        stdout=open(log, "a"),
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT | {"STATUS_FILE": str(status)},
        start_new_session=True,
    )


def interrupt(workdir, status, log, activity: str, number: int, delay: float) -> tuple[str, int | None]:
    """Sends `number` `delay` seconds after `activity` was first seen: (activity at that moment, exit status)."""
    process = start(workdir, status, log)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if status.exists() and status.read_text() == activity:
            break
        time.sleep(0.001)
    time.sleep(delay)
    seen = status.read_text()
    if process.poll() is None:
        os.kill(process.pid, number)
    process.wait(timeout=300)
    assert_no_orphans(process.pid)
    return seen, process.returncode


def assert_no_orphans(group: int) -> None:
    """No process of the killed session is left (workers get a moment to notice)."""
    for _ in range(50):
        left = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True).stdout.split()
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"orphans: {left}")


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """Same final state, ledger, metric rows and predictions; nothing temporary left."""
    ours, theirs = ledger(workdir), ledger(reference)
    assert ours == theirs
    assert len(ours[0]["state_sha256"]) == 64
    assert metric_rows(workdir) == metric_rows(reference)
    for file in (reference / "predictions").iterdir():
        assert (workdir / "predictions" / file.name).read_bytes() == file.read_bytes(), file.name
    assert (workdir / "submission.csv").read_bytes() == (reference / "submission.csv").read_bytes()
    ours, theirs = (json.loads((d / "report" / "metrics.json").read_text())["headline"] for d in (workdir, reference))
    assert ours == theirs
    assert not [p for p in workdir.rglob("*") if ".tmp" in p.name or "damaged" in p.name]


def campaign(tmp_path, uninterrupted, plan, number: int) -> list[tuple[str, int | None]]:
    tmp_path.mkdir(exist_ok=True)
    workdir, status, log = tmp_path / "run", tmp_path / "status", tmp_path / "log"
    seen = []
    for activity, delay in plan:
        seen.append(interrupt(workdir, status, log, activity, number, delay))
        if seen[-1][1] == 0:  # finished before the signal: begin a new run
            assert_same(workdir, uninterrupted)
            workdir = tmp_path / f"run{len(seen)}"
    result = run(CONFIG, workdir, *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert_same(workdir, uninterrupted)
    return seen


def test_killed_in_steps_and_saves(tmp_path, uninterrupted):
    campaign(tmp_path, uninterrupted, [("step", 0.05), ("save", 0.002)], signal.SIGKILL)


def test_sigterm_saves_and_says_so(tmp_path, uninterrupted):
    seen = campaign(tmp_path, uninterrupted, [("compile", 0.3), ("evaluate", 0.05), ("step", 0.1)], signal.SIGTERM)
    assert all(status == 75 for _, status in seen), seen


@pytest.mark.slow
def test_thirty_kills(tmp_path, uninterrupted):
    """30 SIGKILLs at random moments, at least five each in compilation, steps, saves and evaluation."""
    rng = random.Random(0)
    longest = {"compile": 2.0, "step": 0.4, "save": 0.04, "evaluate": 0.3, "report": 0.5}
    plan = [(a, rng.uniform(0, longest[a])) for a in ["compile", "step", "save", "evaluate"] * 7 + ["report", "step"]]
    rng.shuffle(plan)
    counts: dict[str, int] = {}
    while len(plan) and (sum(counts.values()) < 30 or min(counts.get(a, 0) for a in list(longest)[:4]) < 5):
        seen = campaign(tmp_path / f"part{sum(counts.values())}", uninterrupted, plan[:6], signal.SIGKILL)
        for activity, status in seen:
            if status == -signal.SIGKILL:
                counts[activity] = counts.get(activity, 0) + 1
        short = [a for a in list(longest)[:4] if counts.get(a, 0) < 5]
        plan = plan[6:] or [(a, rng.uniform(0, longest[a] / 4)) for a in short * 2]
    print("kills by activity:", counts)
    assert sum(counts.values()) >= 30 and all(counts.get(a, 0) >= 5 for a in list(longest)[:4]), counts
