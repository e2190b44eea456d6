"""Does the search part of the report hold what the run folder holds, and does it survive odd and missing files?"""

import json
import re
import types

import numpy as np
import pandas as pd
import pytest

from input_pipeline.cli import UserError
from research.report import choice, page, search, search_cost, tables
from research.search import front as fronts
from tests.research.report import fake_search
from tests.research.report.test_page import EVIL, Reader


def test_candidates_are_means_over_folds(tmp_path):
    base = fake_search.row_of(0, 4, 1e-3)
    rows = []
    for fold, accuracy in enumerate((0.5, 0.7)):
        overrides = base["overrides"] | {"search.fold": fold}
        metrics = {"validation": {"accuracy": accuracy}}
        rows.append(base | {"id": f"a-fold{fold}", "setting": "a", "overrides": overrides, "metrics": metrics})
        metrics = {"validation": {"accuracy": 0.9}} if fold else {}  # one fold failed: the other is no fair mean
        rows.append(base | {"id": f"c-fold{fold}", "setting": "c", "overrides": overrides, "metrics": metrics})
    rows.append(fake_search.row_of(8, 4, 1e-3, id="d", status="failed: memory"))
    rows.append(fake_search.row_of(1, 4, 1e-3, id="b-fold7", setting="b"))  # a name like any other
    rows.append(fake_search.row_of(2, 4, 1e-3, stage="confirm"))
    rows.append(fake_search.row_of(3, 4, 1e-3, id="a-int8", setting="a", stage="compress", train_seconds=None))
    table = search.candidates(rows)
    assert table["candidate"].tolist() == ["a", "b", "a-int8"]
    assert table["ids"].tolist() == [["a-fold0", "a-fold1"], ["b-fold7"], ["a-int8"]]
    assert table["validation/accuracy"].iloc[0] == pytest.approx(0.6)
    assert table["parameters"].iloc[0] == base["parameters"]
    assert table["steps"].tolist() == [600, 300, 300] and np.isnan(table["train_seconds"].iloc[2])
    assert "search.fold" not in table["overrides"].iloc[0]


def test_fronts_are_those_of_brute_force():
    table = search.candidates(fake_search.grid(40))
    found = search.find_fronts(table)
    assert list(found) == ["parameters", "flops", "latency_p50_ms"]  # bytes say nothing more
    points = np.column_stack([table["parameters"], -table["validation/accuracy"]])
    expected = [i for i, p in enumerate(points) if not any((q <= p).all() and (q < p).any() for q in points)]
    assert sorted(found["parameters"].rows.tolist()) == expected
    shown = found["parameters"].table.iloc[0]
    assert (shown["filters"], shown["learning_rate"], shown["parameters"]) == ("2×4", "0.001", "146")


def test_which_fronts_there_are():
    rows = fake_search.grid(6)
    assert "bytes" in search.find_fronts(search.candidates([*rows, rows[0] | {"id": "x", "stage": "compress"}]))
    for row in rows:
        del row["flops"], row["latency_p50_ms"]
        row["metrics"]["validation"].pop("accuracy")
    for multi_label in (False, True):
        (only,) = search.find_fronts(search.candidates(rows), multi_label).values()
    assert only.objectives[1].column == "validation/macro_f1"
    for row in rows:
        row["metrics"] = {}
    assert search.find_fronts(search.candidates(rows)) == {} and search.find_fronts(search.candidates([])) == {}


def test_volume_so_far_equals_a_new_computation_at_every_end():
    rows = fake_search.grid(9)
    rows[4] |= {"status": "failed: memory", "metrics": {}}
    generator = np.random.default_rng(0)
    lines = [line for row in rows[:-1] for line in fake_search.metric_lines(row)]  # the last one has no rows
    turns = generator.permutation([line["trial"] for line in lines])  # trained together, in any order
    waiting = {row["id"]: iter(fake_search.metric_lines(row)) for row in rows}
    lines = [next(waiting[name]) for name in turns]
    table = search.candidates(rows)
    found = search.find_fronts(table)["parameters"]
    steps, volumes, total = search.volumes(rows, table, found, lines)
    assert total == 9 * 300 and len(steps) == 8 and volumes[-1] == pytest.approx(found.hypervolume)
    costs = np.column_stack([np.log10(table["parameters"]), -table["validation/accuracy"]])
    worst = costs.max(0) + 0.1 * np.ptp(costs, axis=0)
    last = {line["trial"]: index for index, line in enumerate(lines)}
    ends = sorted(last[ids[0]] for ids in table["ids"] if ids[0] in last)
    for at, volume, end in zip(steps, volumes, ends, strict=False):
        before = pd.DataFrame(lines[: end + 1])
        assert at == before.groupby("trial")["step"].max().sum()
        ended = [last.get(ids[0], len(lines)) <= end for ids in table["ids"]]
        assert volume == pytest.approx(fronts.hypervolume(costs[ended], worst))


