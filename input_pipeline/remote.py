"""How are the folders of an object store (`s3://bucket/folder`, `gs://…`) read and written, and when is it given up?

fsspec does the work, with s3fs for s3:// and gcsfs for gs:// (extra `remote`). Stores that speak S3 are reached by the
standard variable AWS_ENDPOINT_URL; credentials come from where the cloud's own tools find them (variables, profiles,
the machine's role) and are never part of an address or a message. An operation that fails is repeated with growing
pauses; what a repetition cannot mend (no such bucket, no permission) ends at once. Objects appear whole or not at all.

What is fetched lies below `cache_root()`: $RESEARCH_CACHE, or `research-jax/remote` in the user's cache folder.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import posixpath
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

from input_pipeline.cli import UserError
from input_pipeline.raw import refusal

T = TypeVar("T")

PART_BYTES = 8 * 2**20
"""Files travel in parts of this size."""

TRANSFERS = 8
"""So many parts travel at the same time."""

ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; doubles with each

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)


class StoreError(UserError):
    """The store refused, or could not be reached for as long as it was tried."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is the address of a folder in an object store."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def normal(url: str) -> str:
    """An address without doubled and trailing slashes, so that one folder has one address.

    Raises:
        UserError: it names no bucket, leads upwards, or holds a password.
    """
    scheme, rest = _ADDRESS.fullmatch(url).groups()
    slash = "/" if scheme in ("file", "memory") else ""
    parts = [part for part in rest.split("/") if part]
    if not parts or ".." in parts or any(ord(character) < 32 for character in rest):
        raise UserError(f"{scheme}:// needs a bucket and a folder, such as {scheme}://bucket/folder.")
    if "@" in rest or "?" in rest or "#" in rest:
        raise UserError(
            f"an address of {scheme}:// is a bucket and a folder, without '@', '?' or '#'; credentials belong into the "
            "environment, where the cloud's own tools look for them."
        )
    return f"{scheme}://{slash}{'/'.join(parts)}"


def cache_root() -> pathlib.Path:
    """The folder on this machine below which everything lies that is fetched."""
    if given := os.environ.get("RESEARCH_CACHE"):
        return pathlib.Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "research-jax" / "remote"


def cache_name(url: str, content: bytes = b"") -> str:
    """A file name for an address (and what it holds): readable, and different for different ones."""
    digest = hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]", "_", posixpath.basename(url))[:40].lstrip(".")
    return f"{readable or 'root'}-{digest}"


def _file_system(url: str):
    """fsspec's file system for an address and the path in it."""
    scheme = url.partition(":")[0]
    package = _PACKAGES.get(scheme, "")
    try:
        import fsspec

        options: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}
        return fsspec.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        if package or error.name == "fsspec":
            needed = f"{scheme}:// needs the package {package or 'fsspec'}: pip install -e '.[remote]'."
            raise UserError(needed) from error
        raise UserError(f"fsspec cannot open {scheme}:// ({error}); s3:// and gs:// are supported.") from error
    except ValueError as error:
        raise UserError(f"{scheme}:// is no kind of store that fsspec knows; use s3:// or gs://.") from error


