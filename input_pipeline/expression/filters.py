"""Which genes are kept, by a list or by how they are expressed, without looking at any label?

Means and variances are over all samples that are kept, those of later test sets included: such a filter knows no label,
but a strict protocol should rather choose genes within `train`. The notes of the ingest report say so.
"""

import dataclasses

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.expression.options import Settings

CAUTION = "means and variances are over all samples, also those that are later set aside for testing; no label was used"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of each of G genes over N samples on the log2 scale, missing values filled in.

    Attributes:
        means: float64 `[G]`.
        variances: float64 `[G]`, with N - 1 in the denominator (0 for one sample).
        missing: int `[G]`, how many values were missing.
        known_means: float64 `[G]`, over the values that were there; NaN where none was.
    """

    means: np.ndarray
    variances: np.ndarray
    missing: np.ndarray
    known_means: np.ndarray


def choose(
    statistics: Statistics,
    num_samples: int,
    listed: np.ndarray | None,
    settings: Settings,
) -> tuple[np.ndarray, list[dict]]:
    """The genes to keep, as ascending indices, and what each filter did, for the ingest report.

    Args:
        statistics: of all genes.
        num_samples: N.
        listed: bool `[G]`, which genes a list names; None without a list.
        settings: `missing` ("drop" leaves out genes with a missing value; those without any value always are left
            out), `min_mean`, `min_variance` and `top_genes` (of equally variable ones the earlier), in this order.

    Raises:
        UserError: no gene is left.
    """
    keep = np.ones(len(statistics.means), bool)
    steps: list[dict] = []

    def apply(name: str, passes: np.ndarray, measured: bool = False) -> None:
        before = int(keep.sum())
        np.logical_and(keep, passes, out=keep)
        after = int(keep.sum())
        steps.append({"filter": name, "before": before, "after": after} | ({"caution": CAUTION} if measured else {}))
        if not after:
            raise UserError(f"no gene is left after {name}, of {before} before it: choose a milder filter.")

    if listed is not None:
        apply("the list of genes", listed)
    if (statistics.missing == num_samples).any():
        apply("removal of genes without any value", statistics.missing < num_samples)
    if settings.missing == "drop":
        apply("missing=drop", statistics.missing == 0)
    if settings.min_mean is not None:
        apply(f"min_mean={settings.min_mean:g}", statistics.means >= settings.min_mean, True)
    if settings.min_variance is not None:
        apply(f"min_variance={settings.min_variance:g}", statistics.variances >= settings.min_variance, True)
    if settings.top_genes is not None:
        order = np.argsort(-np.where(keep, statistics.variances, -np.inf), kind="stable")
        best = np.zeros(len(keep), bool)
        best[order[: settings.top_genes]] = True
        apply(f"top_genes={settings.top_genes}", best, True)
    return np.flatnonzero(keep), steps
