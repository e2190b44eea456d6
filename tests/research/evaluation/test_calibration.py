"""Is the temperature the minimum of the likelihood, and is the reliability table what it says?"""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from input_pipeline.cli import UserError
from research.evaluation import calibration, metrics


def problem(seed, multi_label, scale):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1, (211, 3))
    if multi_label:
        labels = (generator.random(logits.shape) < expit(logits)).astype(np.float32)
    else:
        labels = np.array([generator.choice(3, p=softmax(row)) for row in logits])
    return logits * scale, labels


def likelihood(logits, labels, multi_label, temperature):
    scaled = logits / temperature
    if multi_label:
        return -np.sum(labels * log_expit(scaled) + (1 - labels) * log_expit(-scaled))
    return -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].sum()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("scale", [0.4, 1.0, 5.0])
def test_the_temperature_minimises_the_likelihood(multi_label, scale):
    logits, labels = problem(1, multi_label, scale)
    found = calibration.fit_temperature(logits, labels, multi_label)
    expected = minimize_scalar(
        lambda t: likelihood(logits, labels, multi_label, np.exp(t)),
        bounds=np.log(calibration.TEMPERATURE_RANGE),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found == pytest.approx(np.exp(expected.x), rel=1e-5)
    assert found == pytest.approx(scale, rel=0.35)
    before = metrics.evaluate(calibration.probabilities(logits, multi_label), labels, multi_label)
    after = metrics.evaluate(calibration.probabilities(logits, multi_label, found), labels, multi_label)
    assert after["log_loss"] <= before["log_loss"]


def test_temperatures_without_a_minimum_stop_at_the_ends():
    logits, labels = np.array([[3.0, -1.0], [-2.0, 2.0], [1.0, -1.0]]), np.array([0, 1, 0])
    assert calibration.fit_temperature(logits, labels, False) == 0.05
    assert calibration.fit_temperature(logits, 1 - labels, False) == 20.0
    assert calibration.fit_temperature(np.ones((3, 2)), labels, False) == 1.0
    multi_hot = np.eye(2)[labels]
    assert calibration.fit_temperature(logits, multi_hot, True) == 0.05


def test_probabilities_equal_scipy_and_never_overflow():
    logits = np.array([[1e4, -1e4, 0.0], [800.0, 799.0, -5.0], [1.0, 2.0, 3.0]])
    with np.errstate(all="raise", under="ignore"):
        sigmoid = calibration.probabilities(logits, True, 0.5)
        soft = calibration.probabilities(logits, False, 0.5)
    np.testing.assert_allclose(sigmoid, expit(logits / 0.5), rtol=1e-14)
    np.testing.assert_allclose(soft, softmax(logits / 0.5, axis=1), rtol=1e-14)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_reliability_table_adds_up_to_the_calibration_error(multi_label):
    logits, labels = problem(4, multi_label, 3.0)
    scores = calibration.probabilities(logits, multi_label)
    table = calibration.reliability_table(scores, labels, multi_label)
    assert len(table) == 15 and table[0]["lower"] == 0 and table[-1]["upper"] == 1
    total = sum(row["count"] for row in table)
    assert total == (scores.size if multi_label else len(scores))
    error = sum(row["count"] / total * abs(row["accuracy"] - row["confidence"]) for row in table if row["count"])
    assert error == pytest.approx(metrics.evaluate(scores, labels, multi_label)["ece"], abs=1e-12)
    empty = [row for row in table if not row["count"]]
    assert all(np.isnan(row["accuracy"]) for row in empty)
    for row in table:
        assert not row["count"] or row["lower"] < row["confidence"] <= row["upper"] + 1e-12


def test_edges_belong_to_the_lower_bin():
    table = calibration.reliability_table(np.array([[0.0, 0.2, 1.0]]), np.array([[0, 0, 1]]), True, bins=5)
    assert [row["count"] for row in table] == [2, 0, 0, 0, 1]


def ece_of_sorted_parts(confidence, outcome, bins):
    """Adaptive ECE without ties: the sorted examples in parts whose sizes differ by one at most."""
    order = np.argsort(confidence)
    ends = np.ceil(np.arange(bins + 1) * len(order) / bins).astype(int)
    parts = [order[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return sum(len(part) * abs(confidence[part].mean() - outcome[part].mean()) for part in parts if len(part)) / len(
        order
    )


@pytest.mark.parametrize("bins", [1, 7, 15, 500])
def test_adaptive_and_class_wise_errors_equal_brute_force(bins):
    logits, labels = problem(2, False, 2.5)
    scores = calibration.probabilities(logits, False)
    right = (scores.argmax(1) == labels).astype(float)
    found = calibration.expected_calibration_error(scores, labels, False, bins, "equal_mass")
    assert found == pytest.approx(ece_of_sorted_parts(scores.max(1), right, bins))
    by_class = calibration.class_calibration_errors(scores, labels, False, bins, "equal_mass")
    expected = [ece_of_sorted_parts(scores[:, c], (labels == c).astype(float), bins) for c in range(3)]
    np.testing.assert_allclose(by_class, expected)
    multi_hot = np.eye(3)[labels]
    np.testing.assert_allclose(
        calibration.class_calibration_errors(scores, multi_hot, True, bins, "equal_mass"), expected
    )
    every = calibration.expected_calibration_error(scores, multi_hot, True, bins, "equal_mass")
    assert every == pytest.approx(ece_of_sorted_parts(scores.ravel(), multi_hot.ravel(), bins))


def test_the_error_of_equal_widths_is_the_metric_and_worked_by_hand():
    logits, labels = problem(2, False, 2.5)
    scores = calibration.probabilities(logits, False)
    found = calibration.expected_calibration_error(scores, labels, False)
    assert found == pytest.approx(metrics.evaluate(scores, labels, False)["ece"])
    # Two bins: {.6, .7, .7} with one right of three, {.9} right; class 0 sees {.3, .3, .4} and {.9}.
    scores = np.array([[0.4, 0.6], [0.3, 0.7], [0.3, 0.7], [0.9, 0.1]])
    labels = np.array([1, 0, 0, 0])
    found = calibration.expected_calibration_error(scores, labels, False, 10)
    assert found == pytest.approx((abs(0.6 - 1) + abs(1.4 - 0) + abs(0.9 - 1)) / 4)
    np.testing.assert_allclose(
        calibration.class_calibration_errors(scores, labels, False, 2), [(1.0 + 0.1) / 4, (1.0 + 0.1) / 4]
    )


def test_bins_of_equal_mass_have_equal_sizes_and_keep_ties_together():
    logits, labels = problem(4, False, 3.0)
    scores = calibration.probabilities(logits, False)
    table = calibration.reliability_table(scores, labels, False, 10, "equal_mass")
    assert len(table) == 10 and {row["count"] for row in table} == {21, 22}
    assert table[0]["lower"] == 0 and table[-1]["upper"] == 1
    coarse = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [1.0, 0.0], [1.0, 0.0]])
    table = calibration.reliability_table(coarse, np.zeros(6, int), False, 6, "equal_mass")
    assert [row["count"] for row in table] == [3, 1, 2]
    order = np.array([3, 5, 1, 0, 4, 2])
    turned = calibration.reliability_table(coarse[order], np.zeros(6, int), False, 6, "equal_mass")
    assert turned == table
    one = calibration.reliability_table(np.full((4, 1), 1.0), np.ones((4, 1)), True, 5, "equal_mass")
    assert [row["count"] for row in one] == [4]


def test_brier_equals_scikit_learn():
    brier_score_loss = pytest.importorskip("sklearn.metrics").brier_score_loss
    logits, labels = problem(3, False, 2.0)
    scores = calibration.probabilities(logits, False)
    by_class = [brier_score_loss(labels == c, scores[:, c]) for c in range(3)]
    assert calibration.brier(scores, labels, False) == pytest.approx(sum(by_class))
    assert calibration.brier(scores, np.eye(3)[labels], True) == pytest.approx(np.mean(by_class))
    assert calibration.brier(np.eye(3)[labels], labels, False) == 0
    assert calibration.brier(np.eye(2), np.array([1, 0]), False) == 2


def test_no_examples_have_no_error():
    for binning in calibration.BINNINGS:
        nothing = calibration.expected_calibration_error(np.zeros((0, 3)), np.zeros(0, int), False, 15, binning)
        assert np.isnan(nothing)
    assert np.isnan(calibration.brier(np.zeros((0, 3)), np.zeros(0, int), False))


def test_mistakes_are_refused():
    logits, labels = problem(0, False, 1.0)
    broken = logits.copy()
    broken[5, 0] = np.inf
    for call in (
        lambda: calibration.fit_temperature(broken, labels, False),
        lambda: calibration.probabilities(broken, True),
    ):
        with pytest.raises(UserError, match="row 5"):
            call()
    with pytest.raises(UserError, match="without examples"):
        calibration.fit_temperature(logits[:0], labels[:0], False)
    with pytest.raises(UserError, match="labelled examples"):
        calibration.fit_temperature(logits, np.where(labels == 0, -1, labels), False)
    with pytest.raises(UserError, match="do not fit"):
        calibration.fit_temperature(logits, labels, True)
    with pytest.raises(UserError, match="positive number"):
        calibration.probabilities(logits, True, 0.0)
    scores = calibration.probabilities(logits, False)
    with pytest.raises(UserError, match="equal_width, equal_mass"):
        calibration.expected_calibration_error(scores, labels, False, 15, "quantile")
    with pytest.raises(UserError, match="at least one bin"):
        calibration.reliability_table(scores, labels, False, 0)
    for call in (calibration.expected_calibration_error, calibration.class_calibration_errors, calibration.brier):
        with pytest.raises(UserError, match="row 5"):
            call(broken, labels, False)