class Store:
    """A folder of an object store. Names are relative to it; safe to share between threads, and picklable.

    Attributes:
        url: its address.

    Every method raises `StoreError` when the store refuses or cannot be reached.
    """

    def __init__(self, url: str):
        self.url = normal(url)
        self._files, self._root = _file_system(self.url)
        self._root = self._root.rstrip("/")

    def __reduce__(self) -> tuple:
        return Store, (self.url,)  # each process connects for itself

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _again(self, what: str, name: str, work: Callable[[], T]) -> T:
        """Does `work`, repeatedly if need be."""
        place = f"{self.url}/{name}" if name else self.url
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except (FileNotFoundError, FileExistsError):
                raise  # answers, not failures: the caller knows what they mean
            except Exception as error:  # the libraries below have dozens of types for a lost connection
                if isinstance(error, _LASTING) or type(error).__name__.endswith("CredentialsError"):
                    refused = f"{place} cannot be {what} ({_reason(error)}); check address and rights."
                    raise StoreError(refused) from error
                if attempt == ATTEMPTS:
                    raise StoreError(
                        f"{place} could not be {what} in {attempt} attempts ({_reason(error)}); check the network and "
                        "run the same command again."
                    ) from error
                time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def read(self, name: str) -> bytes:
        """The content of an object. Raises `FileNotFoundError` where there is none."""
        return self._again("read", name, lambda: self._files.cat_file(self._path(name)))

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object. Raises `FileNotFoundError` where there is none."""
        data = self._again("read", name, lambda: self._files.cat_file(self._path(name), start=start, end=end))
        if len(data) != end - start:
            raise StoreError(f"{self.url}/{name} is shorter than it was; run the same command again.")
        return data

    def write(self, name: str, data: bytes, create: bool = False) -> None:
        """Writes an object whole.

        Args:
            create: only if there is none of that name, which is asked and done in one where the store can (AWS S3,
                Google Cloud Storage, recent S3-compatible ones).

        Raises:
            FileExistsError: with `create`, when there is one.
        """
        mode = {"mode": "create"} if create else {}
        try:
            self._again("written", name, lambda: self._files.pipe_file(self._path(name), data, **mode))
        except FileNotFoundError as error:
            raise self._no_bucket() from error

    def version(self, name: str) -> bytes:
        """What the store says about the content of an object: another one after every change."""
        info = self._again("read", name, lambda: self._files.info(self._path(name)))
        known = ("size", "ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "created")
        return repr([(key, str(info[key])) for key in known if key in info]).encode()

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the store."""
        try:
            self._again("written", target, lambda: self._files.cp_file(self._path(source), self._path(target)))
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{source} is missing; another program changes {self.url}.") from error

    def open(self, name: str) -> BinaryIO:
        """A stream over an object, which fetches as it is read. Raises `FileNotFoundError` where there is none."""
        return self._again("read", name, lambda: self._files.open(self._path(name), "rb"))

    def names(self, folder: str = "", every: bool = False) -> dict[str, int]:
        """The sizes of all objects below `folder` by name; names that no file can have are left out unless `every`."""

        def work() -> dict[str, Any]:
            self._files.invalidate_cache()
            return self._files.find(self._path(folder).rstrip("/"), detail=True)

        try:
            found = self._again("listed", folder, work)
        except FileNotFoundError:
            found = {}
        start = self._root.lstrip("/") + "/"
        names = {}
        for path, info in found.items():
            name = path.lstrip("/").removeprefix(start)
            if path.lstrip("/").startswith(start) and (every or not refusal(name)):
                names[name] = int(info["size"])
        return dict(sorted(names.items()))

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; those that are gone already are no matter."""
        for start in range(0, len(names), 1000):
            paths = [self._path(name) for name in names[start : start + 1000]]
            try:
                self._again("deleted", "", lambda paths=paths: self._files.rm(paths))
            except FileNotFoundError:
                for path in paths:
                    try:
                        self._again("deleted", "", lambda path=path: self._files.rm_file(path))
                    except FileNotFoundError:
                        pass

    def upload(self, path: pathlib.Path, name: str) -> None:
        """Writes a file of this machine to an object."""
        try:
            self._again("written", name, lambda: self._files.put_file(str(path), self._path(name)))
        except FileNotFoundError as error:
            raise self._no_bucket() from error

    def _no_bucket(self) -> StoreError:
        return StoreError(f"{self.url} cannot be written, because there is no such bucket; create it first.")


def _reason(error: BaseException) -> str:
    """The first line of what a library said, short and without the parts of an address that may be signed."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?\S+", "", text)[:200]


def in_parallel(work: Callable[[T], Any], items: Iterable[T], count: int = TRANSFERS) -> Iterator[Any]:
    """Yields `work(item)` as the items get done, in threads, a bounded number at a time; the first error ends it."""
    pending: set[concurrent.futures.Future] = set()
    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        for item in items:
            pending.add(pool.submit(work, item))
            if len(pending) >= 2 * count:
                done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        for future in concurrent.futures.as_completed(pending):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
