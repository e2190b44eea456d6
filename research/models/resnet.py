"""The residual networks of He et al. 2016 (arXiv:1512.03385), as torchvision and timm build them ("v1.5").

v1.5 puts the stride of a bottleneck on its 3x3 convolution. Names follow torchvision's state dict:
`layer2.0.conv1` is `layer2_0/conv1`, `bn1` is `norm1`, `downsample.0` and `.1` are `downsample_conv` and
`downsample_norm`; `fc` is `head/logits`. Parameters with 1,000 classes: resnet18 11,689,512; resnet34
21,797,672; resnet50 25,557,032; resnet101 44,549,160; resnet152 60,192,808.
"""

import functools

import flax.linen as nn
import jax

from research.models.initializers import HE_NORMAL_FAN_OUT
from research.models.layers import Conv
from research.models.normalization import BatchNorm
from research.models.pooling import global_average_pool, max_pool
from research.models.registry import register


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width (`bottleneck`), and a shortcut."""

    width: int
    stride: int
    bottleneck: bool
    momentum: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`, gives `[B, ceil(H / stride), ceil(W / stride), width or 4 * width]`."""
        norm = functools.partial(BatchNorm, momentum=self.momentum, epsilon=1e-5)
        if self.bottleneck:
            plan = [(1, 1, self.width), (3, self.stride, self.width), (1, 1, 4 * self.width)]
        else:
            plan = [(3, self.stride, self.width), (3, 1, self.width)]
        outputs = inputs
        for index, (window, stride, features) in enumerate(plan, 1):
            outputs = _conv(features, window, stride, name=f"conv{index}")(outputs)
            outputs = norm(name=f"norm{index}")(outputs, train=train)
            if index < len(plan):
                outputs = nn.relu(outputs)
        shortcut = inputs
        if self.stride != 1 or inputs.shape[-1] != plan[-1][2]:
            shortcut = _conv(plan[-1][2], 1, self.stride, name="downsample_conv")(inputs)
            shortcut = norm(name="downsample_norm")(shortcut, train=train)
        return nn.relu(outputs + shortcut)


class ResNet(nn.Module):
    """Backbone: 7x7 stride-2 convolution, 3x3 stride-2 max-pool, four stages of residual blocks, global mean.

    Attributes:
      depths: blocks in each stage.
      bottleneck: kind of the blocks.
      momentum: of the BatchNorm layers (epsilon is 1e-5).
    """

    depths: tuple[int, ...]
    bottleneck: bool
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 512 or 2048]` and maps `stem`, `layer1` ... `layer4`."""
        outputs = _conv(64, 7, 2, name="conv1")(images)
        outputs = nn.relu(BatchNorm(self.momentum, 1e-5, name="norm1")(outputs, train=train))
        maps = {"stem": outputs}
        outputs = max_pool(outputs, 3, 2, padding=1)
        for stage, depth in enumerate(self.depths, 1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                block = ResidualBlock(
                    64 * 2 ** (stage - 1),
                    stride,
                    self.bottleneck,
                    self.momentum,
                    name=f"layer{stage}_{index}",
                )
                outputs = block(outputs, train=train)
            maps[f"layer{stage}"] = outputs
        return global_average_pool(outputs), maps


def _conv(features: int, window: int, stride: int, name: str) -> Conv:
    # PyTorch pads evenly on all sides, where "same" would put the odd pixel of a strided window right and
    # below.
    return Conv(features, (window, window), stride, window // 2, kernel_init=HE_NORMAL_FAN_OUT, name=name)


@register("resnet18")
def resnet18(batch_norm_momentum: float = 0.9) -> ResNet:
    """18 layers."""
    return ResNet((2, 2, 2, 2), bottleneck=False, momentum=batch_norm_momentum)


@register("resnet34")
def resnet34(batch_norm_momentum: float = 0.9) -> ResNet:
    """34 layers."""
    return ResNet((3, 4, 6, 3), bottleneck=False, momentum=batch_norm_momentum)


@register("resnet50")
def resnet50(batch_norm_momentum: float = 0.9) -> ResNet:
    """50 layers, bottleneck blocks."""
    return ResNet((3, 4, 6, 3), bottleneck=True, momentum=batch_norm_momentum)


@register("resnet101")
def resnet101(batch_norm_momentum: float = 0.9) -> ResNet:
    """101 layers, bottleneck blocks."""
    return ResNet((3, 4, 23, 3), bottleneck=True, momentum=batch_norm_momentum)


@register("resnet152")
def resnet152(batch_norm_momentum: float = 0.9) -> ResNet:
    """152 layers, bottleneck blocks."""
    return ResNet((3, 8, 36, 3), bottleneck=True, momentum=batch_norm_momentum)
