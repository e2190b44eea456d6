"""Small image files of many kinds for the tests of preparing, each made from its specification."""

import hashlib
import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

from input_pipeline import raw


def pixels(height: int = 23, width: int = 31, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth colourful uint8 picture `[H, W, C]`, which survives JPEG well."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (4, 5, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[..., c]).resize((width, height), Image.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def save(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """Encodes with Pillow."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, height: int = 23, width: int = 31, **options) -> bytes:
    """A JPEG of its own picture for each seed."""
    return save(pixels(height, width, 3, seed), "JPEG", quality=95, **options)


def png(seed: int = 0, height: int = 23, width: int = 31, channels: int = 3) -> bytes:
    """A PNG of its own picture for each seed."""
    return save(pixels(height, width, channels, seed), "PNG")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG put together by hand: unfiltered `rows` (each with its leading filter byte), `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


def png_rows(image: np.ndarray) -> bytes:
    """Rows for `raw_png` of uint8 or uint16 `[H, W, C]`."""
    big_endian = image.astype(image.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big_endian)


def class_folders(root, count=20, classes=("cat", "dog"), part="") -> dict[str, bytes]:
    """A JPEG or PNG of its own for every id; returns what was written."""
    content = {}
    for label, name in enumerate(classes):
        for i in range(count):
            kind = jpeg if i % 3 else png
            content[f"{part}{name}/{i:02d}.{'jpg' if i % 3 else 'png'}"] = kind(1000 * label + i + len(part) * 7000)
    write(root, content)
    return content


def write(root, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        path = pathlib.Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def snapshot(directory) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path(directory).iterdir()}


def tree(root, *names: str, **texts: str | bytes) -> raw.RawSource:
    """Empty files (a scan opens no image), and text files given as name=text with `__` for the dot; opened."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / name.replace("__", ".")).write_bytes(data)
    return raw.open_source(root)
