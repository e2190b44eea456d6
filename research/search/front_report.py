"""How is a front shown: pictures for print, a page that answers to the pointer, a few sentences?"""

import itertools
import math
import pathlib

import numpy as np

from input_pipeline import plotting
from input_pipeline.tabular import format_number
from research.report import markup
from research.search.front import Front

_WIDTH, _HEIGHT, _MARGIN = 620, 420, 58  # of an interactive plot, in pixels


def sentences(found: Front) -> list[str]:
    """What a person should read first."""
    names = [f"{'highest' if o.maximize else 'lowest'} {o.column}" for o in found.objectives]
    at_knee = zip(found.objectives, found.values[found.knee], strict=True)
    knee = ", ".join(f"{objective.column} {_show(value)}" for objective, value in at_knee)
    reference = ", ".join(map(_show, found.reference))
    lines = [
        f"{len(found.rows)} of {int(found.usable.sum())} rows are beaten by no other ({', '.join(names)}).",
        f"Knee: line {found.lines[found.knee]} ({knee}).",
        f"Hypervolume {found.hypervolume:.6g} up to ({reference}){_log_note(found)}; "
        f"spacing {'unknown with fewer than three points' if math.isnan(found.spacing) else f'{found.spacing:.3g}'}.",
    ]
    if not found.usable.all():
        left_out = ", ".join(map(str, found.lines[~found.usable]))
        lines.append(f"Left out, because an objective is not a number: line {left_out}.")
    return lines


