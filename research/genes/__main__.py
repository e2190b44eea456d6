"""Finds the genes that the networks of a run go by, for every tumour type.

    python -m research.genes --workdir=RUN [--trial=NAME] [--role=test] [--baseline=mean|zero|expected]
        [--sets=FILE.gmt] [--planted=FILE.csv] [--out=RUN/report]

Integrated gradients lead from the logits back to the expression vectors; all finished seeds of the trial's setting are
read. Writes into --out: genes.csv (200 genes of every type with intervals over patients), genes.html, and genes/ with
stability between seeds (rank-biased overlap), deletion of top genes against random ones, a check with random weights,
over-representation of the gene sets, and pictures. Exit status: 0 finished, 2 a mistake, 75 stopped.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline.cli import UserError
from research.training.signals import StopSignal, run_and_leave


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line. Raises `UserError` for an impossible number."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.genes", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run on expression vectors")
    add("--trial", default="", help="of trials.csv; default: the one that the run's report speaks of")
    add("--role", default="test", help="whose samples are attributed")
    add("--limit", type=int, default=0, help="samples of each type at most; 0 = all")
    add("--baseline", default="mean", help="where the paths begin: mean or zero vector, or expected (training samples)")
    add("--score", default="contrast", help="logit, or contrast: the logit less the mean of all logits")
    add("--tolerance", type=float, default=0.01, help="of the completeness error, relative")
    add("--batch_size", type=int, default=32, help="samples at once")
    add("--top", type=int, default=100, help="genes of a type that are tested for gene sets")
    add("--sets", default="", help="gene sets, a .gmt file")
    add("--planted", default="", help="a simulation's true genes, a .csv with columns gene and type; default: its own")
    add("--seed", type=int, default=0, help="of baselines, random rankings and random weights")
    add("--out", default="", help="folder for the results; default RUN/report")
    values = parser.parse_args(arguments)
    if values.limit < 0 or values.seed < 0 or values.batch_size < 1 or values.top < 1 or not values.tolerance > 0:
        raise UserError("--limit and --seed are at least 0, --batch_size and --top at least 1, --tolerance above 0.")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens the run, finds and writes."""
    values = parse(arguments)
    from input_pipeline.studies import cancer_genes
    from research import runs  # imports JAX; mistakes above answer without
    from research.genes import attribution, finding, writing
    from research.report import assemble
    from research.training import compilation, sharding

    compilation.keep_programs()
    stop = StopSignal()
    stop.install()
    workdir = pathlib.Path(values.workdir)
    trials = finding.siblings(runs.open_run(workdir), values.trial)
    integral = attribution.Options(
        baseline=values.baseline, tolerance=values.tolerance, batch_size=values.batch_size, seed=values.seed
    )
    planted = values.planted or trials[0].dataset.directory / cancer_genes.PLANTED
    options = finding.Options(
        role=values.role, limit=values.limit, score=values.score, integral=integral, top=values.top,
        sets=pathlib.Path(values.sets) if values.sets else None,
        planted=pathlib.Path(planted) if values.planted or planted.exists() else None,
    )  # fmt: skip
    print(f"{', '.join(trial.name for trial in trials)}: {values.role} samples, baseline {values.baseline}", flush=True)
    found = finding.find(workdir, trials, options, sharding.make_mesh(), stop)
    command = " ".join(["python -m research.genes", *(sys.argv[1:] if arguments is None else arguments)])
    warnings = assemble.warnings_of(trials[0].config, trials[0].dataset)
    out = pathlib.Path(values.out) if values.out else workdir / "report"
    print(f"Finished: {writing.write(out, found, f'Genes of {trials[0].name}', command, warnings)}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
