"""How are pixel values brought to the scale that a network is trained on?

Kinds: "fixed" (a given mean and deviation, [-1, 1] unless told otherwise), "dataset" (mean and deviation of
the training images, per channel), "per_image" (zero mean and unit variance over each image),
"channel_intensity" (each channel of each image divided by its mean intensity, minus 1), and two that pretrained
weights ask for: "raw" (0..255 as they are: Keras's EfficientNets scale for themselves) and "caffe" (Keras's ResNets
and VGGs: RGB to BGR, minus the means of ImageNet, nothing divided).

Weights for RGB images ask for three means. For images of other channels these are treated like the first kernels of
the network: averaged for one channel, else repeated in turn (R, G, B, R, …). "caffe" turns the first three channels
round if there are three or more.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError

KINDS = ("fixed", "dataset", "per_image", "channel_intensity", "raw", "caffe")
CAFFE_MEANS = (103.939, 116.779, 123.68)  # of blue, green and red over ImageNet, in 0..255
# The greatest value of each stored type; images inside the program are float32 in 0..255.
GREATEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def to_float(image: jax.Array) -> jax.Array:
    """uint8, uint16 (whose 65535 becomes 255) or float in 0..255 -> float32 in 0..255, any shape."""
    result = image.astype(jnp.float32)
    return result * (255.0 / 65535.0) if image.dtype == jnp.uint16 else result


def make(kind: str, statistics: Mapping[str, Any] | None = None) -> Callable[[jax.Array], jax.Array]:
    """The normalisation `kind` as a pure function: uint8, uint16 or float32 0..255 [B, H, W, C] -> float32.

    Args:
      kind: one of `KINDS`.
      statistics: {"mean": …, "std": …} in units of 0..1, each a number or one number per channel. "dataset"
        needs those of `dataset_statistics`; "fixed" takes 0.5 and 0.5 without them; the other kinds ignore
        them.

    Raises:
      UserError: an unknown kind, missing statistics, or a deviation that is not positive; and, when the
        function is called, statistics of another number of channels than the images.
    """
    if kind not in KINDS:
        raise UserError(f"data.normalize must be one of {', '.join(KINDS)}, not {kind!r}.")
    if kind == "per_image":
        return _per_image
    if kind == "channel_intensity":
        return _channel_intensity
    if kind == "raw":
        return to_float
    if kind == "caffe":
        return _caffe
    if kind == "dataset" and not statistics:
        raise UserError("data.normalize = 'dataset' needs the mean and std of the training images, and has none.")
    statistics = statistics or {"mean": 0.5, "std": 0.5}
    mean = np.atleast_1d(np.asarray(statistics["mean"], np.float64))
    deviation = np.atleast_1d(np.asarray(statistics["std"], np.float64))
    if kind == "dataset":
        # A channel without variation is centred only: there is nothing to scale.
        deviation = np.where(deviation > 0, deviation, 1.0)
    if not (np.all(deviation > 0) and np.all(np.isfinite(deviation)) and np.all(np.isfinite(mean))):
        raise UserError(
            f"data.normalize = {kind!r} needs finite means and positive deviations, not {dict(statistics)}."
        )

    def normalize(image: jax.Array) -> jax.Array:
        """(x - mean) / std, per channel."""
        for values in (mean, deviation):
            if values.size not in (1, image.shape[-1]):
                raise UserError(
                    f"data.normalize = {kind!r} has statistics of {values.size} channels, "
                    f"but the images have {image.shape[-1]}; give one number per channel."
                )
        offset = jnp.asarray(255.0 * mean, jnp.float32)
        return (to_float(image) - offset) * jnp.asarray(1.0 / (255.0 * deviation), jnp.float32)

    return normalize


def _per_image(image: jax.Array) -> jax.Array:
    """(x - mean) / max(std, 1/√N) over the N values of an image, as `tf.image.per_image_standardization`."""
    image = to_float(image)
    centred = image - jnp.mean(image, axis=(1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centred**2, axis=(1, 2, 3), keepdims=True))
    return centred / jnp.maximum(deviation, 1.0 / np.sqrt(np.prod(image.shape[1:])))


def _channel_intensity(image: jax.Array) -> jax.Array:
    """x / mean - 1 for each channel of each image; a black channel gives 0."""
    image = to_float(image)
    mean = jnp.mean(image, axis=(1, 2), keepdims=True)
    return (image - mean) / jnp.where(mean > 0, mean, 1.0)


def for_channels(values: Any, channels: int) -> tuple[float, ...]:
    """The numbers of weights for RGB images, one per channel of other images (the rule above)."""
    values = tuple(float(value) for value in np.atleast_1d(values))
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))


def _caffe(image: jax.Array) -> jax.Array:
    """BGR minus the means, in 0..255; other channels than three by the rule above."""
    channels = image.shape[-1]
    image = to_float(image)
    if channels >= 3:
        image = jnp.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1)
    return image - jnp.asarray(for_channels(CAFFE_MEANS, channels), jnp.float32)


def dataset_statistics(source: Any, indices: np.ndarray | None = None, limit: int | None = None) -> dict[str, Any]:
    """Exact mean and standard deviation of every channel over all pixels, in units of 0..1.

    Sums are whole numbers of unlimited size, so the result does not depend on order, batches or rounding.

    Args:
      source: a dataset with `encoded(index)` (then `indices` says which images: the training ones), whose
        images are taken at their stored size, or an iterable of images: uint8 or uint16 arrays [B, H, W, C]
        or [H, W, C], or batches (dicts with `image` and optionally `valid`; padding is left out).
      indices: dataset indices [N]; None for an iterable.
      limit: with `indices`, the greatest number of images to read, spread evenly over them.

    Returns:
      {"mean": [C floats], "std": [C floats], "images": how many}.

    Raises:
      UserError: no images, images with different numbers of channels, or images of another type.
    """
    images = source if indices is None else _decoded(source, np.asarray(indices), limit)
    sums = squares = None
    pixels = count = 0
    for item in images:
        values = _pixels(item)
        if sums is not None and values.shape[-1] != len(sums):
            raise UserError(
                f"images have {len(sums)} and {values.shape[-1]} channels; set data.channels to one number."
            )
        unit = 65535 // GREATEST[values.dtype]
        flat = values.reshape(-1, values.shape[-1])
        total = flat.sum(axis=0, dtype=np.uint64)
        total_squares = [int(np.square(column, dtype=np.uint64).sum()) for column in flat.T]
        sums = sums or [0] * flat.shape[-1]
        squares = squares or [0] * flat.shape[-1]
        sums = [old + unit * int(new) for old, new in zip(sums, total, strict=True)]
        squares = [old + unit**2 * new for old, new in zip(squares, total_squares, strict=True)]
        pixels += flat.shape[0]
        count += values.shape[0]
    if not pixels:
        raise UserError("there is no training image to compute mean and std from; choose another data.normalize.")
    mean = [total / (pixels * 65535) for total in sums]
    variance = [
        (pixels * square - total**2) / (pixels * 65535) ** 2 for square, total in zip(squares, sums, strict=True)
    ]
    return {"mean": mean, "std": [float(np.sqrt(value)) for value in variance], "images": count}


def _pixels(item: Any) -> np.ndarray:
    """One item of an iterable as uint8 or uint16 [B, H, W, C] without padding."""
    if isinstance(item, Mapping):
        values = np.asarray(item["image"])
        values = values[np.asarray(item["valid"])] if "valid" in item else values
    else:
        values = np.asarray(item)
    if values.dtype not in GREATEST or values.ndim not in (3, 4):
        raise UserError(f"images must be uint8 or uint16 [H, W, C], not {values.dtype} with {values.ndim} axes.")
    return values if values.ndim == 4 else values[None]


def _decoded(dataset: Any, indices: np.ndarray, limit: int | None) -> Iterable[np.ndarray]:
    """The decoded images of a dataset, evenly thinned out to at most `limit`."""
    from input_pipeline.images import decode

    if limit is not None and limit < len(indices):
        indices = indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]
    for index in indices:
        yield decode(dataset.encoded(int(index)), dataset.channels)
