"""How are the captions of the contest read from a file that is not quite CSV, and from copies that are?

Two dialects of `ImageID,Labels,Caption` (and of `ImageID,Caption`, the test file) circulate:

* **original**: captions stand in quotes, but quotes and newlines inside them are written as they are. A record begins
  where a line begins with an id, labels and a quote, and ends with the last quote before the next record; only these
  outer quotes are taken off. So the escape rules of CSV, which cut four records in two, never come into play.
* **quoted**: CSV proper (doubled quotes), with comma, semicolon or tab, with any newlines, as spreadsheets save it.

A file is quoted when a strict reader of CSV finds as many cells in every row as in the header. Newlines (CRLF, lone CR)
become LF in both, before anything else. What the copy of the training file that circulates lost is restored, see
`captions_repairs`.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Sequence

from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource, printable
from input_pipeline.studies import captions_repairs, csv_rows

ID, LABELS, CAPTION, PATH = "imageid", "labels", "caption", "path"

_COLUMNS = ([ID, LABELS, CAPTION], [ID, CAPTION])
"""Headers that the original dialect can have."""

_CELL = r'[^",\n]*'
_LOOKS_LIKE_A_START = re.compile(r"\s*\d+\.jpe?g\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Record:
    """A row: where it begins (from 1), its id, and as they stand in it labels, caption and path ("" where absent)."""

    line: int
    id: str
    labels: str
    caption: str
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A file that has been read.

    Attributes:
        name: its name in the source.
        dialect: "original" or "quoted".
        labelled: whether it has a column of labels.
        records: in the order of the file.
        restored: ids of captions that were made whole, see `captions_repairs`.
    """

    name: str
    dialect: str
    labelled: bool
    records: list[Record]
    restored: list[str]


def _strict_rows(text: str, delimiter: str, width: int) -> tuple[list[tuple[int, list[str]]], str]:
    """Rows `(line, cells)` behind the header if the text is CSV with `width` cells in each; otherwise why it is not."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = [], 1
    try:
        next(reader)
        while True:
            line = reader.line_num + 1
            cells = next(reader)
            if not cells or cells == [""]:
                continue
            if len(cells) != width:
                return [], f"line {line}: {len(cells)} cells where the header has {width}"
            rows.append((line, cells))
    except StopIteration:
        return rows, ""
    except csv.Error as error:
        return [], f"line {line}: {error}"


def _quoted(rows: Sequence[tuple[int, list[str]]], columns: Sequence[str]) -> list[Record]:
    records = []
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        records.append(
            Record(line, row[ID].strip(), row.get(LABELS, "").strip(), row[CAPTION], row.get(PATH, "").strip())
        )
    return records


def _original(text: str, labelled: bool, name: str) -> list[Record]:
    """Records of the original dialect; `text` begins with its header.

    Raises:
        UserError: names the line that is neither the beginning of a record nor inside a caption.
    """
    start = re.compile(rf'(?P<id>{_CELL}),(?P<labels>{_CELL}),"' if labelled else rf'(?P<id>{_CELL}),(?P<labels>)"')
    records: list[Record] = []
    lines: list[str] = []

    def finish() -> None:
        if not lines:
            return
        caption = "\n".join(lines).rstrip()
        if not caption.endswith('"'):
            raise UserError(
                f"{name}, line {records[-1].line}: the caption of {printable(records[-1].id, 40)} has no quote at its "
                "end, so the file is damaged or cut off: download it again."
            )
        records[-1] = dataclasses.replace(records[-1], caption=caption[:-1])
        lines.clear()

    for number, line in enumerate(text.split("\n")[1:], 2):
        found = start.match(line)
        if found:
            finish()
            records.append(Record(number, found["id"].strip(), found["labels"].strip(), ""))
            lines.append(line[found.end() :])
        elif line.strip() and (not lines or _LOOKS_LIKE_A_START.match(line)):
            form = "id,labels" if labelled else "id"
            raise UserError(
                f'{name}, line {number}: {printable(line, 60)!r} is no record of the form {form},"caption": '
                "correct the line, or download the file again."
            )
        elif lines:
            lines.append(line)
    finish()
    return records


def read(source: RawSource, name: str) -> Table:
    """Reads a table of either dialect.

    Args:
        source: where it lies.
        name: its name there.

    Raises:
        UserError: it cannot be read, lacks a column, or a line belongs to no record; names file, line and remedy.
    """
    text = csv_rows.read_text(source, name).replace("\r\n", "\n").replace("\r", "\n")
    head = text.split("\n", 1)[0]
    delimiter = max(csv_rows.DELIMITERS, key=head.count)
    columns = [csv_rows.plain(cell.strip('"')) for cell in head.split(delimiter)]
    if not {ID, CAPTION} <= set(columns) or len(set(columns)) != len(columns):
        raise UserError(
            f"{name}, line 1: the header must be ImageID,Labels,Caption or, for a test file, ImageID,Caption, not "
            f"{printable(head, 80)!r}."
        )
    labelled = LABELS in columns
    rows, reason = _strict_rows(text, delimiter, len(columns))
    if not reason:
        dialect, records = "quoted", _quoted(rows, columns)
    elif columns in _COLUMNS and delimiter == "," and re.match(rf'({_CELL},)+"', text[len(head) + 1 :]):
        dialect, records = "original", _original(text, labelled, name)
    else:
        raise UserError(f"{name}, {reason}; correct the line, or save the table again as CSV.")
    if not records:
        raise UserError(f"{name} has a header but no records: restore it from the download.")
    whole = [captions_repairs.restored(record.id, record.caption) for record in records]
    restored = [record.id for record, caption in zip(records, whole, strict=True) if caption != record.caption]
    records = [dataclasses.replace(record, caption=caption) for record, caption in zip(records, whole, strict=True)]
    return Table(name, dialect, labelled, records, restored)
