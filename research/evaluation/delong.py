"""How sure is an AUROC, and do two of them differ on the same examples?

DeLong, DeLong & Clarke-Pearson 1988 with the midranks of Sun & Xu 2014 (O(N log N) instead of all pairs). Every
example contributes the share of opposite examples that it is ranked correctly against (ties count half); the
covariance of AUROCs is that of these contributions. Where examples are related (patients), contributions are summed
over a group first (Obuchowski 1997).

One class alone: the AUROC is NaN, with its variances. A single positive or negative example (or a single group of
them): the AUROC stands, its variances are NaN. No wrong pair: the variance is 0, which says nothing about the next
example, so that `interval` is (NaN, NaN). Scores that are not finite are refused.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import metrics, resampling


@dataclasses.dataclass(frozen=True)
class Difference:
    """One AUROC minus another on the same examples.

    Attributes:
        value: the difference. low, high: its interval. z: value / standard error. p: two-sided.
    """

    value: float
    low: float
    high: float
    z: float
    p: float


def _contributions(scores: np.ndarray, positives: np.ndarray) -> tuple[float, np.ndarray]:
    """AUROC of one curve, and each example's share of correctly ranked opposites minus the AUROC, float64 `[N]`."""
    from scipy.stats import rankdata

    num_positives = int(positives.sum())
    num_negatives = len(positives) - num_positives
    if not num_positives or not num_negatives:
        return np.nan, np.full(len(scores), np.nan)
    together = rankdata(scores)
    shares = np.empty(len(scores))
    # A midrank among all minus the midrank among one's own: the opposite examples below, ties counted half.
    shares[positives] = (together[positives] - rankdata(scores[positives])) / num_negatives
    shares[~positives] = 1 - (together[~positives] - rankdata(scores[~positives])) / num_positives
    area = float(shares[positives].mean())
    return area, shares - area


def _scaled_sums(deviations: np.ndarray, positives: np.ndarray, index: np.ndarray, num_groups: int) -> np.ndarray:
    """Contributions to the AUROC summed over groups, float64 `[G]`; their squares sum to its variance.

    Positives and negatives have the factors sqrt(I / (I - 1)) / M each, for M examples in I groups.
    """
    total = np.zeros(num_groups)
    for side in (positives, ~positives):
        num_sides = len(np.unique(index[side]))
        if num_sides < 2:
            return np.full(num_groups, np.nan)
        factor = np.sqrt(num_sides / (num_sides - 1)) / side.sum()
        total += factor * np.bincount(index[side], deviations[side], num_groups)
    return total


