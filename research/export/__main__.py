"""Writes a trained model for programs without this project, and checks it on real examples first.

    python -m research.export --workdir=RUN --format=stablehlo,onnx,safetensors --out=DIR [--trial=NAME]
        [--batch_size=any|N] [--platforms=cpu,cuda,tpu] [--input=stored|float32] [--check_images=256]
        [--latency_runs=200]

A file takes raw images `[B, H, W, C]` of the run's size (uint8 or uint16, float32 in 0..255 with --input=float32),
vectors of genes float32 `[B, G]` or token ids int32 `[B, L]`, and gives `probabilities` and `logits`, of a model that
segments also `mask`; normalisation, test-time views, temperature and softmax or sigmoid are inside, in float32.

    model.stablehlo    by jax.export, for all platforms named, weights inside (package flatbuffers)
    model.onnx         by this project's own converter, checked by onnx.checker (packages onnx, onnxruntime)
    model.safetensors  parameters and running statistics alone, for config.model.weights
    model.json         classes, thresholds, how inputs are made, what was checked, versions, digest of the weights
    README.md          an example of 15 lines for each; tokenizer.json, genes.txt and the model card where there are any

Each file is compared with the run's network on examples of test: where a probability differs by more than 1e-4 (1e-2
for a network in int8) nothing is written. Exit status: 0 finished, 2 a mistake or a file that does not agree, 75
stopped by SIGTERM or Ctrl-C.
"""

import argparse
import os
import pathlib
from collections.abc import Sequence

from input_pipeline.cli import UserError
from research.training.signals import StopSignal, run_and_leave


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; lists come back as tuples, --batch_size=any as None."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.export", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--format", required=True, help="stablehlo, onnx, safetensors, or several, separated by commas")
    add("--out", required=True, help="the folder to write, which must not exist")
    add("--trial", default="", help="of trials.csv or compressed.csv; default: the one that the report speaks of")
    add("--batch_size", default="any", help="any, or the one that the file takes")
    add("--platforms", default="cpu,cuda,tpu", help="of the StableHLO file: cpu and any of cuda, rocm, tpu")
    add("--input", choices=("stored", "float32"), default="stored", help="type of images")
    add("--check_images", type=int, default=256, help="examples that each file is compared on")
    add("--latency_runs", type=int, default=200, help="timed runs of each file; 0 measures no latency")
    values = parser.parse_args(arguments)
    values.format, values.platforms = _list(values.format), _list(values.platforms)
    if values.check_images < 1:
        raise UserError(f"--check_images={values.check_images} is impossible; give 1 or more.")
    if values.latency_runs < 0:
        raise UserError(f"--latency_runs={values.latency_runs} is impossible; give 0 or more.")
    if values.batch_size != "any" and not (values.batch_size.isdecimal() and int(values.batch_size)):
        raise UserError(f"--batch_size={values.batch_size} is impossible; give any, or a number from 1.")
    values.batch_size = None if values.batch_size == "any" else int(values.batch_size)
    return values


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, exports."""
    values = parse(arguments)
    # The check is one of float32, which accelerators round in their own ways.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax  # imports take seconds; mistakes in flags answer without

    from research.export import writing
    from research.training import compilation, sharding

    compilation.keep_programs()
    stop = StopSignal()
    stop.install()
    request = writing.Request(
        workdir=pathlib.Path(values.workdir), out=pathlib.Path(values.out), formats=values.format, trial=values.trial,
        batch=values.batch_size, platforms=values.platforms, float_images=values.input == "float32",
        check_images=values.check_images, latency_runs=values.latency_runs,
    )  # fmt: skip
    writing.run(request, sharding.make_mesh(jax.devices()[:1]), stop)
    print(f"Finished: {values.out}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
