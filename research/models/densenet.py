"""How are the densely connected networks of Huang et al. 2017 (arXiv:1608.06993, DenseNet-BC) built?

plain
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.initializers import GLOROT_UNIFORM, VarianceScaling
from research.models.layers import Conv
from research.models.normalization import BatchNorm
from research.models.pooling import average_pool, global_average_pool, max_pool
from research.models.registry import register

GROWTH = 32
BOTTLENECK = 4 * GROWTH
HE = VarianceScaling(2.0, "fan_in", "normal")


class DenseLayer(nn.Module):
    momentum: float
    epsilon: float
    init: VarianceScaling

    @nn.compact
    def __call__(self, inputs, *, train):
        norm = functools.partial(BatchNorm, self.momentum, self.epsilon, activation="relu")
        outputs = norm(name="norm1")(inputs, train=train)
        outputs = Conv(BOTTLENECK, (1, 1), kernel_init=self.init, name="conv1")(outputs)
        outputs = norm(name="norm2")(outputs, train=train)
        return Conv(GROWTH, (3, 3), kernel_init=self.init, name="conv2")(outputs)


class DenseBlock(nn.Module):
    depth: int
    momentum: float
    epsilon: float
    init: VarianceScaling

    @nn.compact
    def __call__(self, inputs, *, train):
        for index in range(1, self.depth + 1):
            layer = DenseLayer(self.momentum, self.epsilon, self.init, name=f"denselayer{index}")
            inputs = jnp.concatenate([inputs, layer(inputs, train=train)], -1)
        return inputs


class Transition(nn.Module):
    momentum: float
    epsilon: float
    init: VarianceScaling

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = BatchNorm(self.momentum, self.epsilon, activation="relu", name="norm")(inputs, train=train)
        outputs = Conv(inputs.shape[-1] // 2, (1, 1), kernel_init=self.init, name="conv")(outputs)
        return average_pool(outputs, 2)


class DenseNet(nn.Module):
    depths: tuple[int, ...]
    momentum: float
    epsilon: float
    init: VarianceScaling

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = Conv(64, (7, 7), 2, 3, kernel_init=self.init, name="conv0")(images)
        outputs = BatchNorm(self.momentum, self.epsilon, activation="relu", name="norm0")(outputs, train=train)
        maps = {"stem": outputs}
        outputs = max_pool(outputs, 3, 2, padding=1)
        for block, depth in enumerate(self.depths, 1):
            outputs = DenseBlock(depth, self.momentum, self.epsilon, self.init, name=f"denseblock{block}")(outputs, train=train)
            if block < len(self.depths):
                maps[f"denseblock{block}"] = outputs
                outputs = Transition(self.momentum, self.epsilon, self.init, name=f"transition{block}")(outputs, train=train)
        outputs = BatchNorm(self.momentum, self.epsilon, activation="relu", name="norm5")(outputs, train=train)
        maps["norm5"] = outputs
        return global_average_pool(outputs), maps


def _torch_names(modules: Sequence[str]) -> dict[str, str]:
    names = {module: module.replace("backbone/", "features.").replace("/", ".") for module in modules if module.startswith("backbone/")}
    return names | ({"head/logits": "classifier"} if "head/logits" in modules else {})


_LAYER = re.compile(r"backbone/denseblock(\d)/denselayer(\d+)/(norm|conv)([12])")
_OTHERS = {"backbone/conv0": "conv1_conv", "backbone/norm0": "conv1_bn", "backbone/norm5": "bn", "head/logits": "predictions"}


def _keras_names(modules: Sequence[str]) -> dict[str, str]:
    kinds = {"conv": "conv", "norm": "bn"}
    names = {}
    for module in modules:
        if layer := _LAYER.fullmatch(module):
            block, index, kind, number = layer.groups()
            names[module] = f"conv{int(block) + 1}_block{index}_{int(number) - (kind == 'norm')}_{kinds[kind]}"
        elif transition := re.fullmatch(r"backbone/transition(\d)/(norm|conv)", module):
            names[module] = f"pool{int(transition[1]) + 1}_{kinds[transition[2]]}"
        elif module in _OTHERS:
            names[module] = _OTHERS[module]
    return names


_NAMES = {"timm": _torch_names, "torchvision": _torch_names, "keras": _keras_names}
Variant = Literal["timm", "torchvision", "keras"]


def _densenet(depths, variant, momentum):
    if variant == "keras":
        return DenseNet(depths, 0.99 if momentum is None else momentum, 1.001e-5, GLOROT_UNIFORM)
    return DenseNet(depths, 0.9 if momentum is None else momentum, 1e-5, HE)


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
