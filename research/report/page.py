"""What does a reader of a finished study see? One page, `report/index.html`, and its numbers, `report/metrics.json`.

The page is self-contained: inline style and script, no request to anywhere, light and dark, printable, with the PNGs
beside it. It shows what it is given and computes no statistic. A part that the context lacks is left out;
without `headline` the page says that nothing was scored.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import cli, plotting
from input_pipeline.tabular import format_number
from research.report import markup, settings_table, tables
from research.report.context import Context
from research.report.plots import metric_name
from research.report.search import Search

LOWER_IS_BETTER = frozenset({"ece", "log_loss"})
_SECTIONS = {
    "result": "Result",
    "search": "Search",
    "classes": "Classes",
    "masks": "Masks",
    "trials": "Trials",
    "training": "Training",
    "calibration": "Calibration and thresholds",
    "mistakes": "Most confident mistakes",
    "explanations": "Explanations",
    "data": "Data",
    "more": "More figures",
    "provenance": "How these numbers were obtained",
    "run": "Configuration and environment",
}


def write_page(run_dir: str | os.PathLike, context: Mapping[str, Any], search: Search | None = None) -> pathlib.Path:
    """Writes `report/metrics.json` and `report/index.html` into the run folder, atomically.

    Args:
        run_dir: the run folder; `report/` is created.
        context: see `research.report.context.Context`; NumPy scalars are accepted.
        search: of a run with several settings; its table of trials takes the place of the plain one.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: an unknown or missing key, or a picture that is not a file inside `report/`.
    """
    unknown = sorted(set(context) - set(Context.__annotations__))
    missing = sorted({"title", "command"} - set(context))
    if unknown or missing:
        raise ValueError(f"context of the report: unknown keys {unknown}, missing keys {missing}")
    folder = pathlib.Path(run_dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    plain = to_json(context)
    if search is not None:
        plain["figures"] = [*plain.get("figures", []), *search.figures]
    pictures = [figure["path"] for figure in plain.get("figures", [])]
    pictures += [mistake["image"] for mistake in plain.get("mistakes", [])]
    sizes = {path: _picture_size(folder, path) for path in pictures}
    numbers = plain if search is None else plain | {"search": to_json(search.data)}
    cli.atomic_write(folder / "metrics.json", json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    cli.atomic_write(folder / "index.html", markup.document(plain["title"], _body(plain, sizes, search)))
    return folder / "index.html"


def to_json(value: Any) -> Any:
    """Plain JSON values: NumPy and JAX scalars and arrays become numbers and lists, NaN and Inf become None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _picture_size(folder: pathlib.Path, path: str) -> tuple[int, int]:
    """Width and height in pixels of a PNG inside `folder`, from its header (PNG specification, IHDR)."""
    pure = pathlib.PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not (folder / pure).is_file():
        raise ValueError(f"{path} is not a file inside {folder}")
    with open(folder / pure, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{folder / pure} is not a PNG")
    return struct.unpack(">II", head[16:24])


def _body(context: dict[str, Any], sizes: Mapping[str, tuple[int, int]], search: Search | None) -> str:
    parts = {
        "result": _result(context),
        "search": search.html if search else "",
        "classes": _classes(context),
        "trials": _folds(context) + (search.trials if search else _trials(context)),
        "calibration": _calibration(context),
        "mistakes": _mistakes(context.get("mistakes", [])),
        "provenance": _provenance(context.get("provenance", {})),
        "run": _run(context),
    }
    for figure in context.get("figures", []):
        section = figure.get("section", "more")
        section = section if section in _SECTIONS else "more"
        parts[section] = parts.get(section, "") + _figure(figure, *sizes[figure["path"]])
    sections = {name: parts[name] for name in _SECTIONS if parts.get(name)}
    links = " ".join(f'<a href="#{name}">{_SECTIONS[name]}</a>' for name in sections)
    head = f"<header>\n<h1>{markup.text(context['title'])}</h1>\n"
    if context.get("summary"):
        head += f'<p class="soft">{markup.text(context["summary"])}</p>\n'
    head += "".join(f'<p class="warning">{markup.text(line)}</p>\n' for line in context.get("warnings", []))
    head += f"<nav>{links}</nav>\n</header>\n"
    body = "".join(
        f'<section id="{name}">\n<h2>{_SECTIONS[name]}</h2>\n{_side_by_side(part)}</section>\n'
        for name, part in sections.items()
    )
    return f"{head}<main>\n{body}</main>\n"


def _figure(figure: Mapping[str, Any], width: int, height: int) -> str:
    """A picture at 100 CSS pixels an inch, so that the letters of all figures have one size."""
    caption, path = markup.text(figure["caption"]), markup.reference(figure["path"])
    scale = 100 / plotting.DPI
    return (
        f'<figure><a href="{path}"><img src="{path}" width="{width * scale:.0f}" height="{height * scale:.0f}" '
        f'alt="{caption}"></a><figcaption>{caption}</figcaption></figure>\n'
    )


def _side_by_side(part: str) -> str:
    """Puts the figures that close a section into a grid."""
    start = part.find("<figure><a")
    return part if start < 0 else f'{part[:start]}<div class="figures">\n{part[start:]}</div>\n'


def _best_baseline(name: str, baselines: Sequence[Mapping[str, Any]]) -> tuple[float, str] | None:
    found = []
    for baseline in baselines:
        value = baseline["metrics"].get(name)
        value = value.get("value") if isinstance(value, Mapping) else value
        if value is not None:
            found.append((value, baseline["name"]))
    if not found:
        return None
    return (min if name in LOWER_IS_BETTER else max)(found, key=lambda item: item[0])


def _card(metric: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]], level: float | None) -> str:
    name, low, high = metric["name"], metric.get("low"), metric.get("high")
    lines = []
    if low is not None and high is not None:
        share = f"{100 * level:g}% " if level else ""
        lines.append(f"{share}interval {format_number(low)} to {format_number(high)}")
    else:
        lines.append("no interval")
    counts = [f"{metric[key]:,} {word}" for key, word in (("n_examples", "images"), ("n_groups", "groups"))
              if metric.get(key) is not None]  # fmt: skip
    where = f"on {metric['role']}" if metric.get("role") else ""
    lines.append(" ".join(part for part in (where, f"({', '.join(counts)})" if counts else "") if part))
    best = _best_baseline(name, baselines)
    if best:
        bound = high if name in LOWER_IS_BETTER else low
        clear = bound is not None and (bound < best[0] if name in LOWER_IS_BETTER else bound > best[0])
        verdict = "the whole interval is better" if clear else "the interval is NOT wholly better"
        lines.append(f"best baseline {format_number(best[0])} ({best[1]}): {verdict}")
    spans = "".join(f"<span>{markup.text(line)}</span>" for line in lines if line)
    value = markup.text(format_number(metric.get("value")))
    return f'<div class="card">{markup.text(metric_name(name))}<b>{value}</b>{spans}</div>\n'


