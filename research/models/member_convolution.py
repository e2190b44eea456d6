"""How is a convolution computed whose kernel differs from model to model, without becoming a grouped convolution?

`jax.vmap` over the kernel of `lax.conv_general_dilated` gives a convolution with one feature group per member, which is
slow on CPU (46 times slower at 8 members, 32 to 32 channels, 16x16 pixels) and has slow gradients on GPU as well. Two
ways around it, each with its own gradient:

* unrolled: one ordinary convolution per member, in one program. An input that all members share, such as the images of
  the first layer, meets all kernels side by side in one wide convolution.
* im2col: the windows are laid side by side, and the convolution is a matrix product, which `vmap` batches, and which
  stays fast inside `scan` and `map`, where convolutions are slow on CPU (JAX issue 12868).

Both differentiate once in reverse mode, as training does.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from research.models.pooling import Pairs, window_slices

_ROWS = (((0,), (0,)), ((), ()))
_PRODUCT = (((1,), (0,)), ((), ()))

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def unrolled(convolve: Convolution, inputs: jax.Array, kernel: jax.Array, wide: bool) -> jax.Array:
    """`convolve(inputs, kernel)`, whose batching rule calls it once per member.

    Args:
      convolve: a differentiable function; hashable, because the rule is made once for each.
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C, F]`.
      wide: whether kernels may be laid side by side along F (not so for depthwise kernels).
    """
    return _unrolling(convolve, wide)(inputs, kernel)


@functools.cache
def _unrolling(convolve: Convolution, wide: bool) -> Convolution:
    forward = custom_vmap(lambda inputs, kernel: convolve(inputs, kernel))
    backward = custom_vmap(lambda inputs, kernel, upstream: jax.vjp(convolve, inputs, kernel)[1](upstream))

    @forward.def_vmap
    def _forward_rule(members, batched, inputs, kernel):
        if wide and not batched[0]:
            return _split(convolve(inputs, _side_by_side(kernel)), members), True
        return jnp.stack([convolve(*_member(i, batched, inputs, kernel)) for i in range(members)]), True

    @backward.def_vmap
    def _backward_rule(members, batched, inputs, kernel, upstream):
        if wide and batched == [False, True, True]:
            # All members share the input, so that its gradient would be a sum over them: vmap wants each one's part,
            # and what nobody uses (a gradient at images) is not computed.
            _, pull = jax.vjp(lambda values: convolve(inputs, values), _side_by_side(kernel))
            (kernel_bar,) = pull(_side_by_side(upstream))
            inputs_bar = [
                jax.vjp(lambda values, i=i: convolve(values, kernel[i]), inputs)[1](upstream[i])[0]
                for i in range(members)
            ]
            return (jnp.stack(inputs_bar), _split(kernel_bar, members)), (True, True)
        parts = [backward.fun(*_member(i, batched, inputs, kernel, upstream)) for i in range(members)]
        return tuple(jnp.stack(bars) for bars in zip(*parts, strict=True)), (True, True)

    @jax.custom_vjp
    def convolution(inputs, kernel):
        return forward(inputs, kernel)

    convolution.defvjp(
        lambda inputs, kernel: (forward(inputs, kernel), (inputs, kernel)),
        lambda residuals, upstream: backward(*residuals, upstream),
    )
    return convolution


def _member(index: int, batched, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array[index] if has else array for array, has in zip(arrays, batched, strict=True))


def _side_by_side(arrays: jax.Array) -> jax.Array:
    """`[M, a, b, c, F]` to `[a, b, c, M * F]`."""
    moved = jnp.moveaxis(arrays, 0, -2)
    return moved.reshape(*moved.shape[:-2], -1)


def _split(array: jax.Array, members: int) -> jax.Array:
    """The inverse of `_side_by_side`."""
    return jnp.moveaxis(array.reshape(*array.shape[:-1], members, -1), -2, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def im2col(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    """Convolution as a matrix product over the windows.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C, F]`.
      strides: rows and columns between outputs.
      pairs: pixels of padding, ((top, bottom), (left, right)).

    Returns:
      `[B, h', w', F]`.
    """
    windows = _windows(inputs, kernel.shape[:2], strides, pairs)
    outputs = lax.dot_general(_rows(windows), kernel.reshape(-1, kernel.shape[-1]), _PRODUCT)
    return outputs.reshape(*windows.shape[:3], -1)


def _im2col_forward(inputs, kernel, strides, pairs):
    # The windows are gathered again in the backward pass: they are h * w times as large as the inputs.
    return im2col(inputs, kernel, strides, pairs), (inputs, kernel)


def _im2col_backward(strides, pairs, residuals, upstream):
    inputs, kernel = residuals
    windows = _windows(inputs, kernel.shape[:2], strides, pairs)
    kernel_bar = lax.dot_general(_rows(windows), _rows(upstream), _ROWS).reshape(kernel.shape)
    return _inputs_bar(inputs, kernel, upstream, strides, pairs), kernel_bar


im2col.defvjp(_im2col_forward, _im2col_backward)


def _inputs_bar(inputs, kernel, upstream, strides, pairs):
    """The gradient at the inputs: the flipped kernel over the upstream gradient, spread by the strides."""
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    placement = [(0, 0, 0)]
    for size, window, stride, pair, height in zip(
        inputs.shape[1:3], kernel.shape[:2], strides, pairs, upstream.shape[1:3], strict=True
    ):
        before = window - 1 - pair[0]
        placement.append((before, size + window - 1 - before - ((height - 1) * stride + 1), stride - 1))
    spread = lax.pad(upstream, jnp.zeros((), upstream.dtype), (*placement, (0, 0, 0)))
    windows = _windows(spread, kernel.shape[:2], (1, 1), ((0, 0), (0, 0)))
    return lax.dot_general(_rows(windows), flipped.reshape(-1, flipped.shape[-1]), _PRODUCT).reshape(inputs.shape)


def _windows(inputs: jax.Array, window: tuple[int, int], strides: tuple[int, int], pairs: Pairs) -> jax.Array:
    """`[B, h', w', h * w * C]`."""
    padded = jnp.pad(inputs, ((0, 0), *pairs, (0, 0)))
    slices = list(window_slices(padded, window, strides))
    return jnp.concatenate(slices, -1) if len(slices) > 1 else slices[0]


def _rows(values: jax.Array) -> jax.Array:
    return values.reshape(-1, values.shape[-1])
