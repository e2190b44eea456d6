"""How is a run folder in an object store kept for one machine at a time, although machines vanish without a word?

Owners are numbered. The lock is the object `lock/N.json` with the largest N; its owner writes it anew every quarter of
the lease, and marks it as released when it leaves. Whoever comes next takes number N + 1, once the lock is released or
has not changed for a lease; an object is created only where there is none of its name, so one of several gets it (where
a store cannot promise that, the one whose content stands in it). The time is taken on the clock of the machine that
waits, so clocks need not agree. An owner that comes back after its lease finds a larger number and stops.
"""

import json
import os
import platform
import sys
import threading
import time
import uuid

from absl import logging

from input_pipeline.cli import UserError
from input_pipeline.remote import Store, StoreError

LEASE = 60.0
"""Seconds of silence after which an owner is taken for gone; $RESEARCH_REMOTE_LEASE changes it."""

_LONG_GONE = 3600.0  # seconds by the clock of the wall: no two clocks differ by so much


class LostLock(UserError):
    """Another machine has taken over."""


def lease() -> float:
    """The lease in seconds.

    Raises:
        UserError: the variable holds no positive number.
    """
    given = os.environ.get("RESEARCH_REMOTE_LEASE", "")
    try:
        seconds = float(given) if given else LEASE
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 86400.0:
        raise UserError(f"RESEARCH_REMOTE_LEASE={given} is no number of seconds between 1 and 86400.")
    return seconds


class Lock:
    """The lock of a run folder, to be acquired by one process and held by a thread of its own.

    Args:
      store: the run's folder in the store.
      folder: below which the lock's objects lie.
      owner: a name of the local cache; a lock that was taken from there is known to be free, since the cache is.
    """

    def __init__(self, store: Store, folder: str, owner: str) -> None:
        self._store, self._folder, self._owner = store, folder, owner
        self._token, self._lease, self._beats = uuid.uuid4().hex, lease(), 0
        self.number = 0
        self.lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Waits until the last owner is known to be gone, then takes the lock.

        Raises:
          UserError: the other owner is at work.
        """
        while True:
            newest = self._newest()
            if newest:
                self._wait_for(newest)
            if self._take(newest + 1):
                break
        self._store.delete([name for name in self._store.names(self._folder) if _number(name) < self.number])
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Asks the store whether the lock is still ours.

        Raises:
          LostLock: it is not.
        """
        if self.lost or self._newest() > self.number:
            self.lost = True
            raise LostLock(
                f"Another machine has taken {self._store.url} over, because this one was not heard of for "
                f"{self._lease:.0f} s; what it did since is not in the store."
            )

    def release(self) -> None:
        """Ends the heartbeat and says that the lock is free; a store that fails now only makes the next owner wait."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        try:
            if not self.lost:
                self._store.write(self._name(self.number), self._content(released=True))
        except (StoreError, OSError) as error:
            logging.warning("The lock of %s is not released (%s); the next run waits for it.", self._store.url, error)

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _newest(self) -> int:
        return max(map(_number, self._store.names(self._folder)), default=0)

    def _content(self, released: bool = False) -> bytes:
        self._beats += 1
        content = {"token": self._token, "owner": self._owner, "machine": platform.node(), "process": os.getpid()}
        return json.dumps(content | {"beat": self._beats, "time": time.time(), "released": released}).encode()

    def _read(self, number: int) -> dict:
        """What an owner says; {} for an object that is gone or no lock."""
        try:
            content = json.loads(self._store.read(self._name(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _take(self, number: int) -> bool:
        try:
            self._store.write(self._name(number), self._content(), create=True)
        except FileExistsError:
            pass  # another's, or our own from an attempt whose answer was lost
        if self._read(number).get("token") != self._token:
            return False
        self.number = number
        return True

    def _wait_for(self, number: int) -> None:
        """Returns when the owner `number` has released the lock or is gone."""
        first = content = self._read(number)
        started = time.monotonic()
        age = time.time() - float(content.get("time", 0)) if content else _LONG_GONE
        if not content or content.get("released") or content.get("owner") == self._owner or age >= _LONG_GONE:
            return
        print(
            f"{self._store.url} belongs to a run on {content.get('machine')}; taking it over if nothing is heard of it "
            f"for {self._lease:.0f} s.",
            file=sys.stderr,
            flush=True,
        )
        while time.monotonic() - started < self._lease:
            time.sleep(self._lease / 20)
            content = self._read(number)
            if not content or content.get("released"):
                return
            if content.get("beat") != first.get("beat"):
                raise UserError(
                    f"Another run is at work in {self._store.url} (process {content.get('process')} on "
                    f"{content.get('machine')}); wait for it or choose another --workdir."
                )

    def _beat(self) -> None:
        while not self._stop.wait(self._lease / 4):
            try:
                self.check()
                self._store.write(self._name(self.number), self._content())
            except LostLock as error:
                logging.error("%s", error)
                return
            except Exception as error:  # the run goes on; if another takes over meanwhile, `check` finds out
                logging.warning("The lock of %s could not be renewed (%s).", self._store.url, error)


def _number(name: str) -> int:
    stem = name.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isascii() and stem.isdigit() else 0
