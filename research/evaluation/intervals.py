"""Between which two values does a metric lie, given its replicates, or given how often something succeeded?

Bootstrap intervals from replicates (percentile, BCa), and intervals of proportions of independent trials. Replicates
in which a metric is undefined (NaN) are left out; where more than half are, or the estimate itself is undefined, the
interval is (NaN, NaN). Replicates that are all equal (a model without a mistake) give an interval of width 0: the
bootstrap cannot see the mistakes that did not happen. `clopper_pearson` can, for accuracy on independent examples.
"""

from statistics import NormalDist

import numpy as np

from input_pipeline.cli import UserError

Interval = tuple[float, float]
METHODS = ("percentile", "bca")


def percentile(replicates: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end `[...]` of replicates `[n, ...]` (Efron & Tibshirani 1993, chapter 13)."""
    replicates = np.asarray(replicates, np.float64)
    undefined = np.isnan(replicates)
    hopeless = undefined.mean(axis=0) > 0.5
    safe = np.where(hopeless, 0.0, replicates)
    low, high = np.nanquantile(safe, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(hopeless, np.nan, low), np.where(hopeless, np.nan, high)


def acceleration(jackknife: np.ndarray, strata: np.ndarray | None = None) -> float:
    """How fast the standard error changes with the value, from leave-one-group-out values `[G]`.

    Efron & Tibshirani 1993, equation 14.15; with strata that of several samples (Davison & Hinkley 1997,
    section 5.3.2). Groups without which the metric is undefined (NaN) are left out. 0 where all values are equal.

    Args:
        jackknife: the metric without group g, `[G]`.
        strata: of the groups, int `[G]`, or None.
    """
    strata = np.zeros(len(jackknife), np.int64) if strata is None else strata
    cubes = squares = 0.0
    for stratum in np.unique(strata):
        values = jackknife[(strata == stratum) & ~np.isnan(jackknife)]
        if len(values) > 1:
            # Influences divided by the size of the stratum.
            influence = (len(values) - 1) * (values.mean() - values) / len(values)
            cubes += np.sum(influence**3)
            squares += np.sum(influence**2)
    scale = np.abs(np.nan_to_num(jackknife)).max(initial=0.0)
    # Values that differ by rounding alone are equal.
    if squares <= (1e-13 * scale) ** 2 * len(jackknife):
        return 0.0
    return float(cubes / (6 * squares**1.5))


def bca(
    replicates: np.ndarray,
    estimate: np.ndarray | float,
    jackknife: np.ndarray,
    level: float,
    strata: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Bias-corrected and accelerated interval (Efron 1987; Efron & Tibshirani 1993, equations 14.9 to 14.15).

    Replicates equal to the estimate count half in the bias correction, as metrics of counts take few values. NaN where
    all replicates lie on one side of the estimate: the correction is then infinite.

    Args:
        replicates: `[n, ...]`. estimate: the metric of the whole set, `[...]`.
        jackknife: the metric without group g, `[G, ...]`.
        level: coverage. strata: of the groups, int `[G]`, or None.

    Returns:
        Lower and upper end, `[...]`.
    """
    shape = np.shape(estimate)
    columns = np.asarray(replicates, np.float64).reshape(len(replicates), -1)
    left_out = np.asarray(jackknife, np.float64).reshape(len(jackknife), -1)
    ends = [
        _bca(columns[:, i], value, left_out[:, i], level, strata)
        for i, value in enumerate(np.asarray(estimate, np.float64).reshape(-1))
    ]
    low, high = np.array(ends, np.float64).reshape(-1, 2).T
    return low.reshape(shape), high.reshape(shape)


def _bca(
    replicates: np.ndarray, estimate: float, jackknife: np.ndarray, level: float, strata: np.ndarray | None
) -> Interval:
    from scipy.special import ndtr, ndtri

    defined = replicates[~np.isnan(replicates)]
    if np.isnan(estimate) or 2 * len(defined) < len(replicates):
        return np.nan, np.nan
    if defined.min() == defined.max():
        return defined[0], defined[0]
    below = ((defined < estimate).mean() + (defined <= estimate).mean()) / 2
    if below in (0.0, 1.0):
        return np.nan, np.nan
    bias = ndtri(below)
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(defined, ndtr(bias + shifted / (1 - acceleration(jackknife, strata) * shifted)))
    return float(low), float(high)


def bootstrap(
    replicates: np.ndarray,
    estimate: np.ndarray | float | None,
    jackknife: np.ndarray | None,
    level: float,
    method: str,
    strata: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Interval by name, "percentile" or "bca": lower and upper end `[...]`.

    Arguments as `bca`; the percentile method needs neither the estimate nor the jackknife.

    Raises:
        UserError: an unknown method, a level outside (0, 1), or BCa without leave-one-group-out values.
    """
    if method not in METHODS or not 0 < level < 1:
        raise UserError(
            f"an interval needs a method among {', '.join(METHODS)} and a level between 0 and 1, "
            f"not {method!r} and {level}."
        )
    if method == "percentile":
        return percentile(replicates, level)
    if jackknife is None:
        raise UserError("a BCa interval needs the metric without each group; ask for the jackknife when resampling.")
    return bca(replicates, estimate, jackknife, level, strata)


def _check_proportion(successes: float, total: float, level: float) -> None:
    if not 0 <= successes <= total or not 0 < level < 1:
        raise UserError(f"a proportion needs 0 <= successes <= total, not {successes} of {total} at level {level}.")


def wilson(successes: float, total: float, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of **independent** trials (Wilson 1927); (NaN, NaN) without trials.

    Only for proportions: F1, MCC and AUROC are none, and neither is accuracy over related images. Use the bootstrap
    there.

    Raises:
        UserError: successes outside 0..total, or a level outside (0, 1).
    """
    _check_proportion(successes, total, level)
    if total == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clopper_pearson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion of **independent** trials (Clopper & Pearson 1934); (NaN, NaN) without trials.

    Covers at least as often as it says, for every true proportion, and so is wider than Wilson's. Same limits of use.

    Raises:
        UserError: successes outside 0..total, or a level outside (0, 1).
    """
    from scipy.stats import beta

    _check_proportion(successes, total, level)
    if total == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, total - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, total - successes) if successes < total else 1.0
    return float(low), float(high)


def coefficient_as_proportion(value: float, total: int, level: float = 0.95) -> Interval:
    """`m ± t sqrt(m (1 - m) / n)` with n - 1 degrees of freedom: how the multi-loss paper printed its MCC. Unsound.

    The formula is the normal approximation of a share of successes, and MCC is none: it is a correlation between -1
    and 1 whose variance depends on the whole confusion matrix (for negative values the formula has no answer at all).
    It also takes the images for independent, though a patient has several, and the approximation is poor near 1.
    It stands here to reproduce a published number, (.8839, .9297) for MCC .9068 and n = 624; report a bootstrap over
    patients instead.

    Args:
        value: the coefficient m, between 0 and 1. total: number of examples, at least 2. level: coverage.

    Raises:
        UserError: a value outside [0, 1], fewer than two examples, or a level outside (0, 1).
    """
    from scipy.stats import t

    if not 0 <= value <= 1 or total < 2 or not 0 < level < 1:
        raise UserError(
            f"the formula for a proportion needs a value from 0 to 1 and two examples, not {value} of {total} "
            f"at level {level}; use the bootstrap."
        )
    half = float(t.ppf((1 + level) / 2, total - 1) * np.sqrt(value * (1 - value) / total))
    return value - half, value + half
