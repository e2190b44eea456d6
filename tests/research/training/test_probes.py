"""Does the range test suggest a sensible learning rate, and is a batch learned by heart only if it can be?"""

import csv

import jax
import numpy as np

from configs import hpa
from research import study
from research.training import probes, sharding
from research.training.signals import StopSignal


def opened(dataset, **changes):
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict(
        {"epochs": 0.0, "steps": 5, "batch_size": 7, "image_size": 16, "data.augment.mixup": 0.4} | changes
    )
    mesh = sharding.make_mesh(jax.devices()[:2])
    return study.SharedImages().attach(study.expand(config.lock(), dataset)[0], mesh), mesh


def test_smoothing_is_the_corrected_moving_average():
    values = np.array([3.0, 1.0, 2.0, 5.0])
    weights = [0.9 ** (3 - k) for k in range(4)]
    assert np.isclose(probes.smooth(values)[-1], np.dot(weights, values) / sum(weights))
    assert np.allclose(probes.smooth(np.full(9, 2.5)), 2.5)


def test_suggestion_is_a_tenth_of_the_best_or_the_steepest_if_that_is_less():
    rates = 10.0 ** np.linspace(-6, 0, 61)
    places = np.log10(rates)
    bowl = np.where(places < -2, 1 - 0.8 / (1 + np.exp(-6 * (places + 3))), 0.2 + (places + 2) ** 2)
    assert np.isclose(probes.suggest(probes.Range(rates, bowl, bowl)), 1e-3, rtol=0.3)  # both: 10^-3
    early = np.where(places < -2, 1 - 0.8 / (1 + np.exp(-6 * (places + 4.5))), 0.2 + (places + 2) ** 2)
    assert probes.suggest(probes.Range(rates, early, early)) < 1e-4


def test_range_test_writes_numbers_picture_and_suggestion(simulated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probes, "STEPS", 30)
    trial, mesh = opened(simulated, learning_rate_finder=True)
    assert probes.run(trial, tmp_path, mesh, StopSignal()) == 0
    folder = tmp_path / "learning_rate"
    rows = list(csv.DictReader((folder / "range.csv").open()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert np.allclose(np.diff(np.log(rates)), np.log(1e8) / 29, rtol=1e-3) and 10 < len(rows) <= 30
    suggestion = float((folder / "suggestion.txt").read_text())
    assert 1e-6 < suggestion < 1.0 and f"{suggestion:.2g}" in capsys.readouterr().out
    assert (folder / "range.png").read_bytes()[:4] == b"\x89PNG"


def test_a_batch_is_learned_by_heart_and_mistakes_are_seen(simulated, tmp_path, capsys):
    changes = {"overfit_one_batch": True, "optimizer.learning_rate": 0.02, "model.options.widths": (16, 16)}
    trial, mesh = opened(simulated, **changes)
    assert probes.run(trial, tmp_path, mesh, StopSignal()) == 0
    assert "by heart" in capsys.readouterr().out
    trial, mesh = opened(simulated, **changes | {"optimizer.learning_rate": 1e-7})
    monkey, probes.OVERFIT_STEPS = probes.OVERFIT_STEPS, 20
    try:
        assert probes.run(trial, tmp_path, mesh, StopSignal()) == 1
    finally:
        probes.OVERFIT_STEPS = monkey
    assert "look for a mistake" in capsys.readouterr().out
