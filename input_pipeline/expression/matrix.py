"""How do staged tables become one matrix of samples × genes on the log2 scale, in blocks that fit into memory?"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline import cli
from input_pipeline.expression import scale
from input_pipeline.expression.filters import Statistics
from input_pipeline.expression.staging import Stage

BLOCK_BYTES = 48 * 2**20
"""A block of genes takes so much; a handful of copies of it is alive at a time."""

MAPPED_BYTES = 256 * 2**20
"""A matrix of at least this size is a memory map."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """N samples × G genes, still spread over the staged tables.

    Attributes:
        stages: the tables; their samples follow each other.
        genes: for each table the index of each of the G genes in it.
        members: for each of the N samples the positions (over all tables) of the measurements that it is the mean of.
        scale: on which the staged values are.
    """

    stages: Sequence[Stage]
    genes: Sequence[np.ndarray]
    members: Sequence[Sequence[int]]
    scale: str

    def block(self, chosen: np.ndarray) -> np.ndarray:
        """Float32 `[N, len(chosen)]` on the log2 scale, NaN where a value is missing; `chosen` are indices into G."""
        parts = [stage.read_genes(index[chosen]) for stage, index in zip(self.stages, self.genes, strict=True)]
        values = scale.to_log2(parts[0] if len(parts) == 1 else np.concatenate(parts), self.scale)
        merged = values[[positions[0] for positions in self.members]]
        for row, positions in enumerate(self.members):
            if len(positions) > 1:
                merged[row] = _mean_of_known(values[list(positions)])
        return merged

    def blocks(self, chosen: np.ndarray, label: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The genes `chosen` block by block: their places in `chosen` and `block` of them, with progress on stderr."""
        rows = sum(stage.num_samples for stage in self.stages)
        step = max(1, BLOCK_BYTES // (4 * rows))
        places = [slice(start, min(start + step, len(chosen))) for start in range(0, len(chosen), step)]
        for place in cli.progress(places, len(places), label):
            yield place, self.block(chosen[place])


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 of the values that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    counts = known.sum(axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan).astype(np.float32)


def _fill(block: np.ndarray, missing: str, zero: float) -> tuple[np.ndarray, np.ndarray]:
    """Fills in missing values in place; returns how many there were of each gene, and the means of the others."""
    absent = np.isnan(block)
    counts = absent.sum(axis=0)
    means = np.full(block.shape[1], np.nan)
    for gene in np.flatnonzero(counts):
        if counts[gene] < len(block):
            means[gene] = block[~absent[:, gene], gene].mean(dtype=np.float64)
        usable = missing == "mean" and counts[gene] < len(block)
        block[absent[:, gene], gene] = means[gene] if usable else zero
    whole = counts == 0
    means[whole] = block[:, whole].mean(axis=0, dtype=np.float64)
    return counts, means


def statistics(matrix: Matrix, missing: str) -> Statistics:
    """Mean, variance and number of missing values of each gene.

    Args:
        matrix: G genes.
        missing: "mean" fills missing values with the gene's mean, "zero" and "drop" with no expression.
    """
    count = len(matrix.genes[0])
    means, variances, known_means = np.zeros(count), np.zeros(count), np.zeros(count)
    absent = np.zeros(count, np.int64)
    for place, block in matrix.blocks(np.arange(count), "genes measured (blocks)"):
        absent[place], known_means[place] = _fill(block, missing, scale.zero(matrix.scale))
        means[place] = block.mean(axis=0, dtype=np.float64)
        if len(block) > 1:
            variances[place] = block.var(axis=0, dtype=np.float64, ddof=1)
    return Statistics(means, variances, absent, known_means)


def fill_in(matrix: Matrix, chosen: np.ndarray, missing: str, scratch: pathlib.Path) -> np.ndarray:
    """The final values: float32 `[N, len(chosen)]`, finite; read-only, a memory map in `scratch` when large."""
    shape = (len(matrix.members), len(chosen))
    size = 4 * shape[0] * shape[1]
    if size < MAPPED_BYTES:
        values = np.empty(shape, np.float32)
    else:
        path = scratch / "expression.f32"
        with path.open("wb") as file:
            # A full disk is an error here; later, behind a memory map, it would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        values = np.memmap(path, np.float32, "r+", shape=shape)
    for place, block in matrix.blocks(chosen, "genes written (blocks)"):
        _fill(block, missing, scale.zero(matrix.scale))
        values[:, place] = block
    if isinstance(values, np.memmap):
        values.flush()
        return np.memmap(path, np.float32, "r", shape=shape)
    values.flags.writeable = False
    return values


def is_standardised(stage: Stage) -> bool:
    """Whether the genes of a table are centred and scaled, as `scale.is_standardised` has it."""
    count = len(stage.genes)
    step = max(1, BLOCK_BYTES // (8 * max(1, stage.num_samples)))
    means, deviations = np.full(count, np.nan), np.full(count, np.nan)
    for start in range(0, count, step):
        chosen = np.arange(start, min(start + step, count))
        block = stage.read_genes(chosen).astype(np.float64)
        known = ~np.isnan(block)
        counts = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, block, 0).sum(axis=0) / counts
        squares = (np.where(known, block - mean, 0) ** 2).sum(axis=0)
        enough = known.sum(axis=0) > 1
        means[chosen[enough]] = mean[enough]
        deviations[chosen[enough]] = np.sqrt(squares / counts)[enough]
    return scale.is_standardised(means, deviations)
