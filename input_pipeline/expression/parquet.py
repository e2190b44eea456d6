"""How is a Parquet table of expression read, where the package pyarrow is installed?

One column holds the names (the index that pandas writes, or the only column of texts), all others hold numbers.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.expression.labels import Labels
from input_pipeline.expression.parsing import Block, Table
from input_pipeline.expression.tables import orientation
from input_pipeline.raw import RawSource, Unreadable, printable

COPY_NAME = "table.parquet"
"""Of the copy in the scratch folder."""

_COPY_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class ParquetTable(Table):
    """A Parquet table; `path` is its copy in the scratch folder, `names` the column of names."""

    path: pathlib.Path = pathlib.Path()
    names: str = ""

    def header_place(self, column: int) -> str:
        """Which column it is; Parquet has no lines."""
        return f"{self.name}, column {printable(self.columns[column], 60)}"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "reading Parquet needs the package pyarrow: run `pip install pyarrow`, or save the table as CSV."
        ) from error
    return pyarrow, pyarrow.parquet


def open_table(source: RawSource, name: str, found: Labels | None, scratch: pathlib.Path) -> ParquetTable:
    """Copies a Parquet file to `scratch`, because it is read from its end, and looks at its columns.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or its columns are not one of names and numbers.
    """
    pyarrow, parquet = _pyarrow()
    path = scratch / COPY_NAME
    try:
        with source.open(name) as stream, path.open("wb") as copy:
            while data := stream.read(_COPY_BYTES):
                copy.write(data)
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        texts = [field.name for field in schema if not _is_numeric(pyarrow, field.type)]
        if len(texts) != 1:
            shown = ", ".join(printable(text, 40) for text in texts[:3]) or "none"
            raise UserError(
                f"{name} has {len(texts)} columns of texts ({shown}) where one with the names of the rows is needed: "
                "keep one, and save all other columns as numbers."
            )
        columns = tuple(column for column in schema.names if column != texts[0])
        if not columns or not file.metadata.num_rows:
            raise UserError(f"{name} has no values: restore it from the download.")
        head = next(file.iter_batches(batch_size=2, columns=texts)).column(0).to_pylist()
    except (Unreadable, pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name} in {source.path} is no Parquet file that can be read ({error}).") from error
    first = "" if texts[0].startswith("__index_level") else texts[0]
    genes_in_rows = orientation(name, first, columns, [str(text) for text in head], found)
    return ParquetTable(name, "", first, columns, genes_in_rows, path=path, names=texts[0])


def _is_numeric(pyarrow: Any, kind: Any) -> bool:
    return pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)


def blocks(
    table: ParquetTable, size: int, keep: np.ndarray | None = None, rows: int = 256
) -> Iterator[tuple[Block, int]]:
    """As `parsing.blocks`; lines are row numbers from 1, and of the `size` bytes the share of rows counts as read.

    Raises:
        UserError: a name is missing, or a value is infinite.
    """
    pyarrow, parquet = _pyarrow()
    file = parquet.ParquetFile(table.path)
    done = 0
    try:
        for batch in file.iter_batches(batch_size=rows, columns=[table.names, *table.columns]):
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in table.columns]
            with np.errstate(over="ignore"):
                values = np.stack([column.astype(np.float32) for column in columns], axis=1)
            names = batch.column(table.names).to_pylist()
            lines = list(range(done + 1, done + 1 + len(names)))
            _check(table, names, values, done)
            done += len(names)
            yield (
                Block([name.strip() for name in names], lines, values if keep is None else values[:, keep]),
                size * done // file.metadata.num_rows,
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{table.name} cannot be read beyond row {done} ({error}); download it again.") from error


def _check(table: ParquetTable, names: list, values: np.ndarray, done: int) -> None:
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(
                f"{table.name}, row {done + row + 1}: the {table.row_kind} has no printable name; write one."
            )
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise UserError(
            f"{table.name}, row {done + row + 1} ({table.row_kind} {printable(names[row], 60)}), column "
            f"{printable(table.columns[column], 60)}: not a finite number; write a missing value instead."
        )
