"""What comes after a search: its front is trained again with fresh seeds, and trained on for longer."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from research.search import front as fronts
from research.search.execution import Execution
from research.search.trials import OverrideSet
from research.training import build, state
from research.training.checkpoint import Checkpoints

Expand = Callable[..., list[build.Trial]]


def front_settings(rows: Sequence[dict], multi_label: bool) -> list[str]:
    """Settings that no other beats in parameters and mean validation accuracy (macro F1 with several labels).

    Of the rows of stage "search" those that are finished; a setting of which a fold is not finished is left out.
    """
    metric = "macro_f1" if multi_label else "accuracy"
    by_setting = collections.defaultdict(list)
    for row in rows:
        if row["stage"] == "search":
            by_setting[row["setting"]].append(row)
    whole = {name: own for name, own in by_setting.items() if all(row["status"] == "finished" for row in own)}
    if not whole:
        return []
    points = [
        (own[0]["parameters"], -np.mean([row["metrics"]["validation"][metric] for row in own]))
        for own in whole.values()
    ]
    best = fronts.non_dominated(np.array(points))
    return [name for name, chosen in zip(whole, best, strict=True) if chosen]


def confirmations(trials: Sequence[build.Trial], settings: Sequence[str], seeds: int, base: int) -> list[OverrideSet]:
    """The override sets that train `settings` again with the seeds `base` + 1 … `base` + `seeds`."""
    own = {trial.setting: {k: v for k, v in trial.overrides.items() if k != "search.fold"} for trial in trials}
    return [
        OverrideSet(f"{name}-seed{base + number}", own[name] | {"seed": base + number}, name)
        for number in range(1, seeds + 1)
        for name in settings
    ]


def run(
    config, trials: Sequence[build.Trial], execution: Execution, folder: pathlib.Path, expand: Expand, multi: bool
) -> list[build.Trial]:
    """Does what `config.search.confirm_seeds` and `config.search.extend` ask for; returns the trials that it made."""
    search = config.search
    if not search.confirm_seeds and search.extend <= 1:
        return []
    chosen = front_settings(list(execution.ledger.rows.values()), multi)
    more: list[build.Trial] = []
    if search.confirm_seeds:
        sets = confirmations(trials, chosen, search.confirm_seeds, max(trial.config.seed for trial in trials))
        more = expand(sets=sets, stage="confirm")
        print(
            f"Confirming {len(chosen)} settings of the front with {search.confirm_seeds} fresh seeds each.", flush=True
        )
        execution.ledger.add(more)
        execution.run(more)
    if search.extend > 1:
        members = [trial for trial in trials if trial.setting in chosen]
        longer = [extended(trial, search.extend) for trial in members]
        print(f"Training {len(members)} trials of the front on, to {search.extend:g} times their length.", flush=True)
        execution.ledger.add(longer)
        for trial, before in zip(longer, members, strict=True):
            if not execution.ledger.ended(trial.name):
                hand_over(execution.attach(before), trial, folder, execution)
                execution.run_alone(trial)
        more += longer
    return more


def extended(trial: build.Trial, times: float) -> build.Trial:
    """The trial with `times` its length, under a name of its own. Its schedule is that of the whole length."""
    config = trial.config.copy_and_resolve_references()
    with config.unlocked():
        for unit in ("steps", "epochs", "examples"):
            config[unit] = type(config[unit])(round(config[unit] * times, 6))
    label = f"{trial.setting}-x{times:g}"
    name = build.as_file_name(trial.name.replace(build.as_file_name(trial.setting), label, 1))
    overrides = trial.overrides | {"search.extend": times}
    return dataclasses.replace(
        trial, name=name, setting=label, config=config.lock(), overrides=overrides, stage="extend"
    )


def hand_over(before: build.Trial, after: build.Trial, folder: pathlib.Path, execution: Execution) -> None:
    """Writes the last state of a trial as the first checkpoint of the one that goes on from it."""
    checkpoints = Checkpoints(folder / "checkpoints" / after.name)
    if checkpoints.steps():
        return
    last, best, history, controls = execution.ending(before)
    meta = {
        "phase": 0,
        "phase_start": 0,
        "done": False,
        "history": [row | {"trial": after.name} for row in history],
        "controls": dataclasses.asdict(controls),
        "dataset": before.dataset.fingerprint,
    }
    meta = json.loads(json.dumps(meta))
    if best.step != int(last.step):  # what is best until something better comes
        checkpoints.save(best.step, state.to_tree(last.with_evaluated(best.variables)), meta, best.step)
    checkpoints.save(int(last.step), state.to_tree(last), meta, best.step)
