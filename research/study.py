"""From a config to trials, their training and predictions, the ledger and the report."""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import normalize, splits, subset
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.loader import DecodedCache, fits
from research import outcome
from research.outcome import ROLES, Ledger
from research.report import assemble
from research.run_folder import RunFolder
from research.search import execution as executions
from research.search import preview, stages, sweep
from research.search.execution import Execution, use_all_cores
from research.search.trials import OverrideSet, applied, override_sets
from research.settings import validate
from research.training import (
    budget,
    build,
    cluster,
    compilation,
    freezing,
    optimizers,
    pictures,
    probes,
    sharding,
    start_weights,
    texts,
)
from research.training.loop import Training
from research.training.phases import freezes, needs_layers, phases
from research.training.signals import StopSignal


def run(config: ConfigDict, workdir: pathlib.Path, allow_cpu: bool = False, dry_run: bool = False) -> int:
    """Runs (or continues) the study `config` in `workdir`; returns the exit status.

    With `dry_run` it only says what would be trained, and for how long.

    Raises:
      UserError: a mistake in config, data or folder, before anything is trained.
      Stopped: the process was asked to stop; everything is saved.
    """
    if not dry_run:
        return _run(config, workdir, allow_cpu, dry_run)
    with tempfile.TemporaryDirectory() as scratch:  # simulated images, if the study has no others
        return _run(config, pathlib.Path(scratch), allow_cpu, dry_run)


def _run(config: ConfigDict, workdir: pathlib.Path, allow_cpu: bool, dry_run: bool) -> int:
    validate(config)
    _check_job(config, dry_run)
    spread = cluster.count() == 1 and use_all_cores(config)
    _check_devices(allow_cpu)
    programs = compilation.keep_programs()
    stop = cluster.stop_signal()
    stop.install()
    dataset = cluster.one_after_another(lambda: open_data(config, workdir))
    records = cluster.from_first(lambda: start_weights.read_records(workdir))
    mesh = sharding.make_mesh(jax.devices()[:1] if spread else None)
    shared = SharedImages(workdir if cluster.is_first() and not dry_run else None)

    def attach(trial: build.Trial) -> build.Trial:
        return shared.attach(trial, mesh)

    def plain(settings: ConfigDict) -> build.Trial:
        trial, *_ = expand(settings, dataset, records, [OverrideSet("", {})])
        check(trial)
        return attach(trial)

    if config.learning_rate_finder or config.overfit_one_batch:
        return probes.run(plain(config), workdir, mesh, stop)
    config = budget.settle(config, workdir, plain, mesh, stop)
    more = functools.partial(expand, config, dataset, records)
    shared_search = sweep.is_sweep(config)
    trials = [] if shared_search else more()
    for trial in trials or more(sets=[OverrideSet("", {})]):
        check(trial)
    executions.check(config, trials or more(sets=[OverrideSet("", {})]))
    if shared_search:
        sweep.check(config, dataset.multi_label, reach=not dry_run)
    if dry_run:
        listed = more() if sweep.has_lists(config) else []
        preview.show(config, trials or listed, attach, stop)
        return 0
    return _carry_out(config, workdir, dataset, trials, more, attach, mesh, stop, programs)


def _carry_out(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: Dataset,
    trials: list[build.Trial],
    more: Callable[..., list[build.Trial]],
    attach: Callable[[build.Trial], build.Trial],
    mesh,
    stop: StopSignal,
    programs: pathlib.Path | None,
) -> int:
    """Trains what is not trained yet, and writes the report; `trials` is empty where the search chooses them."""
    shared_search = sweep.is_sweep(config)
    folder = RunFolder(workdir, config)
    environment = folder.write_environment()
    announce(config, dataset, trials or more(sets=[OverrideSet("", {})]), folder.path)
    ledger = Ledger(folder.path / "trials.csv", trials)
    card = folder.path / "report" / "model_card.md"  # what a report writes last
    if not shared_search and ledger.finished() and cluster.from_first(card.exists):
        print(f"The study in {workdir} is finished; read {workdir / 'report' / 'index.html'}.")
        return 0

    def alone(trial: build.Trial) -> None:
        run_trial(trial, folder.path, mesh, stop, ledger)

    execution = Execution(config, folder.path, mesh, attach, alone, stop, ledger, programs)
    if shared_search:
        trials = sweep.Sweep(config, folder.path, dataset.multi_label, more, check, execution).run()
    else:
        execution.run(trials)
    trials += stages.run(config, trials, execution, folder.path, more, dataset.multi_label)
    if config.search.latency:
        execution.measure_latency(trials)
    cluster.from_first(lambda: assemble.report(folder.path, config, trials, environment, stop))
    print(f"Finished: {workdir / 'report' / 'index.html'}")
    return 0


