"""How does a network lose whole channels, so that an ordinary, smaller network of this project is left?

A filter of a convolution, or a unit of a dense layer, goes together with its bias, its BatchNorm and what the next
layer reads of it (Li et al. 2017, arXiv:1608.08710). The result is a model that `build.build_model` builds from other
`model.options` and `model.head`, and sliced variables. Known are simple_cnn, cnn2 and grid_cnn with any head of
`research/models/heads.py`.

What goes is what scores lowest within its layer:

    l1             sum of the absolute values of the filter's weights (Li et al. 2017)
    scale          absolute value of its BatchNorm's scale (Liu et al. 2017, arXiv:1708.06519), where the layer has a
                   BatchNorm, else l1
    contribution   the score of `scale`, where the layer has a BatchNorm, times the sum of the absolute values of the
                   weights that read the channel; else l1 times that sum. Behind a BatchNorm a filter's own size means
                   nothing, and its scale tells how large its outputs are, not how much the next layer makes of them.

Where one width of the options stands for two layers (cnn2), both keep equally many channels, each its own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from research.models.classifier import Classifier
from research.models.cnn2 import CNN2
from research.models.grid_cnn import FIRST_NORM, GridCNN
from research.models.simple_cnn import SimpleCNN

CRITERIA = ("contribution", "scale", "l1")
Variables = dict[str, dict[str, np.ndarray]]  # {"params": {path: array}, "batch_stats": {path: array}}


@dataclasses.dataclass(frozen=True)
class Unit:
    """The outputs of one layer, which can lose channels.

    Attributes:
      layer: path of the convolution or dense layer whose outputs they are.
      norms: paths of the BatchNorm layers that they pass.
      readers: paths of the layers that read them. A reader's inputs, and a norm's channels, may be the unit's channels
        several times over, the channels varying fastest, as on a flattened feature map.
      option: the key of the config that holds the layer's width, and which of its numbers.
    """

    layer: str
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    option: tuple[str, int]


def units(model: Classifier) -> tuple[Unit, ...]:
    """What of `model` can lose channels, from the image on.

    Raises:
      UserError: the architecture is none of those that are known.
    """
    known: dict[type, Callable[[Any], list[Unit]]] = {SimpleCNN: _simple, CNN2: _cnn2, GridCNN: _grid}
    if type(model.backbone) not in known:
        raise UserError(
            f"channels cannot be pruned in {type(model.backbone).__name__}, only in simple_cnn, cnn2 and grid_cnn; "
            "use the methods magnitude or int8."
        )
    chain = known[type(model.backbone)](model.backbone)
    dense = [unit for unit in chain if unit.option[0] == "model.options.dense"]
    last = chain[-1] if model.pool == "average" or not dense else chain[-len(dense) - 1]
    widths = model.head.widths
    head = [f"head/dense_{index}" for index in range(1, len(widths) + 1)] + ["head/logits"]
    norms = ("head/norm",) if model.head.batch_norm else ()
    joined = dataclasses.replace(last, norms=last.norms + norms, readers=(*last.readers, head[0]))
    chain = [joined if unit is last else unit for unit in chain]
    return (*chain, *(Unit(head[i], (), (head[i + 1],), ("model.head", i)) for i in range(len(widths))))


def _linked(layers: Sequence[tuple[str, tuple[str, ...], tuple[str, int]]]) -> list[Unit]:
    """Units in a row, each read by the next; the last one's readers are not in the backbone."""
    names = [f"backbone/{name}" for name, _, _ in layers]
    result = []
    for index, (_, norms, option) in enumerate(layers):
        readers = tuple(names[index + 1 : index + 2])
        result.append(Unit(names[index], tuple(f"backbone/{norm}" for norm in norms), readers, option))
    return result


def _simple(backbone: SimpleCNN) -> list[Unit]:
    names = [f"block_{index}_1" for index in range(1, len(backbone.widths) + 1)]
    return _linked([(f"{n}/conv", (f"{n}/norm",), ("model.options.widths", i)) for i, n in enumerate(names)])


