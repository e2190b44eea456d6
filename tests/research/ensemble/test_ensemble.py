"""The whole command on run folders without training: what wins, what cannot, what is chosen where, what is refused."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import tabular
from input_pipeline.cli import UserError
from research.ensemble import library
from research.ensemble.__main__ import main
from research.evaluation import metrics, predictions, score, thresholds
from tests.running import ENVIRONMENT, ROOT

from .fake_runs import CLASSES, independent, labels_of, logits_of, weights_file, write_run

VOTES = ("majority", "mean", "weighted", "rank", "greedy")


def call(*runs, out, **flags):
    arguments = [f"--runs={','.join(map(str, runs))}", f"--out={out}"]
    arguments += [f"--{key}" if value is True else f"--{key}={value}" for key, value in flags.items()]
    assert main(arguments) == 0
    return table_of(out)


def table_of(out, chosen_on="calibration"):
    _, rows = tabular.read_csv(out / "ensembles.csv")
    return {row["name"]: row for row in rows if row["chosen_on"] == chosen_on}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Five members of 0.64 to 0.7, all methods, and the choice on test."""
    folder = tmp_path_factory.mktemp("many")
    run = independent(folder / "run", [0.64, 0.7, 0.66, 0.65, 0.69], 180, 242)
    call(run, out=folder / "out", compare_with_test_selection=True)
    return run, folder / "out"


def test_independent_errors_win(many):
    rows = table_of(many[1])
    assert len(rows) == 1 + 7 * 5
    for method in (*VOTES, "logistic", "dense"):
        row = rows[f"{method}-5"]
        assert row["difference"] > 0.08 and row["difference_low"] > 0, method
        assert row["p_holm"] < 0.05 or method == "rank"  # ranks spread what is unlikely, which adds noise
        assert row["difference"] == pytest.approx(row["test/accuracy"] - rows["single"]["test/accuracy"])
        assert row["low"] < row["test/accuracy"] < row["high"] and row["p"] <= row["p_holm"]


def test_one_member_is_the_member(many):
    rows = table_of(many[1])
    for method in ("majority", "mean", "weighted", "rank"):
        row = rows[f"{method}-1"]
        assert json.loads(row["members"]) == json.loads(rows["single"]["members"])
        assert (row["difference"], row["difference_low"], row["difference_high"], row["p"]) == (0, 0, 0, 1)
        assert row["test/accuracy"] == rows["single"]["test/accuracy"] and row["p_holm"] == 1
    for method in ("mean", "weighted"):  # not only the decisions
        assert rows[f"{method}-1"]["test/log_loss"] == pytest.approx(rows["single"]["test/log_loss"], rel=1e-9)
    assert rows["single"]["p"] is None


def test_the_single_member_is_scored_as_in_its_own_run(many):
    run, out = many
    row = table_of(out)["single"]
    settings = library.open_runs([run]).evaluation
    own = score.score(run, json.loads(row["members"]), False, settings)
    expected = metrics.evaluate(own.scores, own.labels, False, predicted=own.predicted)
    for name in metrics.METRICS:
        assert row[f"test/{name}"] == pytest.approx(expected[name], rel=1e-6), name


def test_files_give_the_figures_of_the_table(many):
    run, out = many
    rows, settings = table_of(out), library.open_runs([run]).evaluation
    for name in ("mean-3", "majority-4", "rank-5", "logistic-2", "dense-3", "greedy-4"):
        own = score.score(out, [name], False, settings)
        found = metrics.evaluate(own.scores, own.labels, False, predicted=own.predicted)
        for metric in ("accuracy", "log_loss", "auroc_macro"):
            assert rows[name][f"test/{metric}"] == pytest.approx(found[metric], rel=1e-12)
    mean = predictions.read(out / "predictions" / "mean-3_test.csv")
    members = json.loads(rows["mean-3"]["members"])
    scored = [score.score(run, [member], False, settings).scores for member in members]
    np.testing.assert_allclose(mean.scores(False), np.mean(scored, axis=0), atol=1e-6)


