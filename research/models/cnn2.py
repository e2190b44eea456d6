"""What is the captions study's `cnn2`, the deeper of its two networks to train from scratch?

The study gives no layer list; this one takes the blocks of VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with
BatchNorm and, for the dense layers, a global average. Layers, for the default `widths` (64, 128, 256, 512):

    block_1_1  3x3 convolution, 64, "same", no bias - BatchNorm - ReLU
    block_1_2  3x3 convolution, 64, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2 [- dropout]
    block_2_1  3x3 convolution, 128, "same", no bias - BatchNorm - ReLU
    block_2_2  3x3 convolution, 128, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2 [- dropout]
    block_3_1  3x3 convolution, 256, "same", no bias - BatchNorm - ReLU
    block_3_2  3x3 convolution, 256, "same", no bias - BatchNorm - ReLU
               2x2 max-pool, stride 2 [- dropout]
    block_4_1  3x3 convolution, 512, "same", no bias - BatchNorm - ReLU
    block_4_2  3x3 convolution, 512, "same", no bias - BatchNorm - ReLU
               global average pool, 512 features
    head       [dropout] dense layer to the logits

With 3 channels the default has 4,696,266 parameters for 10 classes and 5,204,136 for 1,000, running statistics included
(3,840).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from input_pipeline import cli
from research.models.initializers import HE_NORMAL
from research.models.layers import ConvBatchNorm, Dropout
from research.models.pooling import global_average_pool, max_pool
from research.models.registry import register


class CNN2(nn.Module):
    """Backbone, see the module's docstring.

    Attributes:
      widths: filters of each block; images need at least `2 ** (len(widths) - 1)` pixels a side.
      dropout: rate between the blocks; may be traced.
      momentum: of the BatchNorm layers (epsilon is 1e-3).
    """

    widths: tuple[int, ...]
    dropout: float | jax.Array
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, widths[-1]]` and the maps `block_1` ... `block_n`."""
        outputs = images
        maps = {}
        for block, width in enumerate(self.widths, 1):
            if block > 1:
                outputs = Dropout(self.dropout, name=f"dropout_{block}")(max_pool(outputs, 2), train=train)
            for index in (1, 2):
                name = f"block_{block}_{index}"
                layer = ConvBatchNorm(width, momentum=self.momentum, kernel_init=HE_NORMAL, name=name)
                outputs = layer(outputs, train=train)
            maps[f"block_{block}"] = outputs
        return global_average_pool(outputs), maps


@register("cnn2", widths=("widths",))
def cnn2(
    widths: Sequence[int] = (64, 128, 256, 512),
    dropout: float | jax.Array = 0.0,
    batch_norm_momentum: float = 0.9,
) -> CNN2:
    """The momentum of 0.9 suits runs of a few hundred steps: 0.99 would still remember its start."""
    if not widths or min(widths) < 1:
        raise cli.UserError(f"cnn2 cannot have widths {tuple(widths)}; give at least one width and positive numbers.")
    return CNN2(tuple(widths), dropout, batch_norm_momentum)
