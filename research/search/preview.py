"""What would a search train, and how long would it take? `--dry_run` says it and writes nothing."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from research.models.flops import flops
from research.search.cohort import Cohort, group
from research.search.cohort_training import CohortTraining
from research.search.execution import size_of
from research.search.planner import time_of
from research.search.plans import Plan
from research.training import begin, build
from research.training.phases import phases
from research.training.progress import minutes
from research.training.signals import StopSignal


def show(config: ConfigDict, trials: Sequence[build.Trial], attach: Callable, stop: StopSignal) -> None:
    """Prints trials, cohorts, parameters, memory and the estimated time.

    The cheapest and the costliest cohort take a few steps one by one; the others are put in between by the floating
    point operations of their models. Plans that train members together, and successive halving, are faster.
    """
    if config.search.sampler:
        print(f"The sampler {config.search.sampler} will choose settings until there are {config.search.budget}.")
    if not trials:
        return
    cohorts = group(trials, config.search.cohort, config.search.padding)
    work = {cohort.name: _flops(cohort) for cohort in cohorts}
    print(f"{len(trials)} trials in {len(cohorts)} cohorts, at most {config.search.cohort} together:")
    for cohort in cohorts:
        trial = cohort.trials[0]
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_state_shapes(trial)))
        print(
            f"  {cohort.name}  {len(cohort.trials)} trials of {_steps(trial)} steps, {size_of(trial):,} parameters, "
            f"{work[cohort.name] / 1e6:.1f} MFLOP an image, {state * len(cohort.trials) / 2**20:.1f} MiB of state"
        )
        for member in cohort.trials:
            print(f"    {member.name}")
    order = sorted(cohorts, key=lambda cohort: work[cohort.name])
    timed = {cohort.name: cohort for cohort in (order[0], order[-1])}
    seconds = {name: _seconds(cohort, attach, stop) for name, cohort in timed.items()}
    total = sum(_between(work, seconds, c) * len(c.trials) * _steps(c.trials[0]) for c in cohorts)
    for name, value in seconds.items():
        print(f"{name}: {1000 * value:.2f} ms per step of one trial on {jax.devices()[0].device_kind}")
    share = min(1.0, config.search.halving.budget)
    print(f"Estimated training time, one by one: {minutes(total * share)} ({total * share / 3600:.2f} h).", flush=True)


def _steps(trial: build.Trial) -> int:
    return sum(phase.length.steps for phase in phases(trial.config, len(trial.train_indices)))


def _flops(cohort: Cohort) -> int:
    trial = cohort.trials[0]
    return flops(build.build_model(trial), trial.config.image_size, trial.channels, trial.tokens)


def _state_shapes(trial: build.Trial):
    """Parameters, their gradients and what Adam remembers of them."""
    return [begin.shapes(trial)["params"]] * 4


def _seconds(cohort: Cohort, attach: Callable, stop: StopSignal) -> float:
    """Of one step of one member."""
    own = (attach(_in_one_phase(cohort.trials[0])),)
    with tempfile.TemporaryDirectory() as folder:
        values = cohort.take([0])
        cohort = Cohort("preview", own, own[0], values, "")
        training = CohortTraining(cohort, pathlib.Path(folder), stop, {})
        training.begin()
        return time_of(training, Plan("one by one"), 4)


def _in_one_phase(trial: build.Trial) -> build.Trial:
    """The trial without phases: all its steps as those of the last phase."""
    stretches = phases(trial.config, len(trial.train_indices))
    if len(stretches) == 1:
        return trial
    config = trial.config.copy_and_resolve_references()
    with config.unlocked():
        config.phases, config.unfreeze.groups, config.epochs, config.examples = (), 0, 0.0, 0
        config.steps, config.batch_size = _steps(trial), stretches[-1].batch_size
    return dataclasses.replace(trial, config=config.lock())


def _between(work: dict[str, int], seconds: dict[str, float], cohort: Cohort) -> float:
    """Seconds per step, linear in the operations."""
    (low, least), *_, (high, most) = 2 * sorted((work[name], value) for name, value in seconds.items())
    if high == low:
        return least
    return least + (most - least) * (work[cohort.name] - low) / (high - low)
