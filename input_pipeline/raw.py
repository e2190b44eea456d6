"""Which files does a raw download hold, and how are they read without trusting it?

A download is a folder or a .zip, which is read in place and never extracted. Whatever its names, links or declared
sizes say, nothing outside the folder is opened, nothing but a regular file is read, and no read takes more than a
stated number of bytes. Entries that break a rule are left out and listed with the reason (`RawSource.problems`).
`RawSource.open` streams what is too large to be read at once, and unpacks .gz and .bz2 on the way by the same rules.
"""

import abc
import bz2
import gzip
import hashlib
import io
import os
import pathlib
import re
import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

from input_pipeline.cli import UserError

MAX_FILE_BYTES = 256 * 2**20
"""No file larger than this is read: an encoded image within the pixel limit is far smaller."""

MAX_STREAM_BYTES = 16 * 2**30
"""No stream gives more than this, unpacked: the largest public expression table has 1.9 GB."""

MAX_RATIO = 200
"""Compressed entries above 1 MiB that claim to expand further than this are taken for a zip bomb."""

_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises for damaged archives."""

_MEBIBYTE = 2**20
_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}
_DRIVE = re.compile(r"[A-Za-z]:")


class Unreadable(Exception):
    """One file of the download cannot be read; the message is the reason, without the name."""


class Stream(io.RawIOBase):
    """Reads one file of a download from its beginning, unpacked by `unpack`, and at most `max_bytes` of it.

    Every refusal and damage is an `Unreadable`, whose message is the reason without the name.

    Attributes:
        consumed: bytes taken from the download so far, packed: with the declared size, how far the reading is.
    """

    def __init__(self, file: BinaryIO, max_bytes: int, packing: str = ""):
        super().__init__()
        self.consumed = 0
        self._file = file
        self._max_bytes = max_bytes
        self._given = 0
        self._packed = packing in _UNPACKERS
        self._content = _UNPACKERS[packing](_Tap(self)) if self._packed else _Tap(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills `buffer` as far as one read goes; 0 at the end."""
        try:
            data = self._content.read(min(len(buffer), _MEBIBYTE))
        except EOFError as error:
            raise Unreadable("ends before its content does, as an interrupted download would") from error
        except (*_DAMAGE, gzip.BadGzipFile) as error:
            raise Unreadable(f"damaged: {printable(str(error))}") from error
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}") from error
        self._given += len(data)
        if self._given > self._max_bytes:
            raise Unreadable(f"larger than {self._max_bytes // _MEBIBYTE} MiB")
        if self._packed and self._given > _MEBIBYTE and self._given > MAX_RATIO * max(self.consumed, 1):
            raise Unreadable(f"expands more than {MAX_RATIO} times, which looks like a zip bomb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Tap(io.RawIOBase):
    """What a stream takes from the download, counted."""

    def __init__(self, stream: Stream):
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream._file.read(len(buffer))
        self._stream.consumed += len(data)
        buffer[: len(data)] = data
        return len(data)


_UNPACKERS = {".gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"), ".bz2": bz2.BZ2File}


def refusal(name: str) -> str:
    """Why a relative POSIX name is refused, or an empty string when it is harmless."""
    if not name or name.startswith("/") or _DRIVE.match(name):
        return "absolute or empty name"
    if "\\" in name:
        return "backslash in the name"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "control character in the name"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "name is not UTF-8"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "name leads out of its folder"
    if len(encoded) > 1024 or any(len(part.encode("utf-8")) > 255 for part in parts):
        return "name is too long"
    return ""


def is_system_file(name: str) -> bool:
    """Whether an operating system left this file behind: hidden files, `__MACOSX/`, `Thumbs.db`."""
    return any(part.startswith(".") or part.lower() in _SYSTEM_NAMES for part in name.split("/"))


