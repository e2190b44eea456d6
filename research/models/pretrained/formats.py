"""Which format does a weight file have? Its content says so, not its name."""

import os
import pathlib

from input_pipeline.cli import UserError
from research.models.pretrained import checkpoints, keras_files, safetensors_files, torch_files
from research.models.pretrained.weight_file import WeightFile, refuse


def read(path: str | os.PathLike, suggestion: str = "") -> WeightFile:
    """Reads the header of a file of weights, or of a checkpoint folder.

    Keras `.weights.h5`, `.h5` and `.keras`, safetensors, PyTorch's `.pth` (zip or older), and this project's
    checkpoints. Nothing in the file is executed.

    Args:
      path: file or folder.
      suggestion: where to get one, for the message that there is none.

    Raises:
      UserError: it is missing, unreadable, damaged or none of these.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return checkpoints.read(path)
    if not path.exists():
        raise UserError(
            f"there is no weight file {path}; give the path of one that you downloaded"
            + (f" ({suggestion})." if suggestion else ".")
        )
    if not path.is_file():
        raise refuse(path, "it is no regular file")
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise refuse(path, "it is empty")
    if start.startswith(keras_files.SIGNATURE):
        return keras_files.read(path)
    if start.startswith(b"PK\x03\x04"):
        return keras_files.read_zipped(path) if keras_files.is_zipped(path) else torch_files.read(path)
    if safetensors_files.looks_like(start):
        return safetensors_files.read(path)
    if start.startswith(torch_files.LEGACY_START):
        return torch_files.read_legacy(path)
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise refuse(path, "it is a pickle, which could run any program, and not one of PyTorch's", torch_files.REMEDY)
    raise refuse(
        path,
        "it is none of Keras .weights.h5, .h5 or .keras, .safetensors, PyTorch .pth, or a checkpoint folder",
    )
