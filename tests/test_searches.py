"""Whole searches: killed anywhere, each trial is trained once and the results are those of the uninterrupted search."""

import collections
import itertools
import json
import signal
import time

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research import study
from research.evaluation import predictions
from research.training.signals import Stopped, StopSignal
from tests.running import ledger, metric_rows
from tests.running import run as run_command
from tests.searching import (  # noqa: F401 (fixtures)
    GRID,
    HALVING,
    RATES,
    SHAPES,
    arguments,
    assert_same,
    config_file,
    configure,
    data,
    die_often,
    handlers,
    kill_when,
    no_report,
    programs,
    search,
)


def test_a_killed_grid_ends_as_the_uninterrupted_one(data, tmp_path):
    config = config_file(tmp_path, data)
    given = arguments(configure(data, search__grid=GRID[:2]), data)
    result = run_command(config, tmp_path / "whole", *given)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "run"
    moments = (
        (signal.SIGKILL, lambda: list(workdir.glob("checkpoints/*/6"))),
        (signal.SIGKILL, lambda: len(list(workdir.glob("predictions/*.csv"))) >= 4),
        (signal.SIGTERM, lambda: len({step.parent for step in workdir.glob("checkpoints/*/[0-9]*")}) == 2),
    )
    statuses = [kill_when(config, workdir, given, number, condition) for number, condition in moments]
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL, 75]
    result = run_command(config, workdir, *given)
    assert result.returncode == 0, result.stderr
    assert_same(workdir, tmp_path / "whole")
    rows = ledger(workdir)
    assert len({row["id"] for row in rows}) == len(rows) == 4
    assert all(row["status"] == "finished" and row["plan"] == "one by one" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["one by one", "unrolled", "im2col", "map", "scan"])
def test_a_grid_killed_ten_times(plan, data, tmp_path):
    """At random moments after the first checkpoint; the figures are printed."""
    config = config_file(tmp_path, data)
    given = arguments(configure(data, search__grid=GRID, search__plan=plan), data)
    assert run_command(config, tmp_path / "whole", *given).returncode == 0
    rng, statuses = np.random.default_rng(len(plan)), []
    workdir = tmp_path / "run"
    while len(statuses) < 10:
        written = len(list(workdir.glob("**/*"))) + 3
        delay = rng.uniform(0, 0.5)

        def later(written=written, delay=delay):
            if len(list(workdir.glob("**/*"))) < written:
                return False
            time.sleep(delay)
            return True

        number = signal.SIGTERM if len(statuses) % 4 == 3 else signal.SIGKILL
        statuses.append(kill_when(config, workdir, given, number, later))
        if statuses[-1] == 0:
            break
    print(f"{plan}: {statuses}")
    assert run_command(config, workdir, *given).returncode == 0
    assert_same(workdir, tmp_path / "whole")


# In this process


@pytest.mark.slow
def test_a_scanned_grid_that_dies_often(data, tmp_path, capsys):
    config = configure(data, search__grid=GRID[:2], search__plan="scan")
    whole = die_often(config, tmp_path, 0.37, no_report)
    assert {row["plan"].split(" on ")[0] for row in ledger(whole)} == {"scan"}
    before = (whole / "trials.csv").read_bytes()
    assert search(config, whole) == 0 and "is finished" in capsys.readouterr().out
    assert (whole / "trials.csv").read_bytes() == before


def test_successive_halving_that_dies_often(data, tmp_path):
    whole = die_often(configure(data, search__grid=GRID, **HALVING), tmp_path, 0.45)
    rungs = json.loads((whole / "rungs.json").read_text())
    assert [rung["step"] for rung in rungs] == [3, 6] and rungs[1]["entered"] == rungs[0]["kept"]
    status = {row["id"]: row["status"] for row in ledger(whole)}
    for rung in rungs:
        for name in set(rung["entered"]) - set(rung["kept"]):
            assert status[name] == f"stopped: rung at step {rung['step']}"
    assert all(status[name] == "finished" for name in rungs[1]["kept"]) and len(rungs[1]["kept"]) < 8
    steps = {row["id"]: int(row["steps"]) for row in ledger(whole)}
    assert sum(steps.values()) <= 0.7 * 8 * 12 and {steps[name] for name in rungs[1]["kept"]} == {12}
    # Those that were stopped have a best validation and no test.
    stopped = [row for row in ledger(whole) if row["status"].startswith("stopped")]
    assert stopped and all(row["validation/accuracy"] and not row["test/accuracy"] for row in stopped)


