"""Which text encoders are there, and how is one built from its name?

Each is a Flax module from token ids int32 `[B, L]`, 0 at padding, to `Encoded`. Parameters are float32; they compute in
the type that the call names. Padding changes nothing; a text without ids has features of zeros and finite gradients.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from input_pipeline.cli import UserError
from research.text.bag import bag
from research.text.bert import bert
from research.text.layers import Encoded
from research.text.recurrent import recurrent
from research.text.tokenizers_base import Tokenizer
from research.text.transformer import transformer

__all__ = ["ENCODERS", "Encoded", "create", "options_for"]

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "bag": bag,
    "lstm": functools.partial(recurrent, "lstm"),
    "gru": functools.partial(recurrent, "gru"),
    "transformer": transformer,
    "bert": bert,
}


def create(name: str, **options: Any) -> nn.Module:
    """Builds an encoder.

    Args:
      name: one of `ENCODERS`.
      **options: `vocabulary`, the number of ids, and the encoder's own, see its builder.

    Raises:
      UserError: an unknown encoder or option, or an impossible value.
    """
    if name not in ENCODERS:
        raise UserError(f"there is no text encoder {name!r}; choose one of {', '.join(ENCODERS)}.")
    known = list(inspect.signature(ENCODERS[name]).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"the text encoder {name} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    if "vocabulary" not in options and not options.get("folder"):
        raise UserError(f"the text encoder {name} needs the option vocabulary, the number of the tokeniser's ids.")
    return ENCODERS[name](**options)


def options_for(name: str, options: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The options of an encoder together with what its tokeniser implies.

    These are `vocabulary`, and where the encoder takes them `weights` and `positions`, unless they are set already.

    Raises:
      UserError: the encoder is unknown, or it reads texts in their order and the tokeniser gives none.
    """
    if name not in ENCODERS:
        raise UserError(f"there is no text encoder {name!r}; choose one of {', '.join(ENCODERS)}.")
    if name == "bert" and tokenizer.kind != "wordpiece":
        raise UserError(f"the text encoder bert needs the tokeniser wordpiece, not {tokenizer.kind}.")
    if name != "bag" and not tokenizer.ordered:
        raise UserError(
            f"the text encoder {name} reads words in their order, and {tokenizer.kind} has none; choose the tokeniser "
            "words or the encoder bag."
        )
    implied: dict[str, Any] = {"vocabulary": tokenizer.size}
    if name == "bag" and tokenizer.weights is not None:
        implied["weights"] = tokenizer.weights
    if name == "transformer":
        implied["positions"] = tokenizer.max_length
    return implied | dict(options)
