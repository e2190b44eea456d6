"""Which files of a download are the expression table, in which layout, and what do its rows and columns mean?

* `firehose`: two header lines, `Hybridization REF` and `gene_id` with `normalized_count`; the file's name begins with
  the cohort, which is the label.
* `class_header`: the study's `big_table.csv`, genes in rows, class codes instead of names above the samples.
* `cohort_tables`: tables that are named alike, each in the folder of its cohort (survpath) or with the cohort in its
  name; the cohort is the label. Folders of any other names are labels too, unless there is a file of labels
  (`tables_in_folders`).
* `pancanatlas`: barcodes above the columns, rows named `SYMBOL|ENTREZ`.
* `xena`: barcodes above the columns, `sample` in the first cell; an empty cell is a missing value.
* `cognoma`: barcodes in the first column, Entrez numbers above the columns.
* `genes_by_samples`, `samples_by_genes`: any other, by barcodes, by the names that the labels know, or by the first
  cell.
"""

import dataclasses
import re
from collections.abc import Sequence

from input_pipeline.cli import UserError
from input_pipeline.expression import barcodes, labels
from input_pipeline.expression.parsing import Table
from input_pipeline.expression.peeking import PARQUET, Peek, extension, has_numbers, is_number, peek_text
from input_pipeline.raw import RawSource, printable
from input_pipeline.studies.csv_rows import plain
from input_pipeline.studies.manifest import list_briefly, packed_hint

_GENE_WORDS = ("gene_id", "gene", "genes", "symbol", "gene_symbol", "gene_name", "hugo_symbol", "entrez_gene_id")
_GENE_WORDS += ("ensembl_id", "ensembl", "ensembl_gene_id", "geneid", "entrezgene", "probe", "feature")
_SAMPLE_WORDS = ("sample", "sample_id", "samples", "sampleid", "patient", "patient_id", "barcode", "aliquot", "case_id")
_FIREHOSE = "hybridization ref"
_GENE_KEY = re.compile(r"[^|]+\|\d+")
_CODE = re.compile(
    r"([A-Za-z][A-Za-z0-9_ -]{0,30}?)(?:\.\d+)?"
)  # pandas appends .1, .2, … to names that it finds twice
_COHORT = re.compile(r"(?:gdac\.broadinstitute\.org_)?([A-Za-z0-9]+)[._-]")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tables that are read, and what they are called together.

    Attributes:
        kind: see the table in the file's docstring.
        tables: of one orientation each, in the order of their names.
        ids: for a class header, the ids that are made for the columns; otherwise empty.
        codes: for a class header, the class of each column; otherwise empty.
        symbols: file with the symbols of Entrez numbers, "" without one.
    """

    kind: str
    tables: tuple[Table | Peek, ...]
    ids: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    symbols: str = ""


def survey(source: RawSource, problems: list[tuple[str, str]]) -> list[Peek]:
    """The beginning of every file that may be a table or hold labels; unreadable ones go to `problems`."""
    peeks = []
    for name in source.names():
        kind = extension(name)
        try:
            if kind == PARQUET:
                peeks.append(Peek(name, "", (), is_parquet=True))
            elif kind == ".xlsx" and (found := labels.sheet_with_labels(source, name)):
                peeks.append(Peek(name, "", (tuple(found[1]),), is_workbook=True, sheet=found[0]))
            elif peek := peek_text(source, name):
                peeks.append(peek)
                if plain(peek.header[0]) == _FIREHOSE and not is_firehose(peek):
                    problems.append((name, "not Firehose's table RSEM_genes_normalized, which is the one to download"))
        except UserError as error:
            problems.append((name, str(error)))
    return peeks


def is_expression(peek: Peek) -> bool:
    """Whether a file looks like a table of expression and not like one of labels or of metadata."""
    if peek.is_parquet or peek.is_workbook or is_firehose(peek):
        return not peek.is_workbook
    kind = labels.kind_of(peek)
    if kind in labels.PUBLIC or is_symbols(peek) or plain(peek.header[0]) == _FIREHOSE:
        return False
    if len(peek.lines) < 2 or len(peek.header) < 3:
        return False
    if kind:
        column = labels.columns_of(peek, kind)[1]
        if any(len(line) > column and not is_number(line[column]) for line in peek.lines[1:]):
            return False
    return has_numbers(peek.lines[1:])


def is_firehose(peek: Peek) -> bool:
    """Whether the two header lines are those of Firehose's normalised gene table."""
    return (
        len(peek.lines) == 3
        and plain(peek.header[0]) == _FIREHOSE
        and plain(peek.lines[1][0]) == "gene_id"
        and set(peek.lines[1][1:]) == {"normalized_count"}
    )


def is_symbols(peek: Peek) -> bool:
    """Whether the file gives symbols for Entrez numbers, as cognoma's expression-genes.tsv does."""
    return {"entrez_gene_id", "symbol"} <= {plain(cell) for cell in peek.header}


