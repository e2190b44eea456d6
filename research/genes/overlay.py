"""Where in the picture of a layout do the genes lie that matter?"""

import os
from collections.abc import Mapping

import numpy as np

from input_pipeline import plotting
from research.explain import pictures


def overlay(attributions: np.ndarray, pixel: np.ndarray, side: int) -> np.ndarray:
    """Attributions `[G]` of genes at their pixels, float64 `[side, side]`; NaN where no gene is.

    Genes that share a pixel are added up, so that the picture has the sum of all genes that are placed.

    Args:
      pixel: int `[G]`, row * side + column of each gene; negative for a gene that the layout leaves out.

    Raises:
      ValueError: pixels outside the picture, or another number of them.
    """
    attributions, pixel = np.asarray(attributions, np.float64), np.asarray(pixel)
    if attributions.shape != pixel.shape or attributions.ndim != 1 or pixel.max(initial=0) >= side * side:
        raise ValueError(
            f"attributions {attributions.shape} and pixels {pixel.shape} up to {pixel.max(initial=0)} do not fit a "
            f"picture of {side} x {side}"
        )
    placed = pixel >= 0
    sums = np.bincount(pixel[placed], attributions[placed], side * side)
    genes = np.bincount(pixel[placed], minlength=side * side)
    return np.where(genes > 0, sums, np.nan).reshape(side, side)


def draw(maps: Mapping[str, np.ndarray], path: str | os.PathLike, unit: str = "mean attribution (logit)") -> None:
    """Overlays of types beside each other, each with its own colours from blue (against) over grey to red (for).

    Args:
      maps: name of a type -> `[side, side]`, as `overlay` gives it; pixels without a gene stay white.
      path: the PNG to write.
      unit: of the values.
    """
    columns = min(4, max(1, len(maps)))
    rows = max(1, -(-len(maps) // columns))
    with plotting.figure(path, 2.35 * columns, 2.1 * rows + 0.3) as canvas:
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[len(maps) :]:
            axes.set_visible(False)
        for axes, (name, values) in zip(grid.flat, maps.items(), strict=False):
            top = pictures.limit(values)
            shown = axes.imshow(np.ma.masked_invalid(values), cmap=pictures.SIGNED, vmin=-top, vmax=top,
                                interpolation="nearest")  # fmt: skip
            bar = canvas.colorbar(shown, ax=axes, shrink=0.85, pad=0.03, extend="both")
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.set_title(plotting.shorten(name), fontsize=8, fontweight="normal")
            for spine in axes.spines.values():
                spine.set_visible(False)
        canvas.suptitle(f"Genes at their pixels, {unit}", fontsize=9, x=0.01, ha="left")
