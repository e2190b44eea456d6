"""What do the reference libraries compute with weights that a formula makes?

`python -m tests.research.models.reference` writes the logits of `CASES` for the libraries that the environment holds
into `golden_logits.json`, so that tests compare with Keras, timm and torchvision without having them. The weights reach
a reference model through the mapping `names` of the registry, which is thereby guarded as well. The libraries need
separate environments, see peers/, each with flax added.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from research.models import registry

GOLDEN = pathlib.Path(__file__).with_name("golden_logits.json")
CLASSES = 7
PERIOD = 999_983  # a prime: no stride of an array divides it, so a wrong order of axes does not go unseen


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of a reference library and the side of the square images.

    Attributes:
      library: "keras", "timm" or "torchvision".
      name: what the library calls the model; the registry knows it by that name.
      size: pixels.
      gain: factor of the variance of the convolutions' kernels, for activations that neither vanish nor explode.
    """

    library: str
    name: str
    size: int
    gain: float = 1.0

    @property
    def key(self) -> str:
        """Such as "keras VGG16 43"."""
        return f"{self.library} {self.name} {self.size}"

    @property
    def variant(self) -> str:
        """The form of the architecture that the library has."""
        entry, implied = registry.find(self.name)
        return implied or (self.library if self.library in entry.variants else "")


# One for every family and library, at the smallest sizes that reach every layer; odd ones tell paddings apart.
CASES = (
    Case("keras", "DenseNet121", 43),
    Case("keras", "EfficientNetB0", 47, 1.5),
    Case("keras", "InceptionResNetV2", 77),
    Case("keras", "InceptionV3", 79),
    Case("keras", "ResNet50", 45, 0.7),
    Case("keras", "VGG16", 43),
    Case("keras", "Xception", 75),
    Case("timm", "densenet121", 43),
    Case("timm", "efficientnet_b0", 47, 1.5),
    Case("timm", "inception_resnet_v2", 77),
    Case("timm", "inception_v3", 79),
    Case("timm", "legacy_xception", 75),
    Case("timm", "resnet18", 65),
    Case("timm", "tf_efficientnet_b0", 47, 1.5),
    Case("timm", "vgg16_bn", 43),
    Case("torchvision", "efficientnet_b0", 47, 1.5),
    Case("torchvision", "vgg16", 43),
)


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that look uniform and depend on the name and the shape alone (integer hashing)."""
    size = math.prod(shape)
    with np.errstate(over="ignore"):
        bits = np.arange(min(size, PERIOD), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    values = ((bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1).astype(np.float32)
    return np.resize(values, size).reshape(shape)


def images(case: Case) -> np.ndarray:
    """Two images; Keras's EfficientNet takes 0..255 and normalises them itself."""
    values = 1.7 * formula(f"images {case.size}", (2, case.size, case.size, 3))
    return 127 + 70 * values if case.name.startswith("EfficientNet") else values


def model_and_variables(case: Case, classes: int = CLASSES) -> tuple[nn.Module, dict]:
    """Our model and variables from the formula; activations keep their scale, statistics are not trivial."""
    model = registry.create(case.name, variant=case.variant, num_classes=classes)
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(_shapes(model, case.size), sep="/").items():
        values = formula(path, leaf.shape)
        kind = path.rsplit("/", 1)[1]
        if kind == "kernel":
            # He et al. 2015; no ReLU comes between a depthwise convolution and the 1x1 convolution behind it.
            gain = 1 if leaf.ndim == 4 and leaf.shape[2] == 1 else 2
            gain *= case.gain if leaf.ndim == 4 else 1
            values = values * np.float32(math.sqrt(3 * gain / math.prod(leaf.shape[:-1])))
        elif kind in ("scale", "var"):
            values = 1 + 0.4 * values
        else:
            values = 0.3 * values
        flat[path] = values.astype(np.float32)
    return model, flax.traverse_util.unflatten_dict(flat, sep="/")


