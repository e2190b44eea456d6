"""What did a folder hold at one moment, while a program goes on writing into it?

All files are looked at twice. If nothing has changed between the end of the first look and the beginning of the second,
then what was seen is what the folder held at every moment in between (the double collect of Afek et al., Atomic
Snapshots of Shared Memory, 1993): a state in which the program might have been killed, and from which a run goes on.
Files that only grow (`metrics.jsonl`, TensorBoard events) are looked at last in the first look and may grow afterwards:
the part that was there is taken. Hard links hold the files meanwhile, in case the run deletes a checkpoint.

Left out: names with a leading dot (locks, temporary files) and the raw files of the simulated sample.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Mapping

Stat = tuple[int, int, int]  # inode, bytes, modification in ns

ATTEMPTS = 40
_TICK = 0.03  # seconds: two changes within one tick of the kernel's clock carry the same time
_RAW = "data/raw"


class Restless(Exception):
    """The folder does not stay still for a moment."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a file: its SHA-256 and where it lies."""

    sha256: str
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Held:
    """A file of a snapshot: its size, its parts, and a link that keeps its content."""

    size: int
    pieces: tuple[Piece, ...]
    link: pathlib.Path

    def read(self, piece: Piece) -> bytes:
        """The bytes of a part.

        Raises:
          Restless: the file was changed in place.
        """
        with open(self.link, "rb") as file:
            data = os.pread(file.fileno(), piece.size, piece.start)
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise Restless
        return data


def grows(path: str) -> bool:
    """Whether a run only appends to this file."""
    return path == "metrics.jsonl" or path.startswith("tensorboard/")


def look(folder: pathlib.Path) -> tuple[dict[str, Stat], dict[str, Stat]]:
    """The regular files below a folder by relative name: those that are replaced, then those that grow."""
    fixed: dict[str, Stat] = {}
    growing: list[str] = []
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            entries = list(os.scandir(folder / inside))
        except FileNotFoundError:
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith(".") or name == _RAW:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(name)
            elif grows(name):
                growing.append(name)
            elif entry.is_file(follow_symlinks=False) and (stat := _stat(folder / name)):
                fixed[name] = stat
    found = {name: stat for name in sorted(growing) if (stat := _stat(folder / name))}
    return fixed, found


def _stat(path: pathlib.Path) -> Stat | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Snapshots:
    """Takes snapshots of a folder.

    Args:
      folder: of the run.
      links: a folder on the same disk for the hard links.
      part_bytes: size of the parts.
    """

    def __init__(self, folder: pathlib.Path, links: pathlib.Path, part_bytes: int) -> None:
        self._folder, self._links, self._part_bytes = folder, links, part_bytes
        self._held: dict[Stat, Held] = {}
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir(parents=True)

    def take(self) -> dict[str, Held]:
        """The folder at one moment, by relative name.

        Raises:
          Restless: it changes all the time.
        """
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(min(0.02 * attempt, 0.5))
            fixed, growing = look(self._folder)
            newest = max((stat[2] for stat in fixed.values()), default=0)
            if 0 <= time.time_ns() - newest < _TICK * 1e9:
                time.sleep(_TICK)  # a change within the same tick would not show
                continue
            try:
                held = {name: self._hold(name, stat, name in growing) for name, stat in {**fixed, **growing}.items()}
            except FileNotFoundError:
                continue
            fixed_again, growing_again = look(self._folder)
            grown = all(
                name in growing_again and growing_again[name][0] == stat[0] and growing_again[name][1] >= stat[1]
                for name, stat in growing.items()
            )
            if fixed_again == fixed and grown and None not in held.values():
                self._drop(set(fixed.values()) | set(growing.values()))
                return held
        raise Restless

    def _hold(self, name: str, stat: Stat, growing: bool) -> Held | None:
        """Links and hashes a file, unless that was done before; None if it is not as it was seen."""
        if stat in self._held:
            return self._held[stat]
        link = self._links / f"{stat[0]}-{stat[1]}-{stat[2]}"
        if not link.exists():
            try:
                os.link(self._folder / name, link, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links
                shutil.copy2(self._folder / name, link)
        pieces = []
        with open(link, "rb") as file:
            now = os.fstat(file.fileno())
            if now.st_size < stat[1] or not growing and (now.st_size, now.st_mtime_ns) != stat[1:]:
                link.unlink()
                return None
            for start in range(0, stat[1], self._part_bytes):
                data = os.pread(file.fileno(), min(self._part_bytes, stat[1] - start), start)
                pieces.append(Piece(hashlib.sha256(data).hexdigest(), start, len(data)))
        self._held[stat] = Held(stat[1], tuple(pieces), link)
        return self._held[stat]

    def forget(self) -> None:
        """Hashes everything anew the next time, since a file was changed in place."""
        self._drop(set())

    def _drop(self, kept: set[Stat]) -> None:
        for stat in self._held.keys() - kept:
            self._held.pop(stat).link.unlink(missing_ok=True)


def listing(held: Mapping[str, Held]) -> dict[str, dict]:
    """What a manifest says of a snapshot: size and parts of every file."""
    return {name: {"size": item.size, "parts": [p.sha256 for p in item.pieces]} for name, item in sorted(held.items())}