def recognise(
    source: RawSource, peeks: Sequence[Peek], found: labels.Labels | None, wanted: str | None, problems: list
) -> Layout:
    """The layout of the download.

    Args:
        source: the download.
        peeks: from `survey`.
        found: the labels, which tell samples from genes where nothing else does.
        wanted: name of the table, None for the only one there is.
        problems: gets the files that are left out.

    Raises:
        UserError: there is no table, several could be meant, or its rows and columns cannot be told apart.
    """
    candidates = _named(peeks, wanted) if wanted is not None else [peek for peek in peeks if is_expression(peek)]
    if not candidates:
        reason = packed_hint(source.names())
        if problems:
            name, text = problems[0]
            reason = f" ({name}: {text.removeprefix(name).lstrip(', ').rstrip('.')})"
        raise UserError(
            f"{source.path} holds no table of gene expression{reason}: give the folder with the table as --source."
        )
    symbols = _only([peek.name for peek in peeks if is_symbols(peek)])
    if all(map(is_firehose, candidates)):
        return Layout("firehose", _firehose_tables(candidates, problems))
    cohorts = _cohorts(candidates) or _folders(candidates)
    if cohorts and (len(candidates) > 1 or found is None):
        tables = tuple(_table(peek, found, cohort) for peek, cohort in zip(candidates, cohorts, strict=True))
        _check_orientation(tables)
        if found is not None and not _cohorts(candidates):  # folders of any names, beside a file of labels
            tables = tuple(dataclasses.replace(table, label="") for table in tables)
            return Layout("tables_in_folders", tables, symbols=symbols)
        return Layout("cohort_tables", _without_unions(tables, problems), symbols=symbols)
    if len(candidates) > 1:
        names = list_briefly((peek.name for peek in candidates), 6)
        raise UserError(f"several tables could be meant ({names}): choose with --set table=NAME.")
    return _single(candidates[0], found, symbols)


def label_themselves(peeks: Sequence[Peek], wanted: str | None) -> bool:
    """Whether the tables say by their names or headers which tumour types they hold, so that no labels are needed."""
    candidates = [peek for peek in peeks if is_expression(peek) and wanted in (None, peek.name, peek.base)]
    if len(candidates) == 1 and not candidates[0].is_parquet and _class_codes(candidates[0], None):
        return True
    return len(candidates) > 1 and (all(map(is_firehose, candidates)) or bool(_cohorts(candidates)))


