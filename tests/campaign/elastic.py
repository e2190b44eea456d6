"""Does a run that goes on with other devices, threads or processes see the same examples in the same order?

    python -m tests.campaign.elastic [--count=4] [--seed=0] [--out=summary.json] [--folder=DIR]

`--count` times a run begins on 1 simulated device, is killed at a random step, goes on with 2, is killed, goes on with
4, is killed, and ends with 1; the ids of each step are those of a run on 1 device, the losses agree to a relative
2e-3 (sums of other parts have other last digits). Then the loader alone: 0, 1, 2 and 5 threads, 1, 2 and 3 processes
side by side, decoded each time or held in memory, each with 8 steps: ids and pixels (SHA-256) are equal.
"""

import dataclasses
import hashlib
import json
import pathlib
import random
import signal
import sys
import time

import numpy as np

from input_pipeline import loader
from input_pipeline.dataset import open_dataset
from input_pipeline.sampling import Sampler
from tests.campaign import common
from tests.running import metric_rows

TOLERANCE = 2e-3
DEVICES = (1, 2, 4, 1)


@dataclasses.dataclass(frozen=True)
class Recorded(common.Study):
    """A study whose processes write the ids of their batches."""

    def command(self, workdir: pathlib.Path) -> list[str]:
        return [part.replace("tests.campaign.driver", "tests.campaign.ids_driver") for part in super().command(workdir)]


def ids_of(file: pathlib.Path) -> dict[int, list[str]]:
    """The ids of each step; a step that was taken twice (before and after a kill) must have seen the same."""
    found: dict[int, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # killed in the middle of the line
        if found.setdefault(row["step"], row["ids"]) != row["ids"]:
            raise common.Fault(f"step {row['step']} saw {found[row['step']]} and later {row['ids']}")
    return found


def losses(workdir: pathlib.Path) -> list[float]:
    """Of training and validation, in the order of the log."""
    return [row["loss"] for row in metric_rows(workdir)]


def change_devices(study: Recorded, workdir: pathlib.Path, rng: random.Random) -> dict[int, list[str]]:
    """Trains on 1, 2, 4, 1 devices with a kill between; gives the ids of each step."""
    file, log = workdir.with_suffix(".ids"), study.folder / "elastic.log"
    for position, devices in enumerate(DEVICES):
        environment = {"JAX_NUM_CPU_DEVICES": str(devices), "IDS_FILE": str(file)}
        process = study.start(workdir, log, **environment)
        if position < len(DEVICES) - 1:
            until = 6 * (position + 1) + rng.randrange(6)
            while process.poll() is None and not (file.exists() and f'{{"step": {until},' in file.read_text()):
                time.sleep(0.002)
            number = rng.choice((signal.SIGTERM, signal.SIGKILL))
            process.send_signal(number)
            if process.wait(120) not in (-signal.SIGKILL, 75):
                raise common.Fault(f"on {devices} devices: status {process.returncode}: {log.read_text()[-400:]!r}")
        elif process.wait(300):
            raise common.Fault(f"status {process.returncode}: {log.read_text()[-400:]!r}")
    return ids_of(file)


def digests(batches: list[list[dict]]) -> list[str]:
    """SHA-256 of ids and pixels of each global batch, from the parts of the processes."""
    found = []
    for parts in zip(*batches, strict=True):
        digest = hashlib.sha256()
        joined = {key: np.concatenate([part[key][part["valid"]] for part in parts]) for key in ("id", "image", "label")}
        digest.update(json.dumps(list(joined["id"])).encode())
        digest.update(joined["image"].tobytes() + joined["label"].tobytes())
        found.append(digest.hexdigest())
    return found


def check_loader(data: pathlib.Path, tally: common.Tally, seed: int) -> None:
    """All combinations of threads, processes and cache."""
    dataset = open_dataset(data)
    sampler = Sampler("uniform", dataset.labels, dataset.indices("train"), seed)
    held = loader.DecodedCache(dataset, 16)
    expected = None
    for processes in (1, 2, 3):
        for threads in (0, 1, 2, 5):
            for cache in (None, held):
                with tally.attempt(f"{threads} threads, {processes} processes, {'cache' if cache else 'decoding'}"):
                    parts = [
                        list(loader.train_batches(dataset, sampler, 13, 2, 8, 16, threads=threads, cache=cache,
                                                  process_index=index, process_count=processes))
                        for index in range(processes)
                    ]  # fmt: skip
                    found = digests(parts)
                    expected = expected or found
                    if found != expected:
                        raise common.Fault("other examples or pixels")
                    tally.count("loader the same")


def campaign(count: int, seed: int, folder: pathlib.Path) -> common.Tally:
    """See the docstring of this file."""
    rng = random.Random(seed)
    changes = {"steps": 24, "checkpoint_every": "2 steps", "evaluate_every": "2 steps", "log_every": "1 steps"}
    plain = common.study("elastic", folder / "elastic", **changes)
    study = Recorded(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    reference, ids = folder / "elastic" / "reference", folder / "elastic" / "reference.ids"
    if study.finish(reference, study.folder / "elastic.log", IDS_FILE=str(ids)):
        raise SystemExit(f"The undisturbed run failed; see {study.folder / 'elastic.log'}.")
    expected = ids_of(ids)
    tally = common.Tally("elastic", seed, count + 24)
    for number in range(count):
        with tally.attempt(f"devices 1, 2, 4, 1, run {number}"):
            workdir = study.folder / f"run{number}"
            if change_devices(study, workdir, rng) != expected:
                raise common.Fault("other ids than on one device")
            np.testing.assert_allclose(losses(workdir), losses(reference), rtol=TOLERANCE)
            tally.count("devices the same")
    check_loader(study.data, tally, seed)
    return tally


if __name__ == "__main__":
    sys.exit(common.main("elastic", __doc__, campaign, 4))
