"""Makes trained models smaller: pruned and int8 candidates beside the trials of a finished run.

    python -m research.compress --workdir=RUN --trials=front --methods=magnitude,channels,int8
        --sparsity=0.5,0.8 --keep=0.5

writes RUN/compressed.csv (columns of trials.csv and those of research/compress/candidates.py), RUN/compressed/ (a
safetensors file for each candidate) and predictions like those of the trials, and writes the run's report again, with
the candidates on its fronts. Methods joined by a plus follow each other: --methods=channels+int8. The same command
continues where it stopped. Exit status: 0 finished, 2 a mistake in command or run folder, 75 stopped by SIGTERM or
Ctrl-C, everything finished saved.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import json
import pathlib
from collections.abc import Sequence

from input_pipeline.cli import UserError
from research.training.signals import StopSignal, run_and_leave


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; lists of numbers come back as tuples of floats."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.compress", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--trials", default="front", help="names, separated by commas, or front: parameters, validation accuracy")
    add("--methods", default="magnitude,channels,int8", help="chains of channels, magnitude and int8")
    add("--sparsity", default="0.5,0.8", help="shares of zeros of the method magnitude")
    add("--keep", default="0.5", help="shares of channels that the method channels keeps")
    add("--finetune", default="50 %", help='length of a fine-tuning: "300 steps", "2 epochs", "25 %%" of the training')
    add("--finetune_rate", type=float, default=1.0, help="its learning rate, as a share of the trial's own")
    add("--pruning", choices=("gradual", "at_once"), default="gradual", help="how magnitude pruning begins")
    add("--scope", choices=("global", "layer"), default="global", help="what magnitude pruning ranks together")
    add("--criterion", choices=("contribution", "scale", "l1"), default="contribution", help="what scores channels")
    add("--latency_runs", type=int, default=500, help="timed runs of each candidate; 0 measures no latency")
    values = parser.parse_args(arguments)
    values.sparsity = _numbers(values.sparsity, "sparsity")
    values.keep = _numbers(values.keep, "keep")
    if not values.finetune_rate > 0:
        raise UserError(f"--finetune_rate={values.finetune_rate} is impossible; give a positive number.")
    if values.latency_runs < 0:
        raise UserError(f"--latency_runs={values.latency_runs} is impossible; give 0 or more.")
    return values


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"--{name}={text} is no list of numbers; write for example --{name}=0.5,0.8.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens the run, makes the candidates trial by trial."""
    values = parse(arguments)
    from research import (
        runs,
        study,  # imports JAX; --help and mistakes in flags answer without
    )
    from research.compress import candidates, timing
    from research.compress.finetune import Settings
    from research.report import assemble
    from research.run_folder import RunFolder
    from research.training import compilation, sharding

    workdir = pathlib.Path(values.workdir)
    wanted = candidates.chains(values.methods, values.keep, values.sparsity)
    if values.latency_runs:
        timing.require()
    compilation.keep_programs()
    stop = StopSignal()
    stop.install()
    run = runs.open_run(workdir)
    if any(trial.task.segments for trial in run.trials.values()):
        raise UserError(f"{workdir} segments, and only models that classify are compressed; name another --workdir.")
    trials = runs.chosen(run, values.trials)
    settings = Settings(values.finetune, values.finetune_rate, values.pruning == "gradual", values.scope)
    for trial in trials:
        settings.steps(trial)  # a wrong duration is refused before anything is written
    folder = RunFolder(workdir, run.config)
    options = candidates.Options(settings, values.criterion, values.latency_runs)
    mesh, shared = sharding.make_mesh(), study.SharedImages(run.path)
    print(f"{len(trials)} trial(s), {len(wanted)} candidate(s) of each, in {folder.path}", flush=True)
    for trial in trials:
        candidates.compress(run, shared.attach(trial, mesh), wanted, options, mesh, stop)
    if (workdir / "report" / "metrics.json").exists():  # the candidates join the fronts of the run's report
        environment = json.loads((workdir / "environment.json").read_text(encoding="utf-8"))
        assemble.report(folder.path, run.config, list(run.trials.values()), environment, stop)
    print(f"Finished: {workdir / candidates.TABLE}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
