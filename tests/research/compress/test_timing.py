"""The child process that measures trials measures int8 programs too."""

import jax
import numpy as np
import pytest

from research import study
from research.compress import network, timing
from research.models.initialize import initialize
from research.training import build, sharding
from research.training.state import flatten
from tests.research.compress.test_candidates import configure


def test_an_int8_program_is_measured(simulated):
    pytest.importorskip("qwix")
    pytest.importorskip("flatbuffers")
    (trial,) = study.expand(configure(simulated.directory), simulated)
    variables = initialize(build.build_model(trial), jax.random.key(0), trial.config.image_size, trial.channels)
    arrays = {kind: jax.tree.map(np.asarray, flatten(variables[kind])) for kind in ("params", "batch_stats")}
    mesh = sharding.make_mesh(jax.devices()[:1])
    small = network.to_int8(network.Network(trial, arrays), mesh)
    columns = timing.columns(trial, small.arrays, network.int8_program(trial), 3)
    assert 0 < columns["latency_p50_ms"] <= columns["latency_p95_ms"]
    assert columns["latency_runtime"] == f"xla {jax.__version__}"
    # Arguments at least: the int8 arrays and one image.
    assert columns["peak_memory_bytes"] >= sum(v.nbytes for v in small.flat.values()) + 16 * 16 * trial.channels
