"""How many bytes does a compressed network take, and in which file?

A file is a plain safetensors file, without any general compression (no gzip). Each array stands in it in the smaller
one of two forms:

    dense    NAME                         all n entries
    sparse   NAME:values and NAME:mask    the entries that are not zero, in row-major order, and one bit for each of
                                          the n entries, the first one in the highest bit of the first byte; the
                                          array's shape stands in the header

At float32 the sparse form is smaller from a sparsity of 1/32 on, at int8 from 1/8 on. The bytes of a network are those
of these arrays: what a program must hold to run it, compared with 4 bytes for each parameter and running statistic of
the ledger's other rows. The file has the header (names, shapes, types) on top, as every format has.
"""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from input_pipeline.cli import UserError
from research.models.pretrained import safetensors_files

VALUES, MASK = ":values", ":mask"
_SHAPES = "sparse_shapes"


def encode(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as they are stored: each in the smaller form."""
    stored = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        present = array != 0
        if int(present.sum()) * array.itemsize + -(-array.size // 8) < array.nbytes:
            stored[name + VALUES] = array[present]
            stored[name + MASK] = np.packbits(present)
        else:
            stored[name] = array
    return stored


def decode(stored: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays that `encode` was given.

    Args:
      stored: as `encode` gives it.
      shapes: of the arrays in sparse form.

    Raises:
      UserError: a mask fits neither its shape nor its values.
    """
    arrays = {name: np.asarray(value) for name, value in stored.items() if not name.endswith((VALUES, MASK))}
    for name, shape in shapes.items():
        values, mask = stored.get(name + VALUES), stored.get(name + MASK)
        size = int(np.prod(shape))
        bits = np.unpackbits(mask)[:size].astype(bool) if mask is not None and mask.dtype == np.uint8 else np.zeros(0)
        if values is None or bits.size != size or int(bits.sum()) != values.size:
            raise UserError(f"the mask of {name} fits neither its shape nor its values; make the file again.")
        array = np.zeros(size, values.dtype)
        array[bits] = values
        arrays[name] = array.reshape(shape)
    return arrays


def stored_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the arrays in the form in which they are stored, without the file's header."""
    return sum(array.nbytes for array in encode(arrays).values())


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> int:
    """Writes a file atomically; returns its size in bytes, header included."""
    stored = encode(arrays)
    sparse = {name: list(np.shape(value)) for name, value in arrays.items() if name + MASK in stored}
    safetensors_files.write(path, stored, {**metadata, "names": "own", _SHAPES: json.dumps(sparse)})
    return os.path.getsize(path)


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata that `write` was given.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `python -m research.compress` again.")
    file = safetensors_files.read(path)
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(file.metadata[_SHAPES]).items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} was not written by research.compress; name one of its files.") from error
    arrays = decode({name: np.array(entry.read()) for name, entry in file.arrays.items()}, shapes)
    return arrays, {key: text for key, text in file.metadata.items() if key not in (_SHAPES, "names")}
