"""Are the blood-cell study's outputs and the test of its claims right?"""

import pathlib

import numpy as np
import pandas as pd
import pytest

from research.evaluation import predictions
from research.search import study_outputs
from tests.research.report import fake_search

LOGS = pathlib.Path(__file__).parents[4] / "shared" / "data" / "blood_cells"


@pytest.mark.skipif(not LOGS.exists(), reason="needs the study's logs")
def test_the_study_s_own_logs():
    tables = [pd.read_csv(LOGS / f"metrics_log_epoch_{n}.csv").assign(epochs=float(n)) for n in (10, 30)]
    sentences = study_outputs.claims(pd.concat(tables, ignore_index=True))
    assert sentences[0].startswith(
        "After 10 epochs 4 of 24 models are non-dominated by size and training accuracy (the"
    )
    assert "the study claims 12" in sentences[0] and "6 of 19" in sentences[3] and "claims 15" in sentences[3]
    best = [
        t["val_accuracy"][side(t["model_size(MB)"])].max()
        for t in tables
        for side in (lambda s: s <= 8, lambda s: s > 8)
    ]
    for sentence, (below, above) in zip((sentences[2], sentences[5]), (best[:2], best[2:]), strict=True):
        assert f"is {below:.3f} up to 8 MB" in sentence and f"and {above:.3f} beyond" in sentence
        assert "no interval" in sentence
    deviations = [np.std(table["val_accuracy"], ddof=1) for table in tables]
    assert f"{deviations[0]:.3f} after 10 epochs (24) and {deviations[1]:.3f} after 30 (19)" in sentences[-1]
    assert f"a ratio of {deviations[1] / deviations[0]:.2f} [" in sentences[-1] and len(sentences) == 8


def test_files_of_a_run(tmp_path):
    rows = fake_search.write_whole(tmp_path, 6)
    figures, sentences = study_outputs.write(tmp_path)
    log = pd.read_csv(tmp_path / "metrics_log.csv")
    assert list(log.columns) == [
        "train_loss", "train_accuracy", "val_loss", "val_accuracy", "model_size(MB)", "id", "parameters", "seed",
    ]  # fmt: skip
    wanted = [row for row in rows if row["status"] == "finished" and row["stage"] in ("search", "extend")]
    assert log["id"].tolist() == [row["id"] for row in wanted]
    assert log["model_size(MB)"].tolist() == pytest.approx([row["bytes"] / 1048576 for row in wanted])
    assert log["val_accuracy"].tolist() == [row["metrics"]["validation"]["accuracy"] for row in wanted]
    assert log["train_loss"].tolist() == [row["metrics"]["train"]["loss"] for row in wanted]
    names = [f"{split}_accuracy_vs_model_size_epochs_10.png" for split in ("train", "val")]
    assert [figure["path"] for figure in figures] == names
    for name in names:
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert f"of {len(wanted)} models" in sentences[0]


def test_what_the_ledger_lacks_is_empty_and_not_drawn(tmp_path):
    rows = fake_search.grid(3)
    for row in rows:
        del row["metrics"]["train"]
    fake_search.write_run(tmp_path, rows)
    figures, _ = study_outputs.write(tmp_path)
    assert [figure["path"] for figure in figures] == ["val_accuracy_vs_model_size_epochs_10.png"]
    assert pd.read_csv(tmp_path / "metrics_log.csv")["train_loss"].isna().all()


def test_folds_of_a_model_are_one_model(tmp_path):
    rows = []
    for number, row in enumerate(fake_search.grid(3)):
        for fold, gain in enumerate((0.0, 0.1)):
            metrics = {"validation": {"accuracy": 0.5 + 0.1 * number + gain}}
            overrides = row["overrides"] | {"search.fold": fold}
            values = {"overrides": overrides, "metrics": metrics, "bytes": 2**23 + number}
            rows.append(row | {"id": f"m{number}-fold{fold}"} | values)
    fake_search.write_run(tmp_path, rows)
    _, sentences = study_outputs.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics_log.csv")) == 6
    models = study_outputs.over_folds(study_outputs.read(tmp_path))
    assert models["val_accuracy"].tolist() == pytest.approx([0.55, 0.65, 0.75]) and set(models["id"]) == {""}
    assert "3 of 3 models" in sentences[0] and "0.550 up to 8 MB (1 models)" in sentences[1]
    assert "without predictions for the same images" in sentences[1]


