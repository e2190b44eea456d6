"""Which genes matter most for each tumour type, and how alike are two such rankings?

A sample's attributions are for its own type, and a type's score of a gene is their mean over the samples of the type
that the network classifies correctly: a wrong decision has no right reasons. Positive scores speak for the type, also
those of a gene that is silent there and loud elsewhere. The mean of absolute values ("mean_absolute") also finds genes
that speak for the type in some samples and against it in others, and noise.
Several seeds are pooled by concatenating their samples with the same patients' names.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import intervals, resampling, statistics

REDUCTIONS = ("mean", "mean_absolute")


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The genes of a type.

    Attributes:
      name: of the type.
      order: int `[G]`, genes from the most to the least important.
      scores: float64 `[G]` in the order of the genes, in logits; NaN without a sample.
      low, high: `[G]`, percentile bootstrap over patients; NaN for genes below the first `top`, and with one patient.
      samples, patients: numbers behind the scores; a sample counts once for each of the pooled seeds.
    """

    name: str
    order: np.ndarray
    scores: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: int
    patients: int


def order_of(scores: np.ndarray) -> np.ndarray:
    """Indices int `[..., G]` by falling score; of equal ones the first gene comes first, and NaN last."""
    return np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=-1, kind="stable")


def type_scores(
    attributions: np.ndarray, labels: np.ndarray, used: np.ndarray, num_types: int, reduction: str = "mean"
) -> np.ndarray:
    """Each type's score of each gene, float64 `[K, G]`; NaN for a type without a sample.

    Args:
      attributions: `[N, G]`, each sample's for its own type.
      labels: int `[N]`. used: bool `[N]`, usually whether the decision is correct.
      reduction: one of `REDUCTIONS`.
    """
    labels, used = np.asarray(labels), np.asarray(used, bool)
    if not len(attributions) == len(labels) == len(used):
        raise ValueError(f"{len(attributions)} attributions, {len(labels)} labels and {len(used)} decisions do not fit")
    scores = np.full((num_types, attributions.shape[1]), np.nan)
    for kind in range(num_types):
        rows = attributions[used & (labels == kind)]
        if len(rows):
            scores[kind] = _reduced(rows, reduction).mean(axis=0, dtype=np.float64)
    return scores


def by_type(
    attributions: np.ndarray,
    labels: np.ndarray,
    used: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    names: Sequence[str],
    reduction: str = "mean",
    top: int = 200,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Ranking]:
    """A ranking of the genes for each of the K types `names`; arguments as `type_scores`.

    Args:
      patients: `[N]`, drawn whole in the bootstrap.
      top: genes of each type that get an interval.
      resamples, seed, level: of the bootstrap.
    """
    resampling.check(resamples, level)
    scores = type_scores(attributions, labels, used, len(names), reduction)
    orders, patients = order_of(scores), np.asarray(patients)
    found = []
    for kind, name in enumerate(names):
        rows = np.flatnonzero(np.asarray(used, bool) & (np.asarray(labels) == kind))
        bounds = np.full((2, scores.shape[1]), np.nan)
        shown = orders[kind, :top]
        columns = _reduced(attributions[rows[:, None], shown[None, :]].astype(np.float64), reduction)
        totals = statistics.resampled_totals(
            np.concatenate([columns, np.ones((len(rows), 1))], axis=1), patients[rows], resamples, seed
        )
        if totals is not None:
            bounds[:, shown] = intervals.percentile(totals[:, :-1] / totals[:, -1:], level)
        groups = len(np.unique(patients[rows]))
        found.append(Ranking(name, orders[kind], scores[kind], *bounds, len(rows), groups))
    return found


def _reduced(values: np.ndarray, reduction: str) -> np.ndarray:
    if reduction not in REDUCTIONS:
        raise UserError(f"the reduction {reduction!r} is unknown; choose of {', '.join(REDUCTIONS)}.")
    return np.abs(values) if reduction == "mean_absolute" else values


