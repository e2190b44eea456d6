"""How do tables of any size lie on disk between parsing and the final matrix, and how far has the reading come?

A text table can only be read from top to bottom, and how many rows it has is known at its end. So its rows go to a
plain float32 file in the order of the text (rows are genes or samples, as there), from which blocks of genes are taken
afterwards, in whatever order. Memory stays at a few blocks.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from input_pipeline.expression.parsing import Block, Table

_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Stage:
    """A parsed table on disk.

    Attributes:
        table: what it was parsed from.
        path: little-endian float32, R × C, row by row; NaN is a missing value.
        rows: R names.
        lines: R lines (or rows of a Parquet file) in the file.
        columns: C indices into `table.columns`, ascending.
    """

    table: Table
    path: pathlib.Path
    rows: tuple[str, ...]
    lines: tuple[int, ...]
    columns: np.ndarray

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes as they stand in the table."""
        return self.rows if self.table.genes_in_rows else tuple(self.table.columns[i] for i in self.columns)

    @property
    def num_samples(self) -> int:
        return len(self.columns) if self.table.genes_in_rows else len(self.rows)

    def gene_place(self, index: int) -> str:
        """Where gene `index` stands in the file."""
        if self.table.genes_in_rows:
            return f"{self.table.name}, line {self.lines[index]}"
        return self.table.header_place(int(self.columns[index]))

    def values(self) -> np.ndarray:
        """The values `[R, C]`, mapped; keep it no longer than a block is needed."""
        return np.memmap(self.path, "<f4", "r", shape=(len(self.rows), len(self.columns)))

    def read_genes(self, genes: np.ndarray) -> np.ndarray:
        """Values of the genes at `genes` (indices): float32 `[num_samples, len(genes)]`, a copy."""
        runs = len(genes) and np.array_equal(genes, np.arange(genes[0], genes[0] + len(genes)))
        index = slice(int(genes[0]), int(genes[0]) + len(genes)) if runs else genes
        if self.table.genes_in_rows:
            return np.array(self.values()[index].T, order="C")
        return np.array(self.values()[:, index])


def write(
    table: Table,
    blocks: Iterable[tuple[Block, int]],
    size: int,
    path: pathlib.Path,
    columns: np.ndarray,
    wanted: Callable[[str, int], bool],
) -> Stage:
    """Writes the wanted rows of a table to `path`, with progress on stderr.

    Args:
        table: the table.
        blocks: its rows, without the columns that are left out, and with each block the bytes read so far.
        size: bytes to read in all.
        path: of the new file.
        columns: ascending indices of the columns that are kept.
        wanted: says of the name and the line of a row whether it is kept.

    Raises:
        UserError: there is no row.
    """
    rows: list[str] = []
    lines: list[int] = []
    found = 0

    def ticks() -> Iterator[None]:
        nonlocal found
        done = 0
        with path.open("wb") as file:
            for block, consumed in blocks:
                found += len(block.names)
                keep = [
                    i for i, (name, line) in enumerate(zip(block.names, block.lines, strict=True)) if wanted(name, line)
                ]
                rows.extend(block.names[i] for i in keep)
                lines.extend(block.lines[i] for i in keep)
                values = block.values if len(keep) == len(block.names) else block.values[keep]
                file.write(np.ascontiguousarray(values, "<f4").data)
                while done < consumed // _MEBIBYTE:
                    done += 1
                    yield

    for _ in cli.progress(ticks(), max(1, size // _MEBIBYTE), f"reading {table.name} (MiB)"):
        pass
    if not found:
        raise UserError(f"{table.name} has a header but no rows: restore it from the download.")
    return Stage(table, path, tuple(rows), tuple(lines), columns)


def row_blocks(stages: Sequence[Stage], max_bytes: int = 64 * _MEBIBYTE) -> Iterator[np.ndarray]:
    """All values of the tables in blocks of whole rows: float32 `[R, C]`."""
    for stage in stages:
        step = max(1, max_bytes // max(1, 4 * len(stage.columns)))
        for start in range(0, len(stage.rows), step):
            yield np.array(stage.values()[start : start + step])
