"""Do the two commands do what they say: logits of given weights, and weights for timm?"""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.models import registry
from research.models.initialize import initialize
from research.models.pretrained import __main__ as command
from research.models.pretrained import export, plan, read
from research.models.pretrained.names import flatten
from research.training.checkpoint import Checkpoints
from tests.research.models.pretrained import weights
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors


def run(monkeypatch, module, **arguments):
    """Runs a command in this process; gives its exit status."""
    options = [f"--{name}={value}" if value is not True else f"--{name}" for name, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", ["command", *options])
    with pytest.raises(SystemExit) as status:
        cli.run(module.main)
    return status.value.code


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", resnet18_state(classes=5))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).normal(size=(3, 39, 43, 3)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run folder whose step 7 is the best and step 9 the newest, and the averaged variables of step 7."""
    folder = tmp_path_factory.mktemp("run")
    model = registry.create("simple_cnn", num_classes=4, head=(6,), widths=(8, 5))
    variables = initialize(model, jax.random.key(0), 32, 3)
    checkpoints = Checkpoints(folder / "checkpoints" / "trial")
    for step in (7, 9):
        named = {name.replace("/", "."): value + step for name, value in flatten(variables).items()}
        trees = {"params": {}, "batch_stats": {}}
        for name, value in named.items():
            collection, _, path = name.partition(".")
            trees[collection][path] = value
        averaged = jax.tree.map(lambda value: value + 100, trees)
        checkpoints.save(step, {**trees, "step": np.int32(step), "ema": averaged}, {"controls": {"best_step": 7}}, 7)
    config = {
        "model": {"name": "simple_cnn", "variant": "", "options": {"widths": [8, 5]}},
        "data": {"normalize": "fixed", "mean": [0.5], "std": [0.25]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, jax.tree.map(lambda value: np.asarray(value + 7 + 100), variables)


def test_logits(monkeypatch, tmp_path, file, images, capsys):
    status = run(
        monkeypatch, command, model="resnet18", weights=file, input=images, output=tmp_path / "y.npy", report=True
    )
    assert status == 0
    logits = np.load(tmp_path / "y.npy")
    assert logits.shape == (3, 5) and logits.dtype == np.float32
    report = capsys.readouterr().out
    assert "102 arrays with 11,188,677 numbers were loaded" in report and "0.485" in report
    # As from variables that are put together by hand.
    pretrained = plan("resnet18", "", str(file))
    model = registry.create("resnet18", num_classes=5)
    variables, _ = pretrained.load(model, weights.shapes("resnet18", classes=5))
    expected = model.apply(variables, {"image": np.load(images)}, train=False).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_another_number_of_classes(monkeypatch, tmp_path, file, images, capsys):
    arguments = {"model": "resnet18", "weights": file, "input": images, "output": tmp_path / "y.npy", "classes": 2}
    assert run(monkeypatch, command, report=True, **arguments) == 0
    first = np.load(tmp_path / "y.npy")
    assert first.shape == (3, 2) and np.isfinite(first).all()
    report = capsys.readouterr().out
    assert "head: new, because the file has 5 classes, the model 2" in report and "unused: fc.weight (5, 512)" in report
    assert run(monkeypatch, command, **arguments) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), first)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 8, 8, 3)), "is float64 (2, 8, 8, 3); give float32 images"),
        (np.zeros((8, 8, 3), np.float32), "give float32 images [batch, height, width, channels]"),
        (np.zeros((0, 8, 8, 3), np.float32), "is float32 (0, 8, 8, 3)"),
        (np.full((1, 8, 8, 3), np.nan, np.float32), "holds NaN or infinity"),
        (np.array([{}], dtype=object), "is no .npy file"),
        (b"text", "is no .npy file"),
        (None, "there is no input"),
    ],
)
def test_inputs_that_are_none(monkeypatch, tmp_path, file, capsys, array, words):
    path = tmp_path / "x.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array, allow_pickle=True)
    assert run(monkeypatch, command, model="resnet18", weights=file, input=path, output=tmp_path / "y.npy") == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1 and not (tmp_path / "y.npy").exists()