def test_ranking_and_choice_of_k_come_from_calibration(many):
    run, out = many
    rows, settings = table_of(out), library.open_runs([run]).evaluation
    found = {}
    for name in sorted({m for row in rows.values() for m in json.loads(row["members"])}):
        own = predictions.read(run / "predictions" / f"{name}_calibration.csv")
        heat, _ = score.fit(own, False, settings)
        values = metrics.evaluate(own.scores(False, heat), own.labels(False), False)
        found[name] = (-values["accuracy"], values["log_loss"])
    assert json.loads(rows["mean-5"]["members"]) == sorted(found, key=found.get)
    for method in VOTES + ("logistic", "dense"):
        own = [row for row in rows.values() if row["method"] == method]
        (chosen,) = [row for row in own if row["chosen"]]
        assert chosen["calibration/accuracy"] == max(row["calibration/accuracy"] for row in own)
    (best,) = [row for row in rows.values() if "method and K" in (row["chosen"] or "")]
    assert best["calibration/accuracy"] == max(row["calibration/accuracy"] for row in rows.values())


def test_holm_is_over_all_but_the_single_member(many):
    rows = [row for name, row in table_of(many[1]).items() if name != "single" and row["difference"] is not None]
    single = table_of(many[1])["single"]["members"]
    stacked = ("logistic", "dense")
    family = [row for row in rows if row["members"] != single or row["method"] in stacked or row["difference"]]
    ordered, worst = sorted(family, key=lambda row: row["p"]), 0.0
    for rank, row in enumerate(ordered):
        worst = max(worst, min(1.0, row["p"] * (len(ordered) - rank)))
        assert row["p_holm"] == pytest.approx(worst)


def test_choosing_on_test_flatters(many):
    _, out = many
    _, rows = tabular.read_csv(out / "test_selection.csv")
    assert [row["choice"] for row in rows] == ["single", *VOTES, "logistic", "dense", "chosen"]
    honest, flattered = table_of(out), table_of(out, "test")
    by_choice = {row["choice"]: row for row in rows}
    for row in rows:
        assert row["flattered"] == pytest.approx(row["test_value"] - row["calibration_value"])
        assert row["calibration_value"] == honest[row["on_calibration"]]["test/accuracy"]
        assert row["test_value"] == flattered[row["on_test"]]["test/accuracy"]
    assert by_choice["single"]["flattered"] >= 0
    best = max(row["test/accuracy"] for row in flattered.values())
    assert by_choice["chosen"]["test_value"] == best and by_choice["chosen"]["flattered"] >= 0
    assert not any(row["p"] for row in flattered.values())
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Had the test set chosen" in page and "test_selection.png" in page
    assert (out / "ensembles.png").read_bytes()[:4] == b"\x89PNG"


def test_labels_of_test_choose_nothing(many, tmp_path):
    run, out = many
    permuted = tmp_path / "run"
    permuted.mkdir()
    for file in ("config.json", "trials.csv"):
        (permuted / file).write_bytes((run / file).read_bytes())
    (permuted / "predictions").mkdir()
    for file in (run / "predictions").iterdir():
        own = predictions.read(file)
        labels = own.labels(False)
        if file.name.endswith("_test.csv"):
            labels = np.random.default_rng(0).permutation(labels)
        predictions.write(permuted / "predictions" / file.name, own.ids, own.groups, labels, own.logits, CLASSES)
    call(permuted, out=tmp_path / "out")
    before, after = weights_file(out), weights_file(tmp_path / "out")
    assert before.pop("runs") != after.pop("runs") and before == after
    rows, others = table_of(out), table_of(tmp_path / "out")
    for name, row in rows.items():
        for column in row:
            if column.startswith("calibration/") or column in ("k", "members", "weights", "chosen"):
                assert row[column] == others[name][column], (name, column)
        assert others[name]["test/accuracy"] < 0.5 < row["test/accuracy"]
        assert others[name]["test/accuracy"] != row["test/accuracy"]
        first, second = (predictions.read(o / "predictions" / f"{name}_test.csv") for o in (out, tmp_path / "out"))
        np.testing.assert_array_equal(first.logits, second.logits)


