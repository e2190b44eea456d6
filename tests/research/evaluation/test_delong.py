"""Does DeLong's method give the published numbers, those of all pairs, and sound ones for groups and classes?"""

import math

import numpy as np
import pytest
from scipy import stats

from input_pipeline.cli import UserError
from research.evaluation import delong, metrics, replicates

# The example of DeLong, DeLong & Clarke-Pearson 1988 as documented for SAS PROC LOGISTIC ("Comparing Receiver
# Operating Characteristic Curves"): albumin, total protein, K-G score, and whether surgery helped; 43 patients.
SURGERY = np.array(
    """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
    3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
    4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
    4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
    2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""".split(),
    float,
).reshape(-1, 4)


def all_pairs(scores, positives):
    """Areas and covariance from the structural components, pair by pair."""
    rows, columns, areas = [], [], []
    for values in scores:
        ours, theirs = values[positives][:, None], values[~positives][None]
        kernel = (ours > theirs) + 0.5 * (ours == theirs)
        areas.append(kernel.mean())
        rows.append(kernel.mean(axis=1))
        columns.append(kernel.mean(axis=0))
    covariance = np.cov(rows) / positives.sum() + np.cov(columns) / (~positives).sum()
    return np.array(areas), covariance


def sample(seed, num_examples=61, num_models=3, decimals=1):
    generator = np.random.default_rng(seed)
    positives = generator.random(num_examples) < 0.4
    scores = np.round(generator.normal(0, 1, (num_models, num_examples)) + positives, decimals)
    return scores, positives


def test_the_published_example_of_delong():
    positives = SURGERY[:, 3] > 0
    scores = np.stack([SURGERY[:, 0], SURGERY[:, 1], 10 - SURGERY[:, 2]])
    areas, covariance = delong.auroc_covariance(scores, positives)
    np.testing.assert_allclose(areas, [0.7366, 0.6478, 0.7258], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1000, 0.1028], atol=5e-5)
    limits = [delong.interval(areas[i], covariance[i, i]) for i in range(3)]
    np.testing.assert_allclose(limits, [[0.5549, 0.9182], [0.4518, 0.8439], [0.5243, 0.9273]], atol=6e-5)
    albumin, protein = (delong.difference(areas, covariance, i, 2) for i in (0, 1))
    assert (albumin.value, albumin.low, albumin.high) == pytest.approx((0.0108, -0.1761, 0.1976), abs=5e-5)
    assert (albumin.z**2, albumin.p) == pytest.approx((0.0127, 0.9102), abs=5e-5)
    assert (protein.value, protein.low, protein.high) == pytest.approx((-0.0780, -0.2830, 0.1271), abs=5e-5)
    assert (protein.z**2, protein.p) == pytest.approx((0.5554, 0.4561), abs=5e-5)
    rows = np.array([[1, 0, -1], [0, 1, -1]])
    statistic, degrees, p = delong.contrast(areas, covariance, rows)
    assert degrees == 2 and (statistic, p) == pytest.approx((2.5340, 0.2817), abs=5e-5)


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_midranks_equal_all_pairs(seed, decimals):
    scores, positives = sample(seed, decimals=decimals)
    areas, covariance = delong.auroc_covariance(scores, positives)
    expected = all_pairs(scores, positives)
    np.testing.assert_allclose(areas, expected[0], rtol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], rtol=1e-9, atol=1e-15)
    whitney = stats.mannwhitneyu(scores[0][positives], scores[0][~positives]).statistic
    assert areas[0] == pytest.approx(whitney / positives.sum() / (~positives).sum())
    # Only the order counts, on any scale.
    again = delong.auroc_covariance(np.exp(scores * 50), positives.astype(int))
    np.testing.assert_allclose(again[1], covariance, rtol=1e-9)


def test_groups_of_one_change_nothing_and_copies_add_nothing():
    scores, positives = sample(1)
    areas, covariance = delong.auroc_covariance(scores, positives)
    alone = delong.auroc_covariance(scores, positives, np.arange(61))
    np.testing.assert_allclose(alone[1], covariance, rtol=1e-12)
    copies = np.tile(np.arange(61), 3)
    clustered = delong.auroc_covariance(np.tile(scores, 3), np.tile(positives, 3), copies)
    np.testing.assert_allclose(clustered[0], areas)
    np.testing.assert_allclose(clustered[1], covariance, rtol=1e-9)
    # Without the groups the copies would pass for evidence.
    naive = delong.auroc_covariance(np.tile(scores, 3), np.tile(positives, 3))[1]
    assert np.all(np.diag(naive) < 0.4 * np.diag(covariance))


def test_clustered_variances_equal_obuchowskis_up_to_the_factor_of_the_cross_term():
    scores, positives = sample(5, num_examples=80)
    groups = np.random.default_rng(0).integers(0, 27, 80)
    areas, covariance = delong.auroc_covariance(scores[:1], positives, groups)
    kernel = (scores[0][positives][:, None] > scores[0][~positives]) + 0.5 * (
        scores[0][positives][:, None] == scores[0][~positives]
    )
    ours = np.zeros(27)
    theirs = np.zeros(27)
    np.add.at(ours, groups[positives], kernel.mean(axis=1) - areas[0])
    np.add.at(theirs, groups[~positives], kernel.mean(axis=0) - areas[0])
    factors = [n / (n - 1) for n in (len(np.unique(groups[positives])), len(np.unique(groups[~positives])))]
    m, n = positives.sum(), (~positives).sum()
    expected = factors[0] * (ours**2).sum() / m**2 + factors[1] * (theirs**2).sum() / n**2
    expected += 2 * np.sqrt(factors[0] * factors[1]) * (ours * theirs).sum() / (m * n)
    assert covariance[0, 0] == pytest.approx(expected)
    by_bootstrap = replicates.resample(
        np.stack([1 - stats.norm.cdf(scores[:1]), stats.norm.cdf(scores[:1])], axis=-1),
        positives.astype(int),
        False,
        groups=groups,
        n=4000,
        names=("auroc_macro",),
    ).values["auroc_macro"]
    assert np.sqrt(covariance[0, 0]) == pytest.approx(np.nanstd(by_bootstrap), rel=0.15)


