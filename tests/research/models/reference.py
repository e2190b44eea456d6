"""Weights made by a formula, for comparing a model with its reference implementation with or without that
library.

`python -m tests.research.models.reference` writes `golden_logits.json` anew from whichever of Keras and timm
the environment holds (they need separate environments, see shared/reference/README.md, with flax and pytest
added).
"""

import functools
import importlib.util
import json
import math
import pathlib
import zlib

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from research.models import registry
from research.models.layers import ConvBatchNorm

GOLDEN = pathlib.Path(__file__).with_name("golden_logits.json")
CLASSES = 7
# Model: the library, the library's name of the model, and the image size of the golden logits.
REFERENCES = {
    "inception_resnet_v2": ("keras", "InceptionResNetV2", 75),
    "resnet18": ("timm", "resnet18", 65),
}


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that look uniform and depend on the name and the shape alone (integer hashing)."""
    with np.errstate(over="ignore"):
        bits = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1).reshape(shape).astype(np.float32)


def images(size: int, channels: int = 3) -> np.ndarray:
    return 1.7 * formula(f"images {size}", (2, size, size, channels))


def model_and_variables(name: str, classes: int = CLASSES) -> tuple[nn.Module, dict]:
    """The model and variables from the formula; activations keep their scale, statistics are not trivial."""
    model = registry.create(name, num_classes=classes)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), {"image": np.zeros((1, 75, 75, 3), np.float32)}, train=False)
    )
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        values = formula(path, leaf.shape)
        kind = path.rsplit("/", 1)[1]
        if kind == "kernel":
            values = values * np.sqrt(3 * 2 / math.prod(leaf.shape[:-1]))
        elif kind in ("scale", "var"):
            values = 1 + 0.4 * values
        else:
            values = 0.3 * values
        flat[path] = values.astype(np.float32)
    return model, flax.traverse_util.unflatten_dict(flat, sep="/")


def conv_batch_norm_paths(model: nn.Module) -> list[tuple[str, ...]]:
    """Paths of the ConvBatchNorm modules in the order of their calls, Keras's order of construction."""
    paths = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, ConvBatchNorm) and context.method_name == "__call__":
            paths.append(context.module.path)
        return call(*args, **kwargs)

    inputs = {"image": np.zeros((1, 75, 75, 3), np.float32)}
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
    return paths


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def keras_model(name: str, size: int, model: nn.Module, variables: dict):
    """The Keras application with these variables, and its number of parameters."""
    import keras

    build = getattr(keras.applications, REFERENCES[name][1])
    classes = variables["params"]["head"]["logits"]["bias"].shape[0]
    reference = build(weights=None, input_shape=(size, size, 3), classes=classes, classifier_activation=None)

    def numbered(kind):
        # "conv2d" < "conv2d_1" < ... < "conv2d_202", and the explicitly named "conv_7b" comes last.
        def order(layer):
            number = layer.name.rsplit("_", 1)[-1]
            return math.inf if layer.name.startswith("conv_7b") else int(number) if number.isdigit() else 0

        return sorted((layer for layer in reference.layers if isinstance(layer, kind)), key=order)

    convolutions = [layer for layer in numbered(keras.layers.Conv2D) if not layer.use_bias]
    norms = numbered(keras.layers.BatchNormalization)
    paths = conv_batch_norm_paths(model)
    assert len(paths) == len(convolutions) == len(norms)
    for path, convolution, norm in zip(paths, convolutions, norms, strict=True):
        params, statistics = _at(variables["params"], path), _at(variables["batch_stats"], path)["norm"]
        convolution.set_weights([params["conv"]["kernel"]])
        norm.set_weights([params["norm"]["bias"], statistics["mean"], statistics["var"]])
    for block, params in variables["params"]["backbone"].items():
        if block.startswith("block"):
            reference.get_layer(f"{block}_conv").set_weights(
                [params["conv"]["kernel"], params["conv"]["bias"]]
            )
    logits = variables["params"]["head"]["logits"]
    reference.get_layer("predictions").set_weights([logits["kernel"], logits["bias"]])
    return reference, reference.count_params()


def torch_state(variables: dict) -> dict[str, np.ndarray]:
    """A torchvision/timm ResNet state dict of these variables."""
    state = {}
    for path, value in flax.traverse_util.flatten_dict(variables).items():
        kind = path[-1]
        module = ".".join(path[2:-1]).replace("logits", "fc").replace("norm", "bn")
        module = module.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
        module = module.replace("_", ".", 1) if module.startswith("layer") else module
        if kind == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(
            kind, kind
        )
        state[f"{module}.{name}"] = value
    return state


def reference_logits(name: str, size: int, model: nn.Module, variables: dict) -> np.ndarray:
    """What the reference library computes for `images(size)`."""
    if REFERENCES[name][0] == "keras":
        return np.asarray(keras_model(name, size, model, variables)[0](images(size), training=False))
    torch, timm = import_timm()
    classes = variables["params"]["head"]["logits"]["bias"].shape[0]
    reference = timm.create_model(REFERENCES[name][1], num_classes=classes).eval()
    state = {key: torch.tensor(value) for key, value in torch_state(variables).items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    with torch.no_grad():
        return reference(torch.tensor(images(size)).permute(0, 3, 1, 2)).numpy()


@functools.cache
def import_timm():
    """torch and timm; torchvision's operators do not load beside a CPU build of torch: declare them."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for operator in (
        "qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward "
        "ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
    ).split():
        library.define(f"{operator}(Tensor x) -> Tensor")
    import timm

    timm.operator_declarations = library  # which live as long as this object
    return torch, timm


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of an image's logits, divided by that image's largest logit."""
    error = np.abs(np.asarray(actual, np.float64) - expected).max(-1)
    return float((error / np.abs(expected).max(-1)).max())


def main() -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name, (library, _, size) in REFERENCES.items():
        if importlib.util.find_spec(library):
            logits = reference_logits(name, size, *model_and_variables(name))
            golden[name] = {"library": library, "image_size": size, "logits": logits.tolist()}
            print(name, "max |logit|", np.abs(logits).max(-1))
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
