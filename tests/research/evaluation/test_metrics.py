"""Do the metrics equal scikit-learn's, also with ties, missing classes and one-class folds?"""

import math
import warnings

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import calibration, metrics

sk = pytest.importorskip("sklearn.metrics")


def close(actual, expected):
    assert actual == pytest.approx(expected, abs=1e-6, nan_ok=True)


def single(seed, num_examples=53, num_classes=5, coarse=False):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_examples)
    logits = generator.normal(0, 1.5, (num_examples, num_classes))
    logits[np.arange(num_examples), labels] += 1
    if coarse:
        logits = np.round(logits)  # many ties
    return calibration.probabilities(logits, False), labels


def many(seed, num_examples=53, num_classes=6, coarse=False):
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_examples, num_classes)) < 0.3).astype(np.float32)
    scores = np.clip(generator.normal(0.35, 0.2, labels.shape) + 0.25 * labels, 0, 1)
    return (np.round(scores, 1) if coarse else scores), labels


def brute_force_ece(confidence, outcome, bins=15):
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if i == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - outcome[inside].mean())
    return total


def check_single(scores, labels, predicted=None):
    result = metrics.evaluate(scores, labels, False, predicted=predicted)
    assert tuple(result) == metrics.METRICS
    num_classes = scores.shape[1]
    given = scores.argmax(1) if predicted is None else predicted
    averaging = {"labels": range(num_classes), "average": "macro", "zero_division": 0}
    close(result["accuracy"], sk.accuracy_score(labels, given))
    close(result["exact_match"], sk.accuracy_score(labels, given))
    close(result["macro_f1"], sk.f1_score(labels, given, **averaging))
    close(result["micro_f1"], sk.f1_score(labels, given, average="micro"))
    close(result["sample_f1"], sk.accuracy_score(labels, given))
    close(result["precision_macro"], sk.precision_score(labels, given, **averaging))
    close(result["recall_macro"], sk.recall_score(labels, given, **averaging))
    close(result["mcc"], sk.matthews_corrcoef(labels, given))
    close(result["kappa"], sk.cohen_kappa_score(labels, given))
    close(result["log_loss"], sk.log_loss(labels, scores, labels=range(num_classes)))
    close(result["ece"], brute_force_ece(scores.max(1), (scores.argmax(1) == labels).astype(float)))
    return result


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_single_label_metrics_equal_scikit_learn(seed, coarse):
    scores, labels = single(seed, coarse=coarse)
    result = check_single(scores, labels)
    close(result["auroc_macro"], sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro"))
    precisions = [sk.average_precision_score(labels == c, scores[:, c]) for c in range(5)]
    close(result["auprc_macro"], np.mean(precisions))


def test_single_label_decisions_may_be_given():
    scores, labels = single(9)
    check_single(scores, labels, predicted=np.random.default_rng(1).integers(0, 5, len(labels)))


def test_a_class_without_examples_counts_in_f1_but_not_in_ranking():
    scores, labels = single(5, num_examples=31)
    labels[labels == 3] = 0
    result = check_single(scores, labels)
    others = [0, 1, 2, 4]
    close(result["auroc_macro"], np.mean([sk.roc_auc_score(labels == c, scores[:, c]) for c in others]))
    close(
        result["auprc_macro"],
        np.mean([sk.average_precision_score(labels == c, scores[:, c]) for c in others]),
    )
    row = metrics.per_class(scores, labels, False)[3]
    assert row["support"] == 0 and math.isnan(row["auroc"]) and math.isnan(row["average_precision"])


def test_a_one_class_fold_has_no_auroc_and_no_kappa():
    labels = np.full(7, 2)
    scores = np.tile([0.1, 0.2, 0.7], (7, 1))
    result = metrics.evaluate(scores, labels, False)
    assert math.isnan(result["auroc_macro"]) and math.isnan(result["kappa"])
    close([result["accuracy"], result["auprc_macro"], result["mcc"], result["macro_f1"]], [1, 1, 0, 1 / 3])


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_multi_label_metrics_equal_scikit_learn(seed, coarse):
    scores, labels = many(seed, coarse=coarse)
    cuts = np.linspace(0.3, 0.6, 6)
    given = scores >= cuts
    result = metrics.evaluate(scores, labels, True, thresholds=cuts)
    for name, average in (("macro_f1", "macro"), ("micro_f1", "micro"), ("sample_f1", "samples")):
        close(result[name], sk.f1_score(labels, given, average=average, zero_division=0))
    close(result["precision_macro"], sk.precision_score(labels, given, average="macro", zero_division=0))
    close(result["recall_macro"], sk.recall_score(labels, given, average="macro", zero_division=0))
    close(result["exact_match"], sk.accuracy_score(labels, given))
    close(result["accuracy"], 1 - sk.hamming_loss(labels, given))
    close(result["auroc_macro"], sk.roc_auc_score(labels, scores, average="macro"))
    close(result["auprc_macro"], sk.average_precision_score(labels, scores, average="macro"))
    columns = list(zip(labels.T, given.T, strict=True))
    close(result["mcc"], np.mean([sk.matthews_corrcoef(y, p) for y, p in columns]))
    close(result["kappa"], np.mean([sk.cohen_kappa_score(y, p) for y, p in columns]))
    close(result["log_loss"], sk.log_loss(labels.ravel(), scores.ravel(), labels=[0, 1]))
    close(result["ece"], brute_force_ece(scores.ravel(), labels.ravel()))


def test_multi_label_undefined_cases_equal_scikit_learn():
    scores, labels = many(11)
    labels[:, 1], labels[:, 4] = 0, 1  # no positives; no negatives
    result = metrics.evaluate(scores, labels, True)
    given = scores >= 0.5
    close(result["macro_f1"], sk.f1_score(labels, given, average="macro", zero_division=0))
    both = [0, 2, 3, 5]
    close(result["auroc_macro"], np.mean([sk.roc_auc_score(labels[:, c], scores[:, c]) for c in both]))
    with_positives = [0, 2, 3, 4, 5]
    precisions = [sk.average_precision_score(labels[:, c], scores[:, c]) for c in with_positives]
    close(result["auprc_macro"], np.mean(precisions))
    labels[3], scores[3] = 0, 0.1  # neither labels nor predictions
    expected = sk.f1_score(labels, scores >= 0.5, average="samples", zero_division=0)
    close(metrics.evaluate(scores, labels, True)["sample_f1"], expected)


def test_kappa_of_one_class_is_left_out_of_the_mean():
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    predicted = np.array([[1, 0], [1, 0], [0, 0]], bool)
    result = metrics.evaluate(np.full((3, 2), 0.5), labels, True, predicted=predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(result["kappa"], sk.cohen_kappa_score(labels[:, 0], predicted[:, 0]))
        close(result["mcc"], sk.matthews_corrcoef(labels[:, 0], predicted[:, 0]) / 2)


def test_per_class_rows_equal_scikit_learn():
    scores, labels = many(6, coarse=True)
    cuts = np.linspace(0.3, 0.6, 6)
    given = scores >= cuts
    rows = metrics.per_class(scores, labels, True, thresholds=cuts, class_names=list("abcdef"))
    assert [row["class"] for row in rows] == list("abcdef")
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, given, zero_division=0)
    for c, row in enumerate(rows):
        close([row["precision"], row["recall"], row["f1"]], [precision[c], recall[c], f1[c]])
        assert (row["support"], row["predicted"]) == (support[c], given[:, c].sum())
        close(row["average_precision"], sk.average_precision_score(labels[:, c], scores[:, c]))
        close(row["auroc"], sk.roc_auc_score(labels[:, c], scores[:, c]))
        assert row["threshold"] == cuts[c]


def test_weighted_ranking_equals_scikit_learn_and_repetition():
    scores, labels = many(2, coarse=True)
    generator = np.random.default_rng(0)
    weights = generator.integers(0, 4, (3, len(scores))).astype(float)
    auroc, precision = metrics.ranking(scores[:, 0], labels[:, 0] > 0, weights)
    for r, weight in enumerate(weights):
        repeated = np.repeat(np.arange(len(scores)), weight.astype(int))
        close(auroc[r], sk.roc_auc_score(labels[repeated, 0], scores[repeated, 0]))
        close(precision[r], sk.average_precision_score(labels[:, 0], scores[:, 0], sample_weight=weight))


def test_confusion_equals_scikit_learn():
    scores, labels = single(3)
    expected = sk.confusion_matrix(labels, scores.argmax(1), labels=range(5))
    np.testing.assert_array_equal(metrics.confusion(labels, scores.argmax(1), 5), expected)


def test_nothing_unsound_becomes_a_number():
    scores, labels = single(0)
    broken = scores.copy()
    broken[17, 2] = np.nan
    with pytest.raises(UserError, match="1 of 53 rows .* row 17"):
        metrics.evaluate(broken, labels, False)
    with pytest.raises(UserError, match="probabilities between 0 and 1"):
        metrics.evaluate(scores * 30, labels, False)
    with pytest.raises(UserError, match="sum to one"):
        metrics.evaluate(scores * 0.5, labels, False)
    with pytest.raises(UserError, match="unlabelled"):
        metrics.evaluate(scores, np.where(labels == 1, -1, labels), False)
    with pytest.raises(UserError, match="from 0 to 4"):
        metrics.evaluate(scores, labels + 1, False)
    with pytest.raises(UserError, match="do not fit"):
        metrics.evaluate(scores, labels[:-1], False)
    with pytest.raises(UserError, match="no examples"):
        metrics.evaluate(scores[:0], labels[:0], False)
    with pytest.raises(UserError, match="thresholds belong to multi-label"):
        metrics.evaluate(scores, labels, False, thresholds=0.4)
    with pytest.raises(UserError, match="0 or 1"):
        metrics.evaluate(scores, np.full(scores.shape, 0.3), True)
