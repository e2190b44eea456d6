"""How does each file of a download begin: its delimiter, its header and its first rows?

Only the first three lines that are not blank are read, so that a folder of gigabytes is looked through at once.
"""

import dataclasses
import itertools
import math
import posixpath
from collections.abc import Sequence

from input_pipeline.cli import UserError
from input_pipeline.expression.parsing import MISSING, decode, lines_of, split_cells
from input_pipeline.raw import RawSource

PARQUET = ".parquet"
_PACKED = (".gz", ".bz2")
_TEXT = (".csv", ".tsv", ".txt", ".tab", ".data", ".dat", ".xena", "")
_DELIMITERS = ("\t", ",", ";")
_LONGEST_EXTENSION = 5
"""What follows the last point of a name without an extension, as in `x.geneExp`, is longer."""


@dataclasses.dataclass(frozen=True)
class Peek:
    """The beginning of a file.

    Attributes:
        name: of the file in the source.
        delimiter: of a text table, "" for others.
        lines: cells of up to three lines, stripped; the first is the header.
        is_workbook: whether it is an Excel workbook (then `lines` is the header of the sheet with labels).
        is_parquet: whether it is a Parquet file, into which nobody has looked yet.
        sheet: name of the sheet.
    """

    name: str
    delimiter: str
    lines: tuple[tuple[str, ...], ...]
    is_workbook: bool = False
    is_parquet: bool = False
    sheet: str = ""

    @property
    def header(self) -> tuple[str, ...]:
        """The cells of the first line."""
        return self.lines[0] if self.lines else ()

    @property
    def base(self) -> str:
        """The file's name without folders."""
        return posixpath.basename(self.name)

    @property
    def folder(self) -> str:
        """The name of the innermost folder, "" at the top of the source."""
        return posixpath.basename(posixpath.dirname(self.name))


def extension(name: str) -> str:
    """The extension in lower case without that of a packing, "" for names without one that is known to be short."""
    base = posixpath.basename(name).lower()
    for packed in _PACKED:
        base = base.removesuffix(packed)
    ending = posixpath.splitext(base)[1]
    return ending if len(ending) <= _LONGEST_EXTENSION or ending == PARQUET else ""


def peek_text(source: RawSource, name: str) -> Peek | None:
    """The beginning of a text table, or None for a file that has no line of two cells.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    if extension(name) not in _TEXT:
        return None
    texts = []
    for number, line, _ in lines_of(source, name):
        if b"\0" in line or line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{name}, line {number}: no text in UTF-8; save it again as CSV in UTF-8.")
        texts.append(line)
        if len(texts) == 3:
            break
    if not texts:
        return None
    delimiter = "\t" if b"\t" in texts[0] else max(_DELIMITERS, key=lambda mark: texts[0].count(mark.encode()))
    lines = tuple(_cells(name, number, line, delimiter) for number, line in enumerate(texts, 1))
    return Peek(name, delimiter, lines) if len(lines[-1]) > 1 else None


def _cells(name: str, number: int, line: bytes, delimiter: str) -> tuple[str, ...]:
    place = f"{name}, line {number}"
    try:
        cells = split_cells(line, delimiter, place)
    except UserError:  # whoever reads the file decides whether a quote without a partner is a mistake
        cells = line.split(delimiter.encode())
    if number == 1:  # names of columns are used as they are; the other lines are only looked at
        return tuple(decode(cell, place) for cell in cells)
    return tuple(cell.decode("utf-8", "replace").strip() for cell in cells)


def is_number(text: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def has_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the cells after the first of some rows look like values with a mistake here and there.

    Columns of texts are what tells tables about samples or genes from tables of expression: at most a tenth of the
    columns may hold texts in every row. A decimal comma is a number here, because the parser names it better.
    """
    columns = list(itertools.zip_longest(*(row[1:] for row in rows), fillvalue=""))
    texts = sum(all(_is_text(cell) for cell in column) for column in columns)
    filled = sum(any(cell and not _is_text(cell) for cell in column) for column in columns)
    return filled > 0 and 10 * texts <= len(columns)


def _is_text(cell: str) -> bool:
    return bool(cell) and cell not in MISSING and not is_number(cell.replace(",", "."))
