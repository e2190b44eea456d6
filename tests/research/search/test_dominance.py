"""Do exactly those trials stop that a model which is not larger has already beaten?"""

import math

import numpy as np
import pytest

from research.search import dominance


def line(*accuracies, share=1.0):
    """A history of evaluations at equal distances up to a share of the training."""
    return [(share * (i + 1) / len(accuracies), a) for i, a in enumerate(accuracies)]


FINISHED = [line(0.4, 0.5, 0.6, 0.6 + 0.01 * i) for i in range(5)]  # after 50 %: gains 0.10, 0.11 … 0.14


def test_gains_by_hand():
    np.testing.assert_allclose(dominance.gains(FINISHED, 0.5), [0.10, 0.11, 0.12, 0.13, 0.14])
    np.testing.assert_allclose(dominance.gains(FINISHED, 0.74), [0.10, 0.11, 0.12, 0.13, 0.14])
    np.testing.assert_allclose(dominance.gains(FINISHED, 0.75), [0.0, 0.01, 0.02, 0.03, 0.04])
    assert dominance.gains(FINISHED, 0.2).tolist() == []  # nobody was evaluated so early
    np.testing.assert_array_equal(dominance.gains(FINISHED, 1.0), np.zeros(5))


def test_gains_are_of_the_best_so_far_and_leave_out_nan():
    history = line(0.7, 0.5, math.nan, 0.6)
    assert dominance.gains([history], 0.5).tolist() == [0.0]
    assert dominance.gains([[(0.5, math.nan)]], 1.0).tolist() == []


@pytest.mark.parametrize("count, coverage, expected", [(5, 0.95, 5), (5, 1.0, 5), (5, 0.5, 3), (19, 0.95, 19),
                                                       (39, 0.95, 38), (99, 0.9, 90), (1, 0.5, 1)])  # fmt: skip
def test_bound_is_the_order_statistic_of_conformal_prediction(count, coverage, expected):
    values = np.random.default_rng(0).permutation(count) + 1.0
    assert dominance.greatest_gain(values, coverage) == expected


def test_bound_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for count, coverage in ((5, 0.95), (39, 0.9)):
        samples = generator.exponential(size=(4000, count + 1))
        bounds = np.array([dominance.greatest_gain(row[:-1], coverage) for row in samples])
        promised = min(coverage, count / (count + 1))
        assert np.mean(samples[:, -1] <= bounds) == pytest.approx(promised, abs=0.02)


@pytest.mark.parametrize("values, coverage", [([], 0.9), ([0.1], 0.0), ([0.1], 1.1), ([0.1], math.nan)])
def test_bound_refuses_nonsense(values, coverage):
    with pytest.raises(ValueError):
        dominance.greatest_gain(np.array(values), coverage)


def check(size, history, standard_error=0.01, sizes=(3, 3, 3, 3, 3), **options):
    """Whether a running trial is beaten by the five finished ones, the best of which has 0.64."""
    marks = np.array([True] * 5 + [False])
    options = {"minimum": 5} | options
    result = dominance.beaten(np.array([*sizes, size]), [*FINISHED, history], marks, standard_error, **options)
    assert not result[:5].any()
    return bool(result[5])


def test_threshold_is_best_plus_gain_plus_standard_error():
    """0.64 is beaten at 50 % with less than 0.64 - 0.14 - 0.01 = 0.49."""
    assert check(3, line(0.3, 0.4899, share=0.5))
    assert not check(3, line(0.3, 0.4901, share=0.5))
    assert check(3, line(0.4899, 0.3, share=0.5)) and not check(3, line(0.4901, 0.3, share=0.5))
    assert not check(3, line(0.3, 0.4899, share=0.5), standard_error=0.02)
    assert check(3, line(0.3, 0.4, 0.58, share=0.75)) and not check(3, line(0.3, 0.4, 0.5901, share=0.75))


def test_only_models_that_are_not_larger_beat():
    assert check(3.0, line(0.1, 0.1, share=0.5))
    assert not check(2.999, line(0.1, 0.1, share=0.5))
    assert not check(3, line(0.1, 0.49, share=0.5), sizes=(3, 3, 3, 3, 4))  # the best is larger, the next has 0.63
    assert check(3, line(0.1, 0.4799, share=0.5), sizes=(3, 3, 3, 3, 4))


