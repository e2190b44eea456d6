"""How is a training divided into phases: for how long, at which rate, and what is trained meanwhile?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research.training import freezing, schedules

_KEYS = ("name", "steps", "epochs", "examples", "learning_rate", "batch_size", "freeze", "train")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the training with its own length, learning rate, batch size and frozen parameters.

    At most one of `freeze` (what rests) and `train` (what does not) is set; both are specifications of `freezing`.
    """

    name: str
    batch_size: int
    learning_rate: float
    length: schedules.Length
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


def phases(config: ConfigDict, num_examples: int) -> tuple[Phase, ...]:
    """The phases of `config`, or the whole training as one. Without pretrained weights nothing is frozen.

    `config.unfreeze.groups` = n is gradual unfreezing (Howard & Ruder 2018, ULMFiT, section 3.3) in n + 1 phases: the
    head alone for the duration `every`, then with it the last group of the backbone's blocks for as long, and so on;
    all layers from n·`every` to the end of the training. Every phase begins its schedule and optimiser state anew.

    Raises:
      UserError: an unknown key, an impossible length, or settings that contradict each other.
    """
    entries = config.phases
    if groups := config.unfreeze.groups:
        if config.phases:
            raise UserError("config.phases and config.unfreeze.groups both divide the training; set one of them.")
        entries = _gradual(config, groups, num_examples) if config.model.weights else ()
    result = []
    for i, entry in enumerate(entries or ({},)):
        entry = dict(entry)
        where = f"phases[{i}]"
        if unknown := entry.keys() - set(_KEYS):
            raise UserError(f"config.{where} has the unknown key '{sorted(unknown)[0]}'; keys are {', '.join(_KEYS)}.")
        resting = {k: freezing.as_specifications(entry.get(k, ()), f"{where}.{k}") for k in ("freeze", "train")}
        if all(resting.values()):
            raise UserError(f"config.{where} has both freeze and train, which say the same; keep one of them.")
        batch_size = entry.get("batch_size", config.batch_size)
        name = entry.get("name", "training" if not entries else f"phase {i + 1}")
        length = schedules.length_of(entry if entries else config, batch_size, num_examples)
        rate = entry.get("learning_rate", config.optimizer.learning_rate)
        result.append(Phase(name, batch_size, rate, length, **(resting if config.model.weights else {})))
    return tuple(result)


def _gradual(config: ConfigDict, groups: int, num_examples: int) -> list[Mapping[str, Any]]:
    """The entries that `config.unfreeze` stands for."""
    whole = schedules.length_of(config, config.batch_size, num_examples)
    every = whole.parse(config.unfreeze.every, "unfreeze.every")
    if every < 1 or whole.steps <= groups * every:
        raise UserError(
            f"config.unfreeze asks for {groups} groups every {every} steps, but the training has {whole.steps} steps; "
            "make unfreeze.every shorter or the training longer."
        )
    entries: list[Mapping[str, Any]] = [{"name": "head", "steps": every, "train": ("head",)}]
    for count in range(1, groups):
        last = f"last {count} of {groups} groups"
        entries.append({"name": f"head and {last}", "steps": every, "train": ("head", last)})
    return [*entries, {"name": "all layers", "steps": whole.steps - groups * every}]


def freezes(config: ConfigDict) -> bool:
    """Whether `config` asks for frozen parameters, with or without weights."""
    return bool(config.unfreeze.groups) or any(
        entry.get("freeze") or entry.get("train") for entry in map(dict, config.phases)
    )


def needs_layers(config: ConfigDict) -> bool:
    """Whether parameters are treated differently, so that the model's layers must be known."""
    optimizer = config.optimizer
    frozen = freezes(config) and config.model.weights
    return bool(frozen or optimizer.rates or optimizer.l2 or optimizer.layer_decay != 1.0)
