"""What is every metric of every model in every replicate of one bootstrap?

All models see the same draws, so that differences between the columns are paired. Nothing is computed again per
replicate: metrics of counts come from one product of the weights (how often each group is drawn) with the counts per
group, and AUROC and average precision from one sort per model and class, walked once with cumulative sums over all
replicates of a block at a time. 10,000 replicates of 624 predictions by 12 models in 8 metrics take about a second on
one core.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import calibration, intervals, metrics, resampling

# The columns of the table of losses.
TABLE = (
    "accuracy",
    "auroc_macro",
    "auprc_macro",
    "precision_macro",
    "recall_macro",
    "macro_f1",
    "mcc",
    "kappa",
)
# Those of examples with many labels.
LABELS_TABLE = (
    "accuracy",
    "macro_f1",
    "micro_f1",
    "sample_f1",
    "auroc_macro",
    "auprc_macro",
    "precision_macro",
    "recall_macro",
)
NAMES = metrics.METRICS + ("brier",)
# Replicates walked at once: five float64 rows of this length stay in a core's cache (160 kB).
_WALK = 4096
# A count of no examples that can be divided by: too small to change a count of one.
_NONE = 1e-300


@dataclasses.dataclass(frozen=True)
class Replicates:
    """Metrics of M models: of the whole set, of n replicates, and without each of the G groups.

    Attributes:
        estimates: name -> float64 `[M]`.
        values: name -> float64 `[n, M]`; NaN where undefined, and everywhere with fewer than two groups.
        jackknife: name -> float64 `[G, M]`, or None where it was not asked for (the percentile interval needs none).
        strata: of the groups, int64 `[G]`, or None.
    """

    estimates: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    jackknife: dict[str, np.ndarray] | None
    strata: np.ndarray | None


def weighted_ranking(
    scores: np.ndarray, positives: np.ndarray, weights: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one class under r sets of weights, each float64 `[r]`.

    The same numbers as `metrics.ranking`, for many weights at once: a row of weights is an example's (no copy is
    made per example), and one step down the sorted scores is a few vector operations of length r.

    Args:
        scores: `[N]`, finite. positives: bool `[N]`.
        weights: how often each group counts, float64 `[G, r]`. index: group of each example, int `[N]`.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])) + 1, len(order)).tolist()
    width = weights.shape[1]
    hits, area, precision = np.zeros(width), np.zeros(width), np.zeros(width)
    given, step = np.full(width, _NONE), np.empty(width)
    sorted_index, sorted_positives = index[order], positives[order]
    start = 0
    for end in ends:
        rows, sides = sorted_index[start:end], sorted_positives[start:end]
        start = end
        gained, missed = _total(weights, rows[sides]), _total(weights, rows[~sides])
        if missed is not None:
            np.multiply(missed, hits, out=step)
            area += step
            given += missed
            if gained is not None:  # Tied with positives: half of each pair.
                area += missed * gained / 2
        if gained is not None:
            hits += gained
            given += gained
            np.divide(hits, given, out=step)
            step *= gained
            precision += step
    misses = given - hits
    # Rounded away wherever anything was drawn; no example at all leaves _NONE.
    return metrics.ratio(area, hits * misses, np.nan), metrics.ratio(precision, hits, np.nan)


def _total(weights: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Sum of some rows of `[G, r]`; None for no rows. One row, the usual case, is not copied."""
    if len(rows) == 1:
        return weights[rows[0]]
    return weights[rows].sum(axis=0) if len(rows) else None


