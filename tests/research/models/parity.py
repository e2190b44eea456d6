"""Does every model give the logits of its reference library, from that library's own weight files?

    python -m tests.research.models.parity --torch_python=ENV/bin/python --keras_python=ENV/bin/python --out=table.csv

makes random weights in each library (peers/), reads them as `python -m research.models.pretrained` does (with
`--command_line=REGEX` by that command itself), and writes one row for every file and size: the largest error of an
image's logits divided by that image's largest logit, and both numbers of parameters and of running statistics. Rows
that the table already holds are not made again. The last lines are the table in Markdown; the exit status is 1 if an
error exceeds 1e-4 or a number of parameters differs.

"random" weights are a library's initial ones with random statistics in every BatchNorm; "calibrated" ones keep the
scale of the activations, which shows more of what a deep network computes. From these, for one model per family and
library, inner feature maps (within 1e-4) and the gradient with respect to the input (in float64, within 1e-6) are
compared as well.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types
import zlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from research.models import registry
from research.models.initialize import count_parameters
from research.models.pretrained import __main__ as command
from research.models.pretrained import plan
from tests.research.models.parity_cases import MODELS, Model
from tests.research.models.reference import relative_error

TOLERANCE = 1e-4
TOLERANCE_64 = 1e-6  # of gradients in double precision
PEERS = pathlib.Path(__file__).with_name("peers")
ROOT = pathlib.Path(__file__).parents[3]
COLUMNS = (
    "library model variant size weights statistics path error largest_logit between_images parameters "
    "their_parameters running_statistics their_running_statistics maps gradient32 their_gradient32 gradient64 seconds"
).split()


def make_reference(model: Model, statistics: str, folder: pathlib.Path, python: str) -> dict:
    """Runs the reference library unless its answer is there already; gives the numbers it counted."""
    known = folder / "reference.json"
    if not known.exists():
        script = "keras_reference.py" if model.library == "keras" else "torch_reference.py"
        arguments = [python, PEERS / script, model.name, f"--out={folder}"]
        arguments += [] if model.library == "keras" else [f"--library={model.library}"]
        sizes, files = model.rows(statistics)
        arguments += [f"--sizes={','.join(map(str, sizes))}", f"--formats={','.join(files)}"]
        if statistics == "calibrated":
            arguments += ["--calibrate"] + ([f"--layers={','.join(model.inner.values())}"] if model.inner else [])
        seed = zlib.crc32(f"{model.key} {statistics}".encode()) % 1000
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run([*map(str, arguments), f"--seed={seed}"], check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads(known.read_text())


def by_command(model: Model, weights: pathlib.Path, folder: pathlib.Path, size: int) -> np.ndarray:
    """Logits of the command line."""
    output = folder / "output.npy"
    arguments = [f"--model={model.name}", f"--weights={weights}", f"--input={folder / f'input_{size}.npy'}"]
    arguments += [f"--output={output}"] + ([f"--variant={model.variant}"] if model.variant else [])
    subprocess.run([sys.executable, "-m", "research.models.pretrained", *arguments], check=True, cwd=ROOT)
    return np.load(output)


class _Double(types.ModuleType):
    """jax.numpy whose float32 is float64."""

    float32 = jnp.float64

    def __getattr__(self, name):
        return getattr(jnp, name)


@contextlib.contextmanager
def double_precision():
    """Lets the networks compute in float64 throughout; they turn values to float32 in many places."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        for name, module in list(sys.modules.items()):
            if name.startswith("research.models.") and hasattr(module, "jnp"):
                stack.enter_context(mock.patch.object(module, "jnp", _Double("jnp")))
        yield


def outputs_and_gradient(network, variables, images, cotangent):
    """Feature maps, and the gradient of the sum of logits times `cotangent` with respect to the images."""

    def weighted(pixels, values):
        output = network.apply(values, {"image": pixels}, train=False)
        return jnp.sum(output.logits * cotangent), output.feature_maps

    gradient, maps = jax.jit(jax.grad(weighted, has_aux=True))(images, variables)
    return jax.tree.map(np.asarray, maps), np.asarray(gradient)


def inner_errors(model: Model, network, variables, images: np.ndarray, expected) -> dict[str, str]:
    """Errors of feature maps and of the gradient, each divided by the largest value of the reference.

    A ReLU or a maximum that rounding decides otherwise changes the float32 gradient by up to some percent, in ours as
    in the reference's own against its float64: only in float64 does the gradient tell whether the networks are equal.
    """

    def error(actual, reference):
        assert actual.shape == reference.shape, (actual.shape, reference.shape)
        return f"{np.abs(actual - reference).max() / np.abs(reference).max():.1e}"

    maps, gradient = outputs_and_gradient(network, variables, images, expected["cotangent"])
    classes = expected["cotangent"].shape[0]
    with double_precision():
        wide = registry.create(model.name, num_classes=classes, variant=model.variant, dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), variables)
        arguments = (jnp.asarray(images, jnp.float64), jnp.asarray(expected["cotangent"], jnp.float64))
        _, gradient64 = outputs_and_gradient(wide, variables, *arguments)
    return {
        "maps": ", ".join(f"{name} {error(maps[name], expected[layer])}" for name, layer in model.inner.items()),
        "gradient32": error(gradient, expected["gradient"]),
        "their_gradient32": error(expected["gradient"], expected["gradient64"]),
        "gradient64": error(gradient64, expected["gradient64"]),
    }


