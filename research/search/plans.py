"""How does a cohort take a step: which members at a time, in how many programs, on which devices?

    one by one   the program of one member, called once for each; the members are dealt to the devices
    unrolled     all members under `vmap`, their convolutions one after another in the program
    im2col       all members under `vmap`, their convolutions as matrix products
    map          a loop over the steps and in it a loop over `chunk` members at a time, as im2col
    scan         the same with one member at a time

All give the same training up to rounding. The plans that are one program spread the members over the devices by
`shard_map`; no device waits for another. Each batch is read and augmented once, for all members.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.models.lowering import convolutions_of_members
from research.search.cohort import CLASS_WEIGHTS, Cohort, with_values
from research.training import build, freezing, inference, sharding, steps
from research.training.phases import Phase
from research.training.signals import StopSignal
from research.training.state import TrainState

KINDS = ("one by one", "unrolled", "im2col", "map", "scan")
_AXIS = "members"
_LOOPS = ("map", "scan")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One of `KINDS`, with its numbers.

    Attributes:
      chunk: members at a time of "map".
      steps: the most steps in one call of "map" and "scan".
      devices: how many the members are spread over.
    """

    kind: str
    chunk: int = 1
    steps: int = 1
    devices: int = 1

    def __str__(self) -> str:
        words = f"{self.kind} of {self.chunk}" if self.kind == "map" else self.kind
        return words + (f" on {self.devices} devices" if self.devices > 1 else "")

    def slots(self, members: int) -> int:
        """The places of the program for so many members: some may be filled by copies."""
        unit = 1 if self.kind == "one by one" else self.devices * self.chunk
        return math.ceil(members / unit) * unit


class MemberStep:
    """The step of one member, as a pure function of its values, state, batch and learning rate."""

    def __init__(self, cohort: Cohort, phase: Phase, layers: freezing.Layers) -> None:
        self.trial, self.phase, self.layers = cohort.widest, phase, layers
        # The strengths of augmentations may differ; then each member makes its own images from the batch.
        self.own_images = any(key.startswith("data.augment.") for key in cohort.values)

    def _parts(self, values: dict[str, jax.Array]) -> steps.StepParts:
        trial = with_values(self.trial, values)
        one_device = sharding.make_mesh(jax.devices()[:1])
        if CLASS_WEIGHTS in values:
            plain = dataclasses.replace(trial, config=trial.config.copy_and_resolve_references())
            with plain.config.unlocked():
                plain.config.loss.class_weights = "none"
            parts = build.build_parts(plain, self.phase, self.layers, one_device)
            return dataclasses.replace(parts, class_weights=values[CLASS_WEIGHTS])
        return build.build_parts(trial, self.phase, self.layers, one_device)

    def prepare(self, batch: dict[str, jax.Array], step: jax.Array, images: jax.Array | None) -> dict[str, jax.Array]:
        """What all members can share of a batch: the images read, and augmented where all do that alike."""
        batch = inference.gather(batch, images)
        if self.own_images:
            return batch
        return steps.prepare_batch(self._parts({}), batch, steps.augment_key(self.trial.data_seed, step))

    def __call__(self, values, state: TrainState, batch: dict[str, jax.Array], rate: jax.Array) -> TrainState:
        """The state after the step."""
        parts = self._parts(values)
        if self.own_images:
            batch = steps.prepare_batch(parts, batch, steps.augment_key(self.trial.data_seed, state.step))
        return steps.update(parts, state, batch, rate)


def _lifted(plan: Plan, member: MemberStep) -> Callable:
    """`(values [M], state [M], batches [S, …], rates [S, M], count, images) -> state [M]`, `count` <= S steps."""
    over_one = jax.vmap(member, in_axes=(0, 0, None, 0))

    def over_members(values, state, batch, rates):
        if plan.kind not in _LOOPS:
            return over_one(values, state, batch, rates)
        one = functools.partial(_with_batch, member, batch)
        return jax.lax.map(one, (values, state, rates), batch_size=plan.chunk if plan.chunk > 1 else None)

    def advance(values, state, batches, rates, count, images):
        """Takes up to S steps."""

        def step(index, state):
            batch = {name: value[index] for name, value in batches.items()}
            shared = member.prepare(batch, state.step[0], images)
            return over_members(values, state, shared, rates[index])

        with convolutions_of_members("unrolled" if plan.kind == "unrolled" else "im2col"):
            if plan.kind in _LOOPS:
                return jax.lax.fori_loop(0, count, step, state)
            return step(0, state)

    return advance


def _with_batch(member: MemberStep, batch, arguments):
    values, state, rate = arguments
    return member(values, state, batch, rate)


