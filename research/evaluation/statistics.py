"""How uncertain is a metric, given that images of one patient or photograph are not independent?

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over **groups**: whole groups are drawn with
replacement, as many as there are, and every draw of a group brings all its examples. Predictions of several
folds are pooled by concatenation first; a group lies in one fold alone, so nothing else changes. Metrics made
of sums (`metrics.COUNT_METRICS`) and of rankings are reweighted, all replicates at once; any other metric
goes through `cluster_bootstrap`, which draws the same groups from the same seed.

With fewer than two groups there is nothing to resample, and the interval is (NaN, NaN), not a width of zero.
Replicates in which a metric is undefined are left out; if more than half are, the interval is NaN as well.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import calibration, metrics

Interval = tuple[float, float]

# Numbers held at once for a block of replicates (float64: 32 MB); a block's size does not change what is
# drawn.
_BLOCK = 4_000_000


def _check(n: int, level: float) -> None:
    if n < 1 or not 0 < level < 1:
        raise UserError(
            f"a bootstrap needs at least one replicate and a level between 0 and 1, not {n} and {level}."
        )


def group_index(groups: Sequence | np.ndarray | None, num_examples: int) -> tuple[np.ndarray, int]:
    """Each example's group as int64 `[N]` in 0..G-1, and G. `groups` None: every example is its own group.

    Raises:
        UserError: as many groups as examples are needed.
    """
    if groups is None:
        return np.arange(num_examples), num_examples
    if len(groups) != num_examples:
        raise UserError(f"{len(groups)} groups do not fit {num_examples} examples.")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1), len(names)


def _draws(num_groups: int, n: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """Blocks of drawn groups int64 `[r, G]`, n rows in all; `width` numbers are needed per replicate."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(width, num_groups))
    for start in range(0, n, block):
        yield generator.integers(0, num_groups, (min(block, n - start), num_groups), dtype=np.int64)


def _weights(num_groups: int, n: int, seed: int, width: int = 1) -> Iterator[np.ndarray]:
    """Blocks of how often each group is drawn, float64 `[r, G]`."""
    for drawn in _draws(num_groups, n, seed, width):
        flat = (drawn + np.arange(len(drawn))[:, None] * num_groups).ravel()
        yield np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _percentiles(replicates: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end along the first axis, ignoring NaN unless more than half are."""
    replicates = np.asarray(replicates, np.float64)
    undefined = np.isnan(replicates)
    hopeless = undefined.mean(axis=0) > 0.5
    safe = np.where(hopeless, 0.0, replicates)
    low, high = np.nanquantile(safe, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(hopeless, np.nan, low), np.where(hopeless, np.nan, high)


def _intervals(replicates: dict[str, np.ndarray], level: float) -> dict[str, Interval]:
    return {
        name: tuple(float(end) for end in _percentiles(values, level)) for name, values in replicates.items()
    }


def cluster_bootstrap(
    metric_fn: Callable[[np.ndarray], float | np.ndarray],
    groups: Sequence | np.ndarray,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Percentile interval of any metric, clustered by group.

    Args:
        metric_fn: example indices int64 `[M]` (with repetitions) -> a number or an array of numbers.
        groups: `[N]`, one label per example (`numpy.arange(N)`: none are related).
        n: replicates.
        seed: of the draws; the same seed draws the same groups in every function of this file.
        level: coverage.

    Returns:
        Lower and upper end; arrays if the metric returns an array.

    Raises:
        UserError: a level outside (0, 1), or no replicates.
    """
    _check(n, level)
    index, num_groups = group_index(groups, len(groups))
    if num_groups < 2:
        return float("nan"), float("nan")
    members = np.argsort(index, kind="stable")
    sizes = np.bincount(index, minlength=num_groups)
    starts = np.cumsum(sizes) - sizes
    replicates = []
    for drawn in _draws(num_groups, n, seed, 1):
        for row in drawn:
            # Positions of the drawn groups' members: each start repeated, plus 0, 1, ... within the group.
            length = sizes[row]
            within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            replicates.append(metric_fn(members[np.repeat(starts[row], length) + within]))
    low, high = _percentiles(np.asarray(replicates), level)
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
    return np.concatenate([weights @ totals for weights in _weights(num_groups, n, seed)])


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
    _check(n, level)
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
    _check(n, level)
    totals = resampled_totals(_counts(labels, predicted, num_classes, multi_label), groups, n, seed)
    if totals is None:
        undefined = np.full(num_classes, np.nan)
        return {name: (undefined, undefined) for name in ("precision", "recall", "f1")}
    return {name: _percentiles(values, level) for name, values in metrics.class_scores(totals).items()}


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
    _check(n, level)
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
        n: replicates (about 0.6 s per class for 10,000 examples and 2,000 replicates). seed: of the draws.
        level: coverage.

    Returns:
        Name -> (low, high), and `auroc`, `average_precision` -> lower `[K]`, upper `[K]`.
    """
    _check(n, level)
    scores = metrics.check_scores(scores, multi_label)
    num_classes = scores.shape[1]
    true = metrics.check_labels(labels, num_classes, multi_label, len(scores))
    index, num_groups = group_index(groups, len(scores))
    if num_groups < 2:
        undefined = np.full(num_classes, np.nan)
        by_class = {name: (undefined, undefined) for name in ("auroc", "average_precision")}
        return dict.fromkeys(metrics.SCORE_METRICS, (float("nan"), float("nan"))), by_class
    ranked = np.concatenate(
        [
            np.stack(
                [metrics.ranking(scores[:, c], true[:, c], weights[:, index]) for c in range(num_classes)], -1
            )
            for weights in _weights(num_groups, n, seed, width=len(scores))
        ],
        axis=1,
    )
    bins = calibration.bin_totals(*calibration.confidences(scores, labels, multi_label))
    loss = metrics.example_log_loss(scores, true, multi_label)
    columns = np.concatenate(
        [bins.reshape(len(scores), -1), loss[:, None], np.ones((len(scores), 1))], axis=1
    )
    totals = resampled_totals(columns, groups, n, seed)
    replicates = {
        "auroc_macro": metrics.mean_defined(ranked[0]),
        "auprc_macro": metrics.mean_defined(ranked[1]),
        "ece": calibration.calibration_error(totals[:, :-2].reshape(-1, *bins.shape[1:])),
        "log_loss": totals[:, -2] / totals[:, -1],
    }
    by_class = dict(
        zip(("auroc", "average_precision"), (_percentiles(part, level) for part in ranked), strict=True)
    )
    return _intervals(replicates, level), by_class


def wilson(successes: float, total: float, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of **independent** trials (Wilson 1927); (NaN, NaN) without
    trials.

    Only for proportions: F1, MCC and AUROC are none, and neither is accuracy over related images. Use the
    bootstrap there.

    Raises:
        UserError: successes outside 0..total, or a level outside (0, 1).
    """
    if not 0 <= successes <= total or not 0 < level < 1:
        raise UserError(
            f"a proportion needs 0 <= successes <= total, not {successes} of {total} at level {level}."
        )
    if total == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
