"""Does WordPiece cut captions as an independent implementation does, and as its authors describe?"""

import collections
import csv
import pathlib
import random
import sys

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.text import tokenizers
from tests.research.text import wordpiece

REAL = pathlib.Path(__file__).parents[4] / "shared/data/captions/train_resaved.csv"


def tokenizer_of(folder, vocabulary=None, **options):
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary or wordpiece.VOCABULARY) + "\n", encoding="utf-8")
    return tokenizers.build("wordpiece", [], {"vocabulary": str(path)} | options)


def names(tokenizer, text):
    return [tokenizer.vocabulary[number] for number in tokenizer.encode([text])[0] if number]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Skateboarding", "skate ##board ##ing"),
        ("A Café, 北京!", "a cafe , 北 京 !"),
        ("dogs\u00a0&\thorses", "dog ##s & horse ##s"),
        ("pizza", "[UNK]"),  # z is not in the vocabulary
        ("stands [SEP] [MASK]", "stands [ s ##e ##p ] [ m ##a ##s ##k ]"),
        ("d\u200bog \x00dog", "dog dog"),  # characters without width and control characters vanish
        ("man's $5", "man ' s $ 5"),
        ("a" * 100, " ".join(["a"] + 99 * ["##a"])),
        ("a" * 101, "[UNK]"),
    ],
)
def test_pieces_are_those_of_bert(text, expected, tmp_path):
    assert names(tokenizer_of(tmp_path, max_length=200), text) == ["[CLS]", *expected.split(), "[SEP]"]


def test_a_cased_model_keeps_case_and_accents(tmp_path):
    tokenizer = tokenizer_of(tmp_path, lower_case=False)
    assert names(tokenizer, "Dog dog DOG é") == ["[CLS]", "Dog", "dog", "[UNK]", "é", "[SEP]"]


def test_long_captions_end_with_the_separator(tmp_path):
    tokenizer = tokenizer_of(tmp_path, max_length=5)
    assert names(tokenizer, "the dog stands the horse") == ["[CLS]", "the", "dog", "stands", "[SEP]"]
    fitted = tokenizers.build("wordpiece", ["dogs", None], {"vocabulary": str(tmp_path), "max_length": 0})
    assert fitted.max_length == 4  # [CLS] dog ##s [SEP]


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    tokenizer = tokenizer_of(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        tokenizer.encode(["a dog"])


@pytest.mark.parametrize("lower_case", [True, False])
def test_random_texts_equal_the_independent_implementation(lower_case, tmp_path):
    draw = random.Random(3)
    characters = (
        "aeghmnordst DOG HSE'.,!-[]#$^é É ñ Å ø ß ı İ \t\n\r\x0b\x85\u00a0\u2009\u3000\u2028\u200b\ufeff\u0301\u0338"
    )
    characters += "北京日本가ｱ①Ⅳ—“”…、।٣👍\x00\ufffd\ue000"
    words = ["dog", "skateboarding", "horses", "standing", "CAFÉ", "cafe\u0301", "##ing", "[SEP]", "[PAD]"]
    texts = []
    for _ in range(1500):
        parts = draw.choices([*characters, *words], k=draw.randrange(1, 14))
        texts.append("".join(part + draw.choice(["", "", " "]) for part in parts))
    tokenizer = tokenizer_of(tmp_path, max_length=19, lower_case=lower_case)
    for text, ids in zip(texts, tokenizer.encode(texts).tolist(), strict=True):
        expected = wordpiece.encode(text, wordpiece.VOCABULARY, 19, lower_case) if text.strip() else [0] * 19
        assert ids == expected, ascii(text)


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/captions")
def test_all_real_captions_equal_the_independent_implementation(tmp_path):
    with open(REAL, newline="", encoding="utf-8") as file:
        captions = [row["Caption"] for row in csv.DictReader(file)]
    assert len(captions) == 30_000
    counts = collections.Counter(token for text in captions for token in wordpiece.basic_tokens(text, True))
    # Frequent words are pieces of their own, others are cut, and words with q or z that are not frequent are unknown.
    vocabulary = list(wordpiece.VOCABULARY)
    vocabulary += [word for word, count in counts.most_common(1200) if word not in vocabulary]
    tokenizer = tokenizer_of(tmp_path, vocabulary)
    found = tokenizer.encode(captions)
    memory, expected = {}, np.zeros_like(found)
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    for row, text in enumerate(captions):
        ids = [numbers["[CLS]"]]
        for token in wordpiece.basic_tokens(text, True):
            if token not in memory:
                memory[token] = [numbers[piece] for piece in wordpiece.pieces(token, numbers)]
            ids += memory[token]
        ids = [*ids[: tokenizer.max_length - 1], numbers["[SEP]"]]
        expected[row, : len(ids)] = ids
    np.testing.assert_array_equal(found, expected)
    unknown, cut = (
        (found == numbers["[UNK]"]).any(1).mean(),
        len(memory) - sum(len(ids) == 1 for ids in memory.values()),
    )
    assert 0.001 < unknown < 0.2 and cut > 1000
