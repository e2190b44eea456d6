"""Is what is timed the same function as the model, and does the result say what was timed?"""

import dataclasses
import json
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict

from configs import common
from research.models.convolution import depthwise_conv2d
from research.models.initialize import initialize
from research.models.lowering import lowering_for
from research.models.pooling import average_pool, max_pool
from research.search import latency
from research.training import build
from research.training.state import flatten


def trial_of(name, size, options, normalize="fixed", **model):
    config = common.default()
    config.image_size, config.data.normalize = size, normalize
    config.model.update({"name": name, "options": ConfigDict(options), **model})
    dataset = types.SimpleNamespace(
        class_names=tuple("abcd"), channels=3, multi_label=False, genes=(), dtype=np.dtype(np.uint8)
    )
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
    return build.Trial("t", "t", {}, config, dataset, None, statistics)


def variables_of(trial):
    """First variables with running statistics that are not trivial."""
    variables = initialize(build.build_model(trial), jax.random.key(1), trial.config.image_size, trial.channels)
    generator = np.random.default_rng(0)
    flat = {kind: {path: np.asarray(array) for path, array in flatten(variables[kind]).items()} for kind in variables}
    stats = {
        path: (generator.uniform(0.5, 1.5, a.shape) - path.endswith("mean")).astype(np.float32)
        for path, a in flat["batch_stats"].items()
    }
    return flat | {"batch_stats": stats}


