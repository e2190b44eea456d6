"""Does a training scale: the same losses on any number of devices, at what traffic, and how fast on two processes?

    python -m tests.benchmarks.scaling

It trains a small network on 1, 2, 4 and 8 simulated CPU devices, with whole parameters and with parameters spread over
the devices (FSDP), for a few steps from one seed, and counts what the devices send each other in the compiled step: the
operations by kind and the bytes that come out of them on each device. Then the same training runs as one process on one
core and as two processes on one core each, joined by gloo, and their images/s are compared. It prints a table for each,
and exits with 1 where losses differ by more than `TOLERANCE`. Simulated devices share the machine's cores, so that
their speed says nothing and is left out.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import pathlib
import re
import socket
import subprocess
import sys
import tempfile

import jax
import numpy as np

from configs import hpa
from input_pipeline import prepare, simulate
from input_pipeline.dataset import open_dataset
from research import study
from research.training import program, sharding
from research.training.loop import Training
from research.training.signals import StopSignal

TOLERANCE = 2e-3  # relative, of the losses of 8 steps with Adam and BatchNorm; stated before measuring
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_SETTINGS = {
    "epochs": 0.0, "steps": 8, "batch_size": 30, "image_size": 32, "model.options.widths": (16, 32, 64),
    "evaluate_every": "8 steps", "checkpoint_every": "8 steps", "log_every": "1 steps", "data.augment.rotation": 30.0,
    "evaluation.baselines": False, "evaluation.explain": "", "evaluation.bootstrap": 10, "evaluation.tta": "none",
}  # fmt: skip
_TIMED = {"steps": 60, "batch_size": 64, "image_size": 64, "log_every": "20 steps", "evaluate_every": "60 steps"}


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind → (operations, bytes of their results on one device) of a compiled program's text.

    Operations inside a loop count once.
    """
    found = dict.fromkeys(KINDS, (0, 0))
    pattern = rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\("
    for shapes, kind, _ in re.findall(pattern, text):
        size = 0
        for dtype, dimensions in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
            size += _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dimensions.split(",") if n], dtype=np.int64))
        count, total = found[kind]
        found[kind] = (count + 1, total + size)
    return found


def simulated_devices(dataset, folder: pathlib.Path) -> float:
    """Prints losses and traffic by number of devices and kind of sharding; returns the greatest relative difference."""
    reference, worst = None, 0.0
    print("devices  parameters  last loss  difference  " + "  ".join(f"{kind:>20}" for kind in KINDS))
    for count in (1, 2, 4, 8):
        for name, rules in (("whole", ()), ("split", (".*kernel",))):
            if count == 1 and rules:
                continue
            config = hpa.get_config("smoke").unlock()
            config.update_from_flattened_dict(_SETTINGS | {"shard_parameters": rules})
            mesh = sharding.make_mesh(jax.devices()[:count])
            trial = study.SharedImages().attach(study.expand(config.lock(), dataset)[0], mesh)
            own = folder / f"{count}-{name}"
            own.mkdir()
            print_, sys.stdout = sys.stdout, open(os.devnull, "w")
            try:
                training = Training(trial, own, mesh, StopSignal())
                training.run()
            finally:
                sys.stdout = print_
            losses = np.array([row["loss"] for row in training.meta["history"]])
            reference = losses if reference is None else reference
            difference = float(np.max(np.abs(losses - reference) / np.abs(reference)))
            worst = max(worst, difference)
            sent = collectives(program.lowered(trial, mesh).compile().as_text())
            columns = [f"{number:>4} x, {size / 1024:>8.1f} KiB" for number, size in sent.values()]
            print(f"{count:>7}  {name:<10}  {losses[-1]:.6f}   {difference:.1e}  " + "  ".join(columns), flush=True)
    size = sum(leaf.nbytes for leaf in training.state.params.values())
    print(f"The parameters are {size / 1024:.1f} KiB. Greatest relative difference {worst:.1e}, allowed {TOLERANCE:g}.")
    return worst


def real_processes(dataset, folder: pathlib.Path, count: int) -> float:
    """Images/s of the training by `count` processes, each on a core of its own: the median of the log's later lines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    settings = _SETTINGS | _TIMED | {"data.dir": str(dataset.directory)}
    started = []
    for number in range(count):
        line = [sys.executable, "-m", "research.main", "--config=configs/hpa.py:smoke"]
        line += [f"--workdir={folder / str(count)}"]
        line += [f"--config.{name}={value}" for name, value in settings.items() if name != "model.options.widths"]
        line += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={number}"]
        core = {cores[number % len(cores)]}
        started.append(
            subprocess.Popen(
                line,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
                cwd=pathlib.Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
            )
        )
    outputs = [process.communicate(timeout=900) for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(outputs[0][1] + outputs[-1][1])
    speeds = [float(value) for value in re.findall(r"(\d+) images/s", outputs[0][0])]
    return float(np.median(speeds[1:]))


def main() -> int:
    """Prints both tables; 1 where the losses differ too much."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        simulate.hpa(folder / "raw", num_train=150, num_test=7, size=64, seed=1, workers=1)
        prepare.prepare("hpa", folder / "raw", folder / "prepared", workers=1)
        dataset = open_dataset(folder / "prepared")
        worst = simulated_devices(dataset, folder)
        speeds = {count: real_processes(dataset, folder, count) for count in (1, 2)}
        print("processes  images/s  efficiency")
        for count, speed in speeds.items():
            print(f"{count:>9}  {speed:>8.0f}  {speed / count / speeds[1]:>10.0%}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
