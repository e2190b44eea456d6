"""Two looks at a study before it is trained: which learning rates suit it, and can it learn anything at all?

    python -m research.main --config=… --workdir=RUN --config.learning_rate_finder=True
    python -m research.main --config=… --workdir=RUN --config.overfit_one_batch=True

The first is the learning rate range test (Smith 2017, arXiv:1506.01186): the rate grows exponentially from step to
step, and the smoothed loss shows where learning begins, is fastest, and where it blows up. RUN/learning_rate gets the
numbers, a picture and a suggestion: a tenth of the rate at which the smoothed loss was least, or less if it fell most
steeply before that. The second takes the first batch again and again, without augmentation: a model and a pipeline
without mistakes learn it by heart.

Both take the first trial's first phase as it would begin, and leave nothing behind that a training would continue.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import augment, plotting
from input_pipeline.cli import UserError, atomic_write, progress
from input_pipeline.loader import stage, train_batches
from input_pipeline.sampling import Sampler
from research.training import begin, budget, build, cluster, inference, program, sharding, steps
from research.training.phases import phases
from research.training.signals import StopSignal

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
OVERFIT_STEPS, OVERFIT_SHARE = 300, 0.1
_SMOOTHING = 0.9
_BLOWN = 4.0  # times the least smoothed loss: nothing more is to be learned beyond


@dataclasses.dataclass(frozen=True)
class Range:
    """A range test: learning rates `[n]`, losses `[n]` and smoothed losses `[n]`, in order."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


def run(trial: build.Trial, workdir: pathlib.Path, mesh, stop: StopSignal) -> int:
    """Carries out what the trial's config asks for; returns the exit status, 1 for a batch that was not learned.

    Raises:
      Stopped: a stop was asked for; nothing is kept.
      UserError: the losses are not finite from the start.
    """
    if trial.config.learning_rate_finder:
        folder = workdir / "learning_rate"
        suggestion = write(range_test(trial, folder, mesh, stop), folder)
        print(f"Suggested learning rate: {suggestion:.2g}; {folder / 'range.png'} shows why.", flush=True)
        return 0
    first, least, needed = overfit(trial, workdir / "overfit", mesh, stop)
    name = f"The first batch of {trial.name}: loss {first:.4f} at the beginning, {least:.4f} at best"
    if needed:
        print(f"{name}, a tenth of it after {needed} steps: the model can learn it by heart.", flush=True)
        return 0
    print(
        f"{name} in {OVERFIT_STEPS} steps, not a tenth of it: look for a mistake in labels, loss or learning rate (see "
        "config.learning_rate_finder), or for a dropout, penalty or soft target that keeps the loss up.",
        flush=True,
    )
    return 1


def range_test(trial: build.Trial, folder: pathlib.Path, mesh, stop: StopSignal) -> Range:
    """The range test of a trial's first phase, at most `STEPS` steps; ends early where the loss blows up."""
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(STEPS) / (STEPS - 1))
    losses: list[float] = []
    for loss in progress(_losses(trial, folder, rates, mesh, stop, repeat=False), STEPS, "range test"):
        losses.append(loss)
        known = smooth(np.array(losses))
        if not math.isfinite(loss) or (len(losses) > 10 and known[-1] > _BLOWN * known.min()):
            break
    found = np.array(losses)
    finite = np.isfinite(found)
    if finite.sum() < 3:
        raise UserError("the loss is not finite from the first steps on; look at the data, or choose another loss.")
    return Range(rates[: len(found)][finite], found[finite], smooth(found[finite]))


def overfit(trial: build.Trial, folder: pathlib.Path, mesh, stop: StopSignal) -> tuple[float, float, int]:
    """First and least loss of the first batch, and the steps until it was `OVERFIT_SHARE` of the first (0 = never)."""
    config = ConfigDict(trial.config.to_dict())
    config.data.augment = ConfigDict({name: augment.NEUTRAL[name] for name in config.data.augment})
    plain = dataclasses.replace(trial, config=config.lock())
    rates = np.full(OVERFIT_STEPS, phases(config, len(trial.train_indices))[0].learning_rate)
    first = least = math.nan
    for number, loss in enumerate(
        progress(_losses(plain, folder, rates, mesh, stop, repeat=True), OVERFIT_STEPS, "one batch")
    ):
        first = loss if number == 0 else first
        least = loss if number == 0 else np.fmin(least, loss)
        if loss <= OVERFIT_SHARE * first:
            return first, loss, number
    return first, float(least), 0