def _check_job(config: ConfigDict, dry_run: bool) -> None:
    """Refuses what does not go together."""
    search = config.search
    several = search.sampler or len(override_sets(search)) > 1
    if several and config.find_batch_size:
        raise UserError("config.find_batch_size is for a study of one setting; set config.batch_size for a search.")
    if cluster.count() == 1:
        return
    refused = {
        "--dry_run": dry_run,
        "config.search.sampler": search.sampler,
        "config.search.storage": search.storage,
        "config.search.halving.budget": search.halving.budget < 1,
        "config.search.dominance.coverage": search.dominance.coverage > 0,
    }
    if asked := [name for name, given in refused.items() if given]:
        raise UserError(
            f"{asked[0]} is not for a job of several processes, which trains one trial after another on all devices; "
            "leave it out, or start them with --num_processes=1, workdirs of their own and one config.search.storage."
        )


def _check_devices(allow_cpu: bool) -> None:
    """Refuses the CPU on a machine with an NVIDIA GPU or a TPU, which means a wrong JAX installation.

    An explicit JAX_PLATFORMS=cpu is a choice, not an accident.
    """
    nodes = {"NVIDIA GPU": "/dev/nvidia0", "TPU": "/dev/accel0"}
    accelerator = next((name for name, node in nodes.items() if pathlib.Path(node).exists()), "")
    chosen = allow_cpu or os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if accelerator and not chosen and jax.default_backend() == "cpu":
        extra = "cuda12" if accelerator == "NVIDIA GPU" else "tpu"
        raise UserError(
            f"This machine has an {accelerator} but JAX runs on the CPU; run `pip install -e '.[{extra}]'`, or pass "
            "--allow_cpu."
        )


def open_data(config: ConfigDict, workdir: pathlib.Path) -> Dataset:
    """The prepared data set of `config.data`, or the simulated sample where none is named and the study has one."""
    data = config.data
    if data.source or data.dir:
        if data.source and not data.source.startswith("tfds:"):
            raise UserError(f"config.data.source is '{data.source}'; it must be 'tfds:NAME', or set config.data.dir.")
        return open_dataset(data.source or data.dir)
    if not data.simulated.train:
        raise UserError(
            "config.data.dir is not set; prepare the data with `python -m input_pipeline.prepare "
            f"--study={config.study} --source=RAW --out=DIR` and pass --config.data.dir=DIR."
        )
    raw, prepared = workdir / "data" / "raw", workdir / "data" / "prepared"
    if not prepared.exists():
        from input_pipeline import prepare, simulate

        print(f"No data configured: simulating {data.simulated.train} + {data.simulated.test} images.", flush=True)
        draw = simulate.load(config.study)
        draw(raw, num_train=data.simulated.train, num_test=data.simulated.test, size=128, seed=0)
        prepare.prepare(config.study, raw, prepared)
    return open_dataset(prepared)


