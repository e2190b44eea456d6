"""Are the steps' times and the use of the hardware what they are said to be, and does a profile open?"""

import time

import jax
import numpy as np
import pytest

from configs import hpa
from input_pipeline.cli import UserError
from research import study
from research.models.flops import flops
from research.settings import validate
from research.training import build, pace, sharding
from research.training.loop import Training
from research.training.signals import StopSignal


def test_percentiles_leave_pauses_out(monkeypatch):
    times = iter([0.0, 0.010, 0.030, 5.0, 5.020])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    own = pace.Pace()
    for _ in range(3):
        own.tick()
    own.pause()
    own.tick()
    own.tick()
    found = own.take()
    assert found == pytest.approx({"step_p50_ms": 20.0, "step_p95_ms": float(np.percentile([10, 20, 20], 95))})
    assert own.take() == {}


def test_peaks_are_known_by_device_and_type():
    assert pace.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert pace.peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert pace.peak("NVIDIA A10G", "float16") == 70e12
    assert pace.peak("Tesla T4", "float16") == 65e12 and pace.peak("Tesla T4", "bfloat16") is None
    assert pace.peak("TPU v5 lite", "bfloat16") == 197e12 and pace.peak("TPU v5p", "bfloat16") == 459e12
    assert pace.peak("cpu", "float32") is None and pace.peak("NVIDIA H100 80GB HBM3", "float32") is None


def test_utilisation_is_three_forward_passes_of_the_peak(simulated, monkeypatch):
    config = hpa.get_config("smoke")
    trial = study.expand(config, simulated)[0]
    assert set(pace.use(trial, 100.0, 4)) == {"images_per_second_per_device"}
    monkeypatch.setattr(pace, "peak", lambda kind, dtype: 1e9)
    work = flops(build.build_model(trial), config.image_size, 3)
    found = pace.use(trial, 100.0, 4)
    assert found["images_per_second_per_device"] == 25.0
    assert found["model_flops_utilisation"] == pytest.approx(25 * 3 * work / 1e9)
    assert "MFU" in pace.in_words(found) and pace.in_words({}) == ""


def test_a_profile_of_chosen_steps_opens(simulated, tmp_path):
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({"epochs": 0.0, "steps": 5, "batch_size": 8, "image_size": 16, "profile": "2:4"})
    mesh = sharding.make_mesh(jax.devices()[:1])
    trial = study.SharedImages().attach(study.expand(config.lock(), simulated)[0], mesh)
    Training(trial, tmp_path, mesh, StopSignal()).run()
    (file,) = (tmp_path / "profile" / trial.name).rglob("*.xplane.pb")
    opened = jax.profiler.ProfileData.from_file(str(file))
    events = [event.name for plane in opened.planes for line in plane.lines for event in line.events]
    assert any("train" in name or "step" in name or "fusion" in name for name in events), events[:20]


@pytest.mark.parametrize("text", ["10", "20:10", "a:b", "3:3", "-1:4"])
def test_profile_is_two_steps(text):
    config = hpa.get_config("smoke").unlock()
    config.profile = text
    with pytest.raises(UserError, match="config.profile"):
        validate(config.lock())
