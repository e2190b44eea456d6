"""Are the thresholds optimal, by comparison with trying everything, and does every example get a label?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import thresholds


def f1_at(scores, labels, cut):
    given = scores >= cut
    total = given.sum() + labels.sum()
    return 2 * (given & (labels > 0)).sum() / total if total else 0.0


@pytest.mark.parametrize("decimals", [1, 2, 17])
@pytest.mark.parametrize("seed", range(6))
def test_per_class_thresholds_reach_the_best_f1_there_is(seed, decimals):
    generator = np.random.default_rng(seed)
    labels = generator.random((37, 4)) < [0.1, 0.5, 0.9, 0.3]
    scores = np.round(generator.random((37, 4)) * 0.8 + 0.2 * labels, decimals)
    found = thresholds.per_class_f1(scores, labels)
    for c in range(4):
        candidates = [-1.0, 2.0, *scores[:, c], *np.nextafter(scores[:, c], 2)]
        best = max(f1_at(scores[:, c], labels[:, c], cut) for cut in candidates)
        assert f1_at(scores[:, c], labels[:, c], found[c]) == best
        assert np.array_equal(thresholds.decide(scores, found, "none")[:, c], scores[:, c] >= found[c])


def random_case(number):
    """Scores and labels of one class: continuous, with ties, constant, extreme; few, all or no positives."""
    generator = np.random.default_rng(number)
    size = int(generator.integers(1, 40))
    share = (0.0, 0.05, 0.3, 0.7, 1.0)[number % 5]
    labels = generator.random((size, 1)) < share
    scores = generator.random((size, 1)) * generator.choice([0.2, 1.0])
    kind = number % 7
    if kind in (1, 2):
        scores = np.round(scores, kind)
    elif kind == 3:
        scores[:] = generator.choice([0.0, 0.3, 0.5, 1.0])
    elif kind == 4:
        scores = np.round(scores)
    elif kind == 5:
        scores = scores.astype(np.float32) * np.float32(1e-7) + np.float32(0.5)  # neighbouring floats
    return scores, labels


def test_a_thousand_cases_equal_brute_force_and_are_never_worse_than_the_study_s_grid():
    points = np.round(np.arange(0.05, 0.951, 0.05), 10)
    kinds = set()
    for number in range(1000):
        scores, labels = random_case(number)
        found = thresholds.per_class_f1(scores, labels)[0]
        own, true = scores[:, 0].astype(np.float64), labels[:, 0]
        reached = f1_at(own, true, found)
        best = max(f1_at(own, true, cut) for cut in (*own, 2.0))
        assert reached == best, number
        assert reached >= max(f1_at(own, true, cut) for cut in points), number
        assert reached >= f1_at(own, true, thresholds.grid(scores, labels, 0.05, 0.95)[0]), number
        if not true.any():
            assert found == 0.5
        kinds.add((true.any(), true.all(), len(set(own)) == 1, len(set(own)) < len(own)))
    assert len(kinds) >= 7  # positives: some, all, none; scores: distinct, tied, constant


def test_scores_that_are_no_numbers_are_refused_in_any_column():
    for value in (np.nan, np.inf, -np.inf):
        scores = np.full((5, 3), 0.5)
        scores[3, 2] = value
        for function in (thresholds.per_class_f1, thresholds.grid, thresholds.fit):
            with pytest.raises(UserError, match="not finite"):
                function(scores, np.ones((5, 3)))


def test_a_threshold_lies_midway_between_its_neighbours():
    scores = np.array([[0.9], [0.8], [0.4], [0.1]])
    assert thresholds.per_class_f1(scores, np.array([[1], [1], [0], [0]]))[0] == pytest.approx(0.6)
    # All positive: below the lowest score, midway to zero.
    assert thresholds.per_class_f1(scores, np.ones((4, 1)))[0] == pytest.approx(0.05)
    # Equally good cuts (F1 2/3 at two of them): the one nearest to 0.5.
    assert thresholds.per_class_f1(scores, np.array([[1], [0], [0], [1]]))[0] == pytest.approx(0.85)


def test_neighbouring_floats_are_told_apart():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores = np.array([[low], [high]], np.float32)
    cut = thresholds.per_class_f1(scores, np.array([[0], [1]]))
    assert thresholds.decide(scores, cut, "none")[:, 0].tolist() == [False, True]
    scores = np.array([[0.3], [np.nextafter(0.3, 1)]])
    cut = thresholds.per_class_f1(scores, np.array([[0], [1]]))
    assert thresholds.decide(scores, cut, "none")[:, 0].tolist() == [False, True]


def test_all_scores_zero_and_classes_without_positives():
    scores = np.array([[0.0, 0.7], [0.0, 0.2], [0.0, 0.9]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    found = thresholds.per_class_f1(scores, labels)
    assert f1_at(scores[:, 0], labels[:, 0], found[0]) == pytest.approx(0.8)
    assert found[1] == 0.5
    assert thresholds.grid(scores, labels)[1] == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_grid_equals_trying_each_of_its_points(seed):
    generator = np.random.default_rng(seed)
    labels = generator.random((29, 3)) < 0.4
    scores = np.round(generator.random((29, 3)), 2)
    points = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70]
    found = thresholds.grid(scores, labels)
    for c in range(3):
        assert found[c] in points
        assert f1_at(scores[:, c], labels[:, c], found[c]) == max(
            f1_at(scores[:, c], labels[:, c], cut) for cut in points
        )


def test_fallbacks_leave_no_example_without_a_label():
    scores = np.array([[0.6, 0.1], [0.47, 0.48], [0.2, 0.45], [0.3, 0.3], [0.1, 0.2]])
    assert thresholds.decide(scores, 0.5, "none").tolist() == [[True, False]] + [[False, False]] * 4
    assert thresholds.decide(scores, 0.5).tolist() == [
        [True, False],
        [False, True],
        [False, True],
        [True, False],
        [False, True],
    ]
    listed = thresholds.decide(scores, 0.5, (0.46, 0.445))
    assert listed.tolist() == [[True, False], [True, True], [False, True], [True, False], [False, True]]
    assert np.array_equal(listed, thresholds.decide(scores, 0.5, (0.46, 0.445, "argmax")))
    assert thresholds.decide(scores, 0.5, [0.46, "none"]).any(axis=1).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert thresholds.decide(scores, np.array([0.7, 0.05])).tolist()[0] == [False, True]


def test_fit_goes_by_name_and_mistakes_are_refused():
    scores, labels = np.array([[0.4], [0.6]]), np.array([[0], [1]])
    assert thresholds.fit(scores, labels, "fixed", value=0.3).tolist() == [0.3]
    assert thresholds.fit(scores, labels, "grid", low=0.2, high=0.3, step=0.1).tolist() == [0.3]
    assert thresholds.fit(scores, labels).tolist() == [0.5]
    with pytest.raises(UserError, match="unknown threshold method"):
        thresholds.fit(scores, labels, "best")
    with pytest.raises(UserError, match="not finite"):
        thresholds.fit(np.array([[np.nan], [0.6]]), labels)
    with pytest.raises(UserError, match="not finite"):
        thresholds.decide(np.array([[np.inf], [0.6]]), 0.5)
    with pytest.raises(UserError, match="calibration role"):
        thresholds.per_class_f1(scores[:0], labels[:0])
    with pytest.raises(UserError, match="one shape"):
        thresholds.per_class_f1(scores, labels[:, 0])
    with pytest.raises(UserError, match="empty"):
        thresholds.grid(scores, labels, 0.7, 0.3)
    for fallback in ("max", (0.4, 0.46), ("argmax", 0.4)):
        with pytest.raises(UserError, match="fallback"):
            thresholds.decide(scores, 0.5, fallback)
    with pytest.raises(UserError, match="1 finite numbers"):
        thresholds.decide(scores, [0.5, 0.4])
