"""Do the baselines predict what they claim, and does the colour baseline find colours but no shapes?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import baselines, metrics

pytest.importorskip("sklearn")


def test_majority_and_prevalence_of_one_class_equal_scikit_learns_dummies():
    from sklearn.dummy import DummyClassifier

    labels = np.array([2, 0, 2, 1, 2, 0, 2])
    found = baselines.majority(labels, 5, 4, False)
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((7, 1)), labels)
    np.testing.assert_array_equal(found.predicted, dummy.predict(np.zeros((5, 1))))
    np.testing.assert_allclose(found.scores[:, :3], dummy.predict_proba(np.zeros((5, 1))))
    assert found.scores[0, 3] == 0
    guessed = baselines.prevalence(labels, 20_001, 4, False, seed=3)
    np.testing.assert_allclose(np.bincount(guessed.predicted, minlength=4) / 20_001, found.scores[0], atol=0.015)
    assert np.array_equal(guessed.predicted, baselines.prevalence(labels, 20_001, 4, False, seed=3).predicted)


def test_multi_label_baselines_predict_constants_that_can_be_worked_out():
    generator = np.random.default_rng(0)
    shares = np.array([0.6, 0.2, 0.1])
    train = (generator.random((301, 3)) < shares).astype(np.float32)
    test = (generator.random((97, 3)) < shares).astype(np.float32)
    majority, prevalence, everything = baselines.trivial(train, 97, 3, True)
    assert majority.predicted.tolist() == [[True, False, False]] * 97
    assert baselines.majority(train[:, 1:], 2, 2, True).predicted.tolist() == [[True, False]] * 2
    np.testing.assert_allclose(everything.scores[5], train.mean(axis=0))
    score = metrics.evaluate(everything.scores, test, True, predicted=everything.predicted)["macro_f1"]
    shares = test.mean(axis=0)
    assert score == pytest.approx(np.mean(2 * shares / (1 + shares)))
    sets = {tuple(row) for row in train > 0}
    assert {tuple(row) for row in prevalence.predicted} <= sets
    assert len(baselines.trivial(np.array([0, 1]), 3, 2, False)) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_histograms_equal_numpys(dtype, channels):
    top = np.iinfo(dtype).max
    images = np.random.default_rng(0).integers(0, top + 1, (3, 7, 5, channels)).astype(dtype)
    images[0, 0, 0] = top
    features = baselines.histogram_features(images)
    assert features.dtype == np.float32
    assert features.shape == (3, channels * 32 + {1: 0, 3: 64, 5: 256}[channels])
    for image, row in zip(images, features, strict=True):
        for c in range(channels):
            expected = np.histogram(image[..., c], 32, (0, top + 1))[0] / 35
            np.testing.assert_allclose(row[c * 32 : (c + 1) * 32], expected, rtol=1e-6)
        if channels > 1:
            pixels = image.reshape(-1, channels)[:, :4]
            joint = np.histogramdd(pixels, [4] * pixels.shape[1], [(0, top + 1)] * pixels.shape[1])[0] / 35
            np.testing.assert_allclose(row[channels * 32 :], joint.ravel(), rtol=1e-6)


def coloured(labels, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 128, (len(labels), 9, 9, 3))
    images[np.arange(len(labels)), :, :, labels] += 60
    return images.astype(np.uint8)


def test_regression_finds_colours_but_not_shapes():
    generator = np.random.default_rng(0)
    train, test = generator.integers(0, 3, 121), generator.integers(0, 3, 61)
    features = [baselines.histogram_features(coloured(labels, i)) for i, labels in enumerate((train, test))]
    found = baselines.histogram_regression(features[0], train, features[1], 4, False)
    assert found.scores.shape == (61, 4) and not found.scores[:, 3].any()
    assert np.mean(found.predicted == test) > 0.95
    metrics.evaluate(found.scores, test, False, predicted=found.predicted)
    # The same pixels, sorted differently: a histogram cannot tell them apart.
    images = coloured(np.zeros(121, int), 2).reshape(121, 81, 3)
    images[train > 0] = images[train > 0][:, ::-1]
    features = baselines.histogram_features(images.reshape(121, 9, 9, 3))
    guess = baselines.histogram_regression(features, (train > 0).astype(int), features[::-1], 2, False)
    assert 0.3 < np.mean(guess.predicted == (train > 0)[::-1]) <= 1
    shuffled = images[:, np.random.default_rng(3).permutation(81)]
    np.testing.assert_array_equal(baselines.histogram_features(shuffled.reshape(121, 9, 9, 3)), features)


def test_multi_label_regression_fits_thresholds_on_calibration():
    generator = np.random.default_rng(5)
    labels = [(generator.random((n, 4)) < [0.3, 0.2, 0.4, 0]).astype(np.float32) for n in (151, 67, 59)]
    images = []
    for rows in labels:
        pixels = generator.integers(0, 100, (len(rows), 6, 6, 3))
        images.append((pixels + 70 * rows[:, None, None, :3]).astype(np.uint8))
    train, fit, test = (baselines.histogram_features(batch) for batch in images)
    found = baselines.histogram_regression(train, labels[0], test, 4, True, fit, labels[1])
    again = baselines.histogram_regression(train, labels[0], test, 4, True, fit, labels[1])
    assert np.array_equal(found.scores, again.scores)
    assert found.predicted.any(axis=1).all() and found.thresholds.shape == (4,)
    assert not found.scores[:, 3].any()  # no positives in train
    assert metrics.evaluate(found.scores, labels[2], True, predicted=found.predicted)["micro_f1"] > 0.8
    plain = baselines.histogram_regression(train, labels[0], test, 4, True)
    assert plain.thresholds.tolist() == [0.5] * 4


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="uint8 or uint16"):
        baselines.histogram_features(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(UserError, match="power of two"):
        baselines.histogram_features(np.zeros((2, 4, 4, 3), np.uint8), bins=30)
    with pytest.raises(UserError, match="unlabelled"):
        baselines.majority(np.array([0, -1]), 3, 2, False)
    with pytest.raises(UserError, match="no examples"):
        baselines.histogram_regression(np.zeros((0, 4)), np.zeros(0, int), np.zeros((1, 4)), 2, False)


def test_linear_svm_equals_scikit_learns_pipeline():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2, 3], 61)  # class 1 is missing from the training examples
    features = rng.normal(size=(61, 23)) + labels[:, None] * rng.normal(size=23)
    features[:, 5] = 7.0
    other = rng.normal(size=(17, 23))
    found = baselines.linear_svm("svm", features, labels, other, 4)
    reference = make_pipeline(StandardScaler(), LinearSVC(random_state=0)).fit(features, labels)
    np.testing.assert_array_equal(found.predicted, reference.predict(other))
    np.testing.assert_allclose(found.scores.sum(1), 1)
    assert not found.scores[:, 1].any()
    # With calibration examples the strength that is best there, the smallest of equal ones.
    held_labels = rng.choice([0, 2, 3], 40)
    held = rng.normal(size=(40, 23)) + held_labels[:, None] * 0.3
    models = [
        make_pipeline(StandardScaler(), LinearSVC(C=strength, random_state=0)).fit(features, labels)
        for strength in baselines.STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(held, held_labels))
    chosen = baselines.linear_svm("svm", features, labels, other, 4, held, held_labels)
    np.testing.assert_array_equal(chosen.predicted, best.predict(other))
    two = baselines.linear_svm("svm", features, np.minimum(labels, 1), other, 2)
    assert set(two.predicted) <= {0, 1}
    assert (baselines.linear_svm("svm", features, np.full(61, 3), other, 4).predicted == 3).all()
