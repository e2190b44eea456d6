"""How do several run folders differ, in their configs and on the test images that all of them share?

Reads configs, ledgers, logs and predictions; nothing is trained, and no data set is opened.
"""

import dataclasses
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.tabular import frame_text
from research.evaluation import paired_tests, score
from research.report import choice, markup, plots, settings_table, tables
from research.report.markup import flatten
from research.report.plots import metric_name
from research.report.writer import read_jsonl

_RESAMPLES = 2000
# What says where a run lies, not what it does.
_IGNORED = ("data.dir", "demonstration")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the comparison.

    Attributes:
      name: of its folder; the path where two are called alike.
      path: the folder.
      config: of the study.
      chosen: the setting that its report speaks of.
      trials: for each seed of that setting the trials of its folds.
      scored: of each of these, the test predictions.
    """

    name: str
    path: pathlib.Path
    config: Mapping[str, Any]
    chosen: str
    trials: list[list[str]]
    scored: list[score.Scored]


def read(paths: Sequence[pathlib.Path]) -> list[Run]:
    """The runs, cut to the test images that they share.

    Raises:
      UserError: a folder is no finished run, or two runs share no image, label or class.
    """
    names = [path.name for path in paths]
    names = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    runs = [_read(path, name) for path, name in zip(paths, names, strict=True)]
    first = runs[0].scored[0]
    for run in runs:
        for one in run.scored:
            if (one.class_names, one.multi_label) != (first.class_names, first.multi_label):
                raise UserError(f"{run.path} and {runs[0].path} predict other classes, so they cannot be compared.")
    shared = set.intersection(*(set(one.ids) for run in runs for one in run.scored))
    if not shared:
        raise UserError("the runs share no test image; compare runs that were tested on the same data and split.")
    runs = [dataclasses.replace(run, scored=[_part(one, shared) for one in run.scored]) for run in runs]
    labels = runs[0].scored[0].labels
    for run in runs:
        if any(not np.array_equal(one.labels, labels) for one in run.scored):
            raise UserError(f"{run.path} and {runs[0].path} have other labels for the same images; prepare them alike.")
    return runs


def _read(path: pathlib.Path, name: str) -> Run:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        ledger = tables.read_trials_csv(path / "trials.csv")
        report = json.loads((path / "report" / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no finished run: {error}; let it finish, or name another.") from error
    if report.get("task") == "segmentation":
        raise UserError(f"{path} segments, and only classifications are compared; name another run.")
    chosen = report["chosen_trial"]
    trials = [
        types.SimpleNamespace(name=row["id"], config=types.SimpleNamespace(seed=row["seed"]))
        for row in ledger
        if row.get("setting", row["id"]) == chosen and row.get("stage", "search") == "search"
    ]
    by_seed = [[trial.name for trial in folds] for folds in choice.by_seed(trials).values()]
    evaluation = ConfigDict(config["evaluation"])
    multi_label = report.get("task") == "multi-label"
    scored = [score.score(path, folds, multi_label, evaluation) for folds in by_seed]
    if not scored or None in scored:
        raise UserError(f"{path} has no test predictions of {chosen}; compare runs that were tested.")
    return Run(name, path, config, chosen, by_seed, scored)


def _part(one: score.Scored, shared: set[str]) -> score.Scored:
    """The rows of the shared images, in the order of their ids."""
    order = [row for row in np.argsort(one.ids, kind="stable") if one.ids[row] in shared]
    rows = ("ids", "groups", "labels", "before", "scores", "predicted", "folds")
    return dataclasses.replace(one, **{name: getattr(one, name)[order] for name in rows})


def config_difference(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per config key that has not one value in all runs: {"key", <run>: value, …}."""
    flat = [dict(flatten(run.config)) for run in runs]
    rows = []
    for key in dict.fromkeys(key for own in flat for key in own):
        values = [json.dumps(own[key]) if key in own else "" for own in flat]
        if len(set(values)) > 1 and key not in _IGNORED:
            rows.append({"key": key} | {run.name: value for run, value in zip(runs, values, strict=True)})
    return rows


