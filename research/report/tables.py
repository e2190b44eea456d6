"""What is in the ledger `trials.csv`, and how is it written and read?

One row per trial. Everything after training (comparison, Pareto front, ensemble, report) reads this table and the saved
predictions, never live training state.

A row in memory is a dict:
    id: text, unique; status: text ("finished", "running", "failed: ..."); seed: int;
    overrides: dict of config keys and values that make the trial different from the study's base config;
    parameters: int; bytes: int (parameters and other variables as stored); further plain values under any name;
    metrics: {split: {metric name: float}}, such as {"validation": {"macro_f1": 0.71}}.
In the file, `overrides` is JSON with sorted keys and a metric's column is `<split>/<metric>`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline import cli, tabular

FIRST_COLUMNS = ("id", "status", "seed", "overrides", "parameters", "bytes")
SPLITS = ("train", "validation", "calibration", "test")


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ledger row as the flat cells of one line of `trials.csv`."""
    flat = {key: value for key, value in row.items() if key not in ("metrics", "overrides")}
    clash = [key for key in flat if "/" in key]
    if clash:
        raise ValueError(f"trial {row.get('id')}: {clash[0]!r} has a slash, which marks metrics; put it under metrics")
    flat["overrides"] = json.dumps(row.get("overrides") or {}, sort_keys=True, ensure_ascii=False)
    for split, metrics in (row.get("metrics") or {}).items():
        for name, value in metrics.items():
            flat[f"{split}/{name}"] = None if value is None else float(value)
    return flat


def column_order(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The fixed columns, then further values by name, then metrics by split and name: the same for any row order."""
    names = {name for row in rows for name in row}
    extra = sorted(name for name in names if name not in FIRST_COLUMNS and "/" not in name)
    rank = {split: index for index, split in enumerate(SPLITS)}

    def key(name: str) -> tuple[int, str, str]:
        split, metric = name.split("/", 1)
        return rank.get(split, len(SPLITS)), split, metric

    return [*FIRST_COLUMNS, *extra, *sorted((name for name in names if "/" in name), key=key)]


def write_trials_csv(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the ledger atomically, rows in the given order; texts cannot act as spreadsheet formulas.

    Raises:
        ValueError: two rows have one id, or a row has none.
    """
    flat = [flatten(row) for row in rows]
    ids = [row.get("id") for row in flat]
    if any(not name for name in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"trials need ids that differ from each other, not {ids}")
    tabular.write_csv(path, column_order(flat), flat)


def read_trials_csv(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows that `write_trials_csv` wrote, metrics and overrides as dicts; empty cells are left out.

    Raises:
        UserError: the file is missing or is not a ledger.
    """
    columns, table = tabular.read_csv(path)
    if "id" not in columns:
        raise cli.UserError(f"{path} has no column id, so it is not a ledger of trials; name a study's trials.csv.")
    rows = []
    for number, flat in enumerate(table, 1):
        row: dict[str, Any] = {"overrides": {}, "metrics": {}}
        for name, value in flat.items():
            split, slash, metric = name.partition("/")
            if value is None:
                continue
            if slash:
                row["metrics"].setdefault(split, {})[metric] = value
            elif name == "overrides":
                row[name] = _read_overrides(path, number, value)
            else:
                row[name] = value
        rows.append(row)
    return rows


def _read_overrides(path: str | os.PathLike, number: int, text: object) -> dict[str, Any]:
    try:
        overrides = json.loads(str(text))
    except ValueError:
        overrides = None
    if not isinstance(overrides, dict):
        raise cli.UserError(f"{path}, trial {number}: overrides is not a JSON object; restore the file.")
    return overrides
