"""Are the first genes of a type's ranking more often in a known set of genes than chance would put them there?

Over-representation analysis: of the genes that the data set has, some are in the set and some are at the top of the
ranking, and the overlap is compared with a draw without replacement. The background is what the data set measures, not
the genome: genes that could not be found must not count as not found. Genes are correlated, which this test does not
know, so small p-values order the sets rather than prove anything.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from input_pipeline.cli import UserError

COLUMNS = ("type", "set", "size", "top", "overlap", "expected", "fold", "p", "q", "genes")


def read_gmt(path: str | pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Gene sets of a GMT file: on each line a name, a description, and genes, with tabs between them.

    The description is not kept; blank lines, empty cells at a line's end and repeated genes are passed over.

    Returns:
      Name of a set -> its genes, in the order of the file.

    Raises:
      UserError: the file is missing, not text, without sets, or a line (named by its number) is not a set.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a GMT file of gene sets.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; unpack it, or save it as text.") from None
    sets: dict[str, tuple[str, ...]] = {}
    where: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        name, genes = cells[0], cells[2:]
        while genes and not genes[-1]:
            genes.pop()
        if not name or not genes:
            raise UserError(
                f"{path}, line {number}: a set needs a name, a description and at least one gene with tabs between "
                f"them, and here are {len(cells)} cells; mend the line."
            )
        if "" in genes:
            raise UserError(f"{path}, line {number}: gene {genes.index('') + 1} of {name} is empty; mend the line.")
        if name in sets:
            raise UserError(f"{path}, line {number}: the set {name} is also on line {where[name]}; rename one of them.")
        sets[name], where[name] = tuple(dict.fromkeys(genes)), number
    if not sets:
        raise UserError(f"{path} holds no gene sets; name another GMT file.")
    return sets


def symbol(gene: str) -> str:
    """What a data set's gene is matched and counted by: SYMBOL of SYMBOL|ENTREZ; the whole name where it is unknown."""
    name = gene.partition("|")[0]
    return gene if name in ("", "?") else name


def matched(background: Sequence[str], sets: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """The symbols of the data set's genes that are in each set.

    Genes match by symbol, upper and lower case alike (C1orf112 is C1ORF112 in some files), or by Entrez number where
    the set has numbers and the data set knows them. Genes of the data set with one symbol are one gene here.
    """
    names: dict[str, set[str]] = {}
    for gene in background:
        own = symbol(gene)
        for name in {own.upper(), *([gene.partition("|")[2]] if "|" in gene else [])}:
            names.setdefault(name, set()).add(own)
    return {
        title: frozenset().union(*(names.get(gene.strip().upper(), ()) for gene in genes))
        for title, genes in sets.items()
    }


def over_representation(
    tops: Mapping[str, Sequence[str]],
    background: Sequence[str],
    sets: Mapping[str, Iterable[str]],
    smallest: int = 5,
    largest: int = 500,
) -> list[dict]:
    """Tests each set against the first genes of each ranking.

    p is the chance of at least so large an overlap (hypergeometric, one-sided: Rivals et al. 2007, section 3); q is
    p adjusted by Benjamini & Hochberg 1995 over all rows together, all types and sets, as they are read together.

    Args:
      tops: type -> the first genes of its ranking, each one of `background`.
      background: all genes of the data set.
      sets: as `read_gmt`.
      smallest, largest: sizes, within the background, of the sets that are tested: a set of two genes can hardly be
        significant, and a set of thousands says little.

    Returns:
      Rows of `COLUMNS`, for each type by rising p; size: of the set, top: of the first genes, both as symbols of the
      background; expected: the mean overlap of random genes; fold: overlap / expected; genes: the overlap, sorted.

    Raises:
      ValueError: a gene of `tops` that is not in the background.
    """
    from scipy.stats import false_discovery_control, hypergeom

    known = {symbol(gene) for gene in background}
    tested = {name: genes for name, genes in matched(background, sets).items() if smallest <= len(genes) <= largest}
    rows = []
    for kind, genes in tops.items():
        top = {symbol(gene) for gene in genes}
        if strangers := sorted(top - known):
            raise ValueError(f"{strangers[0]} of {kind} is not a gene of the data set")
        for name, own in tested.items():
            overlap, expected = sorted(top & own), len(top) * len(own) / len(known)
            p = float(hypergeom.sf(len(overlap) - 1, len(known), len(own), len(top)))
            rows.append({"type": kind, "set": name, "size": len(own), "top": len(top), "overlap": len(overlap),
                         "expected": expected, "fold": len(overlap) / expected if expected else None,
                         "p": min(p, 1.0), "genes": " ".join(overlap)})  # fmt: skip
    if rows:
        for row, q in zip(rows, false_discovery_control([row["p"] for row in rows], method="bh"), strict=True):
            row["q"] = float(q)
    order = {kind: index for index, kind in enumerate(tops)}
    return sorted(rows, key=lambda row: (order[row["type"]], row["p"], row["set"]))
