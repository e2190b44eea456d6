"""How does a dataset folder appear only when it is complete, whatever happens while it is written?

Everything is written into a hidden sibling, `.<name>.preparing`, which is renamed in the end. The sibling is locked
(`flock`, which the kernel releases when a process dies), so a second run into the same folder is refused while the
first lives, and what a killed run left behind is cleared away by the next.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from input_pipeline.cli import UserError

FINISHED = ("records.json", "splits.json")
"""Files that make a folder a finished dataset."""


def check_target(out: pathlib.Path, source: pathlib.Path) -> None:
    """Refuses a target that would overwrite something or lie inside the raw data.

    Raises:
        UserError: says which, and the remedy.
    """
    if out.name in ("", "..") or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is a file, not a folder: choose another --out.")
    resolved, source = out.resolve(), source.resolve()
    if source.is_dir() and (resolved == source or source in resolved.parents):
        raise UserError(f"{out} lies inside the raw data {source}, which are never changed: choose another --out.")
    if out.is_dir():
        if all((out / name).exists() for name in FINISHED):
            raise UserError(f"{out} is a prepared dataset already: remove it or choose another --out.")
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty and is no prepared dataset: choose another --out.")


def _lock(folder: pathlib.Path, out: pathlib.Path) -> int:
    """Creates the folder if need be and locks it; returns the open descriptor."""
    for _ in range(10):
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another run has just finished and renamed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been renamed between opening and locking; then the lock is on a finished dataset.
            if folder.exists() and os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"another run is preparing {out} now: wait for it, or choose another --out.") from None
        os.close(descriptor)
    raise UserError(f"another run keeps preparing {out}: choose another --out.")


def _clear(folder: pathlib.Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


@contextlib.contextmanager
def building(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write into, which becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        UserError: another run is writing the same folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name}.preparing"
    descriptor = _lock(folder, out)
    try:
        _clear(folder)
        yield folder
        os.fsync(descriptor)
        os.rename(folder, out)
        parent = os.open(out.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
