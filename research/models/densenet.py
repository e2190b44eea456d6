"""How are the densely connected networks of Huang et al. 2017 (arXiv:1608.06993) built, and what do their layers share?

A dense layer reads the concatenation of all maps before it in its block and adds one of 32 channels. Computed plainly,
each layer copies everything before it, and takes the mean and variance of everything before it once more. Here a map's
mean and variance are computed once, when it is made, and serve every later BatchNorm of the block; new maps are copied
together once in `GROUP` layers. The variables are those of the plain network.

| variant | BatchNorm's epsilon, momentum | weights drawn from |
|---|---|---|
| `timm`, `torchvision`: one and the same graph | 1e-5, 0.9 | He normal, fan in |
| `keras` | 1.001e-5, 0.99 | Glorot uniform |

Parameters with 1,000 classes and three channels, and with running statistics as Keras counts: densenet121 7,978,856 and
8,062,504; densenet169 14,149,480 and 14,307,880; densenet201 20,013,928 and 20,242,984.

Names: `denseblock4/denselayer32/norm1`, `conv1`, `norm2`, `conv2` are PyTorch's
`features.denseblock4.denselayer32.norm1` and so on (`norm.1`, `conv.1` in torchvision's .pth files), Keras's
`conv5_block32_0_bn`, `conv5_block32_1_conv`, `conv5_block32_1_bn` and `conv5_block32_2_conv`;
`transition3/norm` and `conv` are Keras's `pool4_bn` and `pool4_conv`, `norm5` is its `bn`, `conv0` and `norm0` its
`conv1_conv` and `conv1_bn`; `head/logits` is `classifier`, `predictions`.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.initializers import GLOROT_UNIFORM, VarianceScaling, ones, zeros
from research.models.layers import Conv
from research.models.normalization import BatchNorm
from research.models.pooling import average_pool, global_average_pool, max_pool
from research.models.registry import register

GROWTH = 32
BOTTLENECK = 4 * GROWTH
GROUP = 4


class Maps(NamedTuple):
    """Feature maps that stand for their concatenation.

    Attributes:
      parts: `[B, H, W, c]` each.
      mean, variance: float32 `[C]` of all channels, over the batch; only for training.
    """

    parts: tuple[jax.Array, ...]
    mean: jax.Array | None
    variance: jax.Array | None

    def joined(self) -> jax.Array:
        """`[B, H, W, C]`."""
        return self.parts[0] if len(self.parts) == 1 else jnp.concatenate(self.parts, -1)

    def append(self, other: "Maps") -> "Maps":
        """Adds the channels of `other`; from `GROUP` new parts on all become one."""
        maps = Maps(self.parts + other.parts, None, None)
        if len(maps.parts) > GROUP:
            maps = maps._replace(parts=(maps.joined(),))
        if self.mean is None:
            return maps
        mean = jnp.concatenate([self.mean, other.mean])
        return maps._replace(mean=mean, variance=jnp.concatenate([self.variance, other.variance]))


def _measured(inputs: jax.Array, train: bool) -> Maps:
    if not train:
        return Maps((inputs,), None, None)
    values = inputs.astype(jnp.float32)
    mean = jnp.mean(values, (0, 1, 2))
    return Maps((inputs,), mean, jnp.maximum(jnp.mean(jnp.square(values), (0, 1, 2)) - jnp.square(mean), 0.0))


@jax.custom_vjp
def _normalized(inputs: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """ReLU of `(inputs - mean) * factor + bias`, all but `inputs` float32 `[C]`; keeps nothing but its arguments."""
    return nn.relu(inputs.astype(jnp.float32) * factor + (bias - mean * factor)).astype(inputs.dtype)


def _normalized_forward(inputs, mean, factor, bias):
    return _normalized(inputs, mean, factor, bias), (inputs, mean, factor, bias)


def _normalized_backward(residuals, cotangent):
    inputs, mean, factor, bias = residuals
    values = inputs.astype(jnp.float32)
    # Not the forward pass's expression: XLA would recognise that one and keep its values from there to here.
    upstream = jnp.where((values - mean) * factor + bias > 0.0, cotangent.astype(jnp.float32), 0.0)
    bias_bar = jnp.sum(upstream, (0, 1, 2))
    # The mean is taken off behind the sum: XLA on CPU would write the centred values to memory for it.
    factor_bar = jnp.sum(upstream * values, (0, 1, 2)) - mean * bias_bar
    return (factor * upstream).astype(inputs.dtype), -factor * bias_bar, factor_bar, bias_bar


_normalized.defvjp(_normalized_forward, _normalized_backward)


class JointBatchNorm(BatchNorm):
    """BatchNorm and ReLU of concatenated maps whose mean and variance are known; see `BatchNorm` for the variables."""

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool) -> jax.Array:
        """Gives `[B, H, W, C]`. Nothing is read of the maps' moments unless `train`."""
        shape = (sum(part.shape[-1] for part in maps.parts),)
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, variance = running_mean.value, running_variance.value
        if train:
            mean, variance = maps.mean, maps.variance
            # Without `mutable=["batch_stats"]` a caller asks for batch statistics that leave no trace.
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
                running_variance.value = keep * running_variance.value + (1.0 - keep) * variance
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        outputs = []
        start = 0
        for part in maps.parts:
            here = slice(start, start + part.shape[-1])
            outputs.append(_normalized(part, mean[here], factor[here], bias[here]))
            start = here.stop
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)


