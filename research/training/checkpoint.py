"""How the state survives: one folder per step, complete or absent, verified by checksums before it is trusted.

orbax writes the arrays. Around it: all goes to a temporary folder which is renamed when complete, `manifest.json`
holds the SHA-256 of every file, and a step that fails the check on restore is passed over for the one before it, aloud
(orbax itself restores flipped bits silently). Of several processes the first one writes and reads, for all.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from input_pipeline.cli import UserError
from research.training import cluster, sharding

_MANIFEST = "manifest.json"
_OVERHEAD = 2**20  # bytes of a checkpoint beside its arrays, generously


def _hash(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: pathlib.Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): _hash(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _MANIFEST
    }


def damage(folder: pathlib.Path) -> str:
    """Says what is wrong with a checkpoint folder ("d/1a63: changed"), or "" if it is as it was written."""
    try:
        expected = dict(json.loads((folder / _MANIFEST).read_text())["sha256"])
        found = _files(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{_MANIFEST}: {error}"
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name}: " + ("missing" if name not in found else "changed" if name in expected else "unexpected")
    # Folders that were swapped or renamed are whole in themselves.
    step = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["step"] if "meta.json" in found else None
    return "" if folder.name == str(step) or not folder.name.isdigit() else f"meta.json: it is of step {step}"


def shapes(tree) -> dict[str, list]:
    """Path → [shape, dtype] of a tree's arrays, to compare a checkpoint with a model before reading it."""
    return {"/".join(k): [list(v.shape), str(v.dtype)] for k, v in flatten_dict(tree).items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the traceback that orbax prints of every task which a full disk ends; its exception says it once."""
    logger, printed = logging.get_absl_logger(), io.StringIO()
    logger.addFilter(_is_no_failure_of_orbax)
    try:
        with contextlib.redirect_stderr(printed):  # of tensorstore's threads
            yield
    except BaseException:
        logging.debug("%s", printed.getvalue())
        raise
    finally:
        logger.removeFilter(_is_no_failure_of_orbax)
    print(printed.getvalue(), end="", file=sys.stderr)


def _is_no_failure_of_orbax(record) -> bool:
    return record.levelname != "ERROR" or "orbax" not in record.pathname


class Checkpoints:
    """The checkpoints of one trial in `folder`; keeps the newest two and the best."""

    def __init__(self, folder: str | os.PathLike) -> None:
        import orbax.checkpoint as ocp

        self.folder = pathlib.Path(folder).absolute()
        if not cluster.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        only = {"multiprocessing_options": options} if jax.process_count() > 1 else {}
        self._orbax = ocp.StandardCheckpointer(**only)
        for leftover in self.folder.glob(".tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps with a folder, ascending."""
        return cluster.from_first(self._steps)

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def is_whole(self, step: int) -> bool:
        """Whether `step` is there and as it was written."""
        return cluster.from_first(lambda: step in self._steps() and not damage(self.folder / str(step)))

    def save(self, step: int, tree, meta: dict, best_step: int) -> None:
        """Writes arrays and JSON `meta` of `step` and returns when they are on disk; prunes to newest two + best."""
        if cluster.count() > 1:  # parameters may be spread over the hosts
            tree = jax.tree.map(sharding.to_host, tree)
        cluster.from_first(lambda: self._save(step, tree, meta, best_step))

    def _save(self, step: int, tree, meta: dict, best_step: int) -> None:
        temporary = self.folder / f".tmp.{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self._write_arrays(temporary / "state", tree)
        content = json.dumps(meta | {"step": step, "shapes": shapes(tree)}, indent=1)
        (temporary / "meta.json").write_text(content, encoding="utf-8")
        (temporary / _MANIFEST).write_text(json.dumps({"sha256": _files(temporary)}, indent=1), encoding="utf-8")
        _sync(temporary)
        self._replace(temporary, self.folder / str(step))
        for old in self._steps()[:-2]:
            if old != best_step:
                shutil.rmtree(self.folder / str(old))

    def _write_arrays(self, path: pathlib.Path, tree) -> None:
        """Hands the arrays to orbax; a full disk is a UserError, seen beforehand where possible."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + _OVERHEAD
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise UserError(
                f"A checkpoint needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free in {self.folder}; the ones "
                "before it are intact: make room and run the same command again."
            )
        try:
            with _quiet():
                self._orbax.save(path, tree)
                self._orbax.wait_until_finished()
        except (OSError, ValueError) as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            text = str(error)
            reason = "no space left on the device" if "No space left" in text else text.splitlines()[0]
            raise UserError(
                f"The checkpoint could not be written to {self.folder} ({reason}); the ones before it are intact: make "
                "room and run the same command again."
            ) from error

    def _replace(self, temporary: pathlib.Path, final: pathlib.Path) -> None:
        """A step saved again (stopped before its evaluation, say) takes the place of the earlier save."""
        if final.exists():
            old = self.folder / f".tmp.old.{final.name}"
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old)
        else:
            os.rename(temporary, final)

    def latest(self) -> int | None:
        """The newest undamaged step or None without any; says which it passed over and sets them aside as `damaged-N`.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        return cluster.from_first(self._latest)

    def _latest(self) -> int | None:
        steps = self._steps()
        for step in reversed(steps):
            problem = damage(self.folder / str(step))
            if not problem:
                return step
            logging.warning("Checkpoint of step %d is damaged (%s); falling back to the one before it.", step, problem)
            aside = self.folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)  # the same step may have been damaged before
            os.rename(self.folder / str(step), aside)
        if steps:
            raise UserError(f"All checkpoints in {self.folder} are damaged and set aside; run again to start afresh.")
        return None

    def meta(self, step: int) -> dict:
        """The JSON that was saved with `step`."""
        file = self.folder / str(step) / "meta.json"
        return cluster.from_first(lambda: json.loads(file.read_text(encoding="utf-8")))

    def restore(self, step: int, template):
        """Arrays of `step` into a tree of ShapeDtypeStructs (with shardings).

        Raises:
          UserError: names the first array that is missing, left over or of another shape: another model's checkpoint.
        """
        stored, wanted = self.meta(step)["shapes"], shapes(template)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"The checkpoint in {self.folder} belongs to another model: {name} is {stored.get(name)} there and "
                    f"{wanted.get(name)} here; choose another --workdir or the configuration that made it."
                )
        path = self.folder / str(step) / "state"
        if jax.process_count() == 1:
            return self._orbax.restore(path, template)
        # Through the host: orbax has no arrays on the devices of one process of several.
        arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        if cluster.is_first():
            arrays = self._orbax.restore(path, arrays)
        arrays = jax.tree.map(sharding.from_first, arrays)
        return jax.tree.map(lambda value, like: sharding.place(value, like.sharding), arrays, template)


def _sync(folder: pathlib.Path) -> None:
    """Flushes all files of a folder to the disk, so that the rename is not seen before them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
