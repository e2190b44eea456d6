"""How much of a logit's rise above a baseline image is due to each input value? Integrated gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from research.explain.network import Network


def integrated_gradients(
    network: Network, images: jax.Array, targets: jax.Array, baseline: jax.Array, steps: int = 64
) -> tuple[jax.Array, jax.Array]:
    """Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, by Gauss-Legendre quadrature.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      targets: int `[B]`.
      baseline: `[B, H, W, C]` or what broadcasts to it, where the straight path begins.
      steps: gradients along the path.

    Returns:
      Attributions float32 `[B, H, W, C]` in units of logit, and float32 `[B]`, the completeness gap: their sum less the
      difference of the logits of image and baseline. It is zero for the exact integral, so it says whether `steps`
      are enough.
    """
    difference = images - baseline
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    path = jnp.asarray((nodes + 1) / 2, images.dtype), jnp.asarray(weights / 2, images.dtype)
    gradient = jax.grad(lambda inputs: jnp.sum(network.scores(inputs, targets)))

    def step(total: jax.Array, node) -> tuple[jax.Array, None]:
        place, weight = node
        return total + weight * gradient(images - (1 - place) * difference), None

    mean, _ = jax.lax.scan(step, jnp.zeros_like(images), path)
    attributions = (difference * mean).astype(jnp.float32)
    rise = network.scores(images, targets) - network.scores(images - difference, targets)
    return attributions, jnp.sum(attributions, axis=(1, 2, 3)) - rise
