"""Is one model better than another on the same examples, or could chance explain the difference?

All tests are two-sided and paired. McNemar compares accuracies of independent examples; the bootstrap and the
permutation test take any metric and keep groups (patients) together; DeLong's test of AUROCs is in `delong.py`.
Several tests of one study belong together: adjust their p-values by `holm`.

With one group nothing can be resampled: the interval and the p-value of the bootstrap are NaN, and the permutation
test has p = 1, as it cannot tell the models apart. An undefined metric (NaN) gives p = NaN.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import intervals, metrics, resampling
from research.evaluation.replicates import Replicates
from research.evaluation.statistics import bootstrap_replicates

# Differences of equal counts differ by rounding alone.
_EQUAL = 1e-12

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The first model minus the second.

    Attributes:
        value: difference of the metric on the whole set.
        low, high: its interval; NaN from tests that give none.
        p: two-sided.
    """

    value: float
    low: float
    high: float
    p: float


@dataclasses.dataclass(frozen=True)
class McNemar:
    """How often only one of two models is right, and the exact two-sided p.

    Attributes:
        first_only, second_only: numbers of examples. p: 1 where both are equal.
    """

    first_only: int
    second_only: int
    p: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """McNemar's exact test (McNemar 1947; Agresti 2002, section 10.1): binomial with 1/2 over the discordant examples.

    The examples must be independent; over the images of patients use `count_permutation`, which with one example per
    group gives the same p for accuracy when it enumerates.

    Args:
        first_right, second_right: bool `[N]`, whether each model is right.

    Raises:
        UserError: shapes that differ, or values other than 0 and 1.
    """
    from scipy.stats import binom

    first, second = np.asarray(first_right), np.asarray(second_right)
    if first.shape != second.shape or first.ndim != 1 or not np.isin([first, second], (0, 1)).all():
        raise UserError(f"McNemar's test needs two lists of right and wrong [N], not {first.shape} and {second.shape}.")
    first, second = first.astype(bool), second.astype(bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    tail = binom.cdf(min(only_first, only_second), discordant, 0.5) if discordant else 1.0
    return McNemar(only_first, only_second, float(min(1.0, 2 * tail)))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of replicates `[n]` of a difference: twice the rarer sign, 0 counting for both (at most 1).

    The largest level 1 - p at which the percentile interval still leaves 0 out (Efron & Tibshirani 1993, section 15.4);
    one is added to the counts, so that p is never 0. NaN replicates are left out; NaN if more than half are.
    """
    defined = differences[~np.isnan(differences)]
    if not len(differences) or 2 * len(defined) < len(differences):
        return float("nan")
    rarer = min((defined <= _EQUAL).sum(), (defined >= -_EQUAL).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(defined) + 1)))


def replicate_difference(
    found: Replicates, name: str, first: int, second: int, level: float = 0.95, method: str = "percentile"
) -> Comparison:
    """Paired bootstrap of two models of `replicates.resample`: the fast path for its metrics.

    Args:
        found: replicates of all models. name: of the metric. first, second: positions of the models.
        level: coverage. method: "percentile" or "bca" (needs the jackknife).
    """
    without = None if found.jackknife is None else found.jackknife[name][:, first] - found.jackknife[name][:, second]
    value = float(found.estimates[name][first] - found.estimates[name][second])
    differences = found.values[name][:, first] - found.values[name][:, second]
    low, high = intervals.bootstrap(differences, value, without, level, method, found.strata)
    return Comparison(value, float(low), float(high), bootstrap_p(differences))


def _pair(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: Sequence | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """The arrays, each example's group and the number of groups; `UserError` for shapes that do not fit."""
    first, second, labels = np.asarray(first), np.asarray(second), np.asarray(labels)
    if first.shape != second.shape or not len(first) or len(first) != len(labels):
        raise UserError(
            f"a paired test needs predictions of two models for the same labelled examples, not {first.shape}, "
            f"{second.shape} and labels {labels.shape}."
        )
    return first, second, labels, *resampling.group_index(groups, len(labels))


def paired_bootstrap(
    metric_fn: Metric,
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    strata: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "percentile",
) -> Comparison:
    """Bootstrap of the difference of any metric; both models see the same draws of groups.

    Args:
        metric_fn: (predictions `[M, ...]`, labels `[M, ...]`) -> number, for any M examples with repetitions.
        first, second: predictions `[N, ...]`, of whatever kind the metric takes (decisions, probabilities).
        labels: `[N, ...]`. groups: `[N]` or None. strata: `[N]` or None.
        n: replicates. seed: of the draws. level: coverage. method: "percentile" or "bca".

    Raises:
        UserError: shapes that do not fit.
    """
    first, second, labels, index, _ = _pair(first, second, labels, groups)

    def minus(rows: np.ndarray) -> float:
        return metric_fn(first[rows], labels[rows]) - metric_fn(second[rows], labels[rows])

    value = float(minus(np.arange(len(labels))))
    found = bootstrap_replicates(minus, index, strata, n, seed, jackknife=method == "bca")
    if found is None:
        return Comparison(value, *(float("nan"),) * 3)
    low, high = intervals.bootstrap(found.values, value, found.jackknife, level, method, found.strata)
    return Comparison(value, float(low), float(high), bootstrap_p(found.values))


def _exchanges(num_groups: int, n: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """Blocks of which groups are exchanged, bool `[r, D]`: all 2^D ways where these are at most n, else n random."""
    block = max(1, resampling.BLOCK // max(width, num_groups, 1))
    if _enumerable(num_groups, n):
        for start in range(0, 2**num_groups, block):
            ways = np.arange(start, min(start + block, 2**num_groups))
            yield (ways[:, None] >> np.arange(num_groups)) & 1 > 0
        return
    generator = np.random.default_rng(seed)
    for start in range(0, n, block):
        # int64: narrower types are drawn in batches that do not continue from block to block.
        yield generator.integers(0, 2, (min(block, n - start), num_groups), dtype=np.int64) > 0


def _enumerable(num_groups: int, n: int) -> bool:
    return num_groups < 62 and 2**num_groups <= n


def _permutation_p(value: float, replicates: np.ndarray, exact: bool) -> float:
    """Share of exchanges with a difference as large; random ones count the observed way too (Phipson & Smyth 2010).

    An exchange under which the metric is undefined counts as large.
    """
    if np.isnan(value):
        return float("nan")
    large = int((~(np.abs(replicates) < abs(value) - _EQUAL)).sum())
    return large / len(replicates) if exact else (large + 1) / (len(replicates) + 1)


def permutation(
    metric_fn: Metric,
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired permutation test of the difference of any metric (Good 2005): whole groups exchange the models' outputs.

    The null hypothesis is that it does not matter which model made which prediction. Only groups on which the models
    differ are exchanged; where these allow at most n ways all are tried, and p is exact. Metrics of scores (AUROC) mix
    the scores of both models: bring them to one scale first (ranks, or calibrated probabilities), or use
    `paired_bootstrap` or `delong.difference`.

    Args:
        metric_fn: (predictions `[N, ...]`, labels `[N, ...]`) -> number.
        first, second: predictions `[N, ...]`. labels: `[N, ...]`. groups: `[N]` or None.
        n: random exchanges. seed: of the exchanges.

    Returns:
        A comparison without an interval.

    Raises:
        UserError: shapes that do not fit, or fewer than one exchange.
    """
    resampling.check(n, 0.5)
    first, second, labels, index, num_groups = _pair(first, second, labels, groups)
    value = float(metric_fn(first, labels) - metric_fn(second, labels))
    unequal = (first != second).reshape(len(first), -1).any(axis=1)
    differ = np.unique(index[unequal])
    position = np.full(num_groups, len(differ))
    position[differ] = np.arange(len(differ))
    replicates = []
    for block in _exchanges(len(differ), n, seed, len(first)):
        for row in np.pad(block, ((0, 0), (0, 1))):  # The last column stands for groups without a difference.
            swap = row[position[index]].reshape(-1, *(1,) * (first.ndim - 1))
            one, other = np.where(swap, second, first), np.where(swap, first, second)
            replicates.append(metric_fn(one, labels) - metric_fn(other, labels))
    p = _permutation_p(value, np.asarray(replicates, np.float64), _enumerable(len(differ), n))
    return Comparison(value, float("nan"), float("nan"), p)


def count_permutation(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    multi_label: bool,
    groups: Sequence | np.ndarray | None = None,
    n: int = 10_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """`permutation` of every metric of `metrics.COUNT_METRICS` (F1, MCC, kappa, ...) by products of matrices.

    Args:
        first, second: decisions int `[N]` or bool `[N, K]`. labels: int `[N]`, or multi-hot `[N, K]`.
        num_classes: K. multi_label: which of the two. groups: `[N]` or None.
        n: random exchanges. seed: of the exchanges.
    """
    resampling.check(n, 0.5)
    first, second, labels, index, num_groups = _pair(first, second, labels, groups)
    true = metrics.check_labels(labels, num_classes, multi_label, len(labels))
    sums = []
    for own in (first, second):
        counts = metrics.example_counts(true, metrics.decisions(np.zeros(true.shape), multi_label, predicted=own))
        sums.append(np.stack([np.bincount(index, column, num_groups) for column in counts.T], axis=1))
    ours, theirs = (own.sum(axis=0) for own in sums)
    gain = sums[1] - sums[0]
    gain = gain[gain.any(axis=1)]

    def minus(one: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
        left, right = metrics.from_counts(one, multi_label), metrics.from_counts(other, multi_label)
        return {name: left[name] - right[name] for name in left}

    values = {name: float(value) for name, value in minus(ours, theirs).items()}
    exact = _enumerable(len(gain), n)
    blocks = []
    for block in _exchanges(len(gain), n, seed, len(ours)):
        moved = block.astype(np.float64) @ gain
        blocks.append(minus(ours + moved, theirs - moved))
    found = {name: np.concatenate([block[name] for block in blocks]) for name in values}
    nan = float("nan")
    return {
        name: Comparison(value, nan, nan, _permutation_p(value, found[name], exact)) for name, value in values.items()
    }


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (Holm 1979), float64 of the same shape `[T]`.

    Rejecting where the result is below alpha keeps the chance of any false rejection among the T tests below alpha,
    whatever their dependence. A NaN (a test that could not be made) stays NaN and does not count among the tests.

    Raises:
        UserError: p-values outside [0, 1].
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1 or ((p_values < 0) | (p_values > 1)).any():
        raise UserError("Holm's method needs a list of p-values between 0 and 1.")
    adjusted = np.full(p_values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted
