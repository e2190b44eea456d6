"""Which parameters does a text like "head", "block14", "last 10 layers" or "^backbone/" mean?

A **layer** is a module that owns parameters: a convolution, a BatchNorm or a dense layer, each counts as one. Layers
stand in the order of their calls. A **block** is a child of the backbone with all its layers; where convolutions stand
directly in the backbone, each is a block with the BatchNorm behind it. A specification is one of

    "layer4_2", "backbone/layer4_2/conv1", "head", "head/dense_1/kernel"    a path here, or its beginning
    "layer4.2", "conv5_block3", "block14"         a layer of timm, torchvision or Keras, or its beginning
    "timm:block12", "keras:block12"               the same, where the libraries disagree
    "last 10 layers", "first 2 blocks"            counted in the backbone, the head is not among them
    "last 2 of 4 groups"                          the backbone's blocks dealt to 4 groups, in order
    "^backbone/", ".*/kernel"                     a regular expression, searched in parameter paths

A text of letters, digits and `_ . / : -` is a name; anything else is a regular expression. A name means whole names:
"block1" is "block1_conv1" but not "block14_sepconv1".

Keras also counts activations, additions and pools as layers. What the gene expression study trained by Keras's count is
said here as follows, each with "head" beside it: the last 10 of ResNet50's 175 layers "conv5_block3" (4,465,664
parameters in Keras's variant), the last 2 of VGG19's 22 "block5_conv4", DenseNet169's last layer and final BatchNorm
"conv5_block32" and "bn", the end of Xception "block14".
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import flax.linen as nn

from input_pipeline.cli import UserError
from research.models.call_order import call_order
from research.training.state import flatten

_NAME = re.compile(r"[\w./:-]+")
_COUNT = re.compile(r"(first|last) (\d+) (layer|block)s?")
_GROUPS = re.compile(r"(first|last) (\d+) of (\d+) groups?")
_HERE = "here"  # the naming scheme of this project, beside those of the libraries


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Attributes:
      parameters: by layer path ("backbone/layer1_0/conv1"), its parameter paths; in the order of the calls.
      names: by library ("keras", "timm"), what it calls the layers: {layer path: name}.
    """

    parameters: Mapping[str, tuple[str, ...]]
    names: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """All parameter paths, in the order of the calls."""
        return tuple(path for own in self.parameters.values() for path in own)

    @property
    def backbone(self) -> tuple[str, ...]:
        """The layers that are not in the head."""
        return tuple(layer for layer in self.parameters if not layer.startswith("head/"))

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The backbone's layers by block, from the image on."""
        result: dict[str, list[str]] = {}
        for layer in self.backbone:
            block = "/".join(layer.split("/")[:2])
            if block == layer and result and not _has_kernel(self.parameters[layer]):
                block = next(reversed(result))  # a BatchNorm belongs to the convolution before it
            result.setdefault(block, []).append(layer)
        return tuple(tuple(layers) for layers in result.values())


def _has_kernel(parameters: Iterable[str]) -> bool:
    return any(path.endswith("/kernel") for path in parameters)


def describe(
    model: nn.Module,
    image_size: int,
    channels: int,
    names: Mapping[str, Callable[[Sequence[str]], dict[str, str]]] | None = None,
) -> Layers:
    """The layers of `model` for images `[B, image_size, image_size, channels]`; `names` as in `registry.Entry`."""
    modules, parameters = call_order(model, image_size, channels)
    return Layers(parameters, {library: function(modules) for library, function in (names or {}).items()})


def unordered(params) -> Layers:
    """The layers of a (nested) tree of parameters where no specification is read: without names and calls' order."""
    result: dict[str, list[str]] = {}
    for path in flatten(params):
        result.setdefault(path.rpartition("/")[0], []).append(path)
    return Layers({layer: tuple(paths) for layer, paths in result.items()})


