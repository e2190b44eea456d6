"""What are the features of a text whose ids stand in no order?

The bag of a text is the vector of how often it has each id, each count times the id's weight: counts without weights,
TF-IDF with those of the tokeniser `word_ngrams`, then scaled to length 1 as in scikit-learn's `TfidfVectorizer`. The
encoder is linear on it, a weighted sum of rows of an embedding table (fastText: Joulin et al. 2016, arXiv:1607.01759);
without an embedding the features are the bag itself, as the captions study joins its 676 letter pairs to an image's.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models.layers import Dropout
from research.text.layers import DenseLayers, Embedding, Encoded, encoded, hide_ids, require_positive
from research.text.tokenizers_base import Weights


class Bag(nn.Module):
    """Encoder; see `bag` for the attributes."""

    vocabulary: int
    width: int
    hidden: tuple[int, ...]
    weights: Weights | None
    normalize: bool
    dropout: float | jax.Array
    word_dropout: float | jax.Array

    @nn.compact
    def __call__(self, ids: jax.Array, *, train: bool, dtype: Any = jnp.float32) -> Encoded:
        """int32 `[B, L]` to features `[B, F]`, F the last of `hidden`, `width` or `vocabulary` - 1; the sequence is
        that of the embedding's rows, None without one. `dtype` is the compute type."""
        ids = hide_ids(self, ids, self.word_dropout, train)
        mask = ids != 0
        shares = occurrences(ids, self.weights, self.normalize)
        if self.width:
            sequence = Embedding(self.vocabulary, self.width, dtype, name="embedding")(ids)
            features = jnp.einsum("bl,bld->bd", shares.astype(dtype), sequence)
        else:
            sequence = None
            rows = jnp.arange(ids.shape[0])[:, None]
            whole = jnp.zeros((ids.shape[0], self.vocabulary)).at[rows, ids].add(shares)
            features = whole[:, 1:].astype(dtype)
        features = Dropout(self.dropout, name="dropout")(features, train=train)
        return encoded(DenseLayers(self.hidden, self.dropout, name="layers")(features, train=train), sequence, mask)


def occurrences(ids: jax.Array, weights: Weights | None, normalize: bool) -> jax.Array:
    """How much each occurrence counts in its bag: float32 `[B, L]` for int32 ids `[B, L]`, 0 at padding.

    With `normalize` they are scaled so that the bag, the sum over the occurrences of each id, has the length 1; a bag
    of zeros stays one.
    """
    shares = (ids != 0).astype(jnp.float32)
    if weights is not None:
        shares = shares * jnp.asarray(weights.values)[ids]
    if not normalize:
        return shares
    # The square of a sum over equal ids is the sum over their pairs.
    same = (ids[:, :, None] == ids[:, None, :]).astype(jnp.float32)
    square = jnp.einsum("bl,blm,bm->b", shares, same, shares)[:, None]
    return jnp.where(square > 0, shares * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def bag(
    vocabulary: int,
    width: int = 128,
    hidden: Sequence[int] = (),
    weights: Weights | None = None,
    normalize: bool | None = None,
    dropout: float | jax.Array = 0.0,
    word_dropout: float | jax.Array = 0.0,
) -> Bag:
    """Makes the encoder.

    Args:
      vocabulary: number of ids, padding included.
      width: of the embedding; 0 = none.
      hidden: units of dense layers with ReLU behind it.
      weights: `Tokenizer.weights`.
      normalize: whether bags are scaled to length 1; None = if there are weights.
      dropout: rate behind the embedding and each dense layer; may be traced.
      word_dropout: share of the ids that is hidden in training; may be traced.

    Raises:
      UserError: an impossible number.
    """
    require_positive("a bag", vocabulary=vocabulary, **{f"hidden_{i}": n for i, n in enumerate(hidden)})
    if width:
        require_positive("a bag", width=width)
    if weights is not None and weights.values.shape != (vocabulary,):
        raise UserError(
            f"a bag of {vocabulary} ids cannot have {weights.values.shape[0]} weights; take both from one tokeniser."
        )
    normalized = weights is not None if normalize is None else bool(normalize)
    return Bag(vocabulary, width, tuple(hidden), weights, normalized, dropout, word_dropout)
