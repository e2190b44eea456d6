"""What do the colour operations of torchvision v2 do to a batch, with other parameters for every example?

Images are float32 [B, H, W, C] in 0..255 and stay there; parameters are [B]. Operations which need colour
(saturation, hue) change images of three channels only and leave the others alone, as torchvision does with
grey images. For other channel counts "grey" is the mean of the channels.

Values are not rounded between operations (torchvision's float images); posterize, solarize and equalize
return exactly what torchvision returns for uint8 when the values are whole, autocontrast after truncation to
uint8.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.augment_random import below, between

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# ITU-R BT.601 luma as torchvision and Pillow round it.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)


class Jitter(NamedTuple):
    """Parameters of `ColorJitter` per example; `order` holds the numbers of the operations that are on."""

    order: jax.Array  # int32 [B, number of operations]: BRIGHTNESS, CONTRAST, SATURATION, HUE, first one first
    brightness: jax.Array  # [B] factor, 1 = unchanged
    contrast: jax.Array  # [B] factor
    saturation: jax.Array  # [B] factor
    hue: jax.Array  # [B] shift in turns, -0.5 .. 0.5


def _per_image(value: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return value[:, None, None, None]


def mean_grey(images: jax.Array) -> jax.Array:
    """The mean of `grey` over each image, [B, 1, 1, 1]; channels are averaged first, which costs less."""
    means = jnp.mean(images, axis=(1, 2), keepdims=True)
    return grey(means)


def grey(images: jax.Array) -> jax.Array:
    """Luma of RGB, otherwise the mean of the channels: [B, H, W, C] -> [B, H, W, 1]."""
    if images.shape[-1] != 3:
        return jnp.mean(images, axis=-1, keepdims=True)
    red, green, blue = GREY_WEIGHTS
    return images[..., 0:1] * red + images[..., 1:2] * green + images[..., 2:3] * blue


def blend(images: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    """factor · images + (1 - factor) · other, clipped to 0..255; `factor` [B] may exceed 1."""
    factor = _per_image(factor)
    return jnp.clip(images * factor + other * (1.0 - factor), 0.0, 255.0)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black."""
    return blend(images, 0.0, factor)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean grey of each image."""
    return blend(images, mean_grey(images), factor)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image (three channels only)."""
    return blend(images, grey(images), factor) if images.shape[-1] == 3 else images


