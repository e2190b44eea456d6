"""How does an array of a file become one of ours: axes, input channels, and the numbers that Keras stores otherwise?"""

import math

import numpy as np

# Keras's official EfficientNet files hold the standard deviations where its Normalization layer wants variances, and
# `EfficientNetB0(weights="imagenet")` divides by their root a second time.
KERAS_DEVIATIONS = (0.229, 0.224, 0.225)


def arrangement(
    naming: str, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How an array of shape `source` in a file is laid out as ours.

    Kernels are [o, i, h, w] and [o, i] in PyTorch, [h, w, i, o] and [i, o] in Keras and here; a depthwise kernel is
    [C, 1, h, w], [h, w, C, 1] and here [h, w, 1, C]. A dense kernel over flattened features may fill a convolution
    (VGG's first dense layer), and one of 1x1 a dense kernel.

    Args:
      naming: whose layout the file has, see `WeightFile`.
      target: our shape.

    Returns:
      A shape to give the array first, and the axes to transpose it by then.
    """
    same = tuple(range(len(source)))
    if len(target) == 1 and source and math.prod(source) == source[-1]:
        return source[-1:], (0,)  # early versions of Keras's Normalization keep [1, 1, 1, C]
    if naming == "torch":
        if len(target) == 4 and len(source) == 2:
            h, w, _, o = target
            if source[0] == o and source[1] % (h * w) == 0:
                return (o, source[1] // (h * w), h, w), (2, 3, 1, 0)
        if len(target) == 2 and len(source) == 4 and source[2:] == (1, 1):
            return source[:2], (1, 0)
        return source, {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(source), same)
    if naming == "keras" and source != target:
        if (
            len(source) != len(target)
            and {len(source), len(target)} == {2, 4}
            and math.prod(source) == math.prod(target)
        ):
            if source[-1] == target[-1] and (len(target) == 4 or source[:2] == (1, 1)):
                return target, tuple(range(len(target)))
        if len(source) == len(target) == 4 and target[2] == source[3] == 1 and target[3] == source[2]:
            return source, (0, 1, 3, 2)
    return source, same


def arranged_shape(naming: str, source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `arrange` gives an array of shape `source`."""
    shape, axes = arrangement(naming, source, target)
    return tuple(shape[axis] for axis in axes)


def arrange(naming: str, values: np.ndarray, target: tuple[int, ...]) -> np.ndarray:
    """An array of a file in our layout; `target` where the shapes fit."""
    shape, axes = arrangement(naming, values.shape, target)
    return np.ascontiguousarray(values.reshape(shape).transpose(axes))


def stored_shape(naming: str, kind: str, target: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an array of ours has in a file, the inverse of `arranged_shape` (for messages and for export)."""
    if kind != "kernel" or naming == "own":
        return target
    if naming == "torch":
        return tuple(target[axis] for axis in ((3, 2, 0, 1) if len(target) == 4 else (1, 0)))
    return target


def to_torch(values: np.ndarray, kind: str) -> np.ndarray:
    """An array of ours in PyTorch's layout."""
    if kind != "kernel":
        return values
    return np.ascontiguousarray(values.transpose((3, 2, 0, 1) if values.ndim == 4 else (1, 0)))


def input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution for another number of input channels, as timm's `adapt_input_conv`.

    For one channel the kernel is summed over its inputs, so that a grey image gives what its three equal channels gave.
    For others the inputs are repeated in turn (R, G, B, R, ...) and scaled by their number over `channels`, which keeps
    the size of the response.

    Args:
      kernel: `[h, w, i, o]`.
      channels: C.

    Returns:
      `[h, w, C, o]`.
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    inputs = kernel.shape[2]
    repeated = kernel[:, :, np.arange(channels) % inputs]
    return repeated * np.float32(inputs / channels)


def input_statistics(values: np.ndarray, channels: int) -> np.ndarray:
    """Means or variances `[i]` of the input for `channels` channels: their mean for one, else repeated in turn."""
    return values.mean(keepdims=True) if channels == 1 else values[np.arange(channels) % len(values)]


def keras_input_variance(values: np.ndarray) -> np.ndarray:
    """The variances by which the input is really normalised, see `KERAS_DEVIATIONS`."""
    if values.shape == (3,) and np.allclose(values, KERAS_DEVIATIONS, atol=1e-4):
        return np.square(values)
    return values