def auroc_covariance(
    scores: np.ndarray, positives: np.ndarray, groups: Sequence | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs of R curves on the same examples, float64 `[R]`, and their covariance `[R, R]`.

    With one set of positives and no groups this is DeLong's covariance up to rounding. Curves may have
    different positives (the classes of a one-vs-rest problem): an example is then a positive of one curve and a
    negative of another, and its two contributions are multiplied all the same. With groups the product of a group's
    positive and negative sums has the geometric mean of the two sides' factors, where Obuchowski has I / (I - 1) over
    all I groups; so the matrix stays positive semi-definite.

    Args:
        scores: `[R, N]`, finite; higher means positive. Any scale: only the order counts.
        positives: bool `[N]`, or `[R, N]`.
        groups: `[N]`, or None where examples are independent.

    Raises:
        UserError: scores that are not finite, or shapes that do not fit.
    """
    scores = np.asarray(scores, np.float64)
    positives = np.asarray(positives)
    if scores.ndim != 2 or positives.shape not in (scores.shape, scores.shape[1:]):
        raise UserError(
            f"DeLong needs scores [R, N] and positives [N] or [R, N], not {scores.shape} and {positives.shape}."
        )
    if not np.isfinite(scores).all() or not np.isin(positives, (0, 1)).all():
        raise UserError("DeLong needs finite scores and labels of 0 and 1; leave unlabelled and failed examples out.")
    positives = np.broadcast_to(positives.astype(bool), scores.shape)
    index, num_groups = resampling.group_index(groups, scores.shape[1])
    areas, sums = np.empty(len(scores)), np.empty((len(scores), num_groups))
    for row, (values, sides) in enumerate(zip(scores, positives, strict=True)):
        areas[row], deviations = _contributions(values, sides)
        sums[row] = _scaled_sums(deviations, sides, index, num_groups)
    return areas, sums @ sums.T


def one_vs_rest(
    scores: np.ndarray, labels: np.ndarray, multi_label: bool, groups: Sequence | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Macro AUROCs of M models, float64 `[M]`, and their covariance `[M, M]`.

    The mean of the one-vs-rest AUROCs of the classes that have positives and negatives, as `metrics.evaluate`; NaN
    without any. The covariance between classes is taken into account.

    Args:
        scores: `[M, N, K]`, finite. labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two. groups: `[N]`, or None.

    Raises:
        UserError: as `auroc_covariance` and `metrics.check_labels`.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 3:
        raise UserError(f"scores of several models must have the shape [M, N, K], not {scores.shape}.")
    num_models, num_examples, num_classes = scores.shape
    true = metrics.check_labels(labels, num_classes, multi_label, num_examples)
    defined = np.flatnonzero(true.any(axis=0) & ~true.all(axis=0))
    if not len(defined):
        return np.full(num_models, np.nan), np.full((num_models, num_models), np.nan)
    curves = scores[:, :, defined].transpose(0, 2, 1).reshape(-1, num_examples)
    areas, covariance = auroc_covariance(curves, np.tile(true[:, defined].T, (num_models, 1)), groups)
    blocks = covariance.reshape(num_models, len(defined), num_models, len(defined))
    return areas.reshape(num_models, -1).mean(axis=1), blocks.mean(axis=(1, 3))


def interval(area: float, variance: float, level: float = 0.95, logit: bool = False) -> tuple[float, float]:
    """Normal interval of an AUROC, cut off at 0 and 1 (DeLong's; the default of R's pROC).

    Args:
        area: the AUROC. variance: its variance. level: coverage.
        logit: build it for log(A / (1 - A)) and transform back (Pepe 2003, chapter 5): never leaves (0, 1), and
            covers better near 1, where good models are.

    Returns:
        (low, high); (NaN, NaN) where the variance is 0 or undefined.

    Raises:
        UserError: a level outside (0, 1).
    """
    from scipy.special import expit, ndtri
    from scipy.special import logit as log_odds

    resampling.check(1, level)
    # Rounding leaves about 1e-33 where every pair is right.
    if not variance > 1e-24:
        return float("nan"), float("nan")
    half = ndtri((1 + level) / 2) * np.sqrt(variance)
    if logit:
        if not 0 < area < 1:
            return float("nan"), float("nan")
        half /= area * (1 - area)
        return float(expit(log_odds(area) - half)), float(expit(log_odds(area) + half))
    return max(0.0, float(area - half)), min(1.0, float(area + half))


def difference(areas: np.ndarray, covariance: np.ndarray, first: int, second: int, level: float = 0.95) -> Difference:
    """DeLong's paired test: curve `first` minus curve `second` of `auroc_covariance` or `one_vs_rest`.

    Two curves that rank every pair alike have the difference 0 without a variance: z = 0 and p = 1. A difference
    without a variance otherwise (one is right everywhere the other is wrong, on too few examples) has NaN.
    """
    from scipy.special import ndtr, ndtri

    resampling.check(1, level)
    value = float(areas[first] - areas[second])
    variance = float(covariance[first, first] + covariance[second, second] - 2 * covariance[first, second])
    if not variance > 1e-24:
        same = abs(value) < 1e-12 and not np.isnan(variance)
        return Difference(value, *((value, value, 0.0, 1.0) if same else (np.nan,) * 4))
    error = np.sqrt(variance)
    half = ndtri((1 + level) / 2) * error
    z = value / error
    return Difference(value, float(value - half), float(value + half), float(z), float(2 * ndtr(-abs(z))))


def contrast(areas: np.ndarray, covariance: np.ndarray, rows: np.ndarray) -> tuple[float, int, float]:
    """Do any of several AUROCs differ? DeLong's test of contrasts: chi-square, its degrees of freedom, p.

    Args:
        areas: `[R]`. covariance: `[R, R]`.
        rows: contrasts `[L, R]` whose sums are 0, such as each model minus the first. Rows that the covariance makes
            redundant (two identical models) do not count among the degrees of freedom.
    """
    from scipy.stats import chi2

    rows = np.asarray(rows, np.float64)
    spread = rows @ covariance @ rows.T
    if np.isnan(spread).any():
        return float("nan"), 0, float("nan")
    variances, directions = np.linalg.eigh(spread)
    kept = variances > max(1e-24, 1e-10 * variances.max())
    degrees = int(kept.sum())
    along = directions[:, kept].T @ (rows @ areas)
    statistic = float(np.sum(along**2 / variances[kept]))
    return statistic, degrees, float(chi2.sf(statistic, degrees)) if degrees else 1.0
