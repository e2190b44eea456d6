"""How does a run live in an object store (`--workdir=s3://bucket/runs/x`), although machines vanish at any moment?

The run works in a local folder below `input_pipeline.remote.cache_root()`, which `local` fills from the store before it
and mirrors while it lasts: after every change but growing logs, for logs alone every minute, and at every end, SIGTERM
included. What is mirrored are snapshots (`research.remote.snapshot`), states from which the run goes on as if it had
been killed there; `research.remote.generations` says how they lie in the store. A push that fails is tried again; if it
still fails at the end, the run ends with an error, and the same command on the same machine pushes what the cache has.

One window is left: an owner that stands still for longer than its lease between asking for its lock and deleting old
parts may delete parts that its successor lists. That is noticed when they are read.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.remote import PART_BYTES, Store, StoreError, cache_name, cache_root, is_remote
from research.remote.generations import LOCK, Damaged, Manifest, Pusher, manifests, pull, read_manifest
from research.remote.lock import Lock, LostLock
from research.remote.snapshot import Restless, Snapshots, Stat, listing, look

POLL = 1.0  # seconds between two looks at the folder
LOGS_EVERY = 60.0  # seconds between two generations that differ in logs only
AFTER_FAILURE = 20.0  # seconds until a push is tried again


@contextlib.contextmanager
def local(workdir: str, dry_run: bool = False) -> Iterator[pathlib.Path]:
    """The local folder for a run: `workdir` itself, or the mirrored one if it is the address of a store.

    With `dry_run` nothing is fetched, locked or mirrored.

    Raises:
      UserError: another run is at work there, several processes form one job, or the store cannot be reached; at the
        end, that what the run did is not in the store.
    """
    if not is_remote(workdir):
        yield pathlib.Path(workdir)
        return
    store = Store(workdir)
    place = cache_root() / "runs" / cache_name(store.url)
    if dry_run:
        yield place / "run"
        return
    from research.training import cluster

    if cluster.count() > 1:
        raise UserError(
            f"a job of several processes needs a --workdir on a disk that all share, not {store.url}; mount the bucket."
        )
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place, store.url):
        with _mirrored(store, place) as folder:
            yield folder


@contextlib.contextmanager
def _alone(place: pathlib.Path, url: str) -> Iterator[None]:
    """Keeps the cached folder for this process."""
    with open(place / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another run is at work in {url} on this machine; wait for it or choose another --workdir."
            ) from error
        yield


@contextlib.contextmanager
def _mirrored(store: Store, place: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = place / "run"
    cache = _Cache(place)
    lock = Lock(store, LOCK, cache.name)
    lock.acquire()
    try:
        base = _bring(store, folder, cache)
        mirror = _Mirror(store, folder, cache, lock, base)
    except BaseException:
        lock.release()
        raise
    try:
        try:
            yield folder
        finally:
            mirror.finish()
    finally:
        lock.release()


class _Cache:
    """What is known of the cached folder: its name, and the generation that it continues."""

    def __init__(self, place: pathlib.Path) -> None:
        self._file = place / "state.json"
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            self.name, self.generation = str(content["name"]), tuple(content["generation"])
        except (OSError, ValueError, KeyError, TypeError):
            self.name, self.generation = uuid.uuid4().hex, ()

    def continues(self, generation: tuple[int, ...]) -> None:
        """Notes the generation that the folder is, or is a continuation of; () while it is neither."""
        self.generation = generation
        atomic_write(self._file, json.dumps({"name": self.name, "generation": generation}) + "\n")


def _bring(store: Store, folder: pathlib.Path, cache: _Cache) -> Manifest | None:
    """Brings the folder up to the store's newest generation, unless it has gone on from there already."""
    newest = next(iter(manifests(store)), None)
    if newest and newest == cache.generation and folder.is_dir():
        try:
            return read_manifest(store, newest)
        except Damaged:
            return None  # the folder is whole, and is pushed anew
    if newest is None and cache.generation == (0, 0) and folder.is_dir():
        return None  # it was begun here, and ended before anything was in the store
    cache.continues(())
    manifest = pull(store, folder, mend=True)
    if manifest is None and folder.is_dir():
        raise UserError(
            f"{store.url} holds no run, but {folder} goes on with one that was there; delete that folder to begin anew."
        )
    cache.continues(manifest.generation if manifest else (0, 0))
    folder.mkdir(exist_ok=True)
    return manifest


class _Mirror:
    """Pushes the folder whenever it has changed, in a thread of its own."""

    def __init__(self, store: Store, folder: pathlib.Path, cache: _Cache, lock: Lock, base: Manifest | None) -> None:
        self._url, self._folder, self._cache, self._lock = store.url, folder, cache, lock
        self._snapshots = Snapshots(folder, folder.with_name("links"), PART_BYTES)
        self._pusher = Pusher(store, lock, base)
        self._seen: tuple[dict[str, Stat], dict[str, Stat]] = ({}, {})
        self._pushed_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(POLL):
            if self._lock.lost:
                self._end_run()
                return
            if not self._due():
                continue
            try:
                self._push()
            except Restless:
                continue
            except LostLock:
                self._end_run()
                return
            except Exception as error:  # the training goes on; `finish` tries for the last time
                logging.warning("The run is not in %s at the moment (%s); trying again.", self._url, error)
                self._stop.wait(AFTER_FAILURE)

    def _due(self) -> bool:
        seen = look(self._folder)
        if seen[0] != self._seen[0]:
            return True
        return seen[1] != self._seen[1] and time.monotonic() - self._pushed_at >= LOGS_EVERY

    def _push(self, logs: bool = False) -> None:
        """Pushes a snapshot unless it is what the store has."""
        seen = look(self._folder)
        held = self._snapshots.take()
        try:
            known = self._pusher.last.files if self._pusher.last else {}
            if listing(held) != known:
                self._cache.continues(self._pusher.push(held).generation)
            self._pusher.copy_for_people(held, logs)
        except Restless:
            self._snapshots.forget()
            raise
        self._seen, self._pushed_at = seen, time.monotonic()

    def _end_run(self) -> None:
        """Asks the run to stop, as its results can no longer be kept."""
        if not self._stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def finish(self) -> None:
        """Pushes what is left; the run has ended.

        Raises:
          UserError: that failed.
        """
        self._stop.set()
        self._thread.join()
        for last in (False, False, True):
            try:
                self._push(logs=True)
                break
            except LostLock:
                raise
            except (Restless, StoreError, OSError) as error:
                if last:
                    text = str(error) or "the folder does not stay still"
                    raise UserError(
                        f"The results are in {self._folder}, but not in {self._url} ({text}); run the same command on "
                        "this machine again, and they are pushed."
                    ) from error
        if not self._pusher.last:
            return
        files = self._pusher.last.files
        size = sum(entry["size"] for entry in files.values())
        print(f"In {self._url}: {len(files)} files, {size / 1e6:.1f} MB.", file=sys.stderr, flush=True)
