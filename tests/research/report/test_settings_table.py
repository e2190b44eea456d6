"""Are settings compared on the same images, with their seeds, and against what chance explains?"""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, pneumonia
from research import study
from research.evaluation import metrics, score
from research.evaluation.baselines import Baseline, pixel_features, regression
from research.evaluation.predictions import write
from research.report import choice, settings_table

K, N = 3, 60
SETTINGS = ConfigDict({"temperature": False, "thresholds": "fixed", "fallback": "argmax"})


def write_model(folder, name, right, seed, shuffle=False):
    """Predictions of `N` images in 30 groups, of which a share `right` is right."""
    labels = np.arange(N) % K
    generator = np.random.default_rng(seed)
    given = np.where(generator.random(N) < right, labels, (labels + 1) % K)
    logits = np.eye(K, dtype=np.float32)[given] * 3 + generator.normal(size=(N, K)).astype(np.float32) * 0.1
    order = generator.permutation(N) if shuffle else np.arange(N)
    ids, groups = np.array([f"i{i:03d}" for i in range(N)]), np.array([f"g{i // 2}" for i in range(N)])
    path = folder / "predictions" / f"{name}_test.csv"
    path.parent.mkdir(exist_ok=True)
    write(path, list(ids[order]), list(groups[order]), labels[order], logits[order], ("a", "b", "c"))


@pytest.fixture
def rows(tmp_path):
    for seed in range(3):
        write_model(tmp_path, f"good-seed{seed}", 0.95, seed, shuffle=seed == 1)
        write_model(tmp_path, f"bad-seed{seed}", 0.4, 10 + seed)
    scored = score.score(tmp_path, ["good-seed1"], False, SETTINGS)  # its rows are in another order
    rival = Baseline("majority", np.full((N, K), 1 / K), np.zeros(N, np.int64))
    settings = {
        name: [score.score(tmp_path, [f"{name}-seed{seed}"], False, SETTINGS) for seed in range(3)]
        for name in ("good", "bad")
    }
    return tmp_path, settings_table.build(settings, "good", [rival], scored, 400, 0)


def test_rows_are_means_over_seeds(rows):
    folder, (good, bad, rival) = rows
    scores = [score.score(folder, [f"bad-seed{seed}"], False, SETTINGS) for seed in range(3)]
    found = [metrics.evaluate(s.scores, s.labels, False, predicted=s.predicted) for s in scores]
    for name, estimate in bad["metrics"].items():
        assert estimate["value"] == pytest.approx(np.mean([one[name] for one in found]))
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert (good["seeds"], rival["seeds"], rival["kind"]) == (3, 1, "baseline")
    assert rival["metrics"]["accuracy"]["value"] == pytest.approx(1 / K)
    assert good["difference"] is None and bad["difference"]["high"] < 0
    assert bad["difference"]["value"] == pytest.approx(
        bad["metrics"]["accuracy"]["value"] - good["metrics"]["accuracy"]["value"]
    )
    assert bad["difference"]["p"] <= bad["difference"]["holm"] < 0.05


def test_section_marks_what_is_cited(rows):
    text = settings_table.section(rows[1], "good", "other", "calibration", (("<b>", {"accuracy": 0.9}),), "accuracy")
    assert "&lt;b&gt; (cited)" in text and "of other test images" in text and "chosen on calibration" in text
    assert "minus that of other" in text
    assert '<tr class="chosen"><td data-key="good">' in text


def test_settings_tested_on_other_images_are_left_out(rows):
    folder, _ = rows
    scored = score.score(folder, ["good-seed0"], False, SETTINGS)
    path = folder / "predictions" / "bad-seed0_test.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    settings = {name: [score.score(folder, [f"{name}-seed0"], False, SETTINGS)] for name in ("good", "bad")}
    found = settings_table.build(settings, "good", [], scored, 400, 0)
    assert [row["name"] for row in found] == ["good"]


def test_repeats_are_seeds_of_one_setting(simulated):
    config = common.default()
    config.data.dir, config.steps = str(simulated.directory), 10
    config.search.repeats, config.search.folds, config.seed = 2, 2, 5
    config.search.trials = ({"name": "a"}, {"name": "b", "optimizer.learning_rate": 0.1})
    trials = study.expand(config.lock(), simulated)
    names = [trial.name for trial in trials if trial.setting == "a"]
    assert names == ["a-seed5-fold0", "a-seed5-fold1", "a-seed6-fold0", "a-seed6-fold1"]
    assert trials[-1].overrides == {"optimizer.learning_rate": 0.1, "seed": 6, "search.fold": 1}
    assert {t.config.seed for t in trials} == {5, 6} and {t.data_seed for t in trials} == {5}
    found = choice.by_seed([t for t in trials if t.setting == "b"])
    assert {seed: len(folds) for seed, folds in found.items()} == {5: 2, 6: 2}


def test_a_loss_does_not_compare_losses(simulated):
    config = pneumonia.get_config("cpu").unlock()
    config.selection = "loss"
    trials = [ConfigDict({"config": {"loss": {"name": name}}}) for name in ("x", "y")]
    assert choice.metric_of(config, {"a": trials}) == "log_loss"
    assert choice.metric_of(config, {"a": trials[:1]}) == "loss"


def test_pixel_features_are_means_of_areas():
    images = np.random.default_rng(0).integers(0, 255, (3, 70, 33, 2)).astype(np.uint8)
    found = pixel_features(images, 32).reshape(3, 32, 32)
    rows, columns = (np.arange(33) * 70 // 32, np.arange(33) * 33 // 32)
    expected = images[1, rows[4] : rows[5], columns[31] : columns[32]].mean()
    assert found[1, 4, 31] == pytest.approx(expected, rel=1e-6)
    assert pixel_features(images[:, :5, :7]).shape == (3, 35)


def test_regression_learns_what_is_linear():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(400, 6))
    labels = (features @ generator.normal(size=(6, 3))).argmax(1)
    found = regression("linear", features[:300], labels[:300], features[300:], 3, False)
    assert found.name == "linear" and (found.predicted == labels[300:]).mean() > 0.9
