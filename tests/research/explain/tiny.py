"""Small networks whose explanations can be worked out by hand."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.explain.network import Network
from research.models.classifier import Output


class TwoLayers(nn.Module):
    """1x1 convolution with ReLU (map `map`, no module's own output), mean over all places, dense layer."""

    features: int = 4
    classes: int = 3

    @nn.compact
    def __call__(self, inputs, *, train):
        maps = nn.relu(nn.Conv(self.features, (1, 1), name="conv")(inputs["image"]))
        pooled = maps.mean((1, 2))
        return Output(nn.Dense(self.classes, name="logits")(pooled), pooled, {"map": maps})


class Formula(nn.Module):
    """Logits `[B, K]` from a function of the images."""

    function: Callable

    def __call__(self, inputs, *, train):
        logits = self.function(inputs["image"])
        return Output(logits, logits, {})


class Shared(nn.Module):
    """One convolution called twice, a second input that shifts the logits, and a branch around the layers."""

    @nn.compact
    def __call__(self, inputs, *, train):
        conv = nn.Conv(2, (3, 3), name="conv")
        first = conv(inputs["image"])
        second = conv(jnp.tanh(first))
        small = nn.avg_pool(second, second.shape[1:3])
        pooled = jnp.concatenate([small[:, 0, 0], first.mean((1, 2)) ** 2, inputs["expression"]], -1)
        return Output(nn.Dense(2, name="logits")(pooled), pooled, {"early": first, "pooled": small})


def images(*shape: int, seed: int = 0) -> jax.Array:
    """Random float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def network(model: nn.Module, like: jax.Array, **extras: jax.Array) -> Network:
    """A network with random weights."""
    variables = model.init(jax.random.key(3), {"image": like, **extras}, train=False)
    return Network(variables, model, extras)


def linear(weights: np.ndarray) -> Network:
    """Logits `[B, K]` = the sum over all pixels of `weights` `[K, H, W, C]` times the image, plus 0.5."""
    weights = jnp.asarray(weights, jnp.float32)
    return Network({}, Formula(lambda x: jnp.einsum("bhwc,khwc->bk", x, weights) + 0.5))
