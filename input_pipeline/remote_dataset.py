"""How does a prepared data set get into an object store, and from there to the machine that trains on it?

In the store it is the same folder of files. It is written shards first and `records.json` last, so that what can be
fetched is complete. It is fetched once into the cache: shards in parallel parts, each shard checked against the SHA-256
in `records.json`; a fetch that was broken off goes on where it stopped. The cached copy is named by address and
content, so that a data set that was prepared anew under the same address is fetched anew.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from input_pipeline import records
from input_pipeline.building import FINISHED
from input_pipeline.cli import UserError, atomic_write, progress, remove_unfinished
from input_pipeline.remote import PART_BYTES, Store, cache_name, cache_root, in_parallel, is_remote

_MARKER = ".preparing"
"""Stands in the store while a data set is being written there."""


def fetch(url: str) -> pathlib.Path:
    """The folder in the cache that holds the prepared data set at `url`, fetched if need be.

    Raises:
        UserError: there is none, it is damaged or not complete, or the store cannot be reached.
    """
    store = Store(url)
    heads = _heads(store)
    name = cache_name(store.url, b"\0".join(heads.values()))
    folder = cache_root() / "data" / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{name}.lock"), url):
        if folder.is_dir():  # another process has fetched it meanwhile
            return folder
        _fetch_into(partial, store, heads)
        if _heads(store) != heads:
            raise UserError(f"{url} was prepared anew while it was fetched; run the same command again.")
        remove_unfinished(partial)
        os.rename(partial, folder)
    return folder


def _heads(store: Store) -> dict[str, bytes]:
    """The files that say what is in the data set."""
    found = {}
    for name in FINISHED:
        try:
            found[name] = store.read(name)
        except FileNotFoundError as error:
            raise UserError(
                f"{store.url} holds no finished data set ({name} is missing): prepare it with "
                f"`python -m input_pipeline.prepare --study=NAME --source=RAW --out={store.url}`."
            ) from error
    return found


@contextlib.contextmanager
def _locked(path: pathlib.Path, url: str) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{url} is being fetched by another process; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_into(folder: pathlib.Path, store: Store, heads: dict[str, bytes]) -> None:
    for name, content in heads.items():
        atomic_write(folder / name, content)
    shards = records.read_manifest(folder)
    listed = store.names()
    for name, entry in shards.items():
        if listed.get(name) != entry["bytes"]:
            size = f"has {listed[name]} bytes" if name in listed else "is missing"
            raise UserError(
                f"the shard {store.url}/{name} {size}, but {records.MANIFEST} says {entry['bytes']}: prepare again."
            )
    for name in listed:
        # Whatever else lies in the folder of the store, such as the shards of another data set, is left there.
        if "/" not in name and name[0] != "." and name not in heads and ".tfrecord-" not in name:
            atomic_write(folder / name, store.read(name))
    for name in shards:
        try:
            atomic_write(folder / f"{name}.idx", store.read(f"{name}.idx"))
        except FileNotFoundError as error:
            raise UserError(f"the index {store.url}/{name}.idx is missing: prepare again.") from error
    downloads = [_Shard(folder / name, entry["bytes"]) for name, entry in shards.items()]
    parts = [(shard, start) for shard in downloads for start in shard.missing()]
    fetched = in_parallel(lambda part: part[0].fetch(store, part[1]), parts)
    for _ in progress(fetched, len(parts), f"fetching {store.url}, parts of {PART_BYTES // 2**20} MiB"):
        pass
    for shard in downloads:
        shard.finish(shards[shard.path.name]["sha256"], store)


class _Shard:
    """One shard on its way: its bytes in `NAME.part`, and a line for each part that is there in `NAME.part.done`."""

    def __init__(self, path: pathlib.Path, size: int):
        self.path, self.size = path, size
        self._part, self._done = (path.with_name(path.name + end) for end in (".part", ".part.done"))

    def missing(self) -> list[int]:
        """Where the parts begin that are still to be fetched."""
        if self.path.exists():
            return []
        done: set[int] = set()
        if self._part.exists() and self._part.stat().st_size == self.size and self._done.exists():
            lines = self._done.read_text(encoding="ascii").split("\n")[:-1]  # what follows the last one is half a line
            done = {int(line) for line in lines if line.isdigit()}
        else:
            with open(self._part, "wb") as file:
                file.truncate(self.size)
            self._done.unlink(missing_ok=True)
        return [start for start in range(0, self.size, PART_BYTES) if start not in done]

    def fetch(self, store: Store, start: int) -> None:
        """Fetches one part."""
        try:
            data = store.read_part(self.path.name, start, min(start + PART_BYTES, self.size))
        except FileNotFoundError as error:
            raise UserError(f"the shard {store.url}/{self.path.name} has just vanished: run again.") from error
        with open(self._part, "r+b") as file:
            file.seek(start)
            file.write(data)
        with open(self._done, "a", encoding="ascii") as file:
            file.write(f"{start}\n")

    def finish(self, sha256: str, store: Store) -> None:
        """Checks the content and gives the file its name.

        Raises:
            UserError: it is not what was indexed; nothing of it is kept.
        """
        if self.path.exists():
            return
        with open(self._part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._done.unlink(missing_ok=True)
        if found != sha256:
            self._part.unlink()
            raise UserError(
                f"the shard {store.url}/{self.path.name} is not the one that {records.MANIFEST} was made for: run "
                "again, and if it stays so, prepare the data again."
            )
        os.replace(self._part, self.path)


@contextlib.contextmanager
def pushed(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The folder in which a data set for `out` is prepared; if `out` is an address it is pushed there in the end.

    Raises:
        UserError: there is something at the address already, or the store cannot be reached.
    """
    if not is_remote(out):
        yield pathlib.Path(out)
        return
    store = Store(os.fspath(out))
    present = set(store.names())
    if set(FINISHED) <= present:
        raise UserError(f"{store.url} is a prepared dataset already: remove it or choose another --out.")
    if present and _MARKER not in present:
        raise UserError(f"{store.url} is not empty and is no prepared dataset: choose another --out.")
    place = cache_root() / "prepared"
    place.mkdir(parents=True, exist_ok=True)
    folder = place / cache_name(store.url)
    with _locked(place / f".{folder.name}.lock", store.url):
        shutil.rmtree(folder, ignore_errors=True)
        store.write(_MARKER, b"")  # a store that refuses to be written is noticed before the work, not after it
        store.delete([name for name in present if name != _MARKER])  # what a run that was killed left there
        try:
            yield folder
            push(folder, store)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def push(folder: pathlib.Path, store: Store) -> None:
    """Writes a prepared data set into a folder of a store, where some of its shards may be already (`beam_prepare`)."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    shards = [name for name in names if ".tfrecord-" in name]
    uploaded = in_parallel(lambda name: store.upload(folder / name, name), shards)
    for _ in progress(uploaded, len(shards), f"writing to {store.url}, files"):
        pass
    last = list(reversed(FINISHED))  # with records.json the data set is complete
    for name in [name for name in names if name not in (*shards, *FINISHED)] + last:
        store.upload(folder / name, name)
    stored = store.names()
    for name in names:
        if stored.get(name) != (folder / name).stat().st_size:
            raise UserError(f"{store.url}/{name} is not what was written there; another program is at work: run again.")
    store.delete([_MARKER])