def test_images_that_are_too_small(monkeypatch, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((1, 20, 20, 3), np.float32))
    state = {"conv2d_1a.conv.weight": np.zeros((32, 3, 3, 3), np.float32)}
    path = write_safetensors(tmp_path / "w", state)
    arguments = {"weights": path, "input": tmp_path / "x.npy", "output": tmp_path / "y.npy"}
    assert run(monkeypatch, command, model="inception_resnet_v2", classes=3, **arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1


def test_the_module_runs_alone(tmp_path):
    arguments = ["--model=resnet18", "--weights=none", "--input=none", f"--output={tmp_path}/no/y.npy"]
    process = subprocess.run(
        [sys.executable, "-m", "research.models.pretrained", *arguments], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2 and "the folder of" in process.stderr and process.stderr.count("\n") == 1


def test_checkpoints(checkpoint, tmp_path):
    folder, expected = checkpoint
    trial = folder / "checkpoints" / "trial"
    for path in (folder, trial, trial / "7"):
        pretrained = plan("simple_cnn", "", str(path))
        assert pretrained.path == trial / "7" and pretrained.file.format == "checkpoint (averaged weights)"
        assert pretrained.preprocessing == {"kind": "fixed", "mean": [0.5], "std": [0.25]}
        assert pretrained.settings == {"widths": [8, 5], "head": (6,), "head_batch_norm": False}
    model = registry.create("simple_cnn", num_classes=4, head=(6,), widths=(8, 5))
    variables, report = pretrained.load(model, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert report["replaced_head"] == "" and report["unused"] == [] and len(report["sha256"]) == 64
    newest, _ = plan("simple_cnn", "", str(trial / "9")).load(model, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 2, rtol=1e-6), newest, expected)


def test_damaged_and_missing_checkpoints(checkpoint, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(checkpoint[0], copy)
    data = max((copy / "checkpoints/trial/7/state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(UserError, match="the checkpoint is damaged .*: changed"):
        plan("simple_cnn", "", str(copy))
    shutil.copytree(copy / "checkpoints/trial", copy / "checkpoints/other")
    with pytest.raises(UserError, match="has the checkpoints of 2 trials; choose one"):
        plan("simple_cnn", "", str(copy))


def test_the_record_of_a_run_with_pretrained_weights(checkpoint, tmp_path):
    """Such a run's config leaves variant and normalisation to the weights; its weights.json says what they were."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(checkpoint[0], copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"]["normalize"] = "auto"
    (copy / "config.json").write_text(json.dumps(config))
    record = {"trial": {"variant": "keras", "preprocessing": {"kind": "caffe"}}}
    (copy / "weights.json").write_text(json.dumps(record))
    metadata = read(copy).metadata
    assert metadata["variant"] == "keras" and json.loads(metadata["preprocessing"]) == {"kind": "caffe"}


def test_export_for_timm(monkeypatch, tmp_path, file, capsys):
    """The same arrays as the file that was read, counters included."""
    path = tmp_path / "out.safetensors"
    assert run(monkeypatch, export, weights=file, model="resnet18", output=path) == 0
    original, exported = read(file), read(path)
    assert set(exported.arrays) == set(original.arrays)
    for name, array in original.arrays.items():
        assert exported.arrays[name].shape == array.shape and exported.arrays[name].dtype == array.dtype
        if array.dtype == np.float32:
            np.testing.assert_array_equal(exported.read(name), original.read(name))
    again = plan("resnet18", "", str(path))
    assert again.variant == "timm" and again.preprocessing["mean"] == [0.485, 0.456, 0.406]


def test_export_under_own_names(monkeypatch, tmp_path, checkpoint, capsys):
    folder, expected = checkpoint
    path = tmp_path / "out.safetensors"
    arguments = {"weights": folder, "model": "simple_cnn", "output": path}
    assert run(monkeypatch, export, **arguments) == 2
    assert "timm does not have simple_cnn; export it with --names=own." in capsys.readouterr().err
    assert run(monkeypatch, export, names="own", **arguments) == 0
    pretrained = plan("simple_cnn", "", str(path))
    assert pretrained.settings["head"] == (6,) and pretrained.preprocessing["std"] == [0.25]
    variables, _ = pretrained.load(registry.create("simple_cnn", num_classes=4, head=(6,), widths=(8, 5)), expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_layers_without_a_name_in_timm():
    entry, _ = registry.find("resnet18")
    variables = weights.shapes("resnet18", head=(4,))
    with pytest.raises(UserError, match="timm has no name for head/dense_1 of resnet18"):
        filled = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
        export.torch_arrays(entry, "timm", weights.call_order("resnet18", head=(4,)), filled)
    entry, _ = registry.find("resnet50")
    with pytest.raises(UserError, match="timm does not have the variant keras of resnet50"):
        export.torch_arrays(entry, "keras", (), {})


def test_call_order_is_that_of_the_calls():
    class Backbone(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            late, early = nn.Dense(2, name="a_late"), nn.Dense(2, name="b_early")
            return late(nn.relu(early(images.mean((1, 2))))), {"maps": images}

    from research.models.call_order import call_order
    from research.models.classifier import Classifier
    from research.models.heads import Head

    assert call_order(Classifier(Backbone(), Head(3)))[0] == ("backbone/b_early", "backbone/a_late", "head/logits")