def test_equal_members_gain_nothing_and_order_in_files_does_not_matter(tmp_path):
    labels = {role: labels_of(90, i) for i, role in enumerate(("calibration", "test"))}
    logits = {role: logits_of(own, 0.7, 3) for role, own in labels.items()}
    run = write_run(tmp_path / "run", {f"twin{i}": logits for i in range(4)}, labels, shuffle=5)
    rows = call(run, out=tmp_path / "out", methods=",".join(VOTES))
    assert len(rows) == 21
    for name, row in rows.items():
        if name != "single":
            assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
            assert row["p"] == row["p_holm"] == 1
    np.testing.assert_allclose(json.loads(rows["weighted-4"]["weights"]), 0.25)


def folds_run(tmp_path, settings=("a", "b", "c")):
    """Two folds of every setting; the calibration of fold 1 holds test images of fold 0."""
    members, labels, rows = {}, {}, {}
    for fold in range(2):
        labels |= {f"calibration-{fold}": labels_of(60, fold), f"test-{fold}": labels_of(70, 9 + fold)}
    run = tmp_path / "run"
    for number, setting in enumerate(settings):
        for fold in range(2):
            name = f"{setting}-fold{fold}"
            accuracy = 0.8 if number == fold else 0.6  # another member is best in each fold
            members[name] = {role: logits_of(labels[f"{role}-{fold}"], accuracy, 10 * number + fold) for role in
                             ("calibration", "test")}  # fmt: skip
            rows[name] = {"setting": setting, "overrides": {"search.fold": fold}}
    for fold in range(2):
        own = {name: value for name, value in members.items() if name.endswith(str(fold))}
        part = write_run(tmp_path / f"part{fold}", own, {r: labels[f"{r}-{fold}"] for r in ("calibration", "test")})
        for file in (part / "predictions").iterdir():
            text = file.read_text(encoding="utf-8")
            if file.name.endswith("_test.csv"):
                text = text.replace("\ntest", f"\nfold{fold} test").replace(",test", f",fold{fold} test")
            (run / "predictions").mkdir(parents=True, exist_ok=True)
            (run / "predictions" / file.name).write_text(text, encoding="utf-8")
    write_run(tmp_path / "ledger", dict.fromkeys(members, {}), {}, rows=rows)
    for file in ("config.json", "trials.csv"):
        (run / file).write_bytes((tmp_path / "ledger" / file).read_bytes())
    return run


def test_folds_choose_for_themselves_and_are_pooled(tmp_path):
    run = folds_run(tmp_path)
    rows = call(run, out=tmp_path / "out", methods="mean,greedy", compare_with_test_selection=True)
    assert json.loads(rows["single"]["members"]) == {"0": ["a"], "1": ["b"]}
    pooled = predictions.read(tmp_path / "out" / "predictions" / "mean-2_test.csv")
    assert len(pooled.ids) == 140 and pooled.folds.tolist() == [0] * 70 + [1] * 70
    settings = library.open_runs([run]).evaluation
    own = score.score(run, ["a-fold0", "b-fold1"], False, settings)
    expected = metrics.evaluate(own.scores, own.labels, False, predicted=own.predicted)
    assert rows["single"]["test/accuracy"] == pytest.approx(expected["accuracy"])
    assert rows["single"]["test/log_loss"] == pytest.approx(expected["log_loss"], rel=1e-6)
    other = score.score(tmp_path / "out", ["mean-2-fold0", "mean-2-fold1"], False, settings)
    assert (other.predicted == other.labels).mean() == pytest.approx(rows["mean-2"]["test/accuracy"])
    # Each fold chooses its own K, on its own calibration.
    assert weights_file(tmp_path / "out")["chosen"]["greedy"] == "greedy-chosen"
    for fold, k in enumerate(str(rows["greedy-chosen"]["k"]).split(", ")):
        found = {}
        for other in range(1, 4):
            name = f"greedy-{other}-fold{fold}_calibration.csv"
            own = predictions.read(tmp_path / "out" / "predictions" / name)
            found[other] = (own.logits.argmax(axis=1) == own.labels(False)).mean()
        assert found[int(k)] == max(found.values())
    parts = weights_file(tmp_path / "out")["ensembles"]["greedy-3"]
    assert [part["fold"] for part in parts] == [0, 1] and all(math.isclose(sum(p["weights"]), 1) for p in parts)