def test_a_search_that_is_stopped_often(data, tmp_path, monkeypatch, capsys):
    """As by SIGTERM, at each time later in what the process still has to do."""
    config = configure(data, search__grid=GRID[:2], search__plan="scan", checkpoint_every="6 steps")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    search(config, whole, report=no_report)
    check, stops = StopSignal.check, []
    for number in range(3, 60, 2):
        calls = itertools.count()

        def counted(signal, calls=calls, number=number):
            signal.requested = signal.requested or next(calls) == number
            check(signal)

        monkeypatch.setattr(StopSignal, "check", counted)
        try:
            search(config, broken, report=no_report)
            break
        except Stopped:
            stops.append(number)
    assert len(stops) >= 3
    assert_same(broken, whole)
    monkeypatch.undo()
    assert search(config, broken, report=no_report) == 0 and "is finished" in capsys.readouterr().out


def test_stopping_by_dominance_that_dies_often(data, tmp_path):
    """A learning rate that is too small to learn anything, after two trials that learn."""
    rates = ("optimizer.learning_rate", (3e-2, 2e-2, 1e-7, 2e-7))
    config = configure(
        data, search__grid=(rates,), search__cohort=2, search__dominance__coverage=0.5,
        search__dominance__minimum=2, steps=24,
    )  # fmt: skip
    whole = die_often(config, tmp_path, 0.4, no_report)
    statuses = [row["status"] for row in ledger(whole)]
    assert statuses[:2] == ["finished", "finished"]
    assert all(status.startswith("stopped: beaten at step") for status in statuses[2:]), statuses


def test_confirmed_and_extended(data, tmp_path):
    """Fresh seeds and longer training for the front, dying on the way; an extended trial is one of the whole length."""
    config = configure(data, search__grid=(SHAPES, RATES), search__confirm_seeds=1, search__extend=2.0)
    whole = die_often(config, tmp_path, 0.3)
    rows = ledger(whole)
    stages = collections.Counter(row["stage"] for row in rows)
    front = {row["setting"] for row in rows if row["stage"] == "confirm"}
    assert stages == {"search": 4, "confirm": len(front), "extend": len(front)} and front
    searched = {row["setting"]: row for row in rows if row["stage"] == "search"}
    best = max(rows[:4], key=lambda row: float(row["validation/accuracy"]))["setting"]
    smallest = max(float(row["validation/accuracy"]) for row in rows[:4] if row["parameters"] == rows[0]["parameters"])
    assert any(searched[s]["validation/accuracy"] == searched[best]["validation/accuracy"] for s in front)
    assert any(float(searched[s]["validation/accuracy"]) == smallest for s in front)
    assert {row["seed"] for row in rows if row["stage"] == "confirm"} == {"1"}
    assert all(row["status"] == "finished" for row in rows)
    longer = tmp_path / "longer"
    search(configure(data, search__grid=(SHAPES, RATES), steps=24), longer, report=no_report)
    scratch = {row["setting"]: row for row in ledger(longer)}
    for row in (row for row in rows if row["stage"] == "extend"):
        setting = row["setting"].removesuffix("-x2")
        assert int(row["steps"]) == 24 and row["best_step"] == scratch[setting]["best_step"]
        assert float(row["validation/loss"]) == pytest.approx(float(scratch[setting]["validation/loss"]), rel=2e-2)
        own, other = (
            [r["loss"] for r in metric_rows(d) if r["trial"] == name]
            for d, name in ((whole, row["id"]), (longer, scratch[setting]["id"]))
        )
        np.testing.assert_allclose(own, other, rtol=2e-2)


def test_a_trial_alone_is_extended_to_the_bit(data, tmp_path):
    search(configure(data, search__extend=1.5), tmp_path / "extended", report=no_report)
    search(configure(data, steps=18), tmp_path / "scratch", report=no_report)
    scratch = {row["setting"]: row for row in ledger(tmp_path / "scratch")}
    extended = [row for row in ledger(tmp_path / "extended") if row["stage"] == "extend"]
    assert extended
    for row in extended:
        other = scratch[row["setting"].removesuffix("-x1.5")]
        for column in ("state_sha256", "best_step", "validation/loss", "test/loss"):
            assert row[column] == other[column], column


