"""What did a search cost, and what did its plan and its rungs save?"""

from collections.abc import Mapping, Sequence
from typing import Any

from research.report import markup

_NAMED = 8  # trials that a rung lists by name


def time_saved(plan: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]]) -> tuple[list[dict], float, float]:
    """The cohorts as rows, and seconds of training steps one by one and as planned, where both were timed.

    Steps are those that the ledger says were trained, or else the plan's for every trial.
    """
    trained = {row["id"]: row["steps"] for row in ledger if row.get("steps") is not None}
    rows, alone, planned = [], 0.0, 0.0
    for cohort in plan.get("cohorts", []):
        times = {name: float(value) for name, value in (cohort.get("milliseconds") or {}).items() if value is not None}
        steps = sum(trained.get(name, cohort.get("steps", 0)) for name in cohort.get("trials", []))
        row = {"cohort": str(cohort.get("cohort", "")), "trials": len(cohort.get("trials", [])), "steps": int(steps),
               "members": cohort.get("members"), "plan": str(cohort.get("plan", ""))}  # fmt: skip
        if "one by one" in times and row["plan"] in times:
            row["saved"] = (times["one by one"] - times[row["plan"]]) * steps / 1000
            alone += times["one by one"] * steps / 1000
            planned += times[row["plan"]] * steps / 1000
        rows.append(row | {f"ms {name}": value for name, value in times.items()} | {"reason": cohort.get("reason", "")})
    return rows, alone, planned


def plan_section(plan: Mapping[str, Any] | None, ledger: Sequence[Mapping[str, Any]], data: dict[str, Any]) -> str:
    """The plan of each cohort as HTML, "" without `plan.json`; the seconds go into `data["time"]`."""
    if not plan or not plan.get("cohorts"):
        return ""
    rows, alone, planned = time_saved(plan, ledger)
    timed = list(dict.fromkeys(key for row in rows for key in row if key.startswith("ms ")))
    columns = {"cohort": "cohort", "trials": "trials", "members": "members at once", "steps": "steps", "plan": "plan"}
    columns |= {name: f"{name.removeprefix('ms ')} (ms)" for name in timed} | {"saved": "saved (s)", "reason": "reason"}
    columns = {key: name for key, name in columns.items() if any(row.get(key) not in (None, "") for row in rows)}
    text = "Milliseconds are those of one model and step, timed before the training, compilation left out."
    if alone and planned:
        data["time"] = {"one_by_one_seconds": alone, "planned_seconds": planned}
        text += (
            f" By these figures the training steps take {duration(planned)}, one by one {duration(alone)}: "
            f"{duration(alone - planned)} saved ({alone / planned:.2f} times as fast)."
        )
    return f"<h3>Plan of each cohort</h3>\n<p>{markup.text(text)}</p>\n{markup.table(columns, rows)}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:_NAMED]))
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown or "none"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours with three digits."""
    if seconds < 0:
        return f"−{duration(-seconds)}"
    return (
        f"{seconds:.3g} s"
        if seconds < 90
        else f"{seconds / 60:.3g} min"
        if seconds < 5400
        else f"{seconds / 3600:.3g} h"
    )


def rungs_section(rungs: Sequence[Mapping[str, Any]] | None, ledger: Sequence[Mapping[str, Any]]) -> str:
    """The rungs of a successive halving as HTML, "" without `rungs.json`."""
    if not rungs:
        return ""
    rows = []
    for rung in rungs:
        stopped = [name for name in rung["entered"] if name not in set(rung["kept"])]
        rows.append({"rung": rung["rung"], "step": rung["step"], "entered": len(rung["entered"]),
                     "kept": len(rung["kept"]), "stopped": _names(stopped)})  # fmt: skip
    names = {name for rung in rungs for name in rung["entered"]}
    steps = [row.get("steps") or 0 for row in ledger if row["id"] in names]
    text = ""
    if sum(steps):
        full = max(steps) * len(names)
        share = 100 * sum(steps) / full
        text = (
            f"{sum(steps):,.0f} steps spent, {share:.0f} % of the {full:,.0f} of training all {len(names)} to the end."
        )
    columns = {"rung": "rung", "step": "step", "entered": "entered", "kept": "kept", "stopped": "stopped here"}
    return f"<h3>Successive halving</h3>\n<p>{markup.text(text)}</p>\n{markup.table(columns, rows)}"
