"""Is any damage to a prepared data set or to checkpoints believed?

    python -m tests.campaign.damage [--count=200] [--runs=6] [--seed=0] [--out=summary.json] [--folder=DIR]

Flipped bits and bytes, cut ends, appended bytes, zeroed stretches, deleted files, swapped files and swapped folders,
drawn at random. Half of the attempts damage a data set (shards, indices, records.json, splits.json, features.json, the
other files), which is then opened and read whole; the other half damage the checkpoints of a run, whose newest is then
restored as a training does. Each must end in one of three ways, all others are silent damage:

    refused     a UserError in one sentence
    older       an older checkpoint, and a warning that says so
    same        everything that is read is what it was: the damaged bytes are not used

`--runs` attempts go further: a whole run is damaged while it is interrupted, and started again in a process of its own;
it must refuse in one sentence with status 2, or end with the states, ledger and predictions of the undisturbed run.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import sys

import jax
import numpy as np
from absl import logging

from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from research.training import checkpoint
from research.training.checkpoint import Checkpoints
from tests.campaign import common, driver

KILLED_AT = ("checkpoint: renamed, before the pruning", "evaluation: after, before its row")

# Damage


def _flip(path: pathlib.Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} flipped"


def _byte(path: pathlib.Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place, value = rng.randrange(len(data)), rng.randrange(1, 256)
    data[place] = (data[place] + value) % 256
    path.write_bytes(data)
    return f"byte {place} changed by {value}"


def _cut(path: pathlib.Path, rng: random.Random) -> str:
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"cut to {size} bytes"


def _append(path: pathlib.Path, rng: random.Random) -> str:
    data = rng.randbytes(rng.randrange(1, 40))
    with open(path, "ab") as file:
        file.write(data)
    return f"{len(data)} bytes appended"


def _zero(path: pathlib.Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randrange(1, 4096))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    return f"bytes {start} to {stop} zeroed"


def _delete(path: pathlib.Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _empty(path: pathlib.Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


ONE_FILE = (_flip, _flip, _flip, _byte, _cut, _append, _zero, _delete, _empty)


def swap(one: pathlib.Path, other: pathlib.Path) -> str:
    """Exchanges two files or folders."""
    between = one.with_name(f".{one.name}.between")
    os.rename(one, between)
    os.rename(other, one)
    os.rename(between, other)
    return f"swapped with {other.name}"


def damage(files: list[pathlib.Path], rng: random.Random, folders: list[pathlib.Path]) -> str:
    """Does one random damage to one of the files, or swaps two of them or two folders; says what."""
    kind = rng.randrange(len(ONE_FILE) + 2)
    if kind == len(ONE_FILE) and len(files) > 1:
        one, other = rng.sample(files, 2)
        return f"{one.name}: {swap(one, other)}"
    if kind == len(ONE_FILE) + 1 and len(folders) > 1:
        one, other = rng.sample(folders, 2)
        return f"{one.parent.name}/{one.name}: {swap(one, other)}"
    path = rng.choice([path for path in files if path.stat().st_size])
    return f"{path.name}: {ONE_FILE[min(kind, len(ONE_FILE) - 1)](path, rng)}"


# What is read


def content_of(folder: pathlib.Path) -> str:
    """SHA-256 of everything that training and evaluation take from a data set."""
    dataset, digest = open_dataset(folder), hashlib.sha256()
    facts = (dataset.name, dataset.class_names, dataset.multi_label, dataset.simulated, dataset.channels,
             str(dataset.dtype), list(dataset.ids), list(dataset.roles), list(dataset.groups),
             dataset.folds.tolist(), dataset.labels.tolist(), dataset.genes, dataset.segmentation_classes,
             dataset.captions)  # fmt: skip
    digest.update(json.dumps(facts).encode("utf-8", "surrogatepass"))
    for index in range(len(dataset)):
        digest.update(dataset.encoded(index))
        if dataset.segmentation_classes:
            digest.update(dataset.encoded_segmentation(index))
    return digest.hexdigest()


def restored(folder: pathlib.Path) -> tuple[int | None, str]:
    """Newest step of the checkpoints in a folder, and the SHA-256 of its arrays and its JSON."""
    checkpoints = Checkpoints(folder)
    step = checkpoints.latest()
    if step is None:
        return None, ""
    meta = checkpoints.meta(step)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template: dict = {}
    for path, (shape, dtype) in meta["shapes"].items():
        *parents, name = path.split("/")
        place = template
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    tree = checkpoints.restore(step, template)
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return step, digest.hexdigest()


class Warnings:
    """Collects what is logged."""

    def __init__(self, monkey=checkpoint.logging) -> None:
        self.lines: list[str] = []
        self._logger, self._original = monkey, logging.warning

    def __enter__(self) -> "Warnings":
        self._logger.warning = lambda text, *values: self.lines.append(text % values)
        return self

    def __exit__(self, *error) -> None:
        self._logger.warning = self._original


def attempt_data(sound: pathlib.Path, expected: str, scratch: pathlib.Path, rng: random.Random) -> tuple[str, str]:
    """Damages a copy of a data set and reads it: what was done, and how it ended."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sound, scratch)
    files = sorted(path for path in scratch.iterdir() if path.is_file())
    what = damage(files, rng, [])
    try:
        found = content_of(scratch)
    except UserError as error:
        sentence(error)
        return what, "data refused"
    if found != expected:
        raise common.Fault(f"{what}: silently read as other data")
    return what, "data same"


