"""How is a convolution computed on the platform at hand, forward and backward?

On GPU and TPU every convolution is `lax.conv_general_dilated`, which the vendors' libraries run. XLA on CPU is fast
for dense windows only, so that there

* a 1x1 convolution is a matrix product over the channels, and so are both of its gradients;
* a depthwise convolution is one multiply-add per position of the window, on shifted slices, which XLA fuses into one
  loop; the gradient of its input likewise, with the flipped kernel; the gradient of its kernel is a loop over rows of
  the image with one accumulator per position. At [16, 32, 32, 144] and 3x3 on two cores: forward 3 ms instead of 70.

All are equal to `lax.conv_general_dilated` to float tolerance.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from research.models.lowering import on_cpu
from research.models.pooling import Padding, Pairs, explicit_padding, window_slices

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# The accumulators of a depthwise kernel's gradient should stay in the second-level cache.
_ACCUMULATOR_BYTES = 2**19


def conv2d(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Two-dimensional convolution (cross-correlation).

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C, F]` in the type of `inputs`.
      strides: rows and columns between outputs.
      padding: "same" (as TensorFlow: the odd pixel goes right and below), "valid", or pixels on each side.

    Returns:
      `[B, h', w', F]`.

    Raises:
      UserError: the kernel does not fit into the padded image.
    """
    window = kernel.shape[:2]
    pairs = explicit_padding(inputs.shape[1:3], window, strides, padding)
    if window == (1, 1) and pairs == ((0, 0), (0, 0)) and on_cpu():
        return _pointwise(inputs[:, :: strides[0], :: strides[1]], kernel[0, 0])
    return lax.conv_general_dilated(inputs, kernel, strides, pairs, dimension_numbers=_LAYOUT)