def multi_label_run(folder, examples=120, classes=4):
    labels, members = {}, {f"m{i}": {} for i in range(3)}
    for seed, role in enumerate(("calibration", "test")):
        generator = np.random.default_rng(seed)
        labels[role] = (generator.random((examples, classes)) < 0.35).astype(np.float32)
        for i in range(3):
            members[f"m{i}"][role] = 3 * labels[role] - 2 + 1.6 * generator.normal(size=(examples, classes))
    return write_run(folder, members, labels, ("a", "b", "c", "d"), loss="sigmoid_cross_entropy")


def test_several_labels(tmp_path):
    run = multi_label_run(tmp_path / "run")
    rows = call(run, out=tmp_path / "out", compare_with_test_selection=True)
    assert {row["method"] for row in rows.values()} == {"single", *VOTES} and rows["mean-3"]["metric"] == "macro_f1"
    assert rows["mean-3"]["difference"] > 0.03
    for name in ("mean-1", "weighted-1", "majority-1"):
        assert rows[name]["difference"] == 0 and rows[name]["p"] == 1
    settings = library.open_runs([run]).evaluation
    for name in ("mean-3", "majority-2", "majority-3", "rank-2", "weighted-3"):
        own = score.score(tmp_path / "out", [name], True, settings)
        found = metrics.evaluate(own.scores, own.labels, True, predicted=own.predicted)
        assert rows[name]["test/macro_f1"] == pytest.approx(found["macro_f1"], rel=1e-12)
    # The vote against counting each member's own decisions.
    votes, order = 0, json.loads(rows["majority-3"]["members"])
    for member in order:
        votes = votes + score.score(run, [member], True, settings).predicted
    own = score.score(tmp_path / "out", ["majority-3"], True, settings)
    np.testing.assert_array_equal(own.scores >= 0.5, votes >= 2)
    np.testing.assert_array_equal(own.predicted, thresholds.decide(own.scores, 0.5, settings.fallback))
    with pytest.raises(UserError, match="the method logistic gives one label per example.*leave it out of --methods"):
        call(run, out=tmp_path / "other", methods="mean,logistic")