def _only(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ""


def _named(peeks: Sequence[Peek], wanted: str) -> list[Peek]:
    found = [peek for peek in peeks if peek.name == wanted]
    found = found or [peek for peek in peeks if peek.base == wanted]
    if not found or (len(found) > 1 and wanted in (peek.name for peek in found)):
        tables = list_briefly((peek.name for peek in peeks if is_expression(peek)), 6)
        raise UserError(f"--set table={wanted} names no table that can be read: it has {tables or 'none'}.")
    return found


def _cohorts(candidates: Sequence[Peek]) -> list[str]:
    """The tumour types of tables that are named alike and lie in folders, or begin with names, of one type each."""
    by_folder = [barcodes.cohort_in(peek.folder) for peek in candidates]
    by_name = [barcodes.cohort_in(peek.base) for peek in candidates]
    alike = {peek.base.upper().replace(code, "") for peek, code in zip(candidates, by_name, strict=True)}
    for codes in (by_folder, by_name if len(candidates) > 1 else []):
        if codes and all(codes) and len(set(codes)) == len(codes) and len(alike) == 1:
            return [] if any(peek.is_parquet for peek in candidates) else codes
    return []


def _folders(candidates: Sequence[Peek]) -> list[str]:
    """The classes of tables of one name that lie in a folder each, whatever the folders are called."""
    folders = [peek.folder for peek in candidates]
    alone = len(candidates) < 2 or len(set(folders)) < len(folders) or len({peek.base for peek in candidates}) > 1
    return [] if alone or "" in folders or any(peek.is_parquet for peek in candidates) else folders


def _firehose_tables(peeks: Sequence[Peek], problems: list) -> tuple[Table, ...]:
    tables = []
    for peek in peeks:
        cohort = _COHORT.match(peek.base) or _COHORT.match(peek.folder)
        if not cohort:
            raise UserError(f"{peek.name}: the name does not begin with the cohort; rename it to COHORT.{peek.base}.")
        table = Table(peek.name, peek.delimiter, peek.header[0], peek.header[1:], True, header_lines=2)
        tables.append(dataclasses.replace(table, label=barcodes.class_name(cohort[1])))
    return _without_unions(tables, problems)


def _check_orientation(tables: Sequence[Table]) -> None:
    for table in tables:
        if table.genes_in_rows != tables[0].genes_in_rows:
            raise UserError(
                f"{tables[0].name} has {tables[0].row_kind}s in rows and {table.name} {table.row_kind}s: transpose "
                "one, or choose a table with --set table=NAME."
            )


def _without_unions(tables: Sequence[Table], problems: list) -> tuple[Table, ...]:
    """Leaves out cohorts that only repeat the samples of others that are there."""
    present = {table.label for table in tables}
    kept = []
    for table in tables:
        parts = barcodes.UNIONS.get(table.label, ())
        if parts and present.issuperset(parts):
            problems.append((table.name, f"{table.label} repeats the samples of {' and '.join(parts)}"))
        else:
            kept.append(table)
    return tuple(kept)


def _single(peek: Peek, found: labels.Labels | None, symbols: str) -> Layout:
    if peek.is_parquet:
        return Layout("parquet", (peek,), symbols=symbols)
    codes = _class_codes(peek, found)
    if codes:
        table = Table(peek.name, peek.delimiter, peek.header[0], peek.header[1:], genes_in_rows=True)
        counts: dict[str, int] = {}
        ids = []
        for code in codes:
            counts[code] = counts.get(code, 0) + 1
            ids.append(f"{code}-{counts[code]:04d}")
        return Layout("class_header", (dataclasses.replace(table, columns=tuple(ids)),), tuple(ids), codes)
    table = _table(peek, found)
    return Layout(_kind(table, peek), (table,), symbols=symbols)


def _class_codes(peek: Peek, found: labels.Labels | None) -> tuple[str, ...]:
    """The classes above the columns of the study's table, or nothing for another table."""
    if plain(peek.header[0]) not in _GENE_WORDS:
        return ()
    matches = [_CODE.fullmatch(cell) for cell in peek.header[1:]]
    if not all(matches):
        return ()
    codes = [barcodes.class_name(match[1]) for match in matches]
    repeats = len(set(peek.header[1:])) <= len(codes) // 2
    known = all(code in barcodes.COHORTS for code in codes)
    return tuple(codes) if known or (repeats and found is None) else ()


def _kind(table: Table, peek: Peek) -> str:
    if table.blank_is_missing:
        return "xena"
    if table.genes_in_rows and barcodes.canonical(table.columns[0]) and _GENE_KEY.fullmatch(peek.lines[1][0]):
        return "pancanatlas"
    if not table.genes_in_rows and all(name.isdecimal() for name in table.columns):
        return "cognoma"
    return "genes_by_samples" if table.genes_in_rows else "samples_by_genes"


def _table(peek: Peek, found: labels.Labels | None, label: str = "") -> Table:
    """A table with one header line.

    Raises:
        UserError: a column has no name, or rows and columns cannot be told apart.
    """
    if peek.is_workbook:
        raise UserError(f"{peek.name} is a workbook, which is read for labels only: save the table as CSV.")
    if len(peek.lines) < 2:
        raise UserError(f"{peek.name} has a header but no rows: restore it from the download.")
    shifted = _is_shifted(peek)
    columns = peek.header if shifted else peek.header[1:]
    first = "" if shifted else peek.header[0]
    table = Table(peek.name, peek.delimiter, first, columns, True, shifted=shifted, label=label)
    for index, column in enumerate(columns):
        if not column:
            raise UserError(f"{table.header_place(index)}: the column has no name; write one or remove the column.")
    genes_in_rows = orientation(peek.name, first, columns, [line[0] for line in peek.lines[1:]], found)
    xena = genes_in_rows and plain(first) == "sample" and barcodes.canonical(columns[0]) is not None
    return dataclasses.replace(table, genes_in_rows=genes_in_rows, blank_is_missing=xena)


def _is_shifted(peek: Peek) -> bool:
    """Whether the header is one cell short at its beginning, and not each row one delimiter too long at its end."""
    words = (*_GENE_WORDS, *_SAMPLE_WORDS, "")
    return len(peek.lines[1]) == len(peek.header) + 1 and plain(peek.header[0]) not in words and peek.lines[1][-1] != ""


def orientation(
    name: str, first: str, columns: Sequence[str], rows: Sequence[str], found: labels.Labels | None
) -> bool:
    """Whether genes are in rows: by barcodes, `SYMBOL|ENTREZ`, names that the labels know, or the first cell.

    Raises:
        UserError: nothing tells.
    """
    tests = [lambda text: barcodes.canonical(text) is not None]
    if found is not None:
        tests.append(found.knows)
    for is_sample in tests:
        above, beside = sum(map(is_sample, columns)), sum(map(is_sample, rows))
        if bool(above) != bool(beside):
            return above > 0
    if any(map(_GENE_KEY.fullmatch, rows)) != any(map(_GENE_KEY.fullmatch, columns)):
        return any(map(_GENE_KEY.fullmatch, rows))
    if plain(first) in _GENE_WORDS:
        return True
    if plain(first) in _SAMPLE_WORDS:
        return False
    raise UserError(
        f"{name}, line 1: nothing tells whether rows are genes or samples (first cell {printable(first, 40)!r}); write "
        "gene_id or sample_id into the first cell, or add a file of labels that knows the samples."
    )
