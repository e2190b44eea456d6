"""In which order do genes lie along the genome, by a table that the user gives?

The table is a CSV or TSV file (which of the two is seen in its first line) with a header and at least the columns

    gene         the name as in the data set; for `SYMBOL|ENTREZ` there the symbol alone is enough
    chromosome   1 ... 22, X, Y, MT, with or without "chr" in front, M for MT; names of other sequences, such as
                 GL000194.1, come behind MT
    start        first base, a whole number of at least 0

in any order, among others if need be. A gene may be listed again at the same place only. Genes of the table that the
data set does not have are ignored; genes of the data set that the table does not have come last, in their order. Such a
table is, for example, an export of Ensembl BioMart with the columns renamed.
"""

import csv
import os
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError

COLUMNS = ("gene", "chromosome", "start")
CHROMOSOMES = (*(str(number) for number in range(1, 23)), "X", "Y", "MT")
_RANK = {name: rank for rank, name in enumerate(CHROMOSOMES)}

# Rank of the chromosome, name of a sequence that is none, first base.
Place = tuple[int, str, int]


def order(genes: Sequence[str], path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Sorts genes by chromosome, first base and name.

    Args:
      genes: G names as in the data set.
      path: of the table.

    Returns:
      The genes' numbers in their order, int64 `[G]`, and how many of them the table does not have.

    Raises:
      UserError: the table is missing, is wrong (the line is named), or has none of the genes.
    """
    if not str(path):
        raise UserError(
            "the layout 'chromosome' needs a table of gene positions; give a CSV file with the columns "
            f"{', '.join(COLUMNS)}."
        )
    places = read_positions(path)
    found = [places.get(gene, places.get(gene.partition("|")[0])) for gene in genes]
    missing = sum(place is None for place in found)
    if missing == len(genes):
        raise UserError(
            f"{path} has none of the {len(genes)} genes (the first is {genes[0]!r}); give a table with the names of "
            "the data set."
        )
    last: Place = (len(CHROMOSOMES) + 1, "", 0)
    keys = [
        (place, gene, 0) if place else (last, "", number)
        for number, (place, gene) in enumerate(zip(found, genes, strict=True))
    ]
    return np.array(sorted(range(len(genes)), key=keys.__getitem__)), missing


def read_positions(path: str | os.PathLike) -> dict[str, Place]:
    """The place of each gene of a table; places sort along the genome.

    Raises:
      UserError: the file is missing or is no such table; the line is named.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            reader = csv.reader([header, *file], delimiter="\t" if "\t" in header else ",")
            return _parse(reader, path)
    except FileNotFoundError:
        raise UserError(f"there is no table of gene positions {path}; give the path of a CSV or TSV file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no text table: {error}; save it as CSV or TSV in UTF-8.") from None


def _parse(reader, path) -> dict[str, Place]:
    names = [name.strip().lower() for name in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in names]:
        raise UserError(
            f"{path}, line 1: there is no column {', '.join(missing)}; name the columns {', '.join(COLUMNS)}."
        )
    columns = [names.index(name) for name in COLUMNS]
    places: dict[str, Place] = {}
    lines: dict[str, int] = {}
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(names):
            raise UserError(f"{where}: {len(row)} cells under {len(names)} columns; mend the line.")
        gene, chromosome, start = (row[column].strip() for column in columns)
        if not gene:
            raise UserError(f"{where}: the gene has no name; give one or delete the line.")
        place = _place(chromosome, start, where)
        if places.setdefault(gene, place) != place:
            raise UserError(f"{where}: {gene} lies elsewhere in line {lines[gene]}; keep one of the two lines.")
        lines.setdefault(gene, reader.line_num)
    if not places:
        raise UserError(f"{path} has no gene below its header; give a table with one gene a line.")
    return places


def _place(chromosome: str, start: str, where: str) -> Place:
    name = chromosome[3:] if chromosome[:3].lower() == "chr" else chromosome
    name = name.upper()
    name = "MT" if name == "M" else name
    if name not in _RANK and (name.isdecimal() or not any(letter.isalnum() for letter in name)):
        raise UserError(f"{where}: there is no chromosome {chromosome!r}; choose of 1 ... 22, X, Y and MT.")
    if not (start.isascii() and start.isdigit()):
        raise UserError(f"{where}: the start {start!r} is no whole number; give the first base of the gene.")
    rank = _RANK.get(name, len(CHROMOSOMES))
    return rank, "" if name in _RANK else name, int(start)
