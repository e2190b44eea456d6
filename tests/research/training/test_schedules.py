"""Durations, learning rates, and what validation metrics decide."""

import math

import pytest

from configs import common
from input_pipeline.cli import UserError
from research.training.control import Controls
from research.training.schedules import Length, learning_rate, length_of

LENGTH = Length(steps=200, batch_size=30, num_examples=1000)


def test_durations_in_four_units():
    assert [LENGTH.parse(text, "x") for text in ("7 steps", "2 epochs", "600 examples", "5 %", "1.5 epochs")] == [
        7, 67, 20, 10, 50,
    ]  # fmt: skip
    for text in ("7", "epochs", "-1 steps", "nan steps", "1 2 steps"):
        with pytest.raises(UserError, match="config.x"):
            LENGTH.parse(text, "x")


def test_exactly_one_length():
    assert length_of({"epochs": 3.0}, 30, 1000).steps == 100
    assert length_of({"examples": 1000, "epochs": 0.0, "steps": 0}, 30, 1000).steps == 33
    for settings in ({}, {"steps": 1, "epochs": 1.0}, {"steps": -1}):
        with pytest.raises(UserError):
            length_of(settings, 30, 1000)
    with pytest.raises(UserError, match="smaller"):
        length_of({"steps": 1}, 1001, 1000)


def schedule(**changes):
    config = common.default().schedule
    config.update(changes)
    return config


def test_learning_rates():
    constant = learning_rate(schedule(warmup="10 steps"), 0.5, LENGTH)
    assert constant(0) == 0.05 and constant(9) == 0.5 and constant(199) == 0.5
    cosine = learning_rate(schedule(name="cosine", final=0.1), 1.0, LENGTH)
    assert cosine(0) == 1.0 and math.isclose(cosine(100), 0.55) and math.isclose(cosine(200), 0.1)
    cycle = learning_rate(schedule(name="one_cycle"), 1.0, LENGTH)
    assert math.isclose(cycle(0), 1 / 25) and math.isclose(cycle(60), 1.0) and math.isclose(cycle(200), 1e-4)
    assert max(cycle(s) for s in range(200)) == cycle(60)


def test_plateau_and_early_stopping():
    config = common.default()
    config.schedule.plateau_factor, config.schedule.plateau_floor = 0.5, 0.3
    config.selection, config.early_stopping = "macro_f1", 3
    controls = Controls()
    losses, scores, factors, stops = [1.0, 0.9, 0.9, 0.9, 0.95, 0.9], [0.1, 0.3, 0.2, 0.25, 0.1, 0.4], [], []
    for step, (loss, score) in enumerate(zip(losses, scores, strict=True), 1):
        controls.observe(config, step, {"loss": loss, "macro_f1": score}, base_rate=1.0)
        factors.append(controls.rate_factor)
        stops.append(controls.should_stop(config))
    assert factors == [1.0, 1.0, 1.0, 0.5, 0.5, 0.3]
    assert stops == [False, False, False, False, True, False]
    assert controls.best == 0.4 and controls.best_step == 6
