"""Are rankings, their intervals and their likeness what brute force and the papers say?"""

import numpy as np
import pytest
from scipy import stats

from input_pipeline.cli import UserError
from research.evaluation import statistics
from research.genes import ranking


def overlap_by_definition(first, second, p, depths=4000):
    """Webber et al. 2010, equation 4, with agreements beyond the lists' ends as section 4.3 extrapolates them."""
    short, long = sorted((list(first), list(second)), key=len)
    total = 0.0
    for d in range(1, depths):
        seen = min(d, len(long))
        common = len(set(short[:seen]) & set(long[:seen]))
        if seen > len(short):
            at_end = len(set(short) & set(long[: len(short)]))
            common += at_end * (seen - len(short)) / len(short)
        total += (1 - p) * p ** (d - 1) * common / seen
    return total


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("sizes", [(7, 7), (5, 12), (12, 5), (1, 9), (30, 31)])
def test_rank_biased_overlap_by_its_definition(p, sizes):
    random = np.random.default_rng(sizes)
    first, second = (random.permutation(35)[:size] for size in sizes)
    found = ranking.rank_biased_overlap(first, second, p)
    assert found == pytest.approx(overlap_by_definition(first, second, p), abs=1e-9)


def test_rank_biased_overlap_of_published_examples():
    """Values printed by dlukes/rbo (Python), b4ny4n/rankmeasures (Scala)."""
    assert ranking.rank_biased_overlap(list("abcdefg"), list("abcdefg"), 0.9) == pytest.approx(1)
    assert ranking.rank_biased_overlap(list("abcdefg"), list("bacdefg"), 0.9) == pytest.approx(0.9, abs=5e-4)
    assert ranking.rank_biased_overlap([1, 2, 3, 4, 5], [2, 3, 4, 1, 5], 0.9) == pytest.approx(0.828, abs=5e-4)
    assert ranking.rank_biased_overlap(list("abc"), list("xyz")) == 0
    # "With p = 0.9 the first 10 ranks have 86 % of the weight" (Webber et al. 2010, section 4.4).
    assert ranking.weight_of_top(0.9, 10) == pytest.approx(0.86, abs=5e-3)
    assert ranking.weight_of_top(0.95, 20) == pytest.approx(0.853, abs=1e-3)


@pytest.mark.parametrize("first, second, p", [([], [1], 0.9), ([1, 1], [1, 2], 0.9), ([1], [2], 1.0), ([1], [2], 0.0)])
def test_rank_biased_overlap_refuses(first, second, p):
    with pytest.raises(ValueError):
        ranking.rank_biased_overlap(first, second, p)


def test_overlap_by_chance():
    orders = ranking.random_orders(400, 37, 0)
    found = [ranking.rank_biased_overlap(a, b, 0.9) for a, b in zip(orders[::2], orders[1::2], strict=True)]
    error = np.std(found) / np.sqrt(len(found))
    assert ranking.overlap_by_chance(37, 0.9) == pytest.approx(np.mean(found), abs=4 * error)


def samples(seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2, 3], [17, 11, 6, 0])
    patients = np.array([f"p{i // 2}" for i in range(len(labels))])
    attributions = random.normal(size=(len(labels), 23)).astype(np.float32)
    used = random.random(len(labels)) < 0.8
    used[labels == 2] = False
    return attributions, labels, used, patients


@pytest.mark.parametrize("reduction", ranking.REDUCTIONS)
def test_rankings_and_intervals_by_brute_force(reduction):
    attributions, labels, used, patients = samples()
    found = ranking.by_type(attributions, labels, used, patients, list("abcd"), reduction, top=5, resamples=300, seed=3)
    assert [own.name for own in found] == list("abcd")
    for kind, own in enumerate(found[:2]):
        rows = [i for i in range(len(labels)) if labels[i] == kind and used[i]]
        values = np.abs(attributions) if reduction == "mean_absolute" else attributions
        expected = np.mean([values[i] for i in rows], axis=0)
        np.testing.assert_allclose(own.scores, expected, rtol=1e-5, atol=1e-6)
        assert list(own.order) == sorted(range(23), key=lambda gene: -own.scores[gene])
        assert own.samples == len(rows) and own.patients == len({patients[i] for i in rows})
        chosen = values[rows].astype(float)
        low, high = statistics.cluster_bootstrap(lambda i, a=chosen: a[i].mean(0), patients[rows], 300, seed=3)
        np.testing.assert_allclose(own.low[own.order[:5]], low[own.order[:5]], rtol=1e-9)
        np.testing.assert_allclose(own.high[own.order[:5]], high[own.order[:5]], rtol=1e-9)
        assert np.isnan(own.low[own.order[5:]]).all()
    for own in found[2:]:  # a type that is never right, and one without samples
        assert own.samples == 0 and np.isnan(own.scores).all() and np.isnan(own.low).all()
        assert list(own.order) == list(range(23))