class Lifted:
    """All members in one program."""

    def __init__(self, plan: Plan, member: MemberStep, devices: Sequence, stop: StopSignal) -> None:
        self.plan, self.stop = plan, stop
        self.mesh = Mesh(np.asarray(devices[: plan.devices]), (_AXIS,))
        own, all_ = PartitionSpec(_AXIS), PartitionSpec()
        function = jax.shard_map(
            _lifted(plan, member),
            mesh=self.mesh,
            in_specs=(own, own, all_, PartitionSpec(None, _AXIS), all_, all_),
            out_specs=own,
            check_vma=False,
        )
        self._jitted = jax.jit(function, donate_argnums=1)
        self._compiled: dict = {}
        self._source = self.images = None

    def place(self, state: TrainState, values: dict[str, np.ndarray], images: jax.Array | None) -> None:
        """Takes the members `[n, …]` to the devices."""
        count = state.step.shape[0]
        slots = [min(i, count - 1) for i in range(self.plan.slots(count))]
        take = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf)[slots])
        own = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        self.count, self.slots = count, len(slots)
        self.values, self.members = jax.device_put((take(values), take(state)), own)
        if images is not self._source:  # moved once, not at each change of members
            self.images = None if images is None else jax.device_put(images, NamedSharding(self.mesh, PartitionSpec()))
            self._source = images

    def compile(self, batches: list[dict[str, np.ndarray]]) -> None:
        """Makes the program for batches like these."""
        self._program(self._arguments(batches[:1], np.zeros((1, self.count))))

    def run(self, batches: list[dict[str, np.ndarray]], rates: np.ndarray) -> None:
        """Takes one step per batch; rates `[S, n]`."""
        length = self.plan.steps
        for start in range(0, len(batches), length):
            arguments = self._arguments(batches[start : start + length], rates[start : start + length])
            self.members = self._program(arguments)(*arguments)

    def _arguments(self, batches, rates) -> tuple:
        """The arguments of up to `plan.steps` steps; what is missing is filled up, and not counted."""
        filled = batches + [batches[-1]] * (self.plan.steps - len(batches))
        stacked = {name: np.stack([batch[name] for batch in filled]) for name in batches[0]}
        wide = np.zeros((self.plan.steps, self.slots), np.float32)
        wide[: len(rates), : self.count] = rates
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        over = NamedSharding(self.mesh, PartitionSpec(None, _AXIS))
        inputs = jax.device_put((stacked, wide, np.int32(len(batches))), (everywhere, over, everywhere))
        return (self.values, self.members, *inputs, self.images)

    def _program(self, arguments):
        key = (self.slots, *(value.shape for value in arguments[2].values()))
        if key not in self._compiled:
            self._compiled[key] = self.stop.interruptible(lambda: self._jitted.lower(*arguments).compile())
        self.program = self._compiled[key]
        return self.program

    def state(self) -> TrainState:
        """The members on the host, `[n, …]`."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.count], jax.device_get(self.members))

    def release(self) -> None:
        """Gives the memory of the members back; the programs stay."""
        self.members = self.values = self._source = self.images = None

    def bytes_needed(self) -> int:
        """Memory of the program beside the state, on each device."""
        analysis = self.program.memory_analysis()
        return int(analysis.temp_size_in_bytes) if analysis is not None else 0


class OneByOne:
    """A program of one member, called for each in turn."""

    def __init__(self, plan: Plan, member: MemberStep, devices: Sequence, stop: StopSignal) -> None:
        self.plan, self.stop, self.devices = plan, stop, list(devices[: plan.devices])
        self._prepare = jax.jit(member.prepare)
        self._step = jax.jit(member, donate_argnums=1)
        self.images: dict = {}

    def place(self, state: TrainState, values: dict[str, np.ndarray], images: jax.Array | None) -> None:
        """Takes the members `[n, …]` to the devices."""
        self.count = state.step.shape[0]
        at = [self.devices[i % len(self.devices)] for i in range(self.count)]
        rows = range(self.count)
        self.members = [jax.device_put(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], state), at[i]) for i in rows]
        self.values = [jax.device_put({key: value[i] for key, value in values.items()}, at[i]) for i in rows]
        self.at = at
        self.images = {device: None if images is None else jax.device_put(images, device) for device in set(at)}

    def compile(self, batches: list[dict[str, np.ndarray]]) -> None:
        """Makes the programs for batches like these, by a step of a copy of each device's first member."""

        def step_once() -> None:
            for device, first in self._firsts().items():
                copy = jax.tree.map(lambda leaf: leaf.copy(), self.members[first])
                shared = self._prepare(jax.device_put(batches[0], device), copy.step, self.images[device])
                jax.block_until_ready(self._step(self.values[first], copy, shared, np.float32(0)))

        self.stop.interruptible(step_once)

    def run(self, batches: list[dict[str, np.ndarray]], rates: np.ndarray) -> None:
        """Takes one step per batch; rates `[S, n]`."""
        for batch, rate in zip(batches, rates, strict=True):
            shared = {}
            for device, first in self._firsts().items():
                here = jax.device_put(batch, device)
                shared[device] = self._prepare(here, self.members[first].step, self.images[device])
            for i, device in enumerate(self.at):
                self.members[i] = self._step(self.values[i], self.members[i], shared[device], rate[i])

    def state(self) -> TrainState:
        """The members on the host, `[n, …]`."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(self.members))

    def _firsts(self) -> dict:
        """The first member of each device."""
        return {device: i for i, device in reversed(list(enumerate(self.at)))}

    def release(self) -> None:
        """Gives the memory of the members back; the programs stay."""
        self.members, self.values, self.images = [], [], {}

    def bytes_needed(self) -> int:
        """Memory beside the state: that of one member, which fits as a training of its own would."""
        return 0


def build_runner(plan: Plan, cohort: Cohort, phase: Phase, layers: freezing.Layers, stop: StopSignal):
    """What carries `plan` out for a cohort."""
    member = MemberStep(cohort, phase, layers)
    kind = OneByOne if plan.kind == "one by one" else Lifted
    return kind(plan, member, jax.devices(), stop)


def host_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a loader's batch that the step reads."""
    return {name: np.asarray(value) for name, value in batch.items() if name != "id"}
