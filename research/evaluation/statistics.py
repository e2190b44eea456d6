"""How uncertain is a metric, given that images of one patient or photograph are not independent?

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over **groups**: whole groups are drawn with
replacement, as many as there are, and every draw of a group brings all its examples. Predictions of several
folds are pooled by concatenation first; a group lies in one fold alone, so nothing else changes. Metrics made
of sums (`metrics.COUNT_METRICS`) and of rankings are reweighted, all replicates at once; any other metric
goes through `cluster_bootstrap`, which draws the same groups from the same seed, also by strata and with the BCa
method. Many models at once: `replicates.py`; tests of differences: `paired_tests.py` and `delong.py`.

With fewer than two groups there is nothing to resample, and the interval is (NaN, NaN), not a width of zero.
Replicates in which a metric is undefined are left out; if more than half are, the interval is NaN as well.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from research.evaluation import calibration, intervals, metrics, replicates, resampling
from research.evaluation.intervals import Interval, clopper_pearson, wilson
from research.evaluation.resampling import group_index

__all__ = [
    "Interval",
    "Resampled",
    "bootstrap_replicates",
    "clopper_pearson",
    "cluster_bootstrap",
    "difference_intervals",
    "group_index",
    "metric_intervals",
    "per_class_intervals",
    "resampled_totals",
    "score_intervals",
    "wilson",
]


class Resampled(NamedTuple):
    """Any metric in its replicates.

    Attributes:
        values: `[n, ...]`.
        estimate: of the whole set, `[...]`, and jackknife: without group g, `[G, ...]`; None where not asked for.
        strata: of the groups, int `[G]`, or None.
    """

    values: np.ndarray
    estimate: np.ndarray | None
    jackknife: np.ndarray | None
    strata: np.ndarray | None


def _intervals(values: dict[str, np.ndarray], level: float) -> dict[str, Interval]:
    return {name: tuple(float(end) for end in intervals.percentile(found, level)) for name, found in values.items()}


def bootstrap_replicates(
    metric_fn: Callable[[np.ndarray], float | np.ndarray],
    groups: Sequence | np.ndarray,
    strata: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    jackknife: bool = False,
) -> Resampled | None:
    """Any metric in n replicates; None with fewer than two groups. Arguments as `cluster_bootstrap`.

    With `jackknife` also of the whole set and without each group, which calls the metric G + 1 times more.
    """
    resampling.check(n, 0.5)
    index, num_groups = group_index(groups, len(groups))
    if num_groups < 2:
        return None
    of_groups = resampling.group_strata(strata, index, num_groups)
    members = resampling.members_of(index, num_groups)
    values = [
        metric_fn(resampling.examples_of(row, *members))
        for drawn in resampling.draws(num_groups, n, seed, strata=of_groups)
        for row in drawn
    ]
    if not jackknife:
        return Resampled(np.asarray(values, np.float64), None, None, of_groups)
    without = [metric_fn(np.flatnonzero(index != group)) for group in range(num_groups)]
    estimate = metric_fn(np.arange(len(index)))
    return Resampled(*(np.asarray(part, np.float64) for part in (values, estimate, without)), of_groups)


def cluster_bootstrap(
    metric_fn: Callable[[np.ndarray], float | np.ndarray],
    groups: Sequence | np.ndarray,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    strata: Sequence | np.ndarray | None = None,
    method: str = "percentile",
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Interval of any metric, clustered by group.

    Args:
        metric_fn: example indices int64 `[M]` (with repetitions) -> a number or an array of numbers.
        groups: `[N]`, one label per example (`numpy.arange(N)`: none are related).
        n: replicates.
        seed: of the draws; the same seed draws the same groups in every function of this file.
        level: coverage.
        strata: `[N]`, usually the classes: each is drawn as often as it is there (`resampling.group_strata`); or None.
        method: "percentile", or "bca" (`intervals.bca`; calls the metric once more per group).

    Returns:
        Lower and upper end; arrays if the metric returns an array.

    Raises:
        UserError: a level outside (0, 1), no replicates, an unknown method.
    """
    resampling.check(n, level)
    found = bootstrap_replicates(metric_fn, groups, strata, n, seed, jackknife=method == "bca")
    if found is None:
        return float("nan"), float("nan")
    low, high = intervals.bootstrap(found.values, found.estimate, found.jackknife, level, method, found.strata)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def resampled_totals(
    values: np.ndarray, groups: Sequence | np.ndarray | None, n: int = 2000, seed: int = 0
) -> np.ndarray | None:
    """Column sums of `values` `[N, M]` over each replicate, float64 `[n, M]`; None with fewer than two
    groups.

    The fast path: any statistic that is a function of sums over examples is a function of these.
    """
    index, num_groups = group_index(groups, len(values))
    if num_groups < 2:
        return None
    totals = np.stack([np.bincount(index, column, num_groups) for column in values.T], axis=1)
    return np.concatenate([weights @ totals for weights in resampling.weights(num_groups, n, seed)])


