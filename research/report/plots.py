"""How are the results of a study drawn?

Pure functions from numbers to one PNG each, in the style of `input_pipeline.plotting`. Every interval in a figure is
the one that the tables show. Series differ in marker, dash or hatch as well as in colour.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import plotting
from input_pipeline.plotting import BLUE, COLOURS, DASHES, GREEN, GREY, MARKERS, VERMILLION

# Metrics that get a panel in the learning curves when nothing else is asked for, in this order.
CURVES = ("loss", "macro_f1", "accuracy", "auroc_macro", "dice", "pooled_dice", "learning_rate")
_AXIS_NAMES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "sample_f1": "sample F1",
    "auroc_macro": "macro AUROC",
    "auprc_macro": "macro AUPRC",
    "mcc": "Matthews correlation",
    "dice": "Dice",
    "iou": "IoU",
    "kappa": "Cohen's κ",
    "ece": "ECE",
    "log_loss": "log loss (nats)",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall (balanced accuracy)",
    "exact_match": "exact match",
}
_MANY = 6  # from this number of trials on, curves are thin and grey and only the best one is coloured


def metric_name(name: str) -> str:
    """A metric's name for people: `macro_f1` -> `macro F1`."""
    return _AXIS_NAMES.get(name, name.replace("_", " "))


def _series(rows: Sequence[Mapping[str, Any]], trial: Any, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (row["step"], row[metric])
        for row in rows
        if row["trial"] == trial and row.get("split") == split and isinstance(row.get(metric), int | float)
    ]
    steps, values = zip(*sorted(points), strict=True) if points else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average, corrected for its start, over the finite values."""
    smoothed, total, mass = np.full(len(values), np.nan), 0.0, 0.0
    for index, value in enumerate(values):
        if math.isfinite(value):
            total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed[index] = total / mass if mass else np.nan
    return smoothed


def learning_curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    metrics: Sequence[str] = CURVES,
    phases: Sequence[tuple[int, str]] = (),
    best: Mapping[str, int] | None = None,
    smoothing: float = 0.9,
) -> None:
    """Loss and metrics over the steps, from the rows of `metrics.jsonl`.

    Args:
        rows: dicts with trial, step, split ("train" or "validation") and metric values.
        path: the PNG to write.
        metrics: one panel for each that any row has.
        phases: (first step, name) of the phases of training, drawn as vertical lines.
        best: trial -> step of the checkpoint that was chosen, marked by a star on its validation curve. With many
            trials, the first trial named here is the coloured one.
        smoothing: weight of the moving average over more than 60 train points; the raw points stay, pale.
    """
    present = [name for name in metrics if any(isinstance(row.get(name), int | float) for row in rows)]
    trials = sorted({row["trial"] for row in rows}, key=str)
    best = best or {}
    columns = min(2, max(1, len(present)))
    lines = max(1, -(-len(present) // columns))
    with plotting.figure(path, 4.6 * columns, 2.7 * lines + 0.5) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False, sharex=True)
        for axes in list(grid.flat)[len(present) :]:
            axes.set_visible(False)
        for axes, metric in zip(grid.flat, present, strict=False):
            for index, trial in enumerate(trials):
                _draw_trial(axes, rows, trial, metric, _look(index, trial, trials, best), smoothing, best.get(trial))
            _finish_curve_axes(axes, metric, phases, first=axes is grid.flat[0])
        for column in range(columns):
            visible = [axes for axes in grid[:, column] if axes.get_visible()]
            if visible:
                visible[-1].set_xlabel("step (optimiser updates)")
                visible[-1].tick_params(labelbottom=True)
        handles = _curve_legend(trials, rows, best)
        if handles:
            canvas.legend(handles=handles, loc="outside lower center", ncols=6)


def _look(index: int, trial: Any, trials: Sequence[Any], best: Mapping[str, int]) -> dict[str, Any]:
    if len(trials) < _MANY:
        return {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.6, "zorder": 2 + 1 / (1 + index)}
    chosen = next(iter(best), None)
    return {"color": BLUE if trial == chosen else "#B5B5B5", "linewidth": 2.0 if trial == chosen else 0.7,
            "zorder": 3 if trial == chosen else 1}  # fmt: skip


def _draw_trial(axes, rows, trial, metric: str, look: dict[str, Any], smoothing: float, best: int | None) -> None:
    steps, values = _series(rows, trial, "train", metric)
    if len(steps) > 60 and metric != "learning_rate":
        axes.plot(steps, values, **{**look, "linewidth": 0.6, "alpha": 0.35})
        values = _smooth(values, smoothing)
    if len(steps):
        axes.plot(steps, values, linestyle="-", **look)
    steps, values = _series(rows, trial, "validation", metric)
    if len(steps):
        marker = "o" if len(steps) <= 40 and look["linewidth"] > 1 else None
        axes.plot(steps, values, linestyle="--", marker=marker, markersize=3, **look)
        chosen = steps == best
        axes.plot(steps[chosen], values[chosen], linestyle="", marker="*", markersize=12, markeredgecolor="black",
                  markeredgewidth=0.7, color=look["color"], zorder=5)  # fmt: skip


def _finish_curve_axes(axes, metric: str, phases: Sequence[tuple[int, str]], first: bool) -> None:
    axes.set_ylabel(metric_name(metric))
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if metric == "learning_rate" and len(positive) == len(values) and len(values) and values.max() > 10 * values.min():
        plotting.log_scale(axes.yaxis)
    for step, name in phases:
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
        if first:
            axes.annotate(name, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), va="bottom",
                          textcoords="offset points", fontsize=7, color=GREY)  # fmt: skip


def _curve_legend(trials: Sequence[Any], rows: Sequence[Mapping[str, Any]], best: Mapping[str, int]) -> list:
    from matplotlib.lines import Line2D

    splits = [split for split in ("train", "validation") if any(row.get("split") == split for row in rows)]
    handles = [
        Line2D([], [], color="#333333", linestyle="-" if split == "train" else "--", label=split) for split in splits
    ]
    if best:
        handles.append(
            Line2D(
                [],
                [],
                color="white",
                linestyle="",
                marker="*",
                markersize=11,
                markeredgecolor="black",
                label="chosen checkpoint",
            )  # fmt: skip
        )
    if 1 < len(trials) < _MANY:
        handles += [
            Line2D([], [], color=COLOURS[index % len(COLOURS)], label=plotting.shorten(trial, 32))
            for index, trial in enumerate(trials)
        ]
    elif len(trials) >= _MANY:
        handles.append(Line2D([], [], color="#B5B5B5", label=f"{len(trials)} trials"))
        if best:
            handles.append(Line2D([], [], color=BLUE, label=plotting.shorten(next(iter(best)), 32)))
    return handles


def confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Confusion of single-label predictions, each row as shares of its images.

    Args:
        matrix: `[K, K]` counts: images of the row's class predicted as the column's.
        class_names: K names.
        path: the PNG to write.
    """
    matrix = np.asarray(matrix, dtype=float)
    _confusion_picture(matrix, matrix.sum(axis=1), class_names, path, "Confusion of classes")


