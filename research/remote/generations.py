"""What does an object store hold of a run, and how does one state of it become the next?

    .mirror/objects/SHA256           parts of files by content; never changed
    .mirror/manifests/N-G.json       generation G of owner N: size and parts of every file; the largest (N, G) counts
    .mirror/lock/N.json              see `research.remote.lock`
    trials.csv, report/index.html …  copies under their own names for people; never read back

A manifest is written when all its parts are there, as one object, so a reader sees one generation or the next. The two
newest are kept with their parts, the rest is deleted afterwards; a part that is missing or damaged is noticed by its
name, and the generation before is taken, aloud.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping

from absl import logging

from input_pipeline import cli
from input_pipeline.cli import UserError
from input_pipeline.raw import refusal
from input_pipeline.remote import PART_BYTES, Store, in_parallel
from research.remote.lock import Lock
from research.remote.snapshot import Held, Snapshots, grows, listing

LOCK = ".mirror/lock"
_OBJECTS, _MANIFESTS = ".mirror/objects", ".mirror/manifests"
_NAME = re.compile(_MANIFESTS + r"/(\d{8})-(\d{8})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT = 2  # generations

Generation = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a generation holds: `files` by relative name, each {"size": bytes, "parts": [SHA-256, ...]}."""

    generation: Generation
    part_bytes: int
    files: dict[str, dict]

    @property
    def parts(self) -> set[str]:
        return {part for entry in self.files.values() for part in entry["parts"]}


class Damaged(Exception):
    """An object of a generation is missing or is not what its name says; `part` is the one that is not."""

    def __init__(self, what: str, part: str = "") -> None:
        super().__init__(what)
        self.part = part


def _object(part: str) -> str:
    return f"{_OBJECTS}/{part}"


def _manifest_name(generation: Generation) -> str:
    return f"{_MANIFESTS}/{generation[0]:08d}-{generation[1]:08d}.json"


def manifests(store: Store) -> list[Generation]:
    """The generations in the store, newest first."""
    found = (_NAME.fullmatch(name) for name in store.names(_MANIFESTS))
    return sorted(((int(match[1]), int(match[2])) for match in found if match), reverse=True)