def test_the_best_checkpoint_before_an_extension_is_kept(data, tmp_path):
    """After the extension everything is worse, because the learning rate is far too high then."""
    options = {"schedule__name": "one_cycle", "schedule__warmup": "0 steps", "selection": "loss"}
    config = configure(data, search__grid=(RATES,), search__extend=2.0, **options)
    search(config, tmp_path / "run", report=no_report)
    rows = ledger(tmp_path / "run")
    history = metric_rows(tmp_path / "run")
    for row in (row for row in rows if row["stage"] == "extend"):
        own = [r for r in history if r["trial"] == row["id"] and r["split"] == "validation"]
        best = min(own, key=lambda r: r["loss"])
        assert int(row["best_step"]) == best["step"]
        assert float(row["validation/loss"]) == pytest.approx(best["loss"], rel=1e-4)
        assert [r["step"] for r in own] == list(range(3, 25, 3))


def test_folds_cover_every_example_once(data, tmp_path):
    config = configure(data, search__grid=(RATES,), search__folds=3)
    search(config, tmp_path / "run")
    rows = ledger(tmp_path / "run")
    assert len(rows) == 6 and all(row["status"] == "finished" for row in rows)
    dataset = study.open_data(config, tmp_path)
    everything = sorted(name for name, role in zip(dataset.ids, dataset.roles, strict=True) if role != "unlabelled")
    for setting in {row["setting"] for row in rows}:
        own = [row for row in rows if row["setting"] == setting]
        assert sorted(json.loads(row["overrides"])["search.fold"] for row in own) == [0, 1, 2]
        parts = [predictions.read(tmp_path / "run" / "predictions" / f"{row['id']}_test.csv").ids for row in own]
        assert sorted(name for part in parts for name in part) == everything


DIVERGING = {"optimizer__name": "sgd", "search__grid": (SHAPES, ("optimizer.learning_rate", (1e-2, 3e38)))}


@pytest.mark.parametrize("changes", [{}, HALVING, {"search__cohort": 1}], ids=["whole", "halving", "apart"])
def test_a_diverging_member_fails_alone(changes, data, tmp_path):
    report = no_report if changes else study.assemble.report
    search(configure(data, **DIVERGING, **changes), tmp_path / "run", report=report)
    rows = ledger(tmp_path / "run")
    diverged = [row for row in rows if row["overrides"].count("3e+38")]
    assert len(diverged) == 2 and all(row["status"].startswith("failed: ") for row in diverged)
    assert any(row["status"] == "finished" for row in rows) and (tmp_path / "run" / "report" / "index.html").exists()
    assert all(row["status"].startswith(("finished", "stopped")) for row in rows if row not in diverged)


@pytest.mark.parametrize("halving", [{}, HALVING], ids=["whole", "halving"])
def test_where_all_diverge_it_is_said(halving, data, tmp_path):
    grid = (SHAPES, ("optimizer.learning_rate", (2e38, 3e38)))
    config = configure(data, **{**DIVERGING, "search__grid": grid}, **halving)
    for _ in range(2):
        with pytest.raises(UserError, match="status of trials.csv says why"):
            study.run(config, tmp_path / "run")
    assert all(row["status"].startswith("failed: ") for row in ledger(tmp_path / "run"))


SPACE = (("optimizer.learning_rate", ("log", 1e-4, 1e-1)), ("model.options.widths", ("choice", (4,), (4, 6), (40, 80))))
TPE = {"search__sampler": "tpe", "search__budget": 5, "search__space": SPACE, "search__cohort": 3,
       "search__max_parameters": 1000}  # fmt: skip


