"""What is `cnn1d`, the one-dimensional network for expression vectors of Mostavi et al.?

Mostavi et al. 2020, "Convolutional neural network models for cancer type prediction based on gene expression"
(doi:10.1186/s12920-020-0677-2), 1D-CNN. The values of the image in row-major order, one position for each pixel, which
with an alphabetical layout in its own size is the vector of the genes, sorted, with zeros behind them:

    conv     convolution over 71 positions, stride 71, 32 filters, bias - ReLU
             max-pool over 2 positions, stride 2
    dense    dense layer, 128 - ReLU - [dropout]: 128 features
    head     dense layer to the logits

The sequence is filled up with zeros to whole windows of both, as the paper fills 7,091 genes up to 7,100, so that no
gene is left out. With these 7,100 positions, one channel and 33 classes there are 211,489 parameters, with a picture of
102 x 102 pixels 309,793. Every further channel adds kernels to `conv` only. (The authors' script, in chenlabgccri's
CancerTypePrediction, slides the same window along the rows of a 71 x 100 picture with stride 1 instead.)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.layers import Conv, Dense, Dropout
from research.models.registry import register


class CNN1D(nn.Module):
    """Backbone, see `cnn1d` for the attributes."""

    filters: int
    kernel: int
    stride: int
    pool: int
    dense: int
    dropout: float | jax.Array

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`.

        Returns:
          Features `[B, dense]` and the maps `conv` `[B, 1, n, filters]` and `pool` `[B, 1, ceil(n / pool), filters]`.
        """
        sequence = images.reshape(images.shape[0], 1, -1, images.shape[-1])
        positions = sequence.shape[2]
        windows = max(-(-(positions - self.kernel) // self.stride), 0) + 1
        missing = (windows - 1) * self.stride + self.kernel - positions
        sequence = jnp.pad(sequence, ((0, 0), (0, 0), (0, missing), (0, 0)))
        conv = Conv(self.filters, (1, self.kernel), self.stride, "valid", use_bias=True, name="conv")
        outputs = nn.relu(conv(sequence))
        maps = {"conv": outputs}
        # Behind a ReLU, zeros never win against what is there.
        outputs = jnp.pad(outputs, ((0, 0), (0, 0), (0, -outputs.shape[2] % self.pool), (0, 0)))
        outputs = jnp.max(outputs.reshape(outputs.shape[0], 1, -1, self.pool, self.filters), axis=3)
        maps["pool"] = outputs
        features = nn.relu(Dense(self.dense, name="dense")(outputs.reshape(outputs.shape[0], -1)))
        features = Dropout(self.dropout, name="dropout")(features, train=train)
        return features.astype(jnp.float32), maps


@register("cnn1d")
def cnn1d(
    filters: int = 32,
    kernel: int = 71,
    stride: int = 71,
    pool: int = 2,
    dense: int = 128,
    dropout: float | jax.Array = 0.0,
) -> CNN1D:
    """The paper's network, or one with other numbers.

    Args:
      filters: of the convolution.
      kernel: positions of its window.
      stride: positions between windows.
      pool: windows of which the greatest value counts.
      dense: units of the dense layer.
      dropout: rate behind it; may be traced.

    Raises:
      UserError: a number that is not positive, or a stride that skips genes.
    """
    numbers = {"filters": filters, "kernel": kernel, "stride": stride, "pool": pool, "dense": dense}
    for option, number in numbers.items():
        if number < 1:
            raise cli.UserError(f"cnn1d cannot have {option} {number}; give a positive number.")
    if stride > kernel:
        raise cli.UserError(
            f"cnn1d with stride {stride} and kernel {kernel} skips genes; choose a stride up to {kernel}."
        )
    return CNN1D(filters, kernel, stride, pool, dense, dropout)
