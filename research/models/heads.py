"""How do pooled features become logits?"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.initializers import zeros
from research.models.layers import Dense, Dropout
from research.models.normalization import BatchNorm


class Head(nn.Module):
    """Dense classification head: [BatchNorm,] then per width Dropout, Dense and ReLU, then Dropout and Dense.

    Modules: `norm` (only with `batch_norm`), `dense_1` ... `dense_n`, `logits`.

    Attributes:
      num_classes: K.
      widths: units of the hidden dense layers, such as `(512,)`; empty for a linear classifier.
      dropout: rate at the input of every dense layer; may be traced.
      batch_norm: whether the pooled features are normalised first.
      bias_init: K initial biases of the last layer, such as the log-odds of the class prevalences (Lin et al.
        2017, section 4.1), or empty for zeros.
      dtype: compute type of the hidden layers; the logits are computed in float32.
    """

    num_classes: int
    widths: tuple[int, ...] = ()
    dropout: float | jax.Array = 0.0
    batch_norm: bool = False
    bias_init: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Takes features `[B, F]`, gives float32 logits `[B, K]`."""
        if self.bias_init and len(self.bias_init) != self.num_classes:
            raise cli.UserError(
                f"head_bias_init has {len(self.bias_init)} values for {self.num_classes} classes; "
                "give one per class."
            )
        outputs = features.astype(self.dtype)
        if self.batch_norm:
            outputs = BatchNorm(name="norm")(outputs, train=train)
        for index, width in enumerate(self.widths, 1):
            outputs = Dropout(self.dropout, name=f"dropout_{index}")(outputs, train=train)
            outputs = nn.relu(Dense(width, name=f"dense_{index}")(outputs))
        outputs = Dropout(self.dropout, name="dropout")(outputs, train=train)
        prior = (lambda key, shape: jnp.asarray(self.bias_init, jnp.float32)) if self.bias_init else zeros
        return Dense(self.num_classes, bias_init=prior, name="logits")(outputs.astype(jnp.float32))