def in_runtime(function, array):
    """The outputs of ONNX Runtime for the exported function."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with lowering_for("cuda"):
        graph = latency.to_onnx(function, jax.ShapeDtypeStruct(array.shape, array.dtype))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": array})[0], graph


MODELS = [
    ("grid_cnn", 28, {"filters": (4, 6), "kernels": 3, "dense": (7,), "padding": "same"}, "fixed", {}),
    ("grid_cnn", 29, {"filters": (4, 6), "kernels": (5, 3), "dense": (), "pooling": "average", "activation": "elu"},
     "channel_intensity", {}),
    ("grid_cnn", 31, {"filters": (4, 6), "kernels": 3, "strides": (2, 1), "padding": "same", "activation": "swish"},
     "per_image", {"head": (5,), "head_batch_norm": True}),
    ("simple_cnn", 17, {"widths": (4, 6, 5)}, "caffe", {"head_pool": "max"}),
    ("cnn2", 18, {"widths": (4, 6)}, "dataset", {"head_pool": "flatten"}),
]  # fmt: skip


@pytest.mark.parametrize("name, size, options, normalize, model", MODELS)
def test_exported_logits_are_those_of_the_model(name, size, options, normalize, model):
    trial = trial_of(name, size, options, normalize, **model)
    function, variables = latency.inference(trial), variables_of(trial)
    image = np.random.default_rng(3).integers(0, 256, (1, size, size, 3), np.uint8)
    expected = np.asarray(jax.jit(function)(variables, image))
    found, graph = in_runtime(lambda image: function(variables, image), image)
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3
    assert (b"MaxPool" in graph) == (options.get("pooling") != "average")


def ramp(*shape):
    return np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(shape)


FUNCTIONS = {
    "batched product": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x[:, :, :3] + 1),
    "transposed product": lambda x: jnp.einsum("bhwc,kc->bkhw", x, ramp(7, 3)),
    "row times matrix": lambda x: x.reshape(5, -1).T @ ramp(5, 2),
    "cut and pad": lambda x: lax.pad(x, 2.0, ((0, 0, 0), (1, -2, 0), (-1, 3, 0), (0, 0, 0))),
    "turn and join": lambda x: jnp.concatenate([x[:, ::-1, 1:6:2], jnp.flip(x[:, :, :3], (1, 3))], 2),
    "choose": lambda x: jnp.where((x > 0) & (x != 0.5), jnp.expm1(x), jnp.clip(x, -0.5, 0.2) ** 3),
    "spread": lambda x: jnp.broadcast_to(x.mean((1, 3))[:, None, :, None], (1, 2, 6, 4)) - lax.rsqrt(x.max() + 3.0),
    "overlapping pool": lambda x: max_pool(x, 3, 2, "same"),
    "average pool": lambda x: average_pool(x, 3, 2, "same"),
    "depthwise": lambda x: depthwise_conv2d(x, ramp(3, 3, 1, 3), (2, 2), "same"),
    "dilated": lambda x: lax.conv_general_dilated(
        x, ramp(3, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC")),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exported_operations(name):
    array = np.random.default_rng(5).normal(size=(1, 5, 6, 3)).astype(np.float32)
    expected = np.asarray(FUNCTIONS[name](jnp.asarray(array)))
    found, _ = in_runtime(FUNCTIONS[name], array)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_what_only_resembles_a_pool_is_none():
    def three_of_four(x):
        return jnp.maximum(jnp.maximum(x[:, :-1:2, :-1:2], x[:, 1::2, 1::2]), x[:, 1::2, :-1:2])

    array = np.random.default_rng(5).normal(size=(1, 6, 6, 3)).astype(np.float32)
    found, graph = in_runtime(jax.jit(three_of_four), array)
    np.testing.assert_array_equal(found, three_of_four(array))
    assert b"MaxPool" not in graph


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: jnp.sort(x), "knows no sort"),
        (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), "no bfloat16"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "no pad between"),
        (lambda x: lax.scan(lambda c, _: (c + 1, None), x, None, 3)[0], "knows no scan"),
    ],
)
def test_unknown_operations_are_refused(function, words):
    pytest.importorskip("onnx")
    with pytest.raises(latency.Unsupported, match=words):
        latency.to_onnx(function, jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32))


def test_a_child_process_measures_both_runtimes():
    pytest.importorskip("onnxruntime")
    options = {"filters": (4, 6), "kernels": 3, "dense": (), "padding": "same"}
    small, refused = (trial_of("grid_cnn", size, options, **m) for size, m in ((8, {}), (64, {"dtype": "bfloat16"})))
    found = latency.measure([(trial, variables_of(trial)) for trial in (small, refused)], runs=20, warm_up=2)
    for result in found:
        assert 0 < result.latency_p50_ms <= result.latency_p95_ms
    assert found[0].latency_runtime.startswith("onnxruntime ")
    assert found[1].latency_runtime == f"xla {jax.__version__} (ONNX Runtime has no bfloat16 on CPU)"
    held = sum(array.nbytes for kind in variables_of(small).values() for array in kind.values()) + 8 * 8 * 3 + 4 * 4
    assert held <= found[0].peak_memory_bytes < held + 100_000
    assert found[1].peak_memory_bytes > held + 64 * 64 * 4 * 2  # one feature map in bfloat16 at least
    assert set(dataclasses.asdict(found[0])) == {
        "latency_p50_ms", "latency_p95_ms", "latency_runtime", "peak_memory_bytes",
    }  # fmt: skip


def test_without_onnx_it_is_xla_and_wrong_logits_are_refused(monkeypatch, tmp_path):
    trial = trial_of("simple_cnn", 9, {"widths": (3,)})
    variables = variables_of(trial)
    with monkeypatch.context() as patched:
        patched.setattr(latency.importlib.util, "find_spec", lambda name: None)
        model = latency._write_job(tmp_path / "0", trial, variables)
    model = json.loads(json.dumps(model))
    assert not (tmp_path / "0.onnx").exists()
    assert latency._measure_one(tmp_path / "0", model, 3, 1).latency_runtime == f"xla {jax.__version__}"
    pytest.importorskip("onnxruntime")
    changed = variables | {"params": {path: array + 1e-3 for path, array in variables["params"].items()}}
    latency._write_job(tmp_path / "1", trial, changed)
    (tmp_path / "1.onnx").rename(tmp_path / "0.onnx")
    assert "logits differ" in latency._measure_one(tmp_path / "0", model, 3, 1).latency_runtime
    (tmp_path / "0.onnx").write_bytes(b"nonsense")
    assert "ONNX Runtime refused" in latency._measure_one(tmp_path / "0", model, 3, 1).latency_runtime


def test_a_child_that_dies_costs_the_search_nothing_but_the_figures(monkeypatch):
    seen = {}

    def dying(command, env, **_):
        seen.update(env)
        return subprocess.CompletedProcess(command, -9, "", "killed")

    monkeypatch.setattr(latency.subprocess, "run", dying)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_max_hlo_modules=1")
    trial = trial_of("simple_cnn", 9, {"widths": (3,)})
    assert latency.measure([(trial, variables_of(trial))]) == [None]
    assert seen["XLA_FLAGS"].startswith("--xla_dump_max_hlo_modules=1 ") and seen["JAX_PLATFORMS"] == "cpu"
    with pytest.raises(ValueError, match="at least one run"):
        latency.measure([], runs=0)


def test_only_the_runs_after_the_warm_up_are_timed():
    calls = []
    assert latency.times(lambda: calls.append(0), 7, 3).shape == (7,)
    assert len(calls) == 10
