"""How is a user's CSV read so that a broken line is named instead of guessed?

UTF-8 with or without byte order mark, LF or CRLF, quoted cells with commas and newlines inside. The delimiter (comma,
semicolon or tab) is the one that yields the wanted columns. Header names are compared without case and blanks.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence

from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource, Unreadable, printable

DELIMITERS = (",", ";", "\t")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: `line` counts from 1 in the file (the last line of a quoted cell that spans several)."""

    line: int
    cells: dict[str, str]


def plain(name: str) -> str:
    """A column name without case and surrounding blanks."""
    return name.strip().casefold()


def read_text(source: RawSource, name: str) -> str:
    """The text of a table. Raises `UserError` where it is unreadable, not UTF-8 or holds a NUL character."""
    try:
        data = source.read(name)
    except Unreadable as error:
        raise UserError(f"{name} in {source.path}: {error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: not UTF-8 text; save the table again as UTF-8.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{name}, line {line}: a NUL character, which no table holds; save it again as CSV.")
    return text


def header(source: RawSource, name: str) -> list[str]:
    """The column names of a CSV as `plain` gives them, for recognising its format; an unreadable file has none."""
    try:
        first = source.read(name)[:65536].decode("utf-8-sig", errors="replace")
    except Unreadable:
        return []
    line = first.splitlines()[0] if first.strip() else ""
    delimiter = max(DELIMITERS, key=line.count)
    return [plain(cell.strip('"')) for cell in line.split(delimiter)]


def _columns(cells: Sequence[str], name: str) -> list[str]:
    columns = [plain(cell) for cell in cells]
    for column in columns:
        if column and columns.count(column) > 1:
            raise UserError(f"{name}, line 1: the column {printable(column)!r} occurs twice; rename one.")
    return columns


def _delimiter(text: str, name: str, wanted: Sequence[str]) -> str:
    """The delimiter under which the header has the wanted (plain) columns."""
    for delimiter in DELIMITERS:
        try:
            first = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            continue
        if set(wanted) <= {plain(cell) for cell in first}:
            return delimiter
    found = printable(text.split("\n", 1)[0].strip(), 80)
    raise UserError(f"{name}, line 1: the header must name the columns {', '.join(wanted)}, not {found!r}.")


def read_rows(source: RawSource, name: str, wanted: Sequence[str]) -> list[Row]:
    """The rows of a CSV as dicts from plain column name to stripped cell; empty lines are left out.

    Args:
        source: where the file lies.
        name: its name there.
        wanted: columns that must be there.

    Raises:
        UserError: names the file, the line and the remedy (unreadable, not UTF-8, no header, a column that is missing
            or doubled, a line with another number of cells, broken quoting, no rows).
    """
    text = read_text(source, name)
    wanted = [plain(column) for column in wanted]
    delimiter = _delimiter(text, name, wanted)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        columns = _columns(next(reader), name)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{name}, line {reader.line_num}: {len(cells)} cells where the header has {len(columns)}; "
                    "put cells that hold a delimiter or a newline into double quotes."
                )
            rows.append(Row(reader.line_num, {c: cell.strip() for c, cell in zip(columns, cells, strict=True)}))
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}; correct the line.") from error
    if not rows:
        raise UserError(f"{name} has a header but no rows: restore it from the download.")
    return rows
