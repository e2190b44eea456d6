"""Which trials can be trained together in one program, and in which numbers do they differ?

The members of a cohort have the same architecture, data, order of examples and length, and differ in numbers that the
program takes as inputs: optimiser settings, dropout rates, options of the loss, class weights, strengths of
augmentations. Learning rates, schedules, early stopping and the choice of the checkpoint stay outside of the program.

Networks of different widths can share a program as well: all get the largest width of each layer, and the channels
that a member does not have are zero. They stay zero, exactly: an activation that maps 0 to 0, BatchNorm without a shift
and a kernel of zeros pass no gradient to each other. `config.search.padding` limits the operations spent on zeros.
"""

import dataclasses
import inspect
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import augment
from research.losses import registry as losses
from research.models import registry
from research.models.flops import flops
from research.training import build
from research.training.phases import phases

CLASS_WEIGHTS = "class weights"  # stands for loss.class_weights and loss.beta, as [K] numbers
_OPTIMIZER = ("weight_decay", "momentum", "beta1", "beta2", "epsilon", "clip_norm", "ema")
# What the host alone reads, between steps or after the training.
_HOST = ("seed", "demonstration", "selection", "early_stopping", "optimizer.learning_rate", "loss.class_weights")
_HOST_ROOMS = ("schedule.", "evaluation.", "search.", "loss.beta")
# Where 0 is exactly the same as leaving the operation out, members with and without it share a program.
_NEUTRAL_ZERO = ("optimizer.weight_decay", "model.", "loss.options.")


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Trials that share one program.

    Attributes:
      name: of its checkpoints and its line in plan.json.
      trials: the M members.
      widest: the first of them with the largest width of each layer, whose program all share.
      values: float32 `[M]` by config key (and `[M, K]` for CLASS_WEIGHTS): what the members differ in.
      signature: equal for cohorts whose programs are equal up to M.
    """

    name: str
    trials: tuple[build.Trial, ...]
    widest: build.Trial
    values: dict[str, np.ndarray]
    signature: str

    def take(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The values of some members."""
        return {key: value[list(indices)] for key, value in self.values.items()}


def group(trials: Sequence[build.Trial], limit: int, padding: float = 1.0) -> list[Cohort]:
    """Cohorts of at most `limit` members, in the order of their first trials; a trial that shares with none is alone.

    A pure function of the trials, so that a resumed search finds the cohorts of the first launch; their names come
    from those of their trials.

    Args:
      padding: how many times the operations of its own model a member may take; 1 = only its own widths.
    """
    rooms: dict[str, list[build.Trial]] = {}
    for number, trial in enumerate(trials):
        widths = padding > 1 and _can_be_padded(trial)
        rooms.setdefault(_signature(trial, widths) if _can_share(trial) else f"alone {number}", []).append(trial)
    cohorts = []
    for signature, members in rooms.items():
        for bucket in _buckets(members, padding) if padding > 1 else [members]:
            for start in range(0, len(bucket), limit):
                part = tuple(bucket[start : start + limit])
                code = zlib.crc32("\n".join(trial.name for trial in part).encode())
                widest = _widest(bucket)
                own = f"{signature} {_widths(widest)}"
                cohorts.append(Cohort(f"cohort-{code:08x}", part, widest, _values(part, bucket), own))
    return cohorts


def _can_be_padded(trial: build.Trial) -> bool:
    """Not so where channels are mixed with positions, or the weights come from a file."""
    entry, _ = registry.find(trial.config.model.name)
    return bool(entry.widths) and trial.config.model.head_pool != "flatten" and not trial.config.model.weights


def _widths(trial: build.Trial) -> dict[str, tuple[int, ...]]:
    """The widths of a trial's model by config key."""
    entry, _ = registry.find(trial.config.model.name)
    defaults = inspect.signature(entry.build).parameters
    options = trial.config.model.options
    found = {f"model.options.{name}": tuple(options.get(name, defaults[name].default)) for name in entry.widths}
    return found | {"model.head": tuple(trial.config.model.head)}


def _widest(members: Sequence[build.Trial]) -> build.Trial:
    """The first member with the largest width of each layer."""
    widths = [_widths(trial) for trial in members]
    if all(own == widths[0] for own in widths):
        return members[0]
    largest = {key: tuple(map(max, zip(*(own[key] for own in widths), strict=True))) for key in widths[0]}
    return with_values(members[0], largest)


