"""Which input values is a logit sensitive to, beyond the noise of a single gradient? SmoothGrad."""

import jax
import jax.numpy as jnp

from research.explain.network import Network


def smoothgrad(
    network: Network, images: jax.Array, targets: jax.Array, keys: jax.Array, samples: int = 32, noise: float = 0.15
) -> jax.Array:
    """Smilkov et al. 2017 (arXiv:1706.03825): the mean gradient of the logit over noisy copies of the image.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      targets: int `[B]`.
      keys: random keys `[B]`, one for each image, so that its map does not depend on its neighbours.
      samples: noisy copies of each image.
      noise: standard deviation of the Gaussian noise as a share of the image's own range, largest less smallest value.

    Returns:
      float32 `[B, H, W, C]`, logits per unit of input. `noise=0` gives the plain gradient (Simonyan et al. 2014).
    """
    gradient = jax.grad(lambda inputs: jnp.sum(network.scores(inputs, targets)))
    spread = jnp.max(images, axis=(1, 2, 3), keepdims=True) - jnp.min(images, axis=(1, 2, 3), keepdims=True)

    def sample(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        drawn = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(own)
        return total + gradient(images + noise * spread * drawn).astype(jnp.float32), None

    total, _ = jax.lax.scan(sample, jnp.zeros(images.shape, jnp.float32), jnp.arange(samples))
    return total / samples
