"""Predicts new images, samples of gene expression or captions with a finished run.

    python -m research.predict --workdir=RUN --images=DIR|ZIP|CSV|'GLOB'|FILE --out=preds.csv
        [--trial=NAME] [--captions=CSV] [--columns=path=File,id=Image] [--batch_size=N]
    python -m research.predict --workdir=RUN --table=expression.csv --out=preds.csv [--scale=log2p1]
    python -m research.predict --workdir=RUN --captions=captions.csv --out=preds.csv
    python -m research.predict --workdir=RUN --role=test --out=preds.csv

Everything is done as for the run's own test predictions: weights of the best checkpoint (averaged ones if the run
averaged), decoding, resizing, normalisation, test-time views, and temperature and thresholds fitted on calibration. The
trial is the one that the report shows unless --trial names another. RUN needs the data set that it was trained on.

A CSV has a column path (or file, filename, image), relative to its folder, and optionally id and caption; --columns
gives other names. Captions are joined by id. --images also takes a prepared data set, for images of which `prepare`
makes more than one file holds.

The table has the columns id (path below the folder, or the CSV's), path, probability_<class>, predicted (several
classes are separated by ";") and status: "ok", or why a file could not be read; its other cells are then empty. Rows
are in the order of the names, those of a CSV in its own order; they are written as they come, into a hidden file that
is renamed in the end. Texts that a spreadsheet would run begin with an apostrophe.

Exit status: 0 finished, with a warning and a count where files could not be read; 2 a mistake in command, run or
inputs, or nothing could be read, with nothing written; 75 stopped by SIGTERM or Ctrl-C, with nothing written.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import contextlib
import pathlib
from collections.abc import Sequence

from research.prediction import commands, writing
from research.training.signals import StopSignal, run_and_leave


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; raises `UserError`."""
    parser = commands.parser("predict", __doc__)
    parser.add_argument("--out", required=True, help="the table of predictions, a .csv")
    values = parser.parse_args(arguments)
    commands.check(values)
    writing.check_target(pathlib.Path(values.out), (".csv",))
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens run and inputs, predicts batch by batch."""
    values = parse(arguments)
    stop = StopSignal()
    model = commands.open_model(values, stop)
    out = pathlib.Path(values.out)
    numbers = [f"probability_{name}" for name in model.classes]

    def rows(found):
        for batch, scores, given, errors in model.scored(found):
            status = commands.status_of(errors, batch.count)
            yield batch, scores, [(";".join(names), word) for names, word in zip(given, status, strict=True)], errors

    with commands.inputs_of(values, model) as found, writing.replacing(out) as temporary:
        print(f"Trial {model.trial.name}: {len(found)} {found.unit}s.", flush=True)
        with contextlib.closing(writing.Csv(temporary, ["id", "path", "predicted", "status"], numbers, 2)) as writer:
            commands.write(rows(found), found, writer)
    print(f"Finished: {out}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
