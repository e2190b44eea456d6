"""How do logits become probabilities and classes: with the temperature and the thresholds of the run's calibration?"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from research.evaluation import calibration, predictions, score, thresholds
from research.training.build import Trial

SEPARATOR = ";"
"""Stands between several classes of an image, as `--study=table` reads them again."""

NOT_FINITE = "the network's output is not finite"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a run's report decides by.

    Attributes:
      classes: K names.
      multi_label: whether an input may have several.
      temperature: logits are divided by it.
      thresholds: float64 `[K]`, above which a class is given; None where the likeliest class is.
      fallback: what becomes of an input without a class, see `thresholds.decide`.
    """

    classes: tuple[str, ...]
    multi_label: bool
    temperature: float = 1.0
    thresholds: np.ndarray | None = None
    fallback: str | Sequence[float | str] = "argmax"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 `[n, K]`; NaN in rows whose logits are not finite."""
        found = np.full(logits.shape, np.nan)
        finite = np.isfinite(logits).all(axis=1)
        found[finite] = calibration.probabilities(logits[finite], self.multi_label, self.temperature)
        return found

    def decide(self, probabilities: np.ndarray) -> list[tuple[str, ...]]:
        """The classes of each of n rows of probabilities: one, or with several labels any number; none for NaN."""
        if not len(probabilities):
            return []
        known = np.isfinite(probabilities).all(axis=1)
        scores = np.where(known[:, None], probabilities, 0.0)
        if self.multi_label:
            given = thresholds.decide(scores, self.thresholds, self.fallback)
            found = [np.flatnonzero(row) for row in given]
        else:
            found = list(scores.argmax(axis=1)[:, None])
        return [tuple(self.classes[k] for k in row) if ok else () for row, ok in zip(found, known, strict=True)]


def of_run(trial: Trial, folder: pathlib.Path) -> Rule:
    """The rule of a trial, fitted to its saved predictions of calibration as its report does.

    Raises:
      UserError: they are damaged.
    """
    dataset, settings = trial.dataset, trial.config.evaluation
    file = folder / "predictions" / f"{trial.name}_calibration.csv"
    part = predictions.read(file) if file.exists() or len(dataset.indices("calibration")) else None
    temperature, cuts = score.fit(part, dataset.multi_label, settings)
    if dataset.multi_label and cuts is None:
        cuts = thresholds.fixed(len(dataset.class_names))
    return Rule(tuple(dataset.class_names), dataset.multi_label, temperature, cuts, settings.fallback)