def test_time_saved_by_hand():
    plan = {"cohorts": [
        {"cohort": "c0", "trials": ["a", "b"], "plan": "unrolled", "steps": 100,
         "milliseconds": {"one by one": 4.0, "unrolled": 1.0}},
        {"cohort": "c1", "trials": ["c"], "plan": "map", "steps": 100, "milliseconds": {"one by one": 2.0, "map": 3.0}},
        {"cohort": "c2", "trials": ["d"], "plan": "forced", "steps": 100, "milliseconds": {}},
    ]}  # fmt: skip
    rows, alone, planned = search_cost.time_saved(plan, [{"id": "a", "steps": 40}, {"id": "b"}])
    assert (alone, planned) == pytest.approx((4.0 * 140 / 1000 + 0.2, 140 / 1000 + 0.3))
    assert [row.get("saved") for row in rows] == [pytest.approx(0.42), pytest.approx(-0.1), None]
    assert search_cost.duration(0.5) == "0.5 s" and search_cost.duration(-7200) == "−2 h"


def written(folder, count=12, study="blood_cells"):
    rows = fake_search.write_whole(folder, count)
    config = fake_search.config_of(study)
    found = search.build(folder, tables.read_trials_csv(folder / "trials.csv"), config, False)
    path = page.write_page(folder, {"title": "t", "command": "c", "trials": rows}, found)
    return rows, found, path.read_text(encoding="utf-8")


def test_the_whole_page(tmp_path):
    rows, found, text = written(tmp_path)
    reader = Reader(text)
    assert {"search", "trials"} <= {attributes.get("id") for tag, attributes in reader.tags if tag == "section"}
    shown = " ".join("".join(reader.text).split())
    assert f"{len(rows)} trials ({len(rows) - 1} finished, 1 failed) make {len(rows) - 1 - 9} candidates." in shown
    assert text.count("<circle") == 13 * 4  # of four fronts
    assert "validation/accuracy: 0." in text and "learning_rate: 0.01" in text
    assert len(reader.table("trial", "line")) == 1 + len(rows)
    confirmed = reader.table("setting", "parameters")
    assert (
        len(confirmed) == 4 and confirmed[1][2] == "3" and re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", confirmed[1][4])
    )
    assert reader.table("cohort")[1][:5] == ["c0", "12", "8", "3,600", "unrolled"]
    assert "10.8 s" in shown and "2.40 times as fast" in shown
    assert reader.table("rung")[1][:4] == ["0", "100", "12", "6"]
    assert "the study claims 12" in shown and "no model lies above 8 MB" in shown
    for reference in reader.references:
        assert reference.startswith("#") or reference == "data:," or (tmp_path / "report" / reference).is_file()
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert numbers["search"]["fronts"]["parameters"]["non_dominated"] == len(found.members)
    assert numbers["search"]["confirmed"][0]["seeds"] == 3
    assert numbers["search"]["time"] == {"one_by_one_seconds": 10.8, "planned_seconds": 4.5}
    assert set(found.files) == {"metrics_log.csv", "report/candidates.csv"}
    assert set(found.compressed) == {rows[12]["id"]}
    table = pd.read_csv(tmp_path / "report" / "candidates.csv")
    assert table["stage"].tolist().count("compress") == 1 and table.query("stage == 'compress'")["steps"].item() == 30


def test_the_report_may_be_made_again(tmp_path):
    assert written(tmp_path)[2] == written(tmp_path)[2]