@dataclasses.dataclass(frozen=True)
class Form:
    """What the variants differ in: `epsilon` and `momentum` of BatchNorm, `kernel_init` of the convolutions."""

    epsilon: float
    momentum: float
    kernel_init: VarianceScaling

    def conv(self, features: int, window: int, name: str, stride: int = 1) -> Conv:
        """Pads evenly on all sides, without biases."""
        return Conv(features, (window, window), stride, window // 2, kernel_init=self.kernel_init, name=name)

    def norm(self, name: str) -> BatchNorm:
        """BatchNorm and ReLU."""
        return BatchNorm(self.momentum, self.epsilon, activation="relu", name=name)

    def joint_norm(self, name: str) -> JointBatchNorm:
        """The same of several maps."""
        return JointBatchNorm(self.momentum, self.epsilon, activation="relu", name=name)


TORCH = Form(1e-5, 0.9, VarianceScaling(2.0, "fan_in", "normal"))
FORMS = {"timm": TORCH, "torchvision": TORCH, "keras": Form(1.001e-5, 0.99, GLOROT_UNIFORM)}


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to 128 channels, BatchNorm, ReLU, 3x3 convolution to 32."""

    form: Form

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool) -> jax.Array:
        """Gives the new map `[B, H, W, 32]`."""
        outputs = self.form.joint_norm("norm1")(maps, train=train)
        outputs = self.form.conv(BOTTLENECK, 1, "conv1")(outputs)
        outputs = self.form.norm("norm2")(outputs, train=train)
        return self.form.conv(GROWTH, 3, "conv2")(outputs)


class DenseBlock(nn.Module):
    """`depth` dense layers, each of which reads the block's input and all maps before it."""

    depth: int
    form: Form

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> Maps:
        """Takes `[B, H, W, C]`, gives maps of `C + 32 * depth` channels."""
        maps = _measured(inputs, train)
        for index in range(1, self.depth + 1):
            new = DenseLayer(self.form, name=f"denselayer{index}")(maps, train=train)
            maps = maps.append(_measured(new, train))
        return maps


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to half the channels, 2x2 average pool."""

    form: Form

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool) -> jax.Array:
        """Gives `[B, H // 2, W // 2, C // 2]`."""
        outputs = self.form.joint_norm("norm")(maps, train=train)
        return average_pool(self.form.conv(outputs.shape[-1] // 2, 1, "conv")(outputs), 2)


class DenseNet(nn.Module):
    """Backbone: 7x7 stride-2 convolution, 3x3 stride-2 max-pool, dense blocks and transitions, BatchNorm, ReLU, mean.

    Attributes:
      depths: layers in each block.
      form: of the variant.
    """

    depths: tuple[int, ...]
    form: Form

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]` of 29 pixels a side or more.

        Returns:
          Features `[B, 1024, 1664 or 1920]` and the maps `stem`, `denseblock1` ... `denseblock3` and `norm5`, which is
          the last block's behind BatchNorm and ReLU.
        """
        outputs = self.form.conv(2 * GROWTH, 7, "conv0", stride=2)(images)
        outputs = self.form.norm("norm0")(outputs, train=train)
        named = {"stem": outputs}
        # Keras pads with zeros, which is the same behind a ReLU.
        outputs = max_pool(outputs, 3, 2, padding=1)
        for index, depth in enumerate(self.depths, 1):
            maps = DenseBlock(depth, self.form, name=f"denseblock{index}")(outputs, train=train)
            if index < len(self.depths):
                named[f"denseblock{index}"] = maps.joined()
                outputs = Transition(self.form, name=f"transition{index}")(maps, train=train)
        named["norm5"] = outputs = self.form.joint_norm("norm5")(maps, train=train)
        return global_average_pool(outputs), named


def _densenet(depths: tuple[int, ...], variant: str, momentum: float | None) -> DenseNet:
    form = FORMS[variant]
    return DenseNet(depths, form if momentum is None else dataclasses.replace(form, momentum=momentum))


_LAYER = re.compile(r"backbone/denseblock(\d)/denselayer(\d+)/(norm|conv)([12])")
_TRANSITION = re.compile(r"backbone/transition(\d)/(norm|conv)")
_REST = {
    "backbone/conv0": "conv1_conv",
    "backbone/norm0": "conv1_bn",
    "backbone/norm5": "bn",
    "head/logits": "predictions",
}


def _torch_names(modules: Sequence[str]) -> dict[str, str]:
    names = {module: "features." + module.removeprefix("backbone/").replace("/", ".") for module in modules}
    return {module: name for module, name in names.items() if module.startswith("backbone/")} | {
        module: "classifier" for module in modules if module == "head/logits"
    }


def _keras_names(modules: Sequence[str]) -> dict[str, str]:
    kinds = {"conv": "conv", "norm": "bn"}
    names = {}
    for module in modules:
        if layer := _LAYER.fullmatch(module):
            block, index, kind, number = layer.groups()
            # The first BatchNorm has number 0, the second 1.
            names[module] = f"conv{int(block) + 1}_block{index}_{int(number) - (kind == 'norm')}_{kinds[kind]}"
        elif transition := _TRANSITION.fullmatch(module):
            names[module] = f"pool{int(transition[1]) + 1}_{kinds[transition[2]]}"
        elif module in _REST:
            names[module] = _REST[module]
    return names


_NAMES = {"timm": _torch_names, "torchvision": _torch_names, "keras": _keras_names}
Variant = Literal["timm", "torchvision", "keras"]


@register("densenet121", names=_NAMES)
def densenet121(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> DenseNet:
    """121 layers."""
    return _densenet((6, 12, 24, 16), variant, batch_norm_momentum)


@register("densenet169", names=_NAMES)
def densenet169(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> DenseNet:
    """169 layers."""
    return _densenet((6, 12, 32, 32), variant, batch_norm_momentum)


@register("densenet201", names=_NAMES)
def densenet201(variant: Variant = "timm", batch_norm_momentum: float | None = None) -> DenseNet:
    """201 layers."""
    return _densenet((6, 12, 48, 32), variant, batch_norm_momentum)
