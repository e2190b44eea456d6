"""A small convolutional network to train from scratch: the studies' `simple_cnn`.

Layers, for the default `widths` (32, 64, 128, 256):

    block_1_1  3x3 convolution, 32, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2
    block_2_1  3x3 convolution, 64, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2
    block_3_1  3x3 convolution, 128, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2
    block_4_1  3x3 convolution, 256, "same", no bias - BatchNorm - ReLU
               global average pool, 256 features
    head       [dropout] dense layer to the logits

With `convolutions=2` each block repeats its convolution (`block_1_2`, ...) before it pools. With 3 channels
and 10 classes the default has 392,426 parameters, running statistics included.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from input_pipeline import cli
from research.models.initializers import HE_NORMAL
from research.models.layers import ConvBatchNorm
from research.models.pooling import global_average_pool, max_pool
from research.models.registry import register


class SimpleCNN(nn.Module):
    """Backbone, see the module's docstring.

    Attributes:
      widths: filters of each block; images need at least `2 ** (len(widths) - 1)` pixels a side.
      convolutions: convolutions in each block.
      momentum: of the BatchNorm layers (epsilon is 1e-3).
    """

    widths: tuple[int, ...]
    convolutions: int
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, widths[-1]]` and the maps `block_1` ... `block_n`."""
        outputs = images
        maps = {}
        for block, width in enumerate(self.widths, 1):
            if block > 1:
                outputs = max_pool(outputs, 2)
            for index in range(1, self.convolutions + 1):
                layer = ConvBatchNorm(
                    width, momentum=self.momentum, kernel_init=HE_NORMAL, name=f"block_{block}_{index}"
                )
                outputs = layer(outputs, train=train)
            maps[f"block_{block}"] = outputs
        return global_average_pool(outputs), maps


@register("simple_cnn")
def simple_cnn(
    widths: Sequence[int] = (32, 64, 128, 256), convolutions: int = 1, batch_norm_momentum: float = 0.9
) -> SimpleCNN:
    """The momentum of 0.9 suits runs of a few hundred steps: 0.99 would still remember its start."""
    if not widths or min(*widths, convolutions) < 1:
        raise cli.UserError(
            f"simple_cnn cannot have widths {tuple(widths)} with {convolutions} convolutions a block; "
            "give at least one width and positive numbers."
        )
    return SimpleCNN(tuple(widths), convolutions, batch_norm_momentum)