def expand(
    config: ConfigDict,
    dataset: Dataset,
    records: Mapping[str, dict] | None = None,
    sets: Sequence[OverrideSet] | None = None,
    stage: str = "search",
) -> list[build.Trial]:
    """The trials of a study: every override set, on every fold of `search.folds`.

    Args:
      config: of the study.
      dataset: with the roles as stored.
      records: what the run folder says of the weights of trials that have begun.
      sets: those of `config.search` if None.
      stage: of the trials; those of "confirm" see the examples in an order of their own.
    """
    trials = []
    starts = start_weights.Starts(records)
    known = _paths(config.to_dict())
    options = {key for key in known if key.endswith(".options")}
    for entry in override_sets(config.search) if sets is None else sets:
        overrides, name = entry.overrides, entry.name or config.study
        # Options belong to a model or a loss, which checks them itself.
        if unknown := sorted(k for k in overrides if k not in known and k.rpartition(".")[0] not in options):
            raise UserError(
                f"the trial {name} sets the unknown key {', '.join(unknown)}; configs/common.py lists all keys."
            )
        try:
            changed = applied(config, overrides)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the trial {name}: {' '.join(str(error).split())}.") from error
        validate(changed.lock())
        variants = _repeated(name, overrides, changed) if stage == "search" else [(name, overrides, changed)]
        folds = range(changed.search.folds) or (None,)
        for (label, own, settings), fold in itertools.product(variants, folds):
            view = with_roles(settings, dataset, fold, config.seed)
            label = label if fold is None else f"{label}-fold{fold}"
            own = own if fold is None else own | {"search.fold": fold}
            file_name = build.as_file_name(label)
            start = starts.settle(settings.model, file_name)
            # All see the examples in one order, so that they differ in nothing but their settings.
            one_order = config.search.order == "shared" and stage != "confirm"
            seeds = {"data_seed": config.seed if one_order else settings.seed}
            parts = {"start": start, "text": texts.shared().of(settings, view), "stage": stage}
            setting = entry.setting or name
            trials.append(build.Trial(file_name, setting, own, settings, view, None, None, **parts, **seeds))
    if len(names := [trial.name for trial in trials]) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two trials of config.search would be called {twice}; give each a name of its own.")
    return trials


def _repeated(name: str, overrides: Mapping, config: ConfigDict) -> list[tuple[str, Mapping, ConfigDict]]:
    """Name, overrides and config of a setting, for each seed that `search.repeats` asks for."""
    if config.search.repeats == 1:
        return [(name, overrides, config)]
    found = []
    for seed in range(config.seed, config.seed + config.search.repeats):
        own = ConfigDict(config.to_dict() | {"seed": seed}).lock()
        found.append((f"{name}-seed{seed}", overrides | {"seed": seed}, own))
    return found


def _paths(tree: dict, prefix: str = "") -> set[str]:
    names = set()
    for key, value in tree.items():
        names |= {f"{prefix}{key}"} | (_paths(value, f"{prefix}{key}.") if isinstance(value, dict) else set())
    return names


def with_roles(config: ConfigDict, dataset: Dataset, fold: int | None, seed: int) -> Dataset:
    """The classes of `config.data` with the roles of a fold (dealt by `seed`), of the study's own split, or as stored.

    Groups are dealt to folds over all labelled examples; see `splits.fold_roles`.
    """
    dataset = subset.of_classes(dataset, config.data.classes, config.data.without_classes)
    if config.data.split == "study":
        return dataset.with_roles(splits.study_split(config.study, dataset.roles, dataset.labels).roles)
    if fold is None:
        return dataset
    labelled = np.isin(dataset.roles, ("train", "validation", "calibration", "test"))
    where = np.flatnonzero(labelled)
    labels, groups = dataset.labels[where], [dataset.groups[i] for i in where]
    k = config.search.folds
    stored = dataset.folds[where]
    folds = (
        stored if stored.max(initial=-1) + 1 == k else splits.assign_folds(labels, groups, k, seed, dataset.multi_label)
    )
    fractions = config.search.fold_fractions.to_dict()
    roles = np.array(dataset.roles, dtype=object)
    roles[where] = splits.fold_roles(labels, groups, folds, fold, fractions, seed, dataset.multi_label)
    return dataset.with_roles(roles)


def check(trial: build.Trial) -> None:
    """Everything about a trial that can be refused before anything is written."""
    config = trial.config
    trial.task.check(trial)
    pictures.check(trial)
    texts.check(trial)
    stretches = phases(config, len(trial.train_indices))
    build.build_loss(trial)
    if build.weights_begin(trial) and config.loss.class_weights == "none":
        raise UserError("config.loss.defer needs class weights; set config.loss.class_weights as well.")
    build.build_model(trial)
    start_weights.preprocessing(config.data, trial.start)
    if needs_layers(config):
        layers = build.build_layers(trial)
        for phase in stretches:
            freezing.trainable(layers, phase.freeze, phase.train)
        optimizers.factors(layers, config.optimizer)
        optimizers.penalties(layers, config.optimizer)
    if not len(trial.dataset.indices("validation")):
        raise UserError(
            f"No example of {trial.dataset.directory} has the role 'validation'; prepare it with a validation share."
        )


