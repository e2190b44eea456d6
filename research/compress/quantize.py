"""How does a trained network run in int8, without being trained again?

Post-training quantisation, uniform (Nagel et al. 2021, arXiv:2106.08295, section 3): the kernels of convolutions and
dense layers become int8, symmetric, with one float32 scale per output channel; their inputs become int8 with one scale
and one zero point per layer, which research/compress/calibration.py finds on training images. Convolutions and products
multiply int8 by int8 and add up in int32; in between, activations are float32. What the zero point adds is the same at
every pixel, because the padding is made of zero points, and stands in the bias. A BatchNorm right behind a convolution
is folded into its scales and bias, any other one becomes a factor and an offset per channel. Depthwise convolutions
stay as they are.

The arithmetic is qwix's (`QArray`, `conv_general_dilated`, `dot_general`). Its `quantize_model` is not used: it
replaces functions of `jax.lax` for the whole process, and qwix 0.1.8 stops at the layers here ("Unsupported type:
QArray"), whose kernels pass through functions with own gradients and `inputs @ kernel`. A Flax interceptor puts int8
layers in the place of the model's layers instead; so any model here runs in int8, on CPU too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.models.flops import sub_jaxprs
from research.models.layers import Conv, ConvBatchNorm, Dense
from research.models.normalization import ACTIVATIONS, BatchNorm
from research.models.pooling import explicit_padding
from research.training.state import Flat, nest

_LOWEST, _HIGHEST = -128, 127
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NAMES = ("kernel", "scale", "bias", "input_scale", "input_zero")


def _qwix():
    try:
        import qwix
    except ImportError as error:
        raise UserError("int8 needs the package qwix; run `pip install -e '.[compress]'`.") from error
    return qwix


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layers of a model that int8 replaces.

    Attributes:
      layers: paths of the convolutions and dense layers, in the order of their calls.
      norms: paths of the BatchNorm layers, to their epsilon.
      folded: by path of a BatchNorm, the convolution right before it.
    """

    layers: tuple[str, ...]
    norms: Mapping[str, float]
    folded: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Range:
    """How int8 stands for the inputs of a layer: the integer q for (q - zero) * scale."""

    scale: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> "Range":
        """The range from `low` to `high`, widened to hold zero, which some integer stands for exactly."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max((high - low) / (_HIGHEST - _LOWEST), 1e-20)  # of a dead layer: any will do
        return cls(scale, int(np.clip(np.round(_LOWEST - low / scale), _LOWEST, _HIGHEST)))


def layout(model: nn.Module, image_size: int, channels: int) -> Layout:
    """The layers of `model` for images `[B, image_size, image_size, channels]`; the model is traced, not run."""
    layers: dict[str, None] = {}
    norms: dict[str, float] = {}
    folded: dict[str, str] = {}

    def record(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name == "__call__":
            if isinstance(context.module, Conv | Dense):
                layers.setdefault(path)
            elif isinstance(context.module, BatchNorm):
                norms[path] = context.module.epsilon
            elif isinstance(context.module, ConvBatchNorm):
                folded[f"{path}/norm"] = f"{path}/conv"
        return call(*args, **kwargs)

    def trace():
        with nn.intercept_methods(record):
            image = jnp.zeros((1, image_size, image_size, channels))
            return model.init({"params": jax.random.key(0)}, {"image": image}, train=False)

    jax.eval_shape(trace)
    return Layout(tuple(layers), norms, folded)


def fold(plan: Layout, variables: Mapping[str, Flat]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the layers multiply by and add, with the BatchNorm layers in them that are right behind.

    Returns:
      By path: kernels, biases (of layers that have one), and (factor, offset) of the BatchNorm layers that are left.
    """
    params, stats = variables["params"], variables.get("batch_stats", {})
    norms = {path: _affine(params, stats, path, epsilon) for path, epsilon in plan.norms.items()}
    behind = {conv: norms.pop(norm) for norm, conv in plan.folded.items() if norm in norms}
    kernels = {path: jnp.asarray(params[f"{path}/kernel"], jnp.float32) for path in plan.layers}
    biases = {path: params[f"{path}/bias"] for path in plan.layers if f"{path}/bias" in params}
    for path, (factor, offset) in behind.items():
        kernels[path] = kernels[path] * factor
        biases[path] = offset + biases[path] * factor if path in biases else offset
    return kernels, biases, norms


