"""How are parts of an image erased or mixed with another image of the batch?

These run on normalised images, after everything else. Semantics are those of torchvision v2 (`RandomErasing`,
`MixUp`, `CutMix`), except that every example draws its own λ and box, where torchvision draws one for the
whole batch: the distribution for one example is the same. Every valid example is paired with the valid
example before it (the first with the last), as torchvision does by rolling the batch by one; padding is
neither mixed nor mixed in, so the pairs do not depend on how a batch was padded.

Targets are mixed linearly, λ·own + (1 - λ)·partner, multi-hot targets too: a label that only one of the two
images has then gets the weight of that image.

References: Zhong et al. 2017, "Random Erasing" (arXiv:1708.04896); Zhang et al. 2018, "mixup"
(arXiv:1710.09412); Yun et al. 2019, "CutMix" (arXiv:1905.04899).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from input_pipeline.augment_geometry import draw_boxes, first_fitting
from input_pipeline.augment_random import below, symmetric_beta

# Defaults of torchvision's RandomErasing: area fraction, aspect ratio, and how often an impossible box is
# drawn again.
ERASE_SCALE = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10


class Erase(NamedTuple):
    """A box per example, int32 [B] each; height 0 erases nothing."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Mix(NamedTuple):
    """How each example is mixed with its partner."""

    partner: jax.Array  # int32 [B], row of the other example
    cut: jax.Array  # bool [B], True = cutmix, False = mixup
    own: jax.Array  # float32 [B], λ: the share of the example itself
    box: jax.Array  # int32 [B, 4], top, left, bottom, right of the pasted part (cutmix)


def inside_box(height: int, width: int, top, left, bottom, right) -> jax.Array:
    """Whether each pixel lies in its example's box (ends excluded): bool [B, H, W] from int [B] bounds."""
    y = jnp.arange(height)[None, :, None]
    x = jnp.arange(width)[None, None, :]
    top, left, bottom, right = (value[:, None, None] for value in (top, left, bottom, right))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


# ---------------------------------------------------------------------------------------------------- erasing


def draw_erase(fraction: jax.Array, height: int, width: int, probability, scale: tuple = ERASE_SCALE) -> Erase:
    """Boxes as `torchvision.transforms.v2.RandomErasing` draws them: 10 tries for a box smaller than the
    image.

    Args:
      fraction: uniform numbers [B, 23].
      height, width: of the image, pixels.
      probability: that an example is erased at all; may be traced.
      scale: (low, high) of the box's area as a fraction of the image's; may be traced.
    """
    tries = fraction[:, : 2 * ERASE_TRIES].reshape(-1, ERASE_TRIES, 2)
    # torchvision's aspect ratio is height : width here, and width : height in RandomResizedCrop.
    widths, heights = draw_boxes(tries, height, width, scale, ERASE_RATIO)
    found, (tall, wide) = first_fitting((heights < height) & (widths < width), heights, widths)
    found = found & (fraction[:, -3] < probability)
    tall, wide = (jnp.where(found, value, 0.0).astype(jnp.int32) for value in (tall, wide))
    return Erase(below(fraction[:, -2], height - tall + 1), below(fraction[:, -1], width - wide + 1), tall, wide)


def draw_noise(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal values to erase with, float32 [B, H, W, C], from keys [B]."""
    # The stream apart from the uniform numbers, which use the key itself.
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def apply_erase(images: jax.Array, erase: Erase, value: jax.Array | float = 0.0) -> jax.Array:
    """Writes `value` (a number or [B, H, W, C]) into each example's box of [B, H, W, C]."""
    top, left, tall, wide = erase
    box = inside_box(*images.shape[1:3], top, left, top + tall, left + wide)
    return jnp.where(box[..., None], jnp.asarray(value, images.dtype), images)


# ----------------------------------------------------------------------------------------------------- mixing


def partners(valid: jax.Array) -> jax.Array:
    """The row of the valid example before each, the first one's being the last: int32 [B] from bool [B]."""
    rows = jnp.arange(valid.shape[0], dtype=jnp.int32)
    seen = jax.lax.cummax(jnp.where(valid, rows, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), seen[:-1]])
    return jnp.where(valid, jnp.where(before < 0, seen[-1], before), rows)


def draw_mix(fraction: jax.Array, valid: jax.Array, height: int, width: int, *, mixup=None, cutmix=None) -> Mix:
    """λ ~ Beta(alpha, alpha) and a box for every example.

    Args:
      fraction: uniform numbers [B, 5].
      valid: bool [B].
      height, width: of the image, pixels.
      mixup, cutmix: alpha of each, None = never; may be traced, and 0 then means never. With both, each
        example is given to one of them with probability 1/2.
    """
    zero = jnp.zeros((), jnp.float32)
    mixup = zero if mixup is None else jnp.asarray(mixup, jnp.float32)
    cutmix = zero if cutmix is None else jnp.asarray(cutmix, jnp.float32)
    cut = jnp.where((mixup > 0) & (cutmix > 0), fraction[:, 2] < 0.5, cutmix > 0)
    alpha = jnp.where(cut, cutmix, mixup)
    share = symmetric_beta(fraction[:, :2], jnp.maximum(alpha, 1e-6))
    share = jnp.where((alpha > 0) & valid, share, 1.0)
    half = 0.5 * jnp.sqrt(1.0 - share)
    half_height, half_width = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
    y, x = below(fraction[:, 3], height), below(fraction[:, 4], width)
    top, bottom = jnp.maximum(y - half_height, 0), jnp.minimum(y + half_height, height)
    left, right = jnp.maximum(x - half_width, 0), jnp.minimum(x + half_width, width)
    own = jnp.where(cut, 1.0 - ((bottom - top) * (right - left)) / (height * width), share)
    return Mix(partners(valid), cut, own, jnp.stack([top, left, bottom, right], axis=-1))


def apply_mix(
    images: jax.Array, targets: jax.Array, segmentation: jax.Array | None, mix: Mix
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Mixes each example with its partner.

    Args:
      images: float [B, H, W, C].
      targets: float [B, K], one-hot, multi-hot or soft.
      segmentation: [B, H, W] or None; takes the pasted box. It cannot follow mixup.
      mix: see `Mix`.

    Returns:
      images, targets, segmentation, shapes as given.
    """
    pasted = inside_box(*images.shape[1:3], *jnp.moveaxis(mix.box, -1, 0)) & mix.cut[:, None, None]
    share = jnp.where(mix.cut, 1.0, mix.own)[:, None, None]
    share = jnp.where(pasted, 0.0, share)[..., None].astype(images.dtype)
    mixed = images * share + images[mix.partner] * (1.0 - share)
    own = mix.own[:, None].astype(targets.dtype)
    targets = targets * own + targets[mix.partner] * (1.0 - own)
    if segmentation is not None:
        segmentation = jnp.where(pasted, segmentation[mix.partner], segmentation)
    return mixed, targets, segmentation
