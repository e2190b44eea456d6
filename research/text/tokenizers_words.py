"""Which ids do letter pairs, words and word pairs of a caption have, without anything that was trained elsewhere?"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from research.text import tokenizers_base as base

_LETTERS = re.compile("[a-z]+")
_MOST_BITS = 24
UNKNOWN = 1  # id of the words that the training captions do not have


@dataclasses.dataclass(frozen=True)
class LetterBigrams(base.Tokenizer):
    """A bag of the 676 pairs aa ... zz of adjacent letters, lower-cased, inside words: the captions study's features.

    Ids: 1 + 26 first + second, with 0 ... 25 for a ... z. Other characters end a word.
    """

    max_length: int

    kind = "letter_bigrams"
    ordered = False

    @classmethod
    def fit(cls, captions: Sequence[str | None], max_length: int = 0) -> "LetterBigrams":
        """`max_length`: pairs that are kept of a caption; 0 = those of the longest training caption."""
        return cls(base.chosen_length(max_length, (len(_letter_pairs(text)) for text in captions if text)))

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> "LetterBigrams":
        return cls(base.whole(fields, "max_length", 1, base.LONGEST))

    @property
    def size(self) -> int:
        return 677

    def ids(self, text: str) -> list[int]:
        return _letter_pairs(text)


def _letter_pairs(text: str) -> list[int]:
    return [
        1 + 26 * (ord(first) - 97) + ord(second) - 97
        for word in _LETTERS.findall(text.lower())
        for first, second in zip(word[:-1], word[1:], strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class WordNgrams(base.Tokenizer):
    """A bag of words and of pairs of adjacent words, hashed (Weinberger et al. 2009, arXiv:0902.2206) to 2^bits ids.

    Its weights are inverse document frequencies as scikit-learn smooths them: ln((1 + n) / (1 + d)) + 1 for an id that
    d of the n training captions have, and 0 if fewer than `min_count` have it. Words stand before pairs, so that pairs
    are lost first where a caption is too long.

    Attributes:
      bits: logarithm of the number of ids to the base two.
      min_count: see above.
      documents: n, the training captions that are not missing.
      counts: d for each of the 2^bits ids.
    """

    max_length: int
    bits: int
    min_count: int
    documents: int
    counts: tuple[int, ...] = dataclasses.field(repr=False)

    kind = "word_ngrams"
    ordered = False

    @classmethod
    def fit(
        cls, captions: Sequence[str | None], max_length: int = 48, bits: int = 15, min_count: int = 2
    ) -> "WordNgrams":
        """`max_length`: ids that are kept of a caption, 0 = those of the longest; see the class for the others."""
        if not 1 <= bits <= _MOST_BITS or min_count < 1:
            raise UserError(
                f"word_ngrams with bits {bits} and min_count {min_count} cannot be built; give 1 to {_MOST_BITS} "
                "bits and a count of 1 or more."
            )
        found = [_ngrams(text, bits) for text in captions if not base.is_missing(text)]
        length = base.chosen_length(max_length, map(len, found))
        # What encode() cuts off is not seen in training either.
        seen = base.document_counts(ids[:length] for ids in found)
        return cls(length, bits, min_count, len(found), tuple(seen[number] for number in range(1, 2**bits + 1)))

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> "WordNgrams":
        bits, documents = base.whole(fields, "bits", 1, _MOST_BITS), base.whole(fields, "documents", 0)
        counts = np.asarray(fields["counts"])
        if counts.shape != (2**bits,) or counts.dtype != np.int64:
            raise ValueError("counts are not as many whole numbers as 2^bits")
        if counts.min() < 0 or counts.max() > documents:
            raise ValueError(f"counts are not numbers of {documents} documents")
        length, least = base.whole(fields, "max_length", 1, base.LONGEST), base.whole(fields, "min_count")
        return cls(length, bits, least, documents, tuple(counts.tolist()))

    @property
    def size(self) -> int:
        return 2**self.bits + 1

    @functools.cached_property
    def weights(self) -> base.Weights:
        counts = np.asarray((0, *self.counts), np.float64)
        inverse = np.log((1 + self.documents) / (1 + counts)) + 1
        return base.Weights(np.where(counts >= self.min_count, inverse, 0.0))

    def ids(self, text: str) -> list[int]:
        return _ngrams(text, self.bits)


def _ngrams(text: str, bits: int) -> list[int]:
    found = base.words(text)
    pairs = [f"{first} {second}" for first, second in zip(found[:-1], found[1:], strict=True)]
    return [1 + (_hashed(ngram) & (2**bits - 1)) for ngram in (*found, *pairs)]


@functools.lru_cache(maxsize=2**18)
def _hashed(ngram: str) -> int:
    """64 bits that no version of Python or of a library changes."""
    return int.from_bytes(hashlib.blake2b(ngram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclasses.dataclass(frozen=True)
class Words(base.Tokenizer):
    """A sequence of words, each with an id of its own if enough training captions have it, and else with `UNKNOWN`.

    Attributes:
      vocabulary: the words of the ids 2, 3, ..., the most frequent first, then alphabetically.
    """

    max_length: int
    vocabulary: tuple[str, ...] = dataclasses.field(repr=False)

    kind = "words"
    ordered = True

    @classmethod
    def fit(
        cls, captions: Sequence[str | None], max_length: int = 24, min_count: int = 2, max_words: int = 20_000
    ) -> "Words":
        """Makes the vocabulary.

        Args:
          captions: of training.
          max_length: words that are kept of a caption; 0 = those of the longest.
          min_count: training captions that a word of the vocabulary has to be in.
          max_words: of the vocabulary.
        """
        if min_count < 1 or max_words < 1:
            raise UserError(
                f"words with min_count {min_count} and max_words {max_words} cannot be built; give positive numbers."
            )
        found = [base.words(text) for text in captions if text]
        counts = base.document_counts(found)
        kept = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
        return cls(base.chosen_length(max_length, map(len, found)), tuple(kept[:max_words]))

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> "Words":
        vocabulary = base.texts(fields, "vocabulary")
        if repeated := [word for word, count in collections.Counter(vocabulary).items() if count > 1]:
            raise ValueError(f"the vocabulary has the word {repeated[0]!r} twice")
        return cls(base.whole(fields, "max_length", 1, base.LONGEST), vocabulary)

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 2

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.vocabulary, UNKNOWN + 1)}

    def ids(self, text: str) -> list[int]:
        return [self._numbers.get(word, UNKNOWN) for word in base.words(text)]