def read_manifest(store: Store, generation: Generation) -> Manifest:
    """Reads a manifest.

    Raises:
      Damaged: it is missing, or is none; names that lead out of the folder make it none.
    """
    try:
        content = json.loads(store.read(_manifest_name(generation)))
        part_bytes, files = int(content["part_bytes"]), content["files"]
        for name, entry in files.items():
            size, parts = entry["size"], entry["parts"]
            sound = not refusal(name) and isinstance(size, int) and len(parts) == -(-size // part_bytes)
            if not sound or not all(_DIGEST.fullmatch(part) for part in parts):
                raise ValueError(name)
    except (FileNotFoundError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its manifest: {error}") from error
    return Manifest(generation, part_bytes, files)


# From the store


def pull(store: Store, folder: pathlib.Path, mend: bool = False) -> Manifest | None:
    """Makes `folder` what the newest undamaged generation says and returns that; None where the store has no run.

    Args:
      mend: delete parts whose content is not what their name says, so that they are written again.

    Raises:
      UserError: there are generations, and all are damaged.
    """
    tried: set[Generation] = set()
    # Listed anew each time: a run that is at work replaces generations while they are read.
    while left := [generation for generation in manifests(store) if generation not in tried]:
        tried.add(left[0])
        try:
            manifest = read_manifest(store, left[0])
            _fill(store, folder, manifest)
            return manifest
        except Damaged as error:
            logging.warning("Generation %s of %s is damaged (%s); taking another one.", left[0], store.url, error)
            if mend and error.part:
                store.delete([_object(error.part)])
    if tried:
        raise UserError(
            f"all generations of the run in {store.url} are damaged; choose another --workdir, or delete what is there."
        )
    return None


def _fill(store: Store, folder: pathlib.Path, manifest: Manifest) -> None:
    """Fetches what is missing or different, each part checked by its digest; deletes what is not in the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    links = folder.with_name(f".{folder.name}.compared")
    try:
        here = listing(Snapshots(folder, links, manifest.part_bytes).take())
    finally:
        shutil.rmtree(links, ignore_errors=True)
    wanted = {name: entry for name, entry in manifest.files.items() if here.get(name) != entry}
    incoming = folder.with_name(f".{folder.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    tasks = []
    for number, (_, entry) in enumerate(wanted.items()):
        with open(incoming / str(number), "wb") as file:
            file.truncate(entry["size"])
        tasks += [(number, index, part) for index, part in enumerate(entry["parts"])]

    def fetch(task: tuple[int, int, str]) -> None:
        number, index, part = task
        try:
            data = store.read(_object(part))
        except FileNotFoundError as error:
            raise Damaged(f"the part {part} is missing") from error
        if hashlib.sha256(data).hexdigest() != part:
            raise Damaged(f"the part {part} has another content", part)
        with open(incoming / str(number), "r+b") as file:
            file.seek(index * manifest.part_bytes)
            file.write(data)

    for _ in cli.progress(in_parallel(fetch, tasks), len(tasks), f"fetching {store.url}, parts"):
        pass
    for name in here.keys() - manifest.files.keys():
        (folder / name).unlink()
    for number, (name, entry) in enumerate(wanted.items()):
        if (incoming / str(number)).stat().st_size != entry["size"]:
            raise Damaged(f"{name} has another size")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(incoming / str(number), folder / name)
    incoming.rmdir()
    _remove_empty(folder)


def _remove_empty(folder: pathlib.Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


# To the store


class Pusher:
    """Writes generations of one owner.

    Args:
      store: where.
      lock: held; asked before a manifest is written and before anything is deleted.
      base: what the store holds, or None.
    """

    def __init__(self, store: Store, lock: Lock, base: Manifest | None) -> None:
        self._store, self._lock, self._count = store, lock, 0
        self.last = base
        self._kept = [base] if base else []
        self._there = {name.rpartition("/")[2] for name in store.names(_OBJECTS)}
        self._copies: dict[str, dict] = {}

    def push(self, held: Mapping[str, Held]) -> Manifest:
        """Writes a snapshot: missing parts, then the manifest; then deletes what neither of the two newest lists.

        Raises:
          StoreError: the store fails; what it held before is intact.
          LostLock: another machine has taken over.
          Restless: a file was changed in place meanwhile.
        """
        missing = {}
        for item in held.values():
            missing |= {p.sha256: (item, p) for p in item.pieces if p.sha256 not in self._there}

        def put(entry: tuple) -> str:
            item, piece = entry
            self._store.write(_object(piece.sha256), item.read(piece))
            return piece.sha256

        for part in in_parallel(put, missing.values()):
            self._there.add(part)
        self._lock.check()
        self._count += 1
        manifest = Manifest((self._lock.number, self._count), PART_BYTES, listing(held))
        content = {"part_bytes": manifest.part_bytes, "files": manifest.files}
        self._store.write(_manifest_name(manifest.generation), json.dumps(content, indent=1).encode())
        self.last = manifest
        self._kept = [*self._kept, manifest][-_KEPT:]
        self._prune()
        return manifest

    def _prune(self) -> None:
        kept = {manifest.generation for manifest in self._kept}
        old = [generation for generation in manifests(self._store) if generation not in kept]
        useless = sorted(self._there - set().union(*(manifest.parts for manifest in self._kept)))
        if old or useless:
            self._lock.check()
            self._store.delete([_manifest_name(generation) for generation in old])
            self._store.delete([_object(part) for part in useless])
            self._there -= set(useless)

    def copy_for_people(self, held: Mapping[str, Held], logs: bool) -> None:
        """Copies what people read (not checkpoints and data; growing logs with `logs`) under its own names."""
        every = listing(held)
        wanted = {name: every[name] for name in every if not name.startswith(("checkpoints/", "data/"))}
        for name, entry in wanted.items():
            if self._copies.get(name) == entry or (grows(name) and not logs):
                continue
            if len(entry["parts"]) == 1:
                self._store.copy(_object(entry["parts"][0]), name)
            else:
                self._store.upload(held[name].link, name)
            self._copies[name] = entry
        gone = [name for name in self._copies if name not in wanted]
        self._store.delete(gone)
        for name in gone:
            del self._copies[name]
