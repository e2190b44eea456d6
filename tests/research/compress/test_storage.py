"""The sparse file form against bits counted by hand, and against damage."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from input_pipeline.cli import UserError
from research.compress import storage


def arrays():
    random = np.random.default_rng(0)
    sparse = random.normal(size=(3, 3, 5, 7)).astype(np.float32)
    sparse[random.random(sparse.shape) < 0.7] = 0
    integers = random.integers(-127, 128, (11, 13)).astype(np.int8)
    integers[random.random(integers.shape) < 0.5] = 0
    return {
        "params/conv/kernel": sparse,
        "int8/dense/kernel": integers,
        "params/conv/bias": random.normal(size=7).astype(np.float32),
        "int8/dense/input_scale": np.float32(0.25),
        "params/zero/kernel": np.zeros((4, 4), np.float32),
        "params/empty": np.zeros((0, 3), np.float32),
    }


def test_files_come_back_bit_for_bit(tmp_path):
    wanted = arrays()
    size = storage.write(tmp_path / "a.safetensors", wanted, {"note": "x"})
    found, metadata = storage.read(tmp_path / "a.safetensors")
    assert size == (tmp_path / "a.safetensors").stat().st_size > storage.stored_bytes(wanted)
    assert metadata == {"note": "x"} and sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_bytes_are_values_and_one_bit_each():
    wanted = arrays()
    kernel, integers = wanted["params/conv/kernel"], wanted["int8/dense/kernel"]
    expected = 4 * np.count_nonzero(kernel) + (kernel.size + 7) // 8 + np.count_nonzero(integers) + (143 + 7) // 8
    assert storage.stored_bytes(wanted) == expected + 4 * 7 + 4 + 2  # the zeros: 16 bits and no values


@pytest.mark.parametrize("dtype, share", [(np.float32, 1 / 32), (np.int8, 1 / 8)])
def test_the_sparse_form_is_taken_where_it_is_smaller(dtype, share):
    size = 4096
    for zeros in (0, int(share * size), int(share * size) + 1, size // 2):
        array = np.ones(size, dtype)
        array[:zeros] = 0
        stored = storage.encode({"a": array})
        assert (set(stored) == {"a"}) == (zeros <= share * size)
        assert storage.stored_bytes({"a": array}) <= array.nbytes


def test_another_reader_understands_the_file(tmp_path):
    """The documented form, taken apart bit by bit from what the safetensors package reads."""
    kernel = arrays()["params/conv/kernel"]
    storage.write(tmp_path / "a.safetensors", {"k": kernel}, {})
    stored = load_file(tmp_path / "a.safetensors")
    values, flat = iter(stored["k:values"]), np.zeros(kernel.size, np.float32)
    for place in range(kernel.size):
        if stored["k:mask"][place // 8] >> (7 - place % 8) & 1:
            flat[place] = next(values)
    np.testing.assert_array_equal(flat.reshape(kernel.shape), kernel)


def test_damage_is_refused(tmp_path):
    stored = storage.encode({"k": arrays()["params/conv/kernel"]})
    shapes = {"k": (3, 3, 5, 7)}
    for broken, wrong in (
        ({**stored, "k:values": stored["k:values"][:-1]}, shapes),
        ({**stored, "k:mask": stored["k:mask"][:-2]}, shapes),
        ({"k:values": stored["k:values"]}, shapes),
        ({**stored, "k:mask": stored["k:mask"].astype(np.float32)}, shapes),
        (stored, {"k": (3, 3, 5, 8)}),
    ):
        with pytest.raises(UserError, match="mask of k"):
            storage.decode(broken, wrong)
    with pytest.raises(UserError, match="does not exist"):
        storage.read(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    storage.write(path, arrays(), {})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError):
        storage.read(path)