def _confusion_picture(matrix: np.ndarray, totals: np.ndarray, class_names: Sequence[str], path, title: str) -> None:
    share = np.divide(matrix, totals[:, None], out=np.full_like(matrix, np.nan), where=totals[:, None] > 0)
    texts = [
        [f"{int(count)}\n{100 * part:.0f}%" if count else "" for count, part in zip(counts, parts, strict=True)]
        for counts, parts in zip(matrix, share, strict=True)
    ]
    names = [f"{plotting.shorten(name)} ({int(n)})" for name, n in zip(class_names, totals, strict=True)]
    with plotting.figure(path, *plotting.matrix_size(len(class_names))) as canvas:
        axes = canvas.subplots()
        picture = plotting.heatmap(axes, share, names, class_names, texts)
        bar = canvas.colorbar(picture, ax=axes, shrink=0.75, pad=0.02)
        bar.set_label("share of the row's images")
        bar.outline.set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true (images)")
        axes.set_title(title)


def label_predictions(
    true: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], path: str | os.PathLike
) -> None:
    """Multi-label counterpart of a confusion matrix: of the images with label i, the share predicted as j.

    Args:
        true: bool `[N, K]`.
        predicted: bool `[N, K]`.
        class_names: K names.
        path: the PNG to write.
    """
    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    _confusion_picture(true.T @ predicted, true.sum(axis=0), class_names, path, "Predictions given a true label")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _intervals(rows: Sequence[Mapping[str, Any]], value: str, low: str, high: str) -> tuple[np.ndarray, np.ndarray]:
    """Values `[n]` and distances to the bounds `[2, n]` (0 where there is no interval)."""
    values = np.array([_number(row.get(value)) for row in rows])
    bounds = np.array([[_number(row.get(low)), _number(row.get(high))] for row in rows]).reshape(-1, 2).T
    distances = np.abs(np.nan_to_num(bounds - values, nan=0.0))
    return values, distances


