"""How are the results of a search drawn, beyond its fronts?"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import plotting
from research.report.plots import metric_name


def member_curves(
    rows: Sequence[Mapping[str, Any]], members: Mapping[str, str], path: str | os.PathLike, metrics: Sequence[str]
) -> None:
    """Validation curves of the front's members, from light (first) to dark (last).

    Args:
      rows: those of `metrics.jsonl`.
      members: trial -> label, in the order of the front.
      path: the PNG to write.
      metrics: one panel for each that any row has.
    """
    from matplotlib import colormaps

    chosen = [row for row in rows if row["trial"] in members and row.get("split") == "validation"]
    present = [name for name in metrics if any(isinstance(row.get(name), int | float) for row in chosen)]
    shades = colormaps["viridis_r"](np.linspace(0.12, 1.0, len(members)))
    with plotting.figure(path, 4.4 * max(1, len(present)), 3.3 + 0.11 * len(members)) as canvas:
        panels = canvas.subplots(1, max(1, len(present)), squeeze=False)[0]
        for axes, metric in zip(panels, present, strict=False):
            for number, (trial, label) in enumerate(members.items()):
                points = sorted((row["step"], row[metric]) for row in chosen
                                if row["trial"] == trial and isinstance(row.get(metric), int | float))  # fmt: skip
                if points:
                    axes.plot(
                        *zip(*points, strict=True), color=shades[number], label=plotting.shorten(label, 46),
                        marker=plotting.MARKERS[number % len(plotting.MARKERS)] if len(points) <= 40 else None,
                        markersize=3.5, linewidth=1.3,
                    )  # fmt: skip
            axes.set(xlabel="step (optimiser updates)", ylabel=f"validation {metric_name(metric)}")
        handles = panels[0].get_legend_handles_labels()
        if handles[0]:
            canvas.legend(*handles, loc="outside lower center", ncols=2, fontsize=7)


def volume(steps: np.ndarray, volumes: np.ndarray, path: str | os.PathLike, total: float) -> None:
    """Hypervolume of the front found so far over the steps spent by all trials together.

    Args:
      steps, volumes: `[N]`, where the front was known anew.
      path: the PNG to write.
      total: steps at the end.
    """
    with plotting.figure(path, 5.2, 3.3) as canvas:
        axes = canvas.subplots()
        axes.step([0, *steps, total], [0, *volumes, volumes[-1]], where="post", color=plotting.BLUE)
        final = volumes[-1]
        axes.axhline(0.98 * final, color=plotting.GREY, linewidth=0.9, linestyle=":")
        axes.annotate("98 % of the last", (0, 0.98 * final), xytext=(2, -9), textcoords="offset points", fontsize=7,
                      color=plotting.GREY)  # fmt: skip
        axes.set(xlabel="training steps of all trials", ylabel="hypervolume of the front so far", xlim=(0, total))
        axes.set_ylim(bottom=0)


def confirmed(rows: Sequence[Mapping[str, Any]], metric: str, path: str | os.PathLike) -> None:
    """Test means of the confirmed settings with their intervals; the fuller a marker, the surer it is non-dominated.

    Args:
      rows: as `research.report.confirmed.confirmed` gives them.
      metric: what was tested.
      path: the PNG to write.
    """
    sizes = np.array([row["parameters"] for row in rows])
    with plotting.figure(path, 5.6, 3.9) as canvas:
        axes = canvas.subplots()
        for size, row in zip(sizes, rows, strict=True):
            test, share = row["test"], row["non_dominated"]
            if test["low"] is not None:
                axes.plot([size, size], [test["low"], test["high"]], color="#9A9A9A", linewidth=1.2, zorder=1)
            axes.scatter(
                size, test["value"], s=46, c=[(0, 0.447, 0.698, share or 0.0)], edgecolors=plotting.BLUE, zorder=3
            )
            if share is not None:
                axes.annotate(f"{100 * share:.0f}%", (size, test["value"]), xytext=(6, 3), textcoords="offset points",
                              fontsize=7)  # fmt: skip
        if sizes.max() > 3 * sizes.min():
            plotting.log_scale(axes.xaxis)
        axes.set(xlabel="parameters", ylabel=f"test {metric_name(metric)}, mean over seeds")
