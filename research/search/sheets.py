"""How does a spreadsheet become the trials of a search? `.csv` and `.xlsx`, without a spreadsheet program's library.

Two layouts are read:

* keys of the config in the first row (`optimizer.learning_rate`, `model.options.filters`, and `name` if wanted), one
  trial in each row below. A cell is a Python literal (`0.001`, `True`, `[8, 16]`) or else a text; an empty one leaves
  the config's value;
* the blood-cell study's `hyper_paremetes.xlsx` as it is: the headings "Dense layers", "number of nuerons in dense
  layers", "number of convolution layers" and "kernel size" over one row of lists. As in the study's script, every list
  of dense widths meets every list of filters, the kernels are cut to the number of filters, and the first column, which
  only counts, is checked and not used.
"""

import ast
import csv
import dataclasses
import pathlib
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from typing import Any

from input_pipeline.cli import UserError

_MOST_BYTES = 2**26  # of one part of a workbook, unpacked
_STUDY = (
    "dense layers",
    "number of nuerons in dense layers",
    "number of convolution layers",
    "kernel size",
)
_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text and where it stands, such as "B2"."""

    text: str
    place: str


def read_trials(path: str) -> list[dict[str, Any]]:
    """The trials of a spreadsheet: `{"name": ..., key: value, ...}` each.

    Raises:
      UserError: the file is missing or no spreadsheet, or a cell cannot be read; the cell is named.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"the spreadsheet {path} does not exist; set config.search.sheet to a .csv or .xlsx file.")
    rows = _read_xlsx(file) if file.suffix.lower() == ".xlsx" else _read_csv(file)
    rows = [row for row in rows if any(cell.text.strip() for cell in row)]
    if len(rows) < 2:
        raise UserError(f"{path} has no row below its headings; write one trial into each row.")
    headings = [cell.text.strip() for cell in rows[0]]
    if tuple(heading.lower() for heading in headings if heading) == _STUDY:
        return _study_trials(path, rows[1])
    return _plain_trials(path, headings, rows)


def _plain_trials(path: str, headings: list[str], rows: list[list[Cell]]) -> list[dict[str, Any]]:
    for heading, cell in zip(headings, rows[0], strict=True):
        if heading and headings.count(heading) > 1:
            raise UserError(f"the heading {heading} stands twice in {path}, once in {cell.place}; keep one.")
    trials = []
    for row in rows[1:]:
        trial = {}
        for index, cell in enumerate(row):
            if not cell.text.strip():
                continue
            if index >= len(headings) or not headings[index]:
                raise UserError(f"cell {cell.place} of {path} has no heading; write the config's key above it.")
            trial[headings[index]] = cell.text.strip() if headings[index] == "name" else _value(path, cell)
        trials.append(trial)
    return trials


def tuples(value: Any) -> Any:
    """A value of JSON or of a literal as configs have it: lists become tuples, also inside dicts."""
    if isinstance(value, list | tuple):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _value(path: str, cell: Cell) -> Any:
    """A cell's Python literal, or its text; lists become tuples, as configs have them."""
    text = " ".join(cell.text.split())
    try:
        return tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        if text[0] in "[({'\"" or text[-1] in "])}'\"":
            raise UserError(
                f"cell {cell.place} of {path} is no list that Python can read: {_shorten(text)}; mend it."
            ) from error
        return {"true": True, "false": False}.get(text.lower(), text)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _study_trials(path: str, row: list[Cell]) -> list[dict[str, Any]]:
    cells = [cell for cell in row if cell.text.strip()]
    if len(cells) != len(_STUDY):
        raise UserError(f"row {row[0].place[1:]} of {path} has {len(cells)} of the four lists; fill it.")
    counts, dense, filters, kernels = (_value(path, cell) for cell in cells)
    _check(path, cells[0], _are_sizes(counts))
    for cell, lists in ((cells[1], dense), (cells[2], filters)):
        _check(path, cell, isinstance(lists, tuple) and bool(lists) and all(map(_are_sizes, lists)), "lists of ")
    _check(path, cells[3], _are_sizes(kernels))
    if tuple(map(len, dense)) != counts:
        raise UserError(f"cell {cells[0].place} of {path} counts {counts} layers, {cells[1].place} lists {dense}.")
    if (longest := max(map(len, filters))) > len(kernels):
        raise UserError(f"cell {cells[3].place} of {path} has {len(kernels)} kernels for {longest} filters; add some.")
    return [
        {
            "name": f"dense{i}-conv{j}",
            "model.options.dense": widths,
            "model.options.filters": layers,
            "model.options.kernels": kernels[: len(layers)],
        }
        for i, widths in enumerate(dense, 1)
        for j, layers in enumerate(filters, 1)
    ]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(type(size) is int and size > 0 for size in value)


def _check(path: str, cell: Cell, right: bool, kind: str = "") -> None:
    if not right:
        raise UserError(
            f"cell {cell.place} of {path} should hold {kind}positive whole numbers in brackets, not "
            f"{_shorten(' '.join(cell.text.split()))}."
        )


def _column(index: int) -> str:
    """0 to "A", 26 to "AA"."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name


def _read_csv(file: pathlib.Path) -> list[list[Cell]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV table ({error}); save it as CSV in UTF-8, or as .xlsx.") from error
    return [[Cell(text, f"{_column(j)}{i}") for j, text in enumerate(row)] for i, row in enumerate(rows, 1)]


def _read_xlsx(file: pathlib.Path) -> list[list[Cell]]:
    """The cells of a workbook's first sheet (ECMA-376, part 1, 18.3)."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            sheets = sorted((n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", n)), key=_number)
            shared = []
            if "xl/sharedStrings.xml" in names:
                shared = [_text(item) for item in _parse(archive, "xl/sharedStrings.xml").iter(f"{_SPACE}si")]
            return [_cells(row, shared) for row in _parse(archive, sheets[0]).iter(f"{_SPACE}row")]
    except (zipfile.BadZipFile, ElementTree.ParseError, IndexError, ValueError, KeyError) as error:
        raise UserError(f"{file} is no Excel workbook that can be read ({error}); save it as CSV.") from error


def _number(name: str) -> int:
    return int(re.search(r"\d+", name)[0])


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > _MOST_BYTES:
        raise ValueError(f"{name} is larger than {_MOST_BYTES >> 20} MiB")
    with archive.open(name) as part:
        return ElementTree.fromstring(part.read(_MOST_BYTES))


def _text(element: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in element.iter(f"{_SPACE}t"))


def _cells(row: ElementTree.Element, shared: list[str]) -> list[Cell]:
    """A row's cells from column A on; what the file leaves out is empty."""
    cells: list[Cell] = []
    for element in row.iter(f"{_SPACE}c"):
        place = element.get("r") or f"{_column(len(cells))}{row.get('r')}"
        while len(cells) < _index(place):
            cells.append(Cell("", f"{_column(len(cells))}{row.get('r')}"))
        value, kind = element.findtext(f"{_SPACE}v", ""), element.get("t", "n")
        if kind == "s":
            value = shared[int(value)]
        elif kind == "inlineStr":
            value = _text(element)
        elif kind == "b":
            value = str(value == "1")
        elif kind == "e":
            raise ValueError(f"cell {place} holds the error {value}")
        cells.append(Cell(value, place))
    return cells


def _index(place: str) -> int:
    """ "A1" to 0, "AA7" to 26."""
    index = 0
    for letter in re.match(r"[A-Z]+", place)[0]:
        index = 26 * index + ord(letter) - 64
    return index - 1
