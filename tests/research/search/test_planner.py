"""Which plan is chosen, where is it kept, and what is not timed again? The clock is replaced."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research.search import planner
from research.search.cohort import Cohort
from research.search.planner import Planner, candidates_for
from research.search.plans import KINDS, Plan
from research.training.signals import StopSignal


class Runner:
    """Stands for a plan's program, which takes three seconds to compile."""

    now = 0.0

    def __init__(self, plan, needed=0):
        self.plan, self.needed = plan, needed

    def place(self, *arguments):
        pass

    def compile(self, batches):
        Runner.now += 3.0

    def bytes_needed(self):
        return self.needed

    def release(self):
        self.released = True


def training_of(name="cohort-1", members=8, steps=10_000, signature="a", needed=None, kernels=3):
    config = {"image_size": 28, "batch_size": 32, "model": {"name": "grid_cnn", "options": {"kernels": kernels}}}
    trials = tuple(types.SimpleNamespace(name=f"{name}-{i}", config=ConfigDict(config)) for i in range(members))
    cohort = Cohort(name, trials, trials[0], {"seed": np.zeros(members)}, signature)
    runners = {}
    return types.SimpleNamespace(
        cohort=cohort, runners=runners, members=trials, step=0, host=None, stop=StopSignal(),
        trial=types.SimpleNamespace(images=None),
        length=types.SimpleNamespace(steps=steps), some_batches=lambda count: [None] * count,
        runner_of=lambda plan: runners.setdefault(plan, Runner(plan, (needed or {}).get(plan.kind, 0))),
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Seconds per model and step by kind of plan; records what was timed."""
    seconds, timed = {"one by one": 4e-3, "unrolled": 3e-3, "im2col": 9e-3, "map": 1e-3, "scan": 2e-3}, []

    def measure(runner, batches, members):
        timed.append(runner.plan.kind)
        return seconds[runner.plan.kind]

    monkeypatch.setattr(planner, "_time", measure)
    monkeypatch.setattr(planner, "time", types.SimpleNamespace(monotonic=lambda: Runner.now))
    return types.SimpleNamespace(seconds=seconds, timed=timed)


def test_the_fastest_is_chosen_and_kept(clock, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    plan = Planner(tmp_path, "auto", tmp_path / "cache").choose(training_of())
    assert plan.kind == "map" and set(clock.timed) == set(KINDS)
    record = json.loads((tmp_path / "plan.json").read_text())["cohorts"][0]
    assert record["plan"] == str(plan) and record["milliseconds"]["unrolled on 8 devices"] == 3.0
    said = capsys.readouterr().out
    assert record["reason"].startswith("the fastest of ") and record["reason"] in said and "unrolled on 8 " in said
    clock.timed.clear()
    clock.seconds["map"] = 1.0
    assert Planner(tmp_path, "auto", None).choose(training_of()) == plan  # a resumed run keeps its plan
    other = tmp_path / "other"
    other.mkdir()
    assert Planner(other, "auto", tmp_path / "cache").choose(training_of()) == plan and not clock.timed
    assert Planner(other, "auto", tmp_path / "cache").choose(training_of("x", signature="b")).kind == "scan"


def test_a_damaged_cache_is_as_good_as_none(clock, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "plans.json").write_text('{"half')
    assert Planner(tmp_path, "auto", tmp_path / "cache").choose(training_of()).kind == "map"


def test_what_does_not_fit_is_passed_over(clock, tmp_path):
    training = training_of(needed={"map": 2**60, "scan": 2**60})
    assert Planner(tmp_path, "auto", None).choose(training).kind == "unrolled"
    assert all(runner.released for runner in training.runners.values())
    reason = json.loads((tmp_path / "plan.json").read_text())["cohorts"][0]["reason"]
    assert "GiB" in reason


def test_a_short_training_is_not_worth_it(clock, tmp_path):
    assert Planner(tmp_path, "auto", None).choose(training_of(steps=100)).kind == "one by one"
    assert clock.timed == ["one by one"]


def test_of_like_cohorts_only_near_plans_are_timed_again(clock, tmp_path):
    clock.seconds["scan"] = 1.1e-3
    chooser = Planner(tmp_path, "auto", None)
    chooser.choose(training_of("a", signature="a"))
    clock.timed.clear()
    assert chooser.choose(training_of("b", signature="b")).kind == "map"
    assert set(clock.timed) == {"map", "scan"}
    clock.timed.clear()
    chooser.choose(training_of("c", signature="c", kernels=5))
    assert set(clock.timed) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_forced(kind, clock, tmp_path):
    assert Planner(tmp_path, kind, None).choose(training_of(members=2)).kind == kind and not clock.timed


def test_unknown():
    with pytest.raises(UserError, match="config.search.plan is 'fast'"):
        Planner(None, "fast", None)


@pytest.mark.parametrize("members, devices", [(1, 1), (2, 8), (6, 4), (8, 2), (7, 2), (33, 8)])
def test_candidates(members, devices):
    found = candidates_for(members, devices)
    assert found[0].kind == "one by one" and {plan.kind for plan in found} == set(KINDS)
    for plan in found:
        assert plan.devices <= devices and plan.slots(members) >= members
        if plan.kind != "one by one":
            assert plan.slots(members) % (plan.devices * plan.chunk) == 0
    assert str(Plan("map", chunk=4, devices=2)) == "map of 4 on 2 devices"
