"""How are rankings of genes drawn?

Pure functions from numbers to one PNG each, in the style of `input_pipeline.plotting`. Attributions are in logits;
intervals are those of the tables.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import plotting
from input_pipeline.plotting import BLUE, COLOURS, DASHES, GREEN, GREY, MARKERS
from research.explain.pictures import SIGNED
from research.genes.deletion import Deletion
from research.genes.enrichment import symbol
from research.genes.ranking import Ranking

_ROWS = 80  # genes of a heat map, at most
_UNIT = "mean attribution (logit)"


def top_genes(
    rankings: Sequence[Ranking],
    genes: Sequence[str],
    path: str | os.PathLike,
    top: int = 20,
    marked: Mapping[str, Sequence[int]] | None = None,
    marked_as: str = "planted",
    level: float = 0.95,
    unit: str = _UNIT,
) -> None:
    """The first genes of each type with their intervals, one panel for each type that has samples.

    Args:
      genes: G names.
      path: the PNG to write.
      marked: type -> positions of genes that get another colour and a hatch, such as planted ones.
      marked_as: what those are, for the legend.
      level: of the intervals, for the axis.
      unit: of the scores.
    """
    shown = [ranking for ranking in rankings if ranking.samples]
    columns = min(4 if len(shown) <= 12 else 6, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    with plotting.figure(path, 2.5 * columns + 0.2, (0.145 * top + 0.75) * rows + 0.3) as canvas:
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        for axes, ranking in zip(grid.flat, shown, strict=False):
            _bars(axes, ranking, genes, top, set(map(int, (marked or {}).get(ranking.name, ()))))
        canvas.supxlabel(f"{unit}, {100 * level:g} % interval over patients", fontsize=9)
        if marked is not None:
            from matplotlib.patches import Patch

            handles = [Patch(facecolor=GREEN, hatch="////", edgecolor="white", label=marked_as),
                       Patch(facecolor=BLUE, label="other genes")]  # fmt: skip
            canvas.legend(handles=handles, loc="outside upper right", ncols=2)


def _bars(axes, ranking: Ranking, genes: Sequence[str], top: int, marked: set[int]) -> None:
    chosen = ranking.order[:top]
    values = ranking.scores[chosen]
    bounds = np.stack([ranking.low[chosen], ranking.high[chosen]])
    distances = np.clip(np.nan_to_num(np.stack([values - bounds[0], bounds[1] - values])), 0, None)
    places = np.arange(len(chosen))
    special = np.array([int(gene) in marked for gene in chosen], bool)
    for own, colour, hatch in ((~special, BLUE, ""), (special, GREEN, "////")):
        axes.barh(places[own], values[own], height=0.74, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
    axes.errorbar(values, places, xerr=distances, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=1.2)
    axes.set_yticks(places, [plotting.shorten(symbol(genes[gene]), 16) for gene in chosen], fontsize=6)
    axes.set_ylim(top - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=GREY, linewidth=0.7)
    axes.set_title(f"{plotting.shorten(ranking.name, 22)} ({ranking.patients} patients)", fontsize=7)


def heatmap(
    rankings: Sequence[Ranking], genes: Sequence[str], path: str | os.PathLike, top: int = 5, unit: str = _UNIT
) -> None:
    """Scores of the types' first genes in all types, each in its own samples: blue speaks against a type, red for it.

    Genes are down the side, in the order of the type that they are first in. With many types fewer genes of each are
    shown, so that at most about 80 are.
    """
    shown = [ranking for ranking in rankings if ranking.samples]
    top = max(1, min(top, _ROWS // max(len(shown), 1)))
    chosen = list(dict.fromkeys(int(gene) for ranking in shown for gene in ranking.order[:top]))
    values = np.array([[ranking.scores[gene] for ranking in shown] for gene in chosen]).reshape(len(chosen), len(shown))
    limit = float(np.abs(values).max(initial=0)) or 1.0
    with plotting.figure(path, 2.6 + 0.24 * max(len(shown), 4), 1.6 + 0.155 * max(len(chosen), 8)) as canvas:
        axes = canvas.subplots()
        picture = plotting.heatmap(axes, values, [symbol(genes[gene]) for gene in chosen], [own.name for own in shown])
        picture.set(cmap=SIGNED, clim=(-limit, limit))
        axes.set_aspect("auto")
        axes.tick_params(axis="y", labelsize=6)
        axes.tick_params(axis="x", labelsize=6.5)
        bar = canvas.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
        bar.set_label(unit)
        bar.outline.set_visible(False)
        axes.set(xlabel="type", ylabel=f"first {top} genes of each type", title="Genes in all types")


def deletion_curves(
    deletions: Mapping[str, Deletion],
    path: str | os.PathLike,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    chance: float | None = None,
    level: float = 0.95,
) -> None:
    """Accuracy, and probability of the sample's own type, over the number of genes that are deleted.

    Args:
      deletions: name of a ranking -> its deletion.
      path: the PNG to write.
      bands: name -> interval of the accuracy `[P]`, as `deletion.band`.
      chance: accuracy of the most frequent type, drawn as a line.
      level: of the bands, for the legend.
    """
    with plotting.figure(path, 7.6, 3.3) as canvas:
        grid = canvas.subplots(1, 2, sharex=True)
        panels = (
            ("correct", "accuracy", "Accuracy"),
            ("probability", "mean probability", "Probability of the own type"),
        )
        for axes, (figure, ylabel, title) in zip(grid, panels, strict=True):
            for index, (name, own) in enumerate(deletions.items()):
                colour = COLOURS[index % len(COLOURS)]
                axes.plot(np.log2(1 + own.counts), getattr(own, figure).mean(axis=1), label=name, color=colour,
                          linestyle=DASHES[index % len(DASHES)], marker=MARKERS[index % len(MARKERS)])  # fmt: skip
                if figure == "correct" and bands and name in bands:
                    axes.fill_between(np.log2(1 + own.counts), *bands[name], color=colour, alpha=0.15, linewidth=0)
            if figure == "correct" and chance is not None:
                axes.axhline(chance, color=GREY, linewidth=1, linestyle=":", label="majority class")
            counts = next(iter(deletions.values())).counts
            axes.set_xticks(np.log2(1 + counts), [str(count) for count in counts], rotation=45)
            axes.set(xlabel="genes set to their training mean", ylabel=ylabel, title=title, ylim=(0, 1.02))
        said = f", band: {100 * level:g} % interval over patients" if bands else ""
        canvas.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                      title=f"genes deleted first{said}", title_fontsize=8)  # fmt: skip


def overlap_matrix(
    overlaps: Mapping[str, np.ndarray], seeds: Sequence[str], path: str | os.PathLike, p: float = 0.95
) -> None:
    """Rank-biased overlap of the seeds' rankings, one panel for each type.

    Args:
      overlaps: type -> `[S, S]`, `Stability.overlaps`.
      seeds: S names.
      path: the PNG to write.
      p: of the overlap, for the caption.
    """
    columns = min(5, max(1, len(overlaps)))
    rows = max(1, -(-len(overlaps) // columns))
    with plotting.figure(path, 1.75 * columns + 0.9, 1.85 * rows + 0.7) as canvas:
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[len(overlaps) :]:
            axes.set_visible(False)
        for axes, (name, values) in zip(grid.flat, overlaps.items(), strict=False):
            texts = [[f"{value:.2f}" for value in row] for row in values]
            picture = plotting.heatmap(axes, values, seeds, seeds, texts if len(seeds) <= 5 else None)
            axes.tick_params(labelsize=6)
            axes.set_title(plotting.shorten(name, 20), fontsize=8)
        bar = canvas.colorbar(picture, ax=grid, shrink=0.95 if rows == 1 else 1.5 / rows, pad=0.02)
        bar.set_label(f"rank-biased overlap (p = {p:g})")
        bar.outline.set_visible(False)
        canvas.supxlabel("network", fontsize=9)
        canvas.supylabel("network", fontsize=9)


def enrichment(rows: Sequence[Mapping], path: str | os.PathLike, most: int = 5, level: float = 0.05) -> None:
    """The sets with the smallest p of each type: -log10 of the adjusted p (q), and the overlap.

    Args:
      rows: of `enrichment.over_representation`.
      path: the PNG to write.
      most: sets of each type.
      level: of q, drawn as a line.
    """
    kinds = dict.fromkeys(row["type"] for row in rows)
    shown = [row for kind in kinds for row in [own for own in rows if own["type"] == kind][:most]]
    values = np.array([-np.log10(max(row["q"], 1e-300)) for row in shown])
    colours = {kind: COLOURS[index % len(COLOURS)] for index, kind in enumerate(kinds)}
    with plotting.figure(path, 7.4, plotting.barh_height(len(shown), 0.19)) as canvas:
        axes = canvas.subplots()
        places = np.arange(len(shown))
        axes.barh(places, values, height=0.72, color=[colours[row["type"]] for row in shown])
        names = [f"{plotting.shorten(row['type'], 14)}: {plotting.shorten(row['set'], 34)}" for row in shown]
        axes.set_yticks(places, names, fontsize=7)
        peak = max(float(values.max(initial=0)), 2.0)
        for place, (row, value) in enumerate(zip(shown, values, strict=True)):
            text = f"{row['overlap']} of {row['size']}, expected {row['expected']:.1f}"
            axes.text(max(value, -np.log10(level)) + 0.01 * peak, place, text, va="center", fontsize=6, color="#333333")
        axes.axvline(-np.log10(level), color=GREY, linewidth=1, linestyle=":")
        axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
        axes.set_xlim(0, 1.3 * peak)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=f"−log10 q (Benjamini-Hochberg; dotted: q = {level:g})", title="Sets among the first genes")
