"""Scores made from prediction files: fitted on calibration, pooled over folds, equal to scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from configs import common
from research.evaluation import predictions, score, thresholds
from research.evaluation.calibration import probabilities

NAMES = ("a", "b", "c")


def write(folder, trial, role, n, multi_label, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)).astype(np.float32) * 2
    if multi_label:
        labels = (rng.random((n, 3)) < probabilities(logits, True)).astype(int)
    else:
        labels = np.array([rng.choice(3, p=p) for p in probabilities(logits, False)])
    ids = [f"{trial}-{role}-{i}" for i in range(n)]
    groups = [f"{trial}-{i // 3}" for i in range(n)]
    predictions.write(folder / "predictions" / f"{trial}_{role}.csv", ids, groups, labels, logits, NAMES)
    return logits, labels


@pytest.mark.parametrize("multi_label", [False, True])
def test_folds_are_fitted_apart_and_pooled(tmp_path, multi_label):
    (tmp_path / "predictions").mkdir()
    settings = common.default().evaluation
    decided, truth = [], []
    for fold in range(2):
        fitted = write(tmp_path, f"t{fold}", "calibration", 41, multi_label, fold)
        logits, labels = write(tmp_path, f"t{fold}", "test", 37, multi_label, 10 + fold)
        truth.append(labels)
        if multi_label:
            settings.temperature = False
            cuts = thresholds.per_class_f1(probabilities(fitted[0], True), fitted[1])
            decided.append(thresholds.decide(probabilities(logits, True), cuts, "argmax"))
        else:
            decided.append(logits.argmax(1))
    scored = score.score(tmp_path, ["t0", "t1"], multi_label, settings)
    np.testing.assert_array_equal(scored.predicted, np.concatenate(decided))
    assert len(scored.ids) == 74 and len(set(scored.groups)) == 26 and list(np.unique(scored.folds)) == [0, 1]
    found = score.estimates(scored, 200)
    expected = f1_score(np.concatenate(truth), np.concatenate(decided), average="macro")
    assert found["macro_f1"]["value"] == pytest.approx(expected, abs=1e-9)
    assert found["macro_f1"]["low"] < expected < found["macro_f1"]["high"]


def test_trials_without_test_predictions_are_not_scored(tmp_path):
    (tmp_path / "predictions").mkdir()
    assert score.score(tmp_path, ["t0"], False, common.default().evaluation) is None


def test_most_confident_mistakes_come_first(tmp_path):
    (tmp_path / "predictions").mkdir()
    for role in ("calibration", "test"):
        write(tmp_path, "t", role, 50, True, 3)
    scored = score.score(tmp_path, ["t"], True, common.default().evaluation)
    rows = score.confident_mistakes(scored, 8)
    found = [row["probability"] for row in rows]
    assert found == sorted(found, reverse=True) and len(rows) == 8
    for row in rows:
        assert row["true"] != row["predicted"]


def test_merged_classes_equal_scikit_learn_on_joined_labels(tmp_path):
    (tmp_path / "predictions").mkdir()
    logits, labels = write(tmp_path, "t", "test", 57, False, 3)
    settings = common.default().evaluation
    scored = score.score(tmp_path, ["t"], False, settings)
    together = score.merged(scored, [("c", "a"), ("b", "zebra")])
    assert together.class_names == ("a+c", "b")
    shares = probabilities(logits, False)
    np.testing.assert_allclose(together.scores, np.stack([shares[:, 0] + shares[:, 2], shares[:, 1]], 1))
    want = f1_score(labels == 1, together.scores.argmax(1) == 1)
    got = score.per_class(together, 20)[1]["f1"]
    assert got == pytest.approx(want)
    assert score.estimates(together, 20)["recall_macro"]["value"] > 0
    assert score.merged(scored, [("b", "zebra")]) is None and score.merged(scored, []) is None
