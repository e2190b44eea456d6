"""An object store in memory, a lock that is held, and run folders that are soon made."""

import pathlib
import threading

from input_pipeline.remote import StoreError
from research.remote.lock import LostLock


class MemoryStore:
    """The methods of `Store` over a dict; `left` operations work, the rest fails, as when the machine vanishes."""

    def __init__(self, url="s3://bucket/runs/x"):
        self.url, self.objects, self.left, self.guard = url, {}, None, threading.Lock()
        self.written = []

    def _change(self):
        if self.left is not None:
            if self.left <= 0:
                raise StoreError("the store is gone")
            self.left -= 1

    def read(self, name):
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def write(self, name, data, create=False):
        with self.guard:
            self._change()
            if create and name in self.objects:
                raise FileExistsError(name)
            self.objects[name] = bytes(data)
            self.written.append(name)

    def copy(self, source, target):
        self.write(target, self.read(source))

    def upload(self, path, name):
        self.write(name, path.read_bytes())

    def names(self, folder=""):
        return {name: len(data) for name, data in sorted(self.objects.items()) if name.startswith(folder)}

    def delete(self, names):
        for name in names:
            with self.guard:
                self._change()
                self.objects.pop(name, None)


class Owner:
    """A lock that is held without a thread."""

    def __init__(self, number=1):
        self.number, self.lost = number, False

    def check(self):
        if self.lost:
            raise LostLock("lost")


def write(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Makes the folder hold exactly these files, each written as the run does it."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != content:
            path.with_name(".new").write_text(content)
            path.with_name(".new").replace(path)


def read(folder: pathlib.Path) -> dict[str, str]:
    """The files of a folder."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def state(step: int) -> dict[str, str]:
    """The files of a run at a step: two checkpoints, each of several parts, a ledger, logs, and an empty file."""
    saved = {f"checkpoints/a/{s}/x": f"checkpoint of step {s}, " * 3 for s in range(max(0, step - 1), step + 1)}
    logs = {"metrics.jsonl": "".join(f"row {s}\n" for s in range(step + 1)), "empty": ""}
    return saved | logs | {"trials.csv": f"step {step}\n", "report/index.html": f"<p>{step}"}