def printable(name: str, length: int = 200) -> str:
    """`name` with control and undecodable characters escaped, cut to `length` characters."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
    return escaped if len(escaped) <= length else escaped[: length - 3] + "..."


class RawSource(abc.ABC):
    """The regular files of a download. Picklable, so that worker processes can read from it.

    Attributes:
        problems: `(name, reason)` of each entry that was refused, in name order.
    """

    def __init__(self, path: pathlib.Path, max_file_bytes: int):
        self.path = path
        self.max_file_bytes = max_file_bytes
        self.problems: list[tuple[str, str]] = []
        self._sizes: dict[str, int] = {}
        self._folders: set[str] = set()

    def names(self) -> list[str]:
        """Sorted relative POSIX names of the regular files."""
        return list(self._sizes)

    def folders(self) -> list[str]:
        """Sorted relative POSIX names of the folders, empty ones included where the download records them."""
        return sorted(self._folders)

    def size(self, name: str) -> int:
        """Declared size of a file in bytes.

        Raises:
            KeyError: for a name that `names` does not list.
        """
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        """The content of a file that `names` lists.

        Raises:
            Unreadable: the file is too large, damaged, no longer regular, or the file system refuses it.
        """
        if self._sizes[name] > self.max_file_bytes:
            raise Unreadable(f"larger than {self.max_file_bytes // _MEBIBYTE} MiB")
        try:
            return self._read(name)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}") from error

    def open(self, name: str, max_bytes: int = MAX_STREAM_BYTES) -> Stream:
        """A stream over a file that `names` lists; the content of .gz and .bz2 is unpacked.

        Args:
            name: its name.
            max_bytes: the most that may be read, unpacked.

        Raises:
            Unreadable: here or from any later read: too large, damaged, cut off, no longer regular, expanding more
                than `MAX_RATIO` times, or refused by the file system.
        """
        if self._sizes[name] > max_bytes:
            raise Unreadable(f"larger than {max_bytes // _MEBIBYTE} MiB")
        try:
            return Stream(self._stream(name), max_bytes, os.path.splitext(name)[1].lower())
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}") from error

    def digest(self) -> str:
        """SHA-256 over all names and sizes: whether it is the same listing, not whether it is the same content."""
        digest = hashlib.sha256()
        for name, size in self._sizes.items():
            digest.update(f"{name}\0{size}\n".encode())
        return digest.hexdigest()

    @abc.abstractmethod
    def _read(self, name: str) -> bytes:
        """Reads at most `max_file_bytes` of one listed file."""

    @abc.abstractmethod
    def _stream(self, name: str) -> BinaryIO:
        """Opens one listed file for reading once, from its beginning."""

    def _admit(self, name: str, size: int) -> None:
        reason = refusal(name)
        if reason:
            self.problems.append((printable(name), reason))
        elif not is_system_file(name):
            self._sizes[name] = size
            self._add_folders(name.rpartition("/")[0])

    def _add_folders(self, folder: str) -> None:
        while folder and folder not in self._folders:
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]

    def _finish(self) -> None:
        self._sizes = dict(sorted(self._sizes.items()))
        self.problems.sort()


class FolderSource(RawSource):
    """A folder. Links to files inside it are followed, links that lead out of it and links to folders are refused."""

    def __init__(self, path: pathlib.Path, max_file_bytes: int):
        super().__init__(path.resolve(), max_file_bytes)
        pending = [""]
        while pending:
            pending.extend(self._list(pending.pop()))
        self._finish()

    def _list(self, folder: str) -> list[str]:
        """Takes in the files of one folder; returns the folders in it."""
        try:
            entries = list(os.scandir(self.path / folder))
        except OSError as error:
            if not folder:
                raise
            self.problems.append((printable(folder), f"folder cannot be listed: {error.strerror}"))
            return []
        deeper = []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_system_file(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                reason = refusal(name)
                if reason:
                    self.problems.append((printable(name), reason))
                else:
                    self._add_folders(name)
                    deeper.append(name)
            else:
                self._take(name, entry)
        return deeper

    def _take(self, name: str, entry: os.DirEntry) -> None:
        try:
            target = self._target(name) if entry.is_symlink() else None
            status = os.stat(target) if target else entry.stat(follow_symlinks=False)
        except Unreadable as error:
            self.problems.append((printable(name), str(error)))
            return
        except (OSError, ValueError):
            self.problems.append((printable(name), "broken link or unreadable entry"))
            return
        if stat.S_ISREG(status.st_mode):
            self._admit(name, status.st_size)
        else:
            self.problems.append((printable(name), "not a regular file"))

    def _target(self, name: str) -> str:
        target = os.path.realpath(self.path / name)
        if os.path.commonpath([target, self.path]) != str(self.path):
            raise Unreadable("link leads out of the source folder")
        return target

    def _stream(self, name: str) -> BinaryIO:
        # The folder may have changed since it was listed: check the opened file itself, and never wait on a pipe.
        descriptor = os.open(self._target(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise Unreadable("not a regular file")
        return file

    def _read(self, name: str) -> bytes:
        with self._stream(name) as file:
            data = file.read(self.max_file_bytes + 1)
        if len(data) > self.max_file_bytes:
            raise Unreadable(f"larger than {self.max_file_bytes // _MEBIBYTE} MiB")
        return data


class ZipSource(RawSource):
    """A .zip, read in place. Encrypted entries, links, repeated names and implausible ratios are refused."""

    def __init__(self, path: pathlib.Path, max_file_bytes: int):
        super().__init__(path.resolve(), max_file_bytes)
        self._archive: zipfile.ZipFile | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            entries = self._open().infolist()
        except _DAMAGE as error:
            raise UserError(f"{path} is a damaged .zip ({printable(str(error))}): download it again.") from error
        for entry in entries:
            self._take(entry)
        self._finish()

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive

    def __getstate__(self) -> dict:
        # Each process opens the archive for itself: a shared file position would mix up their reads.
        return {**self.__dict__, "_archive": None}

    def _take(self, entry: zipfile.ZipInfo) -> None:
        name = entry.orig_filename
        if name.endswith("/"):
            if not refusal(name[:-1]) and not is_system_file(name[:-1]):
                self._add_folders(name[:-1])
            return
        reason = self._entry_refusal(entry)
        if reason:
            self.problems.append((printable(name), reason))
        else:
            self._admit(name, entry.file_size)
            self._entries[name] = entry

    def _entry_refusal(self, entry: zipfile.ZipInfo) -> str:
        mode = entry.external_attr >> 16
        if entry.flag_bits & 1:
            return "encrypted"
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            return "not a regular file"
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "packed by another method than deflate"
        if entry.orig_filename in self._entries:
            return "name occurs a second time in the archive"
        if entry.file_size > _MEBIBYTE and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
            return f"expands more than {MAX_RATIO} times, which looks like a zip bomb"
        return ""

    def _stream(self, name: str) -> BinaryIO:
        try:
            return self._open().open(self._entries[name])
        except _DAMAGE as error:
            raise Unreadable(f"damaged in the archive: {printable(str(error))}") from error

    def _read(self, name: str) -> bytes:
        try:
            with self._open().open(self._entries[name]) as file:
                data = file.read(self.max_file_bytes + 1)
        except _DAMAGE as error:
            raise Unreadable(f"damaged in the archive: {printable(str(error))}") from error
        if len(data) != self._sizes[name]:
            raise Unreadable("damaged in the archive: its size is not the declared one")
        return data


def open_source(path: str | os.PathLike, max_file_bytes: int = MAX_FILE_BYTES) -> RawSource:
    """Opens a download for reading.

    Args:
        path: a folder or a .zip.
        max_file_bytes: largest file that is read.

    Raises:
        UserError: the path does not exist, is neither a folder nor a .zip, or holds no files.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"the source {path} does not exist: give the folder or .zip of the raw download as --source.")
    if path.is_dir():
        source: RawSource = FolderSource(path, max_file_bytes)
    elif path.is_file() and zipfile.is_zipfile(path):
        source = ZipSource(path, max_file_bytes)
    else:
        raise UserError(f"the source {path} is neither a folder nor a .zip: unpack it and give the folder as --source.")
    if not source.names():
        found = f" ({len(source.problems)} entries were refused: {source.problems[0][1]})" if source.problems else ""
        raise UserError(f"the source {path} holds no files{found}: download the data again.")
    return source