def test_one_vs_rest_is_the_macro_auroc_with_the_variance_of_its_influences():
    generator = np.random.default_rng(2)
    labels = generator.choice(4, 90, p=[0.5, 0.3, 0.2, 0.0])  # the last class is absent
    logits = generator.normal(0, 1, (2, 90, 4))
    logits[:, np.arange(90), labels] += 1
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    areas, covariance = delong.one_vs_rest(scores, labels, False)
    for model in range(2):
        assert areas[model] == pytest.approx(metrics.evaluate(scores[model], labels, False)["auroc_macro"])
    # The influence of an example is the derivative of the AUROC in its weight, taken numerically.
    step, influence = 1e-5, np.zeros((2, 90))
    weights = np.concatenate([1 + step * np.eye(90), 1 - step * np.eye(90)])
    for model in range(2):
        for c in range(3):
            moved = metrics.ranking(scores[model, :, c], labels == c, weights)[0]
            sizes = np.where(labels == c, (labels == c).sum(), (labels != c).sum())
            influence[model] += (moved[:90] - moved[90:]) / (2 * step) * np.sqrt(sizes / (sizes - 1)) / 3
    np.testing.assert_allclose(covariance, influence @ influence.T, rtol=1e-5)
    found = replicates.resample(scores, labels, False, n=3000, names=("auroc_macro",))
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), found.values["auroc_macro"].std(axis=0), rtol=0.1)
    multi_hot = (labels[:, None] == np.arange(4)).astype(np.float32)
    np.testing.assert_allclose(delong.one_vs_rest(scores, multi_hot, True)[1], covariance)
    nothing = delong.one_vs_rest(scores[:, :9], np.zeros(9, int), False)
    assert np.isnan(nothing[0]).all() and np.isnan(nothing[1]).all()


def test_the_test_keeps_its_level_under_the_null_hypothesis():
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        positives = generator.random(80) < 0.5
        shared = generator.normal(0, 1, 80) + positives
        scores = shared + generator.normal(0, 0.7, (2, 80))
        p_values.append(delong.difference(*delong.auroc_covariance(scores, positives), 0, 1).p)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_the_logit_interval_covers_better_near_one():
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(2.4 / np.sqrt(2))
    covered = np.zeros(2)
    for _ in range(400):
        positives = np.arange(60) < 30
        scores = generator.normal(0, 1, 60) + 2.4 * positives
        areas, covariance = delong.auroc_covariance(scores[None], positives)
        for row, logit in enumerate((False, True)):
            low, high = delong.interval(areas[0], covariance[0, 0], logit=logit)
            assert math.isnan(low) or 0 <= low <= areas[0] <= high <= 1
            covered[row] += low <= truth <= high
    assert covered[1] / 400 > 0.93 and covered[1] >= covered[0]


def test_one_class_one_example_and_perfect_order_are_told():
    scores = np.array([[0.1, 0.2, 0.3, 0.9], [0.4, 0.2, 0.3, 0.1]])
    areas, covariance = delong.auroc_covariance(scores, np.ones(4, bool))
    assert np.isnan(areas).all() and np.isnan(covariance).all()
    areas, covariance = delong.auroc_covariance(scores, np.arange(4) == 3)
    assert areas.tolist() == [1, 0] and np.isnan(covariance).all()
    assert math.isnan(delong.interval(areas[0], covariance[0, 0])[0])
    assert math.isnan(delong.difference(areas, covariance, 0, 1).p)
    areas, covariance = delong.auroc_covariance(scores, np.arange(4) > 1, groups=[0, 1, 2, 2])
    assert np.isnan(covariance).all()  # the positives are one group
    areas, covariance = delong.auroc_covariance(scores[[0, 0]], np.arange(4) > 1)
    assert areas.tolist() == [1, 1]
    for logit in (False, True):
        assert math.isnan(delong.interval(areas[0], covariance[0, 0], logit=logit)[0])
    same = delong.difference(areas, covariance, 0, 1)
    assert (same.value, same.z, same.p) == (0, 0, 1)
    assert delong.contrast(areas, covariance, np.array([[1, -1]])) == (0, 0, 1)
    constant = delong.auroc_covariance(np.full((1, 6), 0.5), np.arange(6) > 2)
    assert constant[0] == 0.5 and constant[1] == 0


def test_mistakes_are_refused():
    scores, positives = sample(0)
    broken = scores.copy()
    broken[1, 3] = np.nan
    with pytest.raises(UserError, match="finite"):
        delong.auroc_covariance(broken, positives)
    with pytest.raises(UserError, match=r"\[R, N\]"):
        delong.auroc_covariance(scores[0], positives)
    with pytest.raises(UserError, match=r"\[R, N\]"):
        delong.auroc_covariance(scores, positives[:-1])
    with pytest.raises(UserError, match="0 and 1"):
        delong.auroc_covariance(scores, positives * 2 - 1)
    with pytest.raises(UserError, match="groups do not fit"):
        delong.auroc_covariance(scores, positives, [0, 1])
    with pytest.raises(UserError, match="level"):
        delong.interval(0.5, 0.1, level=95)
    with pytest.raises(UserError, match=r"\[M, N, K\]"):
        delong.one_vs_rest(scores, positives.astype(int), False)
