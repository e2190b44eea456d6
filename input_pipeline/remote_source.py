"""How is a raw download read that lies in an object store (`--source=s3://bucket/raw`)?

By the rules of `input_pipeline.raw`: names that lead out of the folder or are no file names are left out and listed, no
object larger than the limit is read. An object is read when its turn comes, by whichever process or machine reads it;
nothing is fetched beforehand. A .zip is not read in place there, since each of its images would need several requests.
"""

import os
from typing import BinaryIO

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.raw import MAX_FILE_BYTES, RawSource, Unreadable
from input_pipeline.remote import Store, is_remote


class RemoteSource(RawSource):
    """A folder of an object store; `path` is its address."""

    def __init__(self, store: Store, max_file_bytes: int):
        super().__init__(store.url, max_file_bytes)
        self._store = store
        for name, size in store.names(every=True).items():
            self._admit(name, size)
        self._finish()

    def _read(self, name: str) -> bytes:
        data = self._store.read(name)
        if len(data) != self._sizes[name]:
            raise Unreadable("has changed since it was listed")
        return data

    def _stream(self, name: str) -> BinaryIO:
        return self._store.open(name)


def open_source(path: str | os.PathLike, max_file_bytes: int = MAX_FILE_BYTES) -> RawSource:
    """Opens a download for reading, on this machine (see `raw.open_source`) or in a store.

    Raises:
        UserError: there is nothing, or it is a .zip in a store.
    """
    if not is_remote(path):
        return raw.open_source(path, max_file_bytes)
    store = Store(os.fspath(path))
    source = RemoteSource(store, max_file_bytes)
    if not source.names():
        if store.url.lower().endswith(".zip"):
            raise UserError(f"{store.url} is a .zip in a store: unpack it there, or fetch it and name the file here.")
        raise UserError(f"{store.url} holds no files: check the address.")
    return source
