"""Which weight files are damaged, or made to do harm?"""

import json
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import h5py
import numpy as np

from tests.research.models.pretrained.weights import DATA, resnet18_state, write_safetensors

CASES: dict[str, tuple[str, Callable[[pathlib.Path], object]]] = {}
MARKER = "EXECUTED"


def case(name: str, model: str = "resnet18"):
    """Registers a function that writes a hostile file to a path."""

    def decorate(write):
        CASES[name] = (model, write)
        return write

    return decorate


class _Command:
    """Unpickled by Python, this runs a command."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path.parent / MARKER}",)


def torch_zip(path: pathlib.Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def tensor_pickle(
    shape: tuple[int, ...], strides: tuple[int, ...], count: int, offset: int = 0, name: str = "conv1.weight"
) -> bytes:
    """The pickle of a state dict with one float32 tensor, as `torch.save` writes it."""

    def number(value: int) -> bytes:
        data = value.to_bytes(8, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(strides)
    return b"\x80\x02}(" + text(name) + tensor + b"\x89}tRu."


@case("pickle in a .pth with a command")
def _(path):
    torch_zip(path, pickle.dumps({"conv1.weight": _Command(path)}, protocol=2), {})


@case("the same, protocol 4")
def _(path):
    torch_zip(path, pickle.dumps({"conv1.weight": _Command(path)}, protocol=4), {})


@case("old .pth with a command")
def _(path):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"conv1.weight": _Command(path)}, []]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


@case("plain pickle with a command")
def _(path):
    path.write_bytes(pickle.dumps(_Command(path)))


@case("whole module, torch.save(model)")
def _(path):
    path.write_bytes((DATA / "whole_module.pth").read_bytes())


@case("pickle of 20 million empty lists")
def _(path):
    torch_zip(path, b"\x80\x02" + b"]" * 20_000_000 + b".", {}, zipfile.ZIP_DEFLATED)


@case("pickle of 400,000 nested tuples")
def _(path):
    torch_zip(path, b"\x80\x02}N" + b"\x85" * 400_000 + b"Ns.", {})


@case("pickle with memo index 4 billion")
def _(path):
    torch_zip(path, b"\x80\x02}r\xff\xff\xff\xff.", {})


@case("pickle of 256 MB in 0.3 MB")
def _(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(256):
                file.write(bytes(2**20))


@case("truncated pickle")
def _(path):
    torch_zip(path, tensor_pickle((64, 3, 7, 7), (147, 49, 7, 1), 9408)[:-40], {"0": bytes(37632)})


@case("tensor that reaches over its storage")
def _(path):
    torch_zip(path, tensor_pickle((64, 3, 7, 7), (147, 49, 7, 1), 9000), {"0": bytes(36000)})


@case("tensor of a trillion equal numbers")
def _(path):
    torch_zip(path, tensor_pickle((2**20, 2**20), (0, 0), 1), {"0": bytes(4)})


@case("storage shorter than declared")
def _(path):
    torch_zip(path, tensor_pickle((64, 3, 7, 7), (147, 49, 7, 1), 9408), {"0": bytes(100)})


@case("truncated .pth")
def _(path):
    path.write_bytes((DATA / "small.pth").read_bytes()[:2000])


@case("truncated old .pth")
def _(path):
    path.write_bytes((DATA / "small_old.pth").read_bytes()[:2000])


def safetensors(path: pathlib.Path, header: object, size: int, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(size))


@case("safetensors header of 2^63 bytes")
def _(path):
    safetensors(path, b"{}", 8, 2**63)


@case("safetensors header of 100 MB")
def _(path):
    safetensors(path, b'{"a":' + b" " * 100_000_000 + b"0}", 8)


@case("safetensors header with a million arrays")
def _(path):
    entry = '"%x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    safetensors(path, ("{" + ",".join(entry % i for i in range(70_000)) + "}").encode(), 4)


@case("safetensors header 100,000 deep")
def _(path):
    safetensors(path, b'{"a":' + b"[" * 100_000, 8)


@case("safetensors arrays overlap")
def _(path):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    safetensors(path, {"conv1.weight": entry, "fc.bias": entry}, 16)


@case("safetensors arrays behind the end")
def _(path):
    safetensors(path, {"conv1.weight": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}, 16)


@case("safetensors shape and bytes disagree")
def _(path):
    safetensors(path, {"conv1.weight": {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 16]}}, 16)


@case("safetensors name twice")
def _(path):
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    safetensors(path, f"{{{entry},{entry}}}".encode(), 4)


@case("truncated safetensors")
def _(path):
    write_safetensors(path, resnet18_state())
    os.truncate(path, 20_000_000)


@case("NaN in a safetensors weight")
def _(path):
    state = resnet18_state()
    state["layer3.0.conv1.weight"][5, 7, 1, 1] = np.nan
    write_safetensors(path, state)


def keras_layer(file: h5py.File, name: str = "conv1_conv") -> h5py.Group:
    group = file.create_group("layers/conv2d/vars")
    group.attrs["name"] = name
    return group


@case("truncated .weights.h5", "resnet50")
def _(path):
    path.write_bytes((DATA / "small.weights.h5").read_bytes()[:30_000])


@case("h5 with an external link", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        keras_layer(file)["0"] = h5py.ExternalLink("/etc/passwd", "x")


@case("h5 with a soft link", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        keras_layer(file)["0"] = h5py.SoftLink("/layers")


@case("h5 with external storage", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        keras_layer(file).create_dataset("0", (7, 7, 3, 64), "u1", external=[("/etc/passwd", 0, 9408)])


@case("h5 with a virtual data set", "resnet50")
def _(path):
    layout = h5py.VirtualLayout((7, 7, 3, 64), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (7, 7, 3, 64))
    with h5py.File(path, "w") as file:
        keras_layer(file).create_virtual_dataset("0", layout)


@case("h5 with an array of 4 TB, nothing stored", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        keras_layer(file).create_dataset("0", (10**6, 10**6), "f4", chunks=(1000, 1000))


@case("h5 with 1 GB of zeros in 1 MB", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        data = keras_layer(file).create_dataset("0", (16, 2**24), "f4", chunks=(1, 2**24), compression="gzip")
        for row in range(16):
            data.id.write_direct_chunk((row, 0), zlib.compress(bytes(2**26), 9))


@case("h5 with a name of 3 GB, claimed", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        keras_layer(file, 12_345 * "x")["0"] = np.zeros((7, 7, 3, 64), np.float32)
    data = path.read_bytes()
    length = struct.pack("<I", 12_345)
    place = next(
        i
        for i in range(len(data))
        if data[i : i + 4] == length and data[i - 1 : i] != b"x" and data[i + 12 : i + 16] == struct.pack("<I", 1)
    )
    path.write_bytes(data[:place] + struct.pack("<I", 3 * 10**9) + data[place + 4 :])


@case("h5 with an array in chunks of 2 GB", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        data = keras_layer(file).create_dataset(
            "0", (7, 7, 3, 64), "f4", chunks=(7, 7, 3, 2**22), maxshape=(7, 7, 3, None), compression="gzip"
        )
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(7 * 7 * 3 * 2**24), 1))


@case("h5 in which the HDF5 library runs in circles", "resnet50")
def _(path):
    path.write_bytes((DATA / "endless.weights.h5").read_bytes())


@case("h5 with a group that holds itself", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d")
        group["again"] = group


@case("h5 without layers", "resnet50")
def _(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


@case(".keras that unpacks from 0.3 to 256 MB", "resnet50")
def _(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w") as file:
            for _ in range(256):
                file.write(bytes(2**20))


@case(".keras with a flipped byte", "resnet50")
def _(path):
    data = bytearray((DATA / "small.keras").read_bytes())
    data[20_000] ^= 255
    path.write_bytes(bytes(data))


@case("truncated .keras", "resnet50")
def _(path):
    path.write_bytes((DATA / "small.keras").read_bytes()[:40_000])


@case("another model's .keras", "resnet50")
def _(path):
    path.write_bytes((DATA / "small.keras").read_bytes())


@case("another model's safetensors", "resnet34")
def _(path):
    write_safetensors(path, resnet18_state())


@case("empty file")
def _(path):
    path.write_bytes(b"")


@case("text")
def _(path):
    path.write_text("<!DOCTYPE html><title>Not found</title>\n" * 10)


@case("NumPy archive")
def _(path):
    np.savez(path.with_suffix(".npz"), x=np.zeros(3))
    os.rename(path.with_suffix(".npz"), path)


@case("folder without a checkpoint")
def _(path):
    path.mkdir()


@case("named pipe")
def _(path):
    os.mkfifo(path)
