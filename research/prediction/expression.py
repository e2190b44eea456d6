"""How does a table of gene expression become the vectors that a run's network takes?

The table is recognised and parsed as `prepare` does it, without labels: genes in rows or columns, text, packed text or
Parquet, on any scale. Genes are joined by name. A gene that the table lacks, or a value that is missing, is filled with
the gene's mean over the run's training samples; how many were filled is said. Rows and columns are told apart by the
genes of the run.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import read_json
from input_pipeline.expression import genes as gene_names
from input_pipeline.expression import matrix, parquet, parsing, scale, staging, tables
from input_pipeline.raw import printable
from input_pipeline.studies.manifest import list_briefly
from research.prediction import files
from research.prediction.inputs import Inputs
from research.training import pictures
from research.training.build import Trial

_CHUNK = 256  # training vectors at once
_REPORT = "ingest_report.json"


@dataclasses.dataclass(frozen=True)
class _Genes:
    """Stands for a file of labels where the layout of a table is recognised: what it knows are the run's genes."""

    known: frozenset[str]

    def knows(self, name: str) -> bool:
        """Whether a name is that of a gene of the run."""
        return name in self.known


def read(path: pathlib.Path, trial: Trial, given: str, scratch: pathlib.Path) -> Inputs:
    """The samples of a table, in its order, with a value for each gene of the run.

    Args:
      path: a table, or a folder or .zip with a table and what names its genes.
      trial: of a run on expression.
      given: the scale of the values, one of `scale.SCALES`, or "auto".
      scratch: an empty folder; large values stay mapped from it.

    Raises:
      UserError: the table cannot be read, lacks more than half of the genes, or is on a scale that cannot become the
        run's.
    """
    packed = path.is_dir() or path.suffix.lower() == ".zip"
    source = raw.open_source(path) if packed else files.open_named(path, "--table")
    problems: list[tuple[str, str]] = []
    layout, stages = _staged(source, path, trial, problems, scratch)
    symbols = gene_names.read_symbols(source, layout.symbols) if layout.symbols else {}
    names, index = gene_names.unite(stages, symbols, layout.kind == "xena", problems)
    found = _match(trial.dataset.genes, names)
    total, missing = len(found), int((found < 0).sum())
    if 2 * missing > total:
        lost = list_briefly(gene for gene, place in zip(trial.dataset.genes, found, strict=True) if place < 0)
        raise UserError(
            f"{path} has only {total - missing} of the {total} genes of the run (not {lost}); give a table that names "
            "its genes as the run's data did."
        )
    ids = [name for stage in stages for name in _samples(stage)]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{path} has the sample {printable(twice, 60)} twice; rename or remove one.")
    used, convert = _conversion(stages, given, _scale_of(trial), path)
    whole = matrix.Matrix(stages, index, [[row] for row in range(len(ids))], used)
    values, filled = _values(whole, found, convert, functools.cache(lambda: _means(trial)), scratch)
    notes = [f"Scale: {used if given != 'auto' else f'{used} (detected)'}, as the run has {_scale_of(trial)}."]
    if missing:
        notes.append(f"{missing} of {total} genes are not in {path}; each got its mean over the training samples.")
    if filled:
        notes.append(f"{filled} missing values got their gene's mean over the training samples.")
    genes = trial.dataset.genes
    return Inputs(ids, [str(path)] * len(ids), vectors=values, genes=genes, notes=tuple(notes), unit="sample")


def _staged(
    source: raw.RawSource, path: pathlib.Path, trial: Trial, problems: list, scratch: pathlib.Path
) -> tuple[tables.Layout, list[staging.Stage]]:
    """The layout and the parsed tables, all samples of them."""
    genes = trial.dataset.genes
    known = _Genes(frozenset(genes) | {gene_names.split(gene)[0] for gene in genes})
    peeks = tables.survey(source, problems)
    if not any(map(tables.is_expression, peeks)):
        reason = f" ({problems[0][1].rstrip('.')})" if problems else ""
        raise UserError(f"{path} is no table of gene expression{reason}; give one of samples and genes as --table.")
    layout = tables.recognise(source, peeks, known, None, problems)
    if layout.kind == "parquet":
        found = parquet.open_table(source, layout.tables[0].name, known, scratch)
        layout = dataclasses.replace(layout, tables=(found,))
    stages = []
    for number, table in enumerate(layout.tables):
        above = any(known.knows(gene_names.split(name)[0]) for name in table.columns)
        table = dataclasses.replace(table, genes_in_rows=not above)
        size, file = source.size(table.name), scratch / f"stage-{number}.f32"
        of_parquet = isinstance(table, parquet.ParquetTable)
        blocks = parquet.blocks(table, size) if of_parquet else parsing.blocks(source, table)
        everything = np.arange(len(table.columns))
        stages.append(staging.write(table, blocks, size, file, everything, lambda name, line: True))
    return layout, stages


