"""Whole trainings in this process: devices, caches, damage, divergence, folds."""

import jax
import numpy as np
import pytest

from configs import hpa
from input_pipeline.cli import UserError
from research import study
from research.training import inference, sharding
from research.training.loop import Training
from research.training.signals import StopSignal

TOLERANCE = 2e-3  # relative, of losses on 1, 2 and 8 devices after 8 steps with Adam: stated before measuring


def configure(**changes):
    """The smoke preset with a few steps and everything random switched on; keys are written with double underscores."""
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({
        "epochs": 0.0, "steps": 8, "batch_size": 30, "image_size": 24, "evaluate_every": "4 steps",
        "checkpoint_every": "4 steps", "log_every": "1 steps", "model.head_dropout": 0.2, "optimizer.ema": 0.9,
        "data.augment.rotation": 40.0, "data.augment.mixup": 0.3,
    })  # fmt: skip
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.lock()


def train(config, dataset, folder, devices=1):
    """Trains the first trial on `devices` devices; returns the Training."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    trial = study.SharedImages().attach(study.expand(config, dataset)[0], mesh)
    training = Training(trial, folder, mesh, StopSignal())
    training.run()
    return training


def losses(training) -> list[float]:
    return [row["loss"] for row in training.meta["history"]]


@pytest.fixture
def seen(monkeypatch):
    """Records the ids of every batch that is put on the devices, without padding."""
    ids = []
    original = sharding.put_batch

    def record(mesh, batch):
        if "id" in batch:
            ids.append([name for name in batch["id"] if name])
        return original(mesh, batch)

    monkeypatch.setattr(sharding, "put_batch", record)
    return ids


def test_devices_see_the_same_examples_and_agree(simulated, tmp_path, seen):
    """A batch of 30 on 1, 2 and 8 devices with BatchNorm, rotation, mixup, dropout and EMA."""
    orders, curves, logits = [], [], []
    for devices in (1, 2, 8):
        seen.clear()
        training = train(configure(), simulated, tmp_path / str(devices), devices)
        orders.append([list(batch) for batch in seen])
        curves.append(losses(training))
        if not logits:
            variables = jax.device_get(training.state.evaluated())
        predictor = inference.Predictor(training.trial, training.mesh, StopSignal(), views="flips")
        placed = jax.device_put(variables, sharding.replicated(training.mesh))
        logits.append(predictor(placed, np.arange(len(simulated))))
    assert orders[0] == orders[1] == orders[2] and len(orders[0]) == 8
    assert all(len(batch) == 30 for batch in orders[0])
    for devices, curve, rows in zip((2, 8), curves[1:], logits[1:], strict=True):
        np.testing.assert_allclose(curve, curves[0], rtol=TOLERANCE, err_msg=f"{devices} devices")
        np.testing.assert_allclose(rows, logits[0], atol=1e-5)


def test_caches_and_threads_change_nothing(simulated, tmp_path):
    digests = set()
    for name, changes in {"none": {"data__threads": 1}, "ram": {"data__threads": 3}, "device": {}}.items():
        config = configure(data__cache=name, steps=3, **changes)
        digests.add(train(config, simulated, tmp_path / name).best().state_sha256)
    assert len(digests) == 1


def test_sharded_parameters_agree_with_whole_ones(simulated, tmp_path):
    curves = []
    for name, rules in {"whole": (), "split": (".*kernel",)}.items():
        training = train(configure(steps=4, shard_parameters=rules), simulated, tmp_path / name, devices=8)
        kernels = [v for k, v in training.state.params.items() if k.endswith("kernel")]
        assert any(not v.sharding.is_fully_replicated for v in kernels) == bool(rules)
        curves.append(losses(training))
    np.testing.assert_allclose(curves[1], curves[0], rtol=TOLERANCE)


def test_a_damaged_checkpoint_costs_time_only(simulated, tmp_path):
    config = configure()
    whole = train(config, simulated, tmp_path / "whole").best().state_sha256
    folder = tmp_path / "damaged"
    training = train(config, simulated, folder)
    last = training.checkpoints.folder / str(training.checkpoints.steps()[-1])
    file = max((p for p in last.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = train(config, simulated, folder)
    assert again.best().state_sha256 == whole
    assert (training.checkpoints.folder / f"damaged-{last.name}").exists()


def test_divergence_ends_the_run_and_no_checkpoint_is_poisoned(simulated, tmp_path):
    for number, policy in enumerate(("abort", "skip")):
        config = configure(optimizer__learning_rate=1e30, optimizer__name="sgd", nonfinite=policy, steps=40,
                           evaluate_every="100 steps")  # fmt: skip
        folder = tmp_path / str(number)
        with pytest.raises(UserError, match="learning rate"):
            train(config, simulated, folder)
        kept = [p.name for p in (folder / "checkpoints" / "hpa").iterdir() if p.name.isdigit()]
        assert kept == []


def test_folds_test_every_labelled_image_once_and_keep_groups_together(simulated):
    trials = study.expand(configure(search__folds=4), simulated)
    tested = np.concatenate([t.dataset.indices("test") for t in trials])
    labelled = np.flatnonzero(simulated.roles != "unlabelled")
    assert sorted(tested) == sorted(labelled)
    for trial in trials:
        roles = {}
        for role in ("train", "validation", "calibration", "test"):
            assert len(trial.dataset.indices(role))
            for group in set(trial.dataset.groups[trial.dataset.indices(role)]):
                assert roles.setdefault(group, role) == role


def test_override_sets_become_trials_and_mistakes_are_named(simulated):
    config = configure(search__trials=({"name": "one", "data.normalize": "per_image"}, {"optimizer.ema": 0.5}))
    trials = study.expand(config, simulated)
    assert [t.name for t in trials] == ["one", "trial1"]
    assert trials[0].overrides == {"data.normalize": "per_image"}
    assert trials[0].config.data.normalize == "per_image" and trials[1].config.optimizer.ema == 0.5
    for entry in ({"data.normalise": "fixed"}, {"batch_size": "many"}, {"optimizer.learning_rate": -1.0}):
        with pytest.raises(UserError):
            study.expand(configure(search__trials=(entry,)), simulated)
    with pytest.raises(UserError, match="would be called a-b; give each a name"):
        study.expand(configure(search__trials=({"name": "a b", "seed": 1}, {"name": "a-b", "seed": 2})), simulated)


def test_override_sets_may_name_options_that_the_config_leaves_out(simulated):
    trials = [{"model.name": "grid_cnn", "model.options.filters": (4, 8), "model.options.kernels": (3, 3)}]
    (trial,) = study.expand(configure(search__trials=tuple(trials)), simulated)
    assert trial.config.model.options.filters == (4, 8)


def test_study_split_is_called_leaky(simulated):
    from research.report.assemble import warnings_of

    config = configure(data__split="study")
    (trial,) = study.expand(config, simulated)
    assert len(trial.dataset.indices("test")) == 15
    assert any("LEAKY" in text for text in warnings_of(config, trial.dataset))


def test_nothing_is_frozen_without_weights(simulated, tmp_path):
    phases = ({"steps": 2, "freeze": ("^backbone/",)}, {"steps": 2, "learning_rate": 1e-4, "batch_size": 16})
    training = train(configure(steps=0, phases=phases), simulated, tmp_path)
    assert training.meta["phase"] == 2 and training._step() == 4
    assert all(phase.freeze == () for phase in training.phases)
