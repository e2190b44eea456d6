"""Which saved predictions can be put together, and do they speak of the same examples?

A member is a finished trial of stage "search", or the folds of a setting: fold k of every member has one calibration
and one test set of its own, so that everything is chosen within the fold and test predictions are pooled afterwards, as
`research.evaluation.score` does it. (Choosing on the pooled calibration sets would leak: they hold test images of other
folds.) Seeds of one setting are settings of their own.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research.evaluation import calibration, predictions
from research.losses import registry
from research.report import tables
from research.search.sheets import tuples

ROLES = ("calibration", "test")
_SETTINGS = ("temperature", "thresholds", "fallback", "bootstrap")  # of config.evaluation, what is used here


@dataclasses.dataclass(frozen=True)
class Role:
    """What M members say of the N examples of a role.

    Attributes:
      ids, groups: str `[N]`.
      label_indices: per example its class indices.
      labels: int32 `[N]`, or multi-hot float32 `[N, K]`.
      logits: float32 `[M, N, K]`.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    label_indices: tuple[tuple[int, ...], ...]
    labels: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Part:
    """One calibration set and the test set that goes with it; `fold` is None outside a cross-validation."""

    fold: int | None
    calibration: Role
    test: Role

    def scores(self, multi_label: bool, scaled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities of the members on calibration `[M, N, K]` and test `[M, N', K]`, and temperatures `[M]`.

        Args:
          multi_label: sigmoid instead of softmax.
          scaled: each member has its temperature fitted on calibration; otherwise it is 1.
        """
        own, held = self.calibration, self.test
        heat = [calibration.fit_temperature(z, own.labels, multi_label) if scaled else 1.0 for z in own.logits]
        both = [
            np.stack([calibration.probabilities(z, multi_label, t) for z, t in zip(role.logits, heat, strict=True)])
            for role in (own, held)
        ]
        return both[0], both[1], np.array(heat)


@dataclasses.dataclass(frozen=True)
class Library:
    """The members of all ensembles.

    Attributes:
      members: M names.
      parts: one, or one per fold.
      class_names: `[K]`.
      multi_label: the task.
      evaluation: config.evaluation of the first run: temperature, thresholds, fallback, bootstrap.
      seed: config.seed of the first run.
      left_out: settings that are not finished.
      warnings: what the reports of the runs warn of.
    """

    members: tuple[str, ...]
    parts: tuple[Part, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    evaluation: Any
    seed: int
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    folder: pathlib.Path
    trials: dict[int | None, str]  # fold -> name of the trial


def open_runs(runs: Sequence[pathlib.Path]) -> Library:
    """Reads the ledgers and the predictions of `calibration` and `test` of all runs.

    Raises:
      UserError: a folder is no run, no or only one trial is finished, predictions are missing, or members differ in
        classes, folds, examples, groups or labels.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("--runs names a folder twice; name each run once.")
    if len({run.resolve().name for run in runs}) < len(runs):
        raise UserError("two folders of --runs have one name, so their trials could not be told apart; rename one.")
    configs = [_config(run) for run in runs]
    members, left_out, losses, warnings = [], [], set(), {}
    for run, config in zip(runs, configs, strict=True):
        prefix = f"{run.resolve().name}/" if len(runs) > 1 else ""
        rows = [row for row in tables.read_trials_csv(run / "trials.csv") if row.get("stage", "search") == "search"]
        found, unfinished = _members(rows, run, prefix)
        members += found
        left_out += unfinished
        losses |= {row["overrides"].get("loss.name", config.loss.name) for row in rows}
        warnings |= dict.fromkeys(_warnings(run))
    if len(members) < 2:
        raise UserError(
            f"{', '.join(map(str, runs))}: {len(members)} finished trial(s) of stage search, but an ensemble needs "
            "two; finish the study, or name more folders in --runs."
        )
    folds = list(members[0].trials)
    for member in members[1:]:
        if set(member.trials) != set(folds):
            raise UserError(
                f"{member.name} has other folds than {members[0].name}; name runs with the same search.folds."
            )
    tables_of = {
        role: {fold: [(m, _read(m, fold, role)) for m in members] for fold in folds} for role in ROLES
    }  # every file is read before labels are understood: the task is one for all
    first = tables_of["test"][folds[0]][0][1]
    everything = [table for by_fold in tables_of.values() for pairs in by_fold.values() for _, table in pairs]
    multi_label = _is_multi_label(losses, everything)
    parts = tuple(
        Part(fold, *(_role(tables_of[role][fold], first.class_names, role, multi_label) for role in ROLES))
        for fold in folds
    )
    _check_pool(parts)
    return Library(
        tuple(m.name for m in members), parts, first.class_names, multi_label, configs[0].evaluation, configs[0].seed,
        tuple(left_out), tuple(warnings),
    )  # fmt: skip


def _config(run: pathlib.Path) -> ConfigDict:
    """The run's config; of its keys only those that are needed here must be there, so that older runs can be read."""
    if not (run / "config.json").is_file() or not (run / "trials.csv").is_file():
        raise UserError(f"{run} is no run folder (no config.json and trials.csv); name the --workdir of a study.")
    file = run / "config.json"
    try:
        config = ConfigDict(tuples(json.loads(file.read_text(encoding="utf-8"))))
        known = (config.seed, config.loss.name, *(config.evaluation[key] for key in _SETTINGS))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is no config of a run ({' '.join(str(error).split())}); restore it or leave the run out of --runs."
        ) from error
    if not isinstance(known[0], int):
        raise UserError(f"{file} has the seed {known[0]!r}, which is no whole number; restore the file.")
    return config


