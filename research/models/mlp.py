"""What is `mlp`, dense layers on all values of an image: the rival of convolutions on pictures without neighbourhoods?

Layers, for the default `hidden` (512, 128):

             the image flattened, `[B, H * W * C]`
    dense_1  dense layer, 512 - BatchNorm, norm_1 - ReLU - [dropout]
    dense_2  dense layer, 128, as dense_1: 128 features
    head     [dropout] dense layer to the logits

It does not care in which order the genes of a picture lie. Channels that are all equal only make it larger: give it
pictures of one channel, in the size of their layout. With 102 x 102 pixels, one channel and 33 classes the default has
5,399,841 parameters, running statistics included (1,280).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.initializers import HE_NORMAL
from research.models.layers import Dense, Dropout
from research.models.normalization import BatchNorm
from research.models.registry import register


class MLP(nn.Module):
    """Backbone, see the module's docstring.

    Attributes:
      hidden: units of the dense layers.
      dropout: rate behind each of them; may be traced.
      batch_norm: whether there are BatchNorm layers (epsilon is 1e-3).
      momentum: of them.
    """

    hidden: tuple[int, ...]
    dropout: float | jax.Array
    batch_norm: bool
    momentum: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, hidden[-1]]` and the maps `dense_1` ... of `[B, 1, 1, units]`."""
        outputs = images.reshape(images.shape[0], -1)
        maps = {}
        for index, units in enumerate(self.hidden, 1):
            outputs = Dense(units, kernel_init=HE_NORMAL, name=f"dense_{index}")(outputs)
            if self.batch_norm:
                norm = BatchNorm(self.momentum, activation="relu", name=f"norm_{index}")
                outputs = norm(outputs, train=train)
            else:
                outputs = nn.relu(outputs)
            outputs = Dropout(self.dropout, name=f"dropout_{index}")(outputs, train=train)
            maps[f"dense_{index}"] = outputs[:, None, None, :]
        return outputs.astype(jnp.float32), maps


@register("mlp", widths=("hidden",))
def mlp(
    hidden: Sequence[int] = (512, 128),
    dropout: float | jax.Array = 0.0,
    batch_norm: bool = True,
    batch_norm_momentum: float = 0.9,
) -> MLP:
    """The momentum of 0.9 suits runs of a few hundred steps: 0.99 would still remember its start."""
    if not hidden or min(hidden) < 1:
        raise cli.UserError(f"mlp cannot have hidden {tuple(hidden)}; give at least one layer and positive numbers.")
    return MLP(tuple(hidden), dropout, batch_norm, batch_norm_momentum)