def per_class(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    baseline: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> None:
    """F1 of each class with its interval, and its support.

    Args:
        rows: dicts with class, f1, f1_low, f1_high and support.
        path: the PNG to write.
        baseline: class -> F1 of a trivial baseline, drawn as a tick across the bar.
        level: of the intervals, for the axis.
    """
    values, distances = _intervals(rows, "f1", "f1_low", "f1_high")
    positions = np.arange(len(rows))
    with plotting.figure(path, 7.0, plotting.barh_height(len(rows), 0.28)) as canvas:
        axes = canvas.subplots()
        axes.barh(positions, np.nan_to_num(values), height=0.68, color="#A9CCE3", edgecolor=BLUE, linewidth=0.7)
        axes.errorbar(values, positions, xerr=distances, fmt="o", color="#123", markersize=3.5, linewidth=1.2,
                      capsize=2.5)  # fmt: skip
        if baseline:
            found = [index for index, row in enumerate(rows) if row["class"] in baseline]
            axes.plot([baseline[rows[index]["class"]] for index in found], found, linestyle="", marker="|",
                      markersize=11, markeredgewidth=2.2, color=VERMILLION, label="baseline")  # fmt: skip
            canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
        names = [plotting.shorten(row["class"]) for row in rows]
        _finish_dot_axes(axes, names, (0.0, 1.0))
        for position, row in enumerate(rows):
            axes.text(1.015, position, f"n = {int(row.get('support') or 0):,}", transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7, color="#333333")  # fmt: skip
        axes.set_xlabel(f"F1 (whiskers: {100 * level:g}% interval)")
        axes.set_title("F1 of each class")


def _finish_dot_axes(axes, names: Sequence[str], limits: tuple[float, float] | None) -> None:
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    if limits:
        axes.set_xlim(*limits)


def comparison(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    metrics: Sequence[str] = ("macro_f1",),
    title: str = "Beside the baselines",
    level: float = 0.95,
) -> None:
    """Trials and baselines side by side on one metric or several, with intervals.

    Args:
        rows: dicts with name, kind ("model" or "baseline") and metrics: name -> {"value", "low", "high"} (None: no
            interval).
        path: the PNG to write.
        metrics: one panel for each.
        title: text above.
        level: of the intervals, for the axis.
    """
    width = 7.0 if len(metrics) == 1 else 2.6 + 2.6 * len(metrics)
    with plotting.figure(path, width, plotting.barh_height(len(rows), 0.3)) as canvas:
        panels = canvas.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            own = [{"kind": row.get("kind", "model")} | row["metrics"].get(metric, {}) for row in rows]
            _draw_compared(axes, own)
            if axes is panels[0]:
                _finish_dot_axes(axes, [plotting.shorten(row["name"], 34) for row in rows], None)
            axes.set_xlabel(f"{metric_name(metric)} (whiskers: {100 * level:g}% interval)" if len(metrics) == 1
                            else metric_name(metric))  # fmt: skip
        if len(metrics) == 1:
            panels[0].set_title(title)
        else:
            canvas.suptitle(f"{title}; whiskers: {100 * level:g}% interval")
        if len({row.get("kind", "model") for row in rows}) > 1:
            canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _draw_compared(axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for kind, colour, marker in (("model", BLUE, "o"), ("baseline", VERMILLION, "D")):
        chosen = [index for index, row in enumerate(rows) if row["kind"] == kind]
        if chosen:
            values, distances = _intervals([rows[index] for index in chosen], "value", "low", "high")
            axes.errorbar(values, chosen, xerr=distances, fmt=marker, color=colour, capsize=3, linewidth=1.5,
                          label="this study" if kind == "model" else kind)  # fmt: skip
    reached = [_number(row.get("value")) for row in rows if row["kind"] == "baseline"]
    if reached and np.isfinite(reached).any():
        axes.axvline(np.nanmax(reached), color=VERMILLION, linewidth=0.9, linestyle=":", zorder=0)


def reliability(curves: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike) -> None:
    """Observed frequency against stated probability (DeGroot & Fienberg 1983), and how often each was stated.

    Args:
        curves: name ("before", "after temperature scaling") -> bins with confidence (mean stated probability),
            accuracy (observed frequency) and count; empty bins may be left out.
        path: the PNG to write.
    """
    with plotting.figure(path, 4.6, 5.9) as canvas:
        axes, counts = canvas.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect calibration")
        for index, (name, bins) in enumerate(curves.items()):
            used = [row for row in bins if row["count"] > 0]
            confidence = [row["confidence"] for row in used]
            look = {"color": (BLUE, VERMILLION, GREEN)[index % 3], "marker": MARKERS[index], "linestyle": DASHES[index]}
            axes.plot(confidence, [row["accuracy"] for row in used], label=name, **look)
            counts.plot(confidence, [row["count"] for row in used], **look)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency", title="Reliability")
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        plotting.log_scale(counts.yaxis)
        counts.set(xlabel="stated probability", ylabel="decisions")


def mistakes(images: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """The most confident mistakes as a montage.

    Args:
        images: N pictures as `plotting.to_rgb` takes them.
        rows: N dicts with true and predicted (lists of class names) and probability.
        path: the PNG to write.
    """
    captions = []
    for row in rows:
        true, predicted = (plotting.shorten(" + ".join(row[key]) or "none", 22) for key in ("true", "predicted"))
        captions.append(f"true: {true}\npred.: {predicted}\np = {row['probability']:.2f}")
    plotting.montage(images, captions, path, columns=5, title="Most confident mistakes", cell=1.6)
