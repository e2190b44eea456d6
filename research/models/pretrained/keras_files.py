"""What is in the weight files of Keras: `.weights.h5`, the legacy `.h5`, and `.keras`?

No Keras object is made, so nothing that a file says is executed. Arrays are named "layer/0", "layer/1", ... in the
order of the layer's weights, in which Keras itself assigns them. The HDF5 library only runs in `hdf5_listing`.
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

import ml_dtypes
import numpy as np

from research.models.pretrained.weight_file import DAMAGE, Array, WeightFile, checked_shape, refuse

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIPPED_WEIGHTS = "model.weights.h5"
MAX_CONFIG = 16 * 2**20  # bytes of config.json
MAX_EXPANSION = 20  # times; float32 weights hardly compress
TIMEOUT = 300  # seconds; a busy machine takes one
_LISTING = str(pathlib.Path(__file__).with_name("hdf5_listing.py"))


def read(path: pathlib.Path) -> WeightFile:
    """Reads the structure of an HDF5 file of weights, or of a whole model in the legacy format.

    Raises:
      UserError: it is damaged, no weight file, or has links or data sets that lead out of the file.
    """
    return _read(path, str(path), {})


def is_zipped(path: pathlib.Path) -> bool:
    """Whether a zip archive is one of Keras."""
    try:
        with zipfile.ZipFile(path) as archive:
            return ZIPPED_WEIGHTS in archive.namelist()
    except DAMAGE:
        return False


def read_zipped(path: pathlib.Path) -> WeightFile:
    """Reads the structure of a `.keras` archive.

    Raises:
      UserError: it is damaged, or unpacks to far more than it holds.
    """
    with tempfile.NamedTemporaryFile(suffix=".weights.h5") as unpacked:
        try:
            with zipfile.ZipFile(path) as archive:
                entry = archive.getinfo(ZIPPED_WEIGHTS)
                if entry.file_size > MAX_EXPANSION * entry.compress_size + 2**20:
                    sizes = f"from {entry.compress_size:,} to {entry.file_size:,} bytes"
                    raise ValueError(f"{entry.filename} unpacks {sizes}")
                with archive.open(entry) as source:
                    shutil.copyfileobj(source, unpacked, 2**20)  # which also checks the checksum
                names = _layer_names(archive)
            unpacked.flush()
        except DAMAGE as error:
            raise refuse(path, f"its archive is damaged ({error})") from error
        return _read(path, unpacked.name, names, ".keras")


def _layer_names(archive: zipfile.ZipFile) -> dict[str, str]:
    """From "layers/conv2d_3" to the name of that layer by `config.json`, for files whose weights do not say it."""
    if "config.json" not in archive.namelist() or archive.getinfo("config.json").file_size > MAX_CONFIG:
        return {}
    config = json.loads(archive.read("config.json"))
    names, counts = {}, {}
    try:
        for layer in config["config"]["layers"]:
            kind = _snake_case(layer["class_name"])
            number = counts[kind] = counts.get(kind, -1) + 1
            names[f"layers/{kind}_{number}" if number else f"layers/{kind}"] = str(layer["config"]["name"])
    except (KeyError, TypeError):
        return {}
    return names


def _snake_case(name: str) -> str:
    """ "SeparableConv2D" to "separable_conv2d", as keras.src.utils.naming has it."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _read(path: pathlib.Path, source: str, names: dict[str, str], kind: str = "") -> WeightFile:
    """Lists the arrays of the HDF5 file `source` in a process of its own and maps them."""
    size = os.path.getsize(source)
    with tempfile.NamedTemporaryFile() as spill:
        found = _listing(path, source, spill.name, names)
        file, spilled = _mapped(source), _mapped(spill.name)
    arrays, counts = {}, {}
    try:
        for owner, shape, dtype, place, is_spilled in found["arrays"]:
            shape, dtype = checked_shape(shape), np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            data = spilled if is_spilled else file
            if place + math.prod(shape) * dtype.itemsize > len(data):
                raise ValueError(f"{owner} {shape} ends behind the file of {size:,} bytes")
            layer = owner.replace("/", "_")  # DenseNet's official files have "conv1/bn" where Keras 3 has "conv1_bn"
            counts[layer] = counts.get(layer, -1) + 1
            arrays[f"{layer}/{counts[layer]}"] = Array(shape, dtype, _reader(data, place, shape, dtype))
    except DAMAGE as error:
        raise refuse(path, f"its HDF5 structure is damaged ({error})") from error
    return WeightFile(path, kind or found["format"], "keras", arrays)


def _mapped(name: str) -> np.ndarray:
    return np.memmap(name, np.uint8, "r") if os.path.getsize(name) else np.zeros(0, np.uint8)


def _reader(data, place, shape, dtype):
    return lambda: data[place : place + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _listing(path: pathlib.Path, source: str, spill: str, names: dict[str, str]) -> dict:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HDF5_USE_FILE_LOCKING": "FALSE"}
    try:
        process = subprocess.run(
            [sys.executable, "-P", _LISTING, os.path.abspath(source), spill],
            input=json.dumps(names),
            capture_output=True,
            env=environment,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise refuse(path, f"its HDF5 structure could not be read within {TIMEOUT} s") from None
    if process.returncode == -signal.SIGXCPU:
        raise refuse(path, "its HDF5 structure is damaged (the HDF5 library runs in circles)")
    if process.returncode:
        reason = process.stderr.strip().rpartition("\n")[2] or f"it ended with status {process.returncode}"
        raise refuse(path, f"its HDF5 structure is damaged (the HDF5 library failed: {reason})")
    found = json.loads(process.stdout)
    if "refused" in found:
        raise refuse(path, found["refused"])
    return found
