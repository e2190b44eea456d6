"""Puts trained members into one file of weights, for a model-level ensemble that is trained as an ordinary run.

    python -m research.ensemble.merge --workdir=RUN --members=3 --out=merge3.safetensors [--trials=a,b,c]
        [--metric=accuracy]

takes the members that are best on `calibration` (or those named) and prints the command of the run, whose network is
research/models/merged.py. Exit status: 0 finished, 2 a mistake.
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.evaluation.metrics import COUNT_METRICS


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.ensemble.merge", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--out", required=True, help="the .safetensors file")
    add("--members", type=int, default=3, help="how many, the best on calibration")
    add("--trials", default="", help="names, separated by commas, instead")
    add("--metric", default="accuracy", help="what ranks them")
    values = parser.parse_args(arguments)
    if values.members < 1:
        raise UserError(f"--members={values.members} is impossible; give 1 or more.")
    if values.metric not in COUNT_METRICS:
        raise UserError(f"--metric={values.metric} is unknown; choose of {', '.join(COUNT_METRICS)}.")
    return values


def merged_arrays(members: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The backbones' variables under the names of `merged`: "params/backbone/members_0/block_1_1/conv/kernel", …

    Args:
      members: {"params": {path: array}, "batch_stats": …} each, with paths such as "backbone/block_1_1/conv/kernel".
    """
    return {
        f"{kind}/backbone/members_{number}/{path.removeprefix('backbone/')}": np.asarray(value, np.float32)
        for number, member in enumerate(members)
        for kind, flat in member.items()
        for path, value in flat.items()
        if path.startswith("backbone/")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, chooses, loads, writes, and says what to run."""
    values = parse(arguments)
    import jax  # imports take seconds; mistakes in flags answer without

    from research import runs
    from research.ensemble import fitting, library
    from research.models.pretrained import safetensors_files
    from research.training import build, sharding, start_weights
    from research.training.signals import StopSignal

    workdir = pathlib.Path(values.workdir)
    run = runs.open_run(workdir)
    names = values.trials
    if not names:
        found = library.open_runs([workdir])
        if len(found.parts) > 1:
            raise UserError(f"{workdir} is a cross-validation, and each fold has other members; name them by --trials.")
        order = fitting.fit(found, found.parts[0], [], 0, values.metric).order
        if len(order) < values.members:
            raise UserError(f"{workdir} has {len(order)} finished trials; ask for fewer than {values.members} members.")
        names = ",".join(found.members[index] for index in order[: values.members])
    trials = runs.chosen(run, names)
    models = {str(trial.config.model.to_dict() | {"head_dropout": 0}) for trial in trials}
    if len(models) > 1:
        raise UserError("members of different architectures cannot be merged; name trials of one with --trials.")
    mesh, stop = sharding.make_mesh(jax.devices()[:1]), StopSignal()
    arrays = merged_arrays([runs.load(trial, workdir, mesh, stop) for trial in trials])
    header = {"format": "pt", "names": "own", "model": "merged", "variant": ""}
    used = start_weights.preprocessing(trials[0].config.data, trials[0].start)
    if used["kind"] in ("fixed", "raw", "caffe"):  # others are computed from the images
        header["preprocessing"] = json.dumps(used)
    safetensors_files.write(values.out, arrays, header | {"members": ",".join(trial.name for trial in trials)})
    first = build.as_file_name(trials[0].config.model.name)
    print(f"{values.out}: {len(trials)} x {first}: {', '.join(trial.name for trial in trials)}")
    print(
        f"Train what is behind them by model.name=merged (preset `merge` of configs/pneumonia.py) with "
        f"--config.model.weights={shlex.quote(values.out)} --config.model.options.members={len(trials)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