def _result(context: Mapping[str, Any]) -> str:
    headline, baselines = context.get("headline", []), context.get("baselines", [])
    if not headline:
        return "<p>There are no labelled test images, so nothing is scored here.</p>\n"
    level = context.get("provenance", {}).get("bootstrap", {}).get("level")
    cards = "".join(_card(metric, baselines, level) for metric in headline)
    part = f'<div class="cards">\n{cards}</div>\n'
    settings = context.get("settings", {})
    if settings.get("cited") or sum(row["kind"] == "model" for row in settings.get("rows", [])) > 1:
        return part + settings_table.section(**settings, metric=headline[0]["name"])
    if baselines:
        names = [metric["name"] for metric in headline]
        first = {"name": context.get("chosen_trial", "this study"), **{metric["name"]: metric for metric in headline}}
        rows = [first] + [{"name": baseline["name"], **baseline["metrics"],
                           "description": baseline.get("description", "")} for baseline in baselines]  # fmt: skip
        columns = {"name": "", **{name: metric_name(name) for name in names}}
        if any(row.get("description") for row in rows):
            first["description"] = ""
            columns["description"] = "what it does"
        part += markup.table(columns, rows, "Beside the trivial baselines, on the same images.", chosen=first["name"])
    return part


def _classes(context: Mapping[str, Any]) -> str:
    rows = [dict(row) for row in context.get("per_class", [])]
    if not rows:
        return ""
    for row in rows:
        for name in [key.removesuffix("_low") for key in row if key.endswith("_low")]:
            row[name] = {"value": row.get(name), "low": row[f"{name}_low"], "high": row.get(f"{name}_high")}
    names = {"class": "class", "dice": "Dice", "iou": "IoU", "f1": "F1", "precision": "precision", "recall": "recall",
             "average_precision": "average precision", "auroc": "AUROC", "threshold": "threshold",
             "support": "images"}  # fmt: skip
    columns = {key: name for key, name in names.items() if any(key in row for row in rows)}
    table = markup.table(columns, rows, "Every class; brackets are intervals.")
    if merged := context.get("merged"):
        names = [name for name in ("accuracy", "recall_macro", "macro_f1", "mcc") if name in merged["metrics"]]
        row = {"classes": ", ".join(merged["classes"])} | {name: merged["metrics"][name] for name in names}
        head = {"classes": "counted as one"} | {name: metric_name(name) for name in names}
        table += markup.table(head, [row], "With classes that are hard to tell apart counted as one.")
    return table


