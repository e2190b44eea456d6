"""What is in a `.safetensors` file, and how is one written?

The layout is eight bytes with the length of the header, the header in JSON, and the arrays one after another. The file
is mapped, not read: an array costs its pages when it is used. (The `safetensors` package reads bfloat16 only through
PyTorch, and copies.)
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from input_pipeline import cli
from research.models.pretrained.weight_file import (
    MAX_ARRAYS,
    Array,
    WeightFile,
    checked_shape,
    refuse,
    state_dict_names,
)

MAX_HEADER = 4 * 2**20  # bytes; that of a network with 2,000 arrays takes 0.25 MB
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def looks_like(start: bytes) -> bool:
    """Whether the first nine bytes of a file could be those of this format."""
    return len(start) > 8 and start[8:9] == b"{"


def read(path: pathlib.Path) -> WeightFile:
    """Reads the header.

    Raises:
      UserError: the header is too long, no JSON, or its arrays do not cover the rest of the file exactly once.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise refuse(
                path, f"its header claims {length:,} bytes, the file has {size:,} and {MAX_HEADER:,} may be used"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ holds something else than text")
        arrays = _arrays(path, header, 8 + length, size - 8 - length)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise refuse(path, f"its safetensors header is damaged ({error})") from error
    if metadata.get("names") == "own":
        return WeightFile(path, "safetensors", "own", arrays, metadata)
    return WeightFile(path, "safetensors", "torch", state_dict_names(arrays), metadata)


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands there twice")
    return result


def _arrays(path: pathlib.Path, header: dict, start: int, size: int) -> dict[str, Array]:
    if len(header) > MAX_ARRAYS:
        raise ValueError(f"{len(header):,} arrays are too many")
    data = np.memmap(path, np.uint8, "r", start, (size,)) if size else np.zeros(0, np.uint8)
    arrays, spans = {}, []
    for name, entry in header.items():
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} has the keys {sorted(entry)}")
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the unknown type {entry['dtype']!r}")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), checked_shape(entry["shape"])
        first, last = entry["data_offsets"]
        if (
            type(first) is not int
            or type(last) is not int
            or first < 0
            or last - first != math.prod(shape) * dtype.itemsize
        ):
            raise ValueError(f"{name} {shape} of {dtype} does not take the bytes {first} to {last}")
        spans.append((first, last, name))
        arrays[name] = Array(shape, dtype, _reader(data, first, last, dtype, shape))
    position = 0
    for first, last, name in sorted(spans):
        if first != position:
            raise ValueError(f"{name} starts at byte {first} where {position} is due, so arrays overlap or leave a gap")
        position = last
    if position != size:
        raise ValueError(f"its arrays end at byte {position} and the file at {size}, it is truncated or has a tail")
    return arrays


def _reader(data, first, last, dtype, shape):
    return lambda: data[first:last].view(dtype).reshape(shape)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays (of a type in `DTYPES`) atomically."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header, position, parts = {"__metadata__": dict(metadata)}, 0, []
    # The widest types first keeps every array aligned.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
        parts.append(np.ascontiguousarray(array).tobytes())
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    cli.atomic_write(path, b"".join([struct.pack("<Q", len(text)), text, *parts]))
