"""How does a folder of exported files come into being, checked before anybody sees it?"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from input_pipeline.cli import UserError
from research.export import checking, description, onnx_graph, stablehlo, timing, weights
from research.export.program import Program, open_program
from research.layouts import layout as layouts
from research.layouts import scaling
from research.text import tokenizers
from research.training.pictures import FOLDER as LAYOUTS
from research.training.signals import StopSignal

FORMATS = {"stablehlo": stablehlo.FILE, "onnx": onnx_graph.FILE, "safetensors": weights.FILE}


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; `batch` None is any batch size."""

    workdir: pathlib.Path
    out: pathlib.Path
    formats: tuple[str, ...]
    trial: str = ""
    batch: int | None = None
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    float_images: bool = False
    check_images: int = 256
    latency_runs: int = 200


def check(request: Request) -> None:
    """Refuses what can be seen without opening the run.

    Raises:
      UserError: an unknown format or platform, a missing package, or a folder that exists.
    """
    for what, given, known in (
        ("format", request.formats, tuple(FORMATS)), ("platforms", request.platforms, stablehlo.PLATFORMS),
    ):  # fmt: skip
        if strangers := [name for name in given if name not in known]:
            raise UserError(f"--{what}={strangers[0]} is unknown; choose of {', '.join(known)}.")
        if not given:
            raise UserError(f"--{what} names nothing; choose of {', '.join(known)}.")
    if "cpu" not in request.platforms:
        raise UserError("the check of the file runs on cpu; add it to --platforms.")
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise UserError(f"{request.out} exists already; name another --out, or delete it.")
    if "stablehlo" in request.formats:
        stablehlo.require()
    if "onnx" in request.formats:
        onnx_graph.require()


def run(request: Request, mesh, stop: StopSignal) -> dict[str, Any]:
    """Writes, checks, measures, and moves the folder into place; leaves nothing where one of it fails.

    Args:
      mesh: of one device.

    Returns:
      The content of `model.json`.

    Raises:
      UserError: see `check` and `open_program`; a network that cannot be exported, or a file that does not agree.
      Stopped: a stop was asked for.
    """
    check(request)
    program = open_program(request.workdir, request.trial, request.float_images, mesh, stop)
    role, indices = checking.examples(program, request.check_images)
    size = f"batches of {request.batch}" if request.batch else "any batch size"
    print(f"{program.name} of {request.workdir}: {program.task}, {size}, checked on {len(indices)} {role} examples.")
    about = description.describe(program, request.batch) | {"checked_on": role}
    out = request.out.absolute()
    place = next(parent for parent in out.parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=place) as scratch:
        folder = pathlib.Path(scratch, "export")
        folder.mkdir()
        about["files"] = _files(folder, program, request, about, stop)
        saved = _check(folder, program, request, about["files"], (role, indices), mesh, stop)
        about["saved_predictions"] = saved and saved.report()
        _measure(folder, request, about, stop)
        _companions(folder, program)
        text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / description.FILE).write_text(text, encoding="utf-8")
        (folder / description.README).write_text(description.readme(about), encoding="utf-8")
        stop.check()
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, out)
    return about


def _files(
    folder: pathlib.Path, program: Program, request: Request, about: Mapping[str, Any], stop: StopSignal
) -> dict[str, dict[str, Any]]:
    """Writes the file of each format; what is known of them by name."""
    writers = {
        "stablehlo": lambda path: stablehlo.write(path, program, request.batch, request.platforms),
        "onnx": lambda path: onnx_graph.write(path, program, request.batch, about),
        "safetensors": lambda path: weights.write(path, program),
    }
    found = {}
    for name in request.formats:
        path = folder / FORMATS[name]
        print(f"Writing {path.name}", flush=True)
        facts = stop.interruptible(lambda name=name, path=path: writers[name](path))
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = facts | {"bytes": path.stat().st_size, "sha256": digest}
    return found


def _check(folder, program: Program, request: Request, files: dict, examples: tuple, mesh, stop: StopSignal):
    """Compares the files with the network and enters the result; gives how far the saved predictions agree."""
    openers = {
        stablehlo.FILE: stablehlo.load,
        onnx_graph.FILE: lambda path: onnx_graph.load(path, [entry.name for entry in program.inputs]),
        weights.FILE: lambda path: weights.load(path, program),
    }
    calls = {name: openers[name](folder / name) for name in files}
    found, saved = checking.compare(program, calls, request.batch, *examples, mesh, stop)
    for name, agreement in found.items():
        files[name]["check"] = agreement.report() | {"tolerance": checking.tolerance(program)}
        print(
            f"{name}: {files[name]['bytes']:,} bytes; largest difference of a probability "
            f"{agreement.max_difference:.1e}, of a logit {agreement.logits:.1e} of the largest, equal decisions "
            f"{agreement.same:.2%}, on {agreement.examples} examples",
            flush=True,
        )
        if not agreement.max_difference <= checking.tolerance(program):
            raise UserError(
                f"the probabilities of {name} differ from the network's by {agreement.max_difference:.1e}, more than "
                f"{checking.tolerance(program):g}, so that nothing was written; export another format, and report it."
            )
    if saved is not None:
        print(f"Predictions that the run has saved: {saved.max_difference:.1e}, equal decisions {saved.same:.2%}")
    return saved


def _measure(folder: pathlib.Path, request: Request, about: dict[str, Any], stop: StopSignal) -> None:
    """Enters the latency of the files that run by themselves."""
    names = [name for name in about["files"] if name != weights.FILE]
    if not names or not request.latency_runs:
        return
    inputs = [{"name": e["name"], "shape": e["shape"][1:], "type": e["type"]} for e in about["inputs"]]
    batch, runs = request.batch or 1, request.latency_runs
    found = stop.interruptible(lambda: timing.measure(folder, names, inputs, batch, runs))
    for name, times in found.items():
        about["files"][name]["latency"] = times
        print(
            f"{name}: {times['p50_ms']:.4g} ms (95 %: {times['p95_ms']:.4g} ms) for a batch of {batch} on one thread, "
            f"{times['runtime']}",
            flush=True,
        )


def _companions(folder: pathlib.Path, program: Program) -> None:
    """What inputs are made with, and the model card of the run."""
    trial = program.trial
    if trial.text is not None:
        tokenizers.save(trial.text.tokenizer, folder / description.TOKENIZER)
    if trial.dataset.genes:
        (folder / description.GENES).write_text("\n".join(trial.dataset.genes) + "\n", encoding="utf-8")
        name = trial.config.data.layout.name
        (folder / LAYOUTS).mkdir()  # where config.data.layout.run looks
        layouts.save(trial.picture.layout, folder / LAYOUTS / f"{name}-exported.json")
        scaling.save_scale(trial.picture.scale, trial.dataset.genes, folder / LAYOUTS / f"{name}-exported-scaling.json")
    card = program.run.path / "report" / description.CARD
    if card.exists():
        shutil.copyfile(card, folder / description.CARD)
