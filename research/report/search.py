"""What did a search find, what did it cost, and how sure is it?

The search part of `report/index.html`, from the files of a run folder alone: the ledger, `compressed.csv`,
`metrics.jsonl`, `plan.json`, `rungs.json` and, for the confirmed front, the predictions. A part whose file or columns
are missing is left out.

A point of a front is one candidate: a setting (the mean over its folds), a setting trained longer (stage "extend") or a
compressed one (stage "compress"). Everything here but the confirmed front is of the validation role.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from input_pipeline.cli import atomic_write
from input_pipeline.tabular import frame_text
from research.report import confirmed, markup, search_cost, search_plots, tables
from research.report.plots import metric_name
from research.report.writer import read_jsonl
from research.search import front as fronts
from research.search import front_report, pareto, study_outputs
from research.search.front import Front, Objective

# Costs that make a front where the ledger has them; the first is the default.
COSTS = {
    "parameters": "parameters",
    "flops": "operations of one image (2 for each multiply-add)",
    "latency_p50_ms": "latency of one image on one thread (ms)",
    "bytes": "bytes",
}
CANDIDATES = pathlib.Path("report/candidates.csv")
_FRONT_STAGES = ("search", "extend", "compress")
_MOST_CURVES = 12
_MEASURED = ("steps", "train_seconds", "peak_memory_bytes", "latency_p95_ms")


@dataclasses.dataclass(frozen=True)
class Search:
    """The search part of a report.

    Attributes:
      html: the section "Search", safe.
      trials: the table of all trials, safe.
      figures: as in `research.report.context.Figure`.
      data: for `metrics.json`.
      members: trials of the default front, in its order.
      compressed: compressed candidates of any front -> their rows' ids.
      files: written beside, path in the run folder -> what it is.
    """

    html: str
    trials: str
    figures: list[dict]
    data: dict[str, Any]
    members: list[str]
    compressed: dict[str, list[str]]
    files: dict[str, str]


def build(folder: pathlib.Path, ledger: Sequence[Mapping[str, Any]], config, multi_label: bool) -> Search:
    """Reads the run folder, draws the search's pictures into `report/`, and gives the rest.

    Args:
      folder: the run folder.
      ledger: the rows of `trials.csv`, as in `research.report.tables`.
      config: the study's. multi_label: the task.
    """
    everything = [*ledger, *compressed_rows(folder)]
    table = candidates(everything)
    log = read_jsonl(folder / "metrics.jsonl")
    found = find_fronts(table, multi_label)
    parts, figures = [_summary(everything, table)], []
    data: dict[str, Any] = {"candidates": len(table), "fronts": {}}
    members: list[str] = []
    for cost, front in found.items():
        parts.append(_front_section(cost, front, is_default=cost == next(iter(found))))
        data["fronts"][cost] = front.summary() | {"settings": table["candidate"].iloc[front.rows].tolist()}
    if found:
        default = next(iter(found.values()))
        members = [table["ids"].iloc[row][0] for row in default.rows]
        figures += _curves(folder, table, default, log)
        figures += _volume(folder, everything, table, default, log, data)
    rows = confirmed.confirmed(folder, ledger, multi_label, config.evaluation, config.seed)
    if rows:
        metric = "macro_f1" if multi_label else "accuracy"
        parts.append(_confirmed_section(rows, table, f"validation/{metric}"))
        search_plots.confirmed(rows, metric, folder / "report" / "confirmed.png")
        caption = "Confirmed settings on test, 95 % intervals over photographs and seeds; P(non-dominated) beside each."
        figures.append({"path": "confirmed.png", "caption": caption, "section": "search"})
        data["confirmed"] = rows
    parts.append(search_cost.plan_section(_read_json(folder / "plan.json"), ledger, data))
    parts.append(search_cost.rungs_section(_read_json(folder / "rungs.json"), ledger))
    files = write_candidates(folder, table)
    if config.study == "blood_cells":
        pictures, data["claims"] = study_outputs.write(folder)
        figures += pictures
        parts.append(_claims_section(data["claims"]))
        files["metrics_log.csv"] = "the study's own log: losses, accuracies and size of every model"
    return Search(
        "".join(parts), _trials_table(everything), figures, data, members, _compressed_members(table, found), files
    )


def _compressed_members(table: pd.DataFrame, found: Mapping[str, Front]) -> dict[str, list[str]]:
    rows = sorted({row for front in found.values() for row in front.rows if table["stage"].iloc[row] == "compress"})
    return {table["candidate"].iloc[row]: table["ids"].iloc[row] for row in rows}


def _claims_section(claims: Sequence[str]) -> str:
    lines = "".join(f"<li>{markup.text(claim)}</li>\n" for claim in claims)
    return f"<h3>The study's claims</h3>\n<ul>\n{lines}</ul>\n" if claims else ""


def _read_json(file: pathlib.Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


# Candidates and fronts


def candidates(ledger: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per candidate, in the order of the ledger; numbers are means over its seeds and folds.

    A candidate counts when none of its folds failed and all have figures of validation, also if they were stopped.

    Columns: candidate, stage, ids (list), overrides (dict), steps and train_seconds (sums), the costs and
    `<split>/<metric>` of train and validation.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in ledger:
        stage = row.get("stage", "search")
        if stage not in _FRONT_STAGES:
            continue
        overrides = dict(row.get("overrides") or {})
        fold = overrides.pop("search.fold", None)
        name = str(row["id"]) if fold is None else re.sub(rf"-fold{fold}(?=-|$)", "", str(row["id"]))
        if stage == "search":  # seeds of a setting, if there are several, count like folds
            name = str(row.get("setting", name))
        own = groups.setdefault((stage, name), {
            "candidate": name, "stage": stage,
            "ids": [], "overrides": overrides, "numbers": [], "whole": True,
        })  # fmt: skip
        own["ids"].append(row["id"])
        metrics = row.get("metrics") or {}
        own["whole"] &= bool(metrics.get("validation")) and not str(row.get("status", "")).startswith("failed")
        numbers = {name: row.get(name) for name in (*COSTS, *_MEASURED)}
        for split in ("train", "validation"):
            numbers |= {f"{split}/{name}": value for name, value in metrics.get(split, {}).items()}
        own["numbers"].append(numbers)
    rows = []
    for own in groups.values():
        numbers = own.pop("numbers")
        if not own.pop("whole"):
            continue
        names = dict.fromkeys(name for entry in numbers for name in entry)
        rows.append(own | {name: _over_folds(name, [entry.get(name) for entry in numbers]) for name in names})
    return pd.DataFrame(rows)


def compressed_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of `compressed.csv` as those of a ledger: their steps are those of their fine-tuning alone."""
    file = folder / "compressed.csv"
    rows = tables.read_trials_csv(file) if file.exists() else []
    return [row | {"steps": row.get("finetune_steps") or 0} for row in rows]


