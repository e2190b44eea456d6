"""What stands in one sheet of an Excel workbook (.xlsx), read without a spreadsheet program's library?

The parts of ECMA-376 (part 1, chapters 12 and 18) that hold texts and numbers: the names of the sheets, the shared
strings and the cells. Formulas count by their stored result, errors such as `#N/A` by their text.
"""

import io
import posixpath
import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator

from input_pipeline.cli import UserError

MAX_PART_BYTES = 256 * 2**20
"""No part of a workbook is unpacked beyond this."""

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_DAMAGE = (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, EOFError, IndexError, KeyError, OSError, ValueError)
_DAMAGE += (NotImplementedError, RuntimeError)  # encrypted parts and unknown packing


class Workbook:
    """A workbook of which the names of the sheets are known and the rows of one are read on demand.

    Attributes:
        name: the file's name, for messages.
        sheets: the names of its sheets in order.

    Raises:
        UserError: here and from `rows`, when it is damaged, too large or no workbook.
    """

    def __init__(self, data: bytes, name: str):
        self.name = name
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
            self._parts = self._find_sheets()
        except _DAMAGE as error:
            raise self._refusal(error) from error
        self.sheets = tuple(self._parts)

    def _refusal(self, error: Exception) -> UserError:
        return UserError(f"{self.name} is no Excel workbook that can be read ({error}); save the sheet as CSV.")

    def _find_sheets(self) -> dict[str, str]:
        relations = {
            relation.get("Id"): relation.get("Target", "")
            for relation in self._parse("xl/_rels/workbook.xml.rels").iter()
            if relation.get("Id")
        }
        parts = {}
        for sheet in self._parse("xl/workbook.xml").iter(f"{_MAIN}sheet"):
            target = relations[sheet.get(_RELATION)]
            part = target.lstrip("/") if target.startswith("/") else posixpath.normpath(f"xl/{target}")
            parts[sheet.get("name", "")] = part
        return parts

    def _parse(self, part: str) -> ElementTree.Element:
        return ElementTree.fromstring(self._content(part))

    def _content(self, part: str) -> bytes:
        if self._archive.getinfo(part).file_size > MAX_PART_BYTES:
            raise ValueError(f"{part} is larger than {MAX_PART_BYTES >> 20} MiB")
        with self._archive.open(part) as file:
            data = file.read(MAX_PART_BYTES)
        if b"<!DOCTYPE" in data[:4096]:
            raise ValueError(f"{part} declares a document type, which no workbook does")
        return data

    def rows(self, sheet: str) -> list[tuple[int, list[str]]]:
        """The rows of a sheet that hold anything: number from 1, and the texts of the cells from column A on."""
        try:
            shared = []
            if "xl/sharedStrings.xml" in self._archive.namelist():
                shared = [_text(item) for item in self._parse("xl/sharedStrings.xml").iter(f"{_MAIN}si")]
            return [row for row in _rows(self._content(self._parts[sheet]), shared) if any(row[1])]
        except _DAMAGE as error:
            raise self._refusal(error) from error


def _rows(sheet: bytes, shared: list[str]) -> Iterator[tuple[int, list[str]]]:
    number = 0
    for _, row in ElementTree.iterparse(io.BytesIO(sheet)):
        if row.tag != f"{_MAIN}row":
            continue
        number = int(row.get("r") or number + 1)
        cells: list[str] = []
        for cell in row.iter(f"{_MAIN}c"):
            index = _column(cell.get("r") or "") if cell.get("r") else len(cells)
            if not len(cells) <= index < 16384:  # the format's own limit
                raise ValueError(f"row {number} has cells out of order")
            cells += [""] * (index - len(cells))
            cells.append(_value(cell, shared).strip())
        row.clear()  # a sheet of 400,000 cells would otherwise take half a gigabyte
        yield number, cells


def _value(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell)
    value = cell.findtext(f"{_MAIN}v", "")
    return shared[int(value)] if cell.get("t") == "s" and value else value


def _text(element: ElementTree.Element) -> str:
    """The text of a string, without the phonetic hints that some programs add."""
    hints = {id(part) for hint in element.iter(f"{_MAIN}rPh") for part in hint.iter(f"{_MAIN}t")}
    return "".join(part.text or "" for part in element.iter(f"{_MAIN}t") if id(part) not in hints)


def _column(place: str) -> int:
    """ "A1" to 0, "AA7" to 26."""
    letters = re.match(r"[A-Z]{1,3}", place)
    if not letters:
        raise ValueError(f"cell {place!r} has no column")
    index = 0
    for letter in letters[0]:
        index = 26 * index + ord(letter) - 64
    return index - 1
