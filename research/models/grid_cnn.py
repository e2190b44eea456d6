"""What is the blood-cell study's network, whose grid of 24 settings makes its Pareto front?

Layers, for the default options, which are the study's first setting:

    conv_1          7x7 convolution, 70, "valid", bias - ReLU - 2x2 max-pool, stride 2
    conv_2          5x5 convolution, 80, "valid", bias - ReLU - 2x2 max-pool, stride 2 - BatchNorm, norm_2 - dropout 0.3
    conv_3          5x5 convolution, 100, as conv_2
    conv_4          3x3 convolution, 140, as conv_2
    conv_5          3x3 convolution, 180, as conv_2
    conv_6          3x3 convolution, 220, as conv_2
                    global average pool
    dense_1         dense layer, 250 - ReLU - BatchNorm, dense_norm_1 - dropout 0.5
    dense_2         dense layer, 300, as dense_1: 300 features
    head            dense layer to the logits

Features are the last dense layer's outputs, or the pooled ones if `dense` is empty. One grey channel and 4 classes make
1,190,254 parameters, 3 channels and 1,000 classes 1,496,910, of which 2,540 are running statistics. The study's
`model_size(MB)` is 4 bytes for each, running statistics included as Keras counts, and 0.10 to 0.18 MB for the rest of a
Keras file: 4 * parameters / 2**20 + 0.10 ... 0.18. With "valid" padding the study's lists of six filters need images
of 206 pixels a side, its list of five 110, with "same" 64 and 32.
"""

import collections
from collections.abc import Sequence

import flax.linen as nn
import jax

from input_pipeline import cli
from research.models.layers import Conv, Dense, Dropout
from research.models.normalization import BatchNorm
from research.models.pooling import average_pool, global_average_pool, max_pool
from research.models.registry import register

ACTIVATIONS = {"relu": nn.relu, "elu": nn.elu, "swish": nn.swish}
POOLS = {"max": max_pool, "average": average_pool}
# The first block with a BatchNorm.
FIRST_NORM = {"study": 2, "every": 1}
CHOICES = {
    "padding": ("valid", "same"),
    "pooling": tuple(POOLS),
    "activation": tuple(ACTIVATIONS),
    "batch_norm": (*FIRST_NORM, "none"),
}


