"""Which class does a sample belong to, by the file of labels that lies beside the table?

Read are, by their columns: the TCGA-CDR spreadsheet (sheet `TCGA-CDR`, or saved as CSV), the merged sample quality
annotations, the survival and phenotype files of Xena, cognoma's samples.tsv, tables with a column of ids and one of
labels by common names, and any table of two columns, with or without a header. CSV and TSV may be packed (.gz, .bz2).
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from input_pipeline.cli import UserError
from input_pipeline.expression import barcodes
from input_pipeline.expression.peeking import Peek
from input_pipeline.expression.workbook import Workbook
from input_pipeline.raw import MAX_FILE_BYTES, RawSource, Unreadable, printable
from input_pipeline.studies import csv_rows
from input_pipeline.studies.manifest import ROLE_NAMES, list_briefly

PUBLIC = {
    "TCGA-CDR": ("bcr_patient_barcode", "type"),
    "merged sample annotations": ("aliquot_barcode", "cancer type"),
    "Xena survival": ("sample", "cancer type abbreviation"),
    "Xena phenotype": ("sample", "_primary_disease"),
    "cognoma samples": ("sample_id", "acronym"),
}
"""Columns of id and label, in plain form, of the files that public sources offer."""

_SHEET = "TCGA-CDR"
_IDS = ("aliquot", "aliquot_barcode", "sample", "sample_id", "sampleid", "sample_barcode", "barcode", "id")
_IDS += ("patient", "patient_id", "patient_barcode", "bcr_patient_barcode", "case", "case_id")
_LABELS = ("label", "class", "type", "cancer_type", "cancer type", "tumour_type", "tumor_type", "tumour type")
_LABELS += ("tumor type", "cohort", "project", "acronym", "disease", "diagnosis")
_PATIENTS = ("patient", "patient_id", "_patient", "patient_barcode", "bcr_patient_barcode", "group")
_ROLES = ("role", "split")
_REFUSED = "do_not_use"
_UNKNOWN = {"", "na", "n/a", "#n/a", "nan", "null", "none", "unknown", "[not available]", "[not applicable]"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one line of a file of labels says; `label` is "" when it says nothing."""

    line: int
    label: str
    patient: str = ""
    role: str | None = None
    refused: bool = False


@dataclasses.dataclass(frozen=True)
class Labels:
    """A file of labels.

    Attributes:
        name: of the file in the source.
        kind: a key of `PUBLIC` or "table".
        exact: what is said of each id, in the canonical form of barcodes.
        shorter: the ids that begin with a sample's or a patient's barcode, for tables that have the shorter form.
        notes: facts for the ingest report.
    """

    name: str
    kind: str
    exact: dict[str, Entry]
    shorter: dict[str, list[Entry]]
    notes: dict

    def knows(self, name: str) -> bool:
        """Whether a sample has a line here, as far as its name tells."""
        return self.find(name)[0] is not None

    def find(self, name: str) -> tuple[Entry | None, str]:
        """What is known of a sample, or None and the reason.

        The aliquot's own line counts first, then that of its sample, then that of its patient. A tumour type belongs
        to the patient, so in the public files other lines of the same patient speak for it as well.
        """
        keys = barcodes.join_keys(name)
        for key in keys:
            if key in self.exact:
                return self.exact[key], ""
        for key in keys if self.kind in PUBLIC else keys[:1]:
            entries = self.shorter.get(key, [])
            if not entries:
                continue
            found = sorted({entry.label for entry in entries if entry.label})
            if len(found) > 1:
                return None, f"{self.name} has several labels for {key} ({list_briefly(found)})"
            refused = key == keys[0] and all(entry.refused for entry in entries)
            return dataclasses.replace(entries[0], label=found[0] if found else "", refused=refused), ""
        return None, f"{self.name} does not know it"


class _Unpacked:
    """Gives `csv_rows` the content of a packed file, and text that a spreadsheet saved in the Windows code page."""

    def __init__(self, source: RawSource):
        self.path = source.path
        self.recoded: list[str] = []
        self._source = source

    def read(self, name: str) -> bytes:
        data = read_all(self._source, name)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            self.recoded.append(name)
            data = data.decode("cp1252", "replace").encode()
        return data


