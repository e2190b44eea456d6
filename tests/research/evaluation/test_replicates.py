"""Does every metric of every model in every replicate equal the metric computed again from the drawn examples?"""

import warnings

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import calibration, metrics, replicates, resampling, statistics


def single(seed=0, num_models=3, num_examples=53, num_classes=4, decimals=1):
    """Scores with many ties; the last class is rare enough to be absent from some replicates."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(num_classes, num_examples, p=[0.5, 0.3, 0.16, 0.04])
    labels[0] = 3
    logits = generator.normal(0, 1, (num_models, num_examples, num_classes))
    logits[:, np.arange(num_examples), labels] += 1
    scores = np.stack([calibration.probabilities(np.round(part, decimals), False) for part in logits])
    return scores, labels, generator.integers(0, 19, num_examples)


def plain(scores, labels, multi_label, groups, strata, n, seed, predicted=None):
    """Every metric of every replicate by `metrics.evaluate` on the drawn examples, `[n, M]` by name."""
    index, num_groups = resampling.group_index(groups, len(labels))
    members = resampling.members_of(index, num_groups)
    found = {name: [] for name in metrics.METRICS}
    of_groups = resampling.group_strata(strata, index, num_groups)
    for drawn in np.concatenate(list(resampling.draws(num_groups, n, seed, strata=of_groups))):
        rows = resampling.examples_of(drawn, *members)
        own = [None] * len(scores) if predicted is None else [given[rows] for given in predicted]
        results = [
            metrics.evaluate(model[rows], labels[rows], multi_label, predicted=given)
            for model, given in zip(scores, own, strict=True)
        ]
        for name in found:
            found[name].append([result[name] for result in results])
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("decimals", [0, 8])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_replicate_equals_the_metric_of_its_examples(decimals, stratified, grouped):
    scores, labels, groups = single(decimals=decimals)
    groups, strata = groups if grouped else None, labels if stratified else None
    found = replicates.resample(
        scores, labels, False, groups=groups, strata=strata, n=31, seed=3, names=replicates.NAMES
    )
    expected = plain(scores, labels, False, groups, strata, 31, 3)
    assert set(found.values) == set(replicates.NAMES)
    for name in metrics.METRICS:
        np.testing.assert_allclose(found.values[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    whole = [metrics.evaluate(model, labels, False) for model in scores]
    for name in metrics.METRICS:
        np.testing.assert_allclose(found.estimates[name], [result[name] for result in whole], rtol=1e-9, atol=1e-12)
    briers = [calibration.brier(model, labels, False) for model in scores]
    np.testing.assert_allclose(found.estimates["brier"], briers)


def test_multi_label_models_with_decisions_of_their_own():
    generator = np.random.default_rng(4)
    labels = (generator.random((47, 3)) < 0.3).astype(np.float32)
    scores = np.round(generator.random((2, 47, 3)), 2)
    predicted = scores > 0.6
    found = replicates.resample(
        scores, labels, True, predicted, np.arange(47) // 2, n=23, seed=1, names=replicates.NAMES
    )
    expected = plain(scores, labels, True, np.arange(47) // 2, None, 23, 1, predicted)
    for name in metrics.METRICS:
        np.testing.assert_allclose(found.values[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("name", ["accuracy", "mcc", "auroc_macro", "auprc_macro"])
def test_intervals_equal_those_of_any_metric(method, name):
    scores, labels, groups = single(seed=2)
    found = replicates.resample(
        scores, labels, False, groups=groups, strata=labels, n=150, seed=9, jackknife=method == "bca"
    )
    low, high = replicates.ends(found, name, 0.9, method)
    for model in range(3):
        expected = statistics.cluster_bootstrap(
            lambda rows, model=model: metrics.evaluate(scores[model][rows], labels[rows], False)[name],
            groups,
            150,
            9,
            0.9,
            strata=labels,
            method=method,
        )
        np.testing.assert_allclose((low[model], high[model]), expected, rtol=1e-9)


def test_the_intervals_are_those_of_the_functions_for_one_model():
    scores, labels, groups = single()
    found = replicates.resample(scores, labels, False, groups=groups, n=200, seed=5, names=replicates.NAMES)
    counts = statistics.metric_intervals(labels, scores[1].argmax(axis=1), 4, False, groups, 200, 5)
    ranked, _ = statistics.score_intervals(scores[1], labels, False, groups, 200, 5)
    for name, expected in (counts | ranked).items():
        np.testing.assert_allclose([end[1] for end in replicates.ends(found, name)], expected, rtol=1e-9)


def test_blocks_change_nothing(monkeypatch):
    scores, labels, groups = single()
    whole = replicates.resample(scores, labels, False, groups=groups, n=97, seed=2, jackknife=True)
    monkeypatch.setattr(resampling, "BLOCK", 19 * 300)
    monkeypatch.setattr(replicates, "_WALK", 11)
    again = replicates.resample(scores, labels, False, groups=groups, n=97, seed=2, jackknife=True)
    for name in replicates.TABLE:
        np.testing.assert_allclose(again.values[name], whole.values[name], rtol=1e-12)
        np.testing.assert_allclose(again.jackknife[name], whole.jackknife[name], rtol=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_walk_equals_the_plain_ranking_for_any_weights(decimals):
    generator = np.random.default_rng(6)
    scores = np.round(generator.normal(0, 1, 41), decimals)
    positives = generator.random(41) < 0.3
    index = generator.integers(0, 13, 41)
    weights = generator.integers(0, 4, (13, 29)).astype(float)
    weights[:, 0] = 0  # nothing drawn
    weights[np.unique(index[positives]), 1] = 0  # no positives
    found = replicates.weighted_ranking(scores, positives, weights, index)
    expected = metrics.ranking(scores, positives, weights.T[:, index])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(found)[:, :2].all() and not np.isnan(found)[:, 2:].all()


def test_all_right_one_class_and_one_group():
    labels = np.array([0, 1, 2, 1, 0, 2, 0])
    scores = np.eye(3)[labels][None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = replicates.resample(scores, labels, False, n=300, strata=labels, jackknife=True)
        for name in replicates.TABLE:
            for method in ("percentile", "bca"):
                low, high = replicates.ends(right, name, method=method)
                assert (low[0], high[0]) == pytest.approx((1, 1), abs=1e-12)
        one_class = replicates.resample(scores[:, [0, 4, 6]], np.zeros(3, int), False, n=20)
        assert np.isnan(one_class.values["auroc_macro"]).all() and np.isnan(one_class.values["kappa"]).all()
        assert np.isnan(replicates.ends(one_class, "auroc_macro")).all()
        assert (one_class.values["accuracy"] == 1).all()
        one_group = replicates.resample(scores, labels, False, groups=np.zeros(7), n=20, jackknife=True)
        assert one_group.estimates["accuracy"] == 1
        for method in ("percentile", "bca"):
            assert np.isnan(replicates.ends(one_group, "accuracy", method=method)).all()


def test_mistakes_are_refused():
    scores, labels, groups = single()
    with pytest.raises(UserError, match="auroc_macro"):
        replicates.resample(scores, labels, False, names=("auc",))
    with pytest.raises(UserError, match=r"\[M, N, K\]"):
        replicates.resample(scores[0], labels, False)
    with pytest.raises(UserError, match="same models"):
        replicates.resample(scores, labels, False, predicted=np.zeros((2, 53), int))
    with pytest.raises(UserError, match="not finite"):
        replicates.resample(np.where(scores == scores[0, 0, 0], np.nan, scores), labels, False)
    with pytest.raises(UserError, match="unlabelled"):
        replicates.resample(scores, np.where(labels == 1, -1, labels), False)
    with pytest.raises(UserError, match="strata do not fit"):
        replicates.resample(scores, labels, False, strata=labels[:-1])
    with pytest.raises(UserError, match="jackknife"):
        replicates.ends(replicates.resample(scores, labels, False, n=9), "mcc", method="bca")
