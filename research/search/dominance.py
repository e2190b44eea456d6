"""Which trials can stop, because a model that is not larger has already beaten all that they may still become?

The number of parameters is known before training. So a trial is lost for the front of size and accuracy as soon as a
trial that is not larger has reached more than its optimistic final accuracy:

    its best validation accuracy so far
    + what finished trials of the same search still gained after the same share of their training
    + one standard error of the accuracy

Accuracies are bests so far, because a trial ends with its best checkpoint. That best never falls, so neither can two
trials beat each other, nor does a verdict depend on the order of the trials. A history is a list of (share of the
training in 0..1, validation accuracy); its order does not matter.
"""

import math
from collections.abc import Sequence

import numpy as np

History = Sequence[tuple[float, float]]


def gains(histories: Sequence[History], share: float) -> np.ndarray:
    """How much the best accuracy of finished trials still rose after `share` of their training: float `[n]`, sorted.

    n is smaller than the number of histories where one has no evaluation up to that share. No gain is below 0.
    """
    found = []
    for history in histories:
        before = [accuracy for at, accuracy in history if at <= share and math.isfinite(accuracy)]
        if before:
            found.append(_best(history) - max(before))
    return np.sort(np.asarray(found, float))


def greatest_gain(values: np.ndarray, coverage: float) -> float:
    """A bound that the gain of one more trial keeps with probability `coverage`, as far as so few values can tell.

    For exchangeable trials the k-th smallest of n gains bounds a further one with probability k / (n + 1) (split
    conformal prediction, Vovk et al. 2005), so k = ceil((n + 1) * coverage). With too few values for that the largest
    is taken, whose probability is n / (n + 1): 5 in 6 for five values.

    Raises:
      ValueError: there are no values, or the coverage is not between 0 and 1.
    """
    if not len(values) or not 0 < coverage <= 1:
        raise ValueError(f"a bound needs gains and a coverage in (0, 1], not {len(values)} gains and {coverage}")
    position = math.ceil((len(values) + 1) * coverage - 1e-9)
    return float(np.sort(values)[min(position, len(values)) - 1])


def beaten(
    sizes: np.ndarray,
    histories: Sequence[History],
    finished: np.ndarray,
    standard_error: float,
    coverage: float = 0.95,
    minimum: int = 8,
) -> np.ndarray:
    """Which running trials can stop: bool `[N]`, False for all that are finished.

    Trials that were stopped earlier may be among them, as not finished: what they reached can beat others, but what
    they would have gained is unknown.

    Args:
      sizes: parameters, or their logarithm, `[N]`.
      histories: of all N trials; empty for one that has not been evaluated, which never stops.
      finished: bool `[N]`, trials that were trained to the end; only they tell what a trial can still gain.
      standard_error: of a validation accuracy, in its own unit (0..1), such as `standard_error`'s. Models are compared
        on the same images, so that of a difference of two models' `correct` is enough.
      coverage: of the bound on the gain, see `greatest_gain`; 1 takes the largest gain seen.
      minimum: no trial stops before so many finished ones tell of the same share of the training. Every evaluation is
        another chance to stop wrongly, so fewer than about 8 cost members of the front.

    Raises:
      ValueError: the lengths differ, a size is not finite, or the standard error is negative or not finite.
    """
    sizes, finished = np.asarray(sizes, float), np.asarray(finished, bool)
    if not len(sizes) == len(histories) == len(finished):
        raise ValueError(
            f"{len(sizes)} sizes, {len(histories)} histories and {len(finished)} marks do not belong together"
        )
    if not np.isfinite(sizes).all() or not 0 <= standard_error < math.inf:
        raise ValueError(f"sizes must be finite and the standard error at least 0, not {standard_error}")
    bests = np.array([_best(history) for history in histories])
    ended = [history for history, done in zip(histories, finished, strict=True) if done]
    result = np.zeros(len(sizes), bool)
    for index in np.flatnonzero(~finished & np.isfinite(bests)):
        known = gains(ended, max(at for at, _ in histories[index]))
        if len(known) >= max(1, minimum):
            hope = bests[index] + greatest_gain(known, coverage) + standard_error
            result[index] = bool((bests[sizes <= sizes[index]] > hope).any())
    return result


def standard_error(correct: np.ndarray, groups: Sequence) -> float:
    """Standard error of the mean of `correct` `[B]` over examples that come in groups, such as photographs.

    `correct` is bool for an accuracy, and a difference of two models' (-1, 0, 1) for that of two accuracies.

    Examples of a group are right or wrong together, so the residuals are added up within groups first: the
    cluster-robust variance of a mean (Liang and Zeger 1986), times G / (G - 1). NaN for fewer than two groups.
    """
    correct = np.asarray(correct, float)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    sums = np.bincount(codes, correct - correct.mean())
    return float(math.sqrt(count / (count - 1) * np.sum(sums**2)) / len(correct))


def _best(history: History) -> float:
    """The best accuracy of a history; minus infinity without a finite one."""
    return max((accuracy for _, accuracy in history if math.isfinite(accuracy)), default=-math.inf)
