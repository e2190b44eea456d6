"""Is our BERT the one of transformers, filled from its files? The numbers are those of make_bert_golden.py."""

import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models.pretrained import safetensors_files
from research.text import bert_weights, encoders

FOLDER = pathlib.Path(__file__).with_name("bert")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


def shapes(encoder):
    ids = jax.ShapeDtypeStruct((1, 3), np.int32)
    return jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), ids)["params"]


def arrays_of_file():
    file = safetensors_files.read(FOLDER / "model.safetensors")
    return {name: np.array(array.read()) for name, array in file.arrays.items()}


def compare(params, golden):
    encoder = encoders.create("bert", folder=str(FOLDER))
    found = jax.jit(functools.partial(encoder.apply, train=False))({"params": params}, golden["ids"])
    there = golden["ids"] != 0
    np.testing.assert_allclose(found.features, golden["pooled"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found.sequence)[there], golden["sequence"][there], rtol=0, atol=1e-5)


def test_outputs_equal_transformers(golden):
    encoder = encoders.create("bert", vocabulary=55, folder=str(FOLDER))
    params, report = bert_weights.load(str(FOLDER), shapes(encoder))
    assert (report["loaded"], report["parameters"], report["missing"], report["unused"]) == (55, 16008, [], [])
    assert report["format"] == "safetensors" and len(report["sha256"]) == 64
    assert np.abs(golden["sequence"]).max() > 1 and np.abs(golden["pooled"]).max() > 0.5
    compare(params, golden)
    compare(bert_weights.load(str(FOLDER / "model.safetensors"), shapes(encoder))[0], golden)


def test_names_of_other_models_and_of_older_files_are_known(golden, tmp_path):
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    arrays = {}
    for name, value in arrays_of_file().items():
        for new, before in old.items():
            name = name.replace(new, before)
        arrays[f"bert.{name}"] = value
    arrays["cls.predictions.bias"] = np.zeros(61, np.float32)
    arrays["bert.embeddings.position_ids"] = np.arange(17)[None]
    safetensors_files.write(tmp_path / "model.safetensors", arrays, {"format": "pt"})
    params, report = bert_weights.load(str(tmp_path), shapes(encoders.create("bert", folder=str(FOLDER))))
    assert report["unused"] == ["bert.embeddings.position_ids", "cls.predictions.bias"]
    compare(params, golden)


def test_a_missing_pooler_stays_as_it_was(tmp_path):
    arrays = {name: value for name, value in arrays_of_file().items() if not name.startswith("pooler")}
    safetensors_files.write(tmp_path / "model.safetensors", arrays, {})
    encoder = encoders.create("bert", folder=str(FOLDER))
    before = shapes(encoder) | {"pooler": {"kernel": np.ones((24, 24)), "bias": np.ones(24)}}
    params, report = bert_weights.load(str(tmp_path), before)
    assert sorted(report["missing"]) == ["pooler/bias", "pooler/kernel"] and report["loaded"] == 53
    assert params["pooler"]["kernel"] is before["pooler"]["kernel"]


def test_wrong_files_are_refused(tmp_path):
    encoder, path = encoders.create("bert", folder=str(FOLDER)), tmp_path / "model.safetensors"
    arrays = arrays_of_file()
    first = "encoder.layer.0.attention.self.query.weight"
    changes = [
        ({first: None}, "has no encoder.layer.0.attention.self.query.weight"),
        ({first: np.zeros((24, 23), np.float32)}, r"query.weight has the shape \(24, 23\)"),
        ({first: np.full((24, 24), np.nan, np.float32)}, "holds NaN"),
        ({first: np.zeros((24, 24), np.int32)}, "not floating-point"),
        ({"encoder.layer.3.output.dense.weight": np.zeros((2, 2), np.float32)}, "4 layers, not 3"),
    ]
    for change, message in changes:
        changed = {name: value for name, value in (arrays | change).items() if value is not None}
        safetensors_files.write(path, changed, {})
        with pytest.raises(UserError, match=message):
            bert_weights.load(str(tmp_path), shapes(encoder))
    path.write_bytes((FOLDER / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be used"):
        bert_weights.load(str(tmp_path), shapes(encoder))
    path.unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model.bin"):
        bert_weights.load(str(tmp_path), shapes(encoder))
    shutil.copy(FOLDER / "config.json", tmp_path)
    wider = encoders.create("bert", vocabulary=61, width=48, layers=3, heads=3, intermediate=40, positions=17)
    with pytest.raises(UserError, match="has the shape"):
        bert_weights.load(str(FOLDER), shapes(wider))