def test_seeds_runs_and_unfinished_trials(tmp_path):
    first = independent(tmp_path / "one", [0.7, 0.6, 0.65], rows={
        "loss0": {"setting": "kl", "seed": 0}, "loss1": {"setting": "kl", "seed": 1}, "loss2": {"status": "running"},
    })  # fmt: skip
    second = independent(tmp_path / "two", [0.66, 0.8], rows={"loss1": {"stage": "confirm"}})
    found = library.open_runs([first, second])
    assert found.members == ("one/loss0", "one/loss1", "two/loss0")
    assert found.left_out == ("one/loss2",) and not found.multi_label
    rows = call(first, second, out=tmp_path / "out", methods="mean", most=2)
    assert set(rows) == {"single", "mean-1", "mean-2"}
    rows = call(first, out=tmp_path / "out", methods="weighted", metric="mcc")  # an earlier call's files are replaced
    assert set(rows) == {"single", "weighted-1", "weighted-2"} and rows["single"]["metric"] == "mcc"
    names = {file.name for file in (tmp_path / "out" / "predictions").iterdir()}
    assert names == {f"{name}_{role}.csv" for name in rows for role in ("calibration", "test")}
    assert "Not finished, so no member: loss2" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("role", "old", "new", "words"),
    [
        ("test", "\ntest3,", "\ntest999,", "loss1 has other examples of test than loss0 .2 are in one alone"),
        ("calibration", ",calibration patient 1,", ",somebody,", "loss1 has another group for 'calibration3'"),
        ("test", "logit_viral", "logit_virus", "loss1 has other classes than loss0"),
    ],
)
def test_members_that_differ_are_named(tmp_path, role, old, new, words):
    run = independent(tmp_path / "run", [0.6, 0.7], 60, 60)
    change(run / "predictions" / f"loss1_{role}.csv", old, new)
    with pytest.raises(UserError, match=words):
        call(run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_labels_and_folds_are_named(tmp_path):
    run = independent(tmp_path / "run", [0.6, 0.7], 60, 60)
    file = run / "predictions" / "loss1_test.csv"
    own = predictions.read(file)
    labels = own.labels(False)
    labels[4] = (labels[4] + 1) % 3
    predictions.write(file, own.ids, own.groups, labels, own.logits, CLASSES)
    with pytest.raises(UserError, match="loss1 has another label for 'test4' in test than loss0"):
        call(run, out=tmp_path / "out")
    run = independent(tmp_path / "folds", [0.6, 0.7], 60, 60, rows={"loss1": {"overrides": {"search.fold": 0}}})
    with pytest.raises(UserError, match="loss1 has other folds than loss0"):
        call(run, out=tmp_path / "out")


def test_mistakes_of_the_command(tmp_path):
    run = independent(tmp_path / "run", [0.6, 0.7], 60, 60)
    multi = multi_label_run(tmp_path / "multi")
    (tmp_path / "strange" / "predictions").mkdir(parents=True)
    for runs, flags, words in (
        ([run], {"methods": "mean,magic"}, "--methods=mean,magic is unknown; choose of majority"),
        ([run], {"methods": ","}, "is unknown"),
        ([run], {"most": -1}, "--most=-1"),
        ([run], {"metric": "auroc"}, "--metric=auroc is unknown; choose of accuracy"),
        ([run, run], {}, "names a folder twice"),
        ([tmp_path], {}, "is no run folder"),
        ([run, multi], {}, "mixes studies"),
        ([run], {"out": run}, "is a run folder; name a folder of its own"),
        ([run], {"out": tmp_path / "strange"}, "holds predictions of something else"),
    ):
        with pytest.raises(UserError, match=words):
            call(*runs, **({"out": tmp_path / "out"} | flags))
    (run / "predictions" / "loss1_calibration.csv").unlink()
    with pytest.raises(UserError, match="the trial loss1 has no predictions of calibration"):
        call(run, out=tmp_path / "out")
    lonely = independent(tmp_path / "lonely", [0.6, 0.7], 60, 60, rows={"loss1": {"status": "failed: diverged"}})
    with pytest.raises(UserError, match="1 finished trial.* but an ensemble needs two"):
        call(lonely, out=tmp_path / "out")
    (run / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is no config of a run"):
        call(run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exit_status(tmp_path):
    command = [sys.executable, "-m", "research.ensemble", f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "no run folder" in done.stderr


def test_one_group_has_no_interval_but_is_scored(tmp_path):
    run = independent(tmp_path / "run", [0.6, 0.7], 60, 60, group_size=60)
    rows = call(run, out=tmp_path / "out")  # the stackers are left out: no second group
    assert {row["method"] for row in rows.values()} == {"single", *VOTES}
    assert math.isnan(rows["mean-2"]["difference_low"]) and rows["mean-2"]["p"] == 1
    assert "logistic cannot be fitted here" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