def test_nobody_stops_before_enough_have_finished():
    history = line(0.1, 0.1, share=0.5)
    assert not check(3, history, minimum=6) and check(3, history, minimum=5)
    assert not check(3, [(0.1, 0.1)])  # five have finished, but none tells of 10 % of the training
    assert not check(3, []) and not check(3, [(0.5, math.nan)])


def test_running_and_stopped_trials_beat_too_but_never_each_other():
    histories = [*FINISHED, line(0.5, 0.9, share=0.5), line(0.5, 0.7, share=0.5)]
    marks = np.array([True] * 5 + [False] * 2)
    assert dominance.beaten(np.full(7, 1.0), histories, marks, 0.0, minimum=5).tolist() == [False] * 6 + [True]
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(0, 3, 20)
        histories = [line(*generator.random(4), share=generator.choice([0.5, 1.0])) for _ in sizes]
        finished = np.array([max(at for at, _ in history) == 1.0 for history in histories])
        result = dominance.beaten(sizes, histories, finished, 0.0, coverage=0.3, minimum=1)
        best = np.array([max(accuracy for _, accuracy in history) for history in histories])
        for index in np.flatnonzero(result):  # some model that goes on is not larger and better
            assert ((sizes <= sizes[index]) & (best > best[index]) & ~result).any()
        order = generator.permutation(len(sizes))
        again = dominance.beaten(
            sizes[order], [histories[i] for i in order], finished[order], 0.0, coverage=0.3, minimum=1
        )
        np.testing.assert_array_equal(again, result[order])


def test_with_the_largest_gain_known_no_winner_is_ever_lost():
    """Trials whose later gain is within what was seen before: none that would have ended best for its size stops."""
    generator = np.random.default_rng(1)
    for _ in range(30):
        sizes = generator.integers(0, 4, 15)
        ends = generator.random(15)
        histories = [
            [(0.5, end - gain), (1.0, end)] for end, gain in zip(ends, generator.random(15) * 0.2, strict=True)
        ]
        histories[0] = [(0.5, ends[0] - 0.2), (1.0, ends[0])]
        running = np.arange(15) >= 6
        seen = [history[:1] if run else history for history, run in zip(histories, running, strict=True)]
        result = dominance.beaten(sizes, seen, ~running, 0.0, coverage=1.0, minimum=5)
        for index in np.flatnonzero(result):
            assert any(ends[j] > ends[index] and sizes[j] <= sizes[index] for j in range(15))


@pytest.mark.parametrize("sizes, marks, error", [([1.0], [True, False], 0.0), ([math.nan], [False], 0.0),
                                                 ([1.0], [False], -0.1), ([1.0], [False], math.nan)])  # fmt: skip
def test_beaten_refuses_nonsense(sizes, marks, error):
    with pytest.raises(ValueError):
        dominance.beaten(np.array(sizes), [[(0.5, 0.5)]] * len(sizes), np.array(marks), error)


def test_standard_error_over_groups():
    """Groups of one are the binomial case; copies of an example in its group change nothing; the bootstrap agrees."""
    generator = np.random.default_rng(0)
    correct = generator.random(57) < 0.8
    expected = math.sqrt(correct.mean() * (1 - correct.mean()) / 56)
    assert dominance.standard_error(correct, np.arange(57)) == pytest.approx(expected)
    assert dominance.standard_error(np.repeat(correct, 3), np.repeat(np.arange(57), 3)) == pytest.approx(expected)
    groups = generator.integers(0, 40, 57)
    draws = generator.integers(0, 40, (4000, 40))
    sums, counts = np.bincount(groups, correct, 40), np.bincount(groups, minlength=40)
    bootstrap = np.std(sums[draws].sum(1) / counts[draws].sum(1))
    assert dominance.standard_error(correct, groups) == pytest.approx(bootstrap, rel=0.1)
    assert math.isnan(dominance.standard_error(correct, ["a"] * 57))
