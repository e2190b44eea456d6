"""What does a finished run folder give to whoever reads its models: config, trials, ledger, variables?"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research import study
from research.models.initialize import initialize
from research.report import tables
from research.search import stages, sweep
from research.search.sheets import tuples
from research.search.trials import recorded_sets
from research.settings import completed, validate
from research.training import build, start_weights
from research.training.checkpoint import Checkpoints
from research.training.loop import Training
from research.training.signals import StopSignal
from research.training.state import Flat, flatten

FRONT = "front"


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The locked config that a run folder was made with; what its JSON has as lists are tuples, as in configs/.

    Raises:
      UserError: there is none, or it is damaged.
    """
    file = workdir / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{workdir} has no config.json, so it is no run; name another --workdir.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON; restore it or name another --workdir.") from error
    try:
        config = ConfigDict(completed(tuples(content))).lock()
        validate(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not the config of a run of this version ({' '.join(str(error).split())}); "
            "name another --workdir."
        ) from error
    return config


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      path: its folder.
      config: see `read_config`.
      trials: its trials by name, without images.
      rows: the ledger's rows by trial name.
    """

    path: pathlib.Path
    config: ConfigDict
    trials: Mapping[str, build.Trial]
    rows: Mapping[str, dict[str, Any]]


def open_run(workdir: pathlib.Path) -> Run:
    """Opens a run folder.

    Raises:
      UserError: it is none, its data set is gone, or its ledger is damaged.
    """
    config = read_config(workdir)
    rows = {row["id"]: row for row in tables.read_trials_csv(workdir / "trials.csv")}
    dataset = study.open_data(config, workdir)
    sampled = recorded_sets(rows.values()) if sweep.is_sweep(config) else None
    trials = study.expand(config, dataset, start_weights.read_records(workdir), sampled)
    return Run(workdir, config, {trial.name: trial for trial in trials}, rows)


def chosen(run: Run, names: str) -> list[build.Trial]:
    """The trials of a comma-separated list, or with "front" those of the front of parameters and validation accuracy.

    Raises:
      UserError: a name is unknown, or its trial is not finished.
    """
    wanted = _front(run) if names == FRONT else [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError(f"--trials={names} names no trial; give names of {run.path / 'trials.csv'}, or {FRONT}.")
    for name in wanted:
        if name not in run.trials:
            known = ", ".join(list(run.trials)[:8]) + (", …" if len(run.trials) > 8 else "")
            raise UserError(f"there is no trial {name} in {run.path}; choose of {known}, or {FRONT}.")
        if run.rows.get(name, {}).get("status") != "finished":
            raise UserError(f"the trial {name} is not finished; run research.main on {run.path} first.")
    return [run.trials[name] for name in dict.fromkeys(wanted)]


def _front(run: Run) -> list[str]:
    """The trials of the settings on the front, all folds of each."""
    multi_label = any(trial.dataset.multi_label for trial in run.trials.values())
    settings = stages.front_settings(list(run.rows.values()), multi_label)
    return [name for name, trial in run.trials.items() if trial.setting in settings]


def load(trial: build.Trial, folder: pathlib.Path, mesh, stop: StopSignal) -> dict[str, Flat]:
    """The best variables of a finished trial, {"params": {path: array}, "batch_stats": {path: array}}, on the host.

    The one place that knows how trials are stored: each alone, or stacked in its cohort's checkpoint. Nothing is
    trained: without a checkpoint at the training's end it refuses.

    Raises:
      UserError: the checkpoint is missing, damaged or unfinished.
    """
    if not (folder / "checkpoints" / build.as_file_name(trial.name)).is_dir():
        return _from_cohort(trial, folder)
    training = Training(trial, folder, mesh, stop)
    last = training.checkpoints.latest()
    if last is None or not training.checkpoints.meta(last)["done"]:
        raise UserError(f"the training of {trial.name} is not finished; run research.main on {folder} again.")
    return jax.tree.map(np.asarray, dict(training.best().variables))


def _from_cohort(trial: build.Trial, folder: pathlib.Path) -> dict[str, Flat]:
    """The trial's row of the stacked best variables, see `research.search.cohort_training`.

    Members of several widths are stacked with zeros behind their own channels, which are cut off.
    """
    model, size = build.build_model(trial), trial.config.image_size
    own = jax.eval_shape(lambda: initialize(model, jax.random.key(0), size, trial.channels))
    own = {kind: {path: leaf.shape for path, leaf in flatten(own[kind]).items()} for kind in own}
    for place in sorted(path for path in (folder / "checkpoints").glob("*") if path.is_dir()):
        checkpoints = Checkpoints(place)
        step = checkpoints.latest()
        meta = checkpoints.meta(step) if step is not None else {}
        if trial.name not in meta.get("trials", ()):
            continue
        if meta["dataset"] != trial.dataset.fingerprint:
            raise UserError(f"{place} was made with other data than {trial.dataset.directory} holds now; restore it.")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = {
            tuple(name.split("/")): jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=device)
            for name, (shape, dtype) in meta["shapes"].items()
        }
        best = checkpoints.restore(step, unflatten_dict(shapes))["best"]
        index = meta["trials"].index(trial.name)
        return {
            kind: {
                path: np.asarray(best[kind][path.replace("/", ".")][index])[tuple(map(slice, shape))]
                for path, shape in shapes_of.items()
            }
            for kind, shapes_of in own.items()
        }
    raise UserError(f"{folder} holds no checkpoint of the trial {trial.name}; run research.main on it again.")


def changed_trial(trial: build.Trial, overrides: Mapping[str, Any]) -> build.Trial:
    """The trial with other values of its config, such as {"model.options.widths": (8, 16)}; same data, same name."""
    if not overrides:
        return trial
    config = ConfigDict(trial.config.to_dict())
    overrides = {key: tuples(value) for key, value in overrides.items()}
    for key, value in overrides.items():
        *groups, last = key.split(".")
        place = config
        for group in groups:
            place = place[group]
        with place.unlocked():
            place[last] = value
    return dataclasses.replace(trial, config=config.lock(), overrides={**trial.overrides, **overrides})
