"""How are a network's arrays written to a safetensors file that `config.model.weights` takes?

The format is that of `research.models.pretrained.export` with own names: "params/backbone/conv1/kernel" and so on, all
float32, convolutions `[rows, columns, in, out]`, dense layers `[in, out]`, BatchNorm as scale, bias, mean and var.
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline.cli import UserError
from research.export.program import Program
from research.models import registry
from research.models.initialize import initialize
from research.models.pretrained import export, names
from research.training import build, start_weights
from research.training.state import flatten, nest

FILE = "model.safetensors"


def write(path: pathlib.Path, program: Program) -> dict:
    """Writes the file.

    Returns:
      What the description says of it.

    Raises:
      UserError: a network in int8, which no training can begin with.
    """
    if program.is_int8:
        raise UserError(
            f"{program.name} is a network in int8, which no training can begin with; its arrays are in "
            f"{program.run.path / 'compressed'}, and --format=stablehlo exports it."
        )
    trial, entry = program.trial, registry.find(program.trial.config.model.name)[0]
    variables = {kind: nest({path: np.asarray(v) for path, v in flat.items()}) for kind, flat in program.arrays.items()}
    metadata = {"options": trial.config.model.options.to_dict()}
    if (used := preprocessing(trial)) is not None:
        metadata["preprocessing"] = used
    export.export(path, entry, _variant(trial), variables, (), "own", metadata)
    return {"names": "own", "arrays": len(names.flatten(variables)), "model": entry.name, "variant": _variant(trial)}


def _variant(trial: build.Trial) -> str:
    start = trial.start
    return start.variant if start and not start.part else trial.config.model.variant


def preprocessing(trial: build.Trial) -> dict[str, Any] | None:
    """What the file says of its images, as `config.data.normalize = "auto"` reads it; None for what it cannot say."""
    used = start_weights.preprocessing(trial.config.data, trial.start)
    if used["kind"] == "dataset":
        used = {"kind": "fixed"} | {name: trial.statistics[name] for name in ("mean", "std")}
    if used["kind"] not in ("fixed", "raw", "caffe"):  # these are worked out for each image
        return None
    if used["kind"] != "fixed":
        return used
    mean, std = (np.atleast_1d(used[name]).astype(float).tolist() for name in ("mean", "std"))
    return {"kind": "fixed", "mean": mean, "std": std} if min(std) > 0 else None


def load(path: pathlib.Path, program: Program) -> Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]:
    """The program with the arrays of a file, read as `config.model.weights` reads them.

    Raises:
      UserError: the file does not hold all of the network.
    """
    trial = program.trial
    model, size = build.build_model(trial), trial.config.image_size
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0), size, trial.channels))
    plan = start_weights.read_plan(trial.config.model.name, _variant(trial), str(path))
    variables, report = plan.load(model, shapes)
    if report["missing"] or report["unused"]:
        first = [*report["missing"], *report["unused"]][0]
        raise UserError(f"{path.name} does not hold the whole network ({first}); name another trial.")
    arrays = {kind: flatten(variables[kind]) for kind in program.arrays}
    call = jax.jit(program.outputs)
    return lambda given: {name: np.asarray(value) for name, value in call(arrays, *given).items()}


def digest(arrays: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over names, types, shapes and values of all arrays, in the order of their names."""
    found = hashlib.sha256()
    for name, value in sorted((f"{kind}/{p}", np.asarray(v)) for kind, flat in arrays.items() for p, v in flat.items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