def weighted_rankings(
    scores: np.ndarray, true: np.ndarray, weights: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of every class under weights `[r, G]`, each float64 `[r, K]`.

    Args:
        scores: `[N, K]`, finite. true: bool `[N, K]`. weights: `[r, G]`. index: int `[N]`.
    """
    auroc, average_precision = np.empty((2, len(weights), scores.shape[1]))
    for start in range(0, len(weights), _WALK):
        part = slice(start, start + _WALK)
        by_group = np.ascontiguousarray(weights[part].T)
        for c in range(scores.shape[1]):
            found = weighted_ranking(scores[:, c], true[:, c], by_group, index)
            auroc[part, c], average_precision[part, c] = found
    return auroc, average_precision


@dataclasses.dataclass(frozen=True)
class _Table:
    """Everything that weights are applied to: sums over groups `[G, M, C]`, and the scores to be ranked."""

    sums: np.ndarray
    scores: np.ndarray
    true: np.ndarray
    index: np.ndarray
    multi_label: bool
    names: tuple[str, ...]


def _columns(scores: np.ndarray, labels: np.ndarray, true: np.ndarray, given: np.ndarray, multi_label: bool):
    """What is summed over the examples of one model, float64 `[N, C]`: counts, bins, log loss, Brier score."""
    bins = calibration.bin_totals(*calibration.confidences(scores, labels, multi_label))
    losses = metrics.example_log_loss(scores, true, multi_label), calibration.example_brier(scores, true, multi_label)
    parts = [bins.reshape(len(scores), -1), np.stack(losses, axis=1), metrics.example_counts(true, given)]
    return np.concatenate(parts, axis=1)


def _measure(table: _Table, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of `table.names` under weights `[r, G]`: name -> float64 `[r, M]`."""
    num_groups, num_models, num_columns = table.sums.shape
    totals = (weights @ table.sums.reshape(num_groups, -1)).reshape(-1, num_models, num_columns)
    bins = 3 * calibration.BINS
    found = metrics.from_counts(totals[..., bins + 2 :], table.multi_label)
    if "ece" in table.names:
        found["ece"] = calibration.calibration_error(totals[..., :bins].reshape(*totals.shape[:2], 3, -1))
    for position, name in enumerate(("log_loss", "brier")):
        found[name] = metrics.ratio(totals[..., bins + position], totals[..., -1], np.nan)
    if {"auroc_macro", "auprc_macro"} & set(table.names):
        ranked = [weighted_rankings(scores, table.true, weights, table.index) for scores in table.scores]
        for position, name in enumerate(("auroc_macro", "auprc_macro")):
            found[name] = np.stack([metrics.mean_defined(model[position]) for model in ranked], axis=1)
    return {name: found[name] for name in table.names}


def resample(
    scores: np.ndarray,
    labels: np.ndarray,
    multi_label: bool,
    predicted: np.ndarray | None = None,
    groups: Sequence | np.ndarray | None = None,
    strata: Sequence | np.ndarray | None = None,
    n: int = 10_000,
    seed: int = 0,
    names: Sequence[str] = TABLE,
    jackknife: bool = False,
) -> Replicates:
    """Metrics of M models on the same examples, in n replicates of one bootstrap over groups.

    Args:
        scores: probabilities `[M, N, K]`.
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        predicted: decisions int `[M, N]` or bool `[M, N, K]`; default the top class, or 0.5.
        groups: `[N]`, or None where examples are independent.
        strata: `[N]` (usually the labels of a single-label task), or None: not stratified.
        n: replicates. seed: of the draws, the same as in `statistics`.
        names: some of `NAMES`.
        jackknife: also the metrics without each group; `intervals.bca` needs them.

    Raises:
        UserError: unknown names, shapes that do not fit, and as `metrics.evaluate`.
    """
    resampling.check(n, 0.5)
    scores = np.asarray(scores, np.float64)
    unknown = set(names) - set(NAMES)
    if unknown or scores.ndim != 3 or (predicted is not None and len(predicted) != len(scores)):
        raise UserError(
            f"resampling needs scores [M, N, K], decisions of the same models and metrics among {', '.join(NAMES)}; "
            f"given were scores {scores.shape} and the metrics {', '.join(names)}."
        )
    num_models, num_examples, num_classes = scores.shape
    true = metrics.check_labels(labels, num_classes, multi_label, num_examples)
    index, num_groups = resampling.group_index(groups, num_examples)
    of_groups = resampling.group_strata(strata, index, num_groups)
    sums = []
    for model, values in enumerate(scores):
        values = metrics.check_scores(values, multi_label)
        own = None if predicted is None else predicted[model]
        given = metrics.decisions(values, multi_label, predicted=own)
        columns = _columns(values, np.asarray(labels), true, given, multi_label)
        sums.append(np.stack([np.bincount(index, column, num_groups) for column in columns.T], axis=1))
    table = _Table(np.stack(sums, axis=1), scores, true, index, multi_label, tuple(names))
    estimates = {name: value[0] for name, value in _measure(table, np.ones((1, num_groups))).items()}
    if num_groups < 2:
        nothing = {name: np.full((n, num_models), np.nan) for name in names}
        without = {name: np.full((num_groups, num_models), np.nan) for name in names}
        return Replicates(estimates, nothing, without if jackknife else None, of_groups)
    width = max(num_groups, sums[0].shape[1] * num_models)
    drawn = resampling.weights(num_groups, n, seed, width, of_groups)
    values = _joined([_measure(table, block) for block in drawn])
    left_out = resampling.jackknife_weights(num_groups, width)
    without = _joined([_measure(table, block) for block in left_out]) if jackknife else None
    return Replicates(estimates, values, without, of_groups)


def _joined(blocks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def ends(
    found: Replicates, name: str, level: float = 0.95, method: str = "percentile"
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of one metric of every model: lower and upper end, float64 `[M]`.

    Args:
        found: of `resample`. name: of the metric. level: coverage.
        method: "percentile", or "bca" (needs the jackknife).

    Raises:
        UserError: an unknown method, a level outside (0, 1), or BCa without the jackknife.
    """
    without = None if found.jackknife is None else found.jackknife[name]
    return intervals.bootstrap(found.values[name], found.estimates[name], without, level, method, found.strata)