def _warnings(run: pathlib.Path) -> list[str]:
    """What the run's report warns of, such as simulated data; nothing where it has none yet."""
    try:
        return list(json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8")).get("warnings", []))
    except (OSError, ValueError, AttributeError):
        return []


def _members(rows: Sequence[dict], run: pathlib.Path, prefix: str) -> tuple[list[_Member], list[str]]:
    """The settings all of whose rows are finished, and the names of the others."""
    settings = collections.defaultdict(list)
    for row in rows:
        settings[str(row.get("setting", row["id"])), row.get("seed")].append(row)
    members, left_out = [], []
    for (setting, _), own in settings.items():
        trials = {row["overrides"].get("search.fold"): row["id"] for row in own}
        of_folds = setting if sum(key[0] == setting for key in settings) == 1 else f"{setting}-seed{own[0]['seed']}"
        name = f"{prefix}{own[0]['id'] if len(own) == 1 else of_folds}"
        if any(row["status"] != "finished" for row in own):
            left_out.append(name)
        elif len(trials) < len(own):
            raise UserError(
                f"{run / 'trials.csv'} has two finished trials of {setting} for one fold; restore the file."
            )
        else:
            members.append(_Member(name, run, trials))
    return members, left_out


def _read(member: _Member, fold: int | None, role: str) -> predictions.Predictions:
    path = member.folder / "predictions" / f"{member.trials[fold]}_{role}.csv"
    if not path.is_file():
        raise UserError(
            f"the trial {member.trials[fold]} has no predictions of {role} ({path}); members and weights are chosen on "
            "calibration and scored on test, so prepare the data with both roles and run the study again."
        )
    return predictions.read(path)


def _is_multi_label(losses: set[str], everything: Sequence[predictions.Predictions]) -> bool:
    """What the losses are for; if they suit either task, whether any example has not exactly one label."""
    kinds = {registry.get(name).multi_label for name in losses} - {None}
    if len(kinds) > 1:
        raise UserError("--runs mixes studies of one label and of several labels per example; name runs of one task.")
    if kinds:
        return kinds.pop()
    return any(len(indices) != 1 for table in everything for indices in table.label_indices)


def _role(
    pairs: Sequence[tuple[_Member, predictions.Predictions]], class_names: tuple[str, ...], role: str, multi_label: bool
) -> Role:
    """The members' predictions in the order of the first one's examples.

    Raises:
      UserError: names the first member that differs, and in what.
    """
    (_, first), logits = pairs[0], []
    facts = dict(zip(first.ids, zip(first.groups, first.label_indices, strict=True), strict=True))
    for member, own in pairs:
        if own.class_names != class_names:
            raise UserError(f"{member.name} has other classes than {pairs[0][0].name}; leave its run out of --runs.")
        if set(own.ids) != facts.keys():
            raise UserError(
                f"{member.name} has other examples of {role} than {pairs[0][0].name} "
                f"({len(set(own.ids) ^ facts.keys())} are in one alone); name runs of one prepared data set."
            )
        for name, group, indices in zip(own.ids, own.groups, own.label_indices, strict=True):
            if facts[name] != (group, indices):
                what = "label" if facts[name][1] != indices else "group"
                raise UserError(
                    f"{member.name} has another {what} for {name!r} in {role} than {pairs[0][0].name}; "
                    "name runs of one prepared data set."
                )
        where = {name: row for row, name in enumerate(own.ids)}
        logits.append(own.logits[[where[name] for name in first.ids]])
    labels = first.labels(multi_label)
    if not len(first.ids) or (not multi_label and labels.min() < 0):
        raise UserError(
            f"{role} of {pairs[0][0].name} has no examples, or some without a label; prepare the data again."
        )
    return Role(first.ids, first.groups, first.label_indices, labels, np.stack(logits))


def _check_pool(parts: Sequence[Part]) -> None:
    ids = [name for part in parts for name in part.test.ids]
    if len(set(ids)) < len(ids):
        raise UserError(
            "the folds test some examples twice, so their predictions cannot be pooled; run the study again."
        )
