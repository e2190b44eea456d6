"""Combining predictions, against loops, scikit-learn and scipy."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn import metrics as sklearn_metrics

from research.ensemble import combine


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def members(count=5, examples=37, classes=4, seed=0, sharp=1.5):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, examples)
    logits = sharp * generator.normal(size=(count, examples, classes)) + 0.8 * np.eye(classes)[labels]
    return softmax(logits), labels


def test_majority_against_counting():
    ties = 0
    for seed, count in itertools.product(range(6), (1, 2, 3, 4, 6)):
        scores, _ = members(count, seed=seed)
        combined = combine.majority(scores)
        np.testing.assert_allclose(combined.sum(axis=1), 1)
        for i in range(scores.shape[1]):
            votes = [int(scores[m, i].argmax()) for m in range(count)]
            most = max(votes.count(k) for k in votes)
            tied = [k for k in set(votes) if votes.count(k) == most]
            ties += len(tied) > 1
            assert combined[i].argmax() == max(tied, key=lambda k: scores[:, i, k].mean())
    assert ties > 50


def test_majority_tie_is_not_the_highest_index():
    scores = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    assert combine.majority(scores).argmax(axis=1) == [0]  # the original's rule would give 1


def test_majority_per_label_against_counting():
    generator = np.random.default_rng(3)
    for count in (1, 2, 3, 4, 5):
        scores = generator.random((count, 41, 6)).round(2)
        cuts = generator.uniform(0.1, 0.9, (count, 6)).round(2)
        given = scores >= cuts[:, None]
        decided = combine.majority_per_label(scores, given, cuts) >= 0.5
        for i, k in itertools.product(range(41), range(6)):
            votes = int(given[:, i, k].sum())
            tie = scores[:, i, k].mean() >= cuts[:, k].mean()
            assert decided[i, k] == (votes * 2 > count or (votes * 2 == count and tie)), (count, i, k)


def test_majority_per_label_at_the_ends():
    scores = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    votes = combine.majority_per_label(
        scores, np.array([[[False, False]], [[False, True]], [[True, True]]]), scores[:, 0]
    )
    assert (votes >= 0.5).tolist() == [[False, True]]


def test_ranks_are_scipys_on_the_reference_and_keep_each_members_order():
    scores, _ = members(3)
    scores[0] = scores[0].round(1) + 1e-3  # with equal values
    found = combine.ranks(scores, scores)
    for own, ranked in zip(scores, found, strict=True):
        expected = (stats.rankdata(own, method="average") - 0.5) / own.size
        np.testing.assert_allclose(ranked.ravel(), expected, atol=1e-12)
    other, _ = members(3, examples=50, seed=9)
    ranked = combine.ranks(other, scores)
    assert ranked.min() >= 0 and ranked.max() <= 1
    for own, high in zip(other, ranked, strict=True):
        order = np.argsort(own.ravel())
        assert (np.diff(high.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(combine.ranks(other[:, :7], scores), ranked[:, :7])  # other images do not matter
    np.testing.assert_array_equal(
        combine.rank_average(other[:1], scores[:1], False).argmax(axis=1), ranked[0].argmax(axis=1)
    )


def loss_of(weights, scores, labels):
    return sklearn_metrics.log_loss(labels, np.tensordot(weights, scores, 1), labels=range(scores.shape[2]))


def test_weights_of_two_members_against_a_grid():
    scores, labels = members(2, examples=83)
    found = combine.weights(combine.likelihoods(scores, labels, False))
    grid = np.linspace(0, 1, 501)
    best = grid[np.argmin([loss_of([w, 1 - w], scores, labels) for w in grid])]
    np.testing.assert_allclose(found, [best, 1 - best], atol=3e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_random_start_beats_the_one_start(seed):
    scores, labels = members(6, examples=59, seed=seed, sharp=2.5)
    likelihood = combine.likelihoods(scores, labels, False)
    found = combine.weights(likelihood)
    assert (found >= 0).all() and found.sum() == pytest.approx(1, abs=1e-12)
    own = loss_of(found, scores, labels)
    generator = np.random.default_rng(seed)
    for start in generator.dirichlet(np.ones(6), 50):
        other = optimize.minimize(
            lambda w: -np.log(np.maximum(w @ likelihood, 1e-12)).mean(), start, method="SLSQP", bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12},
        )  # fmt: skip
        assert own <= other.fun + 1e-7
    pull = (likelihood / (found @ likelihood)).mean(axis=1)  # the condition of optimality of a mixture
    assert pull.max() <= 1 + 1e-6
    np.testing.assert_allclose(pull[found > 1e-3], 1, atol=1e-5)


def test_weights_of_equal_useless_and_certain_members():
    scores, labels = members(1, examples=40)
    same = combine.weights(combine.likelihoods(np.repeat(scores, 4, axis=0), labels, False))
    np.testing.assert_allclose(same, 0.25)
    perfect = np.eye(4)[labels][None]
    wrong = np.eye(4)[(labels + 1) % 4][None]
    found = combine.weights(combine.likelihoods(np.concatenate([wrong, perfect, wrong]), labels, False))
    np.testing.assert_allclose(found, [0, 1, 0], atol=1e-6)
    assert combine.weights(combine.likelihoods(wrong, labels, False)).tolist() == [1.0]


def test_likelihood_of_labels_gives_the_log_loss_of_the_mean():
    generator = np.random.default_rng(0)
    scores, labels = generator.uniform(0.02, 0.98, (3, 29, 5)), generator.integers(0, 2, (29, 5))
    weights = np.array([0.2, 0.5, 0.3])
    mixed = combine.mean(scores, weights)
    expected = np.mean([sklearn_metrics.log_loss(labels[:, k], mixed[:, k], labels=[0, 1]) for k in range(5)])
    assert combine.log_loss(weights @ combine.likelihoods(scores, labels, True)) == pytest.approx(expected)
    np.testing.assert_allclose(combine.mean(scores), scores.mean(axis=0))


def test_greedy_against_trying_all():
    scores, labels = members(5, examples=61, seed=4)
    drawn = combine.greedy(combine.likelihoods(scores, labels, False), 9)
    bag = []
    for choice in drawn:
        losses = [sklearn_metrics.log_loss(labels, scores[[*bag, m]].mean(axis=0), labels=range(4)) for m in range(5)]
        assert choice == int(np.argmin(losses))
        bag.append(choice)
    assert len(set(drawn)) < len(drawn)  # with replacement
    assert combine.greedy(np.full((3, 7), 0.4), 4) == [0, 0, 0, 0]  # the first among equals
