"""How can the gene expression study run before its 1.9 GB are downloaded? With simulated counts in the same layout.

The files are those of the PanCanAtlas: genes × samples with rows `SYMBOL|ENTREZ` (the first ones `?|ENTREZ`, one symbol
twice), 28-character barcodes, linear values with missing cells and small negatives; and the tumour type of patients.

Counts are negative binomial (Robinson and Smyth, Biostatistics 9, 2008), of mean m and variance m + φm², where

    log2 m[s, g] = baseline[g] + library[s] + batch[plate of s, g] + Σ_k loading[g, k] · activity[s, k]

Each tumour type has a **programme** k: `PROGRAMME` genes that rise and fall together, with an activity of N(0, 1) in
samples of other types and N(`SHIFT`, 1) in its own, so that types overlap and no method can tell all samples apart:
multinomial logistic regression fitted to the training patients of the default sample scores 87 to 92 % on the test
patients. As many genes again belong to modules that vary more and say nothing of the type (as proliferation, stroma and
immune cells do). A patient's samples resemble each other; normal tissue has half of the shift and a still cell cycle.

What was planted is written beside the table: `programmes.csv` (gene, type), by which the precision of attributions is
measured, and `positions.csv` (gene, chromosome, start, strand) for layouts by chromosome; the places mean nothing.
"""

import collections
import dataclasses
import os
import pathlib

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.simulate import build_folder

TABLE = "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv"
LABELS = "TCGA-CDR-SupplementalTableS1.tsv"

# Raise it with every change that changes a value: another version's folder is not mistaken for this one.
VERSION = 1

TYPES = {"BRCA": 22, "COAD": 10, "GBM": 6, "KIRC": 14, "LUAD": 16, "PRAD": 12, "THCA": 12, "UCEC": 8}
"""Tumour types and their shares of the patients, in percent."""

SAMPLES = 600
GENES = 1_000
LEAST_SAMPLES, MOST_SAMPLES = 6 * len(TYPES), 20_000
LEAST_GENES, MOST_GENES = 500, 30_000

PROGRAMME = 25  # genes
SHIFT = 3.5  # of the activity of a type's own programme, in standard deviations
MODULES = 5  # of genes that vary together in all types; the first is the cell cycle
LOADING = (0.3, 0.7)  # log2 units for each unit of activity
MODULE_LOADING = (0.4, 1.0)
RESEMBLANCE = 0.8  # correlation of the activities of two samples of one patient
BATCH = 0.25  # deviation of a plate's effect on a gene, log2
PLATES = 6
DISPERSION = (0.05, 0.35)  # φ
LIBRARY = 0.4  # deviation of the size of a library, log2
UNKNOWN = 8  # rows without a symbol
MISSING = 0.002  # of all cells
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_UPPER_QUARTILE = 1000.0  # to which the values of each sample are scaled


@dataclasses.dataclass(frozen=True)
class Genes:
    """The genes of the table, in the order of its rows.

    Attributes:
        rows: G names `SYMBOL|ENTREZ`.
        names: G names as data sets have them: the symbol, or the whole row where the symbol is unknown or repeated.
        types: G tumour types whose programme the gene belongs to, "" for all others.
        baseline: float64 `[G]`, log2.
        dispersion: float64 `[G]`, φ.
        loadings: float64 `[G, types + modules]`.
    """

    rows: list[str]
    names: list[str]
    types: list[str]
    baseline: np.ndarray
    dispersion: np.ndarray
    loadings: np.ndarray


@dataclasses.dataclass(frozen=True)
class Samples:
    """The columns of the table: N barcodes, the type of each sample, its plate, its activities `[types + modules]`."""

    barcodes: list[str]
    types: list[str]
    plates: np.ndarray
    activities: np.ndarray


