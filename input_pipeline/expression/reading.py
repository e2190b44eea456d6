"""How does a download of gene expression, in any of the public layouts, become one labelled matrix?

    files ── peeking ──▶ labels, tables (which layout?) ── parsing ──▶ staging (float32 on disk, rows as in the text)
                                                                          │
        samples (tumours? labels? aliquots?), genes (names, tables united), scale (detected) ◀┘
                                                                          │
        matrix (log2, missing values) ── filters ──▶ float32 [samples, genes], a memory map when large

The options are those of `input_pipeline.expression.options.Settings`, given as `--set key=value`. Memory peaks a
little above the size of the final matrix (1.1 GiB for 20,531 genes × 11,069 samples), the scratch folder takes twice
that. The same input gives the same result, whatever the sizes of the blocks in between.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.expression import (
    Expression,
    filters,
    genes,
    labels,
    matrix,
    parquet,
    parsing,
    samples,
    scale,
    staging,
    tables,
)
from input_pipeline.expression.options import Settings, parse
from input_pipeline.raw import RawSource

_LABEL_FILES = "TCGA-CDR-SupplementalTableS1.xlsx, merged_sample_quality_annotations.tsv or a table of sample and label"


def read(source: RawSource, options: Mapping[str, str], scratch: pathlib.Path) -> Expression:
    """Reads samples, genes, labels and values of a download.

    Args:
        source: a folder or .zip with the table or tables, and the file of labels where the layout needs one.
        options: see `options.Settings`.
        scratch: an existing folder for temporary files; the values stay mapped from it when they are large.

    Raises:
        UserError: one sentence that names the file, the line and the column of what is wrong, and the remedy.
    """
    settings = parse(options)
    problems: list[tuple[str, str]] = []
    layout, found = _recognise(source, settings, problems, scratch)
    wanted = None if settings.genes is None else genes.read_list(source, settings.genes)
    symbols = genes.read_symbols(source, layout.symbols) if layout.symbols else {}
    chooser = samples.Chooser(settings.samples, found, dict(zip(layout.ids, layout.codes, strict=True)))
    paths = [scratch / f"stage-{index}.f32" for index in range(len(layout.tables))]
    try:
        kept = [_choose_columns(table, chooser) for table in layout.tables]
        if layout.tables[0].genes_in_rows:  # all samples are known: refuse now what would be refused after minutes
            chooser.check()
            samples.merge_aliquots(chooser.samples, settings.aliquots, [])
        triples = zip(layout.tables, kept, paths, strict=True)
        stages = [_stage(source, table, columns, chooser, path) for table, columns, path in triples]
        chooser.check()
        problems.extend(chooser.problems)
        result = _assemble(settings, stages, chooser, _Names(symbols, layout.kind == "xena", wanted), problems, scratch)
        return dataclasses.replace(result, notes=_origin(layout, found) | result.notes)
    finally:
        for path in (*paths, scratch / parquet.COPY_NAME):
            path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Names:
    """What is known of the genes' names: symbols by Entrez number, whether a bare number has none, the user's list."""

    symbols: Mapping[str, str]
    numbers_lack_symbol: bool
    wanted: Sequence[str] | None


def _recognise(
    source: RawSource, settings: Settings, problems: list[tuple[str, str]], scratch: pathlib.Path
) -> tuple[tables.Layout, labels.Labels | None]:
    """The layout with all its tables opened, and the labels where they come from a file."""
    unread: list[tuple[str, str]] = []
    peeks = tables.survey(source, unread)
    for name in (settings.table, settings.labels):
        for problem in unread:
            if name is not None and name in (problem[0], problem[0].rpartition("/")[2]):
                raise UserError(problem[1])
    peek = None
    if settings.labels or not tables.label_themselves(peeks, settings.table):
        others = [peek for peek in peeks if not tables.is_expression(peek) and peek.name != settings.table]
        peek = labels.choose(peeks if settings.labels else others, settings.labels)
    found = labels.read(source, peek) if peek else None
    if settings.labels:
        peeks = [other for other in peeks if other is not peek]
    layout = tables.recognise(source, peeks, found, settings.table, unread)
    if layout.kind == "parquet":
        table = parquet.open_table(source, layout.tables[0].name, found, scratch)
        layout = dataclasses.replace(layout, tables=(table,))
    problems.extend(unread)
    if settings.labels:  # a file that is named outdoes the names of folders and columns
        unnamed = tuple(dataclasses.replace(table, label="") for table in layout.tables)
        layout = dataclasses.replace(layout, tables=unnamed, codes=("",) * len(layout.codes))
    elif layout.codes or any(table.label for table in layout.tables):
        found = None
    elif found is None:
        raise UserError(
            f"{source.path} has no file of labels beside {layout.tables[0].name}: put {_LABEL_FILES} there, or name "
            "one with --set labels=NAME."
        )
    return layout, found


def _origin(layout: tables.Layout, found: labels.Labels | None) -> dict:
    """What was read, for the ingest report."""
    kind = "columns of the table" if layout.codes else "cohort of the table"
    return {
        "layout": layout.kind,
        "tables": [table.name for table in layout.tables],
        "labels": found.notes if found else {"kind": kind},
    }


def _choose_columns(table: parsing.Table, chooser: samples.Chooser) -> np.ndarray:
    """Indices of the columns that are kept: all genes, or the samples that the chooser takes."""
    if not table.genes_in_rows:
        return np.arange(len(table.columns))
    return np.flatnonzero(
        [chooser.take(table, name, table.header_place(index)) for index, name in enumerate(table.columns)]
    )


def _stage(
    source: RawSource, table: parsing.Table, columns: np.ndarray, chooser: samples.Chooser, path: pathlib.Path
) -> staging.Stage:
    """Parses one table to disk, without the samples that the settings leave out."""

    def takes(name: str, line: int) -> bool:
        return table.genes_in_rows or chooser.take(table, name, f"{table.name}, line {line}")

    size = source.size(table.name)
    keep = columns if len(columns) < len(table.columns) else None
    if isinstance(table, parquet.ParquetTable):
        blocks = parquet.blocks(table, size, keep)
    else:
        blocks = parsing.blocks(source, table, keep)
    return staging.write(table, blocks, size, path, columns, takes)


def _scale(settings: Settings, stages: Sequence[staging.Stage]) -> tuple[str, dict]:
    """The scale of all tables, and how it was found.

    Raises:
        UserError: tables are on different scales, or cannot be on the given one.
    """
    ranges = [scale.measure(staging.row_blocks([stage])) for stage in stages]
    detected = [
        scale.detect(found, found.minimum < 0 and matrix.is_standardised(stage))
        for stage, found in zip(stages, ranges, strict=True)
    ]
    used = detected[0] if settings.scale == "auto" else settings.scale
    if settings.scale == "auto" and len(set(detected)) > 1:
        other = next(index for index, name in enumerate(detected) if name != detected[0])
        raise UserError(
            f"{stages[0].table.name} looks {detected[0]} and {stages[other].table.name} {detected[other]}: remove one, "
            "or give the scale of all with --set scale=NAME."
        )
    for stage, found in zip(stages, ranges, strict=True):
        scale.check(used, found, stage.table.name)
    known = [found for found in ranges if found.minimum <= found.maximum]
    notes = {
        "used": used,
        "detected": detected[0] if len(set(detected)) == 1 else detected,
        "given": settings.scale != "auto",
        "minimum": min((found.minimum for found in known), default=None),
        "maximum": max((found.maximum for found in known), default=None),
        "values below 0": sum(found.negative for found in ranges),
        "values": "clipped at 0, then log2(x + 1)" if used == "linear" else "as in the table",
    }
    return used, notes


def _assemble(
    settings: Settings,
    stages: Sequence[staging.Stage],
    chooser: samples.Chooser,
    known: _Names,
    problems: list[tuple[str, str]],
    scratch: pathlib.Path,
) -> Expression:
    """The result, from the staged tables; its notes begin with what happened after the staging."""
    ids, members = samples.merge_aliquots(chooser.samples, settings.aliquots, problems)
    names, index = genes.unite(stages, known.symbols, known.numbers_lack_symbol, problems)
    listed = None
    if known.wanted is not None:
        entrez = genes.entrez_numbers(stages[0], known.symbols, known.numbers_lack_symbol, index[0])
        listed, strangers = genes.listed(names, entrez, known.wanted)
        problems.extend((name, f"{settings.genes}: no gene of the table has this name") for name in strangers)
    used, scale_notes = _scale(settings, stages)
    whole = matrix.Matrix(stages, index, [[member.position for member in group] for group in members], used)
    statistics = matrix.statistics(whole, settings.missing)
    chosen, filter_notes = filters.choose(statistics, len(ids), listed, settings)
    problems.extend(_lost_genes(names, statistics, len(ids), settings.missing))
    values = matrix.fill_in(whole, chosen, settings.missing, scratch)
    merged = sum(len(group) > 1 for group in members)
    notes = {
        "scale": scale_notes,
        "samples": {"mode": settings.samples, **chooser.counts, "kept": len(ids)},
        "aliquots": {"mode": settings.aliquots, "measurements": len(chooser.samples), "averaged samples": merged},
        "genes": {"found": len(stages[0].genes), "in all tables": len(names), "kept": len(chosen)},
        "missing": {
            "mode": settings.missing,
            "values found": int(statistics.missing.sum()),
            "genes with missing values": int((statistics.missing > 0).sum()),
            "values filled in": int(statistics.missing[chosen].sum()),
        },
        "filters": filter_notes,
    }
    first = [group[0] for group in members]
    return Expression(
        genes=tuple(names[position] for position in chosen),
        ids=tuple(ids),
        patients=tuple(sample.patient for sample in first),
        labels=tuple(sample.label for sample in first),
        values=values,
        official_roles=tuple(sample.role for sample in first),
        problems=problems,
        notes=notes,
    )


def _lost_genes(
    names: Sequence[str], statistics: filters.Statistics, num_samples: int, missing: str
) -> list[tuple[str, str]]:
    """The genes that missing values cost."""
    lost = []
    for position in np.flatnonzero(statistics.missing):
        absent = int(statistics.missing[position])
        if absent == num_samples:
            lost.append((names[position], "no sample has a value of this gene"))
        elif missing == "drop":
            lost.append((f"{names[position]} ({absent} of {num_samples})", "values are missing (missing=drop)"))
    return lost
