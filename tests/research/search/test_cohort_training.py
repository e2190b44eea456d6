"""Members of a cohort against the same trials trained alone, under every plan; stops, divergence, early stopping."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import hpa
from research import study
from research.search import plans
from research.search.cohort import group
from research.search.cohort_training import CohortTraining
from research.search.members import places
from research.search.planner import candidates_for
from research.training import sharding
from research.training.loop import Training
from research.training.signals import Stopped, StopSignal

# Stated before measuring: of a member's parameters, relative to the largest of its array, after 8 steps of Adam at
# 1e-3, whose first steps turn rounding into the sign of a gradient near zero; and of losses.
PARAMETERS, LOSSES = 2e-2, 1e-3

GRID = (("optimizer.weight_decay", (0.0, 1e-2)),)
TRIALS = (  # fmt: skip
    {"name": "plain"},
    {"name": "dropout", "model.head_dropout": 0.3, "seed": 3},
    {
        "name": "other",
        "loss.options": ConfigDict({"alpha": 0.5}),
        "optimizer.beta2": 0.99,
        "optimizer.learning_rate": 3e-4,
    },
)


def configure(**changes):
    config = hpa.get_config("simple_cnn,smoke").unlock()
    config.update_from_flattened_dict({
        "epochs": 0.0, "steps": 8, "batch_size": 30, "image_size": 20, "evaluate_every": "4 steps",
        "checkpoint_every": "4 steps", "log_every": "2 steps", "optimizer.ema": 0.9, "optimizer.name": "adamw",
        "data.augment.rotation": 40.0, "data.augment.mixup": 0.3, "loss.name": "focal_binary",
        "search.grid": GRID, "search.trials": TRIALS,
    })  # fmt: skip
    config.model.options = ConfigDict({"widths": (4, 6)})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.lock()


def trials_of(config, dataset, folder):
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    shared, mesh = study.SharedImages(), sharding.make_mesh(jax.devices()[:1])
    return [shared.attach(trial, mesh) for trial in study.expand(config, dataset)], mesh


def train(trials, folder, plan, stop=None, judge=None, until=None):
    (cohort,) = group(trials, 64)
    training = CohortTraining(cohort, folder, stop or StopSignal(), {})
    training.begin()
    training.run(plan, until, judge)
    return training


def plan_of(kind, members=6, devices=2):
    return next(plan for plan in candidates_for(members, devices) if plan.kind == kind)


@pytest.fixture(scope="module")
def alone(simulated, tmp_path_factory):
    """Every trial trained by itself: parameters and history."""
    folder = tmp_path_factory.mktemp("alone")
    trials, mesh = trials_of(configure(), simulated, folder)
    result = {}
    for trial in trials:
        training = Training(trial, folder, mesh, StopSignal())
        training.run()
        result[trial.name] = jax.device_get(training.state), training.meta["history"]
    return result


@pytest.mark.parametrize("kind", plans.KINDS)
def test_every_plan_equals_training_alone(kind, alone, simulated, tmp_path):
    trials, _ = trials_of(configure(), simulated, tmp_path)
    training = train(trials, tmp_path, plan_of(kind))
    assert len(training.members) == 6
    for index, trial in enumerate(trials):
        state, history = alone[trial.name]
        for path, expected in state.params.items():
            found = training.host.params[path][index]
            assert np.abs(found - expected).max() <= PARAMETERS * np.abs(expected).max(), (trial.name, path)
        own = training.members[index].history
        assert [(r["split"], r["step"]) for r in own] == [(r["split"], r["step"]) for r in history]
        np.testing.assert_allclose([r["loss"] for r in own], [r["loss"] for r in history], rtol=LOSSES)
    assert all(member.status == "finished" for member in training.members)


@pytest.mark.parametrize("kind", ["map"])
def test_a_stopped_cohort_goes_on_with_the_same_bits(kind, simulated, tmp_path):
    trials, _ = trials_of(configure(), simulated, tmp_path)
    whole = train(trials, tmp_path / "whole", plan_of(kind))
    stop = StopSignal()

    def ask_to_stop(step, histories):
        stop.requested = step == 4
        return {}

    with pytest.raises(Stopped):
        train(trials, tmp_path / "parts", plan_of(kind), stop, ask_to_stop)
    parts = train(trials, tmp_path / "parts", plan_of(kind))
    for index in range(len(trials)):
        assert parts.result(index).state_sha256 == whole.result(index).state_sha256
        assert parts.result(index).step == whole.result(index).step
        assert parts.members[index].history == whole.members[index].history
    log = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert sorted(log) == sorted((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())


def test_who_leaves_does_not_disturb_the_others(simulated, tmp_path):
    trials, _ = trials_of(configure(), simulated, tmp_path)
    whole = train(trials, tmp_path / "whole", plan_of("one by one"))
    kept = {trial.name for trial in trials[:2]}

    def keep_two(step, histories):
        return {name: "stopped: beaten" for name in histories if step == 4 and name not in kept}

    fewer = train(trials, tmp_path / "fewer", plan_of("one by one"), judge=keep_two)
    for index, trial in enumerate(trials):
        member = fewer.members[index]
        assert (member.status, member.last_step) == (("finished", 8) if trial.name in kept else ("stopped: beaten", 4))
        if trial.name in kept:
            assert fewer.result(index).state_sha256 == whole.result(index).state_sha256
        else:
            assert int(fewer.host.step[index]) == 4


@pytest.mark.parametrize("kind", ["map"])
@pytest.mark.parametrize("name, options", [
    ("simple_cnn", [{"widths": (4, 6)}, {"widths": (3, 8)}, {"widths": (5, 5)}]),
    pytest.param("grid_cnn", [{"filters": (4, 3), "dense": (5,)}, {"filters": (3, 6), "dense": (7,)}],
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_padded_widths_change_nothing(kind, name, options, simulated, tmp_path):
    common = {"padding": "same", "activation": "swish"} if name == "grid_cnn" else {}
    sets = tuple(
        {"name": f"w{i}", "model.options": ConfigDict(o | common), "seed": i, "model.head": (6 - i,)}
        for i, o in enumerate(options)
    )
    changes = {"model__name": name, "search__trials": sets, "search__grid": (), "model__head_dropout": 0.4}
    trials, mesh = trials_of(configure(**changes, optimizer__clip_norm=0.5), simulated, tmp_path)
    (cohort,) = group(trials, 64, padding=10.0)
    training = CohortTraining(cohort, tmp_path, StopSignal(), {})
    training.begin()
    training.run(plan_of(kind, len(trials), 1))
    for index, trial in enumerate(trials):
        alone = Training(trial, tmp_path, mesh, StopSignal())
        alone.run()
        own = training.state_of(index)
        for path, expected in jax.device_get(alone.state.params).items():
            assert own.params[path].shape == expected.shape
            assert np.abs(own.params[path] - expected).max() <= PARAMETERS * np.abs(expected).max(), (trial.name, path)
            whole = np.array(training.host.params[path][index])
            whole[tuple(map(slice, expected.shape))] = 0
            assert not whole.any(), (trial.name, path)
        losses = [row["loss"] for row in training.members[index].history]
        np.testing.assert_allclose(losses, [row["loss"] for row in alone.meta["history"]], rtol=LOSSES)
        best = training.result(index).variables["params"]
        assert {p: v.shape for p, v in best.items()} == {p: v.shape for p, v in alone.state.params.items()}


def test_padding_is_limited(simulated, tmp_path):
    grid = (("model.options.widths", ((4, 6), (4, 8), (16, 32), (16, 36), (4, 6, 8))),)
    trials, _ = trials_of(configure(search__grid=grid, search__trials=()), simulated, tmp_path)
    names = [[trial.name for trial in cohort.trials] for cohort in group(trials, 64, padding=1.5)]
    assert [len(own) for own in names] == [2, 2, 1]
    assert len(group(trials, 64)) == 5 and len(group(trials, 64, padding=1e9)) == 2


def test_a_member_that_diverges_is_retired(simulated, tmp_path):
    rates = (1e-3, 1e30, 3e-4)
    grid = (("optimizer.learning_rate", rates),)
    config = configure(search__grid=grid, search__trials=(), steps=40, optimizer__ema=0.0, evaluate_every="40 steps")
    trials, _ = trials_of(config, simulated, tmp_path)
    training = train(trials, tmp_path, plan_of("unrolled", 3, 1))
    statuses = [member.status for member in training.members]
    assert statuses[0] == statuses[2] == "finished" and statuses[1].startswith("failed: ")
    assert np.isfinite(training.host.params["head/logits/kernel"][[0, 2]]).all()


def test_a_pause_between_rungs_changes_nothing(simulated, tmp_path):
    trials, _ = trials_of(configure(), simulated, tmp_path)
    plan = plan_of("scan")
    whole = train(trials, tmp_path / "whole", plan)
    first = train(trials, tmp_path / "parts", plan, until=4)
    assert first.step == 4 and all(member.status == "training" for member in first.members)
    first.run(plan)
    for index in range(len(trials)):
        assert first.result(index).state_sha256 == whole.result(index).state_sha256


def test_places():
    assert places(8, [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert places(8, [1, 2, 5, 7]) == [1, 2, 5, 7]
    assert places(8, [6]) == [6]
    assert places(5, [0, 3]) == [0, 3, 3]
    assert places(3, [0, 1, 2]) == [0, 1, 2]


def test_cohorts(simulated, tmp_path):
    """Other architectures, and numbers that the program cannot take, are other cohorts."""
    grid = (("model.options.widths", ((4, 6), (4, 8))), ("seed", (0, 1)))
    extra = ({"name": "a"}, {"name": "b", "model.head_dropout": 0.5}, {"name": "c", "data.augment.mixup": 0.0})
    config = configure(search__grid=grid, search__trials=extra)
    trials, _ = trials_of(config, simulated, tmp_path)
    cohorts = group(trials, 64)
    assert [len(cohort.trials) for cohort in cohorts] == [4, 4, 2, 2]
    assert [trial.name for cohort in cohorts for trial in cohort.trials] != [trial.name for trial in trials]
    assert cohorts[0].values.keys() == {"model.head_dropout"} and not cohorts[2].values
    assert [len(cohort.trials) for cohort in group(trials, 3)] == [3, 1, 3, 1, 2, 2]
    own = trials_of(configure(search__grid=grid, search__trials=extra, search__order="own"), simulated, tmp_path)[0]
    assert sorted(len(cohort.trials) for cohort in group(own, 64)) == [1, 1, 1, 1, 2, 2, 2, 2]