def write_candidates(folder: pathlib.Path, table: pd.DataFrame) -> dict[str, str]:
    """The candidates as a CSV that `research.search.pareto` reads, its lines those that the fronts name.

    Returns:
      Its path in the run folder -> what it is; nothing is written of no candidates.
    """
    if not len(table):
        return {}
    written = table.drop(columns="ids").assign(overrides=table["overrides"].map(json.dumps))
    atomic_write(folder / CANDIDATES, frame_text(written))
    return {str(CANDIDATES): "one row per candidate: settings with the means of their folds, compressed models"}


def _over_folds(name: str, values: Sequence[Any]) -> float:
    known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    total = math.fsum(known) if known else math.nan
    return total if name in ("steps", "train_seconds") or not known else total / len(known)


def find_fronts(table: pd.DataFrame, multi_label: bool = False) -> dict[str, Front]:
    """Cost -> front against accuracy (multi-label: macro F1) on validation; {} without scores.

    The fronts' tables are made for people. Bytes are left out where they say no more than parameters do.
    """
    scores = ["validation/accuracy", "validation/macro_f1"][:: -1 if multi_label else 1]
    score = next((name for name in scores if name in table and table[name].notna().any()), None)
    if score is None:
        return {}
    shown = pd.DataFrame({"trial": table["candidate"], "stage": table["stage"]})
    for key in _changed(table["overrides"]):
        shown[_short_key(key)] = [_plain(overrides.get(key)) for overrides in table["overrides"]]
    found = {}
    for cost in COSTS:
        values = pd.to_numeric(table[cost], errors="coerce") if cost in table else pd.Series(dtype=float)
        if values.nunique() < 2 or (cost == "bytes" and not (table["stage"] == "compress").any()):
            continue
        objectives = [Objective(cost, False, bool(values.min() > 0)), Objective(score, True, False)]
        front = pareto.find(table, np.arange(len(table)) + 2, objectives)
        numbers = {name: [_plain(value) for value in table[name]] for name in (cost, score)}
        found[cost] = dataclasses.replace(front, table=shown.assign(**numbers))
    return found


