"""Are deletion curves what deleting by hand gives, and does the randomisation check tell alike from unlike?"""

import numpy as np
import pytest

from research.evaluation import statistics
from research.genes import deletion
from research.genes.ranking import overlap_by_chance

GENES = 12


def linear(seed=0):
    """A linear classifier of three types that goes by four genes each, its samples, and the planted rankings."""
    random = np.random.default_rng(seed)
    weights = np.zeros((GENES, 3))
    for kind in range(3):
        weights[4 * kind : 4 * kind + 4, kind] = [4, 3, 2, 1]
    labels = random.integers(0, 3, 40)
    vectors = random.normal(0, 0.5, (40, GENES)) + (weights[:, labels].T > 0)
    planted = np.array([np.argsort(-weights[:, kind], kind="stable") for kind in range(3)])
    return lambda raw: raw[:, 0, :, 0] @ weights, vectors.astype(np.float32)[:, None, :, None], labels, planted


def test_deletion_by_hand():
    predict, vectors, labels, planted = linear()
    fill = vectors.mean(axis=0)[0, :, 0]
    before = vectors.copy()
    found = deletion.delete(predict, vectors, labels, planted, fill, (1, 3, 7, 500))
    assert list(found.counts) == [0, 1, 3, 7]
    np.testing.assert_array_equal(vectors, before)
    for point, count in enumerate(found.counts):
        for i, label in enumerate(labels):
            own = vectors[i].copy()
            for gene in planted[label][:count]:
                own[0, gene, 0] = fill[gene]
            logits = predict(own[None])[0]
            chances = np.exp(logits) / np.exp(logits).sum()
            assert found.correct[point, i] == (logits.argmax() == label)
            assert found.probability[point, i] == pytest.approx(chances[label], rel=1e-6)
    heights, places = found.accuracy, np.log2([1, 2, 4, 8])
    assert found.areas().mean() == pytest.approx(np.trapezoid(heights, places) / 3)


def test_planted_genes_are_missed_more_than_random_ones():
    predict, vectors, labels, planted = linear()
    fill = vectors.mean(axis=0)[0, :, 0]
    patients = [f"p{i // 2}" for i in range(40)]
    curves = {
        "planted": deletion.delete(predict, vectors, labels, planted, fill, (1, 2, 4)),
        "one ranking": deletion.delete(predict, vectors, labels, planted[0], fill, (1, 2, 4)),
        deletion.RANDOM: deletion.delete_random(predict, vectors, labels, fill, (1, 2, 4), draws=3, seed=1),
    }
    rows = {row["ranking"]: row for row in deletion.summary(curves, patients, resamples=200)}
    assert rows["planted"]["difference_high"] < 0 and rows[deletion.RANDOM]["difference"] is None
    assert rows["planted"]["accuracy_area"] < rows["one ranking"]["accuracy_area"]
    row, own = rows["planted"], curves["planted"].areas()
    assert row["accuracy_area_low"] <= row["accuracy_area"] <= row["accuracy_area_high"]
    expected = statistics.cluster_bootstrap(lambda i: own[i].mean(), patients, 200)
    np.testing.assert_allclose((row["accuracy_area_low"], row["accuracy_area_high"]), expected)
    low, high = deletion.band(curves["planted"], patients, 100)
    assert (low <= curves["planted"].accuracy).all() and (curves["planted"].accuracy <= high).all()
    alone = deletion.summary(curves, ["p"] * 40)[0]
    assert alone["accuracy_area_low"] is None and alone["accuracy_area"] == row["accuracy_area"]
    assert np.isnan(deletion.band(curves["planted"], ["p"] * 40)[0]).all()


def test_random_deletion_is_the_mean_of_its_draws():
    predict, vectors, labels, _ = linear()
    fill = np.zeros(GENES)
    one, two, both = (
        deletion.delete_random(predict, vectors, labels, fill, (2, 5), draws, seed)
        for draws, seed in ((1, 7), (1, 8), (2, 7))
    )
    np.testing.assert_allclose(both.correct, (one.correct + two.correct) / 2)
    assert (one.probability != two.probability).any()


def test_all_genes_deleted_leave_one_decision():
    predict, vectors, labels, planted = linear()
    found = deletion.delete(predict, vectors, labels, planted, np.zeros(GENES), (GENES,))
    np.testing.assert_allclose(found.probability[-1], 1 / 3)


@pytest.mark.parametrize("wrong", ["orders", "fill", "labels", "counts"])
def test_nonsense(wrong):
    predict, vectors, labels, planted = linear()
    given = {"labels": labels, "orders": planted, "fill": np.zeros(GENES), "counts": (1,)}
    given[wrong] = (GENES + 1,) if wrong == "counts" else given[wrong][..., :-1]
    with pytest.raises(ValueError):
        deletion.delete(predict, vectors, **given)


def test_alike():
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, 400))
    same = deletion.alike(scores, 3 * scores)
    assert same["rank_correlation"] == pytest.approx(1) and same["overlap"] == pytest.approx(1)
    other = deletion.alike(np.concatenate([scores, [[np.nan] * 400]]), random.normal(size=(3, 400)))
    assert abs(other["rank_correlation"]) < 0.15
    assert other["overlap"] < 0.2 and other["overlap_by_chance"] == pytest.approx(overlap_by_chance(400))
    opposite = deletion.alike(scores, -scores)
    assert opposite["rank_correlation"] == pytest.approx(-1)
    assert opposite["rank_correlation_absolute"] == pytest.approx(1)
    assert np.isnan(deletion.alike(scores, np.full_like(scores, np.nan))["overlap"])
