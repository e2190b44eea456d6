"""Above which score is a label given, and what happens to an example that would be left without one?

Thresholds are fitted on the `calibration` role and applied to `test`. A label is given where `score >=
threshold`.
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation.calibration import check_finite

METHODS = ("fixed", "per_class_f1", "grid")
DEFAULT = 0.5


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, np.float64)
    positives = np.asarray(labels)
    if scores.ndim != 2 or positives.shape != scores.shape:
        raise UserError(
            f"thresholds need scores and multi-hot labels of one shape [N, K], "
            f"not {scores.shape} and {positives.shape}."
        )
    if not len(scores):
        raise UserError("thresholds cannot be fitted without examples; give the dataset a calibration role.")
    return check_finite(scores, "scores"), positives > 0.5


def fixed(num_classes: int, value: float = DEFAULT) -> np.ndarray:
    """The same threshold for every class, float64 `[K]`."""
    return np.full(num_classes, float(value))


def per_class_f1(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The thresholds that maximise each class's F1 exactly, float64 `[K]`.

    Only the points between neighbouring distinct scores can differ, and the best cut is just below a positive: with
    none between two cuts the upper one is better. So it takes two sorts per class, one of all scores and one of the
    positives'. Each threshold lies midway between its two neighbours; below the lowest score stands the midpoint to 0.
    Of equally good thresholds the one nearest to 0.5 is taken, then the lower. A class without positives has F1 = 0
    anywhere and keeps 0.5. A million examples of 18 classes take half a second of one core (measured by
    tests/benchmarks/thresholds_speed.py).

    Args:
        scores: `[N, K]`, finite; probabilities.
        labels: multi-hot `[N, K]`.

    Raises:
        UserError: no examples, shapes that differ, or scores that are not finite.
    """
    scores, positives = _checked(scores, labels)
    thresholds = fixed(scores.shape[1])
    for column in np.flatnonzero(positives.any(axis=0)):
        ascending, of_positives = np.sort(scores[:, column]), np.sort(scores[positives[:, column], column])
        # The first of equal scores: a cut gives the label to all of them.
        first = np.flatnonzero(np.diff(of_positives, prepend=-np.inf))
        above = of_positives[first]
        start = np.searchsorted(ascending, above)  # how many scores lie below the cut
        true_positives, given = len(of_positives) - first, len(ascending) - start
        f1 = 2.0 * true_positives / (given + len(of_positives))
        below = np.where(start > 0, ascending[start - 1], min(0.0, ascending[0]))
        # Neighbouring floats have no midpoint: the upper one separates them, as the rule is >=.
        middle = below + (above - below) / 2
        candidates = np.where((middle > below) & (middle <= above), middle, above)
        thresholds[column] = _nearest_best(f1, candidates)
    return thresholds


def _nearest_best(f1: np.ndarray, candidates: np.ndarray) -> float:
    best = candidates[f1 == f1.max()]
    return float(min(best, key=lambda value: (abs(value - DEFAULT), value)))


def grid(
    scores: np.ndarray, labels: np.ndarray, low: float = 0.30, high: float = 0.70, step: float = 0.05
) -> np.ndarray:
    """The best F1 per class among `low, low + step, ..., high`, float64 `[K]`.

    The captions study's rule, with its values as defaults; ties and classes without positives as in
    `per_class_f1`.

    Raises:
        UserError: an empty grid, and as `per_class_f1`.
    """
    scores, positives = _checked(scores, labels)
    if not (step > 0 and low <= high):
        raise UserError(f"the threshold grid from {low} to {high} by {step} is empty; give low <= high and step > 0.")
    # Rounded, so that 0.3 + 4 * 0.05 is the same number as 0.5.
    candidates = np.round(low + step * np.arange(int(np.floor((high - low) / step + 1e-9)) + 1), 10)
    given = scores[None] >= candidates[:, None, None]
    true_positives = (given & positives).sum(axis=1)
    denominator = given.sum(axis=1) + positives.sum(axis=0)
    f1 = np.divide(2.0 * true_positives, denominator, out=np.zeros(denominator.shape), where=denominator > 0)
    thresholds = fixed(scores.shape[1])
    for column in np.flatnonzero(positives.any(axis=0)):
        thresholds[column] = _nearest_best(f1[:, column], candidates)
    return thresholds


def fit(
    scores: np.ndarray,
    labels: np.ndarray,
    method: str = "per_class_f1",
    value: float = DEFAULT,
    low: float = 0.30,
    high: float = 0.70,
    step: float = 0.05,
) -> np.ndarray:
    """Thresholds float64 `[K]` by the method that a config names: one of `METHODS`.

    `value` belongs to `fixed`; `low`, `high`, `step` to `grid`. Raises `UserError` for an unknown method.
    """
    if method == "fixed":
        return fixed(np.shape(scores)[1], value)
    if method == "per_class_f1":
        return per_class_f1(scores, labels)
    if method == "grid":
        return grid(scores, labels, low, high, step)
    raise UserError(f"unknown threshold method {method!r}; choose one of: {', '.join(METHODS)}.")


def decide(
    scores: np.ndarray,
    thresholds: float | Sequence[float] | np.ndarray,
    fallback: str | Sequence[float | str] = "argmax",
) -> np.ndarray:
    """Which labels are given, bool `[N, K]`.

    Args:
        scores: `[N, K]`, finite.
        thresholds: one number, or one per class `[K]`.
        fallback: for the examples that reach no threshold: "argmax" gives the class of the highest score (the
            lowest index among equals); "none" leaves them empty; a list such as `(0.46, 0.445)` tries these
            thresholds, for all classes alike and in this order, on the examples still empty, and ends in
            "argmax" (which may be written at its end, as may "none").

    Raises:
        UserError: scores that are not finite, a wrong number of thresholds, a fallback that does not descend.
    """
    scores = check_finite(scores, "scores")
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.shape not in ((), (1,), (scores.shape[1],)) or not np.isfinite(thresholds).all():
        raise UserError(f"thresholds must be one number or {scores.shape[1]} finite numbers, one per class.")
    decisions = scores >= thresholds
    steps, last = _fallback_steps(fallback)
    for value in steps:
        empty = ~decisions.any(axis=1)
        decisions[empty] = scores[empty] >= value
    if last == "argmax":
        empty = np.flatnonzero(~decisions.any(axis=1))
        decisions[empty, scores[empty].argmax(axis=1)] = True
    return decisions


def _fallback_steps(fallback: str | Sequence[float | str]) -> tuple[list[float], str]:
    entries = [fallback] if isinstance(fallback, str) else list(fallback)
    last = entries.pop() if entries and isinstance(entries[-1], str) else "argmax"
    numeric = all(isinstance(entry, int | float | np.number) for entry in entries)
    if last not in ("argmax", "none") or not numeric or sorted(entries, reverse=True) != entries:
        raise UserError(
            f"the threshold fallback {fallback!r} must be 'argmax', 'none' or a descending list of numbers "
            "that may end in one of these."
        )
    return [float(entry) for entry in entries], last
