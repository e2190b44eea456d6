"""Interrupted = uninterrupted for a model that segments: killed in steps, saves and evaluations, nothing differs."""

import json
import pathlib
import signal

import pytest

from tests import test_interruptions as campaigns
from tests.running import ledger, metric_rows, run

CONFIG = "configs/lung_masks.py:smoke"
ARGUMENTS = (
    "--config.model.head_dropout=0.3",
    "--config.optimizer.accumulate=2",
    "--config.log_every=3 steps",
    "--config.evaluate_every=7 steps",
    "--config.checkpoint_every=7 steps",
    "--config.steps=40",
)


def files(workdir: pathlib.Path) -> dict[str, bytes]:
    """Predictions and masks by name."""
    folder = workdir / "predictions"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, number):
    monkeypatch.setattr(campaigns, "CONFIG", CONFIG)
    monkeypatch.setattr(campaigns, "ARGUMENTS", ARGUMENTS)
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    assert run(CONFIG, reference, *ARGUMENTS).returncode == 0
    seen = [
        campaigns.interrupt(workdir, tmp_path / "status", tmp_path / "log", activity, number, delay)
        for activity, delay in (("step", 0.1), ("save", 0.002), ("evaluate", 0.01))
    ]
    expected = -signal.SIGKILL if number == signal.SIGKILL else 75
    assert any(status == expected for _, status in seen), seen
    result = run(CONFIG, workdir, *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert ledger(workdir) == ledger(reference) and metric_rows(workdir) == metric_rows(reference)
    assert files(workdir) == files(reference) and any(name.endswith(".png") for name in files(workdir))
    ours, theirs = (json.loads((d / "report" / "metrics.json").read_text()) for d in (workdir, reference))
    assert ours["headline"] == theirs["headline"] and ours["per_class"] == theirs["per_class"]
