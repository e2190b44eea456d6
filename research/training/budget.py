"""What does a step need on each device, is there so much, and which batch would fit?"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from input_pipeline.loader import available_bytes
from research.training import build, cluster, program
from research.training.signals import StopSignal

# Of the device's memory; a step that needs more than this may fail by fragmentation.
_SHARE = 0.9
_TRIES = 4


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on each device, and operations of one step on it, as the compiled program has them.

    Attributes:
      held: arguments (state, batch, images of the data set kept there) and results that do not reuse their places.
      temporary: activations and other intermediate arrays at their greatest, and the program itself.
      flops: floating point operations, multiply-adds counted twice; 0 where the compiler does not say.
    """

    held: int
    temporary: int
    flops: float

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.held + self.temporary

    def __str__(self) -> str:
        text = f"{in_words(self.total)} of memory ({in_words(self.temporary)} for intermediate results)"
        return text + (f", {self.flops / 1e9:.3g} GFLOP" if self.flops else "")


def need_of(compiled: jax.stages.Compiled) -> Need | None:
    """What a compiled step needs; None where the compiler does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return Need(int(held), int(temporary), max(0.0, float(costs.get("flops", 0.0))))


def capacity(in_place: int = 0) -> int:
    """Bytes that each device has for a step; on CPU its share of the free memory (of the control group, if limited).

    Args:
      in_place: bytes of the step on each device that are there already.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    own = stats.get("bytes_limit") or available_bytes() // jax.local_device_count() + in_place
    if cluster.count() == 1:
        return int(own)
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.float32(own)).min())  # the smallest host decides for all


def check(trial: build.Trial, compiled: jax.stages.Compiled, batch_size: int, mesh, stop: StopSignal) -> None:
    """Says what the step of a training needs.

    Raises:
      UserError: more than a device has; names the batch size that fits.
    """
    need = need_of(compiled)
    if need is None:
        return
    print(f"A step on each of {mesh.size} device(s): {need}.", flush=True)
    there = capacity(need.held)
    if need.total <= there:
        return
    fits = fitting(trial, mesh, stop, there, batch_size)
    advice = f"{fits} fits" if fits else "no batch fits"
    raise UserError(
        f"a step with config.batch_size = {batch_size} needs {in_words(need.total)} on each device, which has "
        f"{in_words(there)}; {advice}. Set config.batch_size, or take a smaller image or model, more devices, or with "
        "config.optimizer.accumulate several parts to a batch."
    )


def fitting(trial: build.Trial, mesh, stop: StopSignal, there: int, most: int) -> int:
    """The largest batch of at most `most` images whose step needs no more than a good part of `there` bytes a device.

    A step's memory is close to linear in the batch. Two sizes are compiled, the line through them is solved, and the
    answer is compiled to verify it. It is a multiple of the devices and of `config.optimizer.accumulate`, 0 where
    nothing fits.
    """
    unit = math.lcm(mesh.size, trial.config.optimizer.accumulate)
    most, budget = most // unit * unit, int(_SHARE * there)

    def needed(size: int) -> int:
        lowered = program.lowered(trial, mesh, size)
        need = need_of(stop.interruptible(lowered.compile))
        if need is None:
            raise UserError("this device does not say how much memory a step needs; set config.batch_size yourself.")
        return need.total

    low, high = unit, 4 * unit
    if most < high:
        return next((size for size in range(most, 0, -unit) if needed(size) <= budget), 0)
    small = needed(low)
    if small > budget:
        return 0
    slope = max((needed(high) - small) / (high - low), 1.0)
    size = min(most, int((budget - small) / slope + low) // unit * unit)
    for _ in range(_TRIES):
        size = max(size, unit)
        found = needed(size)
        if found <= budget or size == unit:
            return size
        size = int(size * 0.9 * budget / found) // unit * unit
    return unit


def settle(
    config: ConfigDict, workdir: pathlib.Path, open_trial: Callable[[ConfigDict], build.Trial], mesh, stop: StopSignal
) -> ConfigDict:
    """The config with the largest batch that fits, if `config.find_batch_size` asks for it.

    A run that has begun keeps its batch size, on whatever devices it goes on.

    Raises:
      UserError: the phases have sizes of their own, or nothing fits.
    """
    if not config.find_batch_size:
        return config
    if any("batch_size" in dict(phase) for phase in config.phases):
        raise UserError("config.find_batch_size and batch_size in config.phases contradict each other; drop one.")
    file = workdir / "config.json"
    size = cluster.from_first(
        lambda: json.loads(file.read_text(encoding="utf-8")).get("batch_size", 0) if file.exists() else 0
    )
    if not size:
        trial = open_trial(config)
        examples, there = len(trial.train_indices), capacity()
        size = fitting(trial, mesh, stop, there, examples)
        if not size:
            raise UserError(f"no image fits into the {in_words(there)} of a device; take a smaller model or image.")
        print(
            f"config.batch_size = {size}: the largest that fits into {in_words(there)} a device (of at most {examples} "
            "examples); the learning rate stays as it is.",
            flush=True,
        )
    changed = ConfigDict(config.to_dict())
    changed.batch_size = size
    return changed.lock()


def in_words(size: int) -> str:
    """ "3.2 GiB" or "12.0 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
