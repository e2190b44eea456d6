"""Which channels of a layer, shown as masks over the image, keep the logit of a class? Score-CAM, without gradients."""

import jax
import jax.numpy as jnp

from research.explain.gradcam import upsample
from research.explain.network import Network, cut

_FLAT = 1e-8  # added to a channel's range, as pytorch-grad-cam does: a channel without variation masks everything


def scorecam(
    network: Network, images: jax.Array, targets: jax.Array, layer: str, channels_at_once: int = 16
) -> jax.Array:
    """Score-CAM (Wang et al. 2020, arXiv:1910.01279, algorithm 1): ReLU(sum of w_c A_c).

    Each channel, enlarged to the image and brought to 0..1, is multiplied with the image; w is the softmax over the
    channels of the logits that these images get. (The paper subtracts the logit of a fixed image first; the softmax
    takes no notice.) One forward pass for each channel.

    Args:
      images: `[B, H, W, C]`, as the model takes them; 0 is what a mask leaves.
      targets: int `[B]`.
      layer: a name of `network.layers`.
      channels_at_once: masked images of each image in one forward pass.

    Returns:
      float32 `[B, h, w]`, not negative.

    Raises:
      NoSuchLayer: the network has no such layer.
    """
    activation = cut(network, images, layer)[0].astype(jnp.float32)

    def score(channel: jax.Array) -> jax.Array:
        mask = upsample(channel, *images.shape[1:3])
        low = jnp.min(mask, axis=(1, 2), keepdims=True)
        mask = (mask - low) / (jnp.max(mask, axis=(1, 2), keepdims=True) - low + _FLAT)
        return network.scores(images * mask[..., None].astype(images.dtype), targets)

    scores = jax.lax.map(score, jnp.moveaxis(activation, -1, 0), batch_size=channels_at_once)
    weights = jax.nn.softmax(scores, axis=0)
    return jax.nn.relu(jnp.einsum("bhwc,cb->bhw", activation, weights))