def select(layers: Layers, specification: str) -> tuple[str, ...]:
    """The parameter paths that a specification (see above) means, in the order of the calls.

    Raises:
      UserError: it means nothing, counts more than there is, or means different layers to different libraries.
    """
    if match := _COUNT.fullmatch(specification):
        units = [(layer,) for layer in layers.backbone] if match[3] == "layer" else list(layers.blocks)
        return _counted(layers, specification, units, match[1], int(match[2]), f"{match[3]}s")
    if match := _GROUPS.fullmatch(specification):
        blocks, n = layers.blocks, int(match[3])
        if not 1 <= n <= len(blocks):
            raise UserError(f"'{specification}': the backbone's {len(blocks)} blocks make no {n} groups; give fewer.")
        groups = [blocks[i * len(blocks) // n : (i + 1) * len(blocks) // n] for i in range(n)]
        units = [tuple(layer for block in group for layer in block) for group in groups]
        return _counted(layers, specification, units, match[1], int(match[2]), "groups")
    if _NAME.fullmatch(specification):
        return _named(layers, specification)
    try:
        expression = re.compile(specification)
    except re.error as error:
        raise UserError(f"'{specification}' is no regular expression ({error}); mend it or give a name.") from error
    if found := tuple(path for path in layers.paths if expression.search(path)):
        return found
    raise UserError(f"The pattern '{specification}' matches no parameter; {_example(layers)}.")


def _counted(layers: Layers, specification: str, units, end: str, count: int, kind: str) -> tuple[str, ...]:
    if not 1 <= count <= len(units):
        raise UserError(f"'{specification}': the backbone has {len(units)} {kind}; give 1 to {len(units)}.")
    chosen = units[:count] if end == "first" else units[-count:]
    return tuple(path for unit in chosen for layer in unit for path in layers.parameters[layer])


def _named(layers: Layers, name: str) -> tuple[str, ...]:
    """The parameters of a name, in our naming and in every library's; all that know it must mean the same."""
    schemes = (_HERE, *layers.names)
    wanted = name
    if name.partition(":")[0] in schemes:
        scheme, _, wanted = name.partition(":")
        schemes = (scheme,)
    found = {}
    for scheme in schemes:
        if paths := _in_scheme(layers, scheme, wanted):
            found.setdefault(paths, scheme)
    if len(found) > 1:
        meanings = "; ".join(f"'{scheme}:{wanted}' is {_short(paths)}" for paths, scheme in found.items())
        raise UserError(f"'{name}' is ambiguous: {meanings}; write one of them.")
    if not found:
        similar = difflib.get_close_matches(wanted, _known_names(layers), 3, 0.5)
        hint = f"similar: {', '.join(similar)}" if similar else _example(layers)
        raise UserError(f"'{name}' names no layer of this model; {hint} (regular expressions need a sign like ^ or *).")
    return next(iter(found))


def _in_scheme(layers: Layers, scheme: str, name: str) -> tuple[str, ...]:
    for separators in (("/", ".", ":"), ("_",)):  # "block1" is block1 itself or its parts; only then "block1_conv1"
        beginnings = tuple(name + separator for separator in separators)
        found = []
        for layer, paths in layers.parameters.items():
            theirs = layers.names.get(scheme, {}).get(layer)
            for path in paths:
                known = (path, path.removeprefix("backbone/")) if scheme == _HERE else (theirs or "",)
                if any(text == name or text.startswith(beginnings) for text in known):
                    found.append(path)
        if found:
            return tuple(found)
    return ()


def _known_names(layers: Layers) -> list[str]:
    """Names of layers and of their beginnings, for suggestions."""
    result = {"backbone"}
    full = [layer.removeprefix("backbone/") for layer in layers.parameters]
    for name in [*full, *(name for names in layers.names.values() for name in names.values())]:
        result |= {name[: m.start()] for m in re.finditer(r"[./:_]", name)} | {name}
    return sorted(result - {""})


def _short(paths: Sequence[str]) -> str:
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
    return layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]} ({len(layers)} layers)"


def _example(layers: Layers) -> str:
    return f"paths look like '{layers.paths[0]}'"


def trainable(layers: Layers, freeze: Sequence[str] = (), train: Sequence[str] = ()) -> tuple[str, ...]:
    """The parameter paths that are trained: those that `train` means, or all that `freeze` does not mean.

    Raises:
      UserError: a specification means nothing, or nothing is left to train.
    """
    if train:
        kept = {path for specification in train for path in select(layers, specification)}
    else:
        kept = set(layers.paths) - {path for specification in freeze for path in select(layers, specification)}
    if not kept:
        raise UserError(f"Freezing {', '.join(map(repr, freeze))} leaves no parameter to train; freeze less.")
    return tuple(path for path in layers.paths if path in kept)


def resting_norms(layers: Layers, trained: Iterable[str]) -> tuple[str, ...]:
    """What `Classifier.frozen` takes: one expression for the BatchNorms none of whose parameters is trained.

    They use and keep their running statistics: were these to move, the features below a new head would too.
    """
    trained = set(trained)
    resting = [
        re.escape(layer)
        for layer, paths in layers.parameters.items()
        if not _has_kernel(paths) and trained.isdisjoint(paths)
    ]
    return (f"^(?:{'|'.join(resting)})$",) if resting else ()


def as_specifications(value, name: str) -> tuple[str, ...]:
    """A config value as a tuple of specifications; one text is one specification.

    Raises:
      UserError: it is neither a text nor a sequence of texts.
    """
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"config.{name} is {value!r}; give layers, for example ('head', 'last 10 layers').")
    return tuple(value)