def compare(model: Model, statistics: str, size: int, file: str, folder: pathlib.Path, known: dict, cli: bool) -> dict:
    """One row of the table."""
    start = time.perf_counter()
    by_size = folder / f"weights_{size}.{file}"
    weights = by_size if by_size.exists() else folder / f"weights.{file}"
    images, expected = np.load(folder / f"input_{size}.npy"), np.load(folder / f"logits_{size}.npy")
    # The command's own functions; the variant is what the file's name would say, were it not called "weights".
    pretrained = plan(model.name, model.variant, str(weights))
    network, variables, _ = command.build(pretrained, None, images.shape[1:3], images.shape[3])
    logits = by_command(model, weights, folder, size) if cli else command.answer(network, variables, images)
    inner = folder / f"inner_{size}.npz"
    more = inner_errors(model, network, variables, images, np.load(inner)) if inner.exists() else {}
    largest = float(np.abs(expected).max())
    # Keras counts the three constants of EfficientNet's input normalisation as parameters; ours has no `count`.
    theirs = known.get("by_size", {}).get(str(size), known)
    constants = max(0, theirs.get("input_normalisation", 0) - 1)
    return {
        "library": model.library,
        "model": model.name,
        "variant": pretrained.variant,
        "size": size,
        "weights": file,
        "statistics": statistics,
        "path": "command line" if cli else "in process",
        "error": f"{relative_error(logits, expected):.1e}",
        "largest_logit": f"{largest:.2g}",
        "between_images": f"{float(np.abs(expected[0] - expected[1]).max()) / largest:.1e}",
        "parameters": count_parameters(variables["params"]),
        "their_parameters": theirs["parameters"],
        "running_statistics": count_parameters(variables.get("batch_stats", {})),
        "their_running_statistics": theirs["statistics"] + constants,
        **dict.fromkeys(("maps", "gradient32", "their_gradient32", "gradient64"), ""),
        **more,
        "seconds": f"{time.perf_counter() - start:.0f}",
    }


def rows_of(model: Model) -> list[tuple[str, int, str]]:
    """What is compared for a model: statistics, size and weight file."""
    rows = []
    for statistics in model.statistics:
        sizes, files = model.rows(statistics)
        rows += [(statistics, sizes[0], file) for file in files] + [(statistics, size, files[0]) for size in sizes[1:]]
    return rows


def identity(row: dict) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in ("library", "model", "statistics", "size", "weights"))


def wrong(row: dict) -> bool:
    """Whether a row of the table shows a difference."""
    counts = ("parameters", "running_statistics")
    errors = [row["error"], *(part.split()[1] for part in row["maps"].split(", ") if part)]
    return (
        any(not float(error) <= TOLERANCE for error in errors)
        or not float(row["gradient64"] or 0) <= TOLERANCE_64
        or any(int(row[name]) != int(row[f"their_{name}"]) for name in counts)
    )


def markdown(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows])


def read(table: pathlib.Path) -> list[dict]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def campaign(args: argparse.Namespace) -> None:
    """Adds the missing rows to the table."""
    table, references = pathlib.Path(args.out), pathlib.Path(args.references)
    done = {identity(row) for row in read(table)}
    todo = [
        (model, statistics, size, file)
        for model in MODELS
        for statistics, size, file in rows_of(model)
        if re.search(args.only, f"{model.key} {statistics}")
        and (model.library, model.name, statistics, str(size), file) not in done
    ]
    start = time.perf_counter()
    for index, (model, statistics, size, file) in enumerate(todo):
        folder = references / (model.key + ("" if statistics == "random" else "_calibrated"))
        python = args.keras_python if model.library == "keras" else args.torch_python
        known = make_reference(model, statistics, folder, python)
        cli = bool(args.command_line) and re.search(args.command_line, f"{model.key} {statistics} {size} {file}")
        row = compare(model, statistics, size, file, folder, known, bool(cli))
        new = not table.exists()
        with table.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        left = (time.perf_counter() - start) / (index + 1) * (len(todo) - index - 1)
        verdict = "WRONG" if wrong(row) else "equal"
        print(
            f"{index + 1}/{len(todo)}", *identity(row), row["error"], verdict, f"{left / 60:.0f} min left", flush=True
        )
        following = todo[index + 1][:2] if index + 1 < len(todo) else None
        if not args.keep and following != (model, statistics):
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default=sys.executable, help="interpreter with torch, timm and torchvision")
    parser.add_argument("--keras_python", default=sys.executable, help="interpreter with keras and jax")
    parser.add_argument("--only", default="", help="regular expression of rows, such as 'keras_.*random'")
    parser.add_argument("--command_line", default="", help="rows that the command itself computes, such as ' 139 pth'")
    parser.add_argument("--references", default="references", help="folder for weights, inputs and logits")
    parser.add_argument("--keep", action="store_true", help="keep that folder's contents")
    parser.add_argument("--out", required=True, help="the table, CSV")
    args = parser.parse_args()
    campaign(args)
    rows = read(pathlib.Path(args.out))
    print(markdown(rows))
    failed = [" ".join(identity(row)) for row in rows if wrong(row)]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} rows differ: " + "; ".join(failed))


if __name__ == "__main__":
    main()
