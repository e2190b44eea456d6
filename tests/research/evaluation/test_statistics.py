"""Are the intervals those of a plain bootstrap over groups, do they cover, and are they fast enough to be
everywhere?
"""

import math
import time

import numpy as np
import pytest
from scipy.stats import binomtest

from input_pipeline.cli import UserError
from research.evaluation import metrics, resampling, statistics


@pytest.fixture(scope="module")
def multi():
    generator = np.random.default_rng(0)
    groups = np.array([f"g{i}" for i in generator.integers(0, 19, 83)])
    labels = (generator.random((83, 4)) < 0.3).astype(np.float32)
    scores = np.clip(np.round(generator.normal(0.35, 0.2, labels.shape) + 0.2 * labels, 2), 0, 1)
    return scores, labels, groups


@pytest.fixture(scope="module")
def single():
    generator = np.random.default_rng(1)
    groups = generator.integers(0, 23, 71)
    labels = generator.integers(0, 3, 71)
    predicted = np.where(generator.random(71) < 0.6, labels, generator.integers(0, 3, 71))
    return labels, predicted, groups


def equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_a_replicate_is_whole_groups_drawn_with_replacement(single):
    _, _, groups = single
    seen = []
    statistics.cluster_bootstrap(lambda indices: seen.append(np.bincount(indices, minlength=71)) or 0.0, groups, 50, 3)
    assert len(seen) == 50
    for counts in seen:
        drawn = [set(counts[groups == group]) for group in np.unique(groups)]
        assert all(len(times) == 1 for times in drawn)
        assert sum(times.pop() for times in drawn) == len(np.unique(groups))
    assert len({counts.tobytes() for counts in seen}) > 45


@pytest.mark.parametrize("name", metrics.COUNT_METRICS)
def test_the_fast_path_equals_the_plain_bootstrap_multi_label(multi, name):
    scores, labels, groups = multi
    predicted = scores >= 0.5
    fast = statistics.metric_intervals(labels, predicted, 4, True, groups, n=40, seed=5)[name]

    def plain(indices):
        return metrics.evaluate(scores[indices], labels[indices], True)[name]

    equal(fast, statistics.cluster_bootstrap(plain, groups, n=40, seed=5))


def test_the_fast_path_equals_the_plain_bootstrap_single_label(single):
    labels, predicted, groups = single
    fast = statistics.metric_intervals(labels, predicted, 3, False, groups, n=60, seed=2, level=0.9)
    scores = np.eye(3)[predicted]

    def plain(indices):
        result = metrics.evaluate(scores[indices], labels[indices], False)
        return np.array([result[name] for name in metrics.COUNT_METRICS])

    low, high = statistics.cluster_bootstrap(plain, groups, n=60, seed=2, level=0.9)
    equal([fast[name] for name in metrics.COUNT_METRICS], np.stack([low, high], 1))
    assert list(fast) == list(metrics.COUNT_METRICS)


def test_the_weighted_scores_equal_the_plain_bootstrap(multi):
    scores, labels, groups = multi
    fast, by_class = statistics.score_intervals(scores, labels, True, groups, n=40, seed=7)

    def plain(indices):
        result = metrics.evaluate(scores[indices], labels[indices], True)
        rows = metrics.per_class(scores[indices], labels[indices], True)
        overall = [result[name] for name in metrics.SCORE_METRICS]
        return np.array(overall + [row["auroc"] for row in rows] + [row["average_precision"] for row in rows])

    low, high = statistics.cluster_bootstrap(plain, groups, n=40, seed=7)
    equal([fast[name] for name in metrics.SCORE_METRICS], np.stack([low, high], 1)[:4])
    equal(by_class["auroc"], [low[4:8], high[4:8]])
    equal(by_class["average_precision"], [low[8:], high[8:]])


def test_per_class_intervals_equal_the_plain_bootstrap(multi):
    scores, labels, groups = multi
    predicted = scores >= 0.4
    fast = statistics.per_class_intervals(labels, predicted, 4, True, groups, n=40, seed=1)
    for name in ("precision", "recall", "f1"):

        def plain(indices, name=name):
            rows = metrics.per_class(scores[indices], labels[indices], True, 0.4)
            return np.array([row[name] for row in rows])

        equal(fast[name], statistics.cluster_bootstrap(plain, groups, n=40, seed=1))