def f_scores(vectors: np.ndarray, labels: np.ndarray, num_types: int, block: int = 1024) -> np.ndarray:
    """The F statistic of each gene for each type against all others, float64 `[K, G]`.

    One-way analysis of variance with two groups, which is the square of Student's t with equal variances: the
    univariate ranking that a network has to beat. Infinite for a gene that is constant inside both groups and differs
    between them; NaN for a constant gene, and for a type without samples or without others.

    Args:
      vectors: `[N, G]` or `[N, 1, G, 1]`. labels: int `[N]`.
      block: genes at once, in float64.
    """
    table = np.asarray(vectors).reshape(len(vectors), -1)
    count, num_genes = table.shape
    member = (np.asarray(labels)[:, None] == np.arange(num_types)).astype(np.float64)
    sizes = member.sum(axis=0)[:, None]
    scores = np.full((num_types, num_genes), np.nan)
    for start in range(0, num_genes, block):
        own = table[:, start : start + block].astype(np.float64)
        own = own - own.mean(axis=0)  # squares of large values would cancel
        total = (own**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = member.T @ own / sizes
            # The means of both groups add up to zero when weighted by their sizes.
            between = mean**2 * sizes * count / (count - sizes)
            # What is left inside the groups is known to rounding only.
            within = np.where(total - between > 1e-12 * total, total - between, 0.0)
            found = between / (within / (count - 2))
        scores[:, start : start + block] = np.where((total > 0) & (sizes > 0) & (sizes < count), found, np.nan)
    return scores


def random_orders(num_types: int, num_genes: int, seed: int) -> np.ndarray:
    """Independent random rankings, int `[K, G]`."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(num_genes), (num_types, 1)), axis=1)


def precision_at(order: np.ndarray, planted: Sequence[int] | np.ndarray, k: int) -> float:
    """The share of the first `k` genes of `order` `[G]` that are `planted`; at most len(planted) / k."""
    if not 1 <= k <= len(order):
        raise ValueError(f"precision at {k} needs 1 to {len(order)} genes")
    return float(np.isin(order[:k], np.asarray(planted, int)).mean())


def rank_biased_overlap(first: Sequence | np.ndarray, second: Sequence | np.ndarray, p: float = 0.95) -> float:
    """RBO_ext, the extrapolated rank-biased overlap of two rankings, in 0..1 (Webber et al. 2010, equation 32).

    The expected share of common items down to a depth that a reader reaches who goes on at each rank with probability
    `p`; beyond the end of the lists their agreement is taken to go on as it was. With p = 0.95 the first 20 ranks have
    about 85 % of the weight, see `weight_of_top`.

    Args:
      first, second: the items, each once, from the most important on; the lists may differ in items and lengths.

    Raises:
      ValueError: an empty list, an item twice in one list, or p outside (0, 1).
    """
    short, long = sorted((np.asarray(first), np.asarray(second)), key=len)
    if not len(short) or any(len(np.unique(own)) < len(own) for own in (short, long)) or not 0 < p < 1:
        raise ValueError("rank-biased overlap needs two lists without repetitions and p between 0 and 1")
    _, here, there = np.intersect1d(short, long, assume_unique=True, return_indices=True)
    seen = np.bincount(np.maximum(here, there) + 1, minlength=len(long) + 1)
    overlap = np.cumsum(seen)[1:].astype(np.float64)
    s, l, depth = len(short), len(long), np.arange(1, len(long) + 1)
    weight = p ** depth.astype(np.float64)
    common_short, common_long = overlap[s - 1], overlap[l - 1]
    beyond = depth > s
    known = (overlap / depth * weight).sum()
    guessed = (common_short * (depth - s) / (s * depth) * weight)[beyond].sum()
    tail = (common_long - common_short) / l + common_short / s
    return float((1 - p) / p * (known + guessed) + tail * p**l)


def weight_of_top(p: float, depth: int) -> float:
    """The share of the weight of rank-biased overlap on the first `depth` ranks (Webber et al. 2010, equation 21)."""
    rest = math.log(1 / (1 - p)) - sum(p**i / i for i in range(1, depth))
    return 1 - p ** (depth - 1) + (1 - p) / p * depth * rest


def overlap_by_chance(num_genes: int, p: float = 0.95) -> float:
    """The mean rank-biased overlap of random rankings of the same genes: of the first d, d / G are common."""
    depth = np.arange(1, num_genes + 1, dtype=np.float64)
    return float((1 - p) / p * np.sum(depth / num_genes * p**depth) + p**num_genes)


@dataclasses.dataclass(frozen=True, eq=False)
class Stability:
    """How alike the rankings of several seeds are.

    Attributes:
      overlaps: rank-biased overlap of each pair, float64 `[S, S]`.
      mean_overlap: over the pairs of different seeds; NaN with one seed.
      jaccard: depth k -> mean Jaccard index of the first k genes over the same pairs.
      common: int `[G]`, among the first `common_of` of how many seeds a gene is.
    """

    overlaps: np.ndarray
    mean_overlap: float
    jaccard: dict[int, float]
    common: np.ndarray
    common_of: int


def stability(
    orders: Sequence[np.ndarray], p: float = 0.95, depths: Sequence[int] = (10, 20, 50), common_of: int = 20
) -> Stability:
    """Compares rankings `[S, G]` of the same genes, such as those of one type by networks of S seeds."""
    orders = np.asarray(orders)
    count, num_genes = orders.shape
    overlaps = np.ones((count, count))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    for i, j in pairs:
        overlaps[i, j] = overlaps[j, i] = rank_biased_overlap(orders[i], orders[j], p)
    alike = {
        depth: _mean([jaccard(orders[i, :depth], orders[j, :depth]) for i, j in pairs])
        for depth in depths
        if depth <= num_genes
    }
    common = np.bincount(orders[:, :common_of].reshape(-1), minlength=num_genes)
    return Stability(overlaps, _mean([overlaps[pair] for pair in pairs]), alike, common, common_of)


def jaccard(first: Sequence | np.ndarray, second: Sequence | np.ndarray) -> float:
    """Common items by all items of two sets."""
    return len(np.intersect1d(first, second)) / len(np.union1d(first, second))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
