"""Are the exported functions those of the network, for any batch, task and kind of input?"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.evaluation import calibration
from research.evaluation.tta import tta_logits
from research.export import onnx_graph, program, stablehlo, timing, weights
from research.models.initialize import initialize
from research.search import latency
from research.training import build, steps, task, texts
from research.training.state import flatten
from tests.research.search.test_latency import trial_of, variables_of

BATCHES = (7, 1, 3)


def program_of(trial, variables, temperature=1.3, cuts=None, float_images=False):
    run = types.SimpleNamespace(path=None)
    inputs = program._inputs(trial, float_images)
    return program.Program(run, "t", trial, {}, variables, temperature, cuts, inputs)


def calls_of(exported, folder, batch=None, platforms=("cpu", "cuda", "tpu")):
    """The function of each file."""
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnxruntime")
    stablehlo.write(folder / stablehlo.FILE, exported, batch, platforms)
    onnx_graph.write(folder / onnx_graph.FILE, exported, batch, {"classes": ["a"]})
    names = [entry.name for entry in exported.inputs]
    onnx = onnx_graph.load(folder / onnx_graph.FILE, names)
    return {"stablehlo": stablehlo.load(folder / stablehlo.FILE), "onnx": onnx}


def images(trial, batch, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (batch, *trial.raw.shape[1:]), np.uint8)


NETWORKS = {
    "two views, even kernel": ("simple_cnn", 17, {"widths": (4, 6)}, "caffe", "flips", True),
    "eight views": ("simple_cnn", 9, {"widths": (4,)}, "per_image", "dihedral", False),
    "strided, average pooling": (
        "grid_cnn", 22,
        {"filters": (4, 6), "kernels": (5, 3), "strides": (2, 1), "pooling": "average", "activation": "swish"},
        "dataset", "none", False),
}  # fmt: skip


SLOW = ("eight views", "strided, average pooling")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_any_batch_gives_what_the_network_gives(name, tmp_path):
    model, size, options, normalize, views, multi_label = NETWORKS[name]
    trial = trial_of(model, size, options, normalize)
    trial.config.evaluation.tta = views
    trial.dataset.multi_label = multi_label
    variables = variables_of(trial)
    exported = program_of(trial, variables, cuts=np.full(4, 0.5) if multi_label else None)
    calls = calls_of(exported, tmp_path)
    network, prepare = build.build_model(trial), build.build_normalize(trial)
    given = images(trial, max(BATCHES))
    apply = jax.jit(lambda view: steps.eval_step(network, prepare, variables, view))
    logits = np.asarray(tta_logits(apply, jnp.asarray(given), views), np.float64)
    expected = calibration.probabilities(logits, multi_label, 1.3)
    assert np.ptp(expected) > 1e-3
    for batch in BATCHES:
        for kind, call in calls.items():
            found = call([given[:batch]])
            assert set(found) == {"probabilities", "logits"}, kind
            np.testing.assert_allclose(found["logits"], logits[:batch], atol=2e-5 * max(1, np.abs(logits).max()))
            np.testing.assert_allclose(found["probabilities"], expected[:batch], atol=1e-5)
            assert found["probabilities"].dtype == np.float32


def test_one_batch_size_float_images_and_one_platform(tmp_path):
    trial = trial_of("simple_cnn", 9, {"widths": (3,)}, "fixed")
    trial.dataset.dtype = np.dtype(np.uint16)
    exported = program_of(trial, variables_of(trial), 1.0, float_images=True)
    assert exported.inputs == (program.Input("image", (9, 9, 3), np.dtype(np.float32)),)
    calls = calls_of(exported, tmp_path, 5, ("cpu",))
    raw = np.random.default_rng(1).integers(0, 65536, (5, 9, 9, 3), np.uint16)
    (given,) = exported.feed({"image": raw})
    assert given.dtype == np.float32 and given.max() <= 255
    stored = dataclasses.replace(exported, inputs=program._inputs(trial, False))
    expected = np.asarray(jax.jit(stored.outputs)(exported.arrays, raw)["probabilities"])
    for call in calls.values():
        np.testing.assert_allclose(call([given])["probabilities"], expected, atol=1e-6)
        with pytest.raises(Exception, match="5|shape|dimension"):
            call([given[:3]])


def test_a_file_for_several_platforms_holds_the_weights_once(tmp_path):
    pytest.importorskip("flatbuffers")
    trial = trial_of("simple_cnn", 17, {"widths": (8, 64)})
    exported = program_of(trial, variables_of(trial))
    held = sum(value.nbytes for value in exported.arrays["params"].values())
    facts = stablehlo.write(tmp_path / "many", exported, None, ("cpu", "cuda", "tpu"))
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert held < (tmp_path / "many").stat().st_size < held + 40_000


def test_segmentation(tmp_path):
    options = {"encoder": "simple_cnn", "encoder_options": {"widths": (4, 6)}, "decoder": (5, 3)}
    trial = trial_of("unet", 19, options, "per_image")
    trial.dataset.segmentation_classes = ("background", "lung", "heart")
    exported = program_of(trial, variables_of(trial), 1.0)
    assert exported.task == "segmentation"
    calls = calls_of(exported, tmp_path)
    given = images(trial, 3)
    network, prepare = build.build_model(trial), build.build_normalize(trial)
    logits = jax.jit(lambda image: steps.eval_step(network, prepare, exported.arrays, image))(given)
    mask = np.asarray(task.decide(logits))
    assert mask.shape == (3, 19, 19) and len(np.unique(mask)) > 1
    for batch in (3, 1):
        for call in calls.values():
            found = call([given[:batch]])
            np.testing.assert_allclose(found["probabilities"], jax.nn.sigmoid(logits[:batch]), atol=1e-5)
            assert found["mask"].dtype == np.uint8 and (found["mask"] == mask[:batch]).mean() > 0.999


@pytest.mark.parametrize("image, text", [("simple_cnn", "bag"), pytest.param("", "gru", marks=pytest.mark.slow)])
def test_captions(image, text, tmp_path):
    from research.text import tokenizers

    captions = ["a dog on a horse", "two cats", None, "a cat on a sofa", "", "dogs", "one man"]
    tokenizer = tokenizers.build("words", captions, {"min_count": 1, "max_length": 5})
    options = {"widths": (4,)} if image else {}
    trial = trial_of("captioned", 8, {"image": image, "text": text, "image_options": options})
    trial.config.model.options["text_options"] = {"width": 6}
    trial = dataclasses.replace(trial, text=texts.Text(tokenizer, tokenizer.encode(captions)))
    exported = program_of(trial, _drawn(trial))
    assert [entry.name for entry in exported.inputs] == (["image"] if image else []) + ["caption"]
    pytest.importorskip("flatbuffers")
    stablehlo.write(tmp_path / "f", exported, None, ("cpu", "cuda"))
    calls = [stablehlo.load(tmp_path / "f")]
    if text == "bag":
        calls.append(calls_of(exported, tmp_path)["onnx"])
    else:
        with pytest.raises(Exception, match="no ONNX form here .*jax2onnx"):
            onnx_graph.write(tmp_path / "g", exported, None, {})
    given = exported.feed({"image": images(trial, 7), "caption": trial.text.ids})
    network, prepare = build.build_model(trial), build.build_normalize(trial)
    apply = jax.jit(lambda image, caption: steps.eval_step(network, prepare, exported.arrays, image, caption))
    logits = np.asarray(apply(images(trial, 7), trial.text.ids), np.float64)
    expected = calibration.probabilities(logits, False, 1.3)
    for batch in (7, 3):
        for call in calls:
            found = call([value[:batch] for value in given])["probabilities"]
            np.testing.assert_allclose(found, expected[:batch], atol=1e-6)


def _drawn(trial):
    found = initialize(build.build_model(trial), jax.random.key(0), trial.config.image_size, trial.channels)
    return {kind: flatten(found[kind]) for kind in found}


def ramp(*shape):
    return jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


FUNCTIONS = {
    "rows of a table": lambda x: jnp.take(ramp(9, 2), x.max((2, 3)).astype(jnp.int32), axis=0, mode="clip"),
    "chosen columns": lambda x: jnp.take(x, np.array([3, 0, 3, 5]), axis=2),
    "chosen rows": lambda x: jnp.take(x, np.array([[1, 0], [2, 4]]), axis=1),
    "as many as the batch": lambda x: jnp.broadcast_to(ramp(6), (x.shape[0], 6)) + x.max((1, 3)),
    "ones for the batch": lambda x: jnp.ones((x.shape[0], 3)) * x[:, 0][:, 4],
    "flattened": lambda x: (x.reshape(x.shape[0], -1) @ ramp(90, 4)),
    "batch and rows joined": lambda x: (x.reshape(-1, 18) @ ramp(18, 4)).reshape(x.shape[0], 5, 4),
    "largest place": lambda x: jnp.argmax(x, axis=2).astype(jnp.uint8),
    "any": lambda x: jnp.any(x > 1.0, axis=(2, 3)),
    "numbers": lambda x: x.max(3) * jnp.arange(6.0) + lax.broadcasted_iota(jnp.float32, (5, 6), 0),
    "turned": lambda x: jax.vmap(lambda image: image[::-1, 1:6:2])(x),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_of_any_batch(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    (size,) = jax.export.symbolic_shape("n")
    spec = {"x": jax.ShapeDtypeStruct((size, 5, 6, 3), jnp.float32)}
    graph = onnx_graph.to_onnx(lambda x: {"y": FUNCTIONS[name](x)}, spec)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 5, 6, 3]
    for batch in BATCHES:
        array = np.random.default_rng(5).normal(size=(batch, 5, 6, 3)).astype(np.float32)
        expected = np.asarray(FUNCTIONS[name](jnp.asarray(array)))
        (found,) = session.run(None, {"x": array})
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: jnp.sort(x), "knows no sort"),
        (lambda x: x[:, ::2, ::2], "whole slices along one axis"),
        (lambda x: jnp.arange(x.shape[0]) + x.max((1, 2, 3)), "knows no|batch"),
        (lambda x: jnp.broadcast_to(ramp(3), (2 * x.shape[0], 3)), "no size"),
    ],
)
def test_unknown_operations_are_refused(function, words):
    pytest.importorskip("onnx")
    (size,) = jax.export.symbolic_shape("n")
    with pytest.raises(latency.Unsupported, match=words):
        onnx_graph.to_onnx(lambda x: {"y": function(x)}, {"x": jax.ShapeDtypeStruct((size, 5, 6, 3), jnp.float32)})


def test_nothing_unused_stands_in_a_graph():
    onnx = pytest.importorskip("onnx")
    (size,) = jax.export.symbolic_shape("n")

    def function(x):
        _ = x @ ramp(3, 1000)
        return {"z": jnp.sum(x, axis=1), "y": x * 2}

    model = onnx.load_from_string(onnx_graph.to_onnx(function, {"x": jax.ShapeDtypeStruct((size, 5, 3), jnp.float32)}))
    assert [output.name for output in model.graph.output] == ["y", "z"]
    used = {name for node in model.graph.node for name in node.input}
    assert all(constant.name in used for constant in model.graph.initializer)
    assert sum(len(constant.raw_data) for constant in model.graph.initializer) < 100


def test_the_digest_sees_names_types_and_values():
    arrays = {"params": {"a": np.arange(4.0), "b": np.ones((2, 2), np.float32)}}
    same = {"params": dict(reversed(arrays["params"].items()))}
    assert weights.digest(arrays) == weights.digest(same)
    a, b = arrays["params"].values()
    for changed in ({"a": a, "c": b}, {"a": a, "b": b.astype(float)}, {"a": a, "b": b.ravel()}, {"a": -a, "b": b}):
        assert weights.digest({"params": changed}) != weights.digest(arrays)


def test_latency_of_the_files(tmp_path):
    trial = trial_of("simple_cnn", 9, {"widths": (3,)})
    calls_of(program_of(trial, variables_of(trial)), tmp_path)
    inputs = [{"name": "image", "shape": [9, 9, 3], "type": "uint8"}]
    files = [stablehlo.FILE, onnx_graph.FILE, "missing.onnx"]
    found = timing.measure(tmp_path, files, inputs, 2, 11)
    assert set(found) == {stablehlo.FILE, onnx_graph.FILE}
    for times in found.values():
        assert 0 < times["p50_ms"] <= times["p95_ms"] and times["batch"] == 2 and 10 <= times["runs"] <= 11
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files[:2])
