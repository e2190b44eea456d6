"""How are RandAugment and TrivialAugment applied when every example of a batch draws another operation?

All examples go through the same three kinds of work, and each takes the result of its own operation: one
geometric map (identity for the others), one blend (brightness, colour, contrast, sharpness), one change of
tone (posterize, solarize, autocontrast, equalize). Operations, ranges and bins are those of torchvision v2.

References: Cubuk et al. 2020, "RandAugment" (arXiv:1909.13719); Müller & Hutter 2021, "TrivialAugment"
(arXiv:2103.10158).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from input_pipeline import augment_color as color
from input_pipeline import augment_geometry as geometry
from input_pipeline.augment_random import below

# torchvision's order; an operation's number is its place here.
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
SIGNED = tuple(range(NUMBER["ShearX"], NUMBER["Posterize"]))
# Magnitudes run over 31 bins, numbered 0 .. 30.
LAST_BIN = 30


class Operation(NamedTuple):
    """One drawn operation per example."""

    number: jax.Array  # int32 [B], place in OPERATIONS
    magnitude: jax.Array  # float32 [B], the value that torchvision hands to the operation, with its sign


def draw_randaugment(fraction: jax.Array, height: int, width: int, count: int, magnitude) -> Operation:
    """`count` operations per example, [count, B], each drawn evenly, at bin `magnitude` (0..30, may be
    traced).

    `fraction` holds uniform numbers [B, >= 2 · count].
    """
    choice, sign = fraction[:, : 2 * count].reshape(-1, count, 2).T
    limits = (0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0, 0.9, 4.0)
    return _draw(choice, sign, jnp.broadcast_to(jnp.asarray(magnitude, jnp.float32) / LAST_BIN, choice.shape), limits)


def draw_trivialaugment(fraction: jax.Array) -> Operation:
    """One operation and bin per example, [1, B], drawn evenly ("Wide" ranges); `fraction` is [B, >= 3]."""
    fraction = fraction.T[:, None]
    level = below(fraction[2], LAST_BIN + 1).astype(jnp.float32) / LAST_BIN
    return _draw(fraction[0], fraction[1], level, (0.99, 32.0, 32.0, 135.0, 0.99, 6.0))


def _draw(choice: jax.Array, sign: jax.Array, level: jax.Array, limits: tuple) -> Operation:
    """`limits`: greatest shear, x, y translation, rotation, blend strength, bits removed; `level` in 0..1."""
    shear, translate_x, translate_y, rotation, strength, bits = limits
    number = below(choice, len(OPERATIONS))
    # Reached by number: Identity; shears; translations; rotation; four blends; Posterize and Solarize; no
    # magnitude.
    greatest = jnp.array(
        [0.0, shear, shear, translate_x, translate_y, rotation] + [strength] * 4 + [0.0] * 4, jnp.float32
    )
    signed = (number >= SIGNED[0]) & (number <= SIGNED[-1]) & (sign <= 0.5)
    magnitude = greatest[number] * level * jnp.where(signed, -1.0, 1.0)
    magnitude = jnp.where(number == NUMBER["Posterize"], 8.0 - jnp.round(bits * level), magnitude)
    return Operation(number, jnp.where(number == NUMBER["Solarize"], 1.0 - level, magnitude))


def apply_operation(
    images: jax.Array, segmentation: jax.Array | None, operation: Operation, *, interpolation: str, fill: str
) -> tuple[jax.Array, jax.Array | None]:
    """Applies to each example its operation.

    Args:
      images: float32 [B, H, W, C] in 0..255.
      segmentation: [B, H, W] or None; follows shears, translations and rotations, nearest.
      operation: see `Operation`.
      interpolation, fill: see `augment_geometry.sample`.

    Returns:
      images and segmentation, shapes and dtypes as given.
    """
    number = operation.number
    height, width = images.shape[1:3]
    y, x = geometry.positions(operation_matrix(operation, height, width), None, height, width)
    moved = geometry.sample(images, y, x, interpolation=interpolation, fill=fill)
    if segmentation is not None:
        segmentation = geometry.sample(segmentation[..., None], y, x, interpolation="nearest", fill=fill)[..., 0]
    result = moved
    for changed, first, last in (
        (_blended(images, operation), "Brightness", "Sharpness"),
        (_toned(images, operation), "Posterize", "Equalize"),
    ):
        mine = (number >= NUMBER[first]) & (number <= NUMBER[last])
        result = jnp.where(mine[:, None, None, None], changed, result)
    return result, segmentation


def apply_operations(
    images: jax.Array, segmentation: jax.Array | None, operations: Operation, *, interpolation: str, fill: str
) -> tuple[jax.Array, jax.Array | None]:
    """Applies `operations` [n, B] in turn; see `apply_operation`. A loop, so that it compiles once."""

    def step(carried, operation: Operation):
        return apply_operation(*carried, operation, interpolation=interpolation, fill=fill), None

    return jax.lax.scan(step, (images, segmentation), operations)[0]


def operation_matrix(operation: Operation, height: int, width: int) -> geometry.Matrix:
    """The map of each example's operation; identity for those that do not move pixels.

    Shears hold the upper left corner fixed, as in AutoAugment; translations are cut to whole pixels.
    """
    number, magnitude = operation

    def where(name: str, value: jax.Array) -> jax.Array:
        return jnp.where(number == NUMBER[name], value, 0.0)

    zero = jnp.zeros_like(magnitude)
    degrees = jnp.rad2deg(jnp.arctan(magnitude))
    whole = jnp.trunc(magnitude)
    shear = geometry.Affine(
        angle=zero,
        translate=jnp.stack([zero, zero], -1),
        scale=zero + 1.0,
        shear=jnp.stack([where("ShearX", degrees), where("ShearY", degrees)], -1),
    )
    rigid = geometry.Affine(
        angle=where("Rotate", -magnitude),
        translate=jnp.stack([where("TranslateX", whole), where("TranslateY", whole)], -1),
        scale=zero + 1.0,
        shear=jnp.stack([zero, zero], -1),
    )
    sheared = geometry.affine_matrix(shear, center=(-width / 2, -height / 2))
    is_shear = (number == NUMBER["ShearX"]) | (number == NUMBER["ShearY"])
    pairs = zip(sheared, geometry.affine_matrix(rigid), strict=True)
    return geometry.Matrix(*(jnp.where(is_shear, mine, other) for mine, other in pairs))


def _blended(images: jax.Array, operation: Operation) -> jax.Array:
    """Brightness, Color, Contrast or Sharpness by example."""
    number = operation.number
    target = color.blend_target(images, number == NUMBER["Contrast"], number == NUMBER["Color"])
    target = jnp.where((number == NUMBER["Sharpness"])[:, None, None, None], color.smooth(images), target)
    factor = 1.0 + operation.magnitude
    if images.shape[-1] != 3:
        factor = jnp.where(number == NUMBER["Color"], 1.0, factor)
    return color.blend(images, target, factor)


def _toned(images: jax.Array, operation: Operation) -> jax.Array:
    """Posterize, Solarize, AutoContrast or Equalize by example."""
    number, magnitude = operation
    is_posterize, is_solarize, is_autocontrast = (
        (number == NUMBER[name])[:, None, None, None] for name in ("Posterize", "Solarize", "AutoContrast")
    )
    bits = jnp.where(number == NUMBER["Posterize"], magnitude, 8.0)
    result = jnp.where(is_autocontrast, color.autocontrast(images), color.equalize(images))
    result = jnp.where(is_solarize, color.solarize(images, 255.0 * magnitude), result)
    return jnp.where(is_posterize, color.posterize(images, bits), result)
