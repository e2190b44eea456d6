"""Stackers: equal to scikit-learn, blind to the examples that they predict, seeded."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from input_pipeline.cli import UserError
from research.ensemble import stacking

from .fake_runs import labels_of, logits_of
from .test_combine import softmax


def problem(accuracies=(0.6, 0.65, 0.7), examples=151, unseen=301, classes=3):
    labels, others = labels_of(examples, 0, classes), labels_of(unseen, 1, classes)
    own, test = (
        np.stack([softmax(logits_of(y, a, 7 * i + s, classes)) for i, a in enumerate(accuracies)])
        for s, y in ((0, labels), (1, others))
    )
    groups = [f"patient {i // 2}" for i in range(examples)]
    return own, labels, groups, test, others


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_scikit_learns(monkeypatch, classes):
    monkeypatch.setattr(stacking, "STRENGTHS", (0.03,))
    own, labels, groups, test, _ = problem(classes=classes)
    folds = stacking.inner_folds(labels, groups, 0)
    made = stacking.logistic(own, labels, folds, test)

    def features(scores):
        return np.log(np.concatenate(list(scores), axis=1))

    def reference(x, y):
        with threadpool_limits(1):
            return LogisticRegression(C=0.03, max_iter=5000, tol=1e-8).fit(x, y)

    model = reference(features(own), labels)
    np.testing.assert_allclose(made.test, model.predict_proba(features(test)), atol=2e-4)
    logits = features(test) @ np.array(made.settled["kernel"]).T + made.settled["bias"]
    np.testing.assert_allclose(softmax(logits), made.test, atol=1e-12)
    for fold in np.unique(folds):
        rest = folds != fold
        model = reference(features(own)[rest], labels[rest])
        np.testing.assert_allclose(made.calibration[~rest], model.predict_proba(features(own)[~rest]), atol=2e-4)


def test_logistic_takes_the_strength_of_least_held_out_loss():
    own, labels, groups, test, others = problem()
    folds = stacking.inner_folds(labels, groups, 0)
    losses = {}
    for strength in stacking.STRENGTHS:
        held = stacking._held_out(
            stacking._logarithms(own), labels, folds, lambda x, y, c=strength: stacking._fit_logistic(x, y, c), 3
        )
        losses[strength] = log_loss(labels, held)
    made = stacking.logistic(own, labels, folds, test)
    assert made.settled["C"] == min(losses, key=losses.get)
    assert log_loss(others, made.test) < min(log_loss(others, scores) for scores in test)


def test_a_class_that_calibration_lacks_stays_possible_but_is_not_chosen():
    own, labels, groups, test, _ = problem()
    keep = labels != 1
    folds = stacking.inner_folds(labels[keep], [g for g, k in zip(groups, keep, strict=True) if k], 0)
    made = stacking.logistic(own[:, keep], labels[keep], folds, test)
    assert made.test.shape == (301, 3) and (made.test > 0).all() and 1 not in made.test.argmax(axis=1)
    np.testing.assert_allclose(made.test.sum(axis=1), 1)


def test_inner_folds_keep_groups_together_and_need_two_of_each_class():
    _, labels, groups, _, _ = problem()
    folds = stacking.inner_folds(labels, groups, 0)
    assert set(folds) == set(range(5))
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == name}) == 1 for name in groups)
    with pytest.raises(UserError, match="two patients or photographs of each"):
        stacking.inner_folds(np.array([0, 0, 0, 1, 1]), ["a", "b", "c", "d", "d"], 0)
    with pytest.raises(UserError, match="two classes"):
        stacking.inner_folds(np.zeros(4, int), ["a", "b", "c", "d"], 0)


def test_dense_learns_is_seeded_and_padding_changes_nothing():
    own, labels, groups, test, others = problem()
    folds = stacking.inner_folds(labels, groups, 0)
    made, again = (stacking.dense(own, labels, folds, test, seed=1, width=14) for _ in range(2))
    np.testing.assert_array_equal(made.test, again.test)
    plain = stacking.dense(own, labels, folds, test, seed=1)  # nine inputs
    assert plain.settled["steps"] == made.settled["steps"] > 0
    np.testing.assert_allclose(plain.test, made.test, atol=1e-4)
    np.testing.assert_allclose(plain.calibration, made.calibration, atol=1e-4)
    assert np.abs(stacking.dense(own, labels, folds, test, seed=2, width=14).test - made.test).max() > 1e-3
    assert log_loss(others, made.test) < min(log_loss(others, scores) for scores in test)
    # What is reported is what stopped the training, and the parameters give the predictions.
    assert log_loss(labels, made.calibration) == pytest.approx(made.settled["held_out_loss"], rel=1e-5)
    x = np.concatenate(list(test), axis=1)
    hidden = np.maximum(x @ np.array(made.settled["hidden"]) + made.settled["hidden_bias"], 0)
    logits = hidden @ np.array(made.settled["output"]) + made.settled["output_bias"]
    np.testing.assert_allclose(softmax(logits), made.test, atol=1e-7)


@pytest.mark.parametrize("kind", ["logistic", "dense"])
def test_a_fold_is_predicted_without_its_labels(monkeypatch, kind):
    """With strength and length fixed, other labels in a fold change all predictions but those of the fold."""
    monkeypatch.setattr(stacking, "STRENGTHS", (0.1,))
    monkeypatch.setattr(stacking, "STEPS", 4)
    stacking._train.cache_clear()
    own, labels, groups, test, _ = problem(examples=60)
    folds = stacking.inner_folds(labels, groups, 0)
    changed = np.where(folds == 2, (labels + 1) % 3, labels)

    def predict(targets):
        if kind == "logistic":
            return stacking.logistic(own, targets, folds, test)
        made = stacking.dense(own, targets, folds, test, seed=0)
        assert made.settled["steps"] == 3
        return made

    before, after = predict(labels).calibration, predict(changed).calibration
    stacking._train.cache_clear()
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])
    assert np.abs(before - after)[folds != 2].max() > 1e-3
