"""What does every tokeniser take and give?"""

import abc
import collections
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from input_pipeline.cli import UserError

PADDING = 0
LONGEST = 4096  # ids of a text


class Weights:
    """A constant float32 array with one number for each id, to be an attribute of a Flax module: hashed by its content.

    Attributes:
      values: float32 `[size]`, read-only.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.array(values, np.float32)
        self.values.setflags(write=False)
        self._hash = hash((self.values.shape, self.values.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and np.array_equal(self.values, other.values)

    def __repr__(self) -> str:
        return f"Weights({self.values.shape[0]} numbers)"


class Tokenizer(abc.ABC):
    """From texts to ids; each kind is a frozen dataclass whose fields JSON can hold.

    Attributes:
      kind: its name.
      ordered: whether ids stand in the order of the text; those of a bag do not, and a recurrent network or a
        transformer has no use for them.
      max_length: L, ids that are kept of a text.
    """

    kind: ClassVar[str]
    ordered: ClassVar[bool]
    max_length: int

    @classmethod
    @abc.abstractmethod
    def fit(cls, captions: Sequence[str | None], **options: Any) -> "Tokenizer":
        """Makes one from the training captions; the keyword options are those of `tokenizers.build`."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, fields: Mapping[str, Any]) -> "Tokenizer":
        """Makes one of the dataclass's fields as JSON gave them.

        Raises:
          KeyError, TypeError, ValueError: a field is missing, has another type or an impossible value.
        """

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of ids, padding included."""

    @property
    def weights(self) -> Weights | None:
        """How much an occurrence of each id counts in a bag, `[size]`; None if all count the same."""
        return None

    @abc.abstractmethod
    def ids(self, text: str) -> list[int]:
        """All ids of a text that is not empty, each of 1 ... size - 1; WordPiece alone cuts them itself."""

    def encode(self, texts: Sequence[str | None]) -> np.ndarray:
        """int32 `[N, L]`, filled up with 0 behind each text's first L ids; a missing or empty text has no ids."""
        found = np.full((len(texts), self.max_length), PADDING, np.int32)
        for row, text in enumerate(texts):
            if not is_missing(text):
                kept = self.ids(text)[: self.max_length]
                found[row, : len(kept)] = kept
        return found


def is_missing(text: str | None) -> bool:
    """Whether there is nothing in a text but white space."""
    return text is None or not text.strip()


def words(text: str) -> list[str]:
    """The words of a text: runs of letters with their marks, and digits, lower-cased; "man's" are two."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in plain).split()


def document_counts(lists: Iterable[Sequence[Any]]) -> collections.Counter:
    """In how many of the lists each thing occurs."""
    found: collections.Counter = collections.Counter()
    for things in lists:
        found.update(set(things))
    return found


def chosen_length(max_length: int, lengths: Iterable[int]) -> int:
    """L: `max_length`, or the longest of `lengths` where it is 0; 1 ... `LONGEST`.

    Raises:
      UserError: it is negative or too large.
    """
    if not 0 <= max_length <= LONGEST:
        raise UserError(f"a text cannot have max_length {max_length}; give at most {LONGEST}, or 0 for the longest.")
    return max_length or min(max(lengths, default=0) or 1, LONGEST)


def whole(fields: Mapping[str, Any], name: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """A field that is a whole number of `least` ... `most`; else ValueError, and KeyError if it is missing."""
    if type(fields[name]) is not int or not least <= fields[name] <= most:
        raise ValueError(f"{name} is {str(fields[name])[:40]!r}, not a whole number of {least} to {most}")
    return fields[name]


def texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that is a list of texts; else ValueError, and KeyError if it is missing."""
    if not isinstance(fields[name], list) or not all(isinstance(text, str) for text in fields[name]):
        raise ValueError(f"{name} is no list of texts")
    return tuple(fields[name])
