"""Weight files of whole networks, written without the code under test."""

import functools
import json
import pathlib
import struct

import jax
import numpy as np

from research.models import call_order as calls
from research.models import registry
from tests.research.models.reference import formula

DATA = pathlib.Path(__file__).with_name("files")


def resnet18_state(classes: int = 1000, channels: int = 3) -> dict[str, np.ndarray]:
    """A state dict with the names and shapes of torchvision's and timm's resnet18; half of each array is negative."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name, *shape):
        shapes[f"{name}.weight"] = shape

    def norm(name, width):
        shapes.update({f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", 64, channels, 7, 7)
    norm("bn1", 64)
    width_in = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, width_in, 3, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if width_in != width:
                conv(f"{name}.downsample.0", width, width_in, 1, 1)
                norm(f"{name}.downsample.1", width)
            width_in = width
    conv("fc", classes, 512)
    shapes["fc.bias"] = (classes,)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7, np.int64)
        else:
            state[name] = formula(name, shape) * (0.05 if len(shape) > 1 else 0.4)
            state[name] += np.float32(1.0 if name.endswith(("running_var", "bn1.weight", "bn2.weight")) else 0.0)
    return state


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict | None = None) -> pathlib.Path:
    """The format by its description; see https://github.com/huggingface/safetensors#format."""
    header, position = ({"__metadata__": metadata} if metadata else {}), 0
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64", "float16": "F16", "float64": "F64", "bfloat16": "BF16"}[
            array.dtype.name
        ]
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))
    return path


@functools.cache
def call_order(name: str, variant: str = "", **options) -> tuple[str, ...]:
    """See `research.models.call_order`; traced once per test session."""
    return calls.call_order(registry.create(name, num_classes=1, variant=variant, **options))[0]


def abstract(model, channels: int = 3, size: int = 64) -> dict:
    """Shapes of a model's variables."""
    images = {"image": jax.ShapeDtypeStruct((1, size, size, channels), np.float32)}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, train=False), images)


@functools.cache
def shapes(name: str, variant: str = "", classes: int = 1000, channels: int = 3, head: tuple[int, ...] = ()) -> dict:
    """Shapes of the variables of a registered model."""
    return abstract(registry.create(name, num_classes=classes, variant=variant, head=head), channels)