def _folds(context: Mapping[str, Any]) -> str:
    folds = context.get("folds", [])
    if not folds:
        return ""
    metrics = list(dict.fromkeys(name for fold in folds for name in fold["metrics"]))
    rows = [{**fold, "fold": f"{fold['fold']}", **fold["metrics"]} for fold in folds]
    columns = {"fold": "fold", **{name: metric_name(name) for name in metrics}, "n_examples": "images",
               "n_groups": "groups"}  # fmt: skip
    columns = {key: name for key, name in columns.items() if any(key in row for row in rows)}
    return markup.table(columns, rows, "Each fold's held-out images.")


def _trials(context: Mapping[str, Any]) -> str:
    trials = context.get("trials", [])
    if not trials:
        return ""
    flat = [tables.flatten(row) for row in trials]
    wanted = {metric["name"] for metric in context.get("headline", [])}
    columns = {}
    for name in tables.column_order(flat):
        split, slash, metric = name.partition("/")
        if not slash:
            columns[name] = name.replace("_", " ")
        elif metric in wanted or not wanted:
            columns[name] = f"{split} {metric_name(metric)}"
    for row, trial in zip(flat, trials, strict=True):
        settings = [f"{key}={value}" for key, value in (trial.get("overrides") or {}).items()]
        row["overrides"] = ", ".join(settings) or "none"
    known = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in flat)}
    return markup.table(known, flat, "Every trial (trials.csv has all columns).", context.get("chosen_trial"))


def _calibration(context: Mapping[str, Any]) -> str:
    part, calibration, thresholds = "", context.get("calibration"), context.get("thresholds")
    if calibration:
        rows = [{"metric": metric_name(name), "before": calibration.get(f"{name}_before"),
                 "after": calibration.get(f"{name}_after")} for name in ("ece", "log_loss")
                if f"{name}_before" in calibration]  # fmt: skip
        where = f", fitted on the role {calibration['role']}" if calibration.get("role") else ""
        temperature = format_number(calibration.get("temperature"))
        part += f"<p>{markup.text(f'Temperature {temperature}{where}.')}</p>\n"
        if rows:
            part += markup.table({"metric": "", "before": "before", "after": "after temperature scaling"}, rows)
    if thresholds:
        sentence = [f"Thresholds: {thresholds.get('method', 'fixed')}"]
        sentence += [f"fitted on the role {thresholds['role']}"] if thresholds.get("role") else []
        sentence += [f"fallback: {thresholds['fallback']}"] if thresholds.get("fallback") else []
        part += f"<p>{markup.text('; '.join(sentence))}.</p>\n"
        rows = thresholds.get("rows", [])
        if rows:
            columns = {key: key.replace("_", " ") for row in rows for key in row}
            part += markup.table(columns, rows)
    return part


def _mistakes(mistakes: Sequence[Mapping[str, Any]]) -> str:
    if not mistakes:
        return ""
    cells = []
    for mistake in mistakes:
        true, predicted = (" + ".join(mistake[key]) or "none" for key in ("true", "predicted"))
        note = f"<br>{markup.text(mistake['note'])}" if mistake.get("note") else ""
        cells.append(
            f'<figure><img loading="lazy" src="{markup.reference(mistake["image"])}" '
            f'alt="{markup.text(mistake["id"])}"><figcaption>true: <b>{markup.text(true)}</b><br>predicted: '
            f"<b>{markup.text(predicted)}</b><br>p = {format_number(mistake['probability'])}<br>"
            f"<code>{markup.text(mistake['id'])}</code>{note}</figcaption></figure>\n"
        )
    return f'<div class="mistakes">\n{"".join(cells)}</div>\n'


def _provenance(provenance: Mapping[str, Any]) -> str:
    part = "".join(f"<p>{markup.text(statement)}</p>\n" for statement in provenance.get("statements", []))
    roles = provenance.get("roles", [])
    if roles:
        columns = {"role": "role", "n_examples": "images", "n_groups": "groups", "used_for": "what it decided"}
        columns = {key: name for key, name in columns.items() if any(key in row for row in roles)}
        part += markup.table(columns, roles, "The roles and what each was used for.")
    if provenance.get("bootstrap"):
        part += "<h3>Intervals</h3>\n" + markup.pairs(provenance["bootstrap"])
    return part


def _run(context: Mapping[str, Any]) -> str:
    part = f"<pre>{markup.text(context['command'])}</pre>\n"
    if context.get("config_summary"):
        part += markup.pairs(context["config_summary"])
    if context.get("files"):
        rows = [{"path": path, "what": what} for path, what in context["files"].items()]
        part += markup.table({"path": "file", "what": "what it is"}, rows, "In the run folder.")
    for name, heading in (("environment", "Environment"), ("config", "Whole configuration")):
        if context.get(name):
            part += f"<details><summary>{heading}</summary>\n{markup.pairs(context[name])}</details>\n"
    return part
