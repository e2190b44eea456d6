"""Does the keyword rule find the words that it lists, nothing inside other words, and what it claims on real texts?"""

import pathlib

import numpy as np
import pytest
from sklearn.metrics import f1_score

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.studies import captions
from research.evaluation.keywords import WORDS, keyword_rule

REAL = pathlib.Path(__file__).parents[4] / "shared/data/captions"


def found(caption: str) -> set[str]:
    return {name for name, holds in zip(WORDS, keyword_rule([caption])[0], strict=True) if holds}


@pytest.mark.parametrize(
    "caption,expected",
    [
        ("A MAN, riding two horses.", {"person", "horse"}),
        ("the category of a cattle carpet", set()),
        ("Traffic\nlights; above a stop-sign", {"traffic light", "stop sign", "car"}),
        ("a sign and a light at a stop", set()),
        ("a motorcyclist", {"person", "motorcycle"}),
        ('hydrant labelled "bus stop"', {"fire hydrant", "bus"}),
        ("stop", set()),
        ("", set()),
        ("\x00 12 ünï 犬", set()),
    ],
)
def test_words_and_phrases(caption, expected):
    assert found(caption) == expected


def test_each_label_is_found_by_its_own_name_and_terms():
    for name, terms in WORDS.items():
        assert name in found(f"there is a {name}!")
        words, _, phrases = terms.partition("|")
        for term in [*words.split(), *filter(None, phrases.split("|"))]:
            assert name in found(term), term
            assert len(term.split()) <= 2 and term == term.lower()


def test_columns_follow_the_names_asked_for():
    some = ["dog", "person"]
    rule = keyword_rule(["a dog", None, "people"], some)
    np.testing.assert_array_equal(rule, [[True, False], [False, False], [False, True]])
    assert keyword_rule([], some).shape == (0, 2) and keyword_rule(["dog"], []).shape == (1, 0)
    with pytest.raises(UserError, match="no words for the class 'zebra'"):
        keyword_rule(["a zebra"], ["dog", "zebra"])


def test_classes_are_those_of_the_study():
    assert tuple(WORDS) == captions.CLASS_NAMES


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/captions")
def test_real_captions():
    examples = captions.scan(raw.open_source(REAL), {"captions_only": "yes"}).examples
    true = np.zeros((len(examples), len(WORDS)), bool)
    for row, example in enumerate(examples):
        true[row, list(example.labels)] = True
    rule = keyword_rule([example.caption for example in examples])
    scores = [f1_score(true, rule, average=average, zero_division=0) for average in ("micro", "macro", "samples")]
    np.testing.assert_allclose(scores, [0.782, 0.718, 0.785], atol=0.0006)
