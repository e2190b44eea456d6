"""What must a user know of an exported model? The texts `model.json` and `README.md` beside the files."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.export import onnx_graph, stablehlo, weights
from research.export.program import LOGITS, MASK, PROBABILITIES, Input, Program
from research.models.initialize import count_parameters
from research.training import start_weights

FILE, README = "model.json", "README.md"
TOKENIZER, GENES, CARD = "tokenizer.json", "genes.txt", "model_card.md"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "onnx", "onnxruntime")
_CHANNELS = {1: "grey (of a colour image its luma, ITU-R BT.601)", 3: "red, green, blue"}
_INTERPOLATION = (
    "area averaging along a side that shrinks, linear interpolation along one that grows (OpenCV's INTER_AREA and "
    "INTER_LINEAR)"
)
_RESIZE = {
    "stretch": "the whole image, stretched to a square",
    "crop": "the central square of the image",
}


def describe(program: Program, batch: int | None) -> dict[str, Any]:
    """All of `model.json` but what is known of the files."""
    trial, config = program.trial, program.trial.config
    folds = config.search.folds
    found: dict[str, Any] = {
        "study": config.study,
        "task": program.task,
        "classes": list(trial.task.class_names(trial.dataset)),
        "inputs": [_input(program, entry, batch) for entry in program.inputs],
        "outputs": _outputs(program, batch),
        "temperature": program.temperature,
    }
    if program.cuts is not None:
        fallback = config.evaluation.fallback
        found["thresholds"] = [float(cut) for cut in program.cuts]
        found["fallback"] = fallback if isinstance(fallback, str) else list(fallback)
    if program.is_int8:
        stored = program.arrays["int8"].items()
        parameters = sum(value.size for path, value in stored if path.endswith(("kernel", "bias")))
    else:
        parameters = count_parameters(program.arrays["params"])
    found["model"] = {
        "name": config.model.name,
        "numbers": "int8 products, float32 between them" if program.is_int8 else "float32",
        "parameters": parameters,
        "test_time_views": config.evaluation.tta,
        "weights_sha256": weights.digest(program.arrays),
        "started_from": trial.start.source if trial.start else "random weights",
    }
    found["run"] = {
        "name": program.run.path.absolute().name,
        "trial": program.name,
        "fold": f"{program.row.get('overrides', {}).get('search.fold', 0)} of {folds}" if folds else None,
        "seed": config.seed,
        "best_step": program.row.get("best_step"),
        "state_sha256": program.row.get("state_sha256"),
        "commit": _commit(program),
    }
    found["data"] = {
        "name": trial.dataset.name,
        "fingerprint": trial.dataset.fingerprint,
        "simulated": trial.dataset.simulated,
        "split": config.data.split,
    }
    found["versions"] = {name: version for name in _PACKAGES if (version := _version(name))}
    return found


def _commit(program: Program) -> str:
    file = program.run.path / "environment.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("commit", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _input(program: Program, entry: Input, batch: int | None) -> dict[str, Any]:
    trial, data = program.trial, program.trial.config.data
    found: dict[str, Any] = {"name": entry.name, "shape": [batch or "batch", *entry.shape], "type": str(entry.dtype)}
    if entry.name == "image":
        stored = np.dtype(trial.raw.dtype)
        greatest = 65535 if entry.dtype == np.uint16 else 255
        found |= {
            "range": [0, greatest],
            "axes": "batch, rows, columns, channels",
            "channels": _CHANNELS.get(trial.channels, "in the order of the data set"),
            "resize": f"{_RESIZE[data.resize]}; {_INTERPOLATION}",
            "stored_as": str(stored),
            "normalisation_inside": _normalisation(program),
        }
    elif entry.name == "expression":
        found |= {
            "axes": "batch, genes",
            "genes": f"in the order of {GENES}",
            "values": "as the data set holds them, on its scale; see notes.scale of its ingest_report.json",
            "layout_inside": {"name": data.layout.name, "scaling": data.layout.scaling},
        }
    else:
        found |= {
            "axes": "batch, places",
            "tokenizer": f"{TOKENIZER}, read by research.text.tokenizers.load; 0 fills up, all zeros are no caption",
        }
    return found


def _normalisation(program: Program) -> dict[str, Any]:
    """Kind and numbers; those of the training images where they were measured."""
    used = start_weights.preprocessing(program.trial.config.data, program.trial.start)
    known = weights.preprocessing(program.trial)
    return {"kind": used["kind"]} | {name: known[name] for name in ("mean", "std") if known and name in known}


def _outputs(program: Program, batch: int | None) -> list[dict[str, Any]]:
    first, k = batch or "batch", program.trial.num_classes
    if program.task != "segmentation":
        scaled = {"single-label": "softmax", "multi-label": "sigmoid"}[program.task]
        meaning = f"{scaled} of the logits over the temperature, in the order of the classes"
        return [
            {"name": PROBABILITIES, "shape": [first, k], "type": "float32", "meaning": meaning},
            {"name": LOGITS, "shape": [first, k], "type": "float32", "meaning": "before temperature"},
        ]
    size = program.trial.config.image_size
    return [
        {"name": PROBABILITIES, "shape": [first, size, size, k], "type": "float32", "meaning": "sigmoid of the logits"},
        {"name": LOGITS, "shape": [first, size, size, k], "type": "float32", "meaning": "of each class at each pixel"},
        {"name": MASK, "shape": [first, size, size], "type": "uint8", "meaning": "0 background, then the classes"},
    ]


def readme(about: Mapping[str, Any]) -> str:
    """`README.md` from the whole of `model.json`: what is in the folder, and an example for each file that runs."""
    run, model = about["run"], about["model"]
    title = f"# {about['study']}: {model['name']}, trial {run['trial']}"
    lines = [title, "", *_warnings(about)]
    lines += [
        f"Exported from the run `{run['name']}`; {model['parameters']:,} parameters, {about['task']}, "
        f"{len(about['classes'])} class{'es' if len(about['classes']) > 1 else ''}. `{FILE}` says how inputs are made "
        "and what outputs mean; normalisation, temperature and softmax or sigmoid are inside the files.",
        "",
        "| file | bytes | largest difference of a probability | equal decisions | one batch on one thread |",
        "|---|---|---|---|---|",
    ]
    for name, facts in about["files"].items():
        check, time = facts["check"], facts.get("latency")
        speed = time and f"{time['p50_ms']:.4g} ms (p95 {time['p95_ms']:.4g}), batch {time['batch']}, {time['runtime']}"
        checked = f"{check['max_difference']:.1e} on {check['examples']} {about['checked_on']} examples"
        lines.append(f"| {name} | {facts['bytes']:,} | {checked} | {check['same_decisions']:.2%} | {speed or ''} |")
    for name, text in _EXAMPLES.items():
        if name in about["files"]:
            lines += ["", *text(about)]
    return "\n".join(lines) + "\n"


def _warnings(about: Mapping[str, Any]) -> list[str]:
    found = []
    if about["data"]["simulated"]:
        found += ["**SIMULATED DATA: a program made the training examples; this model is of no use on real ones.**", ""]
    if about["data"]["split"] == "study":
        found += ["**LEAKY SPLIT: related images stood on both sides; its measured quality is too good.**", ""]
    return found


def _made(about: Mapping[str, Any]) -> list[str]:
    """Lines of Python that make inputs of the right shape and type."""
    count = about["inputs"][0]["shape"][0]
    count = 2 if count == "batch" else count
    lines = []
    for entry in about["inputs"]:
        shape = ", ".join(map(str, (count, *entry["shape"][1:])))
        lines.append(f"{entry['name']} = np.zeros(({shape}), np.{entry['type']})  # yours, made as {FILE} says")
    return lines


def _shown(about: Mapping[str, Any]) -> list[str]:
    """Lines of Python that turn outputs into decisions."""
    if about["task"] == "segmentation":
        return [f'print(np.unique(found["{MASK}"]))  # class numbers, 0 is the background']
    lines = [f'for row in np.asarray(found["{PROBABILITIES}"]):']
    if about["task"] == "single-label":
        return [*lines, '    print(about["classes"][row.argmax()], row.max())']
    return [*lines, '    print([name for name, p, cut in zip(about["classes"], row, about["thresholds"]) if p >= cut])']


def _stablehlo(about: Mapping[str, Any]) -> list[str]:
    platforms = ", ".join(about["files"][stablehlo.FILE]["platforms"])
    names = ", ".join(entry["name"] for entry in about["inputs"])
    return [
        f"## {stablehlo.FILE}", "",
        f"For {platforms}; needs `pip install jax flatbuffers`, nothing of this project:", "",
        "```python", "import json, pathlib", "import jax, jax.export", "import numpy as np", "",
        f'about = json.loads(pathlib.Path("{FILE}").read_text())',
        f'exported = jax.export.deserialize(bytearray(pathlib.Path("{stablehlo.FILE}").read_bytes()))',
        "run = jax.jit(exported.call)", *_made(about), f"found = run({names})", *_shown(about), "```",
    ]  # fmt: skip


def _onnx(about: Mapping[str, Any]) -> list[str]:
    names = ", ".join(f'"{entry["name"]}": {entry["name"]}' for entry in about["inputs"])
    return [
        f"## {onnx_graph.FILE}", "",
        f"Opset {about['files'][onnx_graph.FILE]['opset']}; needs `pip install onnxruntime`:", "",
        "```python", "import json, pathlib", "import numpy as np", "import onnxruntime", "",
        f'about = json.loads(pathlib.Path("{FILE}").read_text())',
        f'session = onnxruntime.InferenceSession("{onnx_graph.FILE}")', *_made(about),
        "names = [output.name for output in session.get_outputs()]",
        f"found = dict(zip(names, session.run(None, {{{names}}})))", *_shown(about), "```",
    ]  # fmt: skip


def _safetensors(about: Mapping[str, Any]) -> list[str]:
    return [
        f"## {weights.FILE}", "",
        "Parameters and running statistics, float32, as `params/backbone/…`, `params/head/…` and "
        "`batch_stats/backbone/…`; kernels of convolutions are `[rows, columns, in, out]`, of dense layers "
        f"`[in, out]`. A training of this project begins with them by `--config.model.weights=…/{weights.FILE}`; "
        "`safetensors.numpy.load_file` reads them anywhere. Normalisation and temperature are not in this file.",
    ]  # fmt: skip


_EXAMPLES = {stablehlo.FILE: _stablehlo, onnx_graph.FILE: _onnx, weights.FILE: _safetensors}
