"""Is a step's memory foretold, and does the largest batch fit while the next one does not?"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import hpa
from input_pipeline.cli import UserError
from research import study
from research.training import budget, program, sharding
from research.training.loop import Training
from research.training.signals import StopSignal


def configure(**changes):
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({"epochs": 0.0, "steps": 3, "batch_size": 24, "image_size": 16} | changes)
    return config.lock()


def attached(config, dataset, devices=1):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return study.SharedImages().attach(study.expand(config, dataset)[0], mesh), mesh


def test_foretold_program_is_the_one_that_runs(simulated, tmp_path):
    """From shapes alone: the same memory and operations as the program that the training compiles from arrays."""
    trial, mesh = attached(configure(), simulated, devices=2)
    training = Training(trial, tmp_path, mesh, StopSignal())
    training.run()
    real, foretold = budget.need_of(training.train_step), budget.need_of(program.lowered(trial, mesh).compile())
    assert foretold == real
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
    assert real.held >= state and real.flops > 0


@pytest.mark.parametrize("devices, accumulate", [(2, 1), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_largest_batch_fits_and_is_near_the_limit(simulated, devices, accumulate):
    trial, mesh = attached(configure(**{"optimizer.accumulate": accumulate}), simulated, devices)
    unit, stop = int(np.lcm(devices, accumulate)), StopSignal()

    def needed(size: int) -> int:
        return budget.need_of(program.lowered(trial, mesh, size).compile()).total

    there = needed(40 * unit)
    size = budget.fitting(trial, mesh, stop, there, most=1000)
    assert size % unit == 0 and needed(size) <= 0.9 * there < 1.35 * needed(size)
    assert budget.fitting(trial, mesh, stop, there, most=4 * unit - 1) == 3 * unit
    assert budget.fitting(trial, mesh, stop, 10_000, most=1000) == 0


def test_too_little_memory_is_told_before_the_first_step(simulated, tmp_path, monkeypatch):
    trial, mesh = attached(configure(), simulated)
    limit = budget.need_of(program.lowered(trial, mesh, 16).compile()).total
    monkeypatch.setattr(budget, "capacity", lambda in_place=0: limit)
    with pytest.raises(UserError, match=r"config.batch_size = 24 needs .* on each device, which has .*; \d+ fits"):
        Training(trial, tmp_path, mesh, StopSignal()).run()
    assert not list((tmp_path / "checkpoints" / trial.name).iterdir())


def test_batch_size_that_was_found_stays_with_the_run(simulated, tmp_path, capsys):
    config = configure(find_batch_size=True, batch_size=2)
    trial, mesh = attached(config, simulated)
    opened = []

    def open_trial(settings):
        opened.append(settings)
        return trial

    found = budget.settle(config, tmp_path, open_trial, mesh, StopSignal())
    assert found.batch_size == len(trial.train_indices) and opened  # a machine for tests has room for all of them
    assert "the largest that fits" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({"batch_size": 11}))
    again = budget.settle(config, tmp_path, open_trial, mesh, StopSignal())
    assert again.batch_size == 11 and len(opened) == 1
    phased = configure(find_batch_size=True, steps=0, phases=({"steps": 2, "batch_size": 4},))
    with pytest.raises(UserError, match="contradict"):
        budget.settle(phased, tmp_path, open_trial, mesh, StopSignal())
    assert budget.settle(configure(), tmp_path, open_trial, mesh, StopSignal()).batch_size == 24


def test_memory_of_the_device_comes_first(monkeypatch):
    device = dataclasses.make_dataclass("Device", ["stats"], namespace={"memory_stats": lambda self: self.stats})
    monkeypatch.setattr(jax, "local_devices", lambda: [device({"bytes_limit": 1234})])
    assert budget.capacity(99) == 1234
    monkeypatch.setattr(jax, "local_devices", lambda: [device(None)])
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(budget, "available_bytes", lambda: 4000)
    assert budget.capacity(99) == 1099
