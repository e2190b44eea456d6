"""What is Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567), as timm, torchvision and Keras build it?

Three forms that differ in little:

                          timm, torchvision       keras
    BatchNorm             scale, momentum 0.9     no scale, momentum 0.99 (epsilon is 1e-3 in all)
    3x3 mean in a module  padding counts as 0     padding is not counted
    parameters            23,834,568              23,851,784, of which 34,432 are running statistics

Parameters are those with 1,000 classes, counted as each library counts: PyTorch leaves running statistics out. timm
and torchvision build the same graph with the same names; `tf_inception_v3`, `adv_inception_v3` and
`gluon_inception_v3` are earlier names of timm for weights of it. torchvision's second classifier (`AuxLogits`, at
`mixed_6e`) is not built: it serves training only.

Modules are named as timm's in lower case (`Mixed_5b.branch5x5_1.conv` is `mixed_5b/branch5x5_1/conv`, `bn` is `norm`);
Keras numbers its layers in the order of the calls here. Keras's `mixed2`, `mixed7`, `mixed10` are the feature maps
`mixed_5d`, `mixed_6e`, `mixed_7c`. Images need 75 pixels a side.

Weights and preprocessing: Keras's, torchvision's and timm's (but for gluon's: ImageNet's mean and deviation) come from
TensorFlow and want pixels in [-1, 1]: mean 0.5, deviation 0.5. torchvision's own way there is a detour: images by
ImageNet's mean and deviation, and `transform_input=True` in the network, which turns them into [-1, 1].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import ConvBatchNorm
from research.models.pooling import average_pool, global_average_pool, max_pool
from research.models.registry import register

# A module's plan: name of a branch and its convolutions, (filters, window) with optionally (stride, padding). A pair of
# windows stands for two convolutions side by side, `_2a` and `_2b`, whose outputs are concatenated.
ONE = (1, 1)
THREE = (3, 3)
SIDE_BY_SIDE = ((1, 3), (3, 1))
REDUCE = (2, "valid")


def _mixed_5(pool_features: int) -> tuple:
    return (
        ("branch1x1", ((64, ONE),)),
        ("branch5x5", ((48, ONE), (64, (5, 5)))),
        ("branch3x3dbl", ((64, ONE), (96, THREE), (96, THREE))),
        ("branch_pool", ((pool_features, ONE),)),
    )


def _mixed_6(width: int) -> tuple:
    row, column = (1, 7), (7, 1)
    return (
        ("branch1x1", ((192, ONE),)),
        ("branch7x7", ((width, ONE), (width, row), (192, column))),
        ("branch7x7dbl", ((width, ONE), (width, column), (width, row), (width, column), (192, row))),
        ("branch_pool", ((192, ONE),)),
    )


MIXED_7 = (
    ("branch1x1", ((320, ONE),)),
    ("branch3x3", ((384, ONE), (384, SIDE_BY_SIDE))),
    ("branch3x3dbl", ((448, ONE), (384, THREE), (384, SIDE_BY_SIDE))),
    ("branch_pool", ((192, ONE),)),
)
MODULES = {
    "mixed_5b": _mixed_5(32),
    "mixed_5c": _mixed_5(64),
    "mixed_5d": _mixed_5(64),
    "mixed_6a": (
        ("branch3x3", ((384, THREE, *REDUCE),)),
        ("branch3x3dbl", ((64, ONE), (96, THREE), (96, THREE, *REDUCE))),
    ),
    "mixed_6b": _mixed_6(128),
    "mixed_6c": _mixed_6(160),
    "mixed_6d": _mixed_6(160),
    "mixed_6e": _mixed_6(192),
    "mixed_7a": (
        ("branch3x3", ((192, ONE), (320, THREE, *REDUCE))),
        ("branch7x7x3", ((192, ONE), (192, (1, 7)), (192, (7, 1)), (192, THREE, *REDUCE))),
    ),
    "mixed_7b": MIXED_7,
    "mixed_7c": MIXED_7,
}
LAST_OF_ITS_SIZE = ("mixed_5d", "mixed_6e", "mixed_7c")


class Mixed(nn.Module):
    """Concatenated branches: convolutions after a 3x3 mean (`branch_pool`), or else a 3x3 maximum with stride 2."""

    plan: tuple
    count_padding: bool
    layer: Callable[..., nn.Module]

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Takes `[B, H, W, C]`; keeps the size with a `branch_pool`, halves it (rounding down) without."""
        outputs = []
        for branch, convolutions in self.plan:
            pools = branch == "branch_pool"
            values = average_pool(inputs, 3, 1, 1, count_padding=self.count_padding) if pools else inputs
            for position, (features, window, *rest) in enumerate(convolutions, 1):
                name = branch if len(convolutions) == 1 else f"{branch}_{position}"
                if window == SIDE_BY_SIDE:
                    layers = [self.layer(features, window[i], name=name + "ab"[i]) for i in (0, 1)]
                    values = jnp.concatenate([layer(values, train=train) for layer in layers], -1)
                else:
                    values = self.layer(features, window, *rest, name=name)(values, train=train)
            outputs.append(values)
        if self.plan[-1][0] != "branch_pool":
            outputs.append(max_pool(inputs, 3, 2))
        return jnp.concatenate(outputs, -1)


