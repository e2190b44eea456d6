"""How well do scores rank the examples of each class? Precision against recall, and the ROC.

One panel for each class against the rest, the classes that are ranked worst first where there are too many.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline import plotting
from input_pipeline.plotting import BLUE, GREY, VERMILLION

MOST = 12
"""With more classes than this, the ones with the smallest areas are shown."""

# x and y of a curve's corners, and the area under it.
Curve = tuple[np.ndarray, np.ndarray, float]


def pr_curves(
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    thresholds: Sequence[float] | None = None,
    most: int = MOST,
) -> None:
    """Precision against recall for each class, with its prevalence (chance) and the chosen operating point.

    Args:
        labels: bool `[N, K]`.
        scores: `[N, K]` probabilities.
        class_names: K names.
        path: the PNG to write.
        thresholds: `[K]` decision thresholds (a class is predicted when its score is at least the threshold).
        most: panels, see `MOST`.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    curves = {k: _pr_curve(labels[:, k], scores[:, k]) for k in range(len(class_names)) if labels[:, k].any()}
    marks = "dotted: prevalence" + ("; ◆ chosen threshold" if thresholds is not None else "")

    def draw(axes, k: int) -> None:
        axes.step(*curves[k][:2], where="pre", color=BLUE)
        axes.axhline(labels[:, k].mean(), color=GREY, linestyle=":", linewidth=1)
        if thresholds is not None:
            _draw_operating_point(axes, labels[:, k], scores[:, k] >= thresholds[k])

    title = f"Precision and recall{_rest(curves, class_names, most, 'AP')}; {marks}"
    _panels(curves, draw, labels, class_names, path, most, ("recall", "precision", "AP", title))


def roc_curves(
    labels: np.ndarray, scores: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, most: int = MOST
) -> None:
    """Sensitivity against the false positive rate for each class against the rest, with the diagonal (chance).

    The arguments are those of `pr_curves`; classes of which all examples are, or none is, have no curve.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    both = [k for k in range(len(class_names)) if labels[:, k].any() and not labels[:, k].all()]
    curves = {k: _roc_curve(labels[:, k], scores[:, k]) for k in both}

    def draw(axes, k: int) -> None:
        axes.plot(*curves[k][:2], color=BLUE)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)

    title = f"ROC of each class against the rest{_rest(curves, class_names, most, 'AUROC')}; dotted: chance"
    _panels(curves, draw, labels, class_names, path, most, ("false positive rate", "sensitivity", "AUROC", title))


def _rest(curves: dict[int, Curve], class_names: Sequence[str], most: int, area: str) -> str:
    return f" ({most} classes with the lowest {area} of {len(class_names)})" if len(curves) > most else ""


def _panels(
    curves: dict[int, Curve],
    draw: Callable,
    labels: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    most: int,
    words: tuple[str, str, str, str],
) -> None:
    """A small panel for each class; `words` are what x, y and area are called, and the title."""
    across, upward, area, title = words
    shown = sorted(sorted(curves, key=lambda k: curves[k][2])[:most])
    columns = min(4, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    with plotting.figure(path, 2.3 * columns + 0.4, 2.2 * lines + 0.6) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        for axes, k in zip(grid.flat, shown, strict=False):
            draw(axes, k)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
            axes.set_title(f"{plotting.shorten(class_names[k], 22)}\n{area} {curves[k][2]:.2f}, "
                           f"n = {labels[:, k].sum():,}", fontsize=8, fontweight="normal")  # fmt: skip
        canvas.supxlabel(across, fontsize=9)
        canvas.supylabel(upward, fontsize=9)
        canvas.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")


def _hits(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples of the class, and examples at all, at or above every distinct score, the greatest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # ties are decided together
    return np.cumsum(labels[order])[last], np.flatnonzero(last) + 1


def _pr_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """Recall and precision at every distinct score, and the average precision sum (R_n - R_(n-1)) P_n."""
    hits, given = _hits(labels, scores)
    precision = hits / given
    recall = hits / labels.sum()
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return np.append(0.0, recall), np.append(precision[0], precision), area


def _roc_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """False positive rate and sensitivity at every distinct score, and the area under their straight connections."""
    hits, given = _hits(labels, scores)
    sensitivity = np.append(0.0, hits / labels.sum())
    false = np.append(0.0, (given - hits) / (~labels).sum())
    return false, sensitivity, float(np.trapezoid(sensitivity, false))


def _draw_operating_point(axes, labels: np.ndarray, decided: np.ndarray) -> None:
    if decided.any():
        hits = float(np.sum(labels & decided))
        axes.plot([hits / labels.sum()], [hits / decided.sum()], marker="D", markersize=6, color=VERMILLION,
                  markeredgecolor="black", markeredgewidth=0.7, clip_on=False, zorder=4)  # fmt: skip