def test_hostile_names_stay_texts(tmp_path):
    rows = fake_search.grid(5)
    for row in rows:
        row |= {"setting": EVIL + row["setting"], "overrides": {EVIL: EVIL, "x": [row["id"]]}, "cohort": EVIL}
        row["latency_runtime"] = EVIL
    rows[0]["status"] = EVIL
    fake_search.write_run(tmp_path, rows)
    (tmp_path / "plan.json").write_text(json.dumps({"cohorts": [{"cohort": EVIL, "plan": EVIL, "reason": EVIL}]}))
    (tmp_path / "rungs.json").write_text(json.dumps([{"rung": EVIL, "step": 1, "entered": [EVIL], "kept": []}]))
    found = search.build(tmp_path, tables.read_trials_csv(tmp_path / "trials.csv"), fake_search.config_of(), False)
    text = page.write_page(tmp_path, {"title": EVIL, "command": EVIL}, found).read_text()
    reader = Reader(text)  # which checks that tags nest and that none has a handler
    assert "<script>alert" not in text and sum(tag == "script" for tag, _ in reader.tags) == 1


def test_a_bare_ledger_is_enough(tmp_path):
    rows = [{k: row[k] for k in ("id", "status", "seed", "overrides", "parameters", "bytes", "metrics")}
            for row in fake_search.grid(3)]  # fmt: skip
    fake_search.write_run(tmp_path, rows, lines=[])
    found = search.build(tmp_path, tables.read_trials_csv(tmp_path / "trials.csv"), fake_search.config_of(), False)
    assert found.figures == [] and set(found.files) == {"report/candidates.csv"} and len(found.members) >= 1
    assert "Plan of each cohort" not in found.html and "Confirmed" not in found.html and "halving" not in found.html


def test_a_search_in_which_everything_failed(tmp_path):
    rows = [row | {"status": "failed: memory", "metrics": {}} for row in fake_search.grid(3)]
    fake_search.write_run(tmp_path, rows)
    config = fake_search.config_of("blood_cells")
    found = search.build(tmp_path, tables.read_trials_csv(tmp_path / "trials.csv"), config, False)
    assert "3 failed" in found.html and found.members == [] and "<svg" not in found.html


def test_five_hundred_trials_make_one_page_of_bounded_pictures(tmp_path):
    rows, found, text = written(tmp_path, count=500)
    assert text.count("<circle") == 4 * 501 and len(Reader(text).table("trial", "line")) == 1 + len(rows)
    assert "and 242 more" in text and len(found.figures) <= 6


def trial(name, setting):
    return types.SimpleNamespace(name=name, setting=setting)


def test_the_chosen_setting_is_finished_and_no_confirmation():
    def row(name, loss, stage="search", status="finished"):
        metrics = {"validation": {"loss": loss}} if loss is not None else {}
        return {"id": name, "status": status, "stage": stage, "metrics": metrics}

    ledger = [row("a0", 0.5), row("a1", 0.7), row("b", 0.65), row("c", 0.1, status="stopped at rung 0"), row("d", None),
              row("a2", 0.0, "confirm")]  # fmt: skip
    trials = [trial("a0", "a"), trial("a1", "a"), trial("b", "b"), trial("c", "c"), trial("d", "d"), trial("a2", "a")]
    settings = choice.settings_of(trials, ledger)
    assert [t.name for t in settings["a"]] == ["a0", "a1"]
    assert choice.choose(settings, ledger, "loss") == ("a", "validation")
    del ledger[2]["stage"]  # as in ledgers of one stage
    assert "b" in choice.settings_of(trials, ledger)
    assert choice.choose({"c": settings["c"]}, ledger, "loss") == ("c", "validation")
    for entry, loss in zip(ledger, (0.9, 0.9, 0.2), strict=False):
        entry["metrics"]["calibration"] = {"loss": loss}
    assert choice.choose(settings, ledger, "loss") == ("a", "validation")  # d is finished and lacks it
    assert choice.choose({name: settings[name] for name in "abc"}, ledger, "loss") == ("b", "calibration")
    with pytest.raises(UserError, match="no trial has come to a macro_f1 on validation"):
        choice.choose(settings, ledger, "macro_f1")


def test_few_settings_are_compared_on_test():
    settings = {f"s{i}": {0: [f"t{i}"]} for i in range(200)}
    front = [f"t{i}" for i in range(0, 200, 5)]
    compared = choice.compared(settings, "s7", front)
    assert len(compared) == choice.MOST + 1 and "s7" in compared and "s0" in compared and "s195" in compared
    few = dict(list(settings.items())[:12])
    assert choice.compared(few, "s7", []) == few
