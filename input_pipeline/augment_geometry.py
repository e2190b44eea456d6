"""How are flips, rotation, shear, translation, scaling and random resized crops applied with one gather?

Every operation is a map from output pixels to input pixels. The maps of one batch are composed first, and the
images are read once, so that nothing is blurred twice and the cost does not grow with the number of
operations. Pixel positions are centred: (0, 0) is the middle of the image, x to the right and y down, one
unit per pixel.

Semantics are those of torchvision v2 (`F.affine`, `F.rotate`, `F.resized_crop`, `RandomAffine`,
`RandomResizedCrop`): same matrices, same rounding of crops and translations, nearest or bilinear reading,
fill 0. `fill="reflect"` mirrors the image at its border instead (Keras' `fill_mode="reflect"`, torch's
`padding_mode="reflection"`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from input_pipeline.augment_random import below, between

# Defaults of torchvision's RandomResizedCrop: aspect ratios, and how often an impossible crop is drawn again.
CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)
CROP_TRIES = 10


class Dihedral(NamedTuple):
    """One symmetry of the square per example: transposed first, then flipped. bool [B] each."""

    transpose: jax.Array
    flip_horizontal: jax.Array
    flip_vertical: jax.Array


class Affine(NamedTuple):
    """Parameters of torchvision's `F.affine` per example."""

    angle: jax.Array  # [B] degrees, clockwise
    translate: jax.Array  # [B, 2] pixels, (x, y)
    scale: jax.Array  # [B]
    shear: jax.Array  # [B, 2] degrees, (x, y)


class Crop(NamedTuple):
    """A box per example that is resized to the whole image: float32 [B] each, whole pixels."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Matrix(NamedTuple):
    """Output to input position: x' = xx·x + xy·y + x0, y' = yx·x + yy·y + y0 (centred). float32 [B] each."""

    xx: jax.Array
    xy: jax.Array
    x0: jax.Array
    yx: jax.Array
    yy: jax.Array
    y0: jax.Array


# ------------------------------------------------------------------------------------------------------- draw


def draw_dihedral(
    fraction: jax.Array, *, flip_horizontal: bool, flip_vertical: bool, dihedral: bool, square: bool
) -> Dihedral:
    """Flips with probability 1/2 each; `dihedral` draws all eight elements evenly (four where H differs from
    W).

    `fraction` holds uniform numbers [B, 3].
    """
    coin = fraction < 0.5
    off = jnp.zeros_like(coin[:, 0])
    return Dihedral(
        transpose=coin[:, 0] if dihedral and square else off,
        flip_horizontal=coin[:, 1] if dihedral or flip_horizontal else off,
        flip_vertical=coin[:, 2] if dihedral or flip_vertical else off,
    )


def draw_affine(
    fraction: jax.Array, height: int, width: int, *, rotation=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0
) -> Affine:
    """Parameters as `torchvision.transforms.v2.RandomAffine` draws them.

    Args:
      fraction: uniform numbers [B, 5].
      height, width: of the image, pixels.
      rotation: angle ~ U(-rotation, rotation), degrees; may be traced, like the other rates.
      translate: fraction of the width and of the height; rounded to whole pixels.
      scale: (low, high) of the factor, uniform.
      shear: shear along x ~ U(-shear, shear), degrees.
    """
    symmetric = 2.0 * fraction - 1.0
    extent = jnp.array([width, height], jnp.float32)
    return Affine(
        angle=symmetric[:, 0] * rotation,
        translate=jnp.round(symmetric[:, 1:3] * (translate * extent)),
        scale=between(fraction[:, 3], *scale),
        shear=jnp.stack([symmetric[:, 4] * shear, jnp.zeros_like(symmetric[:, 4])], axis=-1),
    )


def draw_boxes(fraction: jax.Array, height: int, width: int, scale, ratio: tuple[float, float]):
    """Height and width [B, tries] of boxes of an area fraction U(scale) and a width:height ratio
    log-U(ratio).

    `fraction` holds uniform numbers [B, tries, >= 2]; sides are rounded half to even, as in torchvision.
    """
    area = height * width * between(fraction[..., 0], *scale)
    aspect = jnp.exp(between(fraction[..., 1], math.log(ratio[0]), math.log(ratio[1])))
    return jnp.round(jnp.sqrt(area / aspect)), jnp.round(jnp.sqrt(area * aspect))


def first_fitting(fits: jax.Array, *values: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Whether a row of `fits` [B, tries] holds a True, and each of `values` [B, tries] at the first one."""
    index = jnp.argmax(fits, axis=1)[:, None]
    return jnp.any(fits, axis=1), [jnp.take_along_axis(value, index, axis=1)[:, 0] for value in values]


