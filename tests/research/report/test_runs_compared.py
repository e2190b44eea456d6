"""Does a comparison of runs use the images that they share, and say what differs?"""

import json

import numpy as np
import pandas as pd
import pytest

from input_pipeline.cli import UserError
from research import compare
from research.evaluation import predictions
from research.report import runs_compared, tables
from tests.research.report.test_settings_table import write_model

EVALUATION = {"temperature": False, "thresholds": "fixed", "fallback": "argmax"}


def make_run(folder, right, seeds=(0,), task="single-label", **changes):
    (folder / "report").mkdir(parents=True)
    names = [f"a-seed{seed}" for seed in seeds]
    for seed, name in zip(seeds, names, strict=True):
        write_model(folder, name, right, 10 * seed + 1, shuffle=True)
    row = {"status": "finished", "overrides": {}, "parameters": 1, "bytes": 4, "setting": "a", "stage": "search"}
    rows = [row | {"id": name, "seed": seed, "metrics": {}} for seed, name in zip(seeds, names, strict=True)]
    tables.write_trials_csv(folder / "trials.csv", rows)
    config = {"seed": 0, "evaluation": EVALUATION, "optimizer": {"learning_rate": 0.1}, "data": {"dir": str(folder)}}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "report" / "metrics.json").write_text(json.dumps({"chosen_trial": "a", "task": task}))
    lines = [{"trial": name, "step": s, "split": "validation", "loss": 1 / s} for name in names for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    first = make_run(tmp_path / "first", 0.95, (0, 1))
    second = make_run(tmp_path / "second", 0.4, optimizer={"learning_rate": 0.01})
    file = second / "predictions" / "a-seed0_test.csv"  # one image was not tested there
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("i007")) + "\n")
    return first, second


def test_runs_are_compared_on_what_they_share(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare.main([*map(str, runs), f"--out={out}"]) == 0
    found = pd.read_csv(out / "comparison.csv")
    accuracies = []
    for run, names in zip(runs, (("a-seed0", "a-seed1"), ("a-seed0",)), strict=True):
        tested = [predictions.read(run / "predictions" / f"{name}_test.csv") for name in names]
        kept = [np.array(one.ids) != "i007" for one in tested]
        right = [(one.logits.argmax(1) == one.labels(False))[k].mean() for one, k in zip(tested, kept, strict=True)]
        accuracies.append(np.mean(right))
    assert found["accuracy"].tolist() == pytest.approx(accuracies)
    assert found["difference"][1] == pytest.approx(accuracies[1] - accuracies[0])
    assert found["difference_high"][1] < 0 and found["holm"][1] < 0.05 and found["permutation"][1] < 0.05
    text = (out / "index.html").read_text()
    assert "59 test images of 30 groups" in text and "optimizer.learning_rate" in text and "data.dir" not in text
    assert (out / "curves.png").stat().st_size > 1000 and "second" in capsys.readouterr().out


def test_auroc_has_no_permutation_of_decisions(runs, tmp_path):
    runs_compared.write(runs_compared.read(runs), tmp_path / "out", "auroc_macro")
    found = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert found["permutation"].isna().all() and found["p"][1] <= 1


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    for flags, words in ((["x"], "two or more"), (["x", "x"], "two or more"), (["x", "y", "--metric=luck"], "unknown")):
        with pytest.raises(UserError, match=words):
            compare.parse([*flags, "--out=o"])
    with pytest.raises(UserError, match="is no finished run"):
        runs_compared.read([runs[0], tmp_path])
    segments = make_run(tmp_path / "third", 0.5, task="segmentation")
    with pytest.raises(UserError, match="only classifications are compared"):
        runs_compared.read([runs[0], segments])
    other = make_run(tmp_path / "fourth", 0.5)
    file = other / "predictions" / "a-seed0_test.csv"
    whole = file.read_text()
    file.write_text(whole.replace("\ni", "\nj"))
    with pytest.raises(UserError, match="share no test image"):
        runs_compared.read([runs[0], other])
    file.write_text(whole.replace("logit_a", "logit_x"))
    with pytest.raises(UserError, match="predict other classes"):
        runs_compared.read([runs[0], other])
