"""Are the intervals those of the literature and of scipy, also where nothing varies or nothing is defined?"""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from input_pipeline.cli import UserError
from research.evaluation import intervals, statistics

# Efron & Tibshirani 1993, table 14.1: the spatial test, 26 children, test A.
SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], float
)


def jackknife(statistic, values):
    return np.array([statistic(np.delete(values, i)) for i in range(len(values))])


def test_bca_of_a_variance_equals_efron_and_tibshirani():
    assert SPATIAL.var() == pytest.approx(171.5, abs=0.05)
    assert intervals.acceleration(jackknife(np.var, SPATIAL)) == pytest.approx(0.061, abs=0.0005)
    low, high = statistics.cluster_bootstrap(
        lambda rows: SPATIAL[rows].var(), np.arange(26), n=20_000, seed=1, level=0.9, method="bca"
    )
    # Printed (115.8, 259.6), from 2,000 replicates; the percentile interval there is (100.8, 233.9).
    assert low == pytest.approx(115.8, abs=2.5) and high == pytest.approx(259.6, abs=4)
    low, high = statistics.cluster_bootstrap(lambda rows: SPATIAL[rows].var(), np.arange(26), n=20_000, level=0.9)
    assert low == pytest.approx(100.8, abs=4) and high == pytest.approx(233.9, abs=4)


@pytest.mark.parametrize("statistic", [np.mean, np.var, np.median, lambda x, axis=-1: np.max(x, axis=axis)])
@pytest.mark.parametrize("decimals", [0, 8])
def test_bca_equals_scipy_on_the_same_replicates(statistic, decimals):
    values = np.round(np.random.default_rng(3).gamma(2, 3, 37), decimals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The maximum has no spread above: scipy warns, and so may give NaN.
        expected = stats.bootstrap(
            (values,), statistic, n_resamples=999, method="BCa", confidence_level=0.9, rng=5, axis=-1
        )
    found = intervals.bca(expected.bootstrap_distribution, statistic(values), jackknife(statistic, values), 0.9)
    np.testing.assert_allclose(found, expected.confidence_interval, rtol=1e-9)


def test_bca_of_strata_equals_scipys_of_two_samples():
    generator = np.random.default_rng(8)
    first, second = generator.gamma(2, 3, 23), generator.gamma(1, 2, 17)

    def statistic(x, y, axis=-1):
        return np.mean(x, axis=axis) / np.var(y, axis=axis)

    expected = stats.bootstrap((first, second), statistic, n_resamples=999, method="BCa", rng=5, axis=-1, paired=False)
    left_out = [statistic(np.delete(first, i), second) for i in range(23)]
    left_out += [statistic(first, np.delete(second, i)) for i in range(17)]
    strata = np.repeat([0, 1], [23, 17])
    found = intervals.bca(expected.bootstrap_distribution, statistic(first, second), np.array(left_out), 0.95, strata)
    np.testing.assert_allclose(found, expected.confidence_interval, rtol=1e-9)


def test_bca_works_column_by_column():
    generator = np.random.default_rng(0)
    replicates, left_out = generator.gamma(2, 1, (400, 2, 3)), generator.gamma(2, 1, (19, 2, 3))
    estimate = np.median(replicates, axis=0)
    low, high = intervals.bca(replicates, estimate, left_out, 0.9)
    assert low.shape == high.shape == (2, 3)
    alone = intervals.bca(replicates[:, 1, 2], estimate[1, 2], left_out[:, 1, 2], 0.9)
    assert (low[1, 2], high[1, 2]) == alone


def test_what_does_not_vary_or_is_not_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = np.ones(50)
        assert intervals.percentile(right, 0.95) == (1, 1)
        assert intervals.bca(right, 1.0, np.ones(9), 0.95) == (1, 1)
        assert intervals.acceleration(np.full(9, 0.1) + 1e-17) == 0
        assert intervals.acceleration(np.full(4, np.nan)) == 0
        undefined = np.where(np.arange(50) < 30, np.nan, 0.5)
        for method in intervals.METHODS:
            assert np.isnan(intervals.bootstrap(undefined, 0.5, np.ones(9), 0.95, method)).all()
        spread = np.linspace(0, 1, 51)
        spread[:20] = np.nan  # fewer than half
        assert not np.isnan(intervals.bca(spread, 0.7, np.array([0.1, 0.4, np.nan]), 0.95)).any()
        assert np.isnan(intervals.bca(spread, np.nan, np.ones(3), 0.95)).all()
        assert np.isnan(intervals.bca(spread, 2.0, np.array([0.1, 0.4]), 0.95)).all()  # all on one side


@pytest.mark.parametrize(("successes", "total"), [(0, 13), (13, 13), (586, 624), (1, 3), (0, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_proportions_equal_scipy(successes, total, level):
    test = stats.binomtest(successes, total)
    exact = test.proportion_ci(level, method="exact")
    np.testing.assert_allclose(intervals.clopper_pearson(successes, total, level), exact, rtol=1e-9, atol=1e-15)
    wilson = test.proportion_ci(level, method="wilson")
    np.testing.assert_allclose(intervals.wilson(successes, total, level), wilson, rtol=1e-9, atol=1e-12)


def test_clopper_pearson_of_no_success_is_the_closed_form():
    # Of n failures the upper end is 1 - (alpha / 2)^(1 / n).
    assert intervals.clopper_pearson(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert math.isnan(intervals.clopper_pearson(0, 0)[0])


def test_clopper_pearson_equals_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(586, 624, method="beta")
    assert intervals.clopper_pearson(586, 624) == pytest.approx(expected)


def test_the_printed_interval_of_the_paper_is_reproduced():
    low, high = intervals.coefficient_as_proportion(0.9068, 624)
    assert (round(low, 4), round(high, 4)) == (0.8839, 0.9297)


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="successes"):
        intervals.clopper_pearson(4, 3)
    with pytest.raises(UserError, match="use the bootstrap"):
        intervals.coefficient_as_proportion(-0.1, 624)
    with pytest.raises(UserError, match="percentile, bca"):
        intervals.bootstrap(np.ones(3), 1.0, None, 0.95, "normal")
    with pytest.raises(UserError, match="jackknife"):
        intervals.bootstrap(np.ones(3), 1.0, None, 0.95, "bca")
    with pytest.raises(UserError, match="level"):
        intervals.bootstrap(np.ones(3), 1.0, None, 95, "percentile")
