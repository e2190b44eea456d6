"""How are activations normalised over a batch, what is kept for evaluation, and how is a BatchNorm frozen?"""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.initializers import ones, zeros

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda values: values,
    "relu": nn.relu,
    "swish": nn.swish,
}
# The derivatives.
SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": lambda values: (values > 0).astype(values.dtype),
    "swish": lambda values: _swish_slope(values, nn.sigmoid(values)),
}


def _swish_slope(values: jax.Array, sigmoid: jax.Array) -> jax.Array:
    return sigmoid * (1.0 + values * (1.0 - sigmoid))


def _statistics(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, in float32, in one pass over the activations."""
    axes = tuple(range(inputs.ndim - 1))
    values = inputs.astype(jnp.float32)
    mean = jnp.mean(values, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(values), axes) - jnp.square(mean), 0.0)


def _affine(inputs: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array, activation: str) -> jax.Array:
    """One multiply-add and the activation."""
    values = inputs.astype(jnp.float32) * factor + (bias - mean * factor)
    return ACTIVATIONS[activation](values).astype(inputs.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize_batch(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: jax.Array | float, activation: str = "none"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation by the batch's own statistics (Ioffe and Szegedy 2015, algorithm 1), and an activation.

    The backward pass is written out (the paper's section 3): two sums over the activations and one multiply-add. It
    needs the inputs only, where differentiating the forward pass would keep several arrays of their size alive.

    Args:
      inputs: `[..., C]`, any floating type; the statistics are float32.
      scale: float32 `[C]`.
      bias: float32 `[C]`.
      epsilon: added to the variance; takes no gradient.
      activation: one of `ACTIVATIONS`.

    Returns:
      The activations `[..., C]` in the type of `inputs`, and float32 mean `[C]` and biased variance `[C]`.
    """
    return _normalize_batch_forward(inputs, scale, bias, epsilon, activation)[0]


def _normalize_batch_forward(inputs, scale, bias, epsilon, activation):
    mean, variance = _statistics(inputs)
    inverse = jax.lax.rsqrt(variance + epsilon)
    outputs = _affine(inputs, mean, scale * inverse, bias, activation)
    return (outputs, mean, variance), (inputs, scale, bias, mean, inverse)


def _normalize_batch_backward(activation, residuals, cotangents):
    inputs, scale, bias, mean, inverse = residuals
    output_bar, mean_bar, variance_bar = cotangents
    axes = tuple(range(inputs.ndim - 1))
    count = inputs.size // inputs.shape[-1]
    factor = scale * inverse
    values = inputs.astype(jnp.float32)
    upstream = output_bar.astype(jnp.float32)
    if activation != "none":
        # Not the forward pass's expression: XLA would recognise that one and keep its values from there to here.
        upstream = upstream * SLOPES[activation]((values - mean) * factor + bias)
    bias_bar = jnp.sum(upstream, axes)
    scale_bar = (jnp.sum(upstream * values, axes) - mean * bias_bar) * inverse
    # The gradient is factor * upstream + slope * (values - mean) + constants per channel: one fused loop.
    slope = (2.0 * variance_bar - factor * inverse * scale_bar) / count
    offset = (mean_bar - factor * bias_bar) / count - slope * mean
    inputs_bar = factor * upstream + slope * values + offset
    return inputs_bar.astype(inputs.dtype), scale_bar, bias_bar, None


normalize_batch.defvjp(_normalize_batch_forward, _normalize_batch_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last.

    Parameters `scale`, `bias` and running statistics `mean`, `var` (collection `batch_stats`) are float32
    `[C]`. Training normalises by the batch and moves the running statistics, `running = momentum * running +
    (1 - momentum) * batch`, with the biased variance as Keras and Flax do (PyTorch moves its running variance
    by the unbiased one). Evaluation uses the running statistics. Under `jit` over a batch sharded on several
    devices the statistics are those of the whole batch: XLA inserts the reduction, so there is no axis name.
    Every row counts: the trainer removes padding before the model.

    Attributes:
      momentum: share of the running statistics that a step keeps.
      epsilon: added to the variance.
      use_scale: whether there is a trainable scale (Keras's inception_resnet_v2 has none).
      activation: what follows, one of `ACTIVATIONS`; here so that forward and backward passes can be fused with it.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    use_scale: bool = True
    activation: str = "none"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[..., C]`; same shape and type out."""
        shape = (inputs.shape[-1],)
        scale = self.param("scale", ones, shape) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            factor = scale * jax.lax.rsqrt(running_variance.value + self.epsilon)
            return _affine(inputs, running_mean.value, factor, bias, self.activation)
        outputs, mean, variance = normalize_batch(inputs, scale, bias, self.epsilon, self.activation)
        # Without `mutable=["batch_stats"]` a caller asks for batch statistics that leave no trace.
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_variance.value = keep * running_variance.value + (1.0 - keep) * variance
        return outputs


def frozen_interceptor(patterns: tuple[str, ...]) -> Callable:
    """A `flax.linen.intercept_methods` interceptor that holds some BatchNorm layers at their running
    statistics.

    A frozen layer must not only keep its parameters: were its running statistics to move on, or were it
    normalised by the batch, the features below a new head would change while it trains.

    Args:
      patterns: regular expressions, searched in the layer's path ("backbone/layer1_0/norm1").
    """
    expressions = [re.compile(pattern) for pattern in patterns]

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            path = "/".join(context.module.path)
            if any(expression.search(path) for expression in expressions):
                kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    return interceptor
