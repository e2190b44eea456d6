"""How is a file read that a user has named, wherever it lies?

The rules are those of `input_pipeline.raw`, but for one: a link is followed wherever it leads, since the user named it
and not a download.
"""

import os
import pathlib
import stat
import threading
from typing import BinaryIO

from input_pipeline import raw
from input_pipeline.cli import UserError


class OneFile(raw.RawSource):
    """A source that holds one file and nothing of the folder around it.

    Args:
      path: of the file.

    Raises:
      raw.Unreadable: there is no such file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path.parent, raw.MAX_FILE_BYTES)
        self._target = path
        try:
            self._sizes = {path.name: os.stat(path).st_size}
        except FileNotFoundError as error:
            raise raw.Unreadable("there is no such file") from error
        except (OSError, ValueError) as error:
            raise raw.Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _stream(self, name: str) -> BinaryIO:
        # A pipe or device is not waited for.
        file = os.fdopen(os.open(self._target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise raw.Unreadable("not a regular file")
        return file

    def _read(self, name: str) -> bytes:
        with self._stream(name) as file:
            data = file.read(self.max_file_bytes + 1)
        if len(data) > self.max_file_bytes:
            raise raw.Unreadable(f"larger than {self.max_file_bytes >> 20} MiB")
        return data


def read(path: pathlib.Path) -> bytes:
    """The content of a file.

    Raises:
      raw.Unreadable: it is missing, too large, no regular file, or the file system refuses it.
    """
    return OneFile(path).read(path.name)


def open_named(path: pathlib.Path, flag: str) -> OneFile:
    """The file that a flag names, as a source.

    Raises:
      UserError: it is not there or no file.
    """
    if not path.is_file():
        raise UserError(f"{flag}={path} is no file; name one that exists.")
    try:
        return OneFile(path)
    except raw.Unreadable as error:
        raise UserError(f"{flag}={path}: {error}.") from error


class Locked:
    """Reads a source from several threads: one at a time where they would share a file position, as in a .zip."""

    def __init__(self, source: raw.RawSource) -> None:
        self._source = source
        self._lock = threading.Lock() if isinstance(source, raw.ZipSource) else None

    def read(self, name: str) -> bytes:
        """The content of a file of the source; raises `raw.Unreadable`."""
        if self._lock is None:
            return self._source.read(name)
        with self._lock:
            return self._source.read(name)
