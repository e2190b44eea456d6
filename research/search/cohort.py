"""Which trials can be trained together in one program, and in which numbers do they differ?

The members of a cohort have the same architecture, data, order of examples and length, and differ in numbers that the
program takes as inputs: optimiser settings, dropout rates, options of the loss, class weights, strengths of
augmentations. Learning rates, schedules, early stopping and the choice of the checkpoint stay outside of the program.
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
from research.losses.registry import LOSSES
from research.models import registry
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
      values: float32 `[M]` by config key (and `[M, K]` for CLASS_WEIGHTS): what the members differ in.
      signature: equal for cohorts whose programs are equal up to M.
    """

    name: str
    trials: tuple[build.Trial, ...]
    values: dict[str, np.ndarray]
    signature: str

    def take(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The values of some members."""
        return {key: value[list(indices)] for key, value in self.values.items()}


def group(trials: Sequence[build.Trial], limit: int) -> list[Cohort]:
    """Cohorts of at most `limit` members, in the order of their first trials; a trial that shares with none is alone.

    A pure function of the trials, so that a resumed search finds the cohorts of the first launch; their names come
    from those of their trials.
    """
    rooms: dict[str, list[build.Trial]] = {}
    for number, trial in enumerate(trials):
        rooms.setdefault(_signature(trial) if _can_share(trial) else f"alone {number}", []).append(trial)
    cohorts = []
    for signature, members in rooms.items():
        for start in range(0, len(members), limit):
            part = tuple(members[start : start + limit])
            code = zlib.crc32("\n".join(trial.name for trial in part).encode())
            cohorts.append(Cohort(f"cohort-{code:08x}", part, _values(part, members), signature))
    return cohorts


def _can_share(trial: build.Trial) -> bool:
    """Not so where parameters are spread over devices, several hosts work together, or the training has phases."""
    alone = trial.config.shard_parameters or jax.process_count() > 1
    return not alone and len(phases(trial.config, len(trial.train_indices))) == 1


def _signature(trial: build.Trial) -> str:
    """What must be equal, as text."""
    config = _flat(trial.config.to_dict())
    numbers = numbers_of(trial)
    rest = {
        key: value
        for key, value in config.items()
        if key not in numbers and key not in _HOST and not key.startswith(_HOST_ROOMS)
    }
    off = [key for key, value in numbers.items() if value == 0 and not key.startswith(_NEUTRAL_ZERO)]
    fold = trial.overrides.get("search.fold")
    return json.dumps([rest, sorted(off), fold, trial.data_seed], sort_keys=True, default=str)


def numbers_of(trial: build.Trial) -> dict[str, float]:
    """The config keys whose numbers can be inputs of the program, with the defaults of options that are not set."""
    config = trial.config
    numbers = {f"optimizer.{name}": config.optimizer[name] for name in _OPTIMIZER}
    numbers["model.head_dropout"] = config.model.head_dropout
    entry, _ = registry.find(config.model.name)
    for room, function in (("model", entry.build), ("loss", LOSSES[config.loss.name][0])):
        for name, parameter in inspect.signature(function).parameters.items():
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


def with_values(trial: build.Trial, values: Mapping[str, jax.Array]) -> build.Trial:
    """The trial with (traced) numbers in its config."""
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
