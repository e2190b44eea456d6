"""What does a small transformer that is trained from nothing read in a text?

Blocks with the normalisation before attention and dense layers (Xiong et al. 2020, arXiv:2002.04745), learned vectors
for positions, and as features the largest and the mean value of each unit over the text. Positions count the words
that are there, so padding changes nothing wherever it stands.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models.layers import Dense, Dropout
from research.text.layers import (
    Attention,
    Embedding,
    Encoded,
    LayerNorm,
    encoded,
    hide_ids,
    on_rows,
    pool,
    require_positive,
)


class Block(nn.Module):
    """Attention and two dense layers, each with a shortcut: `[B, L, D]` to the same."""

    heads: int
    dropout: float | jax.Array

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        width = inputs.shape[-1]
        normal = LayerNorm(name="attention_norm")(inputs)
        outputs = Attention(width, self.heads, self.dropout, name="attention")(normal, normal, mask, train=train)
        inputs = inputs + Dropout(self.dropout, name="attention_dropout")(outputs, train=train)
        outputs = nn.gelu(on_rows(Dense(4 * width, name="dense_1"), LayerNorm(name="dense_norm")(inputs)))
        outputs = on_rows(Dense(width, name="dense_2"), outputs)
        return inputs + Dropout(self.dropout, name="dense_dropout")(outputs, train=train)


class Transformer(nn.Module):
    """Encoder; see `transformer` for the attributes."""

    vocabulary: int
    positions: int
    width: int
    heads: int
    layers: int
    dropout: float | jax.Array
    word_dropout: float | jax.Array

    @nn.compact
    def __call__(self, ids: jax.Array, *, train: bool, dtype: Any = jnp.float32) -> Encoded:
        """int32 `[B, L]` to features `[B, 2 D]` (largest, then mean) and a sequence `[B, L, D]`.

        `dtype` is the compute type.

        Raises:
          UserError: L is larger than `positions`.
        """
        if ids.shape[1] > self.positions:
            raise UserError(
                f"the transformer has {self.positions} positions for texts of {ids.shape[1]} ids; give it as many."
            )
        ids = hide_ids(self, ids, self.word_dropout, train)
        mask = ids != 0
        place = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        sequence = Embedding(self.vocabulary, self.width, dtype, name="words")(ids)
        sequence = sequence + Embedding(self.positions, self.width, dtype, name="positions")(place)
        sequence = Dropout(self.dropout, name="dropout")(sequence, train=train)
        for number in range(1, self.layers + 1):
            sequence = Block(self.heads, self.dropout, name=f"block_{number}")(sequence, mask, train=train)
        sequence = LayerNorm(name="norm")(sequence)
        return encoded(pool(sequence, mask), sequence, mask)


def transformer(
    vocabulary: int,
    positions: int = 64,
    width: int = 128,
    heads: int = 4,
    layers: int = 2,
    dropout: float | jax.Array = 0.1,
    word_dropout: float | jax.Array = 0.0,
) -> Transformer:
    """Makes the encoder.

    Args:
      vocabulary: number of ids, padding included.
      positions: the longest text, in ids.
      width: D.
      heads: of attention; D is a multiple of them.
      layers: blocks.
      dropout: rate of the embeddings, attention weights and both branches of each block; may be traced.
      word_dropout: share of the ids that is hidden in training; may be traced.

    Raises:
      UserError: an impossible number.
    """
    numbers = {"vocabulary": vocabulary, "positions": positions, "width": width, "heads": heads, "layers": layers}
    require_positive("a transformer", **numbers)
    if width % heads:
        raise UserError(f"a transformer of width {width} cannot have {heads} heads; choose a divisor of its width.")
    return Transformer(vocabulary, positions, width, heads, layers, dropout, word_dropout)