def _cnn2(backbone: CNN2) -> list[Unit]:
    names = [f"block_{block}_{index}" for block in range(1, len(backbone.widths) + 1) for index in (1, 2)]
    return _linked([(f"{n}/conv", (f"{n}/norm",), ("model.options.widths", i // 2)) for i, n in enumerate(names)])


def _grid(backbone: GridCNN) -> list[Unit]:
    layers = []
    for index in range(1, len(backbone.filters) + 1):
        normed = index >= FIRST_NORM.get(backbone.batch_norm, index + 1)
        norms = (f"norm_{index}",) if normed else ()
        layers.append((f"conv_{index}", norms, ("model.options.filters", index - 1)))
    for index in range(1, len(backbone.dense) + 1):
        norms = () if backbone.batch_norm == "none" else (f"dense_norm_{index}",)
        layers.append((f"dense_{index}", norms, ("model.options.dense", index - 1)))
    return _linked(layers)


def scores(variables: Variables, unit: Unit, criterion: str = "contribution") -> np.ndarray:
    """How much each channel of a unit matters, float64 `[channels]`.

    Raises:
      UserError: an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise UserError(f"channels are not scored by {criterion!r}; choose one of {', '.join(CRITERIA)}.")
    params = variables["params"]
    kernel = np.abs(np.asarray(params[f"{unit.layer}/kernel"], np.float64))
    channels = kernel.shape[-1]
    scales = [f"{norm}/scale" for norm in unit.norms if f"{norm}/scale" in params]
    if criterion == "l1" or not scales:
        score = kernel.reshape(-1, channels).sum(0)
    else:  # the first norm; another one, in the head, may stand on a flattened map
        score = np.abs(np.asarray(params[scales[0]], np.float64)).reshape(-1, channels).sum(0)
    if criterion == "contribution":
        for reader in unit.readers:
            read = np.abs(np.asarray(params[f"{reader}/kernel"], np.float64))
            over = read.reshape(*read.shape[:-2], -1, channels, read.shape[-1])
            score = score * over.sum(axis=tuple(a for a in range(over.ndim) if a != over.ndim - 2))
    return score


def choose(
    variables: Variables, chain: Sequence[Unit], keep: float, criterion: str = "contribution"
) -> dict[str, np.ndarray]:
    """The channels that stay, by layer: ascending indices; max(1, round(keep·n)) of n, of equal scores the first.

    Raises:
      UserError: `keep` is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise UserError(f"a share of {keep} of the channels cannot be kept; choose a number above 0 and at most 1.")
    kept = {}
    for unit in chain:
        score = scores(variables, unit, criterion)
        count = max(1, round(keep * len(score)))
        kept[unit.layer] = np.sort(np.argsort(-score, kind="stable")[:count])
    return kept


def without(variables: Variables, chain: Sequence[Unit], kept: Mapping[str, np.ndarray]) -> Variables:
    """The variables of the network that has only the channels `kept` (ascending indices by layer) of its units.

    Exact: what goes is gone. The logits stay the same where the channels that went were zero, or were read by zeros.
    """
    result = {collection: dict(flat) for collection, flat in variables.items()}
    params = result["params"]
    for unit in chain:
        channels = params[f"{unit.layer}/kernel"].shape[-1]
        stay = np.asarray(kept[unit.layer])
        _slice(params, f"{unit.layer}/kernel", -1, channels, stay)
        _slice(params, f"{unit.layer}/bias", -1, channels, stay)
        for norm in unit.norms:
            for flat, names in ((params, ("scale", "bias")), (result.get("batch_stats", {}), ("mean", "var"))):
                for name in names:
                    _slice(flat, f"{norm}/{name}", -1, channels, stay)
        for reader in unit.readers:
            _slice(params, f"{reader}/kernel", -2, channels, stay)
    return result


def _slice(flat: dict[str, np.ndarray], path: str, axis: int, channels: int, stay: np.ndarray) -> None:
    """Takes `stay` along an axis that holds the channels once or several times over; nothing if there is no `path`."""
    if path in flat:
        array = np.asarray(flat[path])
        times = array.shape[axis] // channels
        flat[path] = np.take(array, (np.arange(times)[:, None] * channels + stay).ravel(), axis)


def overrides(chain: Sequence[Unit], kept: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The keys of the config that hold other widths now, such as {"model.options.widths": (8, 16)}.

    Raises:
      ValueError: two layers that share one number keep differently many channels.
    """
    widths: dict[str, dict[int, int]] = {}
    for unit in chain:
        key, place = unit.option
        if widths.setdefault(key, {}).setdefault(place, len(kept[unit.layer])) != len(kept[unit.layer]):
            raise ValueError(f"the layers that share number {place} of {key} must keep equally many channels")
    return {key: tuple(places[i] for i in sorted(places)) for key, places in widths.items()}


def prune(
    model: Classifier, variables: Variables, keep: float, criterion: str = "contribution"
) -> tuple[Variables, dict[str, tuple[int, ...]]]:
    """The variables and the config's overrides of `model` with a share `keep` of the channels of every layer.

    Raises:
      UserError: see `units`, `scores` and `choose`.
    """
    chain = units(model)
    kept = choose(variables, chain, keep, criterion)
    return without(variables, chain, kept), overrides(chain, kept)