def _affine(params: Flat, stats: Flat, path: str, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Factor and offset, float32 `[C]`, of a BatchNorm with its running statistics."""
    factor = jax.lax.rsqrt(jnp.asarray(stats[f"{path}/var"]) + epsilon) * params.get(f"{path}/scale", 1.0)
    return factor, params[f"{path}/bias"] - stats[f"{path}/mean"] * factor


def quantize(plan: Layout, variables: Mapping[str, Flat], ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """What is stored of the int8 network, by path; see the module's docstring.

    A layer gives `kernel` int8 in its shape, `scale` float32 `[out]`, `bias` float32 `[out]`, and of its inputs
    `input_scale` float32 [] and `input_zero` int8 []. A BatchNorm that is not folded gives `factor` and `offset`,
    float32 `[C]`. Other parameters are as they were.

    Args:
      plan: see `layout`.
      variables: {"params", "batch_stats"}, arrays by path.
      ranges: of the layers' inputs, see `calibration.calibrate`.
    """
    qwix, arrays = _qwix(), {}
    kernels, biases, norms = fold(plan, variables)
    for path, kernel in kernels.items():
        whole, inputs = qwix.quantize(kernel, jnp.int8, channelwise_axes=[kernel.ndim - 1]), ranges[path]
        scale = np.asarray(whole.scale, np.float32).ravel()
        added = inputs.zero * np.asarray(whole.qvalue, np.int64).sum(tuple(range(kernel.ndim - 1)))
        bias = np.asarray(biases.get(path, 0.0), np.float64) - added * np.float64(inputs.scale) * scale
        arrays |= {f"{path}/kernel": whole.qvalue, f"{path}/scale": scale, f"{path}/bias": np.float32(bias)}
        arrays |= {f"{path}/input_scale": np.float32(inputs.scale), f"{path}/input_zero": np.int8(inputs.zero)}
    for path, (factor, offset) in norms.items():
        arrays |= {f"{path}/factor": factor, f"{path}/offset": offset}
    replaced = {*plan.layers, *plan.norms}
    arrays |= {path: v for path, v in variables["params"].items() if path.rpartition("/")[0] not in replaced}
    return {path: np.asarray(value) for path, value in arrays.items()}


def int8_logits(
    model: nn.Module, normalize: Callable[[jax.Array], jax.Array], arrays: Mapping[str, jax.Array], image: jax.Array
) -> jax.Array:
    """Logits float32 `[B, K]` of images uint8|uint16 `[B, H, W, C]`, computed in int8.

    Args:
      model: the module that `arrays` were made for.
      normalize: of the model's images.
      arrays: see `quantize`.
    """

    def interceptor(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, Conv | Dense):
            outputs = int8_layer(module, stored_of(arrays, path), args[0])
        elif isinstance(module, BatchNorm):
            outputs = args[0]
            if f"{path}/factor" in arrays:
                outputs = outputs.astype(jnp.float32) * arrays[f"{path}/factor"] + arrays[f"{path}/offset"]
            outputs = ACTIVATIONS[module.activation](outputs)
        else:
            return call(*args, **kwargs)
        return outputs.astype(args[0].dtype)

    with nn.intercept_methods(interceptor):
        output = model.apply({"params": nest(dict(arrays))}, {"image": normalize(image)}, train=False)
    return output.logits.astype(jnp.float32)


def int8_layer(module: Conv | Dense, own: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """A convolution or dense layer on int8, float32 `[..., out]`; `own` holds its stored arrays by name."""
    qwix, kernel, rank = _qwix(), own["kernel"], inputs.ndim
    scale, zero = own["input_scale"], own["input_zero"]
    integers = rounded(inputs.astype(jnp.float32), scale, zero.astype(jnp.float32)).astype(jnp.int8)
    right = qwix.QArray(kernel, own["scale"].reshape((1,) * (kernel.ndim - 1) + (-1,)))
    scale = jnp.reshape(scale, (1,) * rank)
    if isinstance(module, Conv):
        strides = (module.stride, module.stride)
        pairs = explicit_padding(inputs.shape[1:3], kernel.shape[:2], strides, module.padding)
        integers = jax.lax.pad(integers, zero, ((0, 0, 0), *((*pair, 0) for pair in pairs), (0, 0, 0)))
        left = qwix.QArray(integers, scale)
        outputs = qwix.conv_general_dilated(left, right, strides, ((0, 0), (0, 0)), dimension_numbers=_LAYOUT)
    else:
        outputs = qwix.dot_general(qwix.QArray(integers, scale), right, (((rank - 1,), (0,)), ((), ())))
    return outputs + own["bias"]


def stored_of(arrays: Mapping[str, Any], path: str) -> dict[str, jax.Array]:
    """The stored arrays of a layer by name."""
    return {name: jnp.asarray(arrays[f"{path}/{name}"]) for name in _NAMES}


def rounded(values: jax.Array, scale: jax.Array | float, zero: jax.Array | float) -> jax.Array:
    """The integers, as floats, that stand for `values`."""
    return jnp.clip(jnp.round(values / scale) + zero, _LOWEST, _HIGHEST)


def product_types(function: Callable[..., Any], *arguments: Any) -> list[tuple[str, str, str, str]]:
    """(operation, type of the left operand, of the right, of the result) of a function's convolutions and products."""
    found = []

    def walk(jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("conv_general_dilated", "dot_general"):
                left, right, *_ = equation.invars
                types = (str(v.aval.dtype) for v in (left, right, equation.outvars[0]))
                found.append((equation.primitive.name, *types))
            for inner in sub_jaxprs(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found