def _show(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else format_number(value)


def _log_note(found: Front) -> str:
    logs = [objective.column for objective in found.objectives if objective.log]
    return f", with log10 of {', '.join(logs)}" if logs else ""


def _label(objective) -> str:
    direction = "more is better" if objective.maximize else "less is better"
    return f"{objective.column} ({direction}{', log axis' if objective.log else ''})"


def draw_front(found: Front, path: pathlib.Path) -> None:
    """One panel for every pair of objectives: all rows, the front, and its knee."""
    pairs = list(itertools.combinations(range(len(found.objectives)), 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    others = np.setdiff1d(np.flatnonzero(found.usable), found.rows)
    with plotting.figure(path, 5.2 if columns == 1 else 4.2 * columns, 3.9 * rows) as canvas:
        for axes, (x, y) in zip(canvas.subplots(rows, columns, squeeze=False).flat, pairs, strict=True):
            axes.scatter(*found.values[others][:, [x, y]].T, s=18, c="#9A9A9A", marker="o", label="beaten", zorder=2)
            front = found.values[found.rows][:, [x, y]]
            if len(found.objectives) == 2:  # what the front attains; it is ordered from the best of the first objective
                axes.step(*front.T, where="post", color=plotting.BLUE, linewidth=1.1, zorder=1)
            axes.scatter(*front.T, s=30, c=plotting.BLUE, marker="s", label="beaten by none", zorder=3)
            knee = found.values[found.knee][[x, y]]
            axes.scatter(*knee, s=110, facecolors="none", edgecolors=plotting.VERMILLION, linewidths=1.6, marker="D",
                         label="knee", zorder=4)  # fmt: skip
            for axis, index in ((axes.xaxis, x), (axes.yaxis, y)):
                if found.objectives[index].log:
                    plotting.log_scale(axis)
                    axis.set_ticks(_Axis(found, index, _WIDTH).ticks())
                    axis.set_ticks([], minor=True)
            axes.set(xlabel=_label(found.objectives[x]), ylabel=_label(found.objectives[y]))
        handles = canvas.axes[0].get_legend_handles_labels()
        canvas.legend(*handles, loc="outside lower center", ncols=3)


def draw_parallel(found: Front, path: pathlib.Path) -> None:
    """One line per row over the objectives, best at the top; the front is coloured."""
    costs = np.column_stack([o.cost(v) for o, v in zip(found.objectives, found.values[found.usable].T, strict=True)])
    low, high = costs.min(0), costs.max(0)
    heights = 1 - (costs - low) / np.where(high > low, high - low, 1.0)
    on_front = np.isin(np.flatnonzero(found.usable), found.rows)
    positions = np.arange(len(found.objectives))
    with plotting.figure(path, 2.2 * len(found.objectives) + 1.5, 3.8) as canvas:
        axes = canvas.subplots()
        for mask, look in (
            (~on_front, {"color": "#BBBBBB", "linewidth": 0.8, "label": "beaten"}),
            (on_front, {"color": plotting.BLUE, "linewidth": 1.6, "label": "beaten by none"}),
        ):
            if mask.any():
                lines = axes.plot(positions, heights[mask].T, **{**look, "label": None})
                lines[0].set_label(look["label"])
        for position, objective in enumerate(found.objectives):
            column = found.values[found.usable, position]
            best, worst = (column.max(), column.min()) if objective.maximize else (column.min(), column.max())
            axes.axvline(position, color=plotting.GREY, linewidth=0.8, zorder=0)
            axes.text(position, 1.03, _show(best), ha="center", va="bottom", fontsize=8)
            axes.text(position, -0.03, _show(worst), ha="center", va="top", fontsize=8)
        names = [plotting.wrap(o.column, 18) + ("\n(log)" if o.log else "") for o in found.objectives]
        axes.set_xticks(positions, names)
        axes.tick_params(axis="x", pad=14)
        axes.set_yticks([0, 1], ["worst", "best"])
        axes.set(xlim=(-0.3, positions[-1] + 0.3), ylim=(-0.02, 1.02))
        axes.grid(visible=False)
        canvas.legend(loc="outside lower center", ncols=2)


def page(found: Front, name: str) -> str:
    """The whole page: sentences, a plot for every pair of objectives, the front's rows, all rows."""
    title = f"Front of {name}"
    body = [f"<h1>{markup.text(title)}</h1>\n"]
    body += [f"<p>{markup.text(sentence)}</p>\n" for sentence in sentences(found)]
    body.append('<p class="soft">Rest the pointer on a point to read its row.</p>\n<div class="figures">\n')
    body += [plot(found, x, y) for x, y in itertools.combinations(range(len(found.objectives)), 2)]
    body.append("</div>\n<h2>Beaten by none</h2>\n")
    body.append(_table(found, found.rows))
    body.append(f"<h2>All rows</h2>\n<details><summary>{len(found.table)} rows</summary>\n")
    body.append(_table(found, np.arange(len(found.table))) + "</details>\n")
    return markup.document(title, "".join(body))


def _table(found: Front, rows: np.ndarray) -> str:
    columns = {"line": "line"} | {f"c{i}": str(column) for i, column in enumerate(found.table.columns)}
    cells = []
    for row in rows:
        values = [_number(value) for value in found.table.iloc[row]]
        cells.append({"line": int(found.lines[row])} | {f"c{i}": value for i, value in enumerate(values)})
    return markup.table(columns, cells, chosen=int(found.lines[found.knee]))


def _number(text: object) -> object:
    try:
        return float(text) if math.isfinite(float(text)) else str(text)
    except (TypeError, ValueError):
        return str(text)


def plot(found: Front, x: int, y: int) -> str:
    """An SVG of two objectives; every point is titled with its row."""
    across, up = _Axis(found, x, _WIDTH), _Axis(found, y, _HEIGHT)
    names = [markup.text(_label(found.objectives[index])) for index in (x, y)]
    on_front = set(found.rows.tolist())
    points = sorted(np.flatnonzero(found.usable).tolist(), key=lambda row: row in on_front)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" style="max-width:100%;height:auto" '
        f'font-size="12" fill="currentColor"><title>{names[1]} against {names[0]}</title>'
        + _grid(across, up, names)
        + "".join(_point(found, row, across, up, row in on_front) for row in points)
        + "</svg>\n"
    )


def _grid(across: "_Axis", up: "_Axis", names: list[str]) -> str:
    bottom, line = _HEIGHT - _MARGIN, 'stroke="currentColor" stroke-opacity=".15"'
    parts = []
    for value in across.ticks():
        at = across.place(value)
        parts.append(f'<path d="M{at:.1f} {bottom}V12" {line}/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.4g}</text>')
    for value in up.ticks():
        at = _HEIGHT - up.place(value)
        parts.append(f'<path d="M{_MARGIN} {at:.1f}H{_WIDTH - 12}" {line}/>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{names[0]}</text>')
    turned = f'transform="translate(14 {bottom / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{names[1]}</text>')
    return "".join(parts)


def _point(found: Front, row: int, across: "_Axis", up: "_Axis", on_front: bool) -> str:
    look = f'r="5.5" fill="{plotting.BLUE}"' if on_front else 'r="4" fill="#9A9A9A"'
    lines = [f"line {found.lines[row]}"]
    if row == found.knee:
        look += f' stroke="{plotting.VERMILLION}" stroke-width="3"'
        lines.append("(knee)")
    lines += [f"{column}: {value}" for column, value in found.table.iloc[row].items()]
    x, y = across.place(found.values[row, across.index]), _HEIGHT - up.place(found.values[row, up.index])
    title = markup.text("\n".join(lines))
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" {look} tabindex="0"><title>{title}</title></circle>'


class _Axis:
    """Where the values of an objective lie along `length` pixels."""

    def __init__(self, found: Front, index: int, length: int) -> None:
        self.index, self.length, self.log = index, length, found.objectives[index].log
        values = self._scale(found.values[found.usable, index])
        room = 0.06 * (values.max() - values.min()) or 0.5
        self.low, self.high = values.min() - room, values.max() + room

    def _scale(self, value):
        return np.log10(value) if self.log else np.asarray(value, float)

    def place(self, value: float) -> float:
        """Pixels from the left, or from the bottom."""
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return float(_MARGIN + share * (self.length - _MARGIN - 12))

    def ticks(self) -> list[float]:
        """About five round values."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        if self.log and high > 5 * low:
            locator = LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0), numticks=20)
        else:
            locator = MaxNLocator(5)
        return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]
