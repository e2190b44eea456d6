"""Which rows of a table are beaten by no other? Any CSV with one row per model will do.

    python -m research.search.pareto --ledger=metrics_log.csv --minimize="model_size(MB)" --maximize=val_accuracy
        --log="model_size(MB)" --out=front [--reference=10,0.2]

writes `front.csv` (the rows as they are, in the order of the first objective; a text that a spreadsheet would run as a
formula gets an apostrophe), `front.png` (every pair of objectives), `parallel.png` (parallel coordinates), `front.html`
(the same front, a row's values at the pointer, sortable tables) and `front.json` (hypervolume, knee, spacing and how
they were computed). Rows with equal objectives are all kept; rows in which an objective is not a finite number are left
out and listed.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from input_pipeline import cli, tabular
from input_pipeline.cli import UserError
from research.search import front as fronts
from research.search import front_report
from research.search.front import Front, Objective


def read_table(path: str) -> tuple[pd.DataFrame, np.ndarray]:
    """All cells as texts, and the line that each row begins in.

    Raises:
      UserError: the file is missing or is no table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except FileNotFoundError as error:
        raise UserError(f"the table {path} does not exist; give a CSV with one row per model.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table ({' '.join(str(error).split())}).") from error
    # A cell in quotes may hold line ends.
    extra = table.apply(lambda row: sum(cell.count("\n") for cell in row), axis=1) if len(table) else []
    before = np.concatenate([[0], np.cumsum(np.asarray(extra, int))[:-1]]) if len(table) else np.empty(0, int)
    lines = np.arange(len(table)) + 2 + before.astype(int)
    filled = (table != "").any(axis=1).to_numpy() if len(table) else np.empty(0, bool)
    return table[filled].reset_index(drop=True), lines[filled]


def find(
    table: pd.DataFrame, lines: np.ndarray, objectives: Sequence[Objective], reference: Sequence[float] = ()
) -> Front:
    """The front of a table.

    Args:
      table: cells as texts or numbers.
      lines: what to call each row.
      objectives: 2 to 4.
      reference: worst point of the hypervolume, a number per objective; without it the worst value of each objective
        over all rows, and a tenth of the range beyond it.

    Raises:
      UserError: no row has all objectives, a logarithm of numbers below zero, or no such column.
    """
    for objective in objectives:
        if objective.column not in table.columns:
            raise UserError(f"there is no column '{objective.column}'; the table has {', '.join(table.columns)}.")
    columns = [objective.column for objective in objectives]
    values = np.column_stack([pd.to_numeric(table[column], errors="coerce").to_numpy(float) for column in columns])
    usable = np.isfinite(values).all(1)
    if not usable.any():
        raise UserError(f"no row has numbers in all of {', '.join(columns)}; choose other columns.")
    for objective, column in zip(objectives, values[usable].T, strict=True):
        if objective.log and column.min() <= 0:
            raise UserError(f"{objective.column} has values of 0 or below, which have no logarithm; leave --log out.")
    costs = _costs(objectives, values[usable])
    if len(reference):
        worst = _costs(objectives, np.array([reference], float))[0]
    else:
        worst = costs.max(0) + 0.1 * (costs.max(0) - costs.min(0))
    rows = np.flatnonzero(usable)[fronts.non_dominated(costs)]
    rows = rows[np.lexsort(_costs(objectives, values[rows]).T[::-1])]
    points = _costs(objectives, values[rows])
    return Front(
        table=table,
        objectives=tuple(objectives),
        lines=np.asarray(lines),
        values=values,
        usable=usable,
        rows=rows,
        knee=int(rows[fronts.knee(points)]),
        reference=_values(objectives, worst),
        hypervolume=fronts.hypervolume(points, worst),
        spacing=fronts.spacing(points),
    )


def _costs(objectives: Sequence[Objective], values: np.ndarray) -> np.ndarray:
    return np.column_stack([objective.cost(column) for objective, column in zip(objectives, values.T, strict=True)])


def _values(objectives: Sequence[Objective], costs: np.ndarray) -> np.ndarray:
    """The inverse of `_costs` for one point."""
    signed = [-cost if objective.maximize else cost for objective, cost in zip(objectives, costs, strict=True)]
    return np.array([10**v if o.log else v for o, v in zip(objectives, signed, strict=True)])


def parse_objectives(minimize: str, maximize: str, log: str) -> list[Objective]:
    """The objectives of the command line.

    Raises:
      UserError: fewer than two or more than four, one twice, or a logarithm of what is no objective.
    """
    named = [(column, False) for column in _split(minimize)] + [(column, True) for column in _split(maximize)]
    columns = [column for column, _ in named]
    if not 2 <= len(columns) <= 4:
        raise UserError(
            f"a front has two to four objectives, not {len(columns)}; name columns with --minimize and --maximize."
        )
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UserError(f"{', '.join(twice)} is named twice; name each column once.")
    if strange := sorted(set(_split(log)) - set(columns)):
        raise UserError(f"--log={','.join(strange)} is not among the objectives {', '.join(columns)}.")
    return [Objective(column, maximize, column in _split(log)) for column, maximize in named]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _reference(text: str, objectives: Sequence[Objective]) -> list[float]:
    try:
        numbers = [float(part) for part in _split(text)]
    except ValueError:
        numbers = [math.nan]
    wanted = len(numbers) in (0, len(objectives)) and all(map(math.isfinite, numbers))
    if not wanted or any(o.log and n <= 0 for o, n in zip(objectives, numbers, strict=False)):
        names = ", ".join(objective.column for objective in objectives)
        raise UserError(f"--reference={text} is no point; give one number for each of {names}, in this order.")
    return numbers


def main() -> None:
    """Reads the command line, writes the files, prints the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m research.search.pareto",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ledger", required=True, help="CSV with one row per model")
    parser.add_argument("--minimize", default="", help="columns, separated by commas")
    parser.add_argument("--maximize", default="", help="columns, separated by commas")
    parser.add_argument("--log", default="", help="objectives whose logarithm counts")
    parser.add_argument("--reference", default="", help="worst point of the hypervolume")
    parser.add_argument("--out", required=True, help="folder for the results")
    arguments = parser.parse_args()
    objectives = parse_objectives(arguments.minimize, arguments.maximize, arguments.log)
    reference = _reference(arguments.reference, objectives)
    found = find(*read_table(arguments.ledger), objectives, reference)
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = [found.table.columns, *found.table.iloc[found.rows].itertuples(index=False)]
    cli.atomic_write(out / "front.csv", tabular.csv_text([tabular.safe_text(cell) for cell in row] for row in rows))
    front_report.draw_front(found, out / "front.png")
    front_report.draw_parallel(found, out / "parallel.png")
    cli.atomic_write(out / "front.html", front_report.page(found, pathlib.Path(arguments.ledger).name))
    cli.atomic_write(out / "front.json", json.dumps(found.summary(), indent=1) + "\n")
    print("\n".join(front_report.sentences(found)))


if __name__ == "__main__":
    cli.run(main)
