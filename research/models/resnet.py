"""How are the residual networks of He et al. 2016 (arXiv:1512.03385) built, as PyTorch has them and as Keras has them?

| variant | stride of a bottleneck | convolutions' biases | BatchNorm's epsilon, momentum | weights drawn from |
|---|---|---|---|---|
| `timm`, `torchvision`: "v1.5", one and the same graph | 3x3 convolution | no | 1e-5, 0.9 | He normal, fan out |
| `keras`: `keras.applications.resnet`, "v1" | first 1x1 convolution | yes | 1.001e-5, 0.99 | Glorot uniform |

Momentum is the share of the running statistics that a step keeps, 1 less PyTorch's. Keras has only 50, 101 and 152.

Parameters with 1,000 classes and three channels, and with running statistics as Keras counts:

| | timm, torchvision | with statistics | keras | with statistics |
|---|---|---|---|---|
| resnet18 | 11,689,512 | 11,699,112 | | |
| resnet34 | 21,797,672 | 21,814,696 | | |
| resnet50 | 25,557,032 | 25,610,152 | 25,583,592 | 25,636,712 |
| resnet101 | 44,549,160 | 44,654,504 | 44,601,832 | 44,707,176 |
| resnet152 | 60,192,808 | 60,344,232 | 60,268,520 | 60,419,944 |

Names: `layer2_0/conv1` and `norm1` are PyTorch's `layer2.0.conv1` and `bn1`, Keras's `conv3_block1_1_conv` and `_1_bn`;
`downsample_conv` and `downsample_norm` are `downsample.0` and `.1`, `_0_conv` and `_0_bn`; `head/logits` is `fc`,
`predictions`. The last ten of the 175 layers that Keras counts in ResNet50 are those of `layer4_2`.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from research.models.initializers import GLOROT_UNIFORM, HE_NORMAL_FAN_OUT, VarianceScaling
from research.models.layers import Conv
from research.models.normalization import BatchNorm
from research.models.pooling import global_average_pool, max_pool
from research.models.registry import register


@dataclasses.dataclass(frozen=True)
class Form:
    """What the variants differ in.

    Attributes:
      strided: the convolution of a bottleneck block, counted from 1, that has the block's stride.
      use_bias: whether convolutions have biases.
      epsilon, momentum: of the BatchNorm layers.
      kernel_init: of the convolutions.
    """

    strided: int
    use_bias: bool
    epsilon: float
    momentum: float
    kernel_init: VarianceScaling

    def conv(self, features: int, window: int, stride: int, name: str) -> Conv:
        """Pads evenly on all sides, as both libraries do; "same" would put a stride's odd pixel right and below."""
        padding = window // 2
        return Conv(features, (window, window), stride, padding, self.use_bias, self.kernel_init, name=name)

    def norm(self, activation: str, name: str) -> BatchNorm:
        """BatchNorm, followed by `activation`."""
        return BatchNorm(self.momentum, self.epsilon, activation=activation, name=name)


TORCH = Form(2, False, 1e-5, 0.9, HE_NORMAL_FAN_OUT)
FORMS = {"timm": TORCH, "torchvision": TORCH, "keras": Form(1, True, 1.001e-5, 0.99, GLOROT_UNIFORM)}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width (`bottleneck`), and a shortcut."""

    width: int
    stride: int
    bottleneck: bool
    form: Form

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`, gives `[B, ceil(H / stride), ceil(W / stride), width or 4 * width]`."""
        plan = [(1, self.width), (3, self.width), (1, 4 * self.width)] if self.bottleneck else [(3, self.width)] * 2
        strided = self.form.strided if self.bottleneck else 1
        features = plan[-1][1]
        outputs = inputs
        for index, (window, channels) in enumerate(plan, 1):
            stride = self.stride if index == strided else 1
            outputs = self.form.conv(channels, window, stride, f"conv{index}")(outputs)
            activation = "relu" if index < len(plan) else "none"
            outputs = self.form.norm(activation, f"norm{index}")(outputs, train=train)
        shortcut = inputs
        if self.stride != 1 or inputs.shape[-1] != features:
            shortcut = self.form.conv(features, 1, self.stride, "downsample_conv")(inputs)
            shortcut = self.form.norm("none", "downsample_norm")(shortcut, train=train)
        return nn.relu(outputs + shortcut)


