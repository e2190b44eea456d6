"""BERT's tokenisation in Python, after the authors' `tokenization.py`, and a small vocabulary to try it with."""

import pathlib
import string
import unicodedata

_LETTERS = [letter for letter in string.ascii_lowercase if letter not in "qz"]
VOCABULARY = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.digits[:9],
    *string.punctuation,
    *_LETTERS,
    *(f"##{letter}" for letter in (*_LETTERS, "ing", "ed", "s", "es", "er", "man", "ball", "ø", "9")),
    *(
        "a",
        "the",
        "dog",
        "horse",
        "man",
        "woman",
        "stand",
        "stands",
        "skate",
        "board",
        "##board",
        "ride",
        "rid",
        "cafe",
    ),
    *("北", "京", "##京", "é", "Dog", "—", "ø", "ß"),
]
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def write_vocabulary(folder: pathlib.Path) -> pathlib.Path:
    """Writes the small vocabulary as a vocab.txt."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def basic_tokens(text: str, lower_case: bool) -> list[str]:
    """Words and punctuation marks."""
    cleaned = ""
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            cleaned += " "
        elif character not in "\x00\ufffd" and category[0] != "C":
            code = ord(character)
            cleaned += f" {character} " if any(first <= code <= last for first, last in _CJK) else character
    tokens = []
    for word in cleaned.split():
        if lower_case:
            apart = unicodedata.normalize("NFD", word.lower())
            word = "".join(character for character in apart if unicodedata.category(character) != "Mn")
        current = ""
        for character in word:
            if character in string.punctuation or unicodedata.category(character)[0] == "P":
                tokens += [current, character]
                current = ""
            else:
                current += character
        tokens.append(current)
    return [token for token in tokens if token]


def pieces(token: str, numbers: dict[str, int]) -> list[str]:
    """The longest pieces first, or [UNK] where they do not cover the whole word."""
    found, start = [], 0
    while start < len(token):
        for end in range(len(token), start, -1):
            piece = ("##" if start else "") + token[start:end]
            if piece in numbers:
                break
        else:
            return ["[UNK]"]
        found.append(piece)
        start = end
    return found if len(token) <= 100 else ["[UNK]"]


def encode(text: str, vocabulary: list[str], length: int, lower_case: bool = True) -> list[int]:
    """[CLS], pieces, [SEP] and padding, `length` ids."""
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    found = [piece for token in basic_tokens(text, lower_case) for piece in pieces(token, numbers)]
    ids = [numbers[piece] for piece in ["[CLS]", *found[: length - 2], "[SEP]"]]
    return ids + [0] * (length - len(ids))