def _changed(overrides: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in overrides for key in entry if key != "search.fold"))


def _short_key(key: str) -> str:
    return key.removeprefix("model.options.").removeprefix("optimizer.").removeprefix("model.")


def _plain(value: Any) -> str:
    """A value of the config or a number as a short text."""
    if isinstance(value, list | tuple):
        return "×".join(map(_plain, value)) or "none"
    if isinstance(value, float) and math.isfinite(value):
        return f"{int(value):,}" if value.is_integer() else f"{value:.4g}"
    return "" if value is None else str(value)


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


# Sections


def _summary(ledger: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> str:
    states = pd.Series([str(row.get("status", "unknown")).partition(":")[0] for row in ledger]).value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [f"{len(ledger)} trials ({counts}) make {len(table)} candidates."]
    steps = sum(row.get("steps") or 0 for row in ledger)
    if steps:
        seconds = sum(row.get("train_seconds") or 0 for row in ledger)
        lines.append(
            f"{steps:,.0f} training steps{f' in {search_cost.duration(seconds)} of training' if seconds else ''}."
        )
    runtimes = sorted({str(row["latency_runtime"]) for row in ledger if row.get("latency_runtime")})
    if len(runtimes) > 1:
        lines.append(f"Latencies were measured in different runtimes, which cannot be compared: {'; '.join(runtimes)}.")
    elif runtimes:
        lines.append(f"Latency: one image, one thread, {runtimes[0]}.")
    return f"<p>{markup.text(' '.join(lines))}</p>\n"


def _front_section(cost: str, found: Front, is_default: bool) -> str:
    names = [metric_name(found.objectives[1].column.replace("/", " ")), COSTS[cost]]
    rows = []
    for row in found.rows:
        numbers = zip((objective.column for objective in found.objectives), map(_whole, found.values[row]), strict=True)
        rows.append({"line": int(found.lines[row]), **found.table.iloc[row].to_dict(), **dict(numbers)})
    columns = {"line": "line", **{str(name): str(name) for name in found.table.columns}}
    columns = {key: name for key, name in columns.items() if key == "line" or any(row[key] != "" for row in rows)}
    sentences = "".join(f"<p>{markup.text(sentence)}</p>\n" for sentence in front_report.sentences(found))
    title = markup.text(f"{names[0]} against {names[1]}")
    content = (
        f'{sentences}<p class="soft">Rest the pointer on a point to read its setting; '
        f"lines are of {CANDIDATES}.</p>\n"
        + front_report.plot(found, 0, 1)
        + markup.table(columns, rows, "Beaten by none; the knee is bold.", chosen=int(found.lines[found.knee]))
    )
    if is_default:
        return f"<h3>{title}</h3>\n{content}"
    return f"<details><summary>{title}: {len(found.rows)} beaten by none</summary>\n{content}</details>\n"


def _curves(folder: pathlib.Path, table: pd.DataFrame, found: Front, log: Sequence[Mapping[str, Any]]) -> list[dict]:
    rows = found.rows
    if len(rows) > _MOST_CURVES:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_CURVES).round().astype(int)]
    members = {table["ids"].iloc[row][0]: str(table["candidate"].iloc[row]) for row in rows}
    if not any(row["trial"] in members and row.get("split") == "validation" for row in log):
        return []
    score = found.objectives[1].column.partition("/")[2]
    search_plots.member_curves(log, members, folder / "report" / "front_curves.png", (score, "loss"))
    caption = "Learning curves of the front's members, smallest light, largest dark"
    caption += f"; {len(rows)} of {len(found.rows)}." if len(rows) < len(found.rows) else "."
    return [{"path": "front_curves.png", "caption": caption, "section": "search"}]


