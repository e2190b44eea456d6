"""Does the network need the genes that a ranking names? What it decides when they go.

The best genes of a ranking are set to their mean over the training samples, more and more of them, and the network is
asked again. A ranking that names what the network uses makes it fail sooner than random genes do; how soon genes
of a univariate test make it fail says whether the network uses more than those. The network never saw such samples, so
the curves compare rankings of one network, not networks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from research.evaluation import calibration, intervals, statistics
from research.explain import randomization
from research.genes.ranking import order_of, overlap_by_chance, random_orders, rank_biased_overlap

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RANDOM = "random genes"


@dataclasses.dataclass(frozen=True, eq=False)
class Deletion:
    """What is left when genes go.

    Attributes:
      counts: int `[P]`, genes that are deleted of each sample, rising from 0.
      correct: float64 `[P, N]`, whether the decision is right (a share, if over several random rankings).
      probability: float64 `[P, N]`, of the sample's own type.
    """

    counts: np.ndarray
    correct: np.ndarray
    probability: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """float64 `[P]`."""
        return self.correct.mean(axis=1)

    def areas(self, of: str = "correct") -> np.ndarray:
        """The mean height of a sample's curve, float64 `[N]`: small if the genes were needed.

        Over log2(1 + number of genes), trapezoidal, so that every doubling counts the same: rankings differ in their
        first genes, and over the plain number the last half of the genes would be half of the figure.
        """
        values = getattr(self, of)
        widths = np.diff(np.log2(1 + self.counts))
        return (widths[:, None] * (values[1:] + values[:-1]) / 2).sum(axis=0) / widths.sum()


def delete(
    predict: Callable[[np.ndarray], np.ndarray],
    vectors: np.ndarray,
    labels: np.ndarray,
    orders: np.ndarray,
    fill: np.ndarray,
    counts: Sequence[int] = COUNTS,
) -> Deletion:
    """Deletes the first genes of a ranking.

    Args:
      predict: raw vectors `[N, 1, G, 1]` to logits `[N, K]`; it must not keep its argument, which is changed later.
      vectors: `[N, 1, G, 1]`. labels: int `[N]`.
      orders: int `[G]`, or `[K, G]`: every sample loses genes of its own type's ranking.
      fill: `[G]`, what deleted genes are set to, usually the training mean.
      counts: numbers of genes to delete; those above G are left out, 0 is added.
    """
    labels = np.asarray(labels, int)
    orders = np.asarray(orders)
    num_genes = vectors.shape[2]
    if orders.shape[-1] != num_genes or len(fill) != num_genes or len(labels) != len(vectors):
        raise ValueError(
            f"rankings {orders.shape}, {len(fill)} means and {len(labels)} labels do not fit {vectors.shape}"
        )
    points = np.array(sorted({0, *(int(count) for count in counts if 0 <= count <= num_genes)}))
    if len(points) < 2:
        raise ValueError(f"a curve needs a number of genes between 1 and {num_genes}, not {list(counts)}")
    per_type = orders if orders.ndim == 2 else orders[None]
    kind = labels if orders.ndim == 2 else np.zeros(len(labels), int)
    changed, before = np.array(vectors, np.float32), 0
    samples = np.arange(len(labels))
    correct, probability = [], []
    for count in points:
        gone = per_type[kind, before:count]
        changed[samples[:, None], 0, gone, 0] = np.asarray(fill, np.float32)[gone]
        before = count
        logits = np.asarray(predict(changed))
        correct.append(logits.argmax(axis=1) == labels)
        probability.append(calibration.probabilities(logits, False)[samples, labels])
    return Deletion(points, np.array(correct, np.float64), np.array(probability, np.float64))


def delete_random(
    predict: Callable[[np.ndarray], np.ndarray],
    vectors: np.ndarray,
    labels: np.ndarray,
    fill: np.ndarray,
    counts: Sequence[int] = COUNTS,
    draws: int = 5,
    seed: int = 0,
) -> Deletion:
    """The mean of `draws` deletions by random rankings; arguments as `delete`."""
    shape = int(np.max(labels)) + 1, len(fill)
    runs = [delete(predict, vectors, labels, random_orders(*shape, seed + i), fill, counts) for i in range(draws)]
    correct, probability = (
        np.mean([getattr(run, name) for run in runs], axis=0) for name in ("correct", "probability")
    )
    return Deletion(runs[0].counts, correct, probability)


def summary(
    deletions: Mapping[str, Deletion],
    patients: Sequence[str] | np.ndarray,
    reference: str = RANDOM,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict]:
    """A row for each ranking: the areas under its curves, and their difference to those of the reference.

    Args:
      deletions: name of a ranking -> its deletion; all of the same samples.
      patients: `[N]`, drawn whole.
      reference: the ranking that others are compared with, usually random genes.

    Returns:
      Dicts with ranking, accuracy_area, probability_area, each also with _low and _high, and difference (of
      accuracy_area) with _low and _high; None where there is nothing to say. The draws are the same for all rows, so
      differences are paired.
    """
    found = []
    for name, own in deletions.items():
        figures = {"accuracy_area": own.areas(), "probability_area": own.areas("probability")}
        if reference in deletions and name != reference:
            figures["difference"] = own.areas() - deletions[reference].areas()
        columns = np.stack([*figures.values(), np.ones(own.correct.shape[1])], axis=1)
        totals = statistics.resampled_totals(columns, patients, resamples, seed)
        row = {"ranking": name}
        for index, figure in enumerate(("accuracy_area", "probability_area", "difference")):
            values = figures.get(figure)
            row[figure] = None if values is None else float(values.mean())
            low, high = None, None
            if values is not None and totals is not None:
                low, high = map(float, intervals.percentile(totals[:, index] / totals[:, -1], level))
            row |= {f"{figure}_low": low, f"{figure}_high": high}
        found.append(row)
    return found


def band(
    deletion: Deletion, patients: Sequence[str] | np.ndarray, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the accuracy at each number of genes, `[P]` and `[P]`, over patients; NaN with one patient."""
    columns = np.concatenate([deletion.correct, np.ones((1, deletion.correct.shape[1]))]).T
    totals = statistics.resampled_totals(columns, patients, resamples, seed)
    if totals is None:
        return np.full(len(deletion.counts), np.nan), np.full(len(deletion.counts), np.nan)
    return intervals.percentile(totals[:, :-1] / totals[:, -1:], level)


