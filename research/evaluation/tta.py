"""What does the model say on average over the views of an image that mean the same?

Test-time augmentation over mirror images and quarter turns, the symmetries of cells on a slide. The views
only permute pixels, so nothing is interpolated, and every view keeps the rows of the batch where they are:
averages go over views of the **same** image (a generator that shuffles between passes averages different
images).
"""

from collections.abc import Callable
from typing import Any

from input_pipeline.cli import UserError


def _turned(quarter_turns: int, mirrored: bool) -> Callable[[Any], Any]:
    """Rotates `[B, H, W, C]` counter-clockwise by quarter turns, after mirroring it left to right if
    asked.
    """

    def view(images: Any) -> Any:
        if mirrored:
            images = images[:, :, ::-1]
        if quarter_turns % 2:
            images = images.swapaxes(1, 2)[:, ::-1]
        return images[:, ::-1, ::-1] if quarter_turns >= 2 else images

    return view


# Each function takes and returns images [B, H, W, C], NumPy or JAX; the first is the identity.
VIEWS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "none": (_turned(0, False),),
    # Identity, left-right, up-down, both.
    "flips": (_turned(0, False), _turned(0, True), _turned(2, True), _turned(2, False)),
    # The eight symmetries of the square.
    "dihedral": tuple(_turned(turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}


def _views(images: Any, views: str) -> tuple[Callable[[Any], Any], ...]:
    if views not in VIEWS:
        raise UserError(f"unknown test-time augmentation {views!r}; choose one of: {', '.join(VIEWS)}.")
    if views == "dihedral" and images.shape[1] != images.shape[2]:
        raise UserError(
            f"test-time augmentation 'dihedral' turns images by 90 degrees and needs square ones, not "
            f"{images.shape[1]}x{images.shape[2]}; use 'flips' or a square image size."
        )
    return VIEWS[views]


def dihedral_views(images: Any) -> Any:
    """The eight symmetries of square images `[B, H, W, C]`, stacked to `[8, B, H, W, C]` (a JAX array).

    Order: turned counter-clockwise by 0, 90, 180, 270 degrees, then the same of the left-right mirror image.

    Raises:
        UserError: images that are not square.
    """
    import jax.numpy as jnp

    return jnp.stack([view(images) for view in _views(images, "dihedral")])


def tta_logits(apply_fn: Callable[[Any], Any], images: Any, views: str = "none") -> Any:
    """Mean of `apply_fn`'s logits over the views; `[B, K]`.

    Call it outside `jit` with a compiled `apply_fn`: one program then serves all views, one after the other,
    in the memory of one.

    Args:
        apply_fn: images `[B, H, W, C]` -> logits `[B, K]`, without randomness.
        images: `[B, H, W, C]`.
        views: "none", "flips" (4 views) or "dihedral" (8 views, square images).

    Raises:
        UserError: an unknown name, or images that are not square.
    """
    functions = _views(images, views)
    total = apply_fn(images)
    for view in functions[1:]:
        total = total + apply_fn(view(images))
    return total / len(functions) if len(functions) > 1 else total
