"""Under which name does a file hold each variable of a model?"""

import re
from collections.abc import Iterable, Mapping, Sequence

from research.models.pretrained.weight_file import WeightFile
from research.models.registry import Entry

TORCH_SUFFIX = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The order of a Keras layer's weights: those that are trained first.
KERAS_ORDER = ("depthwise_kernel", "pointwise_kernel", "kernel", "scale", "bias", "mean", "var")
LIBRARIES = {"torch": ("timm", "torchvision"), "keras": ("keras",)}
_KERAS_AUTOMATIC = re.compile(
    r"(conv2d|depthwise_conv2d|separable_conv2d|batch_normalization|normalization|dense)(?:_(\d+))?"
)


def flatten(variables: Mapping) -> dict:
    """Variables by name, "params/backbone/conv1/kernel"."""
    from flax.traverse_util import flatten_dict

    return flatten_dict(dict(variables), sep="/")


def owner_and_kind(name: str) -> tuple[str, str]:
    """ "params/backbone/conv1/kernel" to "backbone/conv1" and "kernel"."""
    _, _, path = name.partition("/")
    owner, _, kind = path.rpartition("/")
    return owner, kind


def in_file(
    entry: Entry, library: str, modules: Sequence[str], variables: Iterable[str], file: WeightFile
) -> dict[str, str]:
    """From names of our variables to names of arrays in a file, whether it has them or not.

    Args:
      library: "timm", "torchvision", "keras" or "own".
      modules: see `research.models.call_order`.
      variables: names of our variables; those of modules that the library does not have are left out.
    """
    if library == "own":
        return {name: name for name in variables}
    modules_there = entry.names[library](modules)
    owned: dict[str, list[tuple[str, str]]] = {}
    for name in variables:
        owner, kind = owner_and_kind(name)
        if owner in modules_there:
            layer, _, part = modules_there[owner].partition(":")
            owned.setdefault(layer, []).append((part if kind == "kernel" and part else kind, name))
    if library != "keras":
        return {name: f"{layer}.{TORCH_SUFFIX[kind]}" for layer, kinds in owned.items() for kind, name in kinds}
    layers = keras_layers(file)
    return {
        name: f"{layers.get(layer, layer)}/{position}"
        for layer, kinds in owned.items()
        for position, (_, name) in enumerate(sorted(kinds, key=lambda item: KERAS_ORDER.index(item[0])))
    }


def keras_layers(file: WeightFile) -> dict[str, str]:
    """From the names of Keras's automatically numbered layers in a fresh session to those in the file.

    A session that made other models before starts at a higher number, so that the ranks count.
    """
    numbered: dict[str, dict[int, str]] = {}
    for layer in {name.rpartition("/")[0] for name in file.arrays}:
        if match := _KERAS_AUTOMATIC.fullmatch(layer):
            numbered.setdefault(match[1], {})[int(match[2] or 0)] = layer
    return {
        f"{kind}_{rank}" if rank else kind: layers[number]
        for kind, layers in numbered.items()
        for rank, number in enumerate(sorted(layers))
    }
