"""Run folders with predictions, as a study leaves them, without any training."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from configs import common
from research.evaluation import predictions
from research.report import tables

CLASSES = ("bacterial", "normal", "viral")


def labels_of(examples: int, seed: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng([seed, 1]).integers(0, classes, examples)


def logits_of(labels: np.ndarray, accuracy: float, seed: int, classes: int = 3) -> np.ndarray:
    """About the share `accuracy` is right; errors of different seeds are independent."""
    generator = np.random.default_rng([seed, 2])
    wrong = generator.random(len(labels)) >= accuracy
    chosen = (labels + wrong * generator.integers(1, classes, len(labels))) % classes
    return 0.3 * generator.normal(size=(len(labels), classes)) + 2.0 * np.eye(classes)[chosen]


def write_run(
    folder: pathlib.Path,
    members: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str] = CLASSES,
    loss: str = "softmax_cross_entropy",
    rows: Mapping[str, dict] | None = None,
    group_size: int = 3,
    shuffle: int | None = None,
) -> pathlib.Path:
    """A finished run.

    Args:
      members: trial -> role -> logits `[N, K]`. labels: role -> `[N]` or `[N, K]`.
      rows: trial -> values of the ledger that differ from those of a finished trial of stage search.
      shuffle: seed of the order of every file's rows.
    """
    config = common.default()
    config.study, config.seed, config.loss.name, config.evaluation.bootstrap = "pneumonia", 3, loss, 200
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort(), encoding="utf-8")
    ledger = []
    for number, (name, by_role) in enumerate(members.items()):
        row = {"id": name, "status": "finished", "seed": 0, "overrides": {}, "setting": name, "stage": "search"}
        ledger.append(row | ((rows or {}).get(name) or {}))
        for role, logits in by_role.items():
            count = len(logits)
            order = np.arange(count)
            if shuffle is not None:
                order = np.random.default_rng([shuffle, number]).permutation(count)
            ids = np.array([f"{role}{i}" for i in range(count)], object)[order]
            groups = np.array([f"{role} patient {i // group_size}" for i in range(count)], object)[order]
            file = folder / "predictions" / f"{name}_{role}.csv"
            predictions.write(file, list(ids), list(groups), labels[role][order], logits[order], classes)
    tables.write_trials_csv(folder / "trials.csv", ledger)
    return folder


def independent(
    folder: pathlib.Path, accuracies: Sequence[float], calibration: int = 240, test: int = 302, **options
) -> pathlib.Path:
    """A run whose members err independently of each other."""
    labels = {"calibration": labels_of(calibration, 5), "test": labels_of(test, 6)}
    members = {
        f"loss{i}": {role: logits_of(own, accuracy, 10 * i + len(role)) for role, own in labels.items()}
        for i, accuracy in enumerate(accuracies)
    }
    return write_run(folder, members, labels, **options)


def weights_file(folder: pathlib.Path) -> dict:
    return json.loads((folder / "weights.json").read_text(encoding="utf-8"))