def adjust_hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue by `shift` [B] of a full circle, through HSV (three channels only)."""
    if images.shape[-1] != 3:
        return images
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    span = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(span == 0, 1.0, span)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    sixths = sixths + 6.0 * shift[:, None, None]

    def channel(offset: float) -> jax.Array:
        # HSV to RGB in closed form: V - V·S·max(0, min(k, 4 - k, 1)) with k = (offset + 6·hue) mod 6.
        k = offset + sixths
        k = k - 6.0 * jnp.floor(k / 6.0)
        return value - span * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


# ---------------------------------------------------------------------------------------------- colour jitter


def draw_jitter(fraction: jax.Array, *, brightness=None, contrast=None, saturation=None, hue=None) -> Jitter:
    """Parameters as `torchvision.transforms.v2.ColorJitter` draws them.

    `fraction` holds uniform numbers [B, 5]. Each of the four is None (left out of the order) or a strength x,
    which may be traced: factors are U(max(0, 1 - x), 1 + x), the hue shift is U(-x, x). The order is a
    uniform permutation per example.
    """
    strengths = (brightness, contrast, saturation, hue)
    on = [number for number, strength in enumerate(strengths) if strength is not None]
    orders = np.array(list(itertools.permutations(on)), np.int32)
    order = jnp.asarray(orders)[below(fraction[:, 4], len(orders))]
    factors = []
    for number, strength in enumerate(strengths[:HUE]):
        strength = 0.0 if strength is None else strength
        factors.append(between(fraction[:, number], jnp.maximum(0.0, 1.0 - strength), 1.0 + strength))
    return Jitter(order, *factors, hue=(2.0 * fraction[:, HUE] - 1.0) * (0.0 if hue is None else hue))


def apply_jitter(images: jax.Array, jitter: Jitter, *, hue: bool) -> jax.Array:
    """Applies each example's operations in its own order.

    Brightness, contrast and saturation are blends that differ in what they blend with, so one blend per place
    in the order serves all examples. `hue` says whether HUE is in the order; hue, the dear one, is evaluated
    once, between the blends that come before it and those that come after.
    """
    order = jitter.order
    if not hue:
        return _apply_blends(images, order, jnp.ones_like(order, bool), jitter)
    if images.shape[-1] != 3:
        return apply_jitter(images, jitter._replace(order=_without_hue(order)), hue=False)
    blends = _without_hue(order)
    before = jnp.arange(blends.shape[1])[None] < jnp.argmax(order == HUE, axis=1)[:, None]
    images = _apply_blends(images, blends, before, jitter)
    images = adjust_hue(images, jitter.hue)
    return _apply_blends(images, blends, ~before, jitter)


def _without_hue(order: jax.Array) -> jax.Array:
    """The order of the blends alone: [B, n] -> [B, n - 1]."""
    turn = jnp.argmax(order == HUE, axis=1)[:, None]
    places = jnp.arange(order.shape[1] - 1)[None]
    return jnp.take_along_axis(order, places + (places >= turn), axis=1)


def _apply_blends(images: jax.Array, order: jax.Array, active: jax.Array, jitter: Jitter) -> jax.Array:
    """The blends of `order` [B, n] where `active` [B, n].

    A loop, not n copies: it compiles once, and what it carries is computed once, whereas XLA would fuse one
    place into both the mean and the pixels of the next and so repeat the work behind it.
    """
    if order.shape[1] == 0:
        return images

    def step(images: jax.Array, place: tuple[jax.Array, jax.Array]):
        return _apply_blend(images, *place, jitter), None

    return jax.lax.scan(step, images, (order.T, active.T))[0]


def _apply_blend(images: jax.Array, operation: jax.Array, active: jax.Array, jitter: Jitter) -> jax.Array:
    """One place of the order: brightness, contrast or saturation by example, nothing where not `active`."""
    factor = jnp.where(operation == CONTRAST, jitter.contrast, jitter.saturation)
    factor = jnp.where(operation == BRIGHTNESS, jitter.brightness, factor)
    if images.shape[-1] != 3:
        active = active & (operation != SATURATION)
    target = blend_target(images, operation == CONTRAST, operation == SATURATION)
    return blend(images, target, jnp.where(active, factor, 1.0))


def blend_target(images: jax.Array, contrast: jax.Array, saturation: jax.Array) -> jax.Array:
    """What each example is blended with: its mean grey, its grey image, or black. [B, H, W, 1]."""
    return jnp.where(_per_image(contrast), mean_grey(images), jnp.where(_per_image(saturation), grey(images), 0.0))


# -------------------------------------------------------------------------- operations of the AutoAugment set


def smooth(images: jax.Array) -> jax.Array:
    """What sharpness blends with: the 3×3 kernel [1 1 1; 1 5 1; 1 1 1] / 13, border pixels as they are."""
    height, width = images.shape[1:3]
    if height <= 2 or width <= 2:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4.0 * images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set(total / 13.0)


def adjust_sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the smoothed image: 0 smooths, 1 changes nothing, 2 sharpens."""
    return blend(images, smooth(images), factor)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the `bits` (int [B], 0..8) highest of eight bits."""
    step = _per_image(jnp.left_shift(1, 8 - bits.astype(jnp.int32)).astype(jnp.float32))
    return jnp.floor(images / step) * step


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values at or above `threshold` [B]."""
    return jnp.where(images >= _per_image(threshold), 255.0 - images, images)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel of each image to 0..255; a channel of one value stays."""
    low = jnp.min(images, axis=(1, 2), keepdims=True)
    high = jnp.max(images, axis=(1, 2), keepdims=True)
    flat = high == low
    span = jnp.where(flat, 1.0, (high - low) * (1.0 / 255.0))
    return jnp.clip((images - jnp.where(flat, 0.0, low)) / span, 0.0, 255.0)


def equalize(images: jax.Array) -> jax.Array:
    """Equalises each channel's histogram in each image (Pillow's rule), on values truncated to whole ones."""
    batch, height, width, channels = images.shape
    # One table of channels · 256 levels per image; a value's place in it is its level plus its channel's
    # offset.
    places = jnp.clip(images, 0.0, 255.0).astype(jnp.int32) + 256 * jnp.arange(channels)
    places = places.reshape(batch, -1)
    counts = jax.vmap(lambda at: jnp.zeros(channels * 256, jnp.int32).at[at].add(1, mode="promise_in_bounds"))(places)
    counts = counts.reshape(batch, channels, 256)
    total = jnp.cumsum(counts, axis=-1)
    # The last occupied level does not count: `argmax` finds the first place where the sum is complete.
    last = jnp.take_along_axis(counts, jnp.argmax(total, axis=-1, keepdims=True), axis=-1)
    step = (height * width - last) // 255
    levels = jnp.clip((total - counts + step // 2) // jnp.maximum(step, 1), 0, 255)
    levels = jnp.where(step > 0, levels, jnp.arange(256)).astype(jnp.float32).reshape(batch, -1)
    result = jax.vmap(lambda level, at: level.at[at].get(mode="promise_in_bounds"))(levels, places)
    return result.reshape(images.shape)
