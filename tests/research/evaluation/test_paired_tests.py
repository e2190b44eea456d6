"""Are the paired tests exact where they can be, equal to brute force and scipy, and honest where nothing differs?"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from input_pipeline.cli import UserError
from research.evaluation import calibration, metrics, paired_tests, replicates, resampling


def models(seed=0, num_examples=61, num_classes=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_examples)
    wrong = generator.integers(0, num_classes, (2, num_examples))
    better, worse = (np.where(generator.random(num_examples) < q, labels, wrong[i]) for i, q in enumerate((0.8, 0.6)))
    return better, worse, labels, generator.integers(0, 17, num_examples)


def accuracy(predicted, labels):
    return np.mean(predicted == labels)


def mcc(predicted, labels):
    true, given = labels[:, None] == np.arange(3), predicted[:, None] == np.arange(3)
    return float(metrics.from_counts(metrics.example_counts(true, given).sum(axis=0), False)["mcc"])


def test_mcnemar_on_agrestis_approval_of_the_prime_minister():
    # Agresti 2002, table 10.1: 794 approve twice, 150 and 86 change their minds, 570 disapprove twice; z = -4.17.
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    found = paired_tests.mcnemar(first, second)
    assert (found.first_only, found.second_only) == (150, 86)
    assert (86 - 150) / math.sqrt(86 + 150) == pytest.approx(-4.17, abs=0.005)
    assert found.p == pytest.approx(stats.binomtest(86, 236).pvalue, rel=1e-9)
    exact = 2 * sum(math.comb(236, k) for k in range(87)) / 2**236
    assert found.p == pytest.approx(exact, rel=1e-9)
    mcnemar = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    assert found.p == pytest.approx(mcnemar([[794, 150], [86, 570]], exact=True).pvalue, rel=1e-9)


@pytest.mark.parametrize(("first_only", "second_only"), [(0, 0), (0, 7), (5, 5), (3, 11), (1, 0)])
def test_mcnemar_equals_the_binomial_test(first_only, second_only):
    first = np.repeat([1, 1, 0], [9, first_only, second_only])
    second = np.repeat([1, 0, 1], [9, first_only, second_only])
    expected = stats.binomtest(first_only, first_only + second_only).pvalue if first_only + second_only else 1.0
    found = paired_tests.mcnemar(first, second)
    assert found.p == pytest.approx(expected)
    # Exchanging the predictions of independent examples is the same test.
    labels = np.ones(len(first), int)
    exchanged = paired_tests.count_permutation(first, second, labels, 2, False, n=2**14)
    assert exchanged["accuracy"].p == pytest.approx(expected)
    assert exchanged["accuracy"].value == pytest.approx((first_only - second_only) / len(first))


@pytest.mark.parametrize("metric", [accuracy, mcc])
def test_the_exact_permutation_test_equals_scipy(metric):
    better, worse, labels, _ = models(num_examples=11)
    expected = stats.permutation_test(
        (better, worse),
        lambda one, other: metric(one, labels) - metric(other, labels),
        permutation_type="samples",
        n_resamples=2**11,
        vectorized=False,
    )
    found = paired_tests.permutation(metric, better, worse, labels, n=2**11)
    assert found.p == pytest.approx(expected.pvalue) and found.value == pytest.approx(expected.statistic)
    name = metric.__name__
    fast = paired_tests.count_permutation(better, worse, labels, 3, False, n=2**11)[name]
    assert fast.p == pytest.approx(found.p) and fast.value == pytest.approx(found.value)
    assert math.isnan(fast.low) and math.isnan(found.high)


def test_whole_groups_are_exchanged():
    better, worse, labels, _ = models(seed=3)
    groups = np.arange(61) % 7
    found = paired_tests.permutation(mcc, better, worse, labels, groups, n=200)
    seen = []
    for way in itertools.product([False, True], repeat=7):
        swap = np.array(way)[groups]
        one, other = np.where(swap, worse, better), np.where(swap, better, worse)
        seen.append(mcc(one, labels) - mcc(other, labels))
    expected = np.mean(np.abs(seen) >= abs(found.value) - 1e-12)
    assert found.p == pytest.approx(expected)
    fast = paired_tests.count_permutation(better, worse, labels, 3, False, groups, n=200)
    assert fast["mcc"].p == pytest.approx(expected)
    assert set(fast) == set(metrics.COUNT_METRICS)


def test_random_exchanges_come_close_to_all_of_them():
    better, worse, labels, groups = models(seed=1)
    every = paired_tests.count_permutation(better, worse, labels, 3, False, groups, n=2**17)
    some = paired_tests.count_permutation(better, worse, labels, 3, False, groups, n=9_999, seed=4)
    plain = paired_tests.permutation(mcc, better, worse, labels, groups, n=1_999)
    for name in metrics.COUNT_METRICS:
        assert some[name].p == pytest.approx(every[name].p, abs=0.012)
    assert plain.p == pytest.approx(every["mcc"].p, abs=0.03)
    assert 0 < some["mcc"].p < 1 and some["mcc"].p * 10_000 == pytest.approx(round(some["mcc"].p * 10_000))


def test_multi_label_decisions_and_arrays_of_scores():
    generator = np.random.default_rng(2)
    labels = (generator.random((37, 4)) < 0.4).astype(np.float32)
    scores = generator.random((2, 37, 4)) + 0.5 * labels
    groups = np.arange(37) // 4
    fast = paired_tests.count_permutation(*(scores > 0.7), labels, 4, True, groups, n=1024)

    def macro_f1(predicted, labels):
        counts = metrics.example_counts(labels > 0.5, predicted).sum(axis=0)
        return float(metrics.from_counts(counts, True)["macro_f1"])

    plain = paired_tests.permutation(macro_f1, *(scores > 0.7), labels, groups, n=1024)
    assert fast["macro_f1"].p == pytest.approx(plain.p)
    assert fast["macro_f1"].value == pytest.approx(plain.value)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_fast_paired_bootstrap_equals_the_plain_one(method):
    generator = np.random.default_rng(5)
    _, _, labels, groups = models()
    logits = generator.normal(0, 1, (2, 61, 3))
    logits[0, np.arange(61), labels] += 1
    scores = np.stack([calibration.probabilities(part, False) for part in logits])
    found = replicates.resample(scores, labels, False, groups=groups, n=120, seed=7, jackknife=True)
    for name in ("mcc", "auroc_macro"):
        fast = paired_tests.replicate_difference(found, name, 0, 1, 0.9, method)
        plain = paired_tests.paired_bootstrap(
            lambda given, true, name=name: metrics.evaluate(given, true, False)[name],
            *scores,
            labels,
            groups,
            n=120,
            seed=7,
            level=0.9,
            method=method,
        )
        np.testing.assert_allclose(
            [fast.value, fast.low, fast.high, fast.p], [plain.value, plain.low, plain.high, plain.p], rtol=1e-9
        )
        assert fast.low < fast.value < fast.high


def test_the_bootstrap_p_is_where_the_interval_reaches_zero():
    differences = np.random.default_rng(0).normal(0.2, 0.1, 4999)
    p = paired_tests.bootstrap_p(differences)
    assert p == pytest.approx(2 * stats.norm.sf(2), abs=0.01)
    assert np.quantile(differences, p / 2) == pytest.approx(0, abs=1e-3)
    assert paired_tests.bootstrap_p(np.full(99, 0.5)) == 0.02  # never 0
    assert paired_tests.bootstrap_p(np.zeros(99)) == 1
    assert math.isnan(paired_tests.bootstrap_p(np.full(9, np.nan)))
    assert math.isnan(paired_tests.bootstrap_p(np.zeros(0)))


def test_tests_keep_their_level_when_nothing_differs():
    generator = np.random.default_rng(0)
    rejected = np.zeros(2)
    for trial in range(120):
        labels = generator.integers(0, 2, 60)
        hard = np.repeat(generator.random(20), 3)  # three related images each
        given = np.where(generator.random((2, 60)) > 0.6 * hard, labels, 1 - labels)
        groups = np.arange(60) // 3
        swapped = paired_tests.count_permutation(*given, labels, 2, False, groups, n=199, seed=trial)
        found = replicates.resample(
            np.eye(2)[given], labels, False, groups=groups, n=199, seed=trial, names=("accuracy",)
        )
        rejected += (
            swapped["mcc"].p < 0.05,
            paired_tests.replicate_difference(found, "accuracy", 0, 1).p < 0.05,
        )
    assert (rejected / 120 <= 0.1).all() and rejected[1] > 0


def test_equal_models_one_group_and_undefined_metrics():
    better, worse, labels, groups = models()
    same = paired_tests.permutation(accuracy, better, better, labels, groups, n=50)
    assert (same.value, same.p) == (0, 1)
    assert paired_tests.count_permutation(better, better, labels, 3, False, groups)["macro_f1"].p == 1
    same = paired_tests.paired_bootstrap(accuracy, better, better, labels, groups, n=50)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    alone = np.zeros(61)
    assert paired_tests.permutation(accuracy, better, worse, labels, alone, n=50).p == 1
    one = paired_tests.paired_bootstrap(accuracy, better, worse, labels, alone, n=50)
    assert one.value > 0 and math.isnan(one.low) and math.isnan(one.p)
    undefined = paired_tests.permutation(lambda given, true: float("nan"), better, worse, labels, n=50)
    assert math.isnan(undefined.value) and math.isnan(undefined.p)
    one_class = paired_tests.count_permutation(np.zeros(4, int), np.array([0, 0, 1, 0]), np.zeros(4, int), 2, False)
    assert math.isnan(one_class["kappa"].p) and one_class["accuracy"].p == 1


def test_exchanges_do_not_depend_on_blocks(monkeypatch):
    better, worse, labels, _ = models()
    whole = [paired_tests.count_permutation(better, worse, labels, 3, False, n=n) for n in (501, 2**14)]
    small = models(num_examples=14)[:3]
    exact = paired_tests.count_permutation(*small, 3, False, n=2**14)
    monkeypatch.setattr(resampling, "BLOCK", 61 * 7)
    again = [paired_tests.count_permutation(better, worse, labels, 3, False, n=n) for n in (501, 2**14)]
    assert [part["mcc"].p for part in again] == [part["mcc"].p for part in whole]
    assert paired_tests.count_permutation(*small, 3, False, n=2**14)["mcc"].p == exact["mcc"].p


def test_holm_equals_its_definition_and_statsmodels():
    # Worked: 3 x .01, 2 x .02, 1 x .03, then the running maximum.
    np.testing.assert_allclose(paired_tests.holm([0.03, 0.01, 0.02]), [0.04, 0.03, 0.04])
    p_values = np.random.default_rng(0).random(40) ** 3
    p_values[3] = p_values[7]
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    np.testing.assert_allclose(paired_tests.holm(p_values), multipletests(p_values, method="holm")[1])


def test_holm_leaves_out_what_could_not_be_tested():
    adjusted = paired_tests.holm([0.04, float("nan"), 0.01])
    assert math.isnan(adjusted[1]) and adjusted[[0, 2]].tolist() == [0.04, 0.02]
    assert paired_tests.holm([0.9, 0.8]).tolist() == [1, 1]
    assert paired_tests.holm([]).tolist() == []


def test_mistakes_are_refused():
    better, worse, labels, groups = models()
    with pytest.raises(UserError, match="right and wrong"):
        paired_tests.mcnemar(better, labels[:-1])
    with pytest.raises(UserError, match="right and wrong"):
        paired_tests.mcnemar(better, worse)
    for test in (paired_tests.permutation, paired_tests.paired_bootstrap):
        with pytest.raises(UserError, match="same labelled examples"):
            test(accuracy, better, worse[:-1], labels)
        with pytest.raises(UserError, match="groups do not fit"):
            test(accuracy, better, worse, labels, groups[:-1])
        with pytest.raises(UserError, match="replicate"):
            test(accuracy, better, worse, labels, n=0)
    with pytest.raises(UserError, match="between 0 and 1"):
        paired_tests.holm([0.1, 1.2])
