"""What stands for "nothing to see" in an image: black, its mean colour, or itself out of focus?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("black", "mean", "blur")
_BLUR = 1 / 16  # standard deviation of the blur, as a share of the image's shorter side
_REACH = 3  # of the blur's kernel, in standard deviations


def make(kind: str, images: jax.Array, normalize: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The baseline of images, on the scale that the model takes.

    "black" is the normalised black image; where each image is normalised by its own statistics it equals the mean or a
    grey. "mean" is each image's own mean colour. "blur" is the image after a Gaussian blur of a sixteenth of its side
    (Fong and Vedaldi 2017; Petsiuk et al. 2018 begin insertion there), which keeps its brightness but no detail.

    Args:
      kind: one of `KINDS`.
      images: raw, uint8, uint16 or float 0..255, `[B, H, W, C]`.
      normalize: from raw images to what the model takes.

    Returns:
      float32 `[B, H, W, C]`.
    """
    if kind == "black":
        return normalize(jnp.zeros_like(images))
    inputs = normalize(images)
    if kind == "mean":
        return jnp.broadcast_to(jnp.mean(inputs, axis=(1, 2), keepdims=True), inputs.shape)
    if kind == "blur":
        return blur(inputs)
    raise ValueError(f"there is no baseline {kind!r}; choose of {', '.join(KINDS)}")


def blur(images: jax.Array) -> jax.Array:
    """Gaussian blur of `[B, H, W, C]`; beyond the edges the edge pixels go on."""
    sigma = _BLUR * min(images.shape[1:3])
    reach = max(1, round(_REACH * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    kernel = jnp.asarray(kernel / kernel.sum(), images.dtype)
    for axis in (1, 2):
        margins = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, margins, mode="edge")
        size = images.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * kernel[i] for i in range(2 * reach + 1)]
        images = sum(shifted)
    return images
