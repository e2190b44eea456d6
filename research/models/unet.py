"""How does a classification network become one that classifies every pixel?

A U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597) whose encoder is any family of the registry, read through
its feature maps: the last map of each resolution is a skip connection. With EfficientNet-B0 these are the expanded
inputs of the blocks that reduce and the top, as in the study's `segmentation_models`. The decoder goes up one
resolution at a time:

    encoder      maps of sizes s_1 > s_2 > ... > s_n
    decoder_1    enlarge to s_(n-1), join with the map there, 3x3 convolution - BatchNorm - ReLU, twice
    ...
    decoder_n    enlarge to the size of the image, the same without a map to join (if s_1 is smaller than the image)
    head         a dense layer at every pixel, to the logits

`widths` gives the channels of the steps, the deepest first. Where there are more than the encoder has steps, the last
ones are taken; where there are fewer, the decoder ends early and its features are enlarged linearly, which is cheaper
and gives the same as enlarging the logits. Sizes need not be multiples of anything.

Enlarging twice is by repetition, which costs nothing on a CPU; another ratio (families without padding) is linear.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models import registry
from research.models.initializers import HE_NORMAL
from research.models.layers import ConvBatchNorm

NAME = "unet"


def enlarge(inputs: jax.Array, height: int, width: int) -> jax.Array:
    """`[B, h, w, C]` to `[B, height, width, C]`: repeated where both sides are halves, rounded up; linear elsewhere."""
    batch, rows, columns, channels = inputs.shape
    if (rows, columns) == (height, width):
        return inputs
    if (rows, columns) == (-(-height // 2), -(-width // 2)):
        repeated = jnp.broadcast_to(inputs[:, :, None, :, None], (batch, rows, 2, columns, 2, channels))
        return repeated.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]
    return jax.image.resize(inputs, (batch, height, width, channels), "linear", antialias=False)


def by_resolution(maps: Mapping[str, jax.Array]) -> list[jax.Array]:
    """The last map of each resolution, in the order of `maps`; the smallest first."""
    last = {value.shape[1:3]: value for value in maps.values()}
    return [last[shape] for shape in sorted(last)]


class UNet(nn.Module):
    """Backbone that gives features for every pixel; `classifier.Classifier` puts the head on them.

    Attributes:
      encoder: backbone of a family, called with images and `train`, whose maps are the skip connections.
      widths: channels of the decoder's steps, the deepest first.
      convolutions: of each step.
      momentum: of the decoder's BatchNorm layers.
    """

    encoder: nn.Module
    widths: tuple[int, ...]
    convolutions: int = 2
    momentum: float = 0.9

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, H, W, F]`, F the last of the widths, and all maps by name."""
        _, maps = self.encoder(images, train=train)
        size = images.shape[1:3]
        outputs, *skips = by_resolution(maps)
        sizes = [skip.shape[1:3] for skip in skips]
        if not sizes or sizes[-1] != size:
            skips, sizes = [*skips, None], [*sizes, size]
        for step, (width, skip, shape) in enumerate(zip(self.widths[-len(sizes) :], skips, sizes, strict=False), 1):
            outputs = enlarge(outputs, *shape)
            if skip is not None:
                outputs = jnp.concatenate([outputs, skip.astype(outputs.dtype)], axis=-1)
            for number in range(1, self.convolutions + 1):
                name = f"decoder_{step}_{number}"
                layer = ConvBatchNorm(width, momentum=self.momentum, kernel_init=HE_NORMAL, name=name)
                outputs = layer(outputs, train=train)
            maps = maps | {f"decoder_{step}": outputs}
        return enlarge(outputs, *size), maps


@registry.register(NAME, segments=True)
def unet(
    encoder: str = "efficientnet_b0",
    decoder: Sequence[int] = (64, 48, 32, 24, 16),
    convolutions: int = 2,
    batch_norm_momentum: float = 0.9,
    encoder_options: Mapping[str, Any] | None = None,
) -> UNet:
    """Options: name of the encoder, widths of the decoder, its convolutions a step and BatchNorm momentum, and options
    of the encoder.

    Raises:
      UserError: the encoder segments itself or is unknown, or a width or number is not positive.
    """
    entry, _ = registry.find(encoder)
    if entry.segments:
        raise UserError(f"the encoder {encoder} segments itself; set config.model.options.encoder to a classifier.")
    if not decoder or any(width < 1 for width in decoder) or convolutions < 1:
        raise UserError(
            f"a decoder of widths {tuple(decoder)} with {convolutions} convolutions a step cannot be built; give "
            "positive numbers."
        )
    body = registry.backbone(encoder, **(encoder_options or {}))
    return UNet(body, tuple(decoder), convolutions, batch_norm_momentum)
