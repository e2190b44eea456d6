"""Which setting does a report speak of, and which stand beside it?"""

import collections

import numpy as np

from input_pipeline.cli import UserError
from research.training.control import MINIMISED

MOST = 12  # settings of a search that are scored on test beside the chosen one; and trials that one picture can show


def settings_of(trials, ledger: list[dict]) -> dict[str, list]:
    """Setting -> its trials (its folds), without the trials of other stages that train a setting once more."""
    stages = {row["id"]: row.get("stage", "search") for row in ledger}
    settings = collections.defaultdict(list)
    for trial in trials:
        if stages.get(trial.name) == "search":
            settings[trial.setting].append(trial)
    return settings


def choose(settings: dict, ledger: list[dict], metric: str) -> str:
    """The setting whose trials have the best mean `metric` on validation; the test role has no say.

    A setting of which a trial was not finished is not chosen, unless none was.

    Raises:
      UserError: no setting has the metric for all of its trials.
    """
    values = {row["id"]: row["metrics"].get("validation", {}).get(metric) for row in ledger}
    values = {name: value for name, value in values.items() if value is not None}
    whole = {row["id"] for row in ledger if row.get("status") == "finished"}
    known = {name: members for name, members in settings.items() if all(t.name in values for t in members)}
    known = {name: members for name, members in known.items() if all(t.name in whole for t in members)} or known
    if not known:
        raise UserError(f"no trial has come to a {metric} on validation; the column status of trials.csv says why.")
    means = {name: float(np.mean([values[t.name] for t in members])) for name, members in known.items()}
    return (min if metric in MINIMISED else max)(means, key=means.get)


def compared(settings: dict[str, list[str]], chosen: str, front: list[str]) -> dict[str, list[str]]:
    """The chosen setting and those of the front, evenly thinned out; all settings where there are few.

    Settings are given, and returned, with the names of their trials; `front` names trials.
    """
    if len(settings) <= MOST:
        return settings
    names = [name for name, members in settings.items() if name != chosen and set(members) & set(front)]
    if len(names) > MOST:
        names = [names[i] for i in np.linspace(0, len(names) - 1, MOST).round().astype(int)]
    return {name: settings[name] for name in [chosen, *names]}
