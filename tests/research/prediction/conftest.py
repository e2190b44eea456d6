"""What all tests of predictions need."""

import jax
import pytest

from research.training import sharding
from research.training.signals import StopSignal


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One device, as the runs were trained, and no signal handlers."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: whole(devices or jax.devices()[:1]))
