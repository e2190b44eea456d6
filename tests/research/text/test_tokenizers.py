"""Do the tokenisers give the ids that they promise? Against loops, scikit-learn and hashes that are written down."""

import collections
import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from input_pipeline.cli import UserError
from research.text import tokenizers
from research.text.tokenizers_base import Weights, words
from tests.research.text.wordpiece import VOCABULARY, write_vocabulary

CAPTIONS = [
    "A dog on a horse.",
    "The man's dog, 2 horses and a DOG!",
    None,
    "",
    "a boat near the dog",
    "Ein Café am Fluß; naïve",
    " \n\t",
    "?!",
]
OPTIONS = {
    "letter_bigrams": {},
    "word_ngrams": {"bits": 7, "min_count": 1, "max_length": 0},
    "words": {"min_count": 2},
    "wordpiece": {"vocabulary": "vocab.txt"},
}


def built(kind, folder, captions=CAPTIONS, **options):
    given = OPTIONS[kind] | options
    if "vocabulary" in given:
        given["vocabulary"] = str(write_vocabulary(folder))
    return tokenizers.build(kind, captions, given)


def test_letter_pairs_equal_a_loop():
    tokenizer = tokenizers.build("letter_bigrams", CAPTIONS)
    assert (tokenizer.size, tokenizer.weights, tokenizer.ordered) == (677, None, False)
    found = tokenizer.encode(CAPTIONS)
    for text, row in zip(CAPTIONS, found, strict=True):
        expected, lower = collections.Counter(), (text or "").lower()
        for first, second in zip(lower, lower[1:], strict=False):
            if "a" <= first <= "z" and "a" <= second <= "z":
                expected[first + second] += 1
        pairs = [chr(97 + (number - 1) // 26) + chr(97 + (number - 1) % 26) for number in row if number]
        assert collections.Counter(pairs) == expected
    assert tokenizer.max_length == max(np.count_nonzero(found, axis=1))
    assert tokenizer.encode(["az zz"])[0, :2].tolist() == [26, 676]


def test_words_are_letters_and_digits():
    assert words("The man's DOG_2 — naïve １２, कुत्ता/İ") == ["the", "man", "s", "dog", "2", "naïve", "12", "कुत्ता", "i̇"]
    assert words("cafe\u0301") == words("café") == ["café"]


def test_hashes_of_words_and_pairs_are_those_written_down():
    tokenizer = built("word_ngrams", None)
    for text, row in zip(CAPTIONS, tokenizer.encode(CAPTIONS), strict=True):
        found = words(text or "")
        ngrams = found + [" ".join(found[at : at + 2]) for at in range(len(found) - 1)]
        digests = [hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in ngrams]
        assert [number for number in row if number] == [1 + int.from_bytes(d, "little") % 128 for d in digests]
    assert tokenizer.size == 129
    # As `printf "a dog" | b2sum -l 64` says, little end first.
    found = tokenizers.build("word_ngrams", [], {"bits": 20}).encode(["a dog"])[0, :3]
    assert found.tolist() == [981057, 492602, 393983]


def test_inverse_frequencies_equal_scikit_learn():
    """With more ids than n-grams every n-gram has its own, which can be looked up."""
    present = [text for text in CAPTIONS if text and text.strip()]
    reference = TfidfVectorizer(tokenizer=words, lowercase=False, token_pattern=None, ngram_range=(1, 2))
    reference.fit(present)
    tokenizer = tokenizers.build("word_ngrams", CAPTIONS, {"bits": 20, "min_count": 1})
    for ngram, value in zip(reference.get_feature_names_out(), reference.idf_, strict=True):
        number = tokenizer.encode([ngram])[0, ngram.count(" ") * 2]
        assert math.isclose(tokenizer.weights.values[number], value, rel_tol=1e-6)
    assert np.count_nonzero(tokenizer.weights.values) == len(reference.idf_) and tokenizer.weights.values[0] == 0
    often = tokenizers.build("word_ngrams", CAPTIONS, {"bits": 20, "min_count": 3})
    assert np.count_nonzero(often.weights.values) == 2  # "a" and "dog" stand in three captions


def test_words_that_are_rare_or_new_are_unknown():
    tokenizer = built("words", None)
    assert tokenizer.vocabulary == ("a", "dog", "the") and tokenizer.size == 5
    assert tokenizer.encode(["The DOG saw a cat", None])[:, :6].tolist() == [[4, 3, 1, 2, 1, 0], [0] * 6]
    assert tokenizers.build("words", CAPTIONS, {"min_count": 1, "max_words": 1}).vocabulary == ("a",)
    assert tokenizers.build("words", [None, ""], {"max_length": 0}).encode(["dog"]).tolist() == [[1]]


@pytest.mark.parametrize("kind", OPTIONS)
def test_ids_are_padded_cut_and_zero_without_text(kind, tmp_path):
    tokenizer = built(kind, tmp_path)
    ids = tokenizer.encode([*CAPTIONS, "dog horse " * 300, "\ud800 half a pair", "x" * 500, "\x00\ufffd"])
    assert ids.dtype == np.int32 and ids.shape == (12, tokenizer.max_length)
    assert ids.min() == 0 and ids.max() < tokenizer.size and not ids[[2, 3, 6]].any() and ids[8].all()
    counts = np.count_nonzero(ids, axis=1)
    assert all((row[count:] == 0).all() for row, count in zip(ids, counts, strict=True))
    assert tokenizer.encode([]).shape == (0, tokenizer.max_length)
    short = built(kind, tmp_path, max_length=3).encode(CAPTIONS)
    assert short.shape == (8, 3)
    if kind != "wordpiece":
        np.testing.assert_array_equal(short, ids[:8, :3])
    np.testing.assert_array_equal(tokenizer.encode(CAPTIONS[1:2]), ids[1:2])


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_kept_tokenizer_is_the_same_and_so_are_its_bytes(kind, tmp_path):
    tokenizer, path = built(kind, tmp_path), tmp_path / "tokenizer.json"
    tokenizers.save(tokenizer, path)
    found, first = tokenizers.load(path), path.read_bytes()
    assert found == tokenizer and found.weights == tokenizer.weights
    np.testing.assert_array_equal(found.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
    tokenizers.save(found, path)
    assert path.read_bytes() == first
    assert tokenizers.build(kind, [], OPTIONS[kind] | {"vocabulary": str(tmp_path)}) if kind == "wordpiece" else True


def test_other_processes_find_the_same(tmp_path):
    """Whatever Python's own hashes and the order of its sets are."""
    code = (
        "import sys\nfrom research.text import tokenizers\n"
        "for kind in ('word_ngrams', 'words'):\n"
        "    made = tokenizers.build(kind, ['a dog', 'the cat', 'a cat and the dog'], {'min_count': 1})\n"
        "    tokenizers.save(made, sys.argv[1] + kind)\n"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, f"{tmp_path}/{seed}"], env=environment, check=True)
    for kind in ("word_ngrams", "words"):
        assert (tmp_path / f"1{kind}").read_bytes() == (tmp_path / f"2{kind}").read_bytes()


@pytest.mark.parametrize("kind", OPTIONS)
def test_damaged_files_are_refused(kind, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.save(built(kind, tmp_path), path)
    whole = path.read_text()
    content = json.loads(whole)
    broken = [whole[:-9], "", "[]", "null", '{"kind": "words"}', "[" * 100_000]
    broken += [json.dumps({k: v for k, v in content.items() if k != key}) for key in content]
    wrong = (None, -1, 0, 1.5, True, "text", [], [1], ["a", "a", None], {}, 10**30, [[1], [2, 3]])
    broken += [json.dumps(content | {key: value}) for key in content for value in wrong if content[key] != value]
    for text in broken:
        path.write_text(text)
        try:
            found = tokenizers.load(path)
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 500
        else:  # what is legal must work
            assert found.encode(CAPTIONS).max() < found.size
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is no tokeniser"):
        tokenizers.load(path)
    with pytest.raises(UserError, match="there is no tokeniser"):
        tokenizers.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("letters", {}, "no tokeniser 'letters'; choose one of letter_bigrams"),
        ("words", {"size": 3}, "no option size; it has max_length, min_count, max_words"),
        ("words", {"min_count": 0}, "give positive numbers"),
        ("words", {"max_length": -1}, "max_length -1"),
        ("words", {"max_length": 5000}, "at most 4096"),
        ("words", {"min_count": "3"}, "min_count of the tokeniser words is '3'; give a whole number"),
        ("word_ngrams", {"bits": True}, "bits of the tokeniser word_ngrams is True"),
        ("wordpiece", {"lower_case": "no"}, "give true or false"),
        ("wordpiece", {"vocabulary": 3}, "give a text"),
        ("word_ngrams", {"bits": 25}, "1 to 24 bits"),
        ("wordpiece", {}, "needs the vocabulary of a BERT"),
        ("wordpiece", {"vocabulary": "/nowhere/vocab.txt"}, "there is no vocabulary /nowhere/vocab.txt"),
        ("wordpiece", {"vocabulary": "x", "max_length": 2}, "3 or more"),
    ],
)
def test_mistakes_are_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        tokenizers.build(kind, CAPTIONS, options)


def test_vocabularies_that_are_none_are_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    for content, message in (
        (b"", "first line is not .PAD."),
        (b"[UNK]\n[PAD]\n", "first line is not .PAD."),
        (b"[PAD]\n[UNK]\na\n", "lacks .CLS. .SEP."),
        (b"[PAD]\n\xff\n", "is no vocabulary of a BERT"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            tokenizers.build("wordpiece", CAPTIONS, {"vocabulary": str(path)})


def test_case_is_what_the_model_says(tmp_path):
    path, settings = write_vocabulary(tmp_path), tmp_path / "tokenizer_config.json"
    for content, lower in ((None, True), ('{"do_lower_case": false}', False), ("{}", True)):
        if content:
            settings.write_text(content)
        assert tokenizers.build("wordpiece", [], {"vocabulary": str(path)}).lower_case is lower
        assert tokenizers.build("wordpiece", [], {"vocabulary": str(path), "lower_case": True}).lower_case
    for content in ("{", '{"do_lower_case": 3}', "[]"):
        settings.write_text(content)
        with pytest.raises(UserError, match="lower_case"):
            tokenizers.build("wordpiece", [], {"vocabulary": str(path)})


def test_lines_of_a_vocabulary_are_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*VOCABULARY, "a\u2028b"]).encode())
    tokenizer = tokenizers.build("wordpiece", [], {"vocabulary": str(path)})
    assert tokenizer.size == len(VOCABULARY) + 1 and tokenizer.vocabulary[: len(VOCABULARY)] == tuple(VOCABULARY)


def test_weights_are_known_by_their_content():
    first, same, other = Weights(np.arange(3.0)), Weights([0, 1, 2]), Weights([0, 1, 3])
    assert first == same and hash(first) == hash(same) and first != other and first != 3
    with pytest.raises(ValueError):
        first.values[0] = 1
