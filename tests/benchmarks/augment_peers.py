"""How many images a second does the whole augmentation on the device give, beside torchvision v2? Prints JSON.

    python -m tests.benchmarks.augment_peers --torch=TORCH_PYTHON [--config=captions] [--augment=JSON]
        [--image_size=224] [--batch_size=32] [--images=256] [--rounds=5] [--threads=2]

The operations are those of `config.data.augment` in configs/captions.py, or of another config, with what `--augment`
adds, such as '{"hue": 0.1}', and behind them ImageNet's normalisation. Every party gets the same
random uint8 images in memory and gives float32 batches; nothing is decoded. All warp bilinearly.

    ours              one jitted function of key and batch; every image has its own draws
    per image, PIL    torchvision's transforms in a DataLoader with a worker per thread, on PIL images
    per image         the same on uint8 tensors
    batched           the transforms on whole uint8 batches, `--threads` threads of torch; one draw for all of a batch,
                      so less than the others do

Each party is a process that waits while another one runs, and has been warmed up; a round asks all of them in turn.
Figures are medians over the rounds of images a second (`rate`) and of processor milliseconds an image; `operations` are
medians of milliseconds a batch that each of our operations takes alone, beside `nothing`: conversion and normalisation.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

PARTIES = ("ours", "per image, PIL", "per image", "batched")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
ROOT = pathlib.Path(__file__).resolve().parents[2]
_HELPER = pathlib.Path(__file__).with_name("augment_peers_torch.py")


def settings_of(name: str, more: Mapping) -> dict:
    """What is on in the augmentation of a config, and `more`."""
    from input_pipeline import augment

    chosen = importlib.import_module(f"configs.{name}").get_config().data.augment.to_dict() | dict(more)
    augment.build(chosen)
    keep = ("interpolation",)
    return {key: value for key, value in chosen.items() if key in keep or value != augment.NEUTRAL[key]}


def operations_of(settings: Mapping) -> dict[str, dict]:
    """Name -> settings of each operation alone; the jitter's, and those of one warp, are also there together."""
    warp = ("rotation", "translate", "scale", "shear", "resized_crop", "flip_horizontal", "flip_vertical", "dihedral")
    groups = {"geometry in one read": warp, "colour jitter": ("brightness", "contrast", "saturation", "hue")}
    style = {key: settings[key] for key in ("rotation_fill", "interpolation", "erasing_area") if key in settings}
    alone = {key: {key: value, **style} for key, value in settings.items() if key not in style}
    together = {name: {key: settings[key] for key in keys if key in settings} | style for name, keys in groups.items()}
    return {"nothing": {}} | alone | together


def run_ours(arguments: argparse.Namespace, settings: Mapping) -> Callable[[], dict]:
    """A function that augments `--images` images and tells how long that took."""
    import jax
    import numpy as np

    from input_pipeline import augment, normalize

    shape = (arguments.batch_size, arguments.image_size, arguments.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    statistics_of = {"mean": MEAN, "std": STD}

    def chain(chosen: Mapping):
        build, normalise = augment.build(chosen), normalize.make("fixed", statistics_of)

        def whole(key, image):
            batch = build.before(key, {"image": image})
            return build.after(key, {**batch, "image": normalise(batch["image"])})["image"]

        jitted = jax.jit(whole)
        jitted(jax.random.key(0), images).block_until_ready()
        return jitted

    whole = chain(settings)
    single = {name: chain(own) for name, own in operations_of(settings).items()}

    def milliseconds(function) -> float:
        start = time.perf_counter()
        function(jax.random.key(1), images).block_until_ready()
        return 1e3 * (time.perf_counter() - start)

    def measure() -> dict:
        wall, processor = time.perf_counter(), time.process_time()
        for number in range(arguments.images // arguments.batch_size):
            whole(jax.random.key(number), images).block_until_ready()
        found = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        return found | {"operations": {name: milliseconds(function) for name, function in single.items()}}

    return measure


class Party:
    """A process that measures whenever it is asked."""

    def __init__(self, command: list[str], threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        self.ask()  # to warm up

    def ask(self) -> dict:
        """The next measurement.

        Raises:
          SystemExit: when the process has ended.
        """
        print("measure", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a party ended with status {self.process.wait()}; its message stands above.")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(measure: Callable[[], dict]) -> None:
    """Prints a measurement for every line of standard input."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def compare(arguments: argparse.Namespace, settings: Mapping) -> dict:
    """Medians of all parties, and our rate over theirs."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("image_size", "batch_size", "images", "threads")]
    own = [sys.executable, "-m", "tests.benchmarks.augment_peers", f"--config={arguments.config}"]
    commands = {"ours": [*own, f"--augment={arguments.augment}", "--serve"]}
    for name in PARTIES[1:]:
        commands[name] = [arguments.torch, str(_HELPER), f"--party={name}", f"--settings={json.dumps(settings)}"]
    parties = {name: Party(command + sizes, arguments.threads) for name, command in commands.items()}
    rounds: dict[str, list[dict]] = {name: [] for name in parties}
    for _ in range(arguments.rounds):
        for name, party in parties.items():
            rounds[name].append(party.ask())
    for party in parties.values():
        party.close()
    images = arguments.images // arguments.batch_size * arguments.batch_size
    result: dict = {"augment": settings, "parties": {}}
    for name, found in rounds.items():
        rates = [images / one["seconds"] for one in found]
        processor = [1e3 * one["processor_seconds"] / images for one in found]
        result["parties"][name] = {
            "rate": round(statistics.median(rates), 1),
            "processor_ms": round(statistics.median(processor), 2),
            "rates": [round(rate, 1) for rate in rates],
        }
    ours = result["parties"]["ours"]
    for name in PARTIES[1:]:
        peer = result["parties"][name]
        peer["ours_over_it"] = round(ours["rate"] / peer["rate"], 2)
        peer["processor_over_ours"] = round(peer["processor_ms"] / ours["processor_ms"], 2)
    each = {name: [one["operations"][name] for one in rounds["ours"]] for name in rounds["ours"][0]["operations"]}
    result["operations"] = {name: round(statistics.median(values), 1) for name, values in each.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", help="the Python of an environment with torch and torchvision")
    parser.add_argument("--config", default="captions", help="a file of configs/, without .py")
    parser.add_argument("--augment", default="{}", help="JSON: what is changed in its config.data.augment")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="in a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="be the party `ours`")
    arguments = parser.parse_args()
    settings = settings_of(arguments.config, json.loads(arguments.augment))
    if arguments.serve:
        serve(run_ours(arguments, settings))
    elif arguments.torch:
        print(json.dumps(compare(arguments, settings), indent=1))
    else:
        parser.error("give --torch")


if __name__ == "__main__":
    main()
