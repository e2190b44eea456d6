"""What is a file of weights, once its header is read?"""

import dataclasses
import functools
import hashlib
import lzma
import math
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from input_pipeline.cli import UserError

MAX_ARRAYS = 20_000  # ten times what the largest of the networks has
# What zipfile, h5py and the readers here raise on damaged files.
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError, lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
FLOATING = tuple(np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that lies in a file.

    Attributes:
      shape: as the header declares it; nothing of that size has been allocated.
      dtype: of the stored numbers.
      read: reads it, in `shape`; an error of `DAMAGE` if the bytes are damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The arrays of a file by name; none is read yet.

    Attributes:
      path: the file, or the folder of a checkpoint.
      format: such as "safetensors" or "Keras .weights.h5".
      naming: "torch" (state-dict names), "keras" ("layer/0", "layer/1", ...: the variables of a layer in Keras's order)
        or "own" ("params/backbone/conv1/kernel").
      arrays: by name, in the order of the file.
      metadata: text beside the arrays.
    """

    path: pathlib.Path
    format: str
    naming: str
    arrays: Mapping[str, Array]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file, or of the manifest of a checkpoint, which holds the SHA-256 of each of its files."""
        path = self.path / "manifest.json" if self.path.is_dir() else self.path
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, name: str) -> np.ndarray:
        """An array as float32 in its shape.

        Raises:
          UserError: it is damaged, holds no floating-point numbers, or holds NaN or infinity.
        """
        array = self.arrays[name]
        if array.dtype.newbyteorder("=") not in FLOATING:
            raise refuse(self.path, f"the array {name} holds {array.dtype}, not floating-point numbers")
        try:
            values = np.asarray(array.read()).reshape(array.shape)
        except DAMAGE as error:
            raise refuse(self.path, f"the array {name} is damaged ({error})") from error
        with np.errstate(over="ignore"):
            values = np.asarray(values, np.float32)
        if not np.isfinite(values).all():
            raise refuse(self.path, f"the array {name} {array.shape} holds NaN or infinity")
        return values


def refuse(
    path: pathlib.Path, reason: str, remedy: str = "get the file again or choose another one", limit: int = 300
) -> UserError:
    """The error of a weight file that cannot be used; hostile files reach into `reason`, which is cut at `limit`."""
    return UserError(f"the weights {path} cannot be used: {one_line(reason, limit)}; {remedy}.")


def one_line(text: object, limit: int = 200) -> str:
    """A text without line breaks and control characters, cut at `limit`."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def checked_shape(shape: object) -> tuple[int, ...]:
    """A declared shape as a tuple; ValueError if it is none (negative, not integer, more than eight axes)."""
    if not isinstance(shape, (list, tuple)) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{str(shape)[:60]!r} is no shape")
    if math.prod(shape) > 2**40:
        raise ValueError(f"the shape {tuple(shape)} is too large")
    return tuple(shape)


def state_dict_names(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """State-dict names as current models have them.

    Without what `DataParallel` ("module.") and `torch.compile` put before all of them, and with `norm1.` for the
    `norm.1.` of DenseNets from before PyTorch 0.4, the official ones among them.
    """
    for prefix in ("_orig_mod.", "module.", "model."):
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): array for name, array in arrays.items()
    }
