"""How do the weights of a Hugging Face BERT get into ours?

`model.safetensors` or `pytorch_model.bin` of `BertModel`, or of a model that holds one as `bert` (masked language
modelling, classification), also with the names `gamma` and `beta` of the first files.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.cli import UserError
from research.models.pretrained import formats
from research.models.pretrained.weight_file import WeightFile, refuse

FILES = ("model.safetensors", "pytorch_model.bin")
_MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings_norm/norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_LAYER_MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm/norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm/norm": "output.LayerNorm",
}
_ENDINGS = {"embedding": ("weight",), "kernel": ("weight",), "scale": ("weight", "gamma"), "bias": ("bias", "beta")}
_OPTIONAL = "pooler"  # models that were trained without the pooler have none
_LAYER = re.compile(r"layer_(\d+)/(.+)")


def find(folder: str) -> pathlib.Path:
    """The file of weights in a folder, or the file itself.

    Raises:
      UserError: there is none.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).exists():
            return path / name
    raise UserError(f"there is neither {' nor '.join(FILES)} in {path}; give the folder of a BERT, in one file.")


def load(folder: str, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fills the parameters of a `Bert`.

    Args:
      folder: with the file of weights, or its path.
      params: of the module, nested; arrays or their shapes. Not changed.

    Returns:
      The parameters, float32, those that the file lacks as they were, and a report that JSON can hold: `file`,
      `sha256`, `format`, `loaded` (arrays), `parameters` (numbers), `missing` and `unused` (names).

    Raises:
      UserError: there is no such file, it is damaged, holds NaN, or is of another network.
    """
    file = formats.read(find(folder))
    prefix = "bert." if any(name.startswith("bert.embeddings.") for name in file.arrays) else ""
    flat = flatten_dict(dict(params), sep="/")
    filled, used, missing = {}, set(), []
    for path, old in flat.items():
        name = _name(file, prefix, path)
        if name is None:
            missing.append(path)
            continue
        used.add(name)
        filled[path] = _value(file, name, path, tuple(old.shape))
    if layers := {
        int(found[1]) for name in file.arrays if (found := re.match(rf"{prefix}encoder\.layer\.(\d+)\.", name))
    }:
        ours = sum(path.endswith("/intermediate/kernel") for path in flat)
        if max(layers) + 1 != ours:
            raise refuse(file.path, f"it is of a BERT with {max(layers) + 1} layers, not {ours}", "check config.json")
    report = {
        "file": str(file.path),
        "sha256": file.sha256,
        "format": file.format,
        "loaded": len(filled),
        "parameters": sum(value.size for value in filled.values()),
        "missing": missing,
        "unused": sorted(set(file.arrays) - used),
    }
    return unflatten_dict({**flat, **filled}, sep="/"), report


def _name(file: WeightFile, prefix: str, path: str) -> str | None:
    """The name in the file of the parameter `path`; None if the file need not have it and has not."""
    module, _, parameter = path.rpartition("/")
    layer = _LAYER.fullmatch(module)
    theirs = f"encoder.layer.{layer[1]}.{_LAYER_MODULES[layer[2]]}" if layer else _MODULES[module]
    for ending in _ENDINGS[parameter]:
        if (name := f"{prefix}{theirs}.{ending}") in file.arrays:
            return name
    if module == _OPTIONAL:
        return None
    raise refuse(file.path, f"it has no {prefix}{theirs}.{_ENDINGS[parameter][0]}", "choose the weights of a BERT")


def _value(file: WeightFile, name: str, path: str, shape: tuple[int, ...]) -> jnp.ndarray:
    values = file.read(name)
    values = values.T if path.endswith("/kernel") else values
    if values.shape != shape:
        raise refuse(file.path, f"{name} has the shape {file.arrays[name].shape}", "check config.json and vocab.txt")
    return jnp.asarray(np.ascontiguousarray(values))
