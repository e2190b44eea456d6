"""What is the studies' `simple_cnn`, a small network to train from scratch?

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

With 3 channels the default has 392,426 parameters for 10 classes and 646,856 for 1,000, running statistics included
(960). Two convolutions a block make the larger network `cnn2`.
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
      momentum: of the BatchNorm layers (epsilon is 1e-3).
    """

    widths: tuple[int, ...]
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, widths[-1]]` and the maps `block_1` ... `block_n`."""
        outputs = images
        maps = {}
        for block, width in enumerate(self.widths, 1):
            if block > 1:
                outputs = max_pool(outputs, 2)
            layer = ConvBatchNorm(width, momentum=self.momentum, kernel_init=HE_NORMAL, name=f"block_{block}_1")
            outputs = maps[f"block_{block}"] = layer(outputs, train=train)
        return global_average_pool(outputs), maps


@register("simple_cnn", widths=("widths",))
def simple_cnn(widths: Sequence[int] = (32, 64, 128, 256), batch_norm_momentum: float = 0.9) -> SimpleCNN:
    """The momentum of 0.9 suits runs of a few hundred steps: 0.99 would still remember its start."""
    if not widths or min(widths) < 1:
        raise cli.UserError(
            f"simple_cnn cannot have widths {tuple(widths)}; give at least one width and positive numbers."
        )
    return SimpleCNN(tuple(widths), batch_norm_momentum)