def draw_genes(count: int, rng: np.random.Generator) -> Genes:
    """Draws the names of `count` genes, their baselines and what they belong to."""
    symbols: set[str] = set()
    while len(symbols) < count - UNKNOWN - 1:
        # A digit in each: no symbol reads as a missing value ("NAN") or as a number.
        symbols.add("".join(rng.choice(_LETTERS, rng.integers(3, 5))) + str(rng.integers(1, 30)))
    known = sorted(symbols)
    known.insert(len(known) // 2, known[len(known) // 2])
    entrez = rng.choice(np.arange(100, 100_000_000), count, replace=False)
    all_symbols = ["?"] * UNKNOWN + known
    rows = [f"{symbol}|{number}" for symbol, number in zip(all_symbols, entrez, strict=True)]
    repeats = collections.Counter(all_symbols)
    names = [row if repeats[symbol] > 1 else symbol for symbol, row in zip(all_symbols, rows, strict=True)]

    unique = [place for place, symbol in enumerate(all_symbols) if repeats[symbol] == 1]
    places = iter(rng.permutation(unique))
    types, loadings = [""] * count, np.zeros((count, len(TYPES) + MODULES))
    baseline = np.where(rng.random(count) < 0.08, 0.0, rng.normal(7.0, 2.2, count))
    for column in range(loadings.shape[1]):
        typed = column < len(TYPES)
        size = PROGRAMME if typed else PROGRAMME * len(TYPES) // MODULES
        for _ in range(size):
            place = int(next(places))
            types[place] = list(TYPES)[column] if typed else ""
            loadings[place, column] = rng.uniform(*(LOADING if typed else MODULE_LOADING))
            baseline[place] = rng.normal(8.0, 1.5)
    return Genes(rows, names, types, baseline, rng.uniform(*DISPERSION, count), loadings)


def _barcode(patient: str, kind: str, plate: int, number: int) -> str:
    """28 characters: project-site-participant-sample and vial-portion and analyte-plate-centre."""
    return f"{patient}-{kind}-{11 + number % 3}R-A{100 + plate:03d}-07"


def draw_samples(count: int, rng: np.random.Generator) -> Samples:
    """Draws `count` samples of patients, in random order.

    Of a hundred patients about six have normal tissue (11) beside the tumour (01), five a metastasis (06), and one a
    second aliquot of the tumour. A plate holds samples of all types.
    """
    shares = np.array(list(TYPES.values()), np.float64)
    names = list(TYPES)
    barcodes, types, plates, activities = [], [], [], []
    patient = 0
    while len(barcodes) < count:
        # The first patients are of all types in turn, so that even a small sample has some of each.
        drawn = int(rng.choice(len(names), p=shares / shares.sum()))
        k = patient % len(names) if patient < 4 * len(names) else drawn
        site, person = f"{_LETTERS[k]}{_LETTERS[rng.integers(3)]}", f"A{patient:03X}"
        own = rng.normal(size=len(names) + MODULES)
        kinds = [["01A"], ["01A", "11A"], ["01A", "06A"], ["01A", "01A"]]
        for number, kind in enumerate(kinds[rng.choice(4, p=[0.88, 0.06, 0.05, 0.01])]):
            plate = (int(rng.integers(PLATES)) + number) % PLATES
            fresh = rng.normal(size=own.size)
            activity = np.sqrt(RESEMBLANCE) * own + np.sqrt(1 - RESEMBLANCE) * fresh
            activity[k] += SHIFT * (0.5 if kind == "11A" else 1.0)
            activity[len(names)] -= 3.0 * (kind == "11A")
            barcodes.append(_barcode(f"TCGA-{site}-{person}", kind, plate, number))
            types.append(names[k])
            plates.append(plate)
            activities.append(activity)
        patient += 1
    order = rng.permutation(count)
    return Samples(
        [barcodes[i] for i in order], [types[i] for i in order], np.array(plates)[order], np.array(activities)[order]
    )


def draw_values(genes: Genes, samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """Values as the table has them, float64 `[G, N]`: linear, upper-quartile normalised, NaN where missing."""
    shape = len(genes.rows), len(samples.barcodes)
    batch = rng.normal(0.0, BATCH, (shape[0], PLATES))[:, samples.plates]
    library = rng.normal(0.0, LIBRARY, shape[1])
    log_mean = genes.baseline[:, None] + library + batch + genes.loadings @ samples.activities.T
    size = 1.0 / genes.dispersion[:, None]
    counts = rng.negative_binomial(size, size / (size + np.exp2(log_mean)), shape)
    values = counts * (_UPPER_QUARTILE / np.quantile(counts, 0.75, axis=0))
    # Adjusting for batches moves zeros to both sides of zero.
    values += np.where(counts == 0, rng.normal(0.0, 0.3, shape), 0.0)
    values[rng.random(shape) < MISSING] = np.nan
    return values


def _write_table(path: pathlib.Path, genes: Genes, samples: Samples, values: np.ndarray) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(["gene_id", *samples.barcodes]) + "\n")
        for name, row in zip(genes.rows, values, strict=True):
            cells = ("NA" if value != value else f"{value:.4f}" for value in row.tolist())
            file.write("\t".join([name, *cells]) + "\n")


def _write_rows(path: pathlib.Path, separator: str, rows: list[tuple]) -> None:
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows), "utf-8")


