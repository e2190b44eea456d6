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


def metric_of(config, settings: dict) -> str:
    """What settings are compared by: `config.selection`, but no loss where they have different ones."""
    losses = {str(trial.config.loss.to_dict()) for members in settings.values() for trial in members}
    return "log_loss" if config.selection == "loss" and len(losses) > 1 else config.selection


def choose(settings: dict, ledger: list[dict], metric: str) -> tuple[str, str]:
    """The setting whose trials have the best mean `metric`, and the role that it was seen on; test has no say.

    That role is calibration, because the checkpoints were chosen on validation; validation if a setting lacks the
    metric there. A setting of which a trial was not finished is not chosen, unless none was.

    Raises:
      UserError: no setting has the metric for all of its trials.
    """
    whole = {row["id"] for row in ledger if row.get("status") == "finished"}
    finished = {name: members for name, members in settings.items() if all(t.name in whole for t in members)}
    for role in ("calibration", "validation"):
        means = _means(finished or settings, ledger, role, metric)
        if means and (role == "validation" or len(means) == len(finished)):
            return (min if metric in MINIMISED else max)(means, key=means.get), role
    raise UserError(f"no trial has come to a {metric} on validation; the column status of trials.csv says why.")


def _means(settings: dict, ledger: list[dict], role: str, metric: str) -> dict[str, float]:
    """Setting -> mean over its trials, of those that have the metric for all of them."""
    values = {row["id"]: row["metrics"].get(role, {}).get(metric) for row in ledger}
    values = {name: value for name, value in values.items() if value is not None and np.isfinite(value)}
    known = {name: members for name, members in settings.items() if all(t.name in values for t in members)}
    return {name: float(np.mean([values[t.name] for t in members])) for name, members in known.items()}


def by_seed(members: list) -> dict[int, list]:
    """Seed -> the trials of a setting with it, its folds."""
    found = collections.defaultdict(list)
    for trial in members:
        found[trial.config.seed].append(trial)
    return dict(found)


def shown(settings: dict, chosen: str, ledger: list[dict], role: str, metric: str) -> list:
    """The trials that a page shows in detail: of the chosen setting's seeds the best."""
    seeds = {str(seed): members for seed, members in by_seed(settings[chosen]).items()}
    means = _means(seeds, ledger, role, metric)
    return seeds[(min if metric in MINIMISED else max)(means, key=means.get)] if means else next(iter(seeds.values()))


Settings = dict[str, dict[int, list[str]]]  # name -> seed -> names of the trials of its folds


def names_of(settings: dict[str, list]) -> Settings:
    """Settings with the names of their trials."""
    return {
        name: {seed: [trial.name for trial in folds] for seed, folds in by_seed(members).items()}
        for name, members in settings.items()
    }


def compared(settings: Settings, chosen: str, front: list[str], reference: str = "") -> Settings:
    """The chosen setting, the reference, and those of the front (trials), thinned out; all where there are few."""
    if len(settings) <= MOST:
        return settings
    trials = {name: {trial for folds in by_seed.values() for trial in folds} for name, by_seed in settings.items()}
    first = [name for name in dict.fromkeys((chosen, reference)) if name in settings]
    names = [name for name in settings if name not in first and trials[name] & set(front)]
    if len(names) > MOST:
        names = [names[i] for i in np.linspace(0, len(names) - 1, MOST).round().astype(int)]
    return {name: settings[name] for name in [*first, *names]}