def test_differences_are_paired(single):
    labels, predicted, groups = single
    rival = np.zeros_like(labels)
    fast = statistics.difference_intervals(labels, predicted, rival, 3, False, groups, n=80, seed=4)["accuracy"]

    def plain(indices):
        return np.mean(predicted[indices] == labels[indices]) - np.mean(labels[indices] == 0)

    equal(fast, statistics.cluster_bootstrap(plain, groups, n=80, seed=4))
    itself = statistics.difference_intervals(labels, predicted, predicted, 3, False, groups, n=80)
    assert itself["macro_f1"] == (0.0, 0.0)


def test_blocks_do_not_change_the_draws(single, monkeypatch):
    labels, predicted, groups = single
    whole = statistics.metric_intervals(labels, predicted, 3, False, groups, n=101, seed=6)
    monkeypatch.setattr(resampling, "BLOCK", 23 * 7)
    assert statistics.metric_intervals(labels, predicted, 3, False, groups, n=101, seed=6) == whole
    assert statistics.metric_intervals(labels, predicted, 3, False, groups, n=101, seed=8) != whole


def test_related_images_widen_the_interval():
    generator = np.random.default_rng(0)
    right = np.repeat(generator.random(40) < 0.8, 25)  # 40 photographs, 25 copies of each
    labels, predicted = np.zeros(1000, int), np.where(right, 0, 1)
    groups = np.repeat(np.arange(40), 25)
    low, high = statistics.metric_intervals(labels, predicted, 2, False, groups)["accuracy"]
    naive_low, naive_high = statistics.metric_intervals(labels, predicted, 2, False)["accuracy"]
    assert (high - low) / (naive_high - naive_low) == pytest.approx(5, rel=0.15)  # the square root of 25


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        predicted = (generator.random(150) >= 0.7).astype(int)
        low, high = statistics.metric_intervals(np.zeros(150, int), predicted, 2, False, n=300, seed=trial)["accuracy"]
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_what_cannot_be_resampled_has_no_interval(multi):
    scores, labels, _ = multi
    one = np.zeros(len(labels))
    low, high = statistics.metric_intervals(labels, scores > 0.5, 4, True, one)["macro_f1"]
    assert math.isnan(low) and math.isnan(high)
    overall, by_class = statistics.score_intervals(scores, labels, True, one)
    assert math.isnan(overall["ece"][0]) and np.isnan(by_class["auroc"]).all()
    assert np.isnan(statistics.per_class_intervals(labels, scores > 0.5, 4, True, one)["f1"]).all()
    assert math.isnan(statistics.cluster_bootstrap(lambda indices: 1.0, one)[0])
    undefined = statistics.cluster_bootstrap(lambda indices: float("nan"), np.arange(5), n=9)
    assert math.isnan(undefined[0]) and math.isnan(undefined[1])


@pytest.mark.parametrize(("successes", "total"), [(0, 13), (13, 13), (586, 624), (1, 3)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes, total, level):
    expected = binomtest(successes, total).proportion_ci(level, method="wilson")
    equal(statistics.wilson(successes, total, level), (expected.low, expected.high))


def test_ten_thousand_rows_take_about_a_second():
    generator = np.random.default_rng(0)
    labels = generator.random((10_000, 10)) < 0.15
    predicted = labels ^ (generator.random(labels.shape) < 0.1)
    start = time.process_time()
    low, high = statistics.metric_intervals(labels, predicted, 10, True, n=2000)["macro_f1"]
    # Processor time, and with room for other work on the machine: 0.7 s measured on one core.
    assert time.process_time() - start < 5
    assert low < metrics.evaluate(labels * 1.0, labels, True, predicted=predicted)["macro_f1"] < high


def test_mistakes_are_refused(single):
    labels, predicted, groups = single
    with pytest.raises(UserError, match="do not fit"):
        statistics.metric_intervals(labels, predicted, 3, False, groups[:-1])
    with pytest.raises(UserError, match="level"):
        statistics.metric_intervals(labels, predicted, 3, False, groups, level=95)
    with pytest.raises(UserError, match="replicate"):
        statistics.cluster_bootstrap(lambda indices: 0.0, groups, n=0)
    with pytest.raises(UserError, match="successes"):
        statistics.wilson(4, 3)
    assert math.isnan(statistics.wilson(0, 0)[0])