def read_all(source: RawSource, name: str) -> bytes:
    """The unpacked content of a file.

    Raises:
        Unreadable: see `RawSource.open`.
    """
    parts = []
    with source.open(name, MAX_FILE_BYTES) as stream:
        while part := stream.read(2**20):
            parts.append(part)
    return b"".join(parts)


def kind_of(peek: Peek) -> str:
    """The key of `PUBLIC`, "table" for other files of labels, or "" when the file does not look like one."""
    header = [csv_rows.plain(cell) for cell in peek.header]
    for kind, columns in PUBLIC.items():
        if set(columns) <= set(header):
            return kind
    if peek.is_workbook:
        return ""
    named = any(name in header for name in _IDS) and sum(name in header for name in _LABELS) == 1
    pairs = len(peek.lines) > 1 and all(len(line) == 2 for line in peek.lines)
    return "table" if named or pairs else ""


def choose(peeks: Sequence[Peek], wanted: str | None) -> Peek | None:
    """The file of labels: the named one, else the only one there is.

    Raises:
        UserError: the named file is missing or has no labels, or several could be meant.
    """
    if wanted is not None:
        found = [peek for peek in peeks if wanted in (peek.name, pathlib.PurePosixPath(peek.name).name)]
        if len(found) != 1:
            others = list_briefly(peek.name for peek in peeks if kind_of(peek))
            raise UserError(
                f"--set labels={wanted} names no file of the source: it has {others or 'no file of labels'}."
            )
        if not kind_of(found[0]):
            raise UserError(
                f"{found[0].name} has no labels that can be recognised (columns {list_briefly(found[0].header, 8)}): "
                "name the columns sample and label, or give a table of just these two columns."
            )
        return found[0]
    public = [peek for peek in peeks if kind_of(peek) in PUBLIC]
    candidates = public or [peek for peek in peeks if kind_of(peek)]
    # A table about genes that happens to have two columns is no rival of one about samples.
    candidates = [peek for peek in candidates if csv_rows.plain(peek.header[0]) not in ("gene", "gene_id", "symbol")]
    if len(candidates) > 1:
        names = list_briefly((peek.name for peek in candidates), 6)
        raise UserError(f"several files could hold the labels ({names}): choose with --set labels=NAME.")
    return candidates[0] if candidates else None


def read(source: RawSource, peek: Peek) -> Labels:
    """Reads a file of labels.

    Raises:
        UserError: it cannot be read, or says two things of one id; file and lines are named.
    """
    kind = kind_of(peek)
    notes = {"file": peek.name, "kind": kind}
    unpacked = _Unpacked(source)
    if peek.is_workbook:
        rows, columns = list(_sheet_rows(source, peek)), PUBLIC[kind]
    else:
        columns = columns_of(peek, kind)
        plain = [csv_rows.plain(cell) for cell in peek.header]
        rows = _text_rows(unpacked, peek, [plain[index] for index in columns])
        labels = {cells[plain[columns[1]]] for _, cells in rows}
        if kind == "table" and _has_no_header(peek, columns, labels):
            rows.insert(0, (1, dict(zip(plain, peek.header, strict=True))))
            notes["header"] = "none"
        columns = tuple(plain[index] for index in columns)
    if unpacked.recoded:
        notes["encoding"] = "Windows code page 1252"
    exact, shorter = _index(peek.name, rows, columns)
    notes |= {"ids": len(exact), "columns": list(columns)}
    return Labels(peek.name, kind, exact, shorter, notes)


