"""What is in `genes.csv` and in the tables about genes?"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import tabular
from research.genes.enrichment import symbol
from research.genes.ranking import Ranking, Stability, order_of, precision_at

COLUMNS = ("type", "rank", "gene", "attribution", "low", "high", "samples", "patients", "f", "f_rank", "seeds",
           "of_seeds", "mean_overlap", "in_sets", "planted")  # fmt: skip


def gene_rows(
    rankings: Sequence[Ranking],
    genes: Sequence[str],
    f: np.ndarray | None = None,
    stabilities: Mapping[str, Stability] | None = None,
    sets: Mapping[str, frozenset[str]] | None = None,
    planted: Mapping[str, Sequence[int]] | None = None,
    top: int = 200,
) -> list[dict]:
    """Rows of `COLUMNS`, the first `top` genes of each type in the order of the ranking.

    Args:
      rankings: one for each type. A type without a sample has no rows.
      genes: G names.
      f: `[K, G]`, `ranking.f_scores` of the training samples; types in the order of `rankings`.
      stabilities: type -> how alike the rankings of several seeds are. `seeds` is among the first genes of how many of
        the `of_seeds` seeds a gene is; `mean_overlap` belongs to the type.
      sets: name -> symbols of the data set's genes, as `enrichment.matched`; the names of a gene's sets are joined by
        semicolons.
      planted: type -> positions of the genes that a simulation has planted.

    Returns:
      Dicts; what is not given is left out, and so is its column in `write`.
    """
    of_gene: dict[str, list[str]] = {}
    for name, members in (sets or {}).items():
        for gene in members:
            of_gene.setdefault(gene, []).append(name)
    found = []
    for kind, ranking in enumerate(rankings):
        if not ranking.samples:
            continue
        f_rank = None if f is None else np.argsort(order_of(f[kind])) + 1
        stable = (stabilities or {}).get(ranking.name)
        true = set(map(int, (planted or {}).get(ranking.name, ())))
        for rank, gene in enumerate(ranking.order[:top], 1):
            row = {
                "type": ranking.name, "rank": rank, "gene": genes[gene], "attribution": float(ranking.scores[gene]),
                "low": _known(ranking.low[gene]), "high": _known(ranking.high[gene]), "samples": ranking.samples,
                "patients": ranking.patients,
            }  # fmt: skip
            if f is not None:
                row |= {"f": _known(f[kind, gene]), "f_rank": int(f_rank[gene])}
            if stable is not None:
                row |= {"seeds": int(stable.common[gene]), "of_seeds": len(stable.overlaps),
                        "mean_overlap": _known(stable.mean_overlap)}  # fmt: skip
            if sets is not None:
                row["in_sets"] = "; ".join(of_gene.get(symbol(genes[gene]), ())) or None
            if planted is not None:
                row["planted"] = int(gene) in true
            found.append(row)
    return found


def write(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
    """Writes `genes.csv` with those of `COLUMNS` that the rows have."""
    used = {name for row in rows for name in row}
    tabular.write_csv(path, [name for name in COLUMNS if name in used or name in COLUMNS[:6]], rows)


def precision_rows(
    orders: Mapping[str, np.ndarray], planted: Mapping[str, Sequence[int]], names: Sequence[str], k: int = 20
) -> list[dict]:
    """How many of the first k genes a simulation has planted: a row for each ranking.

    Args:
      orders: "integrated gradients", "F-test", … -> rankings int `[K, G]` of the types `names`.
      planted: type -> positions of its planted genes; types without any are left out.

    Returns:
      Dicts with ranking, k, mean (over types) and a key for each type; the last row is what chance gives, the share of
      planted genes among all.
    """
    kinds = [kind for kind, name in enumerate(names) if len(planted.get(name, ()))]
    found = []
    for name, own in orders.items():
        values = {names[kind]: precision_at(own[kind], planted[names[kind]], k) for kind in kinds}
        found.append({"ranking": name, "k": k, "mean": _mean(values.values()), **values})
    num_genes = next(iter(orders.values())).shape[1] if orders else 0
    chance = {names[kind]: len(set(planted[names[kind]])) / num_genes for kind in kinds}
    return [*found, {"ranking": "chance", "k": k, "mean": _mean(chance.values()), **chance}]


def stability_rows(stabilities: Mapping[str, Stability], chance: float) -> list[dict]:
    """A row for each type: seeds, mean rank-biased overlap, `chance` (`ranking.overlap_by_chance`), Jaccard indices."""
    return [
        {"type": name, "seeds": len(own.overlaps), "overlap": _known(own.mean_overlap), "overlap_by_chance": chance}
        | {f"jaccard_{depth}": _known(value) for depth, value in own.jaccard.items()}
        for name, own in stabilities.items()
    ]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None