def depthwise_conv2d(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Convolution of every channel with its own window.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, 1, C]` in the type of `inputs`.
      strides, padding: as for `conv2d`.

    Returns:
      `[B, h', w', C]`.
    """
    pairs = explicit_padding(inputs.shape[1:3], kernel.shape[:2], strides, padding)
    if on_cpu():
        return _depthwise(inputs, kernel, strides, pairs)
    return lax.conv_general_dilated(
        inputs, kernel, strides, pairs, dimension_numbers=_LAYOUT, feature_group_count=inputs.shape[-1]
    )


@jax.custom_vjp
def _pointwise(inputs: jax.Array, matrix: jax.Array) -> jax.Array:
    return lax.dot_general(inputs, matrix, (((3,), (0,)), ((), ())))


def _pointwise_forward(inputs, matrix):
    return _pointwise(inputs, matrix), (inputs, matrix)


def _pointwise_backward(residuals, cotangent):
    inputs, matrix = residuals
    inputs_bar = lax.dot_general(cotangent, matrix, (((3,), (1,)), ((), ())))
    # Over flat pixels: with three axes to sum over, XLA first transposes an operand.
    flat = (values.reshape(-1, values.shape[-1]) for values in (inputs, cotangent))
    return inputs_bar, lax.dot_general(*flat, (((0,), (0,)), ((), ())))


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    return _shifted_sum(_pad(inputs, pairs), kernel, strides)


def _depthwise_forward(inputs, kernel, strides, pairs):
    return _depthwise(inputs, kernel, strides, pairs), (inputs, kernel)


def _depthwise_backward(strides, pairs, residuals, cotangent):
    inputs, kernel = residuals
    inputs_bar = _depthwise_inputs_bar(kernel, cotangent, inputs.shape[1:3], strides, pairs)
    return inputs_bar, _depthwise_kernel_bar(inputs, cotangent, kernel, strides, pairs)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pad(inputs: jax.Array, pairs: Pairs) -> jax.Array:
    """Zeros around the image; negative numbers cut pixels off."""
    placement = ((0, 0, 0), (*pairs[0], 0), (*pairs[1], 0), (0, 0, 0))
    return lax.pad(inputs, jnp.zeros((), inputs.dtype), placement)


def _shifted_sum(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Depthwise convolution without padding; sums in float32."""
    slices = window_slices(inputs, kernel.shape[:2], strides)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    products = (piece.astype(jnp.float32) * weight for piece, weight in zip(slices, weights, strict=True))
    return functools.reduce(jnp.add, products).astype(inputs.dtype)


def _depthwise_inputs_bar(kernel, cotangent, sizes, strides, pairs):
    """The gradient at the inputs, whose image has the given `sizes`.

    Row `s m + q` of the padded image meets the kernel's rows q, q + s, q + 2 s, ... at stride s, so that each of the s
    phases q (and likewise of the columns) is a convolution at stride 1, and the phases are woven together.
    """
    extents = [math.ceil((size + sum(pair)) / stride) for size, pair, stride in zip(sizes, pairs, strides, strict=True)]
    batch, height, width, channels = cotangent.shape
    phases = []
    for row, column in itertools.product(range(strides[0]), range(strides[1])):
        part = kernel[row :: strides[0], column :: strides[1]][::-1, ::-1]
        if part.size:
            below, right = extents[0] - height, extents[1] - width
            around = ((part.shape[0] - 1, below), (part.shape[1] - 1, right))
            phases.append(_shifted_sum(_pad(cotangent, around), part, (1, 1)))
        else:  # The stride is larger than the window, which skips these pixels.
            phases.append(jnp.zeros((batch, *extents, channels), cotangent.dtype))
    woven = phases[0]
    if len(phases) > 1:
        woven = jnp.stack(phases, 3).reshape(batch, *extents, *strides, channels).transpose(0, 1, 3, 2, 4, 5)
        woven = woven.reshape(batch, extents[0] * strides[0], extents[1] * strides[1], channels)
    ends = [size - total for size, total in zip(sizes, woven.shape[1:3], strict=True)]
    return _pad(woven, tuple((-pair[0], pair[0] + end) for pair, end in zip(pairs, ends, strict=True)))


def _depthwise_kernel_bar(inputs, cotangent, kernel, strides, pairs):
    """The gradient at the kernel: one accumulator per position of the window, in a loop over a few rows at a time.

    The accumulators hold rows, not their sums, so that the loop's body is a multiply-add that XLA vectorises.
    """
    rows, columns, _, channels = kernel.shape
    batch, height, width, _ = cotangent.shape
    # At stride 1 a row is taken as one run of numbers, in which the slices are contiguous.
    unit = channels if strides[1] == 1 else 1
    inputs = _pad(inputs, pairs)
    inputs = inputs.reshape(*inputs.shape[:2], inputs.shape[2] * unit, channels // unit)
    cotangent = cotangent.reshape(batch, height, width * unit, channels // unit)
    fitting = max(1, _ACCUMULATOR_BYTES // (4 * rows * columns * width * channels))
    together = max(count for count in range(1, min(fitting, height) + 1) if height % count == 0)
    extent = (together - 1) * strides[0] + 1, (width * unit - 1) * strides[1] + 1

    def accumulate(totals, step):
        image, row = step // (height // together), step % (height // together) * together
        size = (1, together, *cotangent.shape[2:])
        upstream = lax.dynamic_slice(cotangent, (image, row, 0, 0), size)[0].astype(jnp.float32)
        size = (1, extent[0] + rows - 1, *inputs.shape[2:])
        piece = lax.dynamic_slice(inputs, (image, row * strides[0], 0, 0), size)[0].astype(jnp.float32)
        result = []
        for total, (i, j) in zip(totals, itertools.product(range(rows), range(columns)), strict=True):
            start, end = (i, j * unit, 0), (i + extent[0], j * unit + extent[1], piece.shape[-1])
            result.append(total + lax.slice(piece, start, end, (*strides, 1)) * upstream)
        return tuple(result), None

    zeros = jnp.zeros((together, *cotangent.shape[2:]))
    totals, _ = lax.scan(accumulate, (zeros,) * (rows * columns), jnp.arange(batch * height // together))
    totals = jnp.stack(totals).reshape(rows * columns, together * width, channels)
    return jnp.sum(totals, 1).reshape(kernel.shape).astype(kernel.dtype)
