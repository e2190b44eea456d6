"""Helpers of the tests of whole searches: a tiny data set, a config, deaths at chosen moments, comparisons."""

import collections
import contextlib
import os
import pathlib
import signal
import subprocess
import time

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from input_pipeline import prepare
from research import study
from research.evaluation import predictions
from research.outcome import Ledger
from research.search import execution, planner
from research.training import compilation, sharding
from research.training.checkpoint import Checkpoints
from tests.running import ENVIRONMENT, ROOT, command, ledger, metric_rows

SIZE = 16
SHAPES = ("model.options.widths", ((4,), (4, 6)))
RATES = ("optimizer.learning_rate", (1e-2, 3e-3))
GRID = (SHAPES, RATES, ("optimizer.weight_decay", (0.0, 1e-2)))
HALVING = {
    "search.halving.budget": 0.7,
    "search.halving.first": 0.25,
    "search.halving.last": 0.5,
    "search.halving.eta": 2.0,
}
# What a clock measures is never the same twice.
MEASURED = ("train_seconds", "latency_p50_ms", "latency_p95_ms", "latency_runtime", "peak_memory_bytes")


def write_dataset(root: pathlib.Path) -> pathlib.Path:
    """Prepares 96 noisy images of stripes in three directions, the classes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    for name, wave in {"across": x, "along": y, "askew": x + y}.items():
        (root / "raw" / name).mkdir(parents=True)
        for number in range(32):
            stripes = 120 + 60 * np.sin(wave * 0.9 + rng.uniform(0, 6))
            image = np.clip(stripes[..., None] + rng.normal(0, 40, (SIZE, SIZE, 3)), 0, 255)
            cv2.imwrite(str(root / "raw" / name / f"{number}.png"), image.astype(np.uint8))
    prepare.prepare("folder", root / "raw", root / "prepared", workers=1)
    return root / "prepared"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of a small prepared data set of three classes."""
    return write_dataset(tmp_path_factory.mktemp("stripes"))


def configure(data, **changes) -> ConfigDict:
    """Twelve steps of a small network, evaluated four times; double underscores stand for dots."""
    config = common.default()
    config.update_from_flattened_dict({
        "study": "stripes", "data.dir": str(data), "image_size": SIZE, "batch_size": 12, "steps": 12,
        "model.name": "simple_cnn", "model.options": ConfigDict({"widths": (4,)}), "evaluate_every": "3 steps",
        "checkpoint_every": "3 steps", "log_every": "3 steps", "evaluation.bootstrap": 20,
        "evaluation.baselines": False, "evaluation.explain": "", "search.plan": "one by one",
    })  # fmt: skip
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config.lock()


def arguments(config: ConfigDict, data) -> list[str]:
    """What a command line must say to make `config` of the file that `config_file` writes."""
    before, now = (_flat(c.to_dict()) for c in (configure(data), config))
    return [f"--config.{key}={value!r}" if not isinstance(value, str) else f"--config.{key}={value}"
            for key, value in now.items() if before[key] != value]  # fmt: skip


def _flat(tree: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in tree.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def config_file(folder: pathlib.Path, data) -> str:
    """A config file with the settings of `configure`."""
    file = folder / "stripes.py"
    text = (
        f"from tests import test_searches\n\n\ndef get_config():\n    return test_searches.configure({str(data)!r})\n"
    )
    file.write_text(text)
    return str(file)


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """Keeps even small programs: a search that dies often compiles them again and again."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    monkeypatch.setattr(compilation, "_LEAST_SECONDS", 0.0)
    yield
    jax.config.update(name, before)


@pytest.fixture(autouse=True)
def handlers():
    """Runs in this process take over its signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Died(BaseException):
    """Stands for the death of the process."""


def no_report(folder, *others) -> None:
    """Stands for the report where it takes most of the time."""
    for name in ("index.html", "metrics.json", "model_card.md"):
        (folder / "report" / name).write_text("{}")


def search(config, workdir, die_at: int | None = None, report=study.assemble.report) -> int:
    """Runs a search in this process, which may die at the `die_at`-th thing that it writes; returns what it wrote."""
    count = 0

    def dying(function):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == die_at:
                raise Died
            return function(*args, **kwargs)

        return wrapper

    places = [(Checkpoints, "save"), (predictions, "write"), (Ledger, "update"), (planner, "atomic_write"),
              (execution, "atomic_write"), (study.assemble, "report")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # On one of the tests' devices, which is compiled for once.
        candidates, one = planner.candidates_for, sharding.make_mesh(jax.devices()[:1])
        patch.setattr(planner, "candidates_for", lambda members, devices: candidates(members, 1))
        patch.setattr(sharding, "make_mesh", lambda devices=None: one)
        patch.setattr(study.assemble, "report", report)
        for place, name in places:
            patch.setattr(place, name, dying(getattr(place, name)))
        with contextlib.suppress(Died):
            assert study.run(config, workdir) == 0
            assert die_at is None or count < die_at
    return count


def rows_of(workdir) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in ledger(workdir)]


def assert_same(workdir, reference) -> None:
    """Same ledger, metric rows, predictions, rungs; each step of each trial once; nothing temporary left."""
    assert rows_of(workdir) == rows_of(reference)
    log, expected = ((d / "metrics.jsonl").read_text().splitlines() for d in (workdir, reference))
    assert sorted(log) == sorted(expected) and len(set(log)) == len(log)
    counts = collections.Counter((row["trial"], row["split"], row["step"]) for row in metric_rows(workdir))
    assert set(counts.values()) == {1}
    names = [sorted(file.name for file in (d / "predictions").iterdir()) for d in (workdir, reference)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (workdir / "predictions" / name).read_bytes() == (reference / "predictions" / name).read_bytes(), name
    assert (workdir / "rungs.json").exists() == (reference / "rungs.json").exists()
    if (reference / "rungs.json").exists():
        assert (workdir / "rungs.json").read_bytes() == (reference / "rungs.json").read_bytes()
    for name in ("index.html", "metrics.json"):
        assert (workdir / "report" / name).exists()
    assert not [p for p in workdir.rglob("*") if ".tmp" in p.name or "damaged" in p.name]


def die_often(config, tmp_path, share: float, report=study.assemble.report) -> pathlib.Path:
    """The search uninterrupted, and one that dies again and again after `share` of what there is left to write."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    events = search(config, whole, report=report)
    die_at = max(2, round(share * events))
    for _ in range(12):
        if search(config, broken, die_at, no_report) < die_at:
            break
    else:
        search(config, broken, report=no_report)
    assert_same(broken, whole)
    return whole


# Whole commands


def kill_when(config: str, workdir, given, number: int, condition) -> int:
    """Starts the command and sends a signal as soon as the condition holds; returns its exit status."""
    with open(workdir.parent / "log", "a") as log:
        process = subprocess.Popen(command(config, workdir, *given), cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    if process.poll() is None:
        os.kill(process.pid, number)
    return process.wait(timeout=300)
