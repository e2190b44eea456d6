"""What is BERT, exactly, and how large is the one of a `config.json`?

Devlin et al. 2019 (arXiv:1810.04805) as transformers' `BertModel` computes it: embeddings of word, position and the
first token type, blocks with the normalisation behind attention and dense layers, GELU by the error function, and a
pooler, a dense layer with tanh on the first token, whose outputs are the features.
"""

import dataclasses
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models.initializers import VarianceScaling
from research.models.layers import Dense, Dropout
from research.text.layers import Attention, Embedding, Encoded, LayerNorm, encoded, on_rows, require_positive

CONFIG = "config.json"
_DEVIATION = 0.02  # of the weights that BERT is trained from


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers of a BERT, those of BERT-base as defaults.

    Attributes:
      vocabulary: number of ids.
      width: of the hidden states.
      layers, heads: blocks, and heads of each one's attention.
      intermediate: units of the first dense layer of each block.
      positions: the longest text, in ids.
      types: token types; 0 is the one that is used.
      epsilon: of the normalisations.
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12


_KEYS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}
_REQUIRED = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}


def read_sizes(folder: str) -> Sizes:
    """The numbers in a `config.json`.

    Args:
      folder: the path of the file, or of the folder that it is in.

    Raises:
      UserError: there is no such file, or it is damaged, or describes something else than a BERT.
    """
    path = pathlib.Path(folder)
    path = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}; give the folder with config.json and model.safetensors of a BERT."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); get the file again.") from None
    for key, allowed in _REQUIRED.items():
        if (found := content.get(key, allowed[0])) not in allowed:
            raise UserError(
                f"{path} has {key} {str(found)[:60]!r}, and only {allowed[0]!r} is known; choose a plain BERT."
            )
    values = {name: content[key] for name, key in _KEYS.items() if key in content}
    try:
        return checked(Sizes(**values))
    except UserError as error:
        raise UserError(f"{path} is not that of a BERT: {error}") from None


def checked(sizes: Sizes) -> Sizes:
    """The same; UserError if no such network can be built."""
    numbers = dataclasses.asdict(sizes)
    epsilon = numbers.pop("epsilon")
    require_positive("a BERT", **numbers)
    if sizes.width % sizes.heads:
        raise UserError(
            f"a BERT of width {sizes.width} cannot have {sizes.heads} heads; choose a divisor of its width."
        )
    if type(epsilon) is not float or not 0.0 < epsilon < 1.0:
        raise UserError(f"a BERT cannot have epsilon {str(epsilon)[:40]}; give a number between 0 and 1.")
    return sizes


def _kernel(inputs: int) -> VarianceScaling:
    return VarianceScaling(_DEVIATION**2 * inputs, "fan_in", "normal")


class Block(nn.Module):
    """Attention and two dense layers, each with a shortcut and then normalised: `[B, L, D]` to the same."""

    sizes: Sizes
    dropout: float | jax.Array

    is_block = True  # see `remat`

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        width, wide, epsilon = self.sizes.width, self.sizes.intermediate, self.sizes.epsilon
        attention = Attention(width, self.sizes.heads, self.dropout, _kernel(width), name="attention")
        outputs = attention(inputs, inputs, mask, train=train)
        outputs = Dropout(self.dropout, name="attention_dropout")(outputs, train=train)
        inputs = LayerNorm(epsilon, name="attention_norm")(inputs + outputs)
        outputs = on_rows(Dense(wide, kernel_init=_kernel(width), name="intermediate"), inputs)
        outputs = nn.gelu(outputs, approximate=False)
        outputs = on_rows(Dense(width, kernel_init=_kernel(wide), name="output"), outputs)
        outputs = Dropout(self.dropout, name="output_dropout")(outputs, train=train)
        return LayerNorm(epsilon, name="output_norm")(inputs + outputs)


class Bert(nn.Module):
    """Encoder; see `bert` for the attributes."""

    sizes: Sizes
    dropout: float | jax.Array

    @nn.compact
    def __call__(self, ids: jax.Array, *, train: bool, dtype: Any = jnp.float32) -> Encoded:
        """int32 `[B, L]`, as the tokeniser `wordpiece` gives them, to features `[B, D]` and a sequence `[B, L, D]`.

        `dtype` is the compute type.

        Raises:
          UserError: L is larger than the number of positions.
        """
        sizes, mask = self.sizes, ids != 0
        if ids.shape[1] > sizes.positions:
            raise UserError(
                f"this BERT has {sizes.positions} positions for texts of {ids.shape[1]} ids; set the tokeniser's "
                f"max_length to {sizes.positions} or less."
            )
        init = VarianceScaling(_DEVIATION**2 * sizes.width, "fan_out", "normal")

        def embedding(name: str, size: int, numbers: jax.Array) -> jax.Array:
            return Embedding(size, sizes.width, dtype, init, name=name)(numbers)

        sequence = embedding("word_embeddings", sizes.vocabulary, ids)
        sequence = sequence + embedding("token_type_embeddings", sizes.types, jnp.zeros_like(ids[:1]))
        sequence = sequence + embedding("position_embeddings", sizes.positions, jnp.arange(ids.shape[1])[None])
        sequence = LayerNorm(sizes.epsilon, name="embeddings_norm")(sequence)
        sequence = Dropout(self.dropout, name="dropout")(sequence, train=train)
        for number in range(sizes.layers):
            sequence = Block(sizes, self.dropout, name=f"layer_{number}")(sequence, mask, train=train)
        pooled = Dense(sizes.width, kernel_init=_kernel(sizes.width), name="pooler")(sequence[:, 0])
        return encoded(jnp.tanh(pooled), sequence, mask)


def bert(
    vocabulary: int = 0,
    folder: str = "",
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    intermediate: int = 3072,
    positions: int = 512,
    types: int = 2,
    epsilon: float = 1e-12,
    dropout: float | jax.Array = 0.1,
) -> Bert:
    """Makes the encoder.

    Args:
      vocabulary: number of ids that will come; a BERT of a folder may know more of them.
      folder: with the `config.json` that says all numbers, or "" for those of the following options.
      width, layers, heads, intermediate, positions, types, epsilon: see `Sizes`.
      dropout: rate behind the embeddings and in each block; may be traced.

    Raises:
      UserError: the numbers are impossible, or the folder is that of another vocabulary.
    """
    if folder:
        sizes = read_sizes(folder)
        if vocabulary > sizes.vocabulary:
            raise UserError(
                f"the BERT of {folder} knows {sizes.vocabulary} ids and the tokeniser has {vocabulary}; use the "
                "vocab.txt of the same folder."
            )
    else:
        sizes = checked(Sizes(vocabulary, width, layers, heads, intermediate, positions, types, epsilon))
    return Bert(sizes, dropout)


def options(folder: str) -> dict[str, Any]:
    """What `bert` takes in the place of a folder, so that a run does not need the folder any more."""
    return dataclasses.asdict(read_sizes(folder))
