"""How the command lines of this project behave: errors in one sentence, exit statuses, progress, atomic files."""

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells have it


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the thing and the remedy."""


def run(main: Callable[[], int | None]) -> None:
    """Runs `main` and exits: 0, or 2 and one sentence on stderr for a `UserError` or a refusal of the file system."""
    try:
        status = main() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted; nothing half-written is left.", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        name = f" ({error.filename})" if error.filename else ""
        print(
            f"error: the file system refused: {error.strerror or error}{name}; "
            "free space or choose a writable folder, then run the same command again.",
            file=sys.stderr,
        )
        status = EXIT_USER_ERROR
    sys.exit(status)


def atomic_write(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file that is either absent (or as before) or complete, also after a crash.

    A process that is killed meanwhile may leave `.NAME.XXXXXXXX.tmp` beside it; see `remove_unfinished`.
    """
    path = pathlib.Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes what `atomic_write` of killed processes left in a folder in which nobody else is writing."""
    for leftover in pathlib.Path(folder).glob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink()


def progress(items: Iterable[T], total: int, label: str, every: float = 10.0) -> Iterator[T]:
    """Yields `items`; shows a bar with ETA on a terminal, and a line every `every` seconds elsewhere (stderr)."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit="", dynamic_ncols=True)
        return
    start = shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every or count == total:
            rate = count / max(now - start, 1e-9)
            left = (total - count) / max(rate, 1e-9)
            print(f"{label}: {count}/{total}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now
