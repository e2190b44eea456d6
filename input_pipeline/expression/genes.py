"""What is each gene called, which rows of several tables are the same gene, and which genes did the user list?"""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.expression.labels import read_all
from input_pipeline.expression.staging import Stage
from input_pipeline.raw import RawSource, Unreadable, printable
from input_pipeline.studies import csv_rows
from input_pipeline.studies.manifest import list_briefly

_KEY = re.compile(r"([^|]+)\|(\d+)")
_MAX_LIST_BYTES = 2**24
UNKNOWN = "?"
"""The symbol of genes that have none, in PanCanAtlas's own writing."""


def split(name: str) -> tuple[str, str]:
    """`SYMBOL|ENTREZ` to its two parts; any other name to itself and ""."""
    found = _KEY.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def read_symbols(source: RawSource, name: str) -> dict[str, str]:
    """Symbols of Entrez numbers from a table with the columns `entrez_gene_id` and `symbol`.

    Raises:
        UserError: see `csv_rows.read_rows`.
    """
    rows = csv_rows.read_rows(source, name, ["entrez_gene_id", "symbol"])
    return {row.cells["entrez_gene_id"]: row.cells["symbol"] for row in rows if row.cells["symbol"]}


def _identify(stage: Stage, symbols: Mapping[str, str], numbers_lack_symbol: bool) -> list[tuple[str, str]]:
    """Symbol and Entrez number ("" if unknown) of each gene of a table."""
    genes = []
    for name in stage.genes:
        symbol, entrez = split(name)
        if not entrez and symbol.isdecimal():
            if symbol in symbols:
                symbol, entrez = symbols[symbol], symbol
            elif numbers_lack_symbol:
                symbol, entrez = UNKNOWN, symbol
        genes.append((symbol, entrez))
    return genes


def _keys(stage: Stage, genes: Sequence[tuple[str, str]], problems: list[tuple[str, str]]) -> list[str]:
    """A unique key of each gene: the Entrez number where there is one, else the name, numbered when it repeats.

    Raises:
        UserError: an Entrez number occurs twice.
    """
    first: dict[str, int] = {}
    repeats: collections.Counter[str] = collections.Counter()
    keys = []
    for index, (symbol, entrez) in enumerate(genes):
        key = f"|{entrez}" if entrez else symbol
        if key in first:
            if entrez:
                raise UserError(
                    f"{stage.gene_place(index)}: the gene {printable(stage.genes[index], 60)} occurs a second time, "
                    f"first at {stage.gene_place(first[key])}; remove one."
                )
            repeats[key] += 1
            key = f"{symbol}#{repeats[key] + 1}"
            problems.append(
                (f"{key} ({stage.gene_place(index)})", "the symbol occurs again without Entrez number; numbered")
            )
        first.setdefault(key, index)
        keys.append(key)
    return keys


def unite(
    stages: Sequence[Stage], symbols: Mapping[str, str], numbers_lack_symbol: bool, problems: list[tuple[str, str]]
) -> tuple[list[str], list[np.ndarray]]:
    """The genes that all tables have, in the first one's order.

    Args:
        stages: the tables.
        symbols: of Entrez numbers, for tables that name genes by numbers.
        numbers_lack_symbol: whether a bare number is a gene without symbol, as in Xena's copy of PanCanAtlas.
        problems: gets repeated symbols and the genes that are not in all tables.

    Returns:
        The unique names, and for each table the index of each of these genes in it.

    Raises:
        UserError: a gene occurs twice in a table, or the tables have no gene in common.
    """
    identified = [_identify(stage, symbols, numbers_lack_symbol) for stage in stages]
    keys = [_keys(stage, genes, problems) for stage, genes in zip(stages, identified, strict=True)]
    common = set(keys[0]).intersection(*keys[1:])
    if not common:
        raise UserError(
            f"{stages[0].table.name} and {stages[-1].table.name} have no gene in common: give tables of one source."
        )
    for stage, mine in zip(stages, keys, strict=True):
        lost = [key.lstrip("|") for key in mine if key not in common]
        if lost:
            reason = f"{len(lost)} genes are not in all tables and are left out ({list_briefly(lost)})"
            problems.append((stage.table.name, reason))
    kept = [index for index, key in enumerate(keys[0]) if key in common]
    counts = collections.Counter(identified[0][index][0] for index in kept)
    names = []
    for index in kept:
        symbol, entrez = identified[0][index]
        ambiguous = symbol == UNKNOWN or counts[symbol] > 1
        names.append(f"{symbol}|{entrez}" if entrez and ambiguous else symbol if entrez else keys[0][index])
    positions = [{key: index for index, key in enumerate(mine)} for mine in keys]
    return names, [np.array([position[keys[0][index]] for index in kept]) for position in positions]


def entrez_numbers(stage: Stage, symbols: Mapping[str, str], numbers_lack_symbol: bool, index: np.ndarray) -> list[str]:
    """Entrez numbers ("" if unknown) of the genes at `index` of a table."""
    genes = _identify(stage, symbols, numbers_lack_symbol)
    return [genes[i][1] for i in index]


def read_list(source: RawSource, name: str) -> list[str]:
    """The genes of a list: the first cell of each line, without comments (`#`); a file of the source or of the disk.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        if name in source.names():
            data = read_all(source, name)
        else:
            with pathlib.Path(name).open("rb") as file:
                data = file.read(_MAX_LIST_BYTES)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError, Unreadable) as error:
        raise UserError(
            f"the list of genes {name} cannot be read ({error}): give a text file with a gene a line."
        ) from error
    cells = (re.split(r"[\t,;]", line, maxsplit=1)[0].strip().strip('"') for line in text.splitlines())
    return [cell for cell in cells if cell and not cell.startswith("#")]


def listed(names: Sequence[str], entrez: Sequence[str], wanted: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Which genes (bool `[G]`) a list names by name, symbol, `SYMBOL|ENTREZ` or Entrez number; and whom nobody knows.

    A symbol that several genes have means all of them.
    """
    known = []
    for name, number in zip(names, entrez, strict=True):
        symbol = split(name)[0]
        known.append({name, number, symbol, f"{symbol}|{number}"} - {"", UNKNOWN})
    asked = set(wanted)
    found = set().union(*known)
    return np.array([bool(keys & asked) for keys in known]), [
        name for name in dict.fromkeys(wanted) if name not in found
    ]
