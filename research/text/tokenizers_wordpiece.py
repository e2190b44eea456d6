"""Into which pieces of words does BERT's WordPiece cut a caption?

As in Devlin et al. 2019 (arXiv:1810.04805) and their code: text is cleaned, CJK characters stand alone, an uncased
model's is lower-cased without accents, punctuation is split off, and each word is the longest piece of the vocabulary
that it starts with, then the longest `##` piece, and so on, or [UNK]. The `tokenizers` library does it. "[SEP]" in a
caption is three words and not the special token, as in the authors' code and unlike in transformers.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from research.text import tokenizers_base as base

VOCABULARY = "vocab.txt"
SETTINGS = "tokenizer_config.json"
_SPECIAL = ("[UNK]", "[CLS]", "[SEP]")
_LONGEST_WORD = 100  # characters; longer words are [UNK]


@dataclasses.dataclass(frozen=True)
class WordPiece(base.Tokenizer):
    """A sequence [CLS], pieces, [SEP], with the ids that a BERT was trained with.

    Attributes:
      lower_case: whether text is lower-cased and loses its accents.
      vocabulary: the piece of each id, [PAD] first.
    """

    max_length: int
    lower_case: bool
    vocabulary: tuple[str, ...] = dataclasses.field(repr=False)

    kind = "wordpiece"
    ordered = True

    @classmethod
    def fit(
        cls,
        captions: Sequence[str | None],
        vocabulary: str = "",
        max_length: int = 32,
        lower_case: bool | None = None,
    ) -> "WordPiece":
        """Reads a vocabulary.

        Args:
          captions: of training.
          vocabulary: path of a `vocab.txt`, or of the folder that it is in.
          max_length: pieces that are kept of a caption, [CLS] and [SEP] included; 0 = those of the longest.
          lower_case: see the class; None = what a `tokenizer_config.json` beside the vocabulary says, else yes.

        Raises:
          UserError: there is no vocabulary, it is none of BERT's, or the library is not installed.
        """
        if not vocabulary:
            raise UserError(
                "wordpiece needs the vocabulary of a BERT; set its option vocabulary to the path of a vocab.txt."
            )
        if 0 < max_length < 3:
            raise UserError(f"wordpiece cannot keep {max_length} pieces; give 3 or more, or 0 for the longest caption.")
        path = pathlib.Path(vocabulary)
        path = path / VOCABULARY if path.is_dir() else path
        try:
            pieces = _checked(read_vocabulary(path))
        except ValueError as error:
            raise UserError(f"{path} is no vocabulary of a BERT: {error}; choose the vocab.txt of one.") from None
        chosen = _says_lower_case(path.with_name(SETTINGS)) if lower_case is None else lower_case
        longest = cls(base.LONGEST, chosen, pieces)
        present = [] if max_length else [text for text in captions if not base.is_missing(text)]
        return cls(max(3, base.chosen_length(max_length, map(len, longest.pieces(present)))), chosen, pieces)

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> "WordPiece":
        if not isinstance(fields["lower_case"], bool):
            raise ValueError("lower_case is neither true nor false")
        vocabulary = _checked(base.texts(fields, "vocabulary"))
        return cls(base.whole(fields, "max_length", 3, base.LONGEST), fields["lower_case"], vocabulary)

    @property
    def size(self) -> int:
        return len(self.vocabulary)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    @functools.cached_property
    def _library(self):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(f"wordpiece needs the library tokenizers ({error}); pip install tokenizers.") from None
        model = tokenizers.models.WordPiece(
            self._numbers, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD, continuing_subword_prefix="##"
        )
        made = tokenizers.Tokenizer(model)
        made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=self.lower_case)
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        return made

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, [CLS] first and [SEP] last, at most `max_length` each."""
        first, last = self._numbers["[CLS]"], self._numbers["[SEP]"]
        # Half of a surrogate pair is no text for the library; it counts as a character that nobody knows.
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        found = self._library.encode_batch(whole, add_special_tokens=False)
        return [[first, *encoding.ids[: self.max_length - 2], last] for encoding in found]

    def ids(self, text: str) -> list[int]:
        return self.pieces([text])[0]

    def encode(self, texts: Sequence[str | None]) -> np.ndarray:
        found = np.full((len(texts), self.max_length), base.PADDING, np.int32)
        rows = [row for row, text in enumerate(texts) if not base.is_missing(text)]
        for row, ids in zip(rows, self.pieces([texts[row] for row in rows]), strict=True):
            found[row, : len(ids)] = ids
        return found


def read_vocabulary(path: pathlib.Path) -> tuple[str, ...]:
    """The lines of a `vocab.txt`, one piece each.

    Raises:
      UserError: there is no such file.
      ValueError: it is not in UTF-8.
    """
    try:
        lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"there is no vocabulary {path}; set the option vocabulary to the path of a vocab.txt."
        ) from None
    return tuple(lines[:-1] if lines[-1] == "" else lines)


def _checked(pieces: tuple[str, ...]) -> tuple[str, ...]:
    if not pieces or pieces[0] != "[PAD]":
        raise ValueError("its first line is not [PAD]")
    if missing := [name for name in _SPECIAL if name not in pieces]:
        raise ValueError(f"it lacks {' '.join(missing)}")
    return pieces


def _says_lower_case(path: pathlib.Path) -> bool:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or set the option lower_case.") from None
    found = settings.get("do_lower_case", True) if isinstance(settings, dict) else None
    if not isinstance(found, bool):
        raise UserError(f"{path} does not say whether text is lower-cased; set the option lower_case.")
    return found
