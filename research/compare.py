"""Compares finished runs: what differs in their configs, how good is each on the test images that all share?

    python -m research.compare RUN RUN [RUN …] --out=DIR [--metric=accuracy]

Of each run the setting that its report chose, mean over its seeds. Differences are to the first run, paired, with
intervals over groups; p-values by bootstrap, adjusted by Holm's method, beside those of a permutation test of the
decisions. Writes DIR/index.html, comparison.csv and curves.png. Exit status: 0 finished, 2 a mistake.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.evaluation.replicates import TABLE


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.compare", description=__doc__, formatter_class=text)
    parser.add_argument("runs", nargs="+", help="run folders; the first is what the others are compared with")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--metric", default="", help="what is compared; default accuracy, with several labels macro_f1")
    values = parser.parse_args(arguments)
    if len(values.runs) < 2 or len(set(values.runs)) < len(values.runs):
        raise UserError("a comparison needs two or more different run folders.")
    if values.metric and values.metric not in TABLE:
        raise UserError(f"--metric={values.metric} is unknown; choose of {', '.join(TABLE)}.")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, reads, compares, writes."""
    values = parse(arguments)
    from research.report import runs_compared  # imports JAX; mistakes above answer without

    out = pathlib.Path(values.out)
    runs = runs_compared.read([pathlib.Path(run) for run in values.runs])
    text = runs_compared.write(runs, out, values.metric)
    print(text)
    print(f"Finished: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