def compare(runs: Sequence[Run], metric: str) -> list[dict[str, Any]]:
    """Rows of `settings_table.build` for the runs; "difference" has the p of a permutation test as well.

    That test exchanges the decisions of the runs' first seeds, and knows metrics of decisions only.
    """
    first = runs[0].scored[0]
    seed = int(runs[0].config.get("seed", 0))
    rows = settings_table.build(
        {run.name: run.scored for run in runs}, runs[0].name, [], first, _RESAMPLES, seed, metric=metric
    )
    k = len(first.class_names)
    tests = [
        paired_tests.count_permutation(
            run.scored[0].predicted, first.predicted, first.labels, k, first.multi_label, first.groups, seed=seed
        ).get(metric)
        for run in runs[1:]
    ]
    for row, test in zip(rows[1:], tests, strict=True):
        row["difference"]["permutation"] = test.p if test is not None else None
    return rows


def write(runs: Sequence[Run], out: pathlib.Path, metric: str = "") -> str:
    """Writes page, table and picture into `out`; gives the table as text."""
    metric = metric or score.HEADLINE[runs[0].scored[0].multi_label][0]
    rows, different = compare(runs, metric), config_difference(runs)
    out.mkdir(parents=True, exist_ok=True)
    log = [row | {"trial": run.name} for run in runs for row in _log(run)]
    plots.learning_curves(log, out / "curves.png")
    flat = pd.DataFrame([_line(run, row) for run, row in zip(runs, rows, strict=True)])
    atomic_write(out / "comparison.csv", frame_text(flat))
    atomic_write(out / "index.html", markup.document("Comparison of runs", _page(runs, rows, different, metric)))
    shown = ["run", "setting", metric, f"{metric}_low", f"{metric}_high", "difference", "p", "holm", "permutation"]
    return flat[[name for name in shown if name in flat]].to_string(index=False)


def _log(run: Run) -> list[dict]:
    trial = run.trials[0][0]
    return [row for row in read_jsonl(run.path / "metrics.jsonl") if row["trial"] == trial]


def _line(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    line = {"run": run.name, "setting": run.chosen, "seeds": row["seeds"]}
    for name, own in row["metrics"].items():
        line |= {name: own["value"], f"{name}_low": own["low"], f"{name}_high": own["high"]}
    difference = row["difference"] or {}
    line |= {"difference": difference.get("value"), "difference_low": difference.get("low")}
    line |= {"difference_high": difference.get("high")}
    return line | {name: difference.get(name) for name in ("p", "holm", "permutation")}


def _page(runs: Sequence[Run], rows: Sequence[Mapping], different: Sequence[Mapping], metric: str) -> str:
    one = runs[0].scored[0]
    text = (
        f"{len(runs)} runs on the {len(one.ids):,} test images of {len(set(one.groups)):,} groups that all share; of "
        "each the setting that its report chose, mean over its seeds. Differences are to the first run."
    )
    columns = {"run": "run", "setting": "setting", "seeds": "seeds", metric: metric_name(metric)}
    columns |= {"difference": "minus the first", "p": "p", "holm": "p (Holm)", "permutation": "p (permutation)"}
    columns |= {name: metric_name(name) for name in rows[0]["metrics"] if name != metric}
    lines = []
    for run, row in zip(runs, rows, strict=True):
        difference = row["difference"] or {}
        line = {"run": run.name, "setting": run.chosen, "seeds": row["seeds"], **row["metrics"]}
        line["difference"] = {key: difference.get(key) for key in ("value", "low", "high")} if difference else None
        lines.append(line | {name: difference.get(name) for name in ("p", "holm", "permutation")})
    keys = {"key": "config", **{run.name: run.name for run in runs}}
    body = f"<header>\n<h1>Comparison of runs</h1>\n<p>{markup.text(text)}</p>\n</header>\n<main>\n"
    body += markup.table(columns, lines, "On test; 95 % intervals over groups and seeds.", chosen=runs[0].name)
    equal = "<p>Their configs are equal.</p>\n"
    body += markup.table(keys, different, "What differs in the configs.") if different else equal
    caption = "Learning curves, of each run the first trial of its setting."
    picture = f'<img src="curves.png" alt="{caption}">'
    return f"{body}<figure>{picture}<figcaption>{caption}</figcaption></figure>\n</main>\n"