class ResNet(nn.Module):
    """Backbone: 7x7 stride-2 convolution, 3x3 stride-2 max-pool, four stages of residual blocks, global mean.

    Attributes:
      depths: blocks in each stage.
      bottleneck: kind of the blocks.
      form: of the variant.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    form: Form

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 512 or 2048]` and maps `stem`, `layer1` ... `layer4`."""
        outputs = self.form.conv(64, 7, 2, "conv1")(images)
        outputs = self.form.norm("relu", "norm1")(outputs, train=train)
        maps = {"stem": outputs}
        # Keras pads with zeros, which is the same behind a ReLU.
        outputs = max_pool(outputs, 3, 2, padding=1)
        for stage, depth in enumerate(self.depths, 1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                width = 64 * 2 ** (stage - 1)
                block = ResidualBlock(width, stride, self.bottleneck, self.form, name=f"layer{stage}_{index}")
                outputs = block(outputs, train=train)
            maps[f"layer{stage}"] = outputs
        return global_average_pool(outputs), maps


def _resnet(depths: tuple[int, ...], bottleneck: bool, variant: str, momentum: float | None) -> ResNet:
    form = FORMS[variant]
    if momentum is not None:
        form = dataclasses.replace(form, momentum=momentum)
    return ResNet(depths, bottleneck, form)


_BLOCK = re.compile(r"backbone/layer(\d)_(\d+)/(?:downsample_)?(conv|norm)(\d?)")
_STEM = re.compile(r"backbone/(conv|norm)1")


def _torch_names(modules: Sequence[str]) -> dict[str, str]:
    names = {}
    for module in modules:
        if block := _BLOCK.fullmatch(module):
            stage, index, kind, number = block.groups()
            shortcut = "downsample.0" if kind == "conv" else "downsample.1"
            inner = f"{'conv' if kind == 'conv' else 'bn'}{number}" if number else shortcut
            names[module] = f"layer{stage}.{index}.{inner}"
        elif stem := _STEM.fullmatch(module):
            names[module] = {"conv": "conv1", "norm": "bn1"}[stem[1]]
        elif module == "head/logits":
            names[module] = "fc"
    return names


def _keras_names(modules: Sequence[str]) -> dict[str, str]:
    kinds = {"conv": "conv", "norm": "bn"}
    names = {}
    for module in modules:
        if block := _BLOCK.fullmatch(module):
            stage, index, kind, number = block.groups()
            names[module] = f"conv{int(stage) + 1}_block{int(index) + 1}_{number or 0}_{kinds[kind]}"
        elif stem := _STEM.fullmatch(module):
            names[module] = f"conv1_{kinds[stem[1]]}"
        elif module == "head/logits":
            names[module] = "predictions"
    return names


_TORCH_NAMES = {"timm": _torch_names, "torchvision": _torch_names}
_NAMES = {**_TORCH_NAMES, "keras": _keras_names}
# Keras has no 18 and 34.
TorchVariant = Literal["timm", "torchvision"]
Variant = Literal["timm", "torchvision", "keras"]


@register("resnet18", names=_TORCH_NAMES)
def resnet18(variant: TorchVariant = "timm", batch_norm_momentum: float | None = None) -> ResNet:
    """18 layers."""
    return _resnet((2, 2, 2, 2), False, variant, batch_norm_momentum)


@register("resnet34", names=_TORCH_NAMES)
def resnet34(variant: TorchVariant = "timm", batch_norm_momentum: float | None = None) -> ResNet:
    """34 layers."""
    return _resnet((3, 4, 6, 3), False, variant, batch_norm_momentum)


@register("resnet50", names=_NAMES)
def resnet50(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> ResNet:
    """50 layers, bottleneck blocks."""
    return _resnet((3, 4, 6, 3), True, variant, batch_norm_momentum)


@register("resnet101", names=_NAMES)
def resnet101(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> ResNet:
    """101 layers, bottleneck blocks."""
    return _resnet((3, 4, 23, 3), True, variant, batch_norm_momentum)


@register("resnet152", names=_NAMES)
def resnet152(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> ResNet:
    """152 layers, bottleneck blocks."""
    return _resnet((3, 8, 36, 3), True, variant, batch_norm_momentum)