def _buckets(members: Sequence[build.Trial], padding: float) -> list[list[build.Trial]]:
    """Members of one signature parted so that no one takes more than `padding` times its own operations."""
    work = {}
    for trial in members:
        if (key := str(_widths(trial))) not in work:
            work[key] = _flops(trial)
    buckets: list[list[build.Trial]] = []
    for trial in sorted(members, key=lambda trial: -work[str(_widths(trial))]):
        for bucket in buckets:
            joined = [*bucket, trial]
            distinct = {str(_widths(member)) for member in joined}
            least = min(work[key] for key in distinct)
            if len(distinct) == 1 or _flops(_widest(joined)) <= padding * least:
                bucket.append(trial)
                break
        else:
            buckets.append([trial])
    place = {trial.name: number for number, trial in enumerate(members)}
    ordered = [sorted(bucket, key=lambda trial: place[trial.name]) for bucket in buckets]
    return sorted(ordered, key=lambda bucket: place[bucket[0].name])


def _flops(trial: build.Trial) -> int:
    return flops(build.build_model(trial), trial.config.image_size, trial.channels, trial.tokens)


def _can_share(trial: build.Trial) -> bool:
    """Not so where parameters are spread over devices, several hosts work together, the training has phases, or the
    model segments.
    """
    alone = trial.config.shard_parameters or jax.process_count() > 1 or trial.task.segments
    return not alone and len(phases(trial.config, len(trial.train_indices))) == 1


def _signature(trial: build.Trial, any_widths: bool) -> str:
    """What must be equal, as text; with `any_widths` only their numbers, not the widths themselves."""
    config = _flat(trial.config.to_dict())
    numbers = numbers_of(trial)
    rest = {
        key: value
        for key, value in config.items()
        if key not in numbers and key not in _HOST and not key.startswith(_HOST_ROOMS)
    }
    if any_widths:
        rest |= {key: len(value) for key, value in _widths(trial).items()}
    off = [key for key, value in numbers.items() if value == 0 and not key.startswith(_NEUTRAL_ZERO)]
    fold = trial.overrides.get("search.fold")
    return json.dumps([rest, sorted(off), fold, trial.data_seed], sort_keys=True, default=str)


def numbers_of(trial: build.Trial) -> dict[str, float]:
    """The config keys whose numbers can be inputs of the program, with the defaults of options that are not set."""
    config = trial.config
    numbers = {f"optimizer.{name}": config.optimizer[name] for name in _OPTIMIZER}
    numbers["model.head_dropout"] = config.model.head_dropout
    entry, _ = registry.find(config.model.name)
    own = {"model": inspect.signature(entry.build).parameters, "loss": losses.parameters(config.loss.name)}
    for room, parameters in own.items():
        for name, parameter in parameters.items():
            value = config[room].options.get(name, parameter.default)
            if _takes_traced(parameter) and _is_number(value):
                numbers[f"{room}.options.{name}"] = value
    for name, value in config.data.augment.items():
        if isinstance(augment.NEUTRAL[name], float):
            numbers[f"data.augment.{name}"] = value
    return {key: float(value) for key, value in numbers.items()}


def _takes_traced(parameter: inspect.Parameter) -> bool:
    """Whether its annotation says `float | jax.Array`."""
    return "Array" in str(parameter.annotation) and "float" in str(parameter.annotation)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(members: Sequence[build.Trial], alike: Sequence[build.Trial]) -> dict[str, np.ndarray]:
    """What `members` differ in; also what only others of their signature differ in, so that all share one program."""
    numbers = [numbers_of(trial) for trial in alike]
    differing = [key for key in numbers[0] if len({own[key] for own in numbers}) > 1]
    own = [numbers_of(trial) for trial in members]
    values = {key: np.array([number[key] for number in own], np.float32) for key in differing}
    weights = [build.weights_of_classes(trial) for trial in alike]
    if any(weight is not None for weight in weights) and any(_differ(weights[0], weight) for weight in weights):
        ones = np.ones(members[0].num_classes, np.float32)
        of_members = [build.weights_of_classes(trial) for trial in members]
        values[CLASS_WEIGHTS] = np.stack([ones if weight is None else weight for weight in of_members])
    return values


def _differ(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (one is None) != (other is None) or (one is not None and not np.array_equal(one, other))


def with_values(trial: build.Trial, values: Mapping[str, Any]) -> build.Trial:
    """The trial with other values in its config, which may be traced."""
    tree = trial.config.to_dict()
    for key, value in values.items():
        if key != CLASS_WEIGHTS:
            *rooms, name = key.split(".")
            room = tree
            for part in rooms:
                room = room[part]
            room[name] = value
    return dataclasses.replace(trial, config=ConfigDict(tree))


def _flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in tree.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
