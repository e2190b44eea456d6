"""What is left of a trial when it is trained: predictions of every role, and its row in the ledger `trials.csv`."""

import collections
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from research.models.flops import flops
from research.models.initialize import count_parameters
from research.report import tables
from research.report.writer import MetricWriter
from research.training import build, cluster, start_weights
from research.training.inference import Predictor
from research.training.loop import Best
from research.training.progress import Diverged
from research.training.signals import StopSignal
from research.training.state import flatten

_POSITION = ("trial", "step", "epoch", "phase", "split")
_TRAIN = ("loss", "accuracy", "macro_f1", "pooled_dice")
ROLES = ("validation", "calibration", "test", "unlabelled")


class Ledger:
    """`trials.csv`: one row per trial, rewritten atomically at each change of status."""

    def __init__(self, path: pathlib.Path, trials: Sequence[build.Trial]) -> None:
        self.path = path
        stored = cluster.from_first(lambda: tables.read_trials_csv(path) if path.exists() else [])
        self._known = {row["id"]: row for row in stored}
        self.rows: dict[str, dict] = {}
        self.add(trials)

    def add(self, trials: Sequence[build.Trial]) -> None:
        """Rows for more trials, as they stand in the file if they do."""
        for t in trials:
            row = {"id": t.name, "status": "waiting", "seed": t.config.seed, "overrides": t.overrides}
            row |= {"setting": t.setting, "stage": t.stage}
            self.rows[t.name] = self._known.get(t.name, row)

    def known_rows(self) -> list[dict]:
        """The rows that stood in the file."""
        return list(self._known.values())

    def finished(self) -> bool:
        """Whether every trial is."""
        return all(self.ended(name) for name in self.rows)

    def ended(self, name: str) -> bool:
        """Whether nothing more is to be done for a trial: it is finished, stopped by the search, or failed."""
        return self.rows[name]["status"].split(":")[0] in ("finished", "stopped", "failed")

    def update(self, name: str, **values) -> None:
        """Changes a row and writes the file."""
        self.rows[name] |= values
        if cluster.is_first():
            tables.write_trials_csv(self.path, self.rows.values())


def predictor_of(trial: build.Trial, mesh, stop: StopSignal) -> Predictor:
    """What gives a trial's predictions for the ledger and the report."""
    return Predictor(trial, mesh, stop, views=trial.config.evaluation.tta)


def finish(trial: build.Trial, best: Best, history: Sequence[dict], folder: pathlib.Path, predictor: Predictor) -> dict:
    """Predicts every role with a trial's best variables and saves the predictions.

    Args:
      history: its rows of metrics.jsonl.
      predictor: see `predictor_of`; of this trial, or of one with the same network and data.

    Returns:
      What its row in the ledger gets.
    """
    metrics, dataset = {}, trial.dataset
    for role in ROLES:
        indices = dataset.indices(role)
        if not len(indices):
            continue
        rows = predictor(best.variables, indices)
        if not np.isfinite(rows).all():
            raise Diverged(f"Outputs for {role} are not finite; lower the learning rate.")
        maps = functools.partial(predictor.maps, best.variables, indices)
        if cluster.is_first():
            trial.task.write(folder / "predictions" / f"{trial.name}_{role}.csv", rows, maps, dataset, indices)
        elif trial.task.segments:  # the maps of the first process take all processes to compute
            collections.deque(maps(), maxlen=0)
        cluster.from_first(lambda: None)
        if role != "unlabelled":
            metrics[role] = trial.task.metrics(build.build_loss(trial), rows, dataset, indices)
    _write_hparams(trial, folder, metrics)
    return facts(trial, best) | {"metrics": _of_training(history) | metrics}


def stopped(trial: build.Trial, best: Best, history: Sequence[dict]) -> dict:
    """What the row of a trial gets that the search stopped: its best validation, and no test."""
    rows = [row for row in history if row["split"] == "validation" and row["step"] == best.step]
    metrics = {"validation": {k: row[k] for row in rows for k in row if k not in _POSITION}}
    return facts(trial, best) | {"metrics": _of_training(history) | metrics}


def _of_training(history: Sequence[dict]) -> dict:
    """The metrics of the training images since the log line before the last, as the network saw them."""
    rows = [row for row in history if row["split"] == "train"]
    return {"train": {k: rows[-1][k] for k in _TRAIN if k in rows[-1]}} if rows else {}


def facts(trial: build.Trial, best: Best) -> dict:
    """What is known of a trial without looking at images."""
    return {
        "parameters": count_parameters(best.variables["params"]),
        "bytes": int(sum(leaf.nbytes for tree in best.variables.values() for leaf in tree.values())),
        "flops": flops(build.build_model(trial), trial.config.image_size, trial.channels, trial.tokens),
        "best_step": best.step,
        "steps": best.last_step,
        "state_sha256": best.state_sha256,
        "normalisation": start_weights.in_words(start_weights.preprocessing(trial.config.data, trial.start)),
    }


def _write_hparams(trial: build.Trial, folder: pathlib.Path, metrics: dict) -> None:
    """Enters the trial in TensorBoard's HPARAMS table."""
    flat = {k: v for k, v in flatten(trial.config.to_dict()).items() if isinstance(v, bool | int | float | str)}
    writer = MetricWriter(folder / "tensorboard" / trial.name, active=cluster.is_first())
    writer.write_hparams(flat, {f"validation/{k}": v for k, v in metrics["validation"].items()})
    writer.close()
