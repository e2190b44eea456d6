"""How is a layout built from its name? Once, on the host, from the training examples alone."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.layouts import chromosome, correlation, deepinsight
from research.layouts.layout import Layout, smallest_side
from research.layouts.scaling import require_values


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What a builder may use.

    Attributes:
      genes: G names in the order of the expression vector.
      values: float32 `[N, G]`, the training examples, on a log2 scale.
      side: pixels of a side of the picture, at least 1.
      seed: of what is drawn.
      positions: file of gene positions, or "".
    """

    genes: tuple[str, ...]
    values: np.ndarray
    side: int
    seed: int
    positions: str


# Gives the pixel of each gene, int `[G]`, and a note.
Builder = Callable[[Request], tuple[np.ndarray, str]]


def row_by_row(order: np.ndarray) -> np.ndarray:
    """Pixels int32 `[G]` of genes that fill the rows of the picture in this order, which names each of G genes once."""
    pixel = np.empty(len(order), np.int32)
    pixel[order] = np.arange(len(order), dtype=np.int32)
    return pixel


def _alphabetical(request: Request) -> tuple[np.ndarray, str]:
    """The study's: sorted by name (by code point, as TCGA's tables are), row by row, zeros behind the last gene."""
    return row_by_row(np.array(sorted(range(len(request.genes)), key=request.genes.__getitem__))), ""


def _random(request: Request) -> tuple[np.ndarray, str]:
    """Genes in a random order: what is left of the accuracy does not come from the neighbourhood of genes."""
    return row_by_row(np.random.default_rng(request.seed).permutation(len(request.genes))), f"seed {request.seed}"


def _chromosome(request: Request) -> tuple[np.ndarray, str]:
    """Along the genome, row by row; see chromosome.py."""
    order, missing = chromosome.order(request.genes, request.positions)
    note = f"{missing} genes have no position in the table and come last" if missing else ""
    return row_by_row(order), note


def _correlation(request: Request) -> tuple[np.ndarray, str]:
    """Correlated genes beside each other; see correlation.py."""
    order = correlation.order(request.values)
    pixel = np.empty(len(order), np.int32)
    pixel[order] = correlation.hilbert(request.side)[: len(order)]
    return pixel, ""


def _deepinsight(method: str) -> Builder:
    def build(request: Request) -> tuple[np.ndarray, str]:
        # A gene without variation is like no other gene: its point would lie far away and squeeze all others.
        varying = request.values.max(axis=0) > request.values.min(axis=0)
        points = deepinsight.embed(request.values[:, varying], method, request.seed)
        pixel = np.full(len(varying), -1, np.int32)
        pixel[varying] = deepinsight.rasterise(points, request.side)
        left = int((~varying).sum())
        note = f"; {left} genes without variation in training are left out" if left else ""
        return pixel, f"{method}, seed {request.seed}{note}"

    return build


# One line per layout. Those of `SHARING` may put several genes on a pixel, so that any side will do.
BUILDERS: dict[str, Builder] = {
    "alphabetical": _alphabetical,
    "chromosome": _chromosome,
    "correlation": _correlation,
    "deepinsight": _deepinsight("tsne"),
    "deepinsight_pca": _deepinsight("pca"),
    "deepinsight_umap": _deepinsight("umap"),
    "random": _random,
}
SHARING = ("deepinsight", "deepinsight_pca", "deepinsight_umap")


def build(
    name: str,
    genes: Sequence[str],
    train_values: np.ndarray,
    side: int = 0,
    seed: int = 0,
    positions: str | os.PathLike = "",
) -> Layout:
    """Builds a layout.

    Args:
      name: one of `BUILDERS`.
      genes: G unique names in the order of the expression vector.
      train_values: float32 `[N, G]`, the training examples on a log2 scale, finite; may be a memory map. Only
        `correlation` and DeepInsight's read them.
      side: pixels of a side; 0 = the smallest square that holds all genes.
      seed: of `random`, and of what DeepInsight's methods draw.
      positions: CSV or TSV file of gene positions for `chromosome`, see chromosome.py.

    Raises:
      UserError: an unknown layout, genes that occur twice, a side that is too small, a missing or wrong table of
        positions, or values that allow no such layout.
    """
    genes = tuple(genes)
    if name not in BUILDERS:
        raise UserError(f"the layout {name!r} is unknown; choose of {', '.join(BUILDERS)}.")
    if not genes or len(set(genes)) != len(genes):
        raise UserError(
            f"{len(genes)} genes with {len(set(genes))} names cannot be laid out; prepare the data set again."
        )
    if train_values.shape[1:] != (len(genes),):
        raise UserError(
            f"values of shape {train_values.shape} do not fit {len(genes)} genes; prepare the data set again."
        )
    if name in ("correlation", *SHARING):
        require_values(train_values)
    least = smallest_side(len(genes))
    if side < 0 or (0 < side < least and name not in SHARING):
        raise UserError(
            f"{len(genes)} genes do not fit on {side} x {side} pixels; choose a side of at least {least}, or 0."
        )
    side = side or least
    pixel, notes = BUILDERS[name](Request(genes, train_values, side, seed, str(positions)))
    return Layout(name, genes, side, pixel, notes)
