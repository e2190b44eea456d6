"""What is Inception-ResNet-v2 (Szegedy et al. 2017, arXiv:1602.07261), as Keras and timm build it?

Two forms of one graph; epsilon is 1e-3 in both, convolutions before a BatchNorm have no bias:

                     keras                                        timm
    BatchNorm        no scale, momentum 0.99                      scale, momentum 0.9
    parameters       55,873,736, of which 60,544 are running      55,843,464
                     statistics

Parameters are those with 1,000 classes, counted as each library counts: PyTorch leaves running statistics out.
`ens_adv_inception_resnet_v2` is an earlier name of timm for weights of its form.

Modules are named after timm's with `_` for the dots (`mixed_5b.branch1.0.conv` is `mixed_5b/branch1_0/conv`, `bn` is
`norm`), its `repeat.0`, `repeat_1.0`, `repeat_2.0` and `block8` after Keras: `block35_1`, `block17_1`, `block8_1` and
`block8_10`. Keras numbers most layers in the order of the calls here. Images need 75 pixels a side; the weights of both
want pixels in [-1, 1] (mean 0.5, deviation 0.5).
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Literal

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


def _branches(layer: Callable[..., nn.Module], plan: tuple, inputs: jax.Array, train: bool) -> list[jax.Array]:
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

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`; keeps the size if it pools by mean, halves it if by maximum."""
        outputs = _branches(self.layer, self.plan, inputs, train)
        if self.pool_features:
            pooled = average_pool(inputs, 3, 1, "same")
            pooled = self.layer(self.pool_features, ONE, name=f"branch{len(self.plan)}_1")(pooled, train=train)
        else:
            pooled = max_pool(inputs, 3, 2)
        return jnp.concatenate([*outputs, pooled], -1)


class ResidualBlock(nn.Module):
    """`inputs + scale * conv(concatenated branches)`, then ReLU unless it is the last block."""

    plan: tuple
    scale: float
    relu: bool
    layer: Callable[..., nn.Module]

    is_block = True  # see `remat`

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
      momentum: of the BatchNorm layers.
      use_scale: whether they have a scale.
    """

    momentum: float
    use_scale: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 1536]` and five maps, strides about 2 to 32."""
        layer = functools.partial(_conv_batch_norm, self.momentum, self.use_scale)
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
            outputs = ResidualBlock(BLOCK_35, 0.17, True, layer, name=f"block35_{index}")(outputs, train=train)
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


def _conv_batch_norm(momentum, use_scale, features, window, stride=1, padding="same", *, name):
    return ConvBatchNorm(features, window, stride, padding, momentum, epsilon=1e-3, use_scale=use_scale, name=name)


def timm_names(modules: Sequence[str]) -> dict[str, str]:
    """`backbone/block17_3/branch1_0/norm` to `repeat_1.2.branch1.0.bn`."""
    repeats = {"35": "repeat", "17": "repeat_1", "8": "repeat_2"}

    def repeated(match):
        return "block8." if match[0] == "block8_10." else f"{repeats[match[1]]}.{int(match[2]) - 1}."

    names = {"head/logits": "classif"}
    for module in modules:
        if module.startswith("backbone/"):
            name = re.sub(r"(branch\d)_(\d)", r"\1.\2", module.removeprefix("backbone/").replace("/", "."))
            name = re.sub(r"\.norm$", ".bn", name)
            name = re.sub(r"^(block\d+_\d+)\.conv$", r"\1.conv2d", name)
            names[module] = re.sub(r"^block(\d+)_(\d+)\.", repeated, name)
    return names


def keras_names(modules: Sequence[str]) -> dict[str, str]:
    """`conv2d_n` and `batch_normalization_n` in the order of the calls, but for the layers that Keras names."""
    named = {
        "head/logits": "predictions",
        "backbone/conv2d_7b/conv": "conv_7b",
        "backbone/conv2d_7b/norm": "conv_7b_bn",
    }
    for module in modules:
        if match := re.fullmatch(r"backbone/(block\d+_\d+)/conv", module):
            named[module] = f"{match[1]}_conv"
    names = dict(named)
    for suffix, layer in (("/conv", "conv2d"), ("/norm", "batch_normalization")):
        found = [
            name for name in modules if name.startswith("backbone/") and name.endswith(suffix) and name not in named
        ]
        names.update({module: f"{layer}_{index}" if index else layer for index, module in enumerate(found)})
    return names


@register(
    "inception_resnet_v2",
    names={"keras": keras_names, "timm": timm_names},
    aliases={"ens_adv_inception_resnet_v2": "timm"},
)
def inception_resnet_v2(
    variant: Literal["keras", "timm"] = "keras", batch_norm_momentum: float | None = None
) -> InceptionResNetV2:
    """The variants are compared in the module's docstring."""
    timm = variant == "timm"
    momentum = (0.9 if timm else 0.99) if batch_norm_momentum is None else batch_norm_momentum
    return InceptionResNetV2(momentum, use_scale=timm)
