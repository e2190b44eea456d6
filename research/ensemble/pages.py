"""What does a reader see of the ensembles? The metric against K, what choosing on test gains, and a page."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import plotting
from input_pipeline.tabular import format_number
from research.ensemble import evaluating, fitting
from research.ensemble.fitting import PartFit
from research.ensemble.library import Library
from research.report import markup
from research.report.plots import metric_name

_NAMED = 6  # members that a cell of the page names
PICTURE, SELECTION_PICTURE = "ensembles.png", "test_selection.png"
_NAMES = {
    "majority": "Majority vote",
    "mean": "Mean",
    "weighted": "Weighted mean",
    "rank": "Rank average",
    "greedy": "Greedy selection",
    "logistic": "Stacking, logistic",
    "dense": "Stacking, dense layer",
    evaluating.SINGLE: "Best single member",
    evaluating.CHOICE: "Best of all",
}


def draw(rows: Sequence[Mapping], methods: Sequence[str], metric: str, path: pathlib.Path) -> None:
    """The metric on test against K, a panel per method, with intervals, beside the single member's.

    Args:
      rows: of `evaluating.rows`; the first is the single member's.
    """
    single, across = rows[0], min(4 if len(methods) > 6 else 3, len(methods))
    down = -(-len(methods) // across)
    with plotting.figure(path, 2.5 * across + 0.6, 2.4 * down + 0.6) as canvas:
        grid = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for index, (axes, method) in enumerate(zip(grid.flat, methods, strict=False)):
            own = [row for row in rows if row["method"] == method and isinstance(row["k"], int)]
            _panel(axes, own, single, metric, index)
            axes.set_title(_NAMES[method])
            if index + across >= len(methods):  # the lowest panel of its column
                axes.tick_params(axis="x", labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"test {metric_name(metric)}")
        canvas.supxlabel("K: members, or draws of the greedy selection", fontsize=9)
        spare, handles = grid.flat[len(methods) :], _legend()
        for axes in spare:
            axes.axis("off")
        if len(spare):
            spare[0].legend(handles=handles, loc="center")
        else:
            canvas.legend(handles=handles, loc="outside upper center", ncols=2)


def _panel(axes, own: Sequence[Mapping], single: Mapping, metric: str, index: int) -> None:
    from matplotlib.ticker import MaxNLocator

    value, colour = f"test/{metric}", plotting.COLOURS[index % len(plotting.COLOURS)]
    k = np.array([row["k"] for row in own])
    low, high = (np.array([row[end] for row in own], float) for end in ("low", "high"))
    if np.isfinite([single["low"], single["high"]]).all():  # one group alone has no interval
        axes.axhspan(single["low"], single["high"], color=plotting.GREY, alpha=0.13, linewidth=0)
    axes.axhline(single[value], color=plotting.GREY, linestyle="--", linewidth=1.1)
    axes.fill_between(k, low, high, color=colour, alpha=0.18, linewidth=0)
    for end in (low, high):
        axes.plot(k, end, color=colour, linewidth=0.5, alpha=0.6)
    marker = plotting.MARKERS[index % len(plotting.MARKERS)]
    axes.plot(k, [row[value] for row in own], color=colour, marker=marker, markersize=3.2 if len(k) > 12 else 4.5)
    for row in own:
        if row.get("chosen"):
            axes.plot(row["k"], row[value], "o", markersize=10, markerfacecolor="none", markeredgecolor="#222222",
                      markeredgewidth=1.2)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _legend() -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color="#444444", marker="o", markersize=4.5, label="ensemble"),
        Patch(color="#444444", alpha=0.18, label="95 % interval\nover groups"),
        Line2D([], [], color=plotting.GREY, linestyle="--", label="single member, best\non calibration"),
        Line2D([], [], marker="o", markersize=10, markerfacecolor="none", markeredgecolor="#222222", linestyle="",
               label="K chosen on\ncalibration"),
    ]  # fmt: skip


def draw_selection(rows: Sequence[Mapping], metric: str, path: pathlib.Path) -> None:
    """Each choice made on calibration and on test, both as scored on test (rows of `evaluating.flattering`)."""
    with plotting.figure(path, 7.0, plotting.barh_height(len(rows), 0.32, 1.4)) as canvas:
        axes = canvas.subplots()
        for position, row in enumerate(rows):
            axes.plot([row["calibration_value"], row["test_value"]], [position] * 2, color="#999999", linewidth=1.4)
        for key, label, marker, colour in (
            ("calibration_value", "chosen on calibration", "o", plotting.BLUE),
            ("test_value", "chosen on test, as the original did", "D", plotting.VERMILLION),
        ):
            values = [row[key] for row in rows]
            axes.plot(values, range(len(rows)), marker, color=colour, label=label, markersize=6, linestyle="",
                      markerfacecolor=colour if marker == "o" else "white")  # fmt: skip
        axes.set_yticks(range(len(rows)), [_NAMES[row["choice"]] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"test {metric_name(metric)}")
        axes.set_title("What choosing on the test set gains in print")
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def sentences(rows: Sequence[Mapping], library: Library, metric: str) -> list[str]:
    """What a person should read first."""
    single, shown = rows[0], metric_name(metric)
    chosen = next(row for row in rows if "method and K" in (row.get("chosen") or ""))
    beaten = sum(row.get("p_holm") is not None and row["p_holm"] < 0.05 and row["difference"] > 0 for row in rows)
    images = sum(len(part.test.ids) for part in library.parts)
    groups = len({group for part in library.parts for group in part.test.groups})
    return [
        f"{len(library.members)} members, {images} test images in {groups} groups"
        + (f", {len(library.parts)} folds, each with its own choices" if len(library.parts) > 1 else "") + ".",
        f"The best member on calibration ({_members(single)}) has test {shown} {_estimate(single, metric)}.",
        f"The ensemble that calibration chose ({chosen['name']}) has {_estimate(chosen, metric)}: a difference of "
        f"{_signed(chosen['difference'])} [{_signed(chosen['difference_low'])}, {_signed(chosen['difference_high'])}], "
        f"p = {_p(chosen['p'])}, after Holm's correction {_p(chosen['p_holm'])}.",
        f"{beaten} of {len(rows) - 1} ensembles are better than the single member after Holm's correction (5 %).",
    ]  # fmt: skip


def selection_sentence(rows: Sequence[Mapping], metric: str) -> str:
    """What choosing method and K on test would have gained."""
    row = rows[-1]
    honest, printed = format_number(row["calibration_value"]), format_number(row["test_value"])
    return (
        f"Choosing method, K, members and weights on test ({row['on_test']}) would have printed "
        f"{metric_name(metric)} {printed} instead of {honest}: "
        f"flattered by {_signed(row['flattered'])} [{_signed(row['flattered_low'])}, {_signed(row['flattered_high'])}]."
    )


def _members(row: Mapping) -> str:
    found = json.loads(row["members"])
    if isinstance(found, list):
        return ", ".join(found)
    if len({tuple(own) for own in found.values()}) == 1:
        return f"{', '.join(next(iter(found.values())))} in every fold"
    return ", ".join(f"fold {fold}: {', '.join(own)}" for fold, own in found.items())


def _estimate(row: Mapping, metric: str) -> str:
    return f"{format_number(row[f'test/{metric}'])} [{format_number(row['low'])}, {format_number(row['high'])}]"


def _signed(value: float) -> str:
    text = format_number(value)
    return f"+{text}" if value > 0 else text


def _p(value: float) -> str:
    if math.isnan(value):
        return format_number(value)
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def page(
    title: str,
    command: str,
    rows: Sequence[Mapping],
    selection: Sequence[Mapping],
    library: Library,
    fits: Sequence[PartFit],
    methods: Sequence[str],
    notes: Sequence[str],
    metric: str,
) -> str:
    """The whole page. `selection` holds rows of `evaluating.flattering`, or nothing; `notes` what was left out."""
    body = [f"<h1>{markup.text(title)}</h1>\n"]
    body += [f'<p class="warning">{markup.text(line)}</p>\n' for line in library.warnings]
    body += [f"<p>{markup.text(line)}</p>\n" for line in sentences(rows, library, metric)]
    caption = (
        f"{metric_name(metric).capitalize()} on test for every K. Bands: 95 % intervals over groups; dashed: the "
        "single member that was best on calibration, with its interval in grey; circles: the K that calibration chose."
    )
    body.append(_figure(PICTURE, caption))
    body.append("<h2>What calibration chose</h2>\n" + _table([rows[0], *(r for r in rows if r.get("chosen"))], metric))
    if selection:
        body.append("<h2>Had the test set chosen</h2>\n" + _selection(selection, metric))
    body.append(
        f"<h2>Every ensemble</h2>\n<details><summary>{len(rows)} rows</summary>\n{_table(rows, metric)}</details>\n"
    )
    body.append("<h2>Members</h2>\n" + "".join(_ranking(library, fit, i, metric) for i, fit in enumerate(fits)))
    body.append("<h2>How it was done</h2>\n")
    lines = {name: f"{_NAMES[name]}: {fitting.METHODS[name]}." for name in methods}
    body.append("<ul>\n" + "".join(f"<li>{markup.text(line)}</li>\n" for line in lines.values()) + "</ul>\n")
    body += [f"<p>{markup.text(line)}</p>\n" for line in (*_method(library, metric, len(rows) - 1), *notes)]
    body.append(f"<pre>{markup.text(command)}</pre>\n")
    return markup.document(title, "".join(body))


def _method(library: Library, metric: str, tests: int) -> list[str]:
    settings = library.evaluation
    return [
        f"Members are ranked by {metric_name(metric)} on calibration, equal ones by log loss; ranking, K, weights, "
        "stackers, temperatures and thresholds rest on calibration alone, and test was scored once. Calibration "
        "metrics are of the examples that the choices were fitted on, but for the stackers, which predict each example "
        "without its own fold.",
        f"Intervals: percentile bootstrap over groups, {settings.bootstrap} resamples, 95 %. p: two-sided paired "
        f"permutation test, {evaluating.exchanges(tests):,} exchanges of whole groups; Holm's correction over all "
        "ensembles that are not the single member itself.",
        "Weighted mean: the log loss is convex in the weights, so one start of SLSQP (equal weights) finds the "
        "optimum, which a duality gap confirms; random restarts cannot improve it.",
    ]


def _figure(path: str, caption: str) -> str:
    words = markup.text(caption)
    return f'<figure><img src="{path}" alt="{words}"><figcaption>{words}</figcaption></figure>\n'


def _table(rows: Sequence[Mapping], metric: str) -> str:
    columns = {"name": "ensemble", "method": "method", "k": "K", "chosen": "chosen", "calibration": "calibration",
               "test": f"test {metric_name(metric)}", "difference": "minus single", "p": "p", "p_holm": "Holm p",
               "auroc": "test macro AUROC", "log_loss": "test log loss", "members": "members"}  # fmt: skip
    cells = []
    for row in rows:
        cell = {key: row.get(key) for key in ("name", "k", "p", "p_holm")}
        cell |= {"method": _NAMES.get(row["method"], row["method"]), "chosen": row.get("chosen") or "",
                 "calibration": row[f"calibration/{metric}"], "auroc": row["test/auroc_macro"],
                 "log_loss": row["test/log_loss"], "members": _weighted(row)}  # fmt: skip
        cell["test"] = {"value": row[f"test/{metric}"], "low": row["low"], "high": row["high"]}
        if row.get("difference") is not None:
            ends = {"low": row["difference_low"], "high": row["difference_high"]}
            cell["difference"] = {"value": row["difference"]} | ends
        cells.append(cell)
    return markup.table(columns, cells)


def _weighted(row: Mapping) -> str:
    """The members' names, at most six, with weights where they are not equal; folds are only counted."""
    members, weights = json.loads(row["members"]), json.loads(row.get("weights") or "null")
    if isinstance(members, dict):
        return f"{len(members)} folds, see ensembles.csv"
    if not weights or len(set(weights)) == 1:
        shown = members
    else:
        used = sorted(zip(weights, members, strict=True), key=lambda pair: -pair[0])
        shown = [f"{name} ({weight:.3f})" for weight, name in used if weight >= 5e-4]
    return ", ".join(shown if len(shown) <= _NAMED else [*shown[:_NAMED], f"and {len(shown) - _NAMED} more"])