def alike(trained: np.ndarray, other: np.ndarray, p: float = 0.95) -> dict[str, float]:
    """How alike the genes' scores of two networks are, the means over the types that both have.

    With a network of random weights as the other this is the check of Adebayo et al. 2018 (see
    `research.explain.randomization`, whose `cascade` gives such networks): scores that stay alike are about the data,
    not about what was learned. The same samples have to be behind both, those that the trained network gets right.

    Args:
      trained, other: `[K, G]`, as `ranking.type_scores`.
      p: of the rank-biased overlap.

    Returns:
      rank_correlation (Spearman's, of the scores), rank_correlation_absolute (of their sizes), overlap (rank-biased,
      of the rankings), overlap_by_chance (of random rankings); NaN where no type has scores.
    """
    trained, other = np.asarray(trained), np.asarray(other)
    pairs = [(a, b) for a, b in zip(trained, other, strict=True) if np.isfinite([a, b]).all()]
    figures = {
        "rank_correlation": [randomization.rank_correlation(a, b) for a, b in pairs],
        "rank_correlation_absolute": [randomization.rank_correlation(np.abs(a), np.abs(b)) for a, b in pairs],
        "overlap": [rank_biased_overlap(order_of(a), order_of(b), p) for a, b in pairs],
    }
    known = {name: [value for value in values if np.isfinite(value)] for name, values in figures.items()}
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in known.items()}
    return means | {"overlap_by_chance": overlap_by_chance(trained.shape[1], p)}
