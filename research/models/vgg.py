"""How are the networks of Simonyan and Zisserman 2015 (arXiv:1409.1556, D and E) built, and how does each library end?

Five blocks of 3x3 convolutions with biases, each followed by a 2x2 max-pool, then dense layers of 4,096 units, `fc1`
and `fc2`. They are kept as convolutions, `fc1` with kernel `[7, 7, 512, 4096]`, and the variants differ in its input:

* `timm`: a map smaller than 7x7 is pooled up to 7x7 (below 224 pixels a side); on a larger one `fc1` and `fc2` slide,
  and the mean over their positions follows.
* `torchvision`: every map is pooled to 7x7. Both pools are PyTorch's `adaptive_average_pool`.
* `keras`: the map as it is, so that `fc1` and the number of parameters depend on the image size. No BatchNorm.

`top=False` leaves the dense layers out: the 512 features are the mean of the last map. With `head_pool` "max" or
"flatten", which read that map as well, leave them out too. The paper drops half of the activations behind `fc1` and
`fc2`: that is `dropout=0.5` and the head's `head_dropout=0.5`; both are 0 by default.

Parameters with 1,000 classes, three channels and, for Keras, 224 px: vgg16 138,357,544; vgg19 143,667,240; vgg16_bn
138,365,992 (138,374,440 with running statistics); vgg19_bn 143,678,248 (143,689,256). With `top=False` and without the
head: 14,714,688; 20,024,384; 14,723,136; 20,035,392. BatchNorm has epsilon 1e-5 and keeps 0.9 of its statistics.

Names: `block3_conv1`, `fc1`, `fc2` as in Keras, where `head/logits` is `predictions`. PyTorch counts all layers:
`block3_conv1` is `features.10`, and its BatchNorm `block3_norm1` the number behind; the dense layers are
`pre_logits.fc1`, `pre_logits.fc2` and `head.fc` in timm, `classifier.0`, `.3` and `.6` in torchvision.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.models.initializers import GLOROT_UNIFORM, HE_NORMAL_FAN_OUT, VarianceScaling
from research.models.layers import Conv, Dropout
from research.models.normalization import BatchNorm
from research.models.pooling import global_average_pool, max_pool
from research.models.registry import register

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS_16 = (2, 2, 3, 3, 3)
DEPTHS_19 = (2, 2, 4, 4, 4)
HIDDEN = 4096
GRID = 7  # pixels a side of the last map of an image of 224 pixels


def _bins(size: int, bins: int) -> np.ndarray:
    """Weights `[bins, size]` of the pixels in each mean; i spans floor(i size / bins) to ceil((i + 1) size / bins)."""
    weights = np.zeros((bins, size))
    for index in range(bins):
        start, stop = index * size // bins, -(-(index + 1) * size // bins)
        weights[index, start:stop] = 1.0 / (stop - start)
    return weights


def adaptive_average_pool(inputs: jax.Array, sizes: tuple[int, int]) -> jax.Array:
    """Means over a grid of windows that cover the map, overlapping or repeating where sizes do not divide.

    PyTorch's `adaptive_avg_pool2d`, for maps larger and smaller than the grid.

    Args:
      inputs: `[B, H, W, C]`.
      sizes: h and w of the grid.

    Returns:
      `[B, h, w, C]`.
    """
    outputs = inputs.astype(jnp.float32)
    for axis, equation in ((1, "bhwc,ih->biwc"), (2, "bhwc,iw->bhic")):
        if inputs.shape[axis] != sizes[axis - 1]:
            weights = jnp.asarray(_bins(inputs.shape[axis], sizes[axis - 1]), jnp.float32)
            # The weights are thirds and sevenths: accelerators must not round them for their matrix units.
            outputs = jnp.einsum(equation, outputs, weights, precision=jax.lax.Precision.HIGHEST)
    return outputs.astype(inputs.dtype)


def _dense_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal with a standard deviation of 0.01, PyTorch's for VGG's dense layers."""
    return VarianceScaling(1e-4 * math.prod(shape[:-1]), "fan_in", "normal")(key, shape)


