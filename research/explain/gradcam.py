"""How strongly does each place of a layer raise the logit of a class? Grad-CAM and Grad-CAM++.

Both take the gradient of the logit, not of the probability: the softmax's gradient mixes in the other classes, and
vanishes exactly where the model is sure.
"""

import jax
import jax.numpy as jnp

from research.explain.network import Network, cut, of_class


def activations_and_gradients(
    network: Network, images: jax.Array, targets: jax.Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    """A layer's output and the gradient of each image's target logit with respect to it; float32 `[B, h, w, c]` both.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      targets: int `[B]`, the class to explain for each image.
      layer: a name of `network.layers`.

    Raises:
      NoSuchLayer: the network has no such layer.
    """
    activation, rest = cut(network, images, layer)
    # Images do not influence each other, so the gradient of the sum holds each one's own.
    gradients = jax.grad(lambda output: jnp.sum(of_class(rest(output), targets)))(activation)
    return activation.astype(jnp.float32), gradients.astype(jnp.float32)


def gradcam(network: Network, images: jax.Array, targets: jax.Array, layer: str) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): ReLU(sum of w_c A_c).

    The weight w_c of a channel is the mean over all places of the logit's gradient. Arguments and errors as in
    `activations_and_gradients`.

    Returns:
      float32 `[B, h, w]`, not negative, in units of logit.
    """
    activation, gradients = activations_and_gradients(network, images, targets, layer)
    weights = jnp.mean(gradients, axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", activation, weights))


def gradcam_plus_plus(
    network: Network, images: jax.Array, targets: jax.Array, layer: str, epsilon: float = 0.0
) -> jax.Array:
    """Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063, equations 11, 19 and 20), for an exponential score.

    With the score exp(logit) and g the logit's gradient, the place's weight is g² / (2 g² + S g³), S the channel's sum;
    the factor exp(logit) of the whole map is left out. Divided by g², it needs no safeguard where rectified maps
    and positive gradients meet, the only places that count there.

    Args:
      epsilon: added to 2 g² + S g³, as pytorch-grad-cam does with 1e-6; it distorts the weights of small gradients.

    Returns:
      float32 `[B, h, w]`, not negative.
    """
    activation, gradients = activations_and_gradients(network, images, targets, layer)
    sums = jnp.sum(activation, axis=(1, 2), keepdims=True)
    counts = gradients != 0
    square = jnp.where(counts, jnp.square(gradients), 1.0)
    below = 2.0 + sums * gradients + epsilon / square
    # Layers that are not rectified can make the denominator zero; such a place has no weight.
    places = jnp.where(counts & (below != 0), 1.0 / jnp.where(below != 0, below, 1.0), 0.0)
    weights = jnp.sum(places * jax.nn.relu(gradients), axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", activation, weights))


def upsample(maps: jax.Array, height: int, width: int) -> jax.Array:
    """`[B, h, w]` to `[B, height, width]`: bilinear, pixel centres at halves, edges repeated."""
    return jax.image.resize(maps, (maps.shape[0], height, width), "linear", antialias=False)