def _ranking(library: Library, fit: PartFit, index: int, metric: str) -> str:
    rows = [
        {"rank": rank + 1, "member": library.members[m], "value": fit.members[m][metric],
         "log_loss": fit.members[m]["log_loss"], "temperature": float(fit.temperatures[m])}
        for rank, m in enumerate(fit.order)
    ]  # fmt: skip
    fold = library.parts[index].fold
    where = "" if fold is None else f" of fold {fold}"
    columns = {"rank": "rank", "member": "member", "value": metric_name(metric), "log_loss": "log loss",
               "temperature": "temperature"}  # fmt: skip
    return markup.table(columns, rows, f"Ranked on calibration{where}.")


def _selection(rows: Sequence[Mapping], metric: str) -> str:
    shown = [
        {"choice": _NAMES[row["choice"]], "on_calibration": row["on_calibration"], "on_test": row["on_test"],
         "calibration_value": row["calibration_value"], "test_value": row["test_value"],
         "flattered": {"value": row["flattered"], "low": row["flattered_low"], "high": row["flattered_high"]}}
        for row in rows
    ]  # fmt: skip
    columns = {"choice": "choice", "on_calibration": "calibration chose", "calibration_value": "test value",
               "on_test": "test chose", "test_value": "test value", "flattered": "flattered by"}  # fmt: skip
    caption = "Both scored on test. Only what calibration chose could have been chosen beforehand."
    return (
        f"<p>{markup.text(selection_sentence(rows, metric))}</p>\n"
        + _figure(SELECTION_PICTURE, caption)
        + markup.table(columns, shown)
    )