def volumes(
    ledger: Sequence[Mapping[str, Any]], table: pd.DataFrame, found: Front, log: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Hypervolume of the front of all candidates whose training had ended, against the steps of all trials until then.

    The rows of `metrics.jsonl` give the order in time; trials without rows there come last, in the order of the ledger.

    Returns:
      Steps `[N]` and volumes `[N]` after each of the N usable candidates, and the steps at the end. The last volume is
      that of the front, with its reference point.
    """
    reached: dict[str, float] = {}
    spent = 0.0
    ended: dict[str, tuple[int, float]] = {}
    for position, row in enumerate(log):
        before = reached.get(row["trial"], 0.0)
        reached[row["trial"]] = max(before, float(row["step"]))
        spent += reached[row["trial"]] - before
        ended[row["trial"]] = (position, spent)
    for position, row in enumerate(ledger, len(log)):
        if row["id"] not in ended:
            spent += row.get("steps") or 0
            ended[row["id"]] = (position, spent)
    events = sorted((max(ended[name] for name in table["ids"].iloc[row]), row) for row in np.flatnonzero(found.usable))
    costs = np.column_stack([o.cost(v) for o, v in zip(found.objectives, found.values[found.usable].T, strict=True)])
    costs = dict(zip(np.flatnonzero(found.usable), costs, strict=True))
    reference = np.array(
        [float(o.cost(np.array([r]))[0]) for o, r in zip(found.objectives, found.reference, strict=True)]
    )
    steps, volume, front = [], [], np.empty((0, len(found.objectives)))
    for (_, at), row in events:
        front = np.vstack([front, costs[row]])
        front = front[fronts.non_dominated(front)]
        steps.append(at)
        volume.append(fronts.hypervolume(front, reference))
    return np.array(steps), np.array(volume), spent


def _volume(folder, ledger, table, found: Front, log, data: dict[str, Any]) -> list[dict]:
    steps, volume, total = volumes(ledger, table, found, log)
    data["hypervolume"] = {"steps": steps, "volume": volume, "total_steps": total}
    if not total:
        return []
    search_plots.volume(steps, volume, folder / "report" / "hypervolume.png", total)
    caption = "Hypervolume of the front of all trials that had ended, over the training steps spent."
    return [{"path": "hypervolume.png", "caption": caption, "section": "search"}]


def _confirmed_section(rows: list[dict], table: pd.DataFrame, score: str) -> str:
    searched = dict(zip(table["candidate"], table[score], strict=True)) if score in table else {}
    shown = [row | {"search": searched.get(row["setting"])} for row in rows]
    columns = {
        "setting": "setting",
        "parameters": "parameters",
        "seeds": "seeds",
        "search": "validation, when searched",
    }
    columns |= {"test": "test, mean over seeds", "non_dominated": "P(non-dominated)"}
    text = (
        f"Trained again with fresh seeds, tested on {rows[0]['images']:,} images of {rows[0]['groups']:,} groups; 95 % "
        f"intervals from {confirmed.RESAMPLES:,} resamples of groups and seeds. P(non-dominated) is the share of them "
        "in which no other confirmed setting beats it in parameters and test mean."
    )
    return f"<h3>Confirmed front</h3>\n<p>{markup.text(text)}</p>\n{markup.table(columns, shown)}"


def _trials_table(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Every trial with what it changes, what it costs and how it fares on train and validation."""
    keys = _changed([row.get("overrides") or {} for row in ledger])
    fixed = ("stage", "status", "seed", "cohort", "plan", "steps", "train_seconds", "parameters", "bytes", "flops",
             "latency_p50_ms", "latency_p95_ms", "peak_memory_bytes")  # fmt: skip
    scores = [(split, name) for split in ("validation", "train") for name in ("accuracy", "macro_f1", "loss")]
    rows = []
    for number, row in enumerate(ledger, 2):
        overrides, metrics = row.get("overrides") or {}, row.get("metrics") or {}
        line = number if row.get("stage") != "compress" else None  # those stand in compressed.csv
        rows.append(
            {"id": str(row["id"]), "line": line}
            | {f"o:{key}": _number(overrides.get(key)) for key in keys}
            | {name: row.get(name) for name in fixed}
            | {f"{split}/{name}": metrics.get(split, {}).get(name) for split, name in scores}
        )
    columns = {"id": "trial", "line": "line", **{f"o:{key}": _short_key(key) for key in keys}}
    columns |= {f"{split}/{name}": f"{split} {metric_name(name)}" for split, name in scores}
    columns |= {name: name.replace("_", " ") for name in fixed}
    columns = {key: name for key, name in columns.items() if any(row[key] is not None for row in rows)}
    caption = "Every trial; click on a heading to sort. trials.csv and compressed.csv have all columns, also of test."
    return markup.table(columns, rows, caption)


def _number(value: Any) -> Any:
    """A number as it is, anything else as a text that sorts."""
    return value if value is None or (isinstance(value, int | float) and not isinstance(value, bool)) else _plain(value)