class GridCNN(nn.Module):
    """Backbone, see `grid_cnn` for the attributes of the same names; `kernels` and `strides` have one value per block.

    Attributes:
      momentum: of the BatchNorm layers (epsilon is 1e-3).
    """

    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dense: tuple[int, ...]
    padding: str
    pooling: str
    activation: str
    batch_norm: str
    conv_dropout: float | jax.Array
    dense_dropout: float | jax.Array
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, dense[-1] or filters[-1]]` and the maps `block_1` ... `block_n`.

        Raises:
          UserError: the image is smaller than `smallest_image`.
        """
        self._check_size(*images.shape[1:3])
        activation, pool = ACTIVATIONS[self.activation], POOLS[self.pooling]
        outputs = images
        maps = {}
        for block, (width, kernel, stride) in enumerate(zip(self.filters, self.kernels, self.strides, strict=True), 1):
            conv = Conv(width, (kernel, kernel), stride, self.padding, use_bias=True, name=f"conv_{block}")
            outputs = pool(activation(conv(outputs)), 2)
            if block >= FIRST_NORM.get(self.batch_norm, block + 1):
                outputs = BatchNorm(self.momentum, name=f"norm_{block}")(outputs, train=train)
            if block > 1:
                outputs = Dropout(self.conv_dropout, name=f"dropout_{block}")(outputs, train=train)
            maps[f"block_{block}"] = outputs
        features = global_average_pool(outputs)
        if self.dense:
            features = self._dense_layers(features.astype(images.dtype), train).astype(features.dtype)
        return features, maps

    def _dense_layers(self, features: jax.Array, train: bool) -> jax.Array:
        for index, width in enumerate(self.dense, 1):
            features = ACTIVATIONS[self.activation](Dense(width, name=f"dense_{index}")(features))
            if self.batch_norm != "none":
                features = BatchNorm(self.momentum, name=f"dense_norm_{index}")(features, train=train)
            features = Dropout(self.dense_dropout, name=f"dense_dropout_{index}")(features, train=train)
        return features

    def _check_size(self, height: int, width: int) -> None:
        needed = smallest_image(self.kernels, self.strides, self.padding)
        if min(height, width) < needed:
            remedy = 'set padding to "same" or choose' if self.padding == "valid" else "choose"
            raise cli.UserError(
                f'grid_cnn with {len(self.filters)} blocks, kernels {self.kernels} and padding "{self.padding}" needs '
                f"images of at least {needed}x{needed} pixels, not {height}x{width}; choose a larger image_size, or "
                f"{remedy} fewer blocks."
            )


def smallest_image(kernels: Sequence[int], strides: Sequence[int], padding: str) -> int:
    """Side in pixels of the smallest square image of which one pixel is left after the last block's pool."""
    side = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        side = (2 * side - 1) * stride + (kernel if padding == "valid" else 1)
    return side


def keras_names(modules: Sequence[str]) -> dict[str, str]:
    """As Keras numbers the layers of the study's script: `conv2d`, `conv2d_1` ...; the last dense layer is the head."""
    names, counts = {}, collections.Counter()
    for module in modules:
        if module.startswith("backbone/") or module == "head/logits":
            layer = "conv2d" if "/conv" in module else "batch_normalization" if "norm" in module else "dense"
            names[module] = f"{layer}_{counts[layer]}" if counts[layer] else layer
            counts[layer] += 1
    return names


def _per_block(values: int | Sequence[int], blocks: int, option: str) -> tuple[int, ...]:
    """One value per block, of a longer list the first ones, as the study's `zip(filters, kernels)`."""
    values = (values,) * blocks if isinstance(values, int) else tuple(values)
    if len(values) < blocks or min(values) < 1:
        raise cli.UserError(
            f"grid_cnn has {blocks} filters but {option} {values}; give one positive number, or one for every filter."
        )
    return values[:blocks]


@register("grid_cnn", names={"keras": keras_names}, widths=("filters", "dense"))
def grid_cnn(
    filters: Sequence[int] = (70, 80, 100, 140, 180, 220),
    kernels: int | Sequence[int] = (7, 5, 5, 3, 3, 3),
    dense: Sequence[int] = (250, 300),
    padding: str = "valid",
    pooling: str = "max",
    strides: int | Sequence[int] = 1,
    activation: str = "relu",
    batch_norm: str = "study",
    conv_dropout: float | jax.Array = 0.3,
    dense_dropout: float | jax.Array = 0.5,
    batch_norm_momentum: float = 0.99,
) -> GridCNN:
    """The network of the module's docstring with other numbers.

    Args:
      filters: of each block's convolution.
      kernels: side of each block's window; one for all, or a list, of which a shorter `filters` uses the first ones.
      dense: units of the dense layers, none if empty.
      padding: of the convolutions, "valid" or "same".
      pooling: "max" or "average".
      strides: of each block's convolution, as `kernels`.
      activation: "relu", "elu" or "swish", after every convolution and dense layer.
      batch_norm: "study" (from block 2 on and in the dense layers), "every" (in block 1 as well) or "none".
      conv_dropout: rate from block 2 on; may be traced.
      dense_dropout: rate after the dense layers; may be traced.
      batch_norm_momentum: Keras's default; runs of a few hundred steps do better with 0.9.

    Raises:
      UserError: an option that is none of these.
    """
    chosen = {"padding": padding, "pooling": pooling, "activation": activation, "batch_norm": batch_norm}
    for option, value in chosen.items():
        if value not in CHOICES[option]:
            raise cli.UserError(f"grid_cnn has no {option} {value!r}; choose one of {', '.join(CHOICES[option])}.")
    if not filters or min((*filters, *dense)) < 1:
        raise cli.UserError(
            f"grid_cnn cannot have filters {tuple(filters)} and dense {tuple(dense)}; "
            "give at least one filter and positive numbers."
        )
    blocks = len(filters)
    return GridCNN(
        filters=tuple(filters),
        kernels=_per_block(kernels, blocks, "kernels"),
        strides=_per_block(strides, blocks, "strides"),
        dense=tuple(dense),
        **chosen,
        conv_dropout=conv_dropout,
        dense_dropout=dense_dropout,
        momentum=batch_norm_momentum,
    )
