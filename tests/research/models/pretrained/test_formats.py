"""Is a file of weights read as the library that wrote it meant, whatever its format?"""

import hashlib
import shutil

import h5py
import ml_dtypes
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models.pretrained import read, safetensors_files
from tests.research.models.pretrained.weights import DATA, write_safetensors

FILES = {
    "small.weights.h5": ("Keras .weights.h5", "keras"),
    "small.keras": (".keras", "keras"),
    "small.h5": ("Keras .h5", "keras"),
    "small.pth": ("PyTorch", "torch"),
    "small_protocol_4.pth": ("PyTorch", "torch"),
    "small_old.pth": ("PyTorch before 1.6", "torch"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_libraries(name, tmp_path):
    """Also strided, half and bfloat16 tensors, layers of a model inside the model, and a name that says nothing."""
    path = shutil.copy(DATA / name, tmp_path / "weights")
    file = read(path)
    assert (file.format, file.naming) == FILES[name]
    expected = np.load(DATA / f"small_{file.naming}.npz")
    counters = {"bn.num_batches_tracked", "normalization/2"}
    assert set(file.arrays) - counters == set(expected)
    for key in expected:
        assert file.arrays[key].shape == expected[key].shape
        values = file.read(key)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected[key])
    assert file.sha256 == hashlib.sha256((DATA / name).read_bytes()).hexdigest()


def test_a_weights_only_h5_with_old_attributes(tmp_path):
    """Keras before 3: bytes in fixed-width attributes, names cut into pieces, slashes in DenseNet's layer names."""
    arrays = {
        "conv1/conv": ["conv1/conv/kernel:0"],
        "conv1/bn": ["conv1/bn/gamma:0", "conv1/bn/beta:0"],
        "relu": [],
        "block1_conv1": ["block1_conv1_W_1:0", "block1_conv1_b_1:0"],
        "fc1000": ["fc1000_1/kernel:0", "fc1000_1/bias:0"],
    }
    with h5py.File(tmp_path / "old.h5", "w") as file:
        layers = [name.encode() for name in arrays]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = np.array(layers[:2]), np.array(layers[2:])
        number = 0
        for layer, weights in arrays.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([weight.encode() for weight in weights], dtype="S40")
            for weight in weights:
                group[weight] = np.full((2, number + 1), number, ">f4")
                number += 1
    file = read(tmp_path / "old.h5")
    assert list(file.arrays) == [
        "conv1_conv/0", "conv1_bn/0", "conv1_bn/1", "block1_conv1/0", "block1_conv1/1", "fc1000/0", "fc1000/1",
    ]  # fmt: skip
    for number, name in enumerate(file.arrays):
        np.testing.assert_array_equal(file.read(name), np.full((2, number + 1), number))


def test_layers_without_names_take_those_of_the_config(tmp_path):
    """Early versions of Keras 3 do not name the layers beside the weights; `.keras` has them in its config."""
    import zipfile

    with zipfile.ZipFile(DATA / "small.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "model.weights.h5").write_bytes(members["model.weights.h5"])
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        for layer in ("conv2d", "dense", "dense_1"):
            del file[f"layers/{layer}/vars"].attrs["name"]
    with pytest.raises(UserError, match=r"layers/conv2d has no name"):
        read(tmp_path / "model.weights.h5")
    members["model.weights.h5"] = (tmp_path / "model.weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "nameless.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    file, expected = read(tmp_path / "nameless.keras"), np.load(DATA / "small_keras.npz")
    for name in ("conv2d_3/0", "half/0", "predictions/1"):
        np.testing.assert_array_equal(file.read(name), expected[name])


def test_safetensors_of_every_type(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 5))
    types = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
    arrays = {np.dtype(t).name: values.astype(t) for t in types}
    arrays |= {"scalar": np.float32(2.5).reshape(()), "empty": np.zeros((0, 3), np.float32), "count": np.array(3)}
    file = read(write_safetensors(tmp_path / "x.bin", {f"module.{name}": array for name, array in arrays.items()}))
    assert list(file.arrays) == list(arrays)  # without the prefix that all share
    for name, array in arrays.items():
        if name != "count":
            np.testing.assert_array_equal(file.read(name), array.astype(np.float32))


def test_written_safetensors_open_in_their_own_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.array(5), "c": np.ones(3, np.float16)}
    safetensors_files.write(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    read_back = library.load_file(tmp_path / "x.safetensors")
    assert set(read_back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_back[name], array)
    file = read(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    np.testing.assert_array_equal(file.read("b"), arrays["b"])


def test_densenets_old_names(tmp_path):
    arrays = {"features.denseblock1.denselayer2.norm.1.weight": np.ones(3, np.float32), "classifier.bias": np.ones(2)}
    file = read(write_safetensors(tmp_path / "x.safetensors", arrays))
    assert list(file.arrays) == ["features.denseblock1.denselayer2.norm1.weight", "classifier.bias"]


def test_only_what_is_asked_for_is_read(tmp_path):
    """A file of 400 MB of which one array is taken."""
    path = tmp_path / "large.safetensors"
    write_safetensors(path, {"small": np.arange(3, dtype=np.float32), "large": np.zeros(0, np.float32)})
    header = b'{"small":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"large":{"dtype":"F32","shape":[100000000],'
    header += b'"data_offsets":[12,400000012]}}'
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + np.arange(3, dtype=np.float32).tobytes())
        file.truncate(8 + len(header) + 400000012)
    np.testing.assert_array_equal(read(path).read("small"), [0, 1, 2])


def test_compressed_and_compact_arrays(tmp_path):
    """As `h5repack` leaves them: their bytes do not lie in the file as they are."""
    values = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "predictions"
        group.create_dataset("0", data=values, chunks=(7, 11), compression="gzip", shuffle=True)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((30,))
        data = h5py.h5d.create(group.id, b"1", h5py.h5t.IEEE_F64BE, space, layout)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, values[3].astype(np.float64))
    loaded = read(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(loaded.read("predictions/0"), values)
    np.testing.assert_array_equal(loaded.read("predictions/1"), values[3])
