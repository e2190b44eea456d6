"""Which tokenisers are there, how is one fitted to the training captions, and how is it kept with a run?

    tokenizer = build("words", captions, {"min_count": 3})
    ids = tokenizer.encode(["A dog on a horse.", None])     # int32 [2, L], the second row is all zeros
    save(tokenizer, "tokenizer.json")

Bags of letter pairs or word pairs are for the encoder `bag`, sequences of words or pieces for all others.
"""

import dataclasses
import inspect
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.cli import UserError
from research.layouts.layout import write_json
from research.text.tokenizers_base import Tokenizer
from research.text.tokenizers_wordpiece import WordPiece
from research.text.tokenizers_words import LetterBigrams, WordNgrams, Words

KINDS: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (LetterBigrams, WordNgrams, Words, WordPiece)}
_NAMES = {int: "a whole number", bool: "true or false", str: "a text"}


def build(name: str, captions: Sequence[str | None], options: Mapping[str, Any] | None = None) -> Tokenizer:
    """Fits a tokeniser.

    Args:
      name: one of `KINDS`.
      captions: of the training examples, missing ones as None or "".
      options: of the kind: `max_length` of each, `bits` and `min_count` of word_ngrams, `min_count` and `max_words` of
        words, `vocabulary` and `lower_case` of wordpiece.

    Raises:
      UserError: an unknown kind or option, an impossible value, or a vocabulary that cannot be read.
    """
    if name not in KINDS:
        raise UserError(f"there is no tokeniser {name!r}; choose one of {', '.join(KINDS)}.")
    fit, options = KINDS[name].fit, dict(options or {})
    known = {key: value.default for key, value in inspect.signature(fit).parameters.items() if key != "captions"}
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"the tokeniser {name} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    for option, value in options.items():
        expected = bool if known[option] is None else type(known[option])
        if type(value) is not expected and value is not known[option]:
            raise UserError(f"the option {option} of the tokeniser {name} is {value!r}; give {_NAMES[expected]}.")
    return fit(captions, **options)


def save(tokenizer: Tokenizer, path: str | os.PathLike) -> None:
    """Writes a tokeniser as JSON, atomically; the same tokeniser gives the same bytes."""
    write_json(path, {"kind": tokenizer.kind} | dataclasses.asdict(tokenizer))


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads what `save` wrote.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        fields = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        if not isinstance(fields.get("kind"), str) or fields["kind"] not in KINDS:
            raise ValueError(f"it is of the kind {str(fields.get('kind'))[:40]!r}")
        kind = KINDS[fields.pop("kind")]
        expected = {field.name for field in dataclasses.fields(kind)}
        if set(fields) != expected:
            raise ValueError(f"it has not the entries {', '.join(sorted(expected))}")
        return kind.restore(fields)
    except FileNotFoundError:
        raise UserError(f"there is no tokeniser {path}; name a run folder that was trained on captions.") from None
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path} is no tokeniser: {error}; restore the file or train again.") from None