def attempt_checkpoint(
    sound: pathlib.Path, expected: dict[int, str], scratch: pathlib.Path, rng: random.Random
) -> tuple[str, str]:
    """Damages a copy of a trial's checkpoints and restores the newest: what was done, and how it ended."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sound, scratch)
    steps = sorted((path for path in scratch.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    # Mostly the newest, which is the one that is read.
    target = steps[-1] if rng.random() < 0.8 else rng.choice(steps)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    what = f"step {target.name}, {damage(files, rng, steps)}"
    with Warnings() as warnings:
        try:
            step, digest = restored(scratch)
        except UserError as error:
            sentence(error)
            return what, "checkpoint refused"
    if step is None or expected.get(step) != digest:
        raise common.Fault(f"{what}: step {step} was silently restored with other content")
    if step == max(expected):
        return what, "checkpoint same"
    if not any("damaged" in line for line in warnings.lines):
        raise common.Fault(f"{what}: fell back to step {step} without a word")
    return what, "checkpoint older"


def sentence(error: UserError) -> None:
    """A UserError is one sentence."""
    text = str(error)
    if "\n" in text or len(text) > 600 or not text.strip():
        raise common.Fault(f"not one sentence: {text[:300]!r}")


def attempt_run(study: common.Study, reference: pathlib.Path, number: int, rng: random.Random) -> tuple[str, str]:
    """Interrupts a run, damages its checkpoints, and runs it again to the end."""
    workdir, log = study.folder / f"damaged-run{number}", study.folder / f"damaged{number}.log"
    points = [f"{name}:{passage}" for name in driver.POINTS for passage in (2, 3) if name in KILLED_AT]
    # Where the folders of both trials are exchanged, the second has begun.
    point = "checkpoint: renamed, before the pruning:7" if number % 3 == 2 else rng.choice(points)
    status = study.finish(workdir, log, CRASH_POINT=point)
    if status != -9:
        raise common.Fault(f"the run was to be killed and ended with status {status}")
    done, trials = [], sorted((workdir / "checkpoints").iterdir())
    if len(trials) > 1 and number % 3 == 2:
        done.append(f"{trials[0].name}: {swap(*trials)}")
    for folder in trials if not done else ():
        steps = sorted(path for path in folder.iterdir() if path.name.isdigit())
        if steps:
            newest = max(steps, key=lambda path: int(path.name))
            files = sorted(path for path in newest.rglob("*") if path.is_file())
            done.append(f"{folder.name}/{newest.name}, {damage(files, rng, steps)}")
    what = "; ".join(done)
    log.write_bytes(b"")
    status = study.finish(workdir, log)
    refusals = 0
    while status == 2 and refusals < 3:  # all checkpoints damaged: said, set aside, begun anew by the next start
        said = common.assert_sentence(log.read_text(), status)
        refusals += 1
        if "of the trial" in said:  # what the sentence advises
            swap(*trials)
        log.write_bytes(b"")
        status = study.finish(workdir, log)
    if status:
        raise common.Fault(f"{what}: status {status}; the log ends with {log.read_text()[-500:]!r}")
    aside = list(workdir.glob("checkpoints/*/damaged-*"))
    for path in aside:
        shutil.rmtree(path)
    try:
        common.assert_same(workdir, reference)
    except AssertionError as error:
        raise common.Fault(f"{what}: the run ended otherwise, {common.in_words(error)}") from error
    return what, "run refused, then same" if refusals else "run older, then same" if aside else "run same"


def campaign(count: int, seed: int, folder: pathlib.Path, runs: int = 6) -> common.Tally:
    """See the docstring of this file."""
    rng = random.Random(seed)
    common.one_device()
    study = common.study("single", folder / "single", **common.SINGLE)
    reference, _ = common.undisturbed(study)
    tally = common.Tally("damage", seed, count + runs)
    sound = {"image": study.data} | other_data(folder)
    contents = {name: content_of(path) for name, path in sound.items()}
    checkpoints = sorted((reference / "checkpoints").iterdir())[0]
    expected = {}
    for step in Checkpoints(checkpoints).steps():
        alone = folder / "alone"
        shutil.rmtree(alone, ignore_errors=True)
        shutil.copytree(checkpoints / str(step), alone / str(step))
        expected[step] = restored(alone)[1]
    for number in range(count):
        with tally.attempt(f"attempt {number}"):
            if number % 2:
                done = attempt_checkpoint(checkpoints, expected, folder / "scratch" / "trial", rng)
            else:
                name = rng.choice(sorted(sound))
                done = attempt_data(sound[name], contents[name], folder / "scratch" / "data", rng)
            tally.count(done[1])
    for number in range(runs):
        with tally.attempt(f"run {number}"):
            tally.count(attempt_run(study, reference, number, rng)[1])
    return tally


def other_data(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Prepared data sets of other kinds: vectors of gene expression, and masks."""
    from input_pipeline import prepare, simulate

    made = {}
    for study, sizes in (("cancer_genes", (80, 20)), ("lung_masks", (16, 4)), ("captions", (30, 6))):
        raw, prepared = folder / study / "raw", folder / study / "prepared"
        if not prepared.exists():
            draw = simulate.load(study)
            draw(raw, num_train=sizes[0], num_test=sizes[1], size=64, seed=0, workers=1)
            prepare.prepare(study, raw, prepared, workers=1)
        made[study] = prepared
    return made


if __name__ == "__main__":
    sys.exit(common.main("damage", __doc__, campaign, 200, runs=(int, 6, "whole runs that are damaged")))