def _shapes(model: nn.Module, size: int) -> dict:
    inputs = {"image": jax.ShapeDtypeStruct((1, size, size, 3), np.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def modules(model: nn.Module, size: int) -> list[str]:
    """Paths of the modules that own variables, in the order of their calls, which is Keras's order of construction."""
    called: list[str] = []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__":
            called.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = _shapes(model, size)
    owners = by_module(shapes)
    return [path for path in dict.fromkeys(called) if path in owners]


def by_module(variables: Mapping[str, dict]) -> dict[str, dict[str, np.ndarray]]:
    """`{"backbone/conv1": {"kernel": ...}}` of a tree of variables."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for tree in variables.values():
        for path, value in flax.traverse_util.flatten_dict(tree, sep="/").items():
            module, kind = path.rsplit("/", 1)
            result.setdefault(module, {})[kind] = value
    return result


def named(case: Case, model: nn.Module, variables: dict) -> dict[str, dict[str, np.ndarray]]:
    """The variables of every module by the library's name of it."""
    names = registry.find(case.name)[0].names[case.library](modules(model, case.size))
    arrays = by_module(variables)
    assert set(names) == set(arrays) and len(set(names.values())) == len(names), "every module has a name of its own"
    return {names[module]: values for module, values in arrays.items()}


def torch_state(case: Case, model: nn.Module, variables: dict) -> dict[str, np.ndarray]:
    """The state dict of these variables."""
    kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var", "bias": "bias"}
    state = {}
    for name, values in named(case, model, variables).items():
        for kind, value in values.items():
            if kind == "kernel":
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{name}.{kinds[kind]}"] = value
    return state


def keras_model(case: Case, model: nn.Module, variables: dict):
    """The Keras application with these variables."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    classes = variables["params"]["head"]["logits"]["bias"].shape[0]
    shape = (case.size, case.size, 3)
    keras.backend.clear_session()
    build = getattr(keras.applications, case.name)
    theirs = build(weights=None, input_shape=shape, classes=classes, classifier_activation=None)
    kinds = {"kernel": "kernel", "scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    unset = {weight.path for layer in theirs.layers for weight in layer.weights}
    for name, values in named(case, model, variables).items():
        layer, _, only = name.partition(":")
        layer = theirs.get_layer(layer)
        by_name = {weight.name: weight for weight in layer.weights}
        for kind, value in values.items():
            wanted = only if kind == "kernel" and only else kinds[kind] if kinds[kind] in by_name else kind
            if isinstance(layer, keras.layers.Normalization):
                wanted = {"var": "variance"}.get(kind, kind)
            weight = by_name[wanted]
            depthwise = wanted == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
            value = value.transpose(0, 1, 3, 2) if depthwise and kind == "kernel" else value
            weight.assign(value.reshape(weight.shape))
            unset.discard(weight.path)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
            unset.discard(layer.count.path)
    assert not unset, f"no module of ours has {sorted(unset)}"
    return theirs


def torch_model(case: Case, model: nn.Module, variables: dict):
    """The timm or torchvision model with these variables, in evaluation mode."""
    torch = import_torch()
    classes = variables["params"]["head"]["logits"]["bias"].shape[0]
    if case.library == "timm":
        import timm

        theirs = timm.create_model(case.name, num_classes=classes).eval()
    else:
        import torchvision

        theirs = getattr(torchvision.models, case.name)(weights=None, num_classes=classes).eval()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    state = {
        key: torch.tensor(np.ascontiguousarray(value.reshape(shapes[key])))
        for key, value in torch_state(case, model, variables).items()
    }
    ignored = ("num_batches_tracked$", *registry.find(case.name)[0].ignored)
    left = [key for key in set(shapes) - set(state) if not any(re.search(rule, key) for rule in ignored)]
    assert not left, f"no module of ours has {sorted(left)}"
    theirs.load_state_dict(state, strict=False)
    return theirs


def reference_logits(case: Case, model: nn.Module, variables: dict) -> np.ndarray:
    """What the reference library computes for `images(case)`."""
    if case.library == "keras":
        return np.asarray(keras_model(case, model, variables)(images(case), training=False))
    torch = import_torch()
    with torch.no_grad():
        return torch_model(case, model, variables)(torch.tensor(images(case)).permute(0, 3, 1, 2)).numpy()


@functools.cache
def import_torch():
    """torch; torchvision's operators do not load beside a CPU build of it, and timm needs their names only."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for operator in (
        "qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward "
        "ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
    ).split():
        library.define(f"{operator}(Tensor x) -> Tensor")
    torch.operators_of_torchvision = library  # which live as long as this object
    return torch


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of an image's logits, divided by that image's largest logit."""
    error = np.abs(np.asarray(actual, np.float64) - expected).max(-1)
    return float((error / np.abs(expected).max(-1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression of the cases, such as 'keras VGG'")
    only = parser.parse_args().only
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for case in CASES:
        if importlib.util.find_spec(case.library) and re.search(only, case.key):
            logits = reference_logits(case, *model_and_variables(case))
            golden[case.key] = [[float(f"{x:.8g}") for x in row] for row in logits]
            print(case, "max |logit|", np.abs(logits).max(-1))
    known = {case.key for case in CASES}
    rows = [f" {json.dumps(key)}: {json.dumps(golden[key])}" for key in sorted(known & set(golden))]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