def _losses(
    trial: build.Trial, folder: pathlib.Path, rates: np.ndarray, mesh, stop: StopSignal, repeat: bool
) -> Iterator[float]:
    """The loss before each step of a fresh training with these learning rates, on new batches or always the first."""
    if cluster.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    phase = phases(trial.config, len(trial.train_indices))[0]
    layers = program.layers_of(trial)
    state = begin.fresh_state(trial, layers, phase, begin.variables(trial, folder, stop))
    places = sharding.shardings(state, mesh, trial.config.shard_parameters)
    state = sharding.place(state, places)
    _, function = program.train_function(trial, phase, layers, mesh)
    jitted = jax.jit(function, donate_argnums=0, out_shardings=places)
    compiled = None
    for rate, batch in zip(rates, _batches(trial, phase, mesh, len(rates), repeat), strict=True):
        stop.check()
        given = (batch, np.float32(rate), trial.images)
        if compiled is None:
            compiled = stop.interruptible(lambda state=state, given=given: jitted.lower(state, *given).compile())
            budget.check(trial, compiled, phase.batch_size, mesh, stop)
        state = compiled(state, *given)
        sums = jax.device_get(state.sums)
        # A step that was left out adds nothing to the sums.
        yield float(sums["loss"]) if sums["steps"] else math.inf
        state = state.replace(sums=sharding.place(steps.reset_sums(state).sums, places.sums))


def _batches(trial: build.Trial, phase, mesh, count: int, repeat: bool) -> Iterator[dict[str, jax.Array]]:
    data, seed = trial.config.data, trial.data_seed * 1_000_003
    sampler = Sampler(data.sampler, trial.dataset.labels, trial.train_indices, seed, data.repeat_threshold)
    taken = train_batches(
        **inference.loader_arguments(trial, mesh),
        sampler=sampler,
        batch_size=phase.batch_size,
        start_step=0,
        num_steps=1 if repeat else count,
    )
    if repeat:
        batch = sharding.put_batch(mesh, next(taken))
        for _ in range(count):
            yield batch
    else:
        yield from stage(taken, lambda batch: sharding.put_batch(mesh, batch))


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving averages of `[n]`, each corrected for its start."""
    average, found = 0.0, []
    for number, value in enumerate(values, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        found.append(average / (1 - _SMOOTHING**number))
    return np.array(found)


def suggest(test: Range) -> float:
    """The smaller of: a tenth of the rate with the least smoothed loss, the rate where it falls most steeply."""
    lowest = int(np.argmin(test.smoothed))
    slopes = np.gradient(test.smoothed, np.log(test.rates))
    steepest = int(np.argmin(slopes[: lowest + 1]))
    return float(min(test.rates[lowest] / 10, test.rates[steepest]))


def write(test: Range, folder: pathlib.Path) -> float:
    """Writes `range.csv`, `range.png` and `suggestion.txt`; returns the suggestion."""
    suggestion = suggest(test)
    if not cluster.is_first():
        return suggestion
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed_loss"])
    writer.writerows(_rows(test))
    atomic_write(folder / "range.csv", text.getvalue())
    atomic_write(folder / "suggestion.txt", f"{suggestion:.3g}\n")
    with plotting.figure(folder / "range.png", 6.0, 3.6) as canvas:
        axes = canvas.subplots()
        axes.plot(test.rates, test.losses, color=plotting.GREY, linewidth=0.6, label="loss of the batch")
        axes.plot(test.rates, test.smoothed, color=plotting.BLUE, linewidth=1.8, label="smoothed")
        axes.axvline(suggestion, color=plotting.VERMILLION, linestyle="--", label=f"suggested: {suggestion:.2g}")
        axes.set_xscale("log")
        axes.set_ylim(top=max(1.5 * test.smoothed[0], 1.05 * test.smoothed[: len(test.rates) // 2].max()))
        axes.set(xlabel="learning rate", ylabel="loss", title="Learning rate range test")
        axes.legend()
    return suggestion


def _rows(test: Range) -> Iterator[tuple[int, str, str, str]]:
    for number, values in enumerate(zip(test.rates, test.losses, test.smoothed, strict=True)):
        yield number, *(f"{value:.8g}" for value in values)
