"""How are examples stored: TFRecord files written, indexed, and read at random with every checksum verified.

A record is `length` (uint64, little endian), the masked CRC-32C of those 8 bytes (uint32), the payload, and the masked
CRC-32C of the payload. The mask is `((crc >> 15) | (crc << 17)) + 0xa282ead8` (TensorFlow, `lib/io/record_writer.h`).

Beside each shard lies `<shard>.idx` with a line `offset size` for each record (framing included, as NVIDIA DALI's
`tfrecord2idx` writes it), and beside all of them `records.json` with the bytes, records and SHA-256 of every shard.
"""

import array
import bisect
import hashlib
import itertools
import json
import os
import pathlib
import re
import struct
import threading
from collections.abc import Iterator

import google_crc32c
import numpy as np

from input_pipeline.cli import UserError, atomic_write

MANIFEST = "records.json"
FRAMING = 16
"""Bytes that a record takes beside its payload."""

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_SHARD_NAME = re.compile(r"[^/\\\0]+\.tfrecord-\d{5}-of-\d{5}")
_PREPARE = "prepare the data again with `python -m input_pipeline.prepare`"


def masked_crc32c(data: bytes) -> int:
    """The masked CRC-32C of `data`, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class RecordWriter:
    """Writes one TFRecord shard; the file appears under its name only when `close` has ended well.

    Use as a context manager: an exception inside the block leaves no file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.count = 0
        self._temporary = self.path.with_name(f".{self.path.name}.unfinished")
        self._file = open(self._temporary, "wb")

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        length = struct.pack("<Q", len(payload))
        self._file.write(length + _CHECKSUM.pack(masked_crc32c(length)))
        self._file.write(payload)
        self._file.write(_CHECKSUM.pack(masked_crc32c(payload)))
        self.count += 1

    def close(self) -> None:
        """Flushes to the disk and gives the shard its name."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Closes and removes what was written, unless the shard is already closed under its name."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _damage(shard: str, record: int, what: str) -> UserError:
    return UserError(f"record {record} of shard {shard} is damaged ({what}): restore the file, or {_PREPARE}.")


def _checked_payload(frame: bytes, shard: str, record: int) -> bytes:
    """The payload of one whole record, after its length and both checksums have been verified."""
    length, length_crc = _HEADER.unpack_from(frame)
    if masked_crc32c(frame[:8]) != length_crc:
        raise _damage(shard, record, "the checksum of its length does not match")
    if length != len(frame) - FRAMING:
        raise _damage(shard, record, "its length is not the one in the index")
    payload = frame[12:-4]
    if masked_crc32c(payload) != _CHECKSUM.unpack_from(frame, len(frame) - 4)[0]:
        raise _damage(shard, record, "the checksum of its data does not match")
    return payload


def read_frames(path: str | os.PathLike) -> Iterator[bytes]:
    """Yields each whole record of a shard in order, framing included, verified; needs no index.

    No more is read than the file is long, whatever a damaged length claims.

    Raises:
        UserError: names the shard and the record that is damaged or cut off.
    """
    path = pathlib.Path(path)
    remaining = path.stat().st_size
    with open(path, "rb") as file:
        record = 0
        while remaining:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise _damage(path.name, record, "the file ends inside it")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise _damage(path.name, record, "the checksum of its length does not match")
            if length > remaining - FRAMING:
                raise _damage(path.name, record, "the file ends inside it")
            frame = header + file.read(length + 4)
            _checked_payload(frame, path.name, record)
            yield frame
            remaining -= len(frame)
            record += 1


def shard_names(directory: str | os.PathLike) -> list[str]:
    """The sorted names of the TFRecord shards (`*.tfrecord-NNNNN-of-NNNNN`) in a folder."""
    return sorted(entry.name for entry in os.scandir(directory) if _SHARD_NAME.fullmatch(entry.name))


def write_index(directory: str | os.PathLike) -> dict:
    """Reads every shard of a folder, verifies it, and writes `<shard>.idx` beside each and `records.json`.

    Returns:
        The content of `records.json`: `{"shards": {name: {"bytes", "records", "sha256"}}}`.

    Raises:
        UserError: for a damaged record, or when the folder holds no shards.
    """
    directory = pathlib.Path(directory)
    names = shard_names(directory)
    if not names:
        raise UserError(f"{directory} holds no *.tfrecord-NNNNN-of-NNNNN files: {_PREPARE}.")
    return write_manifest(directory, {name: index_shard(directory / name) for name in names})


def index_shard(path: pathlib.Path) -> dict:
    """Reads a shard, verifies it, and writes `<shard>.idx` beside it; returns its entry in `records.json`.

    Raises:
        UserError: for a damaged record.
    """
    digest, lines, offset = hashlib.sha256(), [], 0
    for frame in read_frames(path):
        digest.update(frame)
        lines.append(f"{offset} {len(frame)}\n")
        offset += len(frame)
    atomic_write(path.with_name(f"{path.name}.idx"), "".join(lines))
    return {"bytes": offset, "records": len(lines), "sha256": digest.hexdigest()}


def write_manifest(directory: pathlib.Path, shards: dict[str, dict]) -> dict:
    """Writes `records.json` with the entries of all shards by name, sorted; returns its content."""
    manifest = {"shards": dict(sorted(shards.items()))}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def seal(directory: pathlib.Path) -> None:
    """Adds the SHA-256 of what lies beside the shards (`splits.json`, `features.json`, names …) to `records.json`."""
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    indexed = {file for name in manifest["shards"] for file in (name, f"{name}.idx")} | {MANIFEST}
    beside = [path for path in sorted(directory.iterdir()) if path.is_file() and path.name not in indexed]
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in beside}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def check_files(directory: pathlib.Path) -> None:
    """Compares what lies beside the shards with `records.json`; data sets from before it named them pass.

    Raises:
        UserError: names the file that is missing or not as it was prepared.
    """
    try:
        files = dict(json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("files", {}))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{directory / MANIFEST} is unreadable: {_PREPARE}.") from error
    for name, expected in files.items():
        path = directory / pathlib.PurePath(name).name
        if not path.is_file():
            raise UserError(f"{path} is missing, so the data set is not complete: restore the file, or {_PREPARE}.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise UserError(f"{path} is not as it was prepared: restore the file, or {_PREPARE}.")


def read_manifest(directory: pathlib.Path) -> dict[str, dict]:
    """The shards of a folder by name: bytes, records and SHA-256, from `records.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(f"{directory} has no {MANIFEST}, so it is not a finished data set: {_PREPARE}.")
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        sound = bool(shards) and all(
            _SHARD_NAME.fullmatch(name)
            and isinstance(entry["bytes"], int)
            and isinstance(entry["records"], int)
            and isinstance(entry["sha256"], str)
            for name, entry in shards.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} is unreadable or lists no shards: {_PREPARE}.")
    return dict(sorted(shards.items()))


def _read_offsets(directory: pathlib.Path, name: str, entry: dict) -> array.array:
    """Offsets `[records + 1]` of a shard (the last one is its end), checked against the shard and the manifest."""
    shard, index = directory / name, directory / f"{name}.idx"
    if not shard.is_file():
        raise UserError(f"shard {shard} is missing: restore the file, or {_PREPARE}.")
    size = shard.stat().st_size
    if size != entry["bytes"]:
        raise UserError(
            f"shard {shard} has {size} bytes but its index was made for {entry['bytes']}: "
            f"restore the file, or {_PREPARE}."
        )
    if not index.is_file():
        raise UserError(f"the index {index} is missing: restore the file, or {_PREPARE}.")
    try:
        table = np.array(index.read_text(encoding="ascii").split(), dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        table = None
    # Records lie one behind the other from the first byte to the last, so any other index is wrong or out of date.
    if table is not None and len(table) == entry["records"]:
        offsets = np.append(table[:, 0], size)
        if offsets[0] == 0 and np.array_equal(np.diff(offsets), table[:, 1]) and (table[:, 1] >= FRAMING).all():
            return array.array("q", offsets.tobytes())  # indexes faster than a NumPy array
    raise UserError(f"the index {index} is stale or damaged, it does not describe its shard: {_PREPARE}.")


class RecordSource:
    """Random access to the records of a folder, over all shards in the order of their names.

    Each access reads one record (`os.pread`) and verifies its length and both checksums. Safe to share between
    threads, and picklable (a copy opens the files for itself). It is a grain `RandomAccessDataSource`.

    Raises:
        UserError: at construction for a missing or resized shard, a shard without an index and a stale index; at access
            for a damaged record, naming the shard and the record.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        manifest = read_manifest(self.directory)
        strangers = sorted(set(shard_names(self.directory)) - set(manifest))
        if strangers:
            raise UserError(f"shard {self.directory / strangers[0]} is not in {MANIFEST}, which is stale: {_PREPARE}.")
        self._names = list(manifest)
        self._hashes = [entry["sha256"] for entry in manifest.values()]
        self._offsets = [_read_offsets(self.directory, name, entry) for name, entry in manifest.items()]
        self._first = [0, *itertools.accumulate(len(offsets) - 1 for offsets in self._offsets)]
        self._files: list[int | None] = [None] * len(self._names)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> bytes:
        """The verified payload of record `index`."""
        shard, record = self._place(index)
        name, offsets = self._names[shard], self._offsets[shard]
        start = offsets[record]
        size = offsets[record + 1] - start
        frame = os.pread(self._file(shard), size, start)
        if len(frame) != size:
            raise _damage(name, record, "the file ends inside it")
        return _checked_payload(frame, name, record)

    def locate(self, index: int) -> str:
        """Says where record `index` lies, for messages: "record 3 of shard NAME"."""
        shard, record = self._place(index)
        return f"record {record} of shard {self._names[shard]}"

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._first[-1]:
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._first, index) - 1
        return shard, int(index) - self._first[shard]

    def verify(self) -> None:
        """Reads every shard whole and compares its SHA-256 with `records.json`.

        Raises:
            UserError: naming the first damaged record, or the shard whose content is another one.
        """
        for name, expected in zip(self._names, self._hashes, strict=True):
            digest = hashlib.sha256()
            for frame in read_frames(self.directory / name):
                digest.update(frame)
            if digest.hexdigest() != expected:
                raise UserError(f"shard {self.directory / name} is not the one that was indexed: {_PREPARE}.")

    def _file(self, shard: int) -> int:
        descriptor = self._files[shard]
        if descriptor is None:
            with self._lock:
                descriptor = self._files[shard]
                if descriptor is None:
                    descriptor = os.open(self.directory / self._names[shard], os.O_RDONLY)
                    self._files[shard] = descriptor
        return descriptor

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_files"] = [None] * len(self._names)
        del state["_lock"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __del__(self, close=os.close) -> None:  # `os` may be gone when the interpreter ends
        for descriptor in getattr(self, "_files", ()):
            if descriptor is not None:
                close(descriptor)

    def __repr__(self) -> str:
        return f"RecordSource({str(self.directory)!r}, records={len(self)})"
