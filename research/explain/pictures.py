"""How does a map become a picture beside its image and over it?

Maps without a sign take "inferno", signed ones "coolwarm" with grey at zero: both are even in lightness, so that equal
steps look equal. Over the image a colour is the more opaque the larger its value; elsewhere the image shows through.
"""

import os
from collections.abc import Sequence

import numpy as np

from input_pipeline import plotting

PLAIN, SIGNED = "inferno", "coolwarm"
_OPAQUE = 0.75  # of the largest value, over the image
_SHOWN = 0.995  # of the values have a colour of their own
_SMALLEST = 160  # pixels of a picture's side, at least


def limit(values: np.ndarray) -> float:
    """Where the colours of a map `[H, W]` end: the 99.5th percentile of the absolute values, positive.

    Single pixels of a gradient are often many times larger than all others, which would be left without a colour.
    """
    sizes = np.abs(np.nan_to_num(values))
    return float(np.quantile(sizes, _SHOWN, method="higher")) or float(sizes.max()) or 1.0


def colour(values: np.ndarray, signed: bool) -> np.ndarray:
    """A map `[H, W]` as uint8 `[H, W, 3]`: 0 to `limit`, or symmetric around zero."""
    import matplotlib

    share = np.nan_to_num(values) / limit(values)
    share = (share + 1) / 2 if signed else share
    return matplotlib.colormaps[SIGNED if signed else PLAIN](np.clip(share, 0, 1), bytes=True)[..., :3]


def overlay(image: np.ndarray, values: np.ndarray, signed: bool) -> np.ndarray:
    """A map `[H, W]` over its image (as `plotting.to_rgb` takes it, `[H, W, C]`); uint8 `[H, W, 3]`."""
    grey = plotting.to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)  # colours belong to the map alone
    opacity = _OPAQUE * np.clip(np.abs(np.nan_to_num(values)) / limit(values), 0, 1)[..., None]
    if not signed:
        opacity = np.sqrt(opacity * _OPAQUE)  # a map without a sign has no grey middle that hides the image
    return (grey * (1 - opacity) + colour(values, signed) * opacity).round().astype(np.uint8)


def strip(image: np.ndarray, values: np.ndarray, signed: bool) -> np.ndarray:
    """Image, map and overlay beside each other, uint8 `[h, 3 w, 3]`, small images enlarged by a whole number."""
    parts = [plotting.to_rgb(image), colour(values, signed), overlay(image, values, signed)]
    times = -(-_SMALLEST // min(values.shape))
    return np.concatenate([part.repeat(times, 0).repeat(times, 1) for part in parts], axis=1)


def draw(
    path: str | os.PathLike,
    image: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray, bool, str]],
    title: str,
    region: np.ndarray | None = None,
) -> None:
    """Writes a picture of an image, each of its maps with a colour bar, and the map over the image.

    Args:
      path: the PNG to write.
      image: `[H, W, C]`, as `plotting.to_rgb` takes it.
      maps: (title, map `[H, W]`, whether it is signed, what its values are) for each row.
      title: above all, its lines as they are.
      region: bool `[H, W]` whose outline is drawn.
    """
    lines = title.count("\n") + 1
    with plotting.figure(path, 7.4, 2.25 * len(maps) + 0.22 * lines) as canvas:
        grid = canvas.subplots(len(maps), 3, squeeze=False)
        for (name, values, signed, unit), row in zip(maps, grid, strict=True):
            top = limit(values)
            row[0].imshow(plotting.to_rgb(image), interpolation="nearest")
            shown = row[1].imshow(values, cmap=SIGNED if signed else PLAIN, vmin=-top if signed else 0, vmax=top,
                                  interpolation="nearest")  # fmt: skip
            row[2].imshow(overlay(image, values, signed), interpolation="nearest")
            beyond = "neither" if np.abs(np.nan_to_num(values)).max() <= top else "both" if signed else "max"
            bar = canvas.colorbar(shown, ax=row[1], shrink=0.9, pad=0.03, extend=beyond)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6)
            bar.ax.set_ylabel(unit, fontsize=7)
            for axes, words in zip(row, ("image", name, "over the image"), strict=True):
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.set_title(words, fontsize=8, fontweight="normal")
                if region is not None and region.any() and not region.all():
                    axes.contour(region.astype(float), levels=[0.5], colors=["#00E5FF"], linewidths=0.9)
        canvas.suptitle(title, fontsize=8.5, x=0.01, ha="left")
