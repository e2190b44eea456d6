"""Runs `research.main` as one process of a job, writes which examples it took, and dies at a step if it is told to.

Environment: DRIVER_IDS=FILE gets a line of JSON for each stretch of batches, {"first": step, "ids": [[…], …]}, a list
of ids for each step; DRIVER_SIGNAL=NUMBER and DRIVER_STEP=STEP send this process a signal before that step;
DRIVER_REPORT=0 leaves the report out, which takes longer than all the rest.
"""

import functools
import json
import os
import pathlib

from research import main as entry
from research.training.signals import run_and_leave


def main() -> int:
    """Changes the program as the environment says, then runs it."""
    from research import study
    from research.training import sharding
    from research.training.loop import Training

    step, number = int(os.environ.get("DRIVER_STEP", "-1")), int(os.environ.get("DRIVER_SIGNAL", "0"))
    begin, take, put = Training._batches, Training._train_one, sharding.put_batch
    seen: list[dict] = []

    @functools.wraps(begin)
    def batches(self, phase, first):
        seen.append({"first": self.meta["phase_start"] + first, "ids": []})
        return begin(self, phase, first)

    def put_batch(mesh, batch):
        if "id" in batch:
            seen[-1]["ids"].append(list(map(str, batch["id"])))
            pathlib.Path(os.environ["DRIVER_IDS"]).write_text("\n".join(map(json.dumps, seen)), encoding="utf-8")
        return put(mesh, batch)

    @functools.wraps(take)
    def train_one(self, phase, batches, done):
        if number and self.meta["phase_start"] + done == step:
            os.kill(os.getpid(), number)
        return take(self, phase, batches, done)

    Training._batches, Training._train_one = batches, train_one
    if "DRIVER_IDS" in os.environ:
        sharding.put_batch = put_batch
    if os.environ.get("DRIVER_REPORT") == "0":
        study.assemble.report = lambda *arguments: None
    return entry.main()


if __name__ == "__main__":
    run_and_leave(main)
