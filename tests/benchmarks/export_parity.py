"""Do exported networks say what the run's network says on real images, how large are they, and how fast?

    python -m tests.benchmarks.export_parity --data=data/blood_cells [--models=resnet50,efficientnet_b0,densenet169]
        [--size=96] [--steps=20] [--images=1000] [--keep=DIR] [--out=table.json]

trains each network for a few steps from random weights, exports the run as StableHLO and ONNX by `research.export`,
and prints for each file the largest difference of a probability and of a logit (over the largest), how many images get
the same class, bytes, and the time of one image on one thread of one core. Stated beforehand: a probability differs by
at most 1e-4, and every class is the same. Exit status: 0 that is so, 1 it is not.
"""

import argparse
import json
import pathlib
import tempfile

import jax
from ml_collections import ConfigDict

from configs import blood_cells
from research import study
from research.export import checking, writing
from research.training import sharding
from research.training.signals import StopSignal


def configure(data: str, model: str, size: int, steps: int) -> ConfigDict:
    """A short training of one network."""
    config = blood_cells.get_config("single").unlock()
    config.data.dir = data
    config.image_size, config.batch_size, config.steps = size, 16, steps
    config.evaluate_every = config.checkpoint_every = config.log_every = f"{steps} steps"
    config.model.name, config.model.options, config.model.head_dropout = model, ConfigDict(), 0.0
    config.optimizer.ema, config.evaluation.tta = 0.0, "none"
    config.evaluation.temperature = False  # it would draw the probabilities of so short a training together
    config.evaluation.baselines, config.evaluation.explain, config.evaluation.bootstrap = False, "", 100
    return config.lock()


def measure(data: str, model: str, size: int, steps: int, images: int, folder: pathlib.Path) -> list[dict]:
    """A row for each file of one network."""
    study.run(configure(data, model, size, steps), folder / model, allow_cpu=True)
    request = writing.Request(folder / model, folder / f"{model}-export", ("stablehlo", "onnx"), check_images=images)
    about = writing.run(request, sharding.make_mesh(jax.devices()[:1]), StopSignal())
    rows = []
    for name, facts in about["files"].items():
        check, times = facts["check"], facts["latency"]
        row = {"model": f"{model}, {size} px", "file": name, "parameters": about["model"]["parameters"]}
        row |= {"MB": facts["bytes"] / 1e6, "images": check["examples"], "difference": check["max_difference"]}
        row |= {"logits": check["max_logit_difference"]}
        rows.append(row | {"same": check["same_decisions"]} | {k: times[k] for k in ("p50_ms", "p95_ms", "runtime")})
    return rows


def main() -> int:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a prepared data set")
    parser.add_argument("--models", default="resnet50,efficientnet_b0,densenet169")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--keep", default="", help="folder for runs and exports; default: they are thrown away")
    parser.add_argument("--out", default="", help="JSON file for the rows")
    values = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(values.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for model in values.models.split(","):
            rows += measure(values.data, model, values.size, values.steps, values.images, folder)
    names = ("MB", "images", "difference", "logits", "same", "p50 ms", "p95 ms")
    titles = " ".join(f"{name:>{width}}" for name, width in zip(names, (7, 6, 10, 8, 8, 8, 8), strict=True))
    print(f"\n{'model':26} {'file':16} {titles}")
    for row in rows:
        print(
            f"{row['model']:26} {row['file']:16} {row['MB']:7.2f} {row['images']:6} {row['difference']:10.1e} "
            f"{row['logits']:8.1e} {row['same']:8.2%} {row['p50_ms']:8.2f} {row['p95_ms']:8.2f}  {row['runtime']}"
        )
    if values.out:
        pathlib.Path(values.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(not row["difference"] <= checking.TOLERANCE or row["same"] < 1 for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
