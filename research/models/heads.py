"""How do pooled features become logits?

The studies' heads, as settings of `config.model`:

    Organelles: pooled, Dense 512, logits.
        head=(512,)
    Gene images, ResNet50 and DenseNet169: pooled, BatchNorm, Dropout 0.5, Dense 2048 with L2 0.01, Dense 512, logits.
        head=(2048, 512), head_batch_norm=True, head_dropout=0.5, head_dropout_at="first",
        and config.optimizer.l2 = (("head/dense_1/kernel", 0.01),)
    Gene images, VGG19: flattened, BatchNorm, Dropout 0.5, Dense 512 with L2 0.01, Dense 512, logits.
        the same with head=(512, 512), head_pool="flatten", options={"top": False}
    Gene images, Xception: pooled, BatchNorm, Dropout 0.5, logits.
        head_batch_norm=True, head_dropout=0.5
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.initializers import zeros
from research.models.layers import Dense, Dropout
from research.models.normalization import BatchNorm


class Head(nn.Module):
    """Dense classification head: [BatchNorm,] then per width [Dropout,] Dense and ReLU, then
    [Dropout and] Dense.

    Modules: `norm` (only with `batch_norm`), `dense_1` ... `dense_n`, `logits`.

    Attributes:
      num_classes: K.
      widths: units of the hidden dense layers, such as `(512,)`; empty for a linear classifier.
      dropout: rate at the input of the dense layers; may be traced.
      dropout_at: "every" dense layer, the "first" or the "last".
      batch_norm: whether the pooled features are normalised first.
      bias_init: K initial biases of the last layer, such as the log-odds of the class prevalences (Lin et al.
        2017, section 4.1), or empty for zeros.
      dtype: compute type of the hidden layers; the logits are computed in float32.
    """

    num_classes: int
    widths: tuple[int, ...] = ()
    dropout: float | jax.Array = 0.0
    dropout_at: str = "every"
    batch_norm: bool = False
    bias_init: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Takes features `[B, F]`, gives float32 logits `[B, K]`."""
        if self.bias_init and len(self.bias_init) != self.num_classes:
            raise cli.UserError(
                f"head_bias_init has {len(self.bias_init)} values for {self.num_classes} classes; give one per class."
            )
        outputs = features.astype(self.dtype)
        if self.batch_norm:
            outputs = BatchNorm(name="norm")(outputs, train=train)
        last = len(self.widths)
        dropped = {"every": range(last + 1), "first": (0,), "last": (last,)}
        if self.dropout_at not in dropped:
            raise cli.UserError(f"head_dropout_at is {self.dropout_at!r}; choose one of {', '.join(dropped)}.")
        rates = [self.dropout if index in dropped[self.dropout_at] else 0.0 for index in range(last + 1)]
        for index, width in enumerate(self.widths, 1):
            outputs = Dropout(rates[index - 1], name=f"dropout_{index}")(outputs, train=train)
            outputs = nn.relu(Dense(width, name=f"dense_{index}")(outputs))
        outputs = Dropout(rates[-1], name="dropout")(outputs, train=train)
        prior = (lambda key, shape: jnp.asarray(self.bias_init, jnp.float32)) if self.bias_init else zeros
        return Dense(self.num_classes, bias_init=prior, name="logits")(outputs.astype(jnp.float32))
