"""Inception-ResNet-v2 (Szegedy et al. 2017, arXiv:1602.07261), layer by layer as in `keras.applications`.

55,873,736 parameters with 1,000 classes, of which 60,544 are BatchNorm's running statistics. BatchNorm has no
scale and epsilon 1e-3; convolutions before it have no bias. Keras numbers most convolutions in the order in
which it makes them (`conv2d_17`, `batch_normalization_17`); the modules here are called in that same order.
Keras's `block35_3_conv` is `block35_3/conv`, `conv_7b` and `conv_7b_bn` are `conv2d_7b`, `predictions` is
`head/logits`; the other names follow timm, with `_` for its dots. Images need 75 pixels a side.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Conv, ConvBatchNorm
from research.models.pooling import average_pool, global_average_pool, max_pool
from research.models.registry import register

# A branch is a list of convolutions: (filters, (window height, width)) and optionally (stride, padding).
ONE = (1, 1)
THREE = (3, 3)
REDUCE = (2, "valid")
MIXED_5B = (
    ((96, ONE),),
    ((48, ONE), (64, (5, 5))),
    ((64, ONE), (96, THREE), (96, THREE)),
)
MIXED_6A = (
    ((384, THREE, *REDUCE),),
    ((256, ONE), (256, THREE), (384, THREE, *REDUCE)),
)
MIXED_7A = (
    ((256, ONE), (384, THREE, *REDUCE)),
    ((256, ONE), (288, THREE, *REDUCE)),
    ((256, ONE), (288, THREE), (320, THREE, *REDUCE)),
)
BLOCK_35 = (
    ((32, ONE),),
    ((32, ONE), (32, THREE)),
    ((32, ONE), (48, THREE), (64, THREE)),
)
BLOCK_17 = (
    ((192, ONE),),
    ((128, ONE), (160, (1, 7)), (192, (7, 1))),
)
BLOCK_8 = (
    ((192, ONE),),
    ((192, ONE), (224, (1, 3)), (256, (3, 1))),
)


def _branches(
    layer: Callable[..., nn.Module], plan: tuple, inputs: jax.Array, train: bool
) -> list[jax.Array]:
    outputs = []
    for index, branch in enumerate(plan):
        values = inputs
        for position, convolution in enumerate(branch):
            name = f"branch{index}" if len(branch) == 1 else f"branch{index}_{position}"
            values = layer(*convolution, name=name)(values, train=train)
        outputs.append(values)
    return outputs


class Mixed(nn.Module):
    """Concatenated branches; the last pools by mean and convolves, or by maximum if `pool_features` is 0."""

    plan: tuple
    pool_features: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`; keeps the size if it pools by mean, halves it if by maximum."""
        outputs = _branches(self.layer, self.plan, inputs, train)
        if self.pool_features:
            pooled = average_pool(inputs, 3, 1, "same")
            pooled = self.layer(self.pool_features, ONE, name=f"branch{len(self.plan)}_1")(
                pooled, train=train
            )
        else:
            pooled = max_pool(inputs, 3, 2)
        return jnp.concatenate([*outputs, pooled], -1)


class ResidualBlock(nn.Module):
    """`inputs + scale * conv(concatenated branches)`, then ReLU unless it is the last block."""

    plan: tuple
    scale: float
    relu: bool
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Same shape out."""
        mixed = jnp.concatenate(_branches(self.layer, self.plan, inputs, train), -1)
        update = Conv(inputs.shape[-1], ONE, use_bias=True, name="conv")(mixed)
        outputs = inputs + update * self.scale
        return nn.relu(outputs) if self.relu else outputs


class InceptionResNetV2(nn.Module):
    """Backbone.

    Attributes:
      momentum: of the BatchNorm layers (Keras's default is 0.99).
    """

    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 1536]` and five maps, strides about 2 to 32."""
        layer = functools.partial(_conv_batch_norm, self.momentum)
        maps = {}
        outputs = layer(32, THREE, 2, "valid", name="conv2d_1a")(images, train=train)
        outputs = layer(32, THREE, 1, "valid", name="conv2d_2a")(outputs, train=train)
        outputs = maps["conv2d_2b"] = layer(64, THREE, name="conv2d_2b")(outputs, train=train)
        outputs = max_pool(outputs, 3, 2)
        outputs = layer(80, ONE, 1, "valid", name="conv2d_3b")(outputs, train=train)
        outputs = maps["conv2d_4a"] = layer(192, THREE, 1, "valid", name="conv2d_4a")(outputs, train=train)
        outputs = max_pool(outputs, 3, 2)
        outputs = Mixed(MIXED_5B, 64, layer, name="mixed_5b")(outputs, train=train)
        for index in range(1, 11):
            outputs = ResidualBlock(BLOCK_35, 0.17, True, layer, name=f"block35_{index}")(
                outputs, train=train
            )
        maps["block35_10"] = outputs
        outputs = Mixed(MIXED_6A, 0, layer, name="mixed_6a")(outputs, train=train)
        for index in range(1, 21):
            outputs = ResidualBlock(BLOCK_17, 0.1, True, layer, name=f"block17_{index}")(outputs, train=train)
        maps["block17_20"] = outputs
        outputs = Mixed(MIXED_7A, 0, layer, name="mixed_7a")(outputs, train=train)
        for index in range(1, 11):
            last = index == 10
            block = ResidualBlock(BLOCK_8, 1.0 if last else 0.2, not last, layer, name=f"block8_{index}")
            outputs = block(outputs, train=train)
        outputs = maps["conv2d_7b"] = layer(1536, ONE, name="conv2d_7b")(outputs, train=train)
        return global_average_pool(outputs), maps


def _conv_batch_norm(momentum, features, window, stride=1, padding="same", *, name):
    return ConvBatchNorm(
        features, window, stride, padding, momentum, epsilon=1e-3, use_scale=False, name=name
    )


@register("inception_resnet_v2")
def inception_resnet_v2(batch_norm_momentum: float = 0.99) -> InceptionResNetV2:
    """Keras's variant."""
    return InceptionResNetV2(batch_norm_momentum)