def test_a_sampler_goes_on_where_it_died(data, tmp_path):
    pytest.importorskip("optuna")
    whole = die_often(configure(data, **TPE, search__extend=1.5), tmp_path, 0.35)
    rows = ledger(whole)
    searched = [row for row in rows if row["stage"] == "search"]
    assert len(searched) == 5 and all(row["status"] == "finished" for row in rows)
    assert all(int(row["parameters"]) <= 1000 for row in rows)
    extended = [row for row in rows if row["stage"] == "extend"]
    assert extended and all(row["steps"] == "18" for row in extended)
    for name in ("whole", "broken"):
        shared = (tmp_path / name / "all_trials.csv").read_text().splitlines()
        assert len(shared) == 6


def test_a_proposal_that_no_model_can_have_has_failed(data, tmp_path):
    pytest.importorskip("optuna")
    space = (("model.options.widths", ("choice", (4,), (0,), (5,))),)
    config = configure(data, **{**TPE, "search__space": space, "search__budget": 3})
    search(config, tmp_path / "run", report=no_report)
    assert sorted(row["status"] for row in ledger(tmp_path / "run")) == ["finished", "finished"]
    shared = (tmp_path / "run" / "all_trials.csv").read_text()
    assert shared.count("failed: simple_cnn cannot have widths (0,)") == 1 and len(shared.splitlines()) == 4


# What is refused, or only shown


def test_a_dry_run_shows_the_search_and_writes_nothing(data, tmp_path, capsys):
    assert study.run(configure(data, search__grid=GRID), tmp_path / "run", dry_run=True) == 0
    shown = capsys.readouterr().out
    for words in ("8 trials in", "parameters", "MiB of state", "Estimated training time", " h)."):
        assert words in shown
    assert shown.count("weight_decay-0.01") == 4
    assert study.run(configure(data, **TPE), tmp_path / "run", dry_run=True) == 0
    assert "The sampler tpe will choose settings until there are 5" in capsys.readouterr().out
    stored = {"search__storage": str(tmp_path / "x.journal"), "search__grid": (RATES,)}
    assert study.run(configure(data, **stored), tmp_path / "run", dry_run=True) == 0
    assert "2 trials in 1 cohorts" in capsys.readouterr().out
    phases = ({"name": "a", "steps": 3}, {"name": "b", "steps": 2, "batch_size": 6})
    assert study.run(configure(data, steps=0, phases=phases), tmp_path / "run", dry_run=True) == 0
    assert "1 trials of 5 steps" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


PHASES = ({"name": "a", "steps": 3}, {"name": "b", "steps": 3})
REFUSED = {
    "plan": ({"search__plan": "fastest"}, "config.search.plan is 'fastest'; choose"),
    "metric": ({"search__grid": GRID, **HALVING, "search__halving__metric": "beauty"}, "halving.metric is 'beauty'"),
    "budget": ({"search__grid": GRID, **HALVING, "search__halving__budget": 0.1}, "budget of 0.1 is too small"),
    "halving with a sampler": ({**TPE, **HALVING}, "needs all trials at once"),
    "dominance with phases": (
        {"search__grid": GRID, "steps": 0, "phases": PHASES, "search__dominance__coverage": 0.9},
        "dominance.coverage needs trainings of one phase",
    ),
    "extension of phases": ({"steps": 0, "phases": PHASES, "search__extend": 2.0}, "extend needs trainings of one"),
    "objective": ({**TPE, "search__objectives": ("parameters",)}, "objectives has 'parameters'"),
    "column": ({**TPE, "search__objectives": ("max validation/beauty",)}, "names validation/beauty"),
    "sampler": ({**TPE, "search__sampler": "oracle"}, "config.search.sampler is 'oracle'"),
    "no budget": ({**TPE, "search__budget": 0}, "needs config.search.budget"),
    "no space": ({**TPE, "search__space": ()}, "config.search.space is empty"),
    "storage": ({**TPE, "search__storage": "postgresql://a:secret@127.0.0.1:1/x"}, "check config.search.storage"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case, data, tmp_path):
    changes, words = REFUSED[case]
    if "search__sampler" in changes:
        pytest.importorskip("optuna")
    with pytest.raises(UserError, match=words) as caught:
        study.run(configure(data, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_on_the_command_line(data, tmp_path):
    given = arguments(configure(data, search__grid=GRID, **{"search.halving.budget": 0.1}), data)
    result = run_command(config_file(tmp_path, data), tmp_path / "run", *given)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "too small" in errors[0] and "Traceback" not in result.stderr
