"""Does any mutation of a file crash, hang, or silently deceive the code that reads it?

    python -m tests.campaign.fuzz [--minutes=10] [--only=records,index,…] [--seed=0] [--case=N] [--out=summary.json]

`--minutes` of mutated files for each reader: records (a whole prepared data set), index, expression (tables of gene
expression), captions, ledger (trials.csv), predictions, metrics (metrics.jsonl), safetensors, torch and h5. Case N of a
reader is a function of seed and N alone, `--only=h5 --case=N` repeats one. Each case is read in a process of its own
kind, at most 20 s long; it must end in one of two ways:

    refused     a UserError in one sentence
    read        and then as an independent reader reads it (csv, json, safetensors, h5py, a few lines here), or, where
                checksums protect the content, as the sound file

The summary counts cases, refusals and readings; `--count` is the least number of cases of a reader.
"""

import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable

from input_pipeline.cli import UserError
from tests.campaign import common
from tests.campaign.fuzz_targets import TARGETS, Target

SECONDS, MEGABYTES, FAILURES = 20, 2000, 20
NUMBERS = (0, 1, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _place(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 9)))


def _flip(data: bytearray, rng: random.Random, tokens) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random, tokens) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _delete(data: bytearray, rng: random.Random, tokens) -> None:
    start, stop = _place(data, rng)
    del data[start:stop]


def _repeat(data: bytearray, rng: random.Random, tokens) -> None:
    start, stop = _place(data, rng)
    data[start:start] = data[start:stop] * rng.choice((1, 2, 50))


def _move(data: bytearray, rng: random.Random, tokens) -> None:
    start, stop = _place(data, rng)
    part = data[start:stop]
    del data[start:stop]
    place = rng.randrange(len(data) + 1)
    data[place:place] = part


def _cut(data: bytearray, rng: random.Random, tokens) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(data: bytearray, rng: random.Random, tokens) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice(tokens) if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 9))


def _overwrite(data: bytearray, rng: random.Random, tokens) -> None:
    token = rng.choice(tokens)
    place = rng.randrange(len(data) + 1)
    data[place : place + len(token)] = token


def _number(data: bytearray, rng: random.Random, tokens) -> None:
    packed = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
    place = rng.randrange(len(data) + 1)
    data[place : place + len(packed)] = packed


MUTATIONS = (_flip, _flip, _byte, _delete, _repeat, _move, _cut, _insert, _insert, _overwrite, _number)


def mutate(sound: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """The file after one to three mutations."""
    data = bytearray(sound)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(MUTATIONS)(data, rng, tokens)
    return bytes(data)


def write_case(target: Target, folder: pathlib.Path, seed: int, number: int) -> pathlib.Path:
    """The files of a case; one of them is a mutation."""
    rng = random.Random(f"{target.name} {seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    changed = rng.choice(sorted(target.mutated))
    for name, data in target.files.items():
        (folder / name).write_bytes(mutate(data, rng, target.tokens) if name == changed else data)
    return folder


class Hung(Exception):
    """A case took too long."""


def one(target: Target, folder: pathlib.Path, seed: int, number: int) -> str:
    """Reads a case; "refused" or "read".

    Raises:
      Fault: it deceived the reader, or was not refused in one sentence.
    """
    write_case(target, folder, seed, number)

    def late(*_):
        raise Hung(f"still reading after {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        found = target.read(folder)
    except UserError as error:
        text = str(error)
        if "\n" in text or not text or len(text) > 1200:
            raise common.Fault(f"not one sentence: {text[:300]!r}") from error
        return "refused"
    finally:
        signal.alarm(0)
    target.compare(folder, found)
    return "read"


def check_sound(target: Target, folder: pathlib.Path) -> None:
    """The reader accepts the sound files, and the other reader agrees; else the mutations would show nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in target.files.items():
        (folder / name).write_bytes(data)
    target.compare(folder, target.read(folder))


def worker(target: Target, folder: pathlib.Path, seed: int, numbers: range, until: float, least: int, pipe: int):
    """Goes through cases and writes a line about each: "N outcome", "N begins" before it."""
    failures = 0
    with os.fdopen(pipe, "w", buffering=1) as lines:
        for number in numbers:
            if failures >= FAILURES or (time.monotonic() > until and number >= least):
                break
            lines.write(f"{number} begins\n")
            try:
                lines.write(f"{number} {one(target, folder, seed, number)}\n")
            except BaseException as error:  # noqa: BLE001
                failures += 1
                text = " ".join(common.in_words(error).split())[:600]
                lines.write(f"{number} failed: {text}\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        lines.write(f"-1 peak {peak}\n")
    os._exit(0)


def fuzz(target: Target, folder: pathlib.Path, seed: int, seconds: float, least: int, case: int, tally: common.Tally):
    """All cases of a reader; a worker that dies is a failure, and another goes on behind it."""
    until, number, failures, peak = time.monotonic() + seconds, max(case, 0), 0, 0
    numbers: Callable[[int], range] = (lambda n: range(case, case + 1)) if case >= 0 else (lambda n: range(n, 10**9))
    counts: dict[str, int] = {}
    while failures < FAILURES:
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            worker(target, folder, seed, numbers(number), until, least, writing)
        os.close(writing)
        begun = ended = -1
        with os.fdopen(reading) as lines:
            for line in lines:
                name, _, outcome = line.rstrip("\n").partition(" ")
                if name == "-1":
                    peak = max(peak, int(outcome.split()[1]))
                elif outcome == "begins":
                    begun = int(name)
                else:
                    ended = int(name)
                    kind = outcome.partition(":")[0]
                    counts[kind] = counts.get(kind, 0) + 1
                    if kind == "failed":
                        failures += 1
                        _fail(tally, f"{target.name} --case={name}: {outcome.removeprefix('failed: ')}")
        _, status = os.waitpid(process, 0)
        if begun == ended:
            break
        failures += 1
        _fail(tally, f"{target.name} --case={begun}: the process died ({os.waitstatus_to_exitcode(status)})")
        number = begun + 1
        if case >= 0:
            break
    if peak > MEGABYTES:
        _fail(tally, f"{target.name}: took {peak} MB")
    total = sum(counts.values())
    tally.attempts += total
    for kind, count in counts.items():
        tally.outcomes[f"{target.name} {kind}"] = count
    print(f"{target.name}: {total} cases, {counts}, {peak} MB at most", file=sys.stderr, flush=True)


def _fail(tally: common.Tally, text: str) -> None:
    tally.failures.append(text)
    print(f"FAILURE fuzz: {text}", flush=True)


def campaign(count: int, seed: int, folder: pathlib.Path, minutes: float, only: str, case: int) -> common.Tally:
    """See the docstring of this file."""
    chosen = [name.strip() for name in only.split(",") if name.strip()] or list(TARGETS)
    tally = common.Tally("fuzz", seed, 0)
    for name in chosen:
        target = TARGETS[name](folder / "made" / name)
        check_sound(target, folder / "sound" / name)
        fuzz(target, folder / "case" / name, seed, 60 * minutes, count, case, tally)
    tally.planned = tally.attempts
    return tally


if __name__ == "__main__":
    options = {"minutes": (float, 10.0, "for each reader"), "only": (str, "", "readers, separated by commas"),
               "case": (int, -1, "only this case")}  # fmt: skip
    sys.exit(common.main("fuzz", __doc__, campaign, 50, **options))
