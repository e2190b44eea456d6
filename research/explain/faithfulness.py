"""Does a map show what the model goes by? What the class's probability does when the marked pixels go, or come first.

Deletion and insertion curves ask the model itself and need no truth; the pointing game and the mass inside a region ask
whether the map lies where a person would look (the lungs of an X-ray). Only the first kind is about the model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from research.explain.network import Network, of_class


def curve(
    network: Network,
    images: jax.Array,
    targets: jax.Array,
    maps: jax.Array,
    baseline: jax.Array,
    steps: int,
    multi_label: bool,
    insertion: bool,
) -> jax.Array:
    """Petsiuk et al. 2018 (arXiv:1806.07421), section 3.3.

    Deletion replaces the pixels with the largest values by the baseline, insertion lets them appear in it; of equal
    values the upper and left pixels come first.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      targets: int `[B]`.
      maps: `[B, H, W]`.
      baseline: `[B, H, W, C]` or what broadcasts to it: for deletion usually the mean colour, for insertion the blurred
        image.
      steps: S; the curve has S + 1 points, 0 to all pixels in equal parts.
      multi_label: whether probabilities are sigmoids instead of softmaxes.
      insertion: which of the two.

    Returns:
      float32 `[B, S + 1]`, the probability of the class.
    """
    count = maps.shape[1] * maps.shape[2]
    order = jnp.argsort(-maps.reshape(maps.shape[0], count), axis=1, stable=True)
    ranks = jnp.argsort(order, axis=1).reshape(*maps.shape, 1)

    def point(number: jax.Array) -> jax.Array:
        chosen = ranks < number
        shown = jnp.where(chosen, images, baseline) if insertion else jnp.where(chosen, baseline, images)
        logits = network.logits(shown)
        return of_class(jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits), targets)

    numbers = jnp.asarray(np.round(np.linspace(0, count, steps + 1)).astype(np.int32))
    return jax.lax.map(point, numbers).T


def area_under_curve(curves: np.ndarray) -> np.ndarray:
    """`[N, S + 1]` at equal distances over 0..1 to `[N]`, by the trapezoidal rule."""
    curves = np.asarray(curves, np.float64)
    return ((curves[:, 1:] + curves[:, :-1]) / 2).mean(axis=1)


def pointing_game(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Whether the largest value lies in the region, bool `[N]` (Zhang et al. 2016, arXiv:1608.00507, without a margin).

    Of equal values the first in reading order counts, but a constant map points nowhere.

    Args:
      maps: `[N, H, W]`.
      regions: bool `[N, H, W]`.
    """
    maps, regions = _flat(maps, regions)
    best = maps.argmax(axis=1)
    return regions[np.arange(len(maps)), best] & (np.ptp(maps, axis=1) > 0)


def mass_inside(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The region's share of all positive values, float64 `[N]` in 0..1.

    The energy-based pointing game of Wang et al. 2020 (arXiv:1910.01279, section 4.3). NaN for a map without a positive
    value. A map that knows nothing of the region has the region's share of the image.
    """
    maps, regions = _flat(maps, regions)
    positive = np.maximum(maps, 0)
    total = positive.sum(axis=1)
    inside = (positive * regions).sum(axis=1)
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)


def _flat(maps: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if maps.shape != regions.shape or maps.ndim != 3:
        raise ValueError(f"maps of shape {maps.shape} do not fit regions of shape {regions.shape}")
    return maps.reshape(len(maps), -1).astype(np.float64), regions.reshape(len(regions), -1).astype(bool)
