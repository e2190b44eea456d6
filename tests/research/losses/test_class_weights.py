"""Do class weights equal scikit-learn's and Cui et al.'s, and is a class without examples refused?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.losses.class_weights import class_weights

LABELS = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2])


def test_balanced_equals_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights(LABELS, 3, "balanced"), expected, rtol=1e-6)
    unlabelled = np.append(LABELS, [-1, -1])
    np.testing.assert_allclose(class_weights(unlabelled, 3, "balanced"), expected, rtol=1e-6)


def test_balanced_of_many_labels_counts_examples():
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(class_weights(labels, 2, "balanced"), [5 / (2 * 3), 5 / (2 * 2)], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-12])
def test_effective_number_equals_the_paper(beta):
    counts = np.array([3, 1, 7])
    # Without the closed form: (1 - β^n) / (1 - β) = 1 + β + ... + β^(n-1).
    effective = np.array([sum(beta**i for i in range(n)) for n in counts])
    expected = 1 / effective * 3 / np.sum(1 / effective)
    weights = class_weights(LABELS, 3, "effective", beta)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights.dtype == np.float32 and abs(weights.sum() - 3) < 1e-5


def test_none_is_ones_whatever_the_labels():
    np.testing.assert_array_equal(class_weights(LABELS, 5), np.ones(5, np.float32))


def test_mistakes_are_refused():
    for scheme in ("balanced", "effective"):
        with pytest.raises(UserError, match="'golgi'"):
            class_weights(LABELS, 4, scheme, class_names=["a", "b", "c", "golgi"])
    with pytest.raises(UserError, match="label 2 is outside"):
        class_weights(LABELS, 2, "balanced")
    with pytest.raises(UserError, match="columns"):
        class_weights(np.zeros((3, 4)), 5, "balanced")
    with pytest.raises(UserError, match="unknown class weights"):
        class_weights(LABELS, 3, "inverse")
    with pytest.raises(UserError, match="beta"):
        class_weights(LABELS, 3, "effective", beta=1.0)
