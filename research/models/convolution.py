"""How is a convolution computed on the platform at hand, forward and backward?

On GPU and TPU every convolution is `lax.conv_general_dilated`, which the vendors' libraries run. XLA on CPU is fast
for some of them only, so that there

* a 1x1 convolution is a matrix product over the channels, and so is one whose window is the whole image; their
  gradients are matrix products too;
* a convolution without padding is given some rows of it, which are cut off again: XLA would gather all windows in
  memory first. At [16, 63, 63, 32] and 3x3 to 64 channels, on two cores: 12 ms instead of 51 ms;
* the gradient of a dense kernel, which XLA computes as a convolution with a window as large as the image, is a matrix
  product for each row of the window, on large images in a loop over a few rows of pixels at a time. At
  [16, 128, 128, 64] and 3x3: 125 ms instead of 565 ms;
* a depthwise convolution is one multiply-add per position of the window, on shifted slices, which XLA fuses into one
  loop; the gradient of its input likewise, with the flipped kernel; the gradient of its kernel is a loop over rows of
  the image with one accumulator per position. At [16, 32, 32, 144] and 3x3: forward 3 ms instead of 70.

All are equal to `lax.conv_general_dilated` to float tolerance. Several models in one program compute theirs as
`research.models.member_convolution` says.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from research.models import member_convolution
from research.models.lowering import member_convolutions, on_cpu
from research.models.pooling import Padding, Pairs, explicit_padding, window_slices

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NONE = ((0, 0), (0, 0))
_OVER_ROWS = (((0,), (0,)), ((), ()))
# The windows of a dense kernel's gradient should stay in the cache of all cores. XLA has the gradient of images of up
# to so many pixels in its own, and does not lose where many channels become few.
_WINDOWS_BYTES = 2**21
_SMALL_IMAGE = 16 * 16


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
    pairs = explicit_padding(inputs.shape[1:3], kernel.shape[:2], strides, padding)
    kind = member_convolutions()
    if kind == "im2col":
        return member_convolution.im2col(inputs, kernel, strides, pairs)
    if kind == "unrolled":
        return member_convolution.unrolled(_bound(_of_one, strides, pairs), inputs, kernel, wide=True)
    return _of_one(inputs, kernel, strides, pairs)


@functools.cache
def _bound(convolve, strides, pairs):
    """`convolve` of inputs and kernel, the same function object for the same geometry."""
    return functools.partial(convolve, strides=strides, pairs=pairs)


def _of_one(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    """The convolution of one model."""
    window = kernel.shape[:2]
    if not on_cpu():
        return _convolve(inputs, kernel, strides, pairs)
    if pairs == _NONE and window == (1, 1):
        return _pointwise(inputs[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if pairs == _NONE and window == inputs.shape[1:3]:
        flat = inputs.reshape(inputs.shape[0], 1, 1, -1)
        return _pointwise(flat, kernel.reshape(-1, kernel.shape[-1]))
    return _dense(inputs, kernel, strides, pairs)


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
    if member_convolutions():
        return member_convolution.unrolled(_bound(_depthwise_of_one, strides, pairs), inputs, kernel, wide=False)
    return _depthwise_of_one(inputs, kernel, strides, pairs)


def _depthwise_of_one(inputs, kernel, strides, pairs):
    """The depthwise convolution of one model."""
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
    return inputs_bar, lax.dot_general(*flat, _OVER_ROWS)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _convolve(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    return lax.conv_general_dilated(inputs, kernel, strides, pairs, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    # Of few channels the windows may well be gathered.
    if pairs != _NONE or inputs.shape[-1] < 16:
        return _convolve(inputs, kernel, strides, pairs)
    height = (inputs.shape[1] - kernel.shape[0]) // strides[0] + 1
    return _convolve(inputs, kernel, strides, ((0, strides[0]), (0, 0)))[:, :height]


def _dense_forward(inputs, kernel, strides, pairs):
    return _dense(inputs, kernel, strides, pairs), (inputs, kernel)


def _dense_backward(strides, pairs, residuals, cotangent):
    inputs, kernel = residuals
    (inputs_bar,) = jax.vjp(lambda values: _convolve(values, kernel, strides, pairs), inputs)[1](cotangent)
    if math.prod(cotangent.shape[1:3]) > _SMALL_IMAGE and 2 * kernel.shape[3] >= kernel.shape[2]:
        kernel_bar = _dense_kernel_bar(_pad(inputs, pairs), cotangent, kernel, strides)
    elif kernel.shape[1] == 1:
        kernel_bar = _kernel_products(_pad(inputs, pairs), cotangent, kernel, strides).astype(kernel.dtype)
    else:
        (kernel_bar,) = jax.vjp(lambda values: _convolve(inputs, values, strides, pairs), kernel)[1](cotangent)
    return inputs_bar, kernel_bar


_dense.defvjp(_dense_forward, _dense_backward)


def _kernel_products(inputs, cotangent, kernel, strides):
    """The float32 gradient at a dense kernel, from padded inputs: one matrix product over all pixels per kernel row.

    The columns of a window are laid side by side, `[..., w * C]`.
    """
    rows, columns, channels, features = kernel.shape
    height, width = cotangent.shape[1:3]
    wide = [inputs[:, :, j : j + (width - 1) * strides[1] + 1 : strides[1]] for j in range(columns)]
    wide = jnp.concatenate(wide, -1)
    upstream = cotangent.reshape(-1, features)
    products = []
    for i in range(rows):
        pixels = wide[:, i : i + (height - 1) * strides[0] + 1 : strides[0]].reshape(-1, columns * channels)
        products.append(lax.dot_general(pixels, upstream, _OVER_ROWS, preferred_element_type=jnp.float32))
    return jnp.stack(products).reshape(kernel.shape)


def _dense_kernel_bar(inputs, cotangent, kernel, strides):
    """The gradient at a dense kernel, from padded inputs, in a loop over blocks of rows."""
    rows, columns, channels, _ = kernel.shape
    row_bytes = 4 * cotangent.shape[2] * columns * channels
    blocks, height, take = _row_blocks(cotangent, _WINDOWS_BYTES // row_bytes)
    extent = (height - 1) * strides[0] + rows

    def accumulate(total, index):
        image, first, upstream = take(index)
        size = (1, extent, *inputs.shape[2:])
        piece = lax.dynamic_slice(inputs, (image, first * strides[0], 0, 0), size)
        return total + _kernel_products(piece, upstream, kernel, strides), None

    total, _ = lax.scan(accumulate, jnp.zeros(kernel.shape), jnp.arange(blocks))
    return total.astype(kernel.dtype)


def _row_blocks(cotangent: jax.Array, fitting: int):
    """Cuts the images of a cotangent into blocks of about equally many rows, at most `fitting`.

    Returns:
      The number of blocks, their rows, and a function from a block's index to its image, its first row and its part of
      the cotangent, `[1, rows, w, F]`. Where the rows do not come out even, the last block of an image begins in the
      one before, and the rows that both have are zero in it.
    """
    batch, height = cotangent.shape[:2]
    count = math.ceil(height / max(1, fitting))
    rows = math.ceil(height / count)

    def take(index):
        image, wanted = index // count, index % count * rows
        first = jnp.minimum(wanted, height - rows)
        upstream = lax.dynamic_slice(cotangent, (image, first, 0, 0), (1, rows, *cotangent.shape[2:]))
        if height % rows:
            new = (first + jnp.arange(rows) >= wanted)[None, :, None, None]
            upstream = jnp.where(new, upstream, jnp.zeros((), upstream.dtype))
        return image, first, upstream

    return batch * count, rows, take


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
    """The gradient at the kernel: one accumulator per position of the window, in a loop over the cotangent's rows.

    The accumulators hold rows, not their sums, so that the loop's body is a multiply-add that XLA vectorises.
    """
    rows, columns, _, channels = kernel.shape
    batch, height, width, _ = cotangent.shape
    inputs = _pad(inputs, pairs)
    extent = (width - 1) * strides[1] + 1

    def accumulate(totals, index):
        image, row = index // height, index % height
        upstream = lax.dynamic_slice(cotangent, (image, row, 0, 0), (1, 1, width, channels))[0, 0].astype(jnp.float32)
        size = (1, rows, *inputs.shape[2:])
        piece = lax.dynamic_slice(inputs, (image, row * strides[0], 0, 0), size)[0].astype(jnp.float32)
        result = []
        for total, (i, j) in zip(totals, itertools.product(range(rows), range(columns)), strict=True):
            result.append(total + piece[i, j : j + extent : strides[1]] * upstream)
        return tuple(result), None

    zeros = jnp.zeros((width, channels))
    totals, _ = lax.scan(accumulate, (zeros,) * (rows * columns), jnp.arange(batch * height))
    return jnp.sum(jnp.stack(totals), 1).reshape(kernel.shape).astype(kernel.dtype)