def test_one_patient_has_no_interval():
    found = ranking.by_type(np.ones((3, 4)), [0, 0, 0], [True] * 3, ["p"] * 3, ["a"])[0]
    assert np.isnan(found.low).all() and found.samples == 3 and found.patients == 1


def test_seeds_are_pooled_by_concatenation():
    attributions, labels, used, patients = samples()
    others = samples(1)[0]
    twice = [np.concatenate([own, own]) for own in (labels, used, patients)]
    found = ranking.by_type(np.concatenate([attributions, others]), *twice, list("abcd"))[0]
    rows = used & (labels == 0)
    np.testing.assert_allclose(found.scores, (attributions[rows].mean(0) + others[rows].mean(0)) / 2, atol=1e-6)
    assert found.patients == len(np.unique(patients[rows]))


def test_equal_scores_keep_the_genes_order_and_unknown_ones_come_last():
    assert list(ranking.order_of(np.array([1.0, np.nan, 3.0, 1.0, np.inf]))) == [4, 2, 0, 3, 1]


def test_f_scores():
    random = np.random.default_rng(2)
    labels = np.array([0] * 9 + [1] * 14 + [2] * 3)
    vectors = random.normal(1e3, 1, (26, 7)).astype(np.float32)
    vectors[:, 2] += 5 * (labels == 1)
    vectors[:, 3] = 4.0
    vectors[:, 4] = labels == 2
    found = ranking.f_scores(vectors[:, None, :, None], labels, 4, block=3)
    for kind in range(3):
        for gene in (0, 1, 2, 5, 6):
            own, rest = vectors[labels == kind, gene], vectors[labels != kind, gene]
            expected = stats.f_oneway(own.astype(float), rest.astype(float)).statistic
            assert found[kind, gene] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(found[:, 3]).all() and np.isnan(found[3]).all()
    assert np.isinf(found[2, 4]) and ranking.order_of(found[2])[0] == 4 and ranking.order_of(found[1])[0] == 2


def test_f_scores_equal_scikit_learns():
    from sklearn.feature_selection import f_classif

    random = np.random.default_rng(3)
    vectors, labels = random.gamma(2, 2, (40, 11)), random.integers(0, 3, 40)
    found = ranking.f_scores(vectors, labels, 3)
    for kind in range(3):
        np.testing.assert_allclose(found[kind], f_classif(vectors, labels == kind)[0], rtol=1e-9)


def test_precision():
    order = np.array([4, 0, 2, 1, 3])
    assert ranking.precision_at(order, [0, 3], 3) == pytest.approx(1 / 3)
    assert ranking.precision_at(order, [], 2) == 0
    with pytest.raises(ValueError):
        ranking.precision_at(order, [0], 6)


def test_stability():
    orders = np.array([[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    found = ranking.stability(orders, p=0.8, depths=(2, 3, 50), common_of=2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    alike = [overlap_by_definition(orders[a], orders[b], 0.8) for a, b in pairs]
    assert found.mean_overlap == pytest.approx(np.mean(alike))
    np.testing.assert_allclose(found.overlaps[[0, 0, 1], [1, 2, 2]], alike)
    np.testing.assert_array_equal(found.overlaps, found.overlaps.T)
    assert found.jaccard == {2: pytest.approx(1 / 3), 3: pytest.approx(1 / 3)}
    assert list(found.common) == [2, 2, 0, 0, 1, 1]
    alone = ranking.stability(orders[:1])
    assert np.isnan(alone.mean_overlap) and alone.overlaps.shape == (1, 1) and np.isnan(alone.jaccard.get(10, np.nan))


def test_random_orders_are_permutations():
    orders = ranking.random_orders(3, 50, 1)
    assert all(sorted(own) == list(range(50)) for own in orders) and (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(orders, ranking.random_orders(3, 50, 1))


def test_nonsense():
    attributions, labels, used, patients = samples()
    with pytest.raises(UserError, match="median"):
        ranking.by_type(attributions, labels, used, patients, list("abcd"), "median")
    with pytest.raises(UserError):
        ranking.by_type(attributions, labels, used, patients, list("abcd"), level=1.0)
    with pytest.raises(ValueError):
        ranking.type_scores(attributions, labels[:3], used, 4)
