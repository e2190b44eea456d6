"""How is a pruned network trained on, with the data, augmentation and loss of the run that it comes from?

A short training of its own: the trial's optimiser with fresh moments, a learning rate that warms up over the first
twentieth and falls to zero as half a cosine, the last state (averaged, where the trial averages). Nothing is chosen
while it runs, so no checkpoint is kept: what was interrupted begins again.
"""

import dataclasses
import functools
import time

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from input_pipeline.loader import stage, train_batches
from input_pipeline.sampling import Sampler
from research.compress.magnitude import Cubic, magnitude_pruning, project_state, pruned_step
from research.training import build, freezing, inference, progress, schedules, sharding, state, steps
from research.training.phases import Phase, needs_layers, phases
from research.training.signals import StopSignal

_SCHEDULE = ConfigDict({"name": "cosine", "warmup": "5 %", "final": 0.0})
_STREAM = 999  # among the trial's streams of batches; its phases have the numbers from 0 on
_SECONDS = 10.0  # between two lines of progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long and how fast.

    Attributes:
      duration: such as "300 steps", "2 epochs", or "25 %" of the trial's own training.
      rate: highest learning rate, as a share of the trial's own.
      gradual: whether magnitude pruning rises over the first 60 % of the steps instead of beginning in full.
      scope: of magnitude pruning, "global" or "layer".
    """

    duration: str
    rate: float
    gradual: bool = True
    scope: str = "global"

    def steps(self, trial: build.Trial) -> int:
        """The duration in steps.

        Raises:
          UserError: it is no duration.
        """
        config = trial.config
        length = schedules.length_of(_whole(trial), config.batch_size, len(trial.train_indices))
        try:
            return length.parse(self.duration, "finetune")
        except UserError as error:
            raise UserError(
                f"--finetune={self.duration} is no duration; write for example '300 steps', '2 epochs' or '25 %'."
            ) from error


def _whole(trial: build.Trial) -> dict[str, float]:
    """The length of a trial's training; its phases' lengths added up where it has some."""
    config = trial.config
    if not config.phases:
        return {unit: config[unit] for unit in ("steps", "epochs", "examples")}
    return {"steps": sum(phase.length.steps for phase in phases(config, len(trial.train_indices)))}


def schedule_for(sparsity: float, steps: int, gradual: bool) -> Cubic:
    """The masks' schedule over a fine-tuning: all at once, or cubic with twelve changes over the first 60 %."""
    if not gradual or steps < 2:
        return Cubic(sparsity)
    every = max(1, steps // 20)
    return Cubic(sparsity, every=every, updates=int(0.6 * steps) // every)


def finetune(
    trial: build.Trial,
    variables: dict[str, state.Flat],
    settings: Settings,
    mesh,
    stop: StopSignal,
    sparsity: float | None = None,
    label: str = "",
) -> dict[str, state.Flat]:
    """Trains `variables` of the trial's model on; gives the variables to be evaluated, {"params", "batch_stats"}.

    Args:
      variables: arrays by path, for `build.build_model(trial)`.
      sparsity: share of the kernels' entries that magnitude pruning sets to zero; None leaves all as they are.
      label: names the lines of progress.

    Raises:
      UserError: the loss or the parameters stopped being finite.
      Stopped: a stop was asked for.
    """
    total = settings.steps(trial)
    parts, current = _begin(trial, variables, settings, mesh, sparsity, total)
    shardings = sharding.shardings(current, mesh, trial.config.shard_parameters)
    current = jax.device_put(current, shardings)
    if total:
        current = _loop(trial, parts, current, shardings, settings, mesh, stop, sparsity is not None, label)
    if int(current.skipped) > total // 2 or not bool(progress.all_finite((current.params, current.batch_stats))):
        raise UserError(f"{label}: the fine-tuning diverged; choose a lower --finetune_rate.")
    return jax.tree.map(np.asarray, current.evaluated())


def _begin(trial, variables, settings, mesh, sparsity, total) -> tuple[steps.StepParts, state.TrainState]:
    """The parts of the step and the first state, already pruned where the schedule begins above zero."""
    config = trial.config
    nested = {name: state.nest(flat) for name, flat in variables.items()}
    layers = build.build_layers(trial) if needs_layers(config) else freezing.unordered(nested["params"])
    parts = build.build_parts(trial, _phase(trial, settings, total), layers, mesh)
    parts = dataclasses.replace(parts, class_weights_from=0)  # the training that they waited for is over
    if sparsity is not None:
        pruning = magnitude_pruning(schedule_for(sparsity, total, settings.gradual), settings.scope)
        parts = dataclasses.replace(parts, transformation=optax.chain(parts.transformation, pruning))
    averages = config.optimizer.ema > 0
    first = state.create(nested, config.seed, parts.transformation, parts.trainable, averages, trial.num_classes)
    return parts, project_state(first) if sparsity is not None else first


def _phase(trial: build.Trial, settings: Settings, total: int) -> Phase:
    config = trial.config
    length = schedules.Length(max(1, total), config.batch_size, len(trial.train_indices))
    return Phase("fine-tuning", config.batch_size, settings.rate * config.optimizer.learning_rate, length)


def _loop(trial, parts, current, shardings, settings, mesh, stop, pruned: bool, label: str) -> state.TrainState:
    config, total = trial.config, settings.steps(trial)
    phase = _phase(trial, settings, total)
    rate = schedules.learning_rate(_SCHEDULE, phase.learning_rate, phase.length)
    seed = config.seed * 1_000_003 + _STREAM
    sampler = Sampler(
        config.data.sampler, trial.dataset.labels, trial.train_indices, seed, config.data.repeat_threshold
    )
    batches = train_batches(
        **inference.loader_arguments(trial, mesh),
        sampler=sampler,
        batch_size=phase.batch_size,
        start_step=0,
        num_steps=total,
    )
    batches = stage(batches, functools.partial(sharding.put_batch, mesh))
    one = pruned_step if pruned else steps.train_step

    def step(current, batch, rate, images):
        return one(parts, current, inference.gather(batch, images), rate)

    compiled = None
    shown = start = time.monotonic()
    for done, batch in enumerate(batches):
        stop.check()
        arguments = (current, batch, np.float32(rate(done)), trial.images)
        if compiled is None:
            lowered = functools.partial(jax.jit(step, donate_argnums=0, out_shardings=shardings).lower, *arguments)
            compiled = stop.interruptible(lambda lowered=lowered: lowered().compile())
            shown = start = time.monotonic()
        current = compiled(*arguments)
        if time.monotonic() - shown >= _SECONDS or done + 1 == total:
            sums = progress.train_metrics(jax.device_get(current.sums))
            current, shown = steps.reset_sums(current), time.monotonic()
            left = (total - done - 1) * (shown - start) / (done + 1)
            print(
                f"{label}  fine-tuning {done + 1}/{total}  loss {sums['loss']:.4f}  accuracy {sums['accuracy']:.4f}  "
                f"ETA {progress.minutes(left)}",
                flush=True,
            )
    return current
