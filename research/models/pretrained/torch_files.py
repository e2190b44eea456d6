"""What is in PyTorch's `.pth`, `.pt` and `.bin` files, without PyTorch and without executing them?

Since 1.6 they are zip archives of a pickle, `data.pkl`, and one entry per storage; before, a sequence of pickles and
then the storages. `pickle_values` reads the pickles; they may name tensors, storages and dictionaries, no more.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from research.models.pretrained import pickle_values
from research.models.pretrained.pickle_values import Refused
from research.models.pretrained.weight_file import (
    DAMAGE,
    MAX_ARRAYS,
    Array,
    WeightFile,
    checked_shape,
    one_line,
    refuse,
    state_dict_names,
)

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
REMEDY = "where you trust it, save its state dict alone, `torch.save(model.state_dict(), FILE)` or as safetensors"
STORAGES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Numbers of a storage from `offset` on, `strides` apart, both in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """How many numbers of the storage lie from the first to the last of the tensor."""
        if not math.prod(self.shape):
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise Refused("a tensor has no storage")
    tensor = _Tensor(storage, checked_shape([offset])[0], checked_shape(shape), checked_shape(strides))
    if tensor.offset + tensor.extent > storage.count:
        raise Refused(f"a tensor {tensor.shape} reaches over the end of its storage")
    if tensor.extent > 4 * math.prod(tensor.shape) + 2**20:
        raise Refused(f"a tensor {tensor.shape} is spread over {tensor.extent:,} numbers")
    return tensor


def _parameter(value: Any, *_: Any) -> Any:
    return value


def _size(shape: Any) -> tuple:
    return tuple(shape)


def _ordered(*arguments: Any) -> dict:
    if any(arguments):
        raise Refused("an OrderedDict is made from a list")
    return {}


CALLS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}


def _storage(identifier: Any) -> _Storage:
    kind, name, key, _, count, *view = identifier
    if kind != "storage" or any(view) or not isinstance(key, str) or not re.fullmatch(r"\w+", key):
        raise Refused("it has an unknown persistent id")
    return _Storage(np.dtype(STORAGES[name.name]), key, checked_shape([count])[0])


def _load(data: Any) -> Any:
    return pickle_values.read(data, CALLS, STORAGES.__contains__, _storage)


def read(path: pathlib.Path) -> WeightFile:
    """Reads the pickle of a zip archive of PyTorch.

    Raises:
      UserError: it is damaged, or wants something else than tensors; names it.
    """
    with _refusals(path):
        archive = zipfile.ZipFile(path)
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused("the archive holds no data.pkl and no model.weights.h5")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist() and _entry(archive, folder + "byteorder", 16) != b"little":
            raise Refused("it was written on a big-endian machine")
        state = _load(_entry(archive, pickles[0], pickle_values.MAX_BYTES))

    def reader(storage: _Storage, offset: int, count: int) -> np.ndarray:
        entry = archive.getinfo(f"{folder}data/{storage.key}")
        width = storage.dtype.itemsize
        if entry.file_size != storage.count * width:
            raise Refused(f"the storage {storage.key} has {entry.file_size} bytes for {storage.count} numbers")
        with archive.open(entry) as file:
            file.seek(offset * width)
            return np.frombuffer(file.read(count * width), storage.dtype)

    return _weights(path, "PyTorch", state, reader)


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused(f"{name} is longer than {limit:,} bytes")
    return data


def read_legacy(path: pathlib.Path) -> WeightFile:
    """Reads the pickles of a file of PyTorch before 1.6, or of one saved without zip.

    They are: a magic number, a version, the sizes of types, the object, and the keys of the storages; then each
    storage as its count in eight bytes and its numbers.

    Raises:
      UserError: see `read`.
    """
    size = os.path.getsize(path)
    with _refusals(path), open(path, "rb") as file:
        with io.BytesIO(file.read(4 * pickle_values.MAX_BYTES)) as head:
            magic, _, system, state, keys = (_load(head) for _ in range(5))
            position = head.tell()
        if magic != MAGIC or not system.get("little_endian", True):
            raise Refused("it is not from PyTorch on a little-endian machine")
        storages = {tensor.storage.key: tensor.storage for tensor in _tensors(state).values()}
        places = {}
        for key in keys:
            file.seek(position)
            if position + 8 > size:
                raise Refused("it is truncated")
            count = int.from_bytes(file.read(8), "little")
            if key not in storages or storages[key].count != count:
                raise Refused(f"the storage {key} is unknown or of another size than its tensors say")
            places[key] = position + 8
            position += 8 + count * storages[key].dtype.itemsize
        if position > size:
            raise Refused("it is truncated")

    def reader(storage: _Storage, offset: int, count: int) -> np.ndarray:
        place = places[storage.key] + offset * storage.dtype.itemsize
        return np.fromfile(path, storage.dtype, count, offset=place)

    return _weights(path, "PyTorch before 1.6", state, reader)


@contextlib.contextmanager
def _refusals(path: pathlib.Path):
    """Turns what a damaged or hostile file raises into the sentence for the user."""
    try:
        yield
    except Refused as error:
        wants = "it wants" in str(error) or "instruction" in str(error)
        reason = f"it holds more than tensors, {error}, which was not executed" if wants else str(error)
        raise (refuse(path, reason, REMEDY) if wants else refuse(path, reason)) from error
    except DAMAGE as error:
        raise refuse(path, f"it is damaged ({type(error).__name__}: {one_line(error)})") from error


def _tensors(state: Any) -> dict[str, _Tensor]:
    """The state dict inside the wrappers that training scripts put around it."""
    for _ in range(3):
        if not isinstance(state, dict):
            raise Refused("it holds no state dict")
        inner = [key for key in WRAPPERS if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = state[inner[0]]
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, _Tensor)}
    if not tensors:
        raise Refused("it holds no state dict")
    if len(tensors) > MAX_ARRAYS:
        raise Refused(f"it holds {len(tensors):,} tensors")
    return tensors


def _weights(path: pathlib.Path, kind: str, state: Any, reader: Callable) -> WeightFile:
    def array(tensor: _Tensor) -> Array:
        def values() -> np.ndarray:
            numbers = reader(tensor.storage, tensor.offset, tensor.extent)
            if len(numbers) != tensor.extent:
                raise Refused("it is truncated")
            steps = [step * tensor.storage.dtype.itemsize for step in tensor.strides]
            return np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps, writeable=False)

        return Array(tensor.shape, tensor.storage.dtype, values)

    with _refusals(path):
        arrays = {name: array(tensor) for name, tensor in _tensors(state).items()}
    return WeightFile(path, kind, "torch", state_dict_names(arrays))
