"""Does an explanation depend on what the model has learned? It should change when the weights are made random.

The check of Adebayo et al. 2018 (arXiv:1810.03292), section 3.1: the modules lose their trained weights one after the
other, from the logits down to the image, and the maps of what is left are compared with the original ones. A method
whose maps stay alike draws edges, not reasons.
"""

import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata

from research.explain.network import Network
from research.models.call_order import call_order
from research.models.initialize import initialize

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_WINDOW = 7


def cascade(
    network: Network, image_size: int, channels: int, seed: int = 0, shares: Sequence[float] = SHARES
) -> Iterator[tuple[str, int, Network]]:
    """Networks with more and more random modules, from the logits downwards.

    Args:
      network: the trained one.
      image_size, channels: of the images that it takes.
      seed: of the random weights, which have the model's own initial distributions.
      shares: of the modules that own variables; 0.0 is the last module alone.

    Yields:
      (the lowest module that is random, how many are, the network).
    """
    modules = call_order(network.model, image_size, channels)[0]
    # Not key(seed) itself: a training with this seed began with those weights, and perhaps has not come far.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"randomization"))
    fresh = flatten_dict(initialize(network.model, key, image_size, channels), sep="/")
    trained = flatten_dict(network.variables, sep="/", keep_empty_nodes=True)
    for count in dict.fromkeys(max(1, round(share * len(modules))) for share in shares):
        lost = set(modules[-count:])
        mixed = {
            # "params/backbone/conv/kernel" belongs to the module "backbone/conv".
            path: fresh[path] if path.partition("/")[2].rpartition("/")[0] in lost else value
            for path, value in trained.items()
        }
        yield modules[-count], count, network.replace(variables=unflatten_dict(mixed, sep="/"))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of two maps of one shape, in -1..1; NaN if one of them is constant."""
    ranks = [rankdata(np.asarray(values).reshape(-1)) for values in (first, second)]
    if any(np.ptp(own) == 0 for own in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def ssim(first: np.ndarray, second: np.ndarray, data_range: float = 1.0) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), the mean over all windows of 7 x 7 inside the maps.

    As scikit-image computes it: a uniform window, sample variances, K1 = 0.01 and K2 = 0.03.

    Args:
      first, second: `[H, W]`; maps smaller than the window are compared as a whole.
      data_range: largest less smallest possible value.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    window = min(_WINDOW, *first.shape)

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, window)

    unbiased = window**2 / max(window**2 - 1, 1)
    means = mean(first), mean(second)
    variances = [unbiased * (mean(own**2) - centre**2) for own, centre in zip((first, second), means, strict=True)]
    covariance = unbiased * (mean(first * second) - means[0] * means[1])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * means[0] * means[1] + c1) * (2 * covariance + c2)
    below = (means[0] ** 2 + means[1] ** 2 + c1) * (sum(variances) + c2)
    margin = (window - 1) // 2
    rows, columns = (slice(margin, side - (window - 1 - margin)) for side in first.shape)
    return float((above / below)[rows, columns].mean())


def scaled(maps: np.ndarray) -> np.ndarray:
    """`[N, H, W]`, each map to 0..1 from its smallest to its largest value; a constant map becomes zeros."""
    low = maps.min(axis=(1, 2), keepdims=True)
    spread = maps.max(axis=(1, 2), keepdims=True) - low
    return (maps - low) / np.where(spread > 0, spread, 1.0)