class InceptionV3(nn.Module):
    """Backbone.

    Attributes:
      momentum: of the BatchNorm layers.
      use_scale: whether they have a scale.
      count_padding: whether the mean in a module counts its padding.
    """

    momentum: float
    use_scale: bool
    count_padding: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, 2048]` and five maps, strides about 2 to 32."""
        layer = functools.partial(_conv_batch_norm, self.momentum, self.use_scale)
        maps = {}
        outputs = layer(32, THREE, *REDUCE, name="conv2d_1a_3x3")(images, train=train)
        outputs = layer(32, THREE, 1, "valid", name="conv2d_2a_3x3")(outputs, train=train)
        outputs = maps["conv2d_2b_3x3"] = layer(64, THREE, name="conv2d_2b_3x3")(outputs, train=train)
        outputs = max_pool(outputs, 3, 2)
        outputs = layer(80, ONE, name="conv2d_3b_1x1")(outputs, train=train)
        outputs = maps["conv2d_4a_3x3"] = layer(192, THREE, 1, "valid", name="conv2d_4a_3x3")(outputs, train=train)
        outputs = max_pool(outputs, 3, 2)
        for name, plan in MODULES.items():
            outputs = Mixed(plan, self.count_padding, layer, name=name)(outputs, train=train)
            if name in LAST_OF_ITS_SIZE:
                maps[name] = outputs
        return global_average_pool(outputs), maps


def _conv_batch_norm(momentum, use_scale, features, window, stride=1, padding="same", *, name):
    return ConvBatchNorm(features, window, stride, padding, momentum, epsilon=1e-3, use_scale=use_scale, name=name)


def torch_names(modules: Sequence[str]) -> dict[str, str]:
    """`backbone/mixed_5b/branch1x1/norm` to `Mixed_5b.branch1x1.bn`."""
    names = {"head/logits": "fc"}
    for module in modules:
        if module.startswith("backbone/"):
            name = module.removeprefix("backbone/").replace("/", ".")
            names[module] = (name[0].upper() + name[1:]).removesuffix("norm") + ("bn" if name.endswith("norm") else "")
    return names


def keras_names(modules: Sequence[str]) -> dict[str, str]:
    """The n-th convolution to `conv2d_n`, the n-th BatchNorm to `batch_normalization_n`; the first have no number."""
    names = {"head/logits": "predictions"}
    for suffix, layer in (("/conv", "conv2d"), ("/norm", "batch_normalization")):
        found = [module for module in modules if module.startswith("backbone/") and module.endswith(suffix)]
        names.update({module: f"{layer}_{index}" if index else layer for index, module in enumerate(found)})
    return names


@register(
    "inception_v3",
    names={"timm": torch_names, "torchvision": torch_names, "keras": keras_names},
    aliases={"tf_inception_v3": "timm", "adv_inception_v3": "timm", "gluon_inception_v3": "timm"},
    ignored=(r"^AuxLogits\.",),
)
def inception_v3(
    variant: Literal["timm", "torchvision", "keras"] = "timm", batch_norm_momentum: float | None = None
) -> InceptionV3:
    """The variants are compared in the module's docstring."""
    torch = variant != "keras"
    momentum = (0.9 if torch else 0.99) if batch_norm_momentum is None else batch_norm_momentum
    return InceptionV3(momentum, use_scale=torch, count_padding=torch)