class VGG(nn.Module):
    """Backbone.

    Attributes:
      depths: convolutions in each of the five blocks.
      batch_norm: whether a BatchNorm follows each convolution.
      variant: see the module's docstring.
      top: whether there are dense layers.
      dropout: rate behind `fc1`; may be traced.
      momentum: of the BatchNorm layers.
    """

    depths: tuple[int, ...]
    batch_norm: bool
    variant: str
    top: bool
    dropout: float | jax.Array
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]` of 32 pixels a side or more.

        Returns:
          Features `[B, 4096]`, or `[B, 512]` without `top`, and the maps `block1` ... `block5`, before their max-pools,
          and `pool5`.
        """
        init = GLOROT_UNIFORM if self.variant == "keras" else HE_NORMAL_FAN_OUT
        outputs = images
        maps = {}
        for block, (width, depth) in enumerate(zip(WIDTHS, self.depths, strict=True), 1):
            for index in range(1, depth + 1):
                conv = Conv(width, use_bias=True, kernel_init=init, name=f"block{block}_conv{index}")
                outputs = conv(outputs)
                if self.batch_norm:
                    norm = BatchNorm(self.momentum, 1e-5, activation="relu", name=f"block{block}_norm{index}")
                    outputs = norm(outputs, train=train)
                else:
                    outputs = nn.relu(outputs)
            maps[f"block{block}"] = outputs
            outputs = max_pool(outputs, 2)
        maps["pool5"] = outputs
        if self.top:
            outputs = self._dense(outputs, train)
        return global_average_pool(outputs), maps

    def _dense(self, outputs: jax.Array, train: bool) -> jax.Array:
        """`[B, h, w, 512]` to `[B, h', w', 4096]`, where h' and w' are 1 except for large images in `timm`."""
        window = (GRID, GRID)
        init = _dense_init
        if self.variant == "keras":
            window = outputs.shape[1:3]
            init = GLOROT_UNIFORM
        elif self.variant == "torchvision":
            outputs = adaptive_average_pool(outputs, window)
        else:
            outputs = adaptive_average_pool(outputs, tuple(max(GRID, size) for size in outputs.shape[1:3]))
        outputs = nn.relu(Conv(HIDDEN, window, 1, "valid", True, init, name="fc1")(outputs))
        outputs = Dropout(self.dropout, name="dropout")(outputs, train=train)
        return nn.relu(Conv(HIDDEN, (1, 1), 1, "valid", True, init, name="fc2")(outputs))


_LAYER = re.compile(r"backbone/block(\d)_(conv|norm)(\d)")
_DENSE = {
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "keras": ("fc1", "fc2", "predictions"),
}


def _names(library: str, modules: Sequence[str]) -> dict[str, str]:
    layers = {module: match for module in modules if (match := _LAYER.fullmatch(module))}
    # PyTorch's `features` is one sequence: per convolution itself, its BatchNorm and its ReLU, per block a max-pool.
    length = 3 if any(match[2] == "norm" for match in layers.values()) else 2
    order = sorted({(int(match[1]), int(match[3])) for match in layers.values()})
    names = {}
    for module, match in layers.items():
        block, kind, index = int(match[1]), match[2], int(match[3])
        position = length * order.index((block, index)) + block - 1 + (kind == "norm")
        names[module] = f"block{block}_conv{index}" if library == "keras" else f"features.{position}"
    dense = zip(("backbone/fc1", "backbone/fc2", "head/logits"), _DENSE[library], strict=True)
    return names | {module: name for module, name in dense if module in modules}


def timm_names(modules: Sequence[str]) -> dict[str, str]:
    """See `registry.Names`."""
    return _names("timm", modules)


def torchvision_names(modules: Sequence[str]) -> dict[str, str]:
    """See `registry.Names`."""
    return _names("torchvision", modules)


def keras_names(modules: Sequence[str]) -> dict[str, str]:
    """See `registry.Names`."""
    return _names("keras", modules)


_TORCH_NAMES = {"timm": timm_names, "torchvision": torchvision_names}
_NAMES = {**_TORCH_NAMES, "keras": keras_names}
Rate = float | jax.Array


@register("vgg16", names=_NAMES)
def vgg16(variant: Literal["timm", "torchvision", "keras"] = "timm", top: bool = True, dropout: Rate = 0.0) -> VGG:
    """13 convolutions and, with the logits, 3 dense layers."""
    return VGG(DEPTHS_16, False, variant, top, dropout, 0.9)


@register("vgg19", names=_NAMES)
def vgg19(variant: Literal["timm", "torchvision", "keras"] = "timm", top: bool = True, dropout: Rate = 0.0) -> VGG:
    """16 convolutions and, with the logits, 3 dense layers."""
    return VGG(DEPTHS_19, False, variant, top, dropout, 0.9)


@register("vgg16_bn", names=_TORCH_NAMES)
def vgg16_bn(
    variant: Literal["timm", "torchvision"] = "timm",
    top: bool = True,
    dropout: Rate = 0.0,
    batch_norm_momentum: float | None = None,
) -> VGG:
    """`vgg16` with BatchNorm."""
    return VGG(DEPTHS_16, True, variant, top, dropout, 0.9 if batch_norm_momentum is None else batch_norm_momentum)


@register("vgg19_bn", names=_TORCH_NAMES)
def vgg19_bn(
    variant: Literal["timm", "torchvision"] = "timm",
    top: bool = True,
    dropout: Rate = 0.0,
    batch_norm_momentum: float | None = None,
) -> VGG:
    """`vgg19` with BatchNorm."""
    return VGG(DEPTHS_19, True, variant, top, dropout, 0.9 if batch_norm_momentum is None else batch_norm_momentum)
