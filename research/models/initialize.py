"""How does a model get its first variables, and how large is it?"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.initializers import drawn_together


def initialize(model: nn.Module, key: jax.Array, image_size: int, channels: int) -> dict[str, Any]:
    """Draws a model's variables.

    Args:
      model: a `Classifier`.
      key: random key; the variables are a pure function of it, also under `vmap` over keys.
      image_size: pixels a side of the images that will come; dense layers on unpooled maps depend on it.
      channels: channels of the images.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32; `batch_stats` is empty for a model without BatchNorm.
    """
    # A model that holds traced values, such as a dropout rate under `vmap`, is part of its caller's program.
    draw = _drawn if _is_hashable(model) else _drawn.__wrapped__
    variables = draw(model, key, image_size, channels)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def blank_inputs(image_size: int, channels: int) -> dict[str, jax.Array]:
    """What any model can be called with to learn the shapes of its variables, which no caption's length changes."""
    image = jnp.zeros((1, image_size, image_size, channels))
    return {"image": image, "caption": jnp.zeros((1, 1), jnp.int32)}


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _drawn(model: nn.Module, key: jax.Array, image_size: int, channels: int) -> dict[str, Any]:
    # The forward pass inside `init` only gives the shapes: under `jit` XLA removes it as dead code.
    inputs = blank_inputs(image_size, channels)
    return drawn_together(lambda: model.init({"params": key}, inputs, train=False), key)


def _is_hashable(model: nn.Module) -> bool:
    try:
        hash(model)
    except TypeError:
        return False
    return True


def count_parameters(params: Any) -> int:
    """Number of scalars in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