def announce(config: ConfigDict, dataset: Dataset, trials: list[build.Trial], workdir: pathlib.Path) -> None:
    """Says in a few lines what is about to run, on what, and what it stands for."""
    roles = ", ".join(f"{r} {len(trials[0].dataset.indices(r))}" for r in ("train", *ROLES))
    print(f"Study {config.study}: {len(trials)} trial(s) in {workdir}")
    print(f"Data {dataset.directory}: {roles}")
    print(f"Devices: {', '.join(str(d) for d in jax.devices())}", flush=True)
    if cluster.count() > 1 and len(trials) > 1:
        print(f"Every trial trains on the devices of all {cluster.count()} processes, one after another.")
    if dataset.simulated:
        print("SIMULATED DATA: a program made the examples; no figure of this run says anything about real ones.")
    if config.demonstration:
        print(f"Demonstration: {config.demonstration}")
    for line in dict.fromkeys(_say_start(trial) for trial in trials):
        print(line)
    if any(freezes(trial.config) and not trial.config.model.weights for trial in trials):
        print("Nothing is frozen, because no pretrained weights are given.")
    if config.data.split == "study":
        print("LEAKY SPLIT: copies of one photograph stand on both sides; the figures are too good.")


def _say_start(trial: build.Trial) -> str:
    """What a trial's model starts from and how its images are normalised."""
    data, start = trial.config.data, trial.start
    used = start_weights.in_words(start_weights.preprocessing(data, start))
    model = f"Model {trial.config.model.name}" + (f" ({start.variant})" if start and start.variant else "")
    text = f"{model}: {start.source if start else 'random weights'}; normalisation {used}"
    if start and data.normalize != "auto" and start.preprocessing:
        text += f", though the weights were trained with {start_weights.in_words(start.preprocessing)}"
    return text


class SharedImages:
    """Decoded images, dataset statistics and layouts of genes, kept between trials that use the same ones.

    Args:
      folder: the run folder, where layouts are kept; None to keep none.
    """

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._pictures = pictures.Pictures(folder)
        self._caches: dict[tuple, DecodedCache] = {}
        self._statistics: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        self.device_images: jax.Array | None = None
        self._device_key: tuple | None = None

    def attach(self, trial: build.Trial, mesh) -> build.Trial:
        """The trial with its cache and, where its normalisation needs them, statistics of its training images."""
        config, dataset = trial.config, trial.dataset
        size, channels = config.image_size, trial.channels
        masks = trial.task.segments
        key = (size, channels, config.data.resize, masks)
        wanted = config.data.cache
        if wanted == "auto":
            of_image = math.prod(trial.raw.shape) * trial.raw.dtype.itemsize + masks * size * size
            wanted = "ram" if fits(len(dataset.ids) * of_image) else "none"
        cache = None
        if wanted in ("ram", "device"):
            cache = self._caches.setdefault(key, DecodedCache(dataset, *key[:3], segmentation=masks))
        if wanted == "device" and self._device_key != key:
            self.device_images = sharding.place(cache.fill().array, sharding.replicated(mesh))
            self._device_key = key
        elif wanted != "device":
            self.device_images, self._device_key = None, None
        trial = dataclasses.replace(trial, cache=cache)
        if config.data.normalize == "dataset":
            statistics = normalize.dataset_statistics(dataset, trial.train_indices, limit=2000)
            trial = dataclasses.replace(trial, statistics=statistics)
        return dataclasses.replace(trial, images=self.device_images, picture=self._pictures.of(trial))


def run_trial(trial: build.Trial, workdir: pathlib.Path, mesh, stop: StopSignal, ledger: Ledger) -> None:
    """Trains a trial by itself, predicts every role with its best checkpoint, and enters the result in the ledger."""
    ledger.update(trial.name, status="running")
    start = time.monotonic()
    training = Training(trial, workdir, mesh, stop)
    training.run()
    row = outcome.finish(
        trial, training.best(), training.meta["history"], workdir, outcome.predictor_of(trial, mesh, stop)
    )
    ledger.update(trial.name, status="finished", **row)
    print(f"Trial {trial.name} took {time.monotonic() - start:.0f} s here.", flush=True)
