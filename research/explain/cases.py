"""Which images does a reader want explained first, and for which class? The most confident right and wrong ones."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import calibration, predictions, score, thresholds
from research.training.build import Trial

PREDICTED, TRUE = "predicted", "true"


@dataclasses.dataclass(frozen=True)
class Case:
    """An image and the class that is explained.

    Attributes:
      id: of the image. row: its row among the images.
      target: index of the class. name: of the class.
      probability: of the class, after temperature scaling.
      truth, predicted: names of classes; `truth` is None where it is unknown.
      right: whether every decision is, None where the truth is unknown.
      group: the image's.
    """

    id: str
    row: int
    target: int
    name: str
    probability: float
    truth: tuple[str, ...] | None
    predicted: tuple[str, ...]
    right: bool | None
    group: str

    @property
    def verdict(self) -> str:
        """ "right", "wrong" or "truth unknown"."""
        return {True: "right", False: "wrong", None: "truth unknown"}[self.right]


def decide(workdir: pathlib.Path, trial: Trial, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 `[N, K]` and decisions bool `[N, K]`, with what the run's report uses.

    Temperature and thresholds are those of the predictions for `calibration` in the run folder.
    """
    multi_label, settings = trial.dataset.multi_label, trial.config.evaluation
    file = workdir / "predictions" / f"{trial.name}_calibration.csv"
    temperature, cuts = score.fit(predictions.read(file) if file.exists() else None, multi_label, settings)
    scores = calibration.probabilities(logits, multi_label, temperature)
    if not multi_label:
        return scores, scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])
    cuts = thresholds.fixed(scores.shape[1]) if cuts is None else cuts
    return scores, np.asarray(thresholds.decide(scores, cuts, settings.fallback), bool)


def choose(
    scores: np.ndarray,
    decided: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    ids: Sequence[str],
    groups: Sequence[str],
    class_names: Sequence[str],
    most: int,
    target: str = PREDICTED,
) -> list[Case]:
    """The most confident wrong and the most confident right cases, half of each where there are enough.

    The class that is explained is the one that was decided most confidently; with several labels, of a wrong image that
    of its worst decision: a label that was given although it is not there, or missed although it is.

    Args:
      scores: `[N, K]`. decided: bool `[N, K]`.
      labels: int `[N]` or multi-hot `[N, K]`. known: bool `[N]`.
      ids, groups: N. class_names: K.
      most: cases, at most; 0 for all.
      target: "predicted" as above, "true" for the true class (the most probable of several), or a class's name.

    Returns:
      Wrong ones, then right ones, then those of unknown truth, each with falling confidence.

    Raises:
      UserError: no class of that name, or "true" where the truth is unknown.
    """
    names = np.array(class_names, object)
    true = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
    errors = (decided != true) & known[:, None]
    if labels.ndim == 1:
        errors &= decided  # one decision only: the class that was given
    wrong = errors.any(axis=1)
    sure = np.where(decided, scores, 1 - scores)
    given = np.where(decided.any(axis=1, keepdims=True), scores * decided, scores)
    own = np.where(wrong, (sure * errors).argmax(axis=1), given.argmax(axis=1))
    rows = np.arange(len(scores))
    confidence = np.where(wrong, (sure * errors).max(axis=1), scores[rows, own])
    order = np.argsort(-confidence, kind="stable")
    kinds = [[i for i in order if wrong[i]], [i for i in order if known[i] and not wrong[i]],
             [i for i in order if not known[i]]]  # fmt: skip
    chosen = [i for kind, count in zip(kinds, _shares([len(kind) for kind in kinds], most), strict=True)
              for i in kind[:count]]  # fmt: skip
    own = _targets(own, scores, true, known, chosen, class_names, target)
    return [
        Case(
            id=ids[i], row=int(i), target=int(own[i]), name=str(names[own[i]]), probability=float(scores[i, own[i]]),
            truth=tuple(names[true[i]]) if known[i] else None, predicted=tuple(names[decided[i]]),
            right=bool(not wrong[i]) if known[i] else None, group=groups[i],
        )
        for i in chosen
    ]  # fmt: skip


def _shares(available: list[int], most: int) -> list[int]:
    """How many of each kind: equal parts, the rest to those that have more."""
    left = min(most or sum(available), sum(available))
    counts = [0] * len(available)
    while left:
        for kind, count in enumerate(available):
            if left and counts[kind] < count:
                counts[kind], left = counts[kind] + 1, left - 1
    return counts


def _targets(own, scores, true, known, chosen, class_names, target: str) -> np.ndarray:
    if target == PREDICTED:
        return own
    if target == TRUE:
        if not all(known[i] and true[i].any() for i in chosen):
            raise UserError("--class=true needs the truth of every image; choose --class=predicted or a class's name.")
        return np.where(true, scores, -1.0).argmax(axis=1)
    if target not in class_names:
        raise UserError(f"there is no class {target!r}; choose of {PREDICTED}, {TRUE}, {', '.join(class_names)}.")
    return np.full(len(own), list(class_names).index(target))
