"""Which layers are the networks built of?

Parameters are float32 and named as in Flax: `kernel` `[h, w, in, out]` or `[in, out]`, `bias` `[out]`. A
layer computes in the type of its input: the model casts the images once and everything behind follows.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.convolution import conv2d, depthwise_conv2d
from research.models.initializers import GLOROT_UNIFORM, zeros
from research.models.normalization import BatchNorm
from research.models.pooling import Padding

Initializer = Callable[..., jax.Array]


class Conv(nn.Module):
    """Convolution `[B, H, W, C]` to `[B, h, w, features]`; see `conv2d` for strides and padding."""

    features: int
    window: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "same"
    use_bias: bool = False
    kernel_init: Initializer = GLOROT_UNIFORM

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.window, inputs.shape[-1], self.features))
        outputs = conv2d(inputs, kernel.astype(inputs.dtype), (self.stride, self.stride), self.padding)
        if self.use_bias:
            bias = self.param("bias", zeros, (self.features,))
            outputs = outputs + bias.astype(inputs.dtype)
        return outputs


class DepthwiseConv(nn.Module):
    """Convolution of every channel on its own, `[B, H, W, C]` to `[B, h, w, C]`; parameter `kernel` `[h, w, 1, C]`."""

    window: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "same"
    use_bias: bool = False
    kernel_init: Initializer = GLOROT_UNIFORM

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.window, 1, inputs.shape[-1]))
        strides = (self.stride, self.stride)
        outputs = depthwise_conv2d(inputs, kernel.astype(inputs.dtype), strides, self.padding)
        if self.use_bias:
            bias = self.param("bias", zeros, (inputs.shape[-1],))
            outputs = outputs + bias.astype(inputs.dtype)
        return outputs


class ConvBatchNorm(nn.Module):
    """Convolution without bias (`conv`) and BatchNorm with its activation (`norm`)."""

    features: int
    window: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "same"
    momentum: float = 0.99
    epsilon: float = 1e-3
    use_scale: bool = True
    activation: str = "relu"
    kernel_init: Initializer = GLOROT_UNIFORM

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`, gives `[B, h, w, features]`."""
        conv = Conv(self.features, self.window, self.stride, self.padding, kernel_init=self.kernel_init, name="conv")
        norm = BatchNorm(self.momentum, self.epsilon, self.use_scale, self.activation, name="norm")
        return norm(conv(inputs), train=train)


class Dense(nn.Module):
    """Affine map `[..., in]` to `[..., features]`."""

    features: int
    kernel_init: Initializer = GLOROT_UNIFORM
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return inputs @ kernel.astype(inputs.dtype) + bias.astype(inputs.dtype)


def drop(
    module: nn.Module, inputs: jax.Array, rate: float | jax.Array, shape: tuple[int, ...], train: bool
) -> jax.Array:
    """Zeroes a share `rate` of `inputs` by a mask of `shape` (broadcast), divides the others by `1 - rate`.

    The mask is drawn channel by channel: that of a channel is the same in a wider layer.
    """
    static = isinstance(rate, (int, float))
    if static and not 0.0 <= rate < 1.0:
        raise cli.UserError(f"a dropout rate of {rate} is impossible; choose one in [0, 1).")
    if not train or (static and rate == 0.0):
        return inputs
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    drawn = jax.random.bernoulli(module.make_rng("dropout"), keep, (shape[-1], *shape[:-1]))
    kept = jnp.moveaxis(drawn, 0, -1)
    return jnp.where(kept, inputs * (1.0 / keep).astype(inputs.dtype), jnp.zeros((), inputs.dtype))


class Dropout(nn.Module):
    """Sets a share `rate` of the activations to zero and divides the others by `1 - rate`.

    Srivastava et al. 2014. The rate may be a traced scalar, so that the members of a cohort differ in it and
    share one program (`flax.linen.Dropout` refuses that). A Python 0.0 costs nothing and asks for no random
    key; otherwise training draws from the stream "dropout".
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Same shape and type out. UserError: a Python rate outside `[0, 1)`."""
        return drop(self, inputs, self.rate, inputs.shape, train)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): sets whole examples of a residual branch to zero, scales the others up.

    The rate may be traced, see `Dropout`, whose random stream it shares.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, ...]`, same shape and type out. UserError: a Python rate outside `[0, 1)`."""
        shape = (inputs.shape[0],) + (1,) * (inputs.ndim - 1)
        return drop(self, inputs, self.rate, shape, train)
