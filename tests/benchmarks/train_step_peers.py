"""How fast is a training step beside Keras on JAX and PyTorch with timm, and are the losses theirs? Prints JSON.

    python -m tests.benchmarks.train_step_peers --keras_python=PATH --torch_python=PATH
        [--models=resnet50,vgg16] [--rounds=3] [--steps=10]

The libraries take turns, each run a process of its own (A B C A B C), this project before each peer in the peer's form
of the architecture: the same batch size and image size, SGD with momentum 0.9, BatchNorm updating, float32, no dropout.
Per model and peer: medians over the rounds of images/s and of processor seconds per step, and medians of the ratios
within a round; `geometric_mean` is over the models. Batch 16 at 128 px; inception_resnet_v2 batch 8 at 139 px.

`loss_difference`: in the first round the peer saves its first weights and its batch, this project starts from them, and
the relative differences of the first and of the fifth loss are reported; the latter should be below `LOSS_TOLERANCE`.
Rounding differs between the libraries and grows from step to step, more in some networks than in others: `disturbed` is
the difference of this project's own fifth loss once every pixel is changed by one rounding of float32. Where a library
has no such model, or its run fails, the entry says why and is left out of the means.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

MODELS = (
    "resnet50",
    "efficientnet_b0",
    "efficientnet_b4",
    "inception_resnet_v2",
    "xception",
    "densenet169",
    "vgg16",
)
LOSS_TOLERANCE = 1e-3
LEARNING_RATE = 1e-3  # with 1e-2 some first steps from random weights are chaotic
ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = {"keras": ("keras_step.py", "weights.weights.h5"), "torch": ("torch_step.py", "weights.safetensors")}
# PyTorch's variant is the one whose padding, epsilon and momentum timm has.
VARIANTS = {"keras": "keras", "torch": "timm"}


def setting_of(model: str) -> list[str]:
    """The flags of batch size, image size and learning rate."""
    image, batch = (139, 8) if model == "inception_resnet_v2" else (128, 16)
    return [f"--image_size={image}", f"--batch_size={batch}", f"--learning_rate={LEARNING_RATE}"]


def run(command: list[str]) -> dict:
    """The JSON on the last line of a command's output, or {"error": ...}."""
    # Waiting threads of OpenMP would otherwise take the processor from what else runs, and count as processor time.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit status {done.returncode}"
    return json.loads(last) if done.returncode == 0 and lines else {"error": last}


def ours(model: str, steps: int, start: list[str]) -> dict:
    """A run of this project with the flags `start` for the first weights and the batch."""
    command = [sys.executable, "-m", "tests.benchmarks.train_step", f"--model={model}", f"--steps={steps}"]
    return run([*command, *setting_of(model), *start])


def theirs(peer: str, python: str, model: str, steps: int, folder: pathlib.Path | None = None) -> dict:
    """A run of a peer, which saves its first weights and batch in `folder` if that is given."""
    script = ROOT / "tests" / "benchmarks" / "peers" / PEERS[peer][0]
    command = [python, str(script), f"--model={model}", f"--steps={steps}", *setting_of(model)]
    return run(command + ([f"--out={folder}"] if folder else []))


def start_of(peer: str, folder: pathlib.Path) -> list[str]:
    """The flags of a run from the weights and the batch that the peer left in `folder`."""
    return [f"--input={folder / 'input.npy'}", f"--weights={folder / PEERS[peer][1]}", f"--variant={VARIANTS[peer]}"]


def loss_difference(model: str, peer: str, folder: pathlib.Path, expected: dict) -> dict:
    """Relative differences of losses from the peer's first weights in `folder`."""
    start = start_of(peer, folder)
    actual, disturbed = ours(model, 5, start), ours(model, 5, [*start, "--disturb"])
    for outcome in (expected, actual, disturbed):
        if "error" in outcome:
            return outcome

    def relative(one: dict, other: dict, index: int) -> float:
        return abs(one["losses"][index] - other["losses"][index]) / abs(other["losses"][index])

    return {
        "first": relative(actual, expected, 0),
        "fifth": relative(actual, expected, 4),
        "disturbed": relative(disturbed, actual, 4),
        "tolerance": LOSS_TOLERANCE,
    }


def summarise(rounds: list[tuple[dict, dict]]) -> dict:
    """Medians of this project and of a peer, and of the ratios within a round."""
    for outcome in itertools.chain(*rounds):
        if "error" in outcome:
            return outcome
    keys = ("images_per_second", "processor_seconds", "peak_memory_bytes")
    result: dict = {
        name: {key: statistics.median(values[key] for values in runs) for key in keys}
        for name, runs in zip(("ours", "theirs"), zip(*rounds, strict=True), strict=True)
    }
    wall = [mine["images_per_second"] / other["images_per_second"] for mine, other in rounds]
    processor = [other["processor_seconds"] / mine["processor_seconds"] for mine, other in rounds]
    return result | {"ratio": statistics.median(wall), "processor_ratio": statistics.median(processor)}


def compare(model: str, pythons: dict[str, str], rounds: int, steps: int) -> dict:
    """All that is measured of one model, by peer."""
    runs: dict[str, list[tuple[dict, dict]]] = {peer: [] for peer in pythons}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (peer, python) in itertools.product(range(rounds), pythons.items()):
            folder = pathlib.Path(scratch) / peer if number == 0 else None
            mine = ours(model, steps, [f"--variant={VARIANTS[peer]}"])
            runs[peer].append((mine, theirs(peer, python, model, steps, folder)))
        return {
            peer: summarise(runs[peer])
            | {"loss_difference": loss_difference(model, peer, pathlib.Path(scratch) / peer, runs[peer][0][1])}
            for peer in pythons
        }


def geometric_means(models: dict[str, dict]) -> dict:
    """Over the models that both libraries ran, with their number and the smallest ratio."""
    result = {}
    for peer in PEERS:
        ratios = [entry[peer]["ratio"] for entry in models.values() if "ratio" in entry.get(peer, {})]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            result[peer] = {"geometric_mean": mean, "smallest": min(ratios), "models": len(ratios)}
    return result


def main() -> None:
    """Prints a line per model to stderr and the whole as JSON to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras_python")
    parser.add_argument("--torch_python")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    given = {"keras": arguments.keras_python, "torch": arguments.torch_python}
    pythons = {peer: python for peer, python in given.items() if python}
    models = {}
    for model in arguments.models.split(","):
        entry = models[model] = compare(model, pythons, arguments.rounds, arguments.steps)
        print(model, json.dumps(entry), file=sys.stderr, flush=True)
    print(json.dumps({"models": models, "means": geometric_means(models)}))


if __name__ == "__main__":
    main()
