"""`python -m research.models.pretrained.export`: how do trained weights get out of here?

    python -m research.models.pretrained.export --weights=runs/hpa --model=resnet50 --output=hpa.safetensors

writes a safetensors file with the names and layouts of timm (`timm.create_model(NAME).load_state_dict(...)`, strict),
or with `--names=own` one that `--weights` of every command here reads back, whatever the model.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.models.call_order import call_order
from research.models.pretrained import adapt, names, safetensors_files
from research.models.pretrained.loading import build, plan
from research.models.registry import Entry


def torch_arrays(entry: Entry, variant: str, modules: Sequence[str], variables: Any) -> dict[str, np.ndarray]:
    """Variables as timm's state dict, with the counters `num_batches_tracked` that its strict loading asks for.

    Args:
      variant: of the model; it must be one that timm has.
      modules: see `research.models.call_order`.

    Raises:
      UserError: timm has no such network, or no name for a layer.
    """
    known = entry.names.get("timm")
    if known is None or (variant not in ("", "timm", "tf") and entry.names.get(variant) is not known):
        form = f"the variant {variant} of {entry.name}" if variant else entry.name
        raise UserError(f"timm does not have {form}; export it with --names=own.")
    layers, arrays = known(modules), {}
    for name, value in names.flatten(variables).items():
        owner, kind = names.owner_and_kind(name)
        if owner not in layers:
            raise UserError(f"timm has no name for {owner} of {entry.name}; export it with --names=own.")
        arrays[f"{layers[owner]}.{names.TORCH_SUFFIX[kind]}"] = adapt.to_torch(np.asarray(value, np.float32), kind)
        if kind == "mean":
            arrays[f"{layers[owner]}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def export(
    path: str | os.PathLike,
    entry: Entry,
    variant: str,
    variables: Any,
    modules: Sequence[str],
    library: str = "timm",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes variables to a safetensors file, atomically.

    Args:
      variables: {"params", "batch_stats"}, nested.
      modules: see `research.models.call_order`.
      library: "timm" or "own".
      metadata: further entries for the file's header, such as "preprocessing" and "options", which readers here use.

    Raises:
      UserError: see `torch_arrays`.
    """
    if library == "timm":
        arrays = torch_arrays(entry, variant, modules, variables)
    else:
        arrays = {name: np.asarray(value, np.float32) for name, value in names.flatten(variables).items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    header = {**texts, "format": "pt", "names": library, "model": entry.name, "variant": variant}
    safetensors_files.write(path, arrays, header)


def main() -> None:
    """Reads the command line, writes the file."""
    parser = argparse.ArgumentParser(
        prog="python -m research.models.pretrained.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--weights", required=True, help="run folder, checkpoint or weight file")
    parser.add_argument("--model", required=True, help="name of the model, see research/models")
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--names", choices=("timm", "own"), default="timm", help="whose names the arrays get")
    parser.add_argument("--variant", default="", help="form of the architecture, such as timm, tf or keras")
    arguments = parser.parse_args()
    if not pathlib.Path(arguments.output).absolute().parent.is_dir():
        raise UserError(f"the folder of {arguments.output} does not exist; make it or choose another --output.")
    pretrained = plan(arguments.model, arguments.variant, arguments.weights)
    model, variables, report = build(pretrained, None, (224, 224), None)
    metadata = {"options": pretrained.file.metadata.get("options", "{}")}
    if pretrained.preprocessing:
        metadata["preprocessing"] = pretrained.preprocessing
    modules = call_order(model)[0]
    export(arguments.output, pretrained.entry, pretrained.variant, variables, modules, arguments.names, metadata)
    print(f"{arguments.output}: {report['loaded']} arrays of {report['model']} with {arguments.names} names")


if __name__ == "__main__":
    cli.run(main)
