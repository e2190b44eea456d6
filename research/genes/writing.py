"""What does a reader get of the genes that were found? Tables, pictures and a page."""

import pathlib
from collections.abc import Sequence

from input_pipeline import cli, tabular
from research.genes import deletion, overlay, plots, ranking, tables
from research.genes.finding import IG, Found
from research.report import markup

GENES, PAGE, FOLDER = "genes.csv", "genes.html", "genes"
_TOP_TYPES = 12  # with a panel in the figures that have one for each type
_K = 20  # of precision


def write(out: pathlib.Path, found: Found, title: str, command: str, warnings: Sequence[str]) -> pathlib.Path:
    """Writes `genes.csv` and `genes.html` into `out`, other tables and pictures into `out`/genes; returns the page."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rows = tables.gene_rows(found.rankings, found.genes, found.f, found.stabilities, found.sets, found.planted)
    tables.write(out / GENES, rows)
    shown = [own for own in found.rankings if own.samples][:_TOP_TYPES]
    plots.top_genes(shown, found.genes, folder / "top_genes.png", marked=found.planted)
    plots.heatmap(found.rankings, found.genes, folder / "heatmap.png")
    bands = {name: deletion.band(own, found.patients) for name, own in found.deletions.items()}
    plots.deletion_curves(found.deletions, folder / "deletion.png", bands)
    overlay.draw({own.name: found.maps[own.name] for own in shown}, folder / "layout.png")
    parts = [_genes(found, rows), _needed(found, folder), _learned(found)]
    if found.stabilities:
        parts.insert(1, _stable(found, folder))
    if found.planted is not None:
        parts.insert(0, _planted(found, folder))
    if found.enriched is not None:
        parts.append(_sets(found, folder))
    parts.append(_how(found, command))
    head = f"<header>\n<h1>{markup.text(title)}</h1>\n"
    head += "".join(f'<p class="warning">{markup.text(line)}</p>\n' for line in warnings) + "</header>\n"
    body = "".join(f"<section>\n<h2>{markup.text(name)}</h2>\n{text}</section>\n" for name, text in parts)
    cli.atomic_write(out / PAGE, markup.document(title, f"{head}<main>\n{body}</main>\n"))
    return out / PAGE


def _figure(name: str, caption: str) -> str:
    return (
        f'<figure><img loading="lazy" src="{markup.reference(f"{FOLDER}/{name}")}" alt="{markup.text(caption)}">'
        f"<figcaption>{markup.text(caption)}</figcaption></figure>\n"
    )


def _genes(found: Found, rows: Sequence[dict]) -> tuple[str, str]:
    text = (
        "Integrated gradients of each sample's own type, the mean over correctly classified samples and seeds, in "
        "logits above the mean of all types'; positive speaks for the type, also that of a gene that is silent there. "
        f"{GENES} has the first 200 genes of every type."
    )
    first = [row for row in rows if row["rank"] <= 5]
    columns = {"type": "type", "rank": "rank", "gene": "gene", "attribution": "attribution (logit)",
               "f_rank": "rank by F", "seeds": "in the top 20 of seeds", "planted": "planted",
               "in_sets": "in sets"}  # fmt: skip
    columns = {key: name for key, name in columns.items() if any(key in row for row in first)}
    for row in first:
        row["attribution"] = {"value": row["attribution"], "low": row["low"], "high": row["high"]}
    return "Genes of each type", (
        f"<p>{markup.text(text)}</p>\n"
        + _figure("top_genes.png", "The first genes of each type with 95 % intervals over patients.")
        + _figure("heatmap.png", "The types' first genes in all types.")
        + _figure("layout.png", "Where in the layout they lie.")
        + markup.table(columns, first, "The first five genes of each type; brackets: 95 % bootstrap over patients.")
    )


def _stable(found: Found, folder: pathlib.Path) -> tuple[str, str]:
    chance = ranking.overlap_by_chance(len(found.genes))
    rows = tables.stability_rows(found.stabilities, chance)
    columns = {name: name.replace("_", " ") for name in rows[0]}
    tabular.write_csv(folder / "stability.csv", list(columns), rows)
    overlaps = {name: own.overlaps for name, own in list(found.stabilities.items())[:_TOP_TYPES]}
    plots.overlap_matrix(overlaps, found.seeds, folder / "stability.png")
    text = (
        "Rank-biased overlap (Webber et al. 2010, p = 0.95) of the rankings by networks of different seeds; 1 = equal. "
        "Genes that come and go with the seed say nothing of the type."
    )
    return "Are they the same for every seed?", (
        f"<p>{markup.text(text)}</p>\n"
        + markup.table(columns, rows, "genes/stability.csv")
        + _figure("stability.png", "Rank-biased overlap of the seeds.")
    )


def _planted(found: Found, folder: pathlib.Path) -> tuple[str, str]:
    rows = tables.precision_rows(found.orders, found.planted, found.names, _K)
    columns = {name: name.replace("_", " ") for row in rows for name in row}
    tabular.write_csv(folder / "precision.csv", list(columns), rows)
    text = f"The share of the first {_K} genes that the simulation has planted for the type."
    return "Are they the planted genes?", markup.table(columns, rows, text)


def _needed(found: Found, folder: pathlib.Path) -> tuple[str, str]:
    rows = deletion.summary(found.deletions, found.patients)
    tabular.write_csv(folder / "deletion.csv", list(rows[0]), rows)
    text = (
        "A type's first genes are set to their mean over the training samples, more and more of them. A ranking of "
        "what the network uses makes it fail sooner than random genes. Areas are over the logarithm of the number."
    )
    shown = [
        {"ranking": row["ranking"]}
        | {
            name: {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
            for name in ("accuracy_area", "probability_area", "difference")
        }
        for row in rows
    ]
    columns = {"ranking": "deleted first", "accuracy_area": "area under accuracy",
               "probability_area": "area under probability", "difference": "difference to random genes"}  # fmt: skip
    return "Does the network need them?", (
        f"<p>{markup.text(text)}</p>\n"
        + markup.table(columns, shown, f"Of {found.seeds[0]} (genes/deletion.csv); brackets: 95 % over patients.")
        + _figure("deletion.png", "What is left when genes go.")
    )


def _learned(found: Found) -> tuple[str, str]:
    text = (
        "The same attributions of the same network with random weights. Scores that stay alike would be about the "
        "data, not about what was learned (Adebayo et al. 2018)."
    )
    pairs = {name.replace("_", " "): value for name, value in found.random_weights.items()}
    return "Do they depend on what was learned?", f"<p>{markup.text(text)}</p>\n" + markup.pairs(pairs)


def _sets(found: Found, folder: pathlib.Path) -> tuple[str, str]:
    rows = found.enriched
    if not rows:
        return "Gene sets", "<p>No set has enough genes of this data set to be tested.</p>\n"
    tabular.write_csv(folder / "enrichment.csv", list(rows[0]), rows)
    plots.enrichment(rows, folder / "enrichment.png")
    text = (
        "Over-representation among each type's first genes: hypergeometric against all genes of the data set, q by "
        "Benjamini and Hochberg over all types and sets together."
    )
    return "Gene sets", f"<p>{markup.text(text)}</p>\n" + _figure("enrichment.png", "Sets with the smallest q.")


def _how(found: Found, command: str) -> tuple[str, str]:
    pairs = {
        f"{name}: accuracy on these samples, attributions": f"{accuracy:.3f}; {note}"
        for name, accuracy, note in zip(found.seeds, found.accuracy, found.completeness, strict=True)
    }
    methods = ", ".join(found.orders)
    return "How this was made", f"<pre>{markup.text(command)}</pre>\n" + markup.pairs(
        {"rankings": methods, "of": IG, "samples": len(found.patients), "patients": len(set(found.patients))} | pairs
    )
