"""What are the EfficientNets b0 to b7, and in which forms do timm, torchvision and Keras build them?

Tan and Le 2019 (arXiv:1905.11946): a stem, seven stages of inverted residual blocks (Sandler et al. 2018,
arXiv:1801.04381) with squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507) to a quarter of the block's input
channels, a 1x1 convolution, a mean; swish throughout. A size scales the widths, rounded to multiples of 8 and never
down by more than a tenth, and the depths, rounded up. Parameters with 1,000 classes in any variant, parameters and
running statistics, and what the papers and libraries train with (the dropout is `head_dropout` here):

    size   parameters   with statistics   image size   dropout   width, depth
    b0      5,288,548         5,330,564          224       0.2   1.0, 1.0
    b1      7,794,184         7,856,232          240       0.2   1.0, 1.1
    b2      9,109,994         9,177,562          260       0.3   1.1, 1.2
    b3     12,233,232        12,320,528          300       0.3   1.2, 1.4
    b4     19,341,616        19,466,816          380       0.4   1.4, 1.8
    b5     30,389,784        30,562,520          456       0.4   1.6, 2.2
    b6     43,040,704        43,265,136          528       0.5   1.8, 2.6
    b7     66,347,960        66,658,680          600       0.5   2.0, 3.1

All sizes train with `drop_path=0.2`: block i of n, counted from 0, is skipped at a rate of 0.2 i / n.

The variants hold the same parameters and differ in these points:

    variant       padding   epsilon               momentum             images
    timm          PyTorch   1e-5                  0.9                  (x / 255 - mean) / std
    torchvision   PyTorch   1e-5; b5 to b7 1e-3   0.9; b5 to b7 0.99   (x / 255 - mean) / std
    tf            "same"    1e-3                  0.9                  (x / 255 - mean) / std; AdvProp 0.5, 0.5
    keras         "same"    1e-3                  0.99                 0 ... 255

"tf" is timm's `tf_efficientnet_*`, with weights from Google's files. "keras" starts with the input layers of
`keras.applications`, see `InputNormalization`; its mean and variance are six more statistics (with three channels), and
Keras counts a seventh, the number of batches that they were taken from.

The third block of the fifth stage is `block5_2`, timm `blocks.4.2`, torchvision `features.5.2`, Keras `block5c`. In it
are `expand` (not in stage 1), `depthwise` and `depthwise_norm`, `se_reduce`, `se_expand`, `project`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models.initializers import HE_NORMAL_FAN_OUT, VarianceScaling
from research.models.layers import Conv, ConvBatchNorm, DepthwiseConv, DropPath
from research.models.normalization import BatchNorm
from research.models.pooling import Padding, global_average_pool
from research.models.registry import register

Variant = Literal["timm", "torchvision", "tf", "keras"]

# (width, depth) multipliers.
SIZES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
# Per stage, for b0: blocks, window of the depthwise convolutions, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# As TensorFlow's code and timm: variance 2 / outputs of a weight, where an input of a depthwise convolution has one
# output per position in the window.
KERNEL_INIT = HE_NORMAL_FAN_OUT
DEPTHWISE_INIT = VarianceScaling(2.0, "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class Form:
    """In what a variant differs.

    Attributes:
      same: whether images are padded as TensorFlow's "same", or evenly on all sides.
      epsilon, momentum: of the BatchNorm layers.
      normalizes: whether there is an `InputNormalization`.
    """

    same: bool
    epsilon: float
    momentum: float
    normalizes: bool = False

    def padding(self, window: int) -> Padding:
        """Of a convolution."""
        return "same" if self.same else window // 2


FORMS = {
    "timm": Form(False, 1e-5, 0.9),
    "torchvision": Form(False, 1e-5, 0.9),
    "tf": Form(True, 1e-3, 0.9),
    "keras": Form(True, 1e-3, 0.99, normalizes=True),
}
# torchvision gives these sizes the arguments of the weights that it took over.
TORCHVISION_LARGE = Form(False, 1e-3, 0.99)


class InputNormalization(nn.Module):
    """Keras's layers Rescaling(1 / 255) and Normalization: `(x / 255 - mean) / sqrt(var)`.

    `mean` and `var` (collection `batch_stats`, float32 `[C]`) come with the weights and never move; without weights
    they are 0 and 1, as in Keras. Keras's own ImageNet files are a special case: their "variance" is the standard
    deviation 0.229, 0.224, 0.225, and with `weights="imagenet"` Keras divides by its root once more in a second
    Rescaling. `var` must then be the square of what the file holds (tensorflow/tensorflow issue 49930).
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Takes `[B, H, W, C]`, 0 to 255; same shape and type out."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, images.shape[-1:]).value
        variance = self.variable("batch_stats", "var", jnp.ones, images.shape[-1:]).value
        # 1e-7 is keras.config.epsilon().
        deviation = jnp.maximum(jnp.sqrt(variance), 1e-7)
        return ((images.astype(jnp.float32) / 255.0 - mean) / deviation).astype(images.dtype)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, squeeze-and-excitation, 1x1 convolution to fewer.

    Attributes:
      form: the variant.
      momentum: of the BatchNorm layers.
      features: channels of the output.
      window: side of the depthwise convolution's window.
      stride: of the depthwise convolution.
      expansion: channels in the block per channel of the input; at 1 there is no first convolution.
      drop_path: rate at which an example skips the block, if the block has a shortcut; may be traced.
    """

    form: Form
    momentum: float
    features: int
    window: int
    stride: int
    expansion: int
    drop_path: float | jax.Array

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Takes `[B, H, W, C]`.

        Returns:
          The output `[B, ceil(H / stride), ceil(W / stride), features]`, and the expanded input
          `[B, H, W, expansion * C]`.
        """
        form, channels = self.form, inputs.shape[-1]
        layer = functools.partial(_conv_batch_norm, form, self.momentum)
        expanded = inputs
        if self.expansion != 1:
            expanded = layer(channels * self.expansion, 1, name="expand")(inputs, train=train)
        depthwise = DepthwiseConv(
            (self.window,) * 2, self.stride, form.padding(self.window), kernel_init=DEPTHWISE_INIT, name="depthwise"
        )
        norm = BatchNorm(self.momentum, form.epsilon, activation="swish", name="depthwise_norm")
        outputs = norm(depthwise(expanded), train=train)
        outputs = outputs * _gate(outputs, channels // 4)
        outputs = layer(self.features, 1, activation="none", name="project")(outputs, train=train)
        if self.stride == 1 and channels == self.features:
            outputs = inputs + DropPath(self.drop_path, name="drop_path")(outputs, train=train)
        return outputs, expanded


def _gate(inputs: jax.Array, squeezed: int) -> jax.Array:
    """Squeeze-and-excitation in the calling module: from `[B, H, W, C]` a factor `[B, 1, 1, C]` between 0 and 1."""
    conv = functools.partial(Conv, window=(1, 1), use_bias=True, kernel_init=KERNEL_INIT)
    means = global_average_pool(inputs).astype(inputs.dtype)[:, None, None, :]
    hidden = nn.swish(conv(squeezed, name="se_reduce")(means))
    return nn.sigmoid(conv(inputs.shape[-1], name="se_expand")(hidden))


def _conv_batch_norm(
    form: Form, momentum: float, features: int, window: int, stride: int = 1, activation: str = "swish", *, name: str
) -> ConvBatchNorm:
    return ConvBatchNorm(
        features,
        (window, window),
        stride,
        form.padding(window),
        momentum,
        form.epsilon,
        activation=activation,
        kernel_init=KERNEL_INIT,
        name=name,
    )


class EfficientNet(nn.Module):
    """Backbone.

    Attributes:
      form: the variant.
      momentum: of the BatchNorm layers.
      width, depth: multipliers of the channels and blocks.
      drop_path: rate of stochastic depth that block i of n has i / n of, as in all three libraries; may be traced.
      stages: how many of the seven there are, 0 = all; with fewer the 1x1 convolution at the top is left out as well.
      extra_conv: channels of a 3x3 convolution with ReLU behind the last stage, in the place of that one; 0 = none.
    """

    form: Form
    momentum: float
    width: float
    depth: float
    drop_path: float | jax.Array = 0.0
    stages: int = 0
    extra_conv: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, F]`, F = 1280 times the width multiplier, and maps.

        The maps are the output of each stage, `block1` to `block7` (strides 2, 4, 8, 16, 16, 32, 32), before each
        reduction the expanded input of the block that reduces, `block2_0_expand`, `block3_0_expand`, `block4_0_expand`
        and `block6_0_expand` (strides 2, 4, 8, 16), and `top` (32), which is pooled. A U-Net decoder takes the expanded
        inputs, Keras's `block6a_expand_activation` and so on. `block5` is Keras's `block5c_add` in b0. With
        `extra_conv` that map is the last one, and pooled.

        Raises:
          UserError: an impossible number of stages.
        """
        kept = self.stages or len(STAGES)
        if not 0 < kept <= len(STAGES):
            raise UserError(f"an EfficientNet has 1 to {len(STAGES)} stages, not {self.stages}; change model.options.")
        layer = functools.partial(_conv_batch_norm, self.form, self.momentum)
        if self.form.normalizes:
            images = InputNormalization(name="normalization")(images)
        outputs = layer(scaled_width(32, self.width), 3, 2, name="stem")(images, train=train)
        depths = [scaled_depth(blocks, self.depth) for blocks, *_ in STAGES]
        maps = {}
        for stage, (_, window, first_stride, expansion, channels) in enumerate(STAGES[:kept], 1):
            for index in range(depths[stage - 1]):
                stride = first_stride if index == 0 else 1
                before = sum(depths[: stage - 1]) + index
                block = InvertedResidual(
                    self.form,
                    self.momentum,
                    scaled_width(channels, self.width),
                    window,
                    stride,
                    expansion,
                    self.drop_path * (before / sum(depths)),
                    name=f"block{stage}_{index}",
                )
                outputs, expanded = block(outputs, train=train)
                if stride == 2:
                    maps[f"block{stage}_0_expand"] = expanded
            maps[f"block{stage}"] = outputs
        if self.extra_conv:
            conv = Conv(self.extra_conv, (3, 3), padding=1, use_bias=True, name="extra_conv")
            outputs = maps["extra_conv"] = nn.relu(conv(outputs))
        elif kept == len(STAGES):
            outputs = maps["top"] = layer(scaled_width(1280, self.width), 1, name="top")(outputs, train=train)
        return global_average_pool(outputs), maps


def scaled_width(channels: int, multiplier: float) -> int:
    """Channels times the multiplier, rounded to a multiple of 8 that is no smaller than nine tenths of it."""
    wanted = channels * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def scaled_depth(blocks: int, multiplier: float) -> int:
    """Blocks times the multiplier, rounded up."""
    return math.ceil(blocks * multiplier)


# Names in other libraries. A pattern's groups are the stage and the block.
_BLOCK = re.compile(r"backbone/block(\d)_(\d+)/(.+)")
_TIMM = {"stem/conv": "conv_stem", "stem/norm": "bn1", "top/conv": "conv_head", "top/norm": "bn2"}
_TIMM_BLOCK = {
    "expand/conv": "conv_pw",
    "expand/norm": "bn1",
    "depthwise": "conv_dw",
    "depthwise_norm": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project/conv": "conv_pwl",
    "project/norm": "bn3",
}
# timm has another kind of block without expansion.
_TIMM_FIRST_STAGE = {"depthwise_norm": "bn1", "project/conv": "conv_pw", "project/norm": "bn2"}
_TORCHVISION = {
    "stem/conv": "features.0.0",
    "stem/norm": "features.0.1",
    "top/conv": "features.8.0",
    "top/norm": "features.8.1",
}
# Position in the block, counted from the expansion, and the name behind it.
_TORCHVISION_BLOCK = {
    "expand/conv": (0, "0"),
    "expand/norm": (0, "1"),
    "depthwise": (1, "0"),
    "depthwise_norm": (1, "1"),
    "se_reduce": (2, "fc1"),
    "se_expand": (2, "fc2"),
    "project/conv": (3, "0"),
    "project/norm": (3, "1"),
}
_KERAS = {
    "normalization": "normalization",
    "stem/conv": "stem_conv",
    "stem/norm": "stem_bn",
    "top/conv": "top_conv",
    "top/norm": "top_bn",
}
_KERAS_BLOCK = {
    "expand/conv": "expand_conv",
    "expand/norm": "expand_bn",
    "depthwise": "dwconv",
    "depthwise_norm": "bn",
    "se_reduce": "se_reduce",
    "se_expand": "se_expand",
    "project/conv": "project_conv",
    "project/norm": "project_bn",
}


def _timm_block(stage: int, index: int, part: str) -> str:
    names = _TIMM_BLOCK | _TIMM_FIRST_STAGE if stage == 1 else _TIMM_BLOCK
    return f"blocks.{stage - 1}.{index}.{names[part]}"


def _torchvision_block(stage: int, index: int, part: str) -> str:
    position, name = _TORCHVISION_BLOCK[part]
    return f"features.{stage}.{index}.block.{position - (stage == 1)}.{name}"


def _keras_block(stage: int, index: int, part: str) -> str:
    return f"block{stage}{chr(ord('a') + index)}_{_KERAS_BLOCK[part]}"


def _names(single: dict[str, str], head: str, block, modules: Sequence[str]) -> dict[str, str]:
    known = {f"backbone/{module}": name for module, name in single.items()} | {"head/logits": head}
    result = {}
    for module in modules:
        if match := _BLOCK.fullmatch(module):
            result[module] = block(int(match[1]), int(match[2]), match[3])
        elif module in known:
            result[module] = known[module]
    return result


NAMES = {
    "timm": functools.partial(_names, _TIMM, "classifier", _timm_block),
    "torchvision": functools.partial(_names, _TORCHVISION, "classifier.1", _torchvision_block),
    "keras": functools.partial(_names, _KERAS, "predictions", _keras_block),
}


def _builder(size: str):
    width, depth = SIZES[size]

    aliases = {f"tf_efficientnet_{size}": "tf"}

    @register(f"efficientnet_{size}", names=NAMES, aliases=aliases, additions=("^backbone/extra_conv$",))
    def build(
        variant: Variant = "timm",
        batch_norm_momentum: float | None = None,
        drop_path: float | jax.Array = 0.0,
        stages: int = 0,
        extra_conv: int = 0,
    ) -> EfficientNet:
        """Options: whose form, momentum of the BatchNorm layers (None: the variant's), rate of stochastic depth, and
        a cut: `stages=5, extra_conv=512` is the classifier that the pneumonia study makes of a U-Net's encoder."""
        form = FORMS[variant]
        if variant == "torchvision" and size in ("b5", "b6", "b7"):
            form = TORCHVISION_LARGE
        momentum = form.momentum if batch_norm_momentum is None else batch_norm_momentum
        return EfficientNet(form, momentum, width, depth, drop_path, stages, extra_conv)

    return build


for _size in SIZES:
    _builder(_size)
