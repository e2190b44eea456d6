"""How do weights come from an object store (`config.model.weights=s3://…`)?

An address names one file (`s3://bucket/weights/resnet50.safetensors`), or a run that was mirrored there, or a folder in
it (`s3://bucket/runs/x`, `…/x/checkpoints/TRIAL`). Both are fetched into the cache, a file again when the store says
that it is another one, of a run what is new in its latest state, every part checked by its SHA-256.
"""

import contextlib
import fcntl
import os
import pathlib
import posixpath
import tempfile
from collections.abc import Iterator

from input_pipeline.cli import UserError, progress
from input_pipeline.remote import PART_BYTES, Store, cache_name, cache_root, in_parallel, is_remote, normal
from research.remote.generations import manifests, pull

_DEPTH = 3  # of checkpoints/TRIAL/STEP below a run


def local_copy(weights: str) -> str:
    """A path on this machine for weights: the given one, or where the address was fetched to.

    Raises:
      UserError: there is neither a file nor a run at the address, or the store cannot be reached.
    """
    if not is_remote(weights):
        return weights
    url = normal(weights)
    folder, _, name = url.rpartition("/")
    store = Store(folder) if not folder.endswith(("/", ":")) else None
    size = store.names(name).get(name) if store else None
    if size is not None:
        return str(_file(store, name, size))
    below = ""
    for _ in range(_DEPTH + 1):
        if manifests(Store(url)):
            return str(_run(Store(url)) / below)
        url, _, name = url.rpartition("/")
        below = posixpath.join(name, below) if below else name
        if url.endswith(("/", ":")):
            break
    raise UserError(f"there is neither a file nor a run at {weights}; check the address.")


@contextlib.contextmanager
def _locked(place: pathlib.Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file(store: Store, name: str, size: int) -> pathlib.Path:
    url = f"{store.url}/{name}"
    place = cache_root() / "weights" / cache_name(url, store.version(name))
    path = place / name
    with _locked(place):
        if path.exists():
            return path
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=place)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.truncate(size)

                def fetch(start: int) -> None:
                    data = store.read_part(name, start, min(start + PART_BYTES, size))
                    os.pwrite(file.fileno(), data, start)

                starts = range(0, size, PART_BYTES)
                for _ in progress(in_parallel(fetch, starts), len(starts), f"fetching {url}, parts"):
                    pass
            os.replace(temporary, path)
        finally:
            pathlib.Path(temporary).unlink(missing_ok=True)
    return path


def _run(store: Store) -> pathlib.Path:
    place = cache_root() / "read" / cache_name(store.url)
    with _locked(place):
        pull(store, place / "run")
    return place / "run"