def draw_crop(fraction: jax.Array, height: int, width: int, scale: tuple) -> Crop:
    """Crops as `torchvision.transforms.v2.RandomResizedCrop` draws them: 10 tries, then a central crop.

    Args:
      fraction: uniform numbers [B, 22].
      height, width: of the image, pixels.
      scale: (low, high) of the crop's area as a fraction of the image's; may be traced.
    """
    tries = fraction[:, : CROP_TRIES * 2].reshape(-1, CROP_TRIES, 2)
    heights, widths = draw_boxes(tries, height, width, scale, CROP_RATIO)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    found, (crop_height, crop_width) = first_fitting(fits, heights, widths)
    top = below(fraction[:, -2], height - crop_height + 1)
    left = below(fraction[:, -1], width - crop_width + 1)
    central_height, central_width = height, width
    if width / height < CROP_RATIO[0]:
        central_height = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        central_width = round(height * CROP_RATIO[1])
    return Crop(
        top=jnp.where(found, top, (height - central_height) // 2).astype(jnp.float32),
        left=jnp.where(found, left, (width - central_width) // 2).astype(jnp.float32),
        height=jnp.where(found, crop_height, central_height),
        width=jnp.where(found, crop_width, central_width),
    )


# ---------------------------------------------------------------------------------------------------- compose


def affine_matrix(affine: Affine, center: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """The inverse of T · C · R(angle) · S(scale) · SHy · SHx · C⁻¹ (torchvision's
    `_get_inverse_affine_matrix`).

    `center` is the fixed point (x, y), in pixels from the middle of the image.
    """
    radians = jnp.deg2rad(affine.angle)
    shear_x, shear_y = jnp.deg2rad(affine.shear[:, 0]), jnp.deg2rad(affine.shear[:, 1])
    cosine, tangent = jnp.cos(shear_y), jnp.tan(shear_x)
    a = jnp.cos(radians - shear_y) / cosine
    b = -(a * tangent + jnp.sin(radians))
    c = jnp.sin(radians - shear_y) / cosine
    d = jnp.cos(radians) - c * tangent
    xx, xy, yx, yy = d / affine.scale, -b / affine.scale, -c / affine.scale, a / affine.scale
    x, y = center[0] + affine.translate[:, 0], center[1] + affine.translate[:, 1]
    return Matrix(xx, xy, center[0] - xx * x - xy * y, yx, yy, center[1] - yx * x - yy * y)


def identity_matrix(batch: int) -> Matrix:
    """The map that leaves `batch` images as they are."""
    one, zero = jnp.ones(batch, jnp.float32), jnp.zeros(batch, jnp.float32)
    return Matrix(one, zero, zero, zero, one, zero)


def after_dihedral(matrix: Matrix, dihedral: Dihedral) -> Matrix:
    """The map of "dihedral first, then `matrix`" : its output positions are flipped and transposed back."""
    sign_x = jnp.where(dihedral.flip_horizontal, -1.0, 1.0)
    sign_y = jnp.where(dihedral.flip_vertical, -1.0, 1.0)
    x_row = [sign_x * entry for entry in matrix[:3]]
    y_row = [sign_y * entry for entry in matrix[3:]]
    rows = [jnp.where(dihedral.transpose, y, x) for x, y in zip(x_row, y_row, strict=True)]
    rows += [jnp.where(dihedral.transpose, x, y) for x, y in zip(x_row, y_row, strict=True)]
    return Matrix(*rows)


def positions(matrix: Matrix, crop: Crop | None, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Input position of every output pixel, in array indices (0 = middle of the first pixel).

    With a crop, "`matrix` first, then the crop": positions are held inside the crop's outermost pixel
    centres, which is how a crop that is cut out and then resized behaves at its border.

    Returns:
      y and x, float32 [B, H, W].
    """
    y = jnp.arange(height, dtype=jnp.float32)[None]
    x = jnp.arange(width, dtype=jnp.float32)[None]
    if crop is not None:
        top, left, tall, wide = (value[:, None] for value in crop)
        y = jnp.clip(top + (y + 0.5) * (tall / height) - 0.5, top, top + tall - 1.0)
        x = jnp.clip(left + (x + 0.5) * (wide / width) - 0.5, left, left + wide - 1.0)
    y = (y - (height - 1) / 2)[:, :, None]
    x = (x - (width - 1) / 2)[:, None, :]
    xx, xy, x0, yx, yy, y0 = (entry[:, None, None] for entry in matrix)
    return yx * x + yy * y + (y0 + (height - 1) / 2), xx * x + xy * y + (x0 + (width - 1) / 2)


# ------------------------------------------------------------------------------------------------------ apply


def apply_dihedral(images: jax.Array, dihedral: Dihedral, *, square: bool = True) -> jax.Array:
    """Flips and transposes [B, H, W, ...] by selecting reversed arrays, without a gather; any dtype."""

    def select(condition: jax.Array, changed: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape((-1,) + (1,) * (kept.ndim - 1)), changed, kept)

    if square:
        images = select(dihedral.transpose, images.swapaxes(1, 2), images)
    images = select(dihedral.flip_horizontal, images[:, :, ::-1], images)
    return select(dihedral.flip_vertical, images[:, ::-1], images)


def sample(images: jax.Array, y: jax.Array, x: jax.Array, *, interpolation: str, fill: str) -> jax.Array:
    """Reads `images` at the positions of `positions`.

    Args:
      images: [B, H, W, C]; any dtype for "nearest", which keeps it; "bilinear" returns float32.
      y, x: float32 [B, H, W] array indices, also outside of the image.
      interpolation: "nearest" (ties to even) or "bilinear".
      fill: "constant" (0 outside, as torchvision's `fill=None`) or "reflect" (mirrored at the pixel edge:
        d c b a | a b c d | d c b a).
    """
    batch, height, width, channels = images.shape
    pixels = images.reshape(batch, height * width, channels)
    if fill == "reflect":
        y, x = _reflect(y, height), _reflect(x, width)
    if interpolation == "nearest":
        y, x = jnp.round(y), jnp.round(x)
        value = _gather(pixels, y, x, height, width)
        if fill == "constant":
            value = jnp.where(_inside(y, x, height, width), value, jnp.zeros((), images.dtype))
        return value.reshape(images.shape)
    low_y, low_x = jnp.floor(y), jnp.floor(x)
    part_x = (x - low_x).reshape(batch, -1, 1)

    def corner(corner_y: jax.Array, corner_x: jax.Array) -> jax.Array:
        value = _gather(pixels, corner_y, corner_x, height, width).astype(jnp.float32)
        if fill == "constant":
            value = jnp.where(_inside(corner_y, corner_x, height, width), value, 0.0)
        return value

    def add_row(total: jax.Array, row: jax.Array):
        left, right = corner(low_y + row, low_x), corner(low_y + row, low_x + 1.0)
        weight = (1.0 - jnp.abs(y - low_y - row)).reshape(batch, -1, 1)
        return total + weight * (left + (right - left) * part_x), None

    # A loop over the upper and the lower row: XLA would fuse straight code into everything that reads the
    # result, and gather again for each reader (on CPU, rotation with mixup took four times as long).
    total, _ = jax.lax.scan(add_row, jnp.zeros(pixels.shape, jnp.float32), jnp.array([0.0, 1.0], jnp.float32))
    return total.reshape(images.shape)


def _reflect(position: jax.Array, extent: int) -> jax.Array:
    """Mirrors positions at -1/2 and extent - 1/2, as often as needed; stays between pixel centres."""
    shifted = position + 0.5
    shifted = shifted - 2.0 * extent * jnp.floor(shifted / (2.0 * extent))
    return jnp.clip(jnp.minimum(shifted, 2.0 * extent - shifted) - 0.5, 0.0, extent - 1.0)


def _inside(y: jax.Array, x: jax.Array, height: int, width: int) -> jax.Array:
    """Whether whole-numbered positions [B, H, W] lie inside the image, bool [B, H·W, 1]."""
    inside = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    return inside.reshape(inside.shape[0], -1, 1)


def _gather(pixels: jax.Array, y: jax.Array, x: jax.Array, height: int, width: int) -> jax.Array:
    """Whole pixels [B, H·W, C] at whole-numbered positions, which are held inside the image."""
    row = jnp.clip(y, 0, height - 1).astype(jnp.int32)
    column = jnp.clip(x, 0, width - 1).astype(jnp.int32)
    index = (row * width + column).reshape(pixels.shape[0], -1)
    # A gather batched over the examples stays on the device that holds them; one over the flattened batch
    # would not.
    return jax.vmap(lambda image, at: image.at[at].get(mode="promise_in_bounds"))(pixels, index)