def _samples(stage: staging.Stage) -> tuple[str, ...]:
    return stage.table.columns if stage.table.genes_in_rows else stage.rows


def _match(wanted: tuple[str, ...], names: list[str]) -> np.ndarray:
    """For each of the run's genes its place among a table's `names`, -1 where it is not there.

    By the whole name, then by the Entrez number, then by a symbol that only one gene of the table has.
    """
    by_name = {name: place for place, name in enumerate(names)}
    parts = [gene_names.split(name) for name in names]
    by_number = {number: place for place, (_, number) in enumerate(parts) if number}
    symbols: dict[str, int] = {}
    for place, (symbol, _) in enumerate(parts):
        symbols[symbol] = -1 if symbol in symbols or symbol == gene_names.UNKNOWN else place
    found = []
    for gene in wanted:
        symbol, number = gene_names.split(gene)
        place = by_name.get(gene, by_number.get(number, -1) if number else -1)
        if place < 0 and not number:
            place = symbols.get(symbol, -1)
        elif place < 0 and symbol in by_name:  # the table has the symbol without its number
            place = by_name[symbol]
        found.append(place)
    return np.array(found, np.int64)


def _scale_of(trial: Trial) -> str:
    """The scale of the run's vectors, from the report of `prepare`."""
    report = trial.dataset.directory / _REPORT
    try:
        used = read_json(report)["notes"]["scale"]["used"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{report} does not say on which scale the run's data are; prepare them again.") from error
    return "log2p1" if used == "linear" else used  # `prepare` took the logarithm


def _conversion(
    stages: list[staging.Stage], given: str, wanted: str, path: pathlib.Path
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The scale of the tables, and what brings values that `Matrix` gives on it to the wanted one.

    Raises:
      UserError: tables of several scales, or one that cannot become the wanted one.
    """
    detected, negative = [], False
    for stage in stages:
        found = scale.measure(staging.row_blocks([stage]))
        negative |= found.minimum < 0  # no log2(x + 1) of a count is
        detected.append(scale.detect(found, found.minimum < 0 and matrix.is_standardised(stage)))
        if given != "auto":
            scale.check(given, found, stage.table.name)
    used = detected[0] if given == "auto" else given
    if given == "auto" and len(set(detected)) > 1:
        raise UserError(f"the tables of {path} are on several scales ({', '.join(detected)}); say which with --scale.")
    logarithmic = "log2p1" if used == "linear" else used
    if logarithmic == wanted:
        return used, lambda values: values
    if "zscore" in (used, wanted) or (given == "auto" and used == "log2p1" and negative):
        raise UserError(
            f"{path} looks {used}, but the run was trained on {wanted}, which cannot be made of it; give a table on "
            "that scale, or say with --scale which one it is."
        )
    before, after = (1.0 if name == "log2p1" else 0.001 for name in (logarithmic, wanted))

    def convert(values: np.ndarray) -> np.ndarray:
        linear = np.maximum(np.exp2(values.astype(np.float64)) - before, 0.0)
        return np.log2(linear + after).astype(np.float32)

    return used, convert


def _values(
    whole: matrix.Matrix, found: np.ndarray, convert: Callable, means: Callable[[], np.ndarray], scratch: pathlib.Path
) -> tuple[np.ndarray, int]:
    """Values float32 `[N, G]` of the genes at `found`, a memory map when large, and how many gaps were filled."""
    shape, filled = (len(whole.members), len(found)), 0
    large = 4 * shape[0] * shape[1] >= matrix.MAPPED_BYTES
    values = np.memmap(scratch / "values.f32", np.float32, "w+", shape=shape) if large else np.empty(shape, np.float32)
    known, absent = np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
    if len(absent):
        values[:, absent] = means()[absent]
    for place, block in whole.blocks(found[known], "genes joined (blocks)"):
        gaps = np.isnan(block)
        block = convert(block)
        if gaps.any():
            filled += int(gaps.sum())
            block = np.where(gaps, means()[known[place]], block)
        values[:, known[place]] = block
    return values, filled


def _means(trial: Trial) -> np.ndarray:
    """The mean of each gene over the training samples, float32 `[G]`."""
    rows, total = trial.train_indices, np.zeros(len(trial.dataset.genes))
    for start in range(0, len(rows), _CHUNK):
        total += pictures.vectors(trial, rows[start : start + _CHUNK]).sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
