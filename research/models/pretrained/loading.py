"""What does a file of weights mean for a model, and how is the model filled with it?"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from input_pipeline.cli import UserError
from research.models import registry
from research.models.call_order import call_order
from research.models.initialize import initialize
from research.models.pretrained import formats, hub, matching, names, sources
from research.models.pretrained.weight_file import WeightFile, refuse
from research.remote.weights import local_copy


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A file of weights whose header was read and whose variant is settled.

    Attributes:
      entry: the model that it is for.
      variant: of the model; "" if the model has one form only.
      file: the arrays, none of which has been read.
      preprocessing: {"kind": "fixed", "mean": [C], "std": [C]} for `(x / 255 - mean) / std`, {"kind": "raw"} for x in
        0..255, {"kind": "caffe"} for BGR minus the ImageNet means; None if the file's origin does not say.
      source: what the file is, as a phrase.
    """

    entry: registry.Entry
    variant: str
    file: WeightFile
    preprocessing: dict[str, Any] | None
    source: str

    @property
    def path(self) -> pathlib.Path:
        """The file, or the folder of a checkpoint."""
        return self.file.path

    @property
    def sha256(self) -> str:
        """Of the file, or of a checkpoint's manifest."""
        return self.file.sha256

    @property
    def settings(self) -> dict[str, Any]:
        """Options of `registry.create` that a checkpoint implies: its head and its architecture's options."""
        if self.file.naming != "own":
            return {}
        widths = []
        while (kernel := f"params/head/dense_{len(widths) + 1}/kernel") in self.file.arrays:
            widths.append(self.file.arrays[kernel].shape[-1])
        try:
            options = dict(json.loads(self.file.metadata.get("options", "{}")))
        except (ValueError, TypeError, RecursionError) as error:
            raise refuse(self.path, f"its metadata are damaged ({error})") from error
        return {**options, "head": tuple(widths), "head_batch_norm": "params/head/norm/bias" in self.file.arrays}

    def sizes(self, modules: Sequence[str], variables: Any) -> tuple[int | None, int]:
        """The classes of the file's classifier, None without one, and its input channels.

        Args:
          modules: see `research.models.call_order`.
          variables: of the model for any number of classes.
        """
        shapes = _shapes(variables)
        stem = f"params/{matching.input_modules(modules, shapes)[-1]}/kernel"
        bias, kernel = (
            matching.shape_in_file(self.entry, self.file, modules, shapes, name)
            for name in (f"params/{matching.LOGITS}/bias", stem)
        )
        return (bias[0] if bias else None), (kernel[2] if kernel and len(kernel) == 4 else 3)

    def load(
        self, model: nn.Module, variables: Any, modules: Sequence[str] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Fills a model's variables with those of the file.

        Args:
          model: a `Classifier` of this entry and variant.
          variables: {"params", "batch_stats"}, arrays or `ShapeDtypeStruct`s, nested; not changed. The head's stay as
            they are where the file's classifier does not fit: another number of classes, or hidden layers.
          modules: `call_order(model)[0]`, where it is known already.

        Returns:
          The variables (float32 on the default device; what the file does not hold is passed through) and a report
          that JSON can hold: `loaded` (arrays), `parameters` (numbers), `replaced_head` and `adapted_stem` (a sentence
          or ""), `missing` (our variables left as they were), `unused` (arrays of the file), and what the file is.

        Raises:
          UserError: the file belongs to another model, is damaged, or holds NaN.
        """
        flat = names.flatten(variables)
        shapes = _shapes(variables)
        plan = matching.match(self.entry, self.file, call_order(model)[0] if modules is None else modules, shapes)
        filled = matching.fill(plan, self.file, shapes)
        report = {
            "file": str(self.path),
            "sha256": self.sha256,
            "format": self.file.format,
            "source": self.source,
            "model": self.entry.name,
            "variant": self.variant,
            "names": plan.library,
            "preprocessing": self.preprocessing,
            "loaded": len(filled),
            "parameters": sum(math.prod(shapes[name]) for name in filled),
            "replaced_head": plan.head,
            "adapted_stem": plan.stem,
            "missing": plan.fresh,
            "unused": [f"{name} {self.file.arrays[name].shape}" for name in plan.unused],
        }
        result = unflatten_dict({tuple(name.split("/")): value for name, value in {**flat, **filled}.items()})
        return {**{collection: {} for collection in variables}, **result}, report


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in names.flatten(variables).items()}


def plan(name: str, variant: str, weights: str) -> Pretrained:
    """Reads the header of a weight file and settles which variant of a model it is for.

    Args:
      name: of the model, as `registry.find` takes it.
      variant: of the model, or "" for what the file says.
      weights: path of a file or of a checkpoint folder, or "hf://timm/NAME[@REVISION]".

    Raises:
      UserError: no such model or variant, or the file is missing or unreadable.
    """
    entry, implied = registry.find(name)
    file, fetched = _open(entry, weights)
    architecture = fetched.architecture if fetched else file.path.name
    variant = variant or implied or _implied_by_file(entry, file, architecture) or _settle(entry, file)
    if variant and variant not in entry.variants:
        raise UserError(
            f"the model {entry.name} has no variant {variant!r}; it has {', '.join(entry.variants) or 'none'}."
        )
    hints = (weights if fetched else file.path.name, name)
    preprocessing = fetched and fetched.preprocessing or _preprocessing(entry, variant, file, hints)
    if fetched:
        source = fetched.source
    else:
        recognised = sources.recognised(entry.name, file.path, lambda: file.sha256)
        source = f"{file.format}, {recognised}" if recognised else file.format
    return Pretrained(entry, variant, file, preprocessing, source)


def _open(entry: registry.Entry, weights: str) -> tuple[WeightFile, hub.Fetched | None]:
    if not weights.startswith(hub.PREFIX):
        return formats.read(local_copy(weights), sources.suggestion(entry.name)), None
    fetched = hub.fetch(weights)
    if fetched.architecture:
        try:
            found = registry.find(fetched.architecture)[0]
        except UserError:
            found = None
        if found is not entry:
            raise UserError(
                f"{weights} is a {fetched.architecture}, not a {entry.name}; change the model or the weights."
            )
    return formats.read(fetched.path), fetched


def _preprocessing(
    entry: registry.Entry, variant: str, file: WeightFile, hints: tuple[str, ...]
) -> dict[str, Any] | None:
    """What the metadata say, or the table of official files for the library whose names the file has."""
    if "preprocessing" in file.metadata:
        try:
            return sources.checked(json.loads(file.metadata["preprocessing"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise refuse(file.path, f"its metadata are damaged ({error})") from error
    if file.naming == "own":
        return None
    libraries = names.LIBRARIES[file.naming]
    library = variant if variant in libraries else libraries[0]
    return sources.preprocessing(entry.name, library, variant, hints)


def _implied_by_file(entry: registry.Entry, file: WeightFile, name: str) -> str:
    """The variant in the metadata, or in a name such as "tf_efficientnet_b4.safetensors"; "" if there is none."""
    if stated := file.metadata.get("variant", ""):
        return stated if stated in entry.variants else ""
    if file.naming != "torch":
        return ""
    try:
        found, implied = registry.find(name)
    except UserError:
        return ""
    return implied if found is entry else ""


def _settle(entry: registry.Entry, file: WeightFile) -> str:
    """The variant that the names in a file speak for; the first where they speak for several."""
    if not entry.variants or file.naming == "own":
        return entry.variants[0] if entry.variants else ""
    if file.naming == "keras":
        if "keras" not in entry.variants and "keras" not in entry.names:
            raise refuse(
                file.path, f"Keras has no {entry.name}", "choose a file of timm or torchvision, or another model"
            )
        return "keras" if "keras" in entry.variants else entry.variants[0]
    libraries = [
        library for library in names.LIBRARIES["torch"] if library in entry.names and library in entry.variants
    ]
    if len({entry.names[library] for library in libraries}) > 1:
        modules = call_order(registry.create(entry.name, num_classes=1, variant=libraries[0]))[0]
        prefixes = {name.rpartition(".")[0] for name in file.arrays}
        known = {library: len(prefixes & set(entry.names[library](modules).values())) for library in libraries}
        libraries.sort(key=lambda library: -known[library])
    return libraries[0] if libraries else entry.variants[0]


def build(
    pretrained: Pretrained, classes: int | None, size: tuple[int, int], channels: int | None
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Makes the model that a file of weights is for, and fills it.

    Args:
      classes: K, or None for the number of the file's classifier; for another one the head is drawn anew (seed 0).
      size: rows and columns of the images.
      channels: of the images, or None for those of the file.

    Returns:
      The model, its variables, and the report of `Pretrained.load`.

    Raises:
      UserError: the weights do not fit, or have no classifier and `classes` is None.
    """

    def create(num_classes):
        name, variant = pretrained.entry.name, pretrained.variant
        return registry.create(name, num_classes=num_classes, variant=variant, **pretrained.settings)

    def shapes(model):
        images = {"image": jax.ShapeDtypeStruct((1, *size, channels or 3), jnp.float32)}
        return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, train=False), images)

    model = create(classes or 1)
    modules = call_order(model)[0]
    there, channels_there = pretrained.sizes(modules, shapes(model))
    classes, channels = classes or there, channels or channels_there
    if classes is None:
        pretrained.load(model, shapes(model), modules)  # if the rest does not fit either, that is the thing to say
        raise UserError(f"the weights {pretrained.path} have no classifier; give --classes for a new one.")
    model = create(classes)
    variables, report = pretrained.load(model, shapes(model), modules)
    if report["missing"]:
        drawn = names.flatten(initialize(model, jax.random.key(0), min(size), channels))
        flat = names.flatten(variables) | {name: drawn[name] for name in report["missing"]}
        variables = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    return model, variables, report
