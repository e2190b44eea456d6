"""How far does the logit of a class fall when a part of the image is covered?"""

import jax
import jax.numpy as jnp

from research.explain.network import Network


def occlusion(
    network: Network,
    images: jax.Array,
    targets: jax.Array,
    baseline: jax.Array,
    window: int,
    stride: int,
    windows_at_once: int = 16,
) -> jax.Array:
    """Zeiler and Fergus 2014 (arXiv:1311.2901), section 4.2, as Captum defines it.

    A square window moves over the image in steps of `stride` from the upper left corner until it reaches the other
    edges, where it is cut off. A pixel's value is the mean fall of the logit over all windows that cover it.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      targets: int `[B]`.
      baseline: `[B, H, W, C]` or what broadcasts to it, what the window shows.
      window: its side in pixels.
      stride: 1 to `window`, in pixels, so that every pixel is covered.
      windows_at_once: covered copies of each image in one forward pass.

    Returns:
      float32 `[B, H, W]` in units of logit; negative where covering raises the logit.

    Raises:
      ValueError: an impossible window or stride.
    """
    height, width = images.shape[1:3]
    if not 1 <= stride <= window or window > min(height, width):
        raise ValueError(f"a window of {window} and a stride of {stride} do not fit images of {height} x {width}")
    tops, lefts = (jnp.arange(-(-(side - window) // stride) + 1) * stride for side in (height, width))
    corners = jnp.stack(jnp.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
    plain = network.scores(images, targets)

    def covered(corner: jax.Array) -> jax.Array:
        """bool `[H, W]`."""
        rows, columns = jnp.arange(height) - corner[0], jnp.arange(width) - corner[1]
        return ((rows >= 0) & (rows < window))[:, None] & ((columns >= 0) & (columns < window))[None]

    def fall(corner: jax.Array) -> jax.Array:
        return plain - network.scores(jnp.where(covered(corner)[..., None], baseline, images), targets)

    falls = jax.lax.map(fall, corners, batch_size=windows_at_once)  # [P, B]

    def add(sums, item):
        mask, own = covered(item[0]).astype(jnp.float32), item[1]
        return (sums[0] + own[:, None, None] * mask, sums[1] + mask), None

    start = jnp.zeros(images.shape[:3], jnp.float32), jnp.zeros((height, width), jnp.float32)
    (sums, counts), _ = jax.lax.scan(add, start, (corners, falls))
    return sums / counts
