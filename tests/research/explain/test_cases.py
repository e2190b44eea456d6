"""Are the most confident right and wrong cases chosen, and the class that they are about?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.explain.cases import choose

NAMES = ("cat", "dog", "=cmd")


def chosen(scores, decided, labels, known=None, most=0, target="predicted"):
    scores = np.asarray(scores, float)
    ids = [f"i{n}" for n in range(len(scores))]
    known = np.ones(len(scores), bool) if known is None else np.asarray(known)
    return choose(scores, np.asarray(decided, bool), np.asarray(labels), known, ids, ids, NAMES, most, target)


def one_label(scores, labels, **more):
    scores = np.asarray(scores, float)
    return chosen(scores, scores.argmax(1)[:, None] == np.arange(3), labels, **more)


SCORES = [[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7], [0.6, 0.4, 0.0]]


def test_wrong_ones_first_each_by_confidence():
    cases = one_label(SCORES, [0, 0, 0, 2, 1])
    assert [(case.id, case.verdict, case.name) for case in cases] == [
        ("i2", "wrong", "dog"), ("i4", "wrong", "cat"), ("i1", "wrong", "dog"), ("i0", "right", "cat"),
        ("i3", "right", "=cmd"),
    ]  # fmt: skip
    assert cases[0].probability == 0.8 and cases[0].truth == ("cat",) and cases[0].predicted == ("dog",)
    assert [case.row for case in one_label(SCORES, [0, 0, 0, 2, 1], most=2)] == [2, 0]
    assert [case.row for case in one_label(SCORES, [0, 1, 1, 2, 1], most=4)] == [4, 0, 2, 3]  # one wrong only


def test_unknown_truth_comes_last():
    cases = one_label(SCORES, [-1, -1, 0, -1, 0], known=[False, False, True, False, True])
    assert [(case.row, case.right) for case in cases] == [(2, False), (4, True), (0, None), (3, None), (1, None)]
    assert cases[2].truth is None and cases[2].verdict == "truth unknown"


def test_other_classes():
    assert [case.name for case in one_label(SCORES, [0, 0, 0, 2, 1], target="true")] == ["cat", "dog", "cat", "cat",
                                                                                        "=cmd"]  # fmt: skip
    case = one_label(SCORES, [0, 0, 0, 2, 1], target="dog")[0]
    assert (case.row, case.target, case.probability) == (2, 1, 0.8)
    with pytest.raises(UserError, match="no class 'bird'; choose of predicted, true, cat"):
        one_label(SCORES, [0, 0, 0, 2, 1], target="bird")
    with pytest.raises(UserError, match="needs the truth of every image"):
        one_label(SCORES, [-1] * 5, known=[False] * 5, target="true")


def test_several_labels():
    scores = [[0.9, 0.2, 0.1], [0.6, 0.05, 0.1], [0.3, 0.2, 0.4], [0.7, 0.8, 0.1]]
    decided = [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    cases = chosen(scores, decided, labels)
    # 1: a dog of probability 0.05 was missed, so sure by 0.95; 3: a cat and a dog given, a third missed by 0.9.
    assert [(case.row, case.name, case.right) for case in cases] == [
        (1, "dog", False), (3, "=cmd", False), (0, "cat", True), (2, "=cmd", True),
    ]  # fmt: skip
    assert cases[0].probability == 0.05 and cases[0].truth == ("cat", "dog") and cases[3].predicted == ()