def metric_intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    multi_label: bool,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of every metric of `metrics.COUNT_METRICS`, clustered by group.

    Args:
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        predicted: int `[N]`, or bool `[N, K]`.
        num_classes: K.
        multi_label: which of the two.
        groups: `[N]`, or None where examples are independent.
        n: replicates. seed: of the draws. level: coverage.
    """
    resampling.check(n, level)
    totals = resampled_totals(_counts(labels, predicted, num_classes, multi_label), groups, n, seed)
    if totals is None:
        return dict.fromkeys(metrics.COUNT_METRICS, (float("nan"), float("nan")))
    return _intervals(metrics.from_counts(totals, multi_label), level)


def _counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int, multi_label: bool) -> np.ndarray:
    true = metrics.check_labels(labels, num_classes, multi_label, len(labels))
    given = metrics.decisions(np.zeros(true.shape), multi_label, predicted=predicted)
    return metrics.example_counts(true, given)


def per_class_intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    multi_label: bool,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Intervals of `precision`, `recall` and `f1` of every class: name -> lower `[K]`, upper `[K]`.

    Arguments as `metric_intervals`.
    """
    resampling.check(n, level)
    totals = resampled_totals(_counts(labels, predicted, num_classes, multi_label), groups, n, seed)
    if totals is None:
        undefined = np.full(num_classes, np.nan)
        return {name: (undefined, undefined) for name in ("precision", "recall", "f1")}
    return {name: intervals.percentile(values, level) for name, values in metrics.class_scores(totals).items()}


def difference_intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    rival: np.ndarray,
    num_classes: int,
    multi_label: bool,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of `predicted` minus `rival` on the same examples (paired: both see the same replicates).

    An interval above 0 says that `predicted` is better. Arguments as `metric_intervals`; `rival` as
    `predicted`.
    """
    resampling.check(n, level)
    first, second = (
        resampled_totals(_counts(labels, given, num_classes, multi_label), groups, n, seed)
        for given in (predicted, rival)
    )
    if first is None or second is None:
        return dict.fromkeys(metrics.COUNT_METRICS, (float("nan"), float("nan")))
    ours, theirs = metrics.from_counts(first, multi_label), metrics.from_counts(second, multi_label)
    return _intervals({name: ours[name] - theirs[name] for name in ours}, level)


def score_intervals(
    scores: np.ndarray,
    labels: np.ndarray,
    multi_label: bool,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[dict[str, Interval], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Intervals of the metrics of the scores themselves: `metrics.SCORE_METRICS`, and per class.

    Args:
        scores: probabilities `[N, K]`.
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        groups: `[N]`, or None where examples are independent.
        n: replicates (about 0.2 s per class for 10,000 examples and 2,000 replicates). seed: of the draws.
        level: coverage.

    Returns:
        Name -> (low, high), and `auroc`, `average_precision` -> lower `[K]`, upper `[K]`.
    """
    resampling.check(n, level)
    scores = metrics.check_scores(scores, multi_label)
    num_classes = scores.shape[1]
    true = metrics.check_labels(labels, num_classes, multi_label, len(scores))
    index, num_groups = group_index(groups, len(scores))
    if num_groups < 2:
        undefined = np.full(num_classes, np.nan)
        by_class = {name: (undefined, undefined) for name in ("auroc", "average_precision")}
        return dict.fromkeys(metrics.SCORE_METRICS, (float("nan"), float("nan"))), by_class
    drawn = resampling.weights(num_groups, n, seed, width=num_groups)
    blocks = [replicates.weighted_rankings(scores, true, weights, index) for weights in drawn]
    ranked = [np.concatenate(part) for part in zip(*blocks, strict=True)]
    bins = calibration.bin_totals(*calibration.confidences(scores, labels, multi_label))
    loss = metrics.example_log_loss(scores, true, multi_label)
    columns = np.concatenate([bins.reshape(len(scores), -1), loss[:, None], np.ones((len(scores), 1))], axis=1)
    totals = resampled_totals(columns, groups, n, seed)
    values = {
        "auroc_macro": metrics.mean_defined(ranked[0]),
        "auprc_macro": metrics.mean_defined(ranked[1]),
        "ece": calibration.calibration_error(totals[:, :-2].reshape(-1, *bins.shape[1:])),
        "log_loss": totals[:, -2] / totals[:, -1],
    }
    by_class = dict(
        zip(("auroc", "average_precision"), (intervals.percentile(part, level) for part in ranked), strict=True)
    )
    return _intervals(values, level), by_class