def _positions(genes: Genes, rng: np.random.Generator) -> list[tuple]:
    """Rows (gene, chromosome, start, strand), in the order of the genes."""
    chromosomes = [f"chr{name}" for name in (*range(1, 23), "X", "Y")]
    lengths = np.linspace(2.5e8, 5e7, len(chromosomes))
    drawn = rng.choice(len(chromosomes), len(genes.names), p=lengths / lengths.sum())
    starts = rng.integers(10_000, lengths[drawn]).tolist()
    strands = rng.choice(["+", "-"], len(drawn)).tolist()
    return list(zip(genes.names, [chromosomes[k] for k in drawn], starts, strands, strict=True))


def cancer_genes(
    out_dir: str | os.PathLike,
    num_train: int = SAMPLES,
    num_test: int = 0,
    size: int = 0,
    seed: int = 0,
    workers: int | None = None,
    num_genes: int = GENES,
) -> pathlib.Path:
    """Writes simulated raw files of the gene expression study, in the layout of the PanCanAtlas download.

    The table (`TABLE`), the tumour type of each patient (`LABELS`), `programmes.csv`, `positions.csv` and
    `SIMULATED.txt`. The same arguments give the same bytes with the same numpy. The folder appears when it is complete;
    one that already holds this very simulation is kept.

    Args:
        out_dir: the folder to write; absent, empty, or holding the same simulation.
        num_train, num_test: their sum is the number of samples; the download has no test part of its own.
        size, workers: what simulations of images take; a table has no pixels and is written at once.
        seed: of everything drawn.
        num_genes: rows of the table.

    Returns:
        The folder, absolute.

    Raises:
        UserError: if a number is out of range or the folder holds something else.
    """
    count = num_train + num_test
    if num_train < 0 or num_test < 0 or not LEAST_SAMPLES <= count <= MOST_SAMPLES:
        raise UserError(
            f"{num_train} + {num_test} samples cannot be simulated; choose {LEAST_SAMPLES} to {MOST_SAMPLES} in all."
        )
    if not LEAST_GENES <= num_genes <= MOST_GENES:
        raise UserError(f"{num_genes} genes cannot be simulated; choose {LEAST_GENES} to {MOST_GENES}.")
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; choose 0 or more.")

    def fill(folder: pathlib.Path) -> None:
        streams = [np.random.default_rng([seed, part]) for part in range(4)]
        genes, samples = draw_genes(num_genes, streams[0]), draw_samples(count, streams[1])
        _write_table(folder / TABLE, genes, samples, draw_values(genes, samples, streams[2]))
        patients = {barcode[:12]: kind for barcode, kind in zip(samples.barcodes, samples.types, strict=True)}
        _write_rows(folder / LABELS, "\t", [("bcr_patient_barcode", "type"), *sorted(patients.items())])
        planted = sorted((kind, name) for name, kind in zip(genes.names, genes.types, strict=True) if kind)
        _write_rows(folder / "programmes.csv", ",", [("gene", "type"), *((name, kind) for kind, name in planted)])
        # Mostly words, so that it is not taken for a second table of expression.
        header = ("gene", "chromosome", "start", "strand")
        _write_rows(folder / "positions.csv", ",", [header, *_positions(genes, streams[3])])

    marker = (
        "The expression in this folder is simulated; no tissue has been sequenced. Train and evaluate with it "
        "to try the code, never to learn about genes.\n"
        f"study=cancer_genes samples={count} genes={num_genes} seed={seed} version={VERSION}\n"
    )
    return build_folder(out_dir, marker, fill)
