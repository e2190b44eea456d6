"""Writes what a finished run sees in images: the features behind its last layer, as a table, and for TensorBoard.

    python -m research.features --workdir=RUN --images=DIR|ZIP|CSV|'GLOB'|FILE --out=features.parquet
        [--role=test] [--projector=LOGDIR] [--trial=NAME] [--captions=CSV] [--batch_size=N]

Inputs are those of research.predict, or with --role examples of the run's own data set. The table has the columns id,
path, label (of a prepared data set; else empty), status, and feature_0, feature_1, … in float32: the pooled features
that the head reads, of each image as it is, without test-time views. A name in .csv gives CSV, .parquet Parquet (`pip
install pyarrow`). --projector adds TensorBoard's projector: `tensorboard --logdir=LOGDIR`, tab Projector, with the
pictures themselves for up to 2,000 images.

Exit status: 0 finished, with a warning and a count where files could not be read; 2 a mistake, or nothing could be
read, with nothing written; 75 stopped by SIGTERM or Ctrl-C, with nothing written.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Sequence

from input_pipeline.cli import UserError
from research.prediction import commands, writing
from research.training.signals import StopSignal, run_and_leave

KINDS = {".csv": writing.Csv, ".parquet": writing.Parquet}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; raises `UserError`."""
    parser = commands.parser("features", __doc__)
    parser.add_argument("--out", required=True, help="the table of features, .parquet or .csv")
    parser.add_argument("--projector", default="", help="folder for TensorBoard's projector; made if need be")
    values = parser.parse_args(arguments)
    commands.check(values)
    out, projector = pathlib.Path(values.out), pathlib.Path(values.projector)
    writing.check_target(out, tuple(KINDS))
    if out.suffix.lower() == ".parquet":
        writing.load_pyarrow()
    if values.projector and (projector.exists() and not projector.is_dir() or not projector.parent.is_dir()):
        raise UserError(f"--projector={projector} can be no folder; name one in a folder that exists.")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens run and inputs, writes features batch by batch."""
    values = parse(arguments)
    stop = StopSignal()
    model = commands.open_model(values, stop)
    from research.prediction import projector  # imports JAX; mistakes above answer without

    out = pathlib.Path(values.out)
    with commands.inputs_of(values, model) as found, writing.replacing(out) as temporary:
        print(f"Trial {model.trial.name}: {len(found)} {found.unit}s.", flush=True)
        shown = projector.Projector(model, len(found)) if values.projector else None
        labels = found.labels or [""] * len(found)

        def rows(batches):
            for batch, features, errors in batches:
                own = labels[batch.start : batch.start + batch.count]
                texts = list(zip(own, commands.status_of(errors, batch.count), strict=True))
                if shown is not None:
                    shown.add(batch, features, found.ids[batch.start :], own, errors)
                yield batch, features, texts, errors

        batches = iter(model.featured(found))
        first = next(batches)
        names = [f"feature_{number}" for number in range(first[1].shape[1])]
        kind = KINDS[out.suffix.lower()]
        with contextlib.closing(kind(temporary, ["id", "path", "label", "status"], names, 4)) as writer:
            commands.write(rows(itertools.chain([first], batches)), found, writer)
        if shown is not None:
            print(f"Projector: {shown.write(pathlib.Path(values.projector))}; tensorboard --logdir={values.projector}")
    print(f"Finished: {out}, {len(names)} features of each {found.unit}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