def _text_rows(unpacked: _Unpacked, peek: Peek, wanted: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line and cells, by plain name of the column, of each line of a CSV or TSV that is not blank.

    In a TSV whose every line has as many tabs as the header, a quote is a character like any other: the comments in the
    merged sample annotations have some without a partner.
    """
    if peek.delimiter == "\t":
        try:
            lines = unpacked.read(peek.name).decode("utf-8-sig").split("\n")
        except Unreadable as error:
            raise UserError(f"{peek.name} in {unpacked.path}: {error}; download it again.") from error
        cells = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
        header = [csv_rows.plain(cell.strip().strip('"')) for cell in cells[0][1]]
        if len(cells) > 1 and all(len(line) == len(header) for _, line in cells) and len(set(header)) == len(header):
            named = ((n, (cell.strip().strip('"') for cell in line)) for n, line in cells[1:])
            return [(number, dict(zip(header, line, strict=True))) for number, line in named]
    found = csv_rows.read_rows(unpacked, peek.name, wanted)
    return [(row.line, row.cells) for row in found]


def columns_of(peek: Peek, kind: str) -> tuple[int, int]:
    """Which columns hold ids and labels."""
    header = [csv_rows.plain(cell) for cell in peek.header]
    if kind in PUBLIC:
        return tuple(header.index(name) for name in PUBLIC[kind])
    label = [index for index, name in enumerate(header) if name in _LABELS]
    identifier = [header.index(name) for name in _IDS if name in header]
    return (identifier[0], label[0]) if identifier and len(label) == 1 else (0, 1)


def _has_no_header(peek: Peek, columns: tuple[int, int], labels: set[str]) -> bool:
    """Whether the first line is already a sample: a barcode, or with a label that other lines have."""
    return barcodes.canonical(peek.header[columns[0]]) is not None or peek.header[columns[1]].strip() in labels


def _sheet_rows(source: RawSource, peek: Peek) -> Iterator[tuple[int, dict[str, str]]]:
    book = Workbook(read_all(source, peek.name), peek.name)
    header: list[str] = []
    for number, cells in book.rows(peek.sheet):
        if not header:
            header = [csv_rows.plain(cell) for cell in cells]
        else:
            yield number, dict(zip(header, cells + [""] * len(header), strict=False))


def _index(
    name: str, rows: Sequence[tuple[int, dict[str, str]]], columns: tuple[str, str]
) -> tuple[dict[str, Entry], dict[str, list[Entry]]]:
    """The lines by id, and by the shorter barcodes that the ids begin with."""
    exact: dict[str, Entry] = {}
    for line, cells in rows:
        identifier = barcodes.join_keys(cells[columns[0]])[0]
        if not identifier or identifier.lower() in _UNKNOWN:
            continue
        entry = _entry(name, line, cells, columns[1])
        if identifier in exact:
            entry = _agree(name, identifier, exact[identifier], entry)
        exact[identifier] = entry
    shorter: dict[str, list[Entry]] = {}
    for identifier, entry in exact.items():
        for key in barcodes.join_keys(identifier)[1:]:
            shorter.setdefault(key, []).append(entry)
    return exact, shorter


def _entry(name: str, line: int, cells: dict[str, str], column: str) -> Entry:
    label = cells[column].strip()
    label = "" if label.lower() in _UNKNOWN else barcodes.class_name(label)
    if not label.isprintable():
        raise UserError(
            f"{name}, line {line}: the label {printable(label, 60)!r} holds control characters; correct it."
        )
    role = next((cells[key].strip().lower() for key in _ROLES if cells.get(key, "").strip()), None)
    if role is not None and role not in ROLE_NAMES:
        raise UserError(
            f"{name}, line {line}: {printable(role, 40)!r} is no role; write one of {', '.join(sorted(ROLE_NAMES))}."
        )
    patient = next((cells[key].strip() for key in _PATIENTS if cells.get(key, "").strip()), "")
    refused = cells.get(_REFUSED, "").strip().lower() in ("true", "1", "yes")
    return Entry(line, label, patient, ROLE_NAMES[role] if role else None, refused)


def _agree(name: str, identifier: str, first: Entry, second: Entry) -> Entry:
    """One entry from two lines of one id, as the merged annotations have one for each platform."""
    if first.label and second.label and first.label != second.label:
        raise UserError(
            f"{name}, line {second.line}: {identifier} is {printable(second.label, 60)} here and "
            f"{printable(first.label, 60)} on line {first.line}; keep one."
        )
    if not first.label:
        first, second = second, first
    return dataclasses.replace(first, refused=first.refused or second.refused, role=first.role or second.role)


def sheet_with_labels(source: RawSource, name: str) -> tuple[str, list[str]] | None:
    """Name and header of the sheet of a workbook that holds labels, or None.

    Raises:
        UserError: the file is no workbook that can be read.
    """
    try:
        book = Workbook(read_all(source, name), name)
    except Unreadable as error:
        raise UserError(f"{name} in {source.path}: {error}; download it again.") from error
    for sheet in sorted(book.sheets, key=lambda title: title != _SHEET):
        rows = book.rows(sheet)
        header = rows[0][1] if rows else []
        if any(set(columns) <= {csv_rows.plain(cell) for cell in header} for columns in PUBLIC.values()):
            return sheet, header
    return None