def test_epochs_of_config_overrides_and_log(tmp_path):
    rows = fake_search.grid(3)
    rows[1]["overrides"]["epochs"] = 30
    fake_search.write_run(tmp_path, rows, config=fake_search.config_of(epochs=20.0))
    assert study_outputs.read(tmp_path)["epochs"].tolist() == [20.0, 30.0, 20.0]
    (tmp_path / "config.json").unlink()
    lines = [line | {"epoch": line["epoch"] / 3} for row in rows[1:] for line in fake_search.metric_lines(row)]
    fake_search.write_run(tmp_path, rows, lines, config=fake_search.config_of(epochs=0.0))
    assert study_outputs.read(tmp_path)["epochs"].tolist() == [0.0, 30.0, 3.33]


def plateau_run(folder, accuracies, sizes, groups=8):
    rows = []
    for number, (accuracy, size) in enumerate(zip(accuracies, sizes, strict=True)):
        row = fake_search.row_of(number, 4, 1e-3, bytes=int(size * 2**20))
        file = folder / "predictions" / f"{row['id']}_validation.csv"
        fake_search.write_predictions(file, accuracy, number, groups=groups)
        part = predictions.read(file)
        row["metrics"]["validation"]["accuracy"] = float((part.logits.argmax(1) == part.labels(False)).mean())
        rows.append(row)
    fake_search.write_run(folder, rows)
    return rows


def test_plateau_interval_equals_a_loop(tmp_path):
    rows = plateau_run(tmp_path, (0.5, 0.6, 0.65, 0.62), (1.0, 8.0, 8.5, 20.0))
    sentence = study_outputs.claims(study_outputs.read(tmp_path), tmp_path)[2]
    parts = [predictions.read(tmp_path / "predictions" / f"{row['id']}_validation.csv") for row in rows]
    hits = np.array([part.logits.argmax(1) == part.labels(False) for part in parts])
    groups = np.unique(parts[0].groups, return_inverse=True)[1]
    generator = np.random.default_rng(0)
    gains = []
    for drawn in generator.integers(0, 8, (2000, 8)):
        means = hits[:, np.concatenate([np.flatnonzero(groups == g) for g in drawn])].mean(1)
        gains.append(means[2:].max() - means[:2].max())
    low, high = (f"{end:+.3f}".replace("-", "−") for end in np.quantile(gains, [0.025, 0.975]))
    assert f"[{low}, {high}] over photographs" in sentence and "up to 8 MB (2 models)" in sentence


def test_plateau_verdicts(tmp_path):
    for name, accuracies, words in (
        ("up", (0.4, 0.95), "no plateau"),
        ("down", (0.95, 0.4), "larger models are worse"),
    ):
        plateau_run(tmp_path / name, accuracies, (1.0, 9.0))
        assert words in study_outputs.claims(study_outputs.read(tmp_path / name), tmp_path / name)[2]
    plateau_run(tmp_path / "same", (0.7, 0.7), (1.0, 9.0))
    assert "from noise" in study_outputs.claims(study_outputs.read(tmp_path / "same"), tmp_path / "same")[2]
    plateau_run(tmp_path / "one", (0.7, 0.7), (1.0, 9.0), groups=1)
    assert "no interval" in study_outputs.claims(study_outputs.read(tmp_path / "one"), tmp_path / "one")[2]


def test_ratio_of_spreads():
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    low, high = study_outputs.ratio_interval(first, second)
    assert 0.5 < low < np.std(second) / np.std(first) < high < 2
    assert study_outputs.ratio_interval(first, 3 * second + 5) == pytest.approx((3 * low, 3 * high))
    assert np.isnan(study_outputs.ratio_interval(np.ones(9), second)).all()


def test_spread_is_of_the_settings_trained_for_both_lengths():
    def rows(epochs, settings, values):
        return pd.DataFrame({"epochs": epochs, "setting": settings, "model_size(MB)": 1.0, "val_accuracy": values,
                             "train_accuracy": np.nan})  # fmt: skip

    short = rows(10.0, list("abcdz"), [0.1, 0.4, 0.7, 0.9, 55.0])
    long = rows(40.0, list("abcd"), [0.70, 0.71, 0.72, 0.73])
    (sentence,) = study_outputs.claims(pd.concat([short, long], ignore_index=True))[-1:]
    deviation = np.std([0.1, 0.4, 0.7, 0.9], ddof=1)
    assert f"validation accuracy has a standard deviation of {deviation:.3f} after 10 epochs (4)" in sentence
    assert "longer training reduced the spread" in sentence
