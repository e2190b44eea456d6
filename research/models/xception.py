"""What is Xception, and in what do Keras's and timm's differ?

Chollet 2017 (arXiv:1610.02357), layer by layer as in `keras.applications`: two convolutions, twelve residual blocks of
separable convolutions, of which four halve the map by a max-pool, two separable convolutions, a mean. A separable
convolution is a depthwise 3x3 and a 1x1 convolution with nothing between. 22,855,952 parameters with 1,000 classes,
22,910,480 with running statistics. Published for 299 x 299 pixels in [-1, 1] (`x / 127.5 - 1`); images need 7 pixels a
side (Keras asks for 71). The paper's dropout of 0.5 before the logits is in neither library; here it is
`head_dropout`.

timm's `legacy_xception` has Keras's weights in PyTorch's habits: BatchNorm's epsilon is 1e-5 instead of 1e-3 and its
momentum 0.9 instead of 0.99, and the max-pools pad one pixel on each side, where Keras pads an even map right and below
only. So the two compute different things from the same weights; take the variant that the file is from.

Names are Keras's: `block2_sepconv1` with `depthwise`, `pointwise` and `norm`, `block1_conv1` and, for Keras's
unnamed convolutions beside the max-pools, `block2_shortcut`, with `conv` and `norm`. timm counts blocks from one less.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from research.models.layers import Conv, ConvBatchNorm, DepthwiseConv
from research.models.normalization import BatchNorm
from research.models.pooling import Padding, global_average_pool, max_pool
from research.models.registry import register

# Features of the separable convolutions of blocks 2 to 13. Where they change, the block halves the map.
BLOCKS = ((128, 128), (256, 256), (728, 728), *((728, 728, 728),) * 8, (728, 1024))


class SeparableConvBatchNorm(nn.Module):
    """Depthwise 3x3 convolution, 1x1 convolution (`pointwise`), BatchNorm (`norm`) with its activation."""

    features: int
    momentum: float
    epsilon: float
    activation: str

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`, gives `[B, H, W, features]`."""
        outputs = DepthwiseConv((3, 3), name="depthwise")(inputs)
        outputs = Conv(self.features, (1, 1), name="pointwise")(outputs)
        norm = BatchNorm(self.momentum, self.epsilon, activation=self.activation, name="norm")
        return norm(outputs, train=train)


class Xception(nn.Module):
    """Backbone.

    Attributes:
      momentum, epsilon: of the BatchNorm layers.
      pool_padding: of the max-pools.
    """

    momentum: float
    epsilon: float
    pool_padding: Padding

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 2048]` and maps.

        These are the outputs of the blocks that come last at a stride: `block1` (2), `block2` (4), `block3` (8),
        `block12` (16), and `block14` (32), which is pooled. Those in between end in a sum, without ReLU.
        """
        conv = functools.partial(ConvBatchNorm, momentum=self.momentum, epsilon=self.epsilon)
        separable = functools.partial(SeparableConvBatchNorm, momentum=self.momentum, epsilon=self.epsilon)
        outputs = conv(32, (3, 3), 2, "valid", name="block1_conv1")(images, train=train)
        outputs = conv(64, (3, 3), 1, "valid", name="block1_conv2")(outputs, train=train)
        maps = {"block1": outputs}
        for number, plan in enumerate(BLOCKS, 2):
            shortcut, channels = outputs, outputs.shape[-1]
            if number != 2:
                outputs = nn.relu(outputs)
            for index, features in enumerate(plan, 1):
                activation = "relu" if index < len(plan) else "none"
                layer = separable(features, activation=activation, name=f"block{number}_sepconv{index}")
                outputs = layer(outputs, train=train)
            if channels != plan[-1]:
                outputs = max_pool(outputs, 3, 2, self.pool_padding)
                layer = conv(plan[-1], (1, 1), 2, activation="none", name=f"block{number}_shortcut")
                shortcut = layer(shortcut, train=train)
            outputs = outputs + shortcut
            if number in (2, 3, 12):
                maps[f"block{number}"] = outputs
        for index, features in enumerate((1536, 2048), 1):
            layer = separable(features, activation="relu", name=f"block14_sepconv{index}")
            outputs = layer(outputs, train=train)
        maps["block14"] = outputs
        return global_average_pool(outputs), maps


_SEPARABLE = re.compile(r"backbone/block(\d+)_sepconv(\d)/(depthwise|pointwise|norm)")
_FIRST = re.compile(r"backbone/block1_conv(\d)/(conv|norm)")
_SHORTCUT = re.compile(r"backbone/block(\d+)_shortcut/(conv|norm)")


def _keras_names(modules: Sequence[str]) -> dict[str, str]:
    """Keras numbers the unnamed layers of the shortcuts in the order of the blocks."""
    result = {}
    for module in modules:
        if match := _SEPARABLE.fullmatch(module):
            name = f"block{match[1]}_sepconv{match[2]}"
            result[module] = f"{name}_bn" if match[3] == "norm" else f"{name}:{match[3]}_kernel"
        elif match := _FIRST.fullmatch(module):
            result[module] = f"block1_conv{match[1]}" + ("_bn" if match[2] == "norm" else "")
        elif match := _SHORTCUT.fullmatch(module):
            number = {"2": "", "3": "_1", "4": "_2", "13": "_3"}[match[1]]
            result[module] = ("conv2d" if match[2] == "conv" else "batch_normalization") + number
        elif module == "head/logits":
            result[module] = "predictions"
    return result


def _timm_names(modules: Sequence[str]) -> dict[str, str]:
    result = {}
    for module in modules:
        if match := _SEPARABLE.fullmatch(module):
            result[module] = _timm_separable(int(match[1]), int(match[2]), match[3])
        elif match := _FIRST.fullmatch(module):
            result[module] = ("bn" if match[2] == "norm" else "conv") + match[1]
        elif match := _SHORTCUT.fullmatch(module):
            result[module] = f"block{int(match[1]) - 1}.skip" + ("bn" if match[2] == "norm" else "")
        elif module == "head/logits":
            result[module] = "fc"
    return result


def _timm_separable(block: int, index: int, part: str) -> str:
    kernel = {"depthwise": ".conv1", "pointwise": ".pointwise"}
    if block == 14:
        return f"bn{index + 2}" if part == "norm" else f"conv{index + 2}{kernel[part]}"
    # ReLU, separable convolution, BatchNorm, and again; but the first block has no ReLU before it.
    position = 3 * (index - 1) + (block != 2)
    return f"block{block - 1}.rep." + (f"{position + 1}" if part == "norm" else f"{position}{kernel[part]}")


@register("xception", names={"keras": _keras_names, "timm": _timm_names}, aliases={"legacy_xception": "timm"})
def xception(variant: Literal["keras", "timm"] = "keras", batch_norm_momentum: float | None = None) -> Xception:
    """Options: whose form, momentum of the BatchNorm layers (None: the variant's)."""
    momentum, epsilon, padding = {"keras": (0.99, 1e-3, "same"), "timm": (0.9, 1e-5, 1)}[variant]
    return Xception(momentum if batch_norm_momentum is None else batch_norm_momentum, epsilon, padding)
