"""How are tables written so that a spreadsheet opens them safely and a program reads back what was written?

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula (CWE-1236). Texts that would be run,
and texts that would be read back as numbers, get one leading apostrophe, which `parse_cell` takes away again. Real
numbers are written bare, so `-0.25` stays a number.
"""

import csv
import io
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from input_pipeline import cli

Cell = str | int | float | bool | None
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def format_cell(value: object) -> str:
    """One CSV cell; None becomes an empty cell, a float its shortest exact form, a text its guarded form."""
    if value is None:
        return ""
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    if isinstance(value, bool | int | float):
        return repr(value)
    text = str(value)
    is_ambiguous = text == "" or not isinstance(_parse_number(text), str)
    return f"'{text}" if is_ambiguous or text.startswith(_FORMULA_STARTS) else text


def safe_text(text: str) -> str:
    """A text of somebody else's table as it is, with one apostrophe before it if a spreadsheet would run it."""
    is_run = text.startswith(_FORMULA_STARTS[:-1]) and isinstance(_parse_number(text), str)
    return f"'{text}" if is_run else text


def parse_cell(text: str) -> Cell:
    """The value that `format_cell` was given (None, bool, int, float or str)."""
    if text == "":
        return None
    return text[1:] if text.startswith("'") else _parse_number(text)


def _parse_number(text: str) -> str | int | float | bool:
    if text in ("True", "False"):
        return text == "True"
    if "_" in text or text != text.strip():  # int("1_0") is 10, but nobody who writes "1_0" means a number
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as CSV with `\\n` line ends; cells with a line end of any system stand in quotes."""
    buffer = io.StringIO()
    # With another line end csv.writer would leave a carriage return bare (Python 3.11), which ends a row for a reader.
    writer = csv.writer(buffer, lineterminator="\r\n")
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(buffer.getvalue()[:-2] + "\n")
        buffer.seek(0)
        buffer.truncate()
    return "".join(lines)


def frame_text(frame: pd.DataFrame) -> str:
    """A table as CSV, its numbers as pandas writes them and its texts by `safe_text`."""
    return frame.map(lambda cell: safe_text(cell) if isinstance(cell, str) else cell).to_csv(index=False)


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes `rows` (dicts; a missing key is an empty cell) under `columns`, atomically, with `\\n` line ends.

    Raises:
        ValueError: a row has a key that is not a column, which would be lost without a word.
    """
    lines = [[format_cell(column) for column in columns]]
    known = set(columns)
    for row in rows:
        if not known.issuperset(row):
            raise ValueError(f"{path}: no column for {sorted(set(row) - known)}")
        lines.append([format_cell(row.get(column)) for column in columns])
    cli.atomic_write(path, csv_text(lines))


def read_csv(path: str | os.PathLike) -> tuple[list[str], list[dict[str, Cell]]]:
    """The columns and rows that `write_csv` wrote.

    Raises:
        UserError: the file is missing or no table, or a line has another number of cells than the header.
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8")  # line ends inside of cells stay what they are
    except FileNotFoundError:
        raise cli.UserError(f"{path} does not exist; run the study that writes it first.") from None
    except UnicodeDecodeError:
        raise cli.UserError(f"{path} is not UTF-8 text; restore it or delete it and run the study again.") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = [str(parse_cell(cell)) for cell in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise cli.UserError(
            f"{path}, line {reader.line_num + 1}: {error}; restore the file or delete it and run the study again."
        ) from error
    rows = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise cli.UserError(
                f"{path}, line {line}: {len(cells)} cells where the header has {len(columns)}; "
                "restore the file or delete it and run the study again."
            )
        rows.append({column: parse_cell(cell) for column, cell in zip(columns, cells, strict=True)})
    return columns, rows


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` decimals for fractions, thousands separators for counts, `–` for unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")
