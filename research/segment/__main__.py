"""Finds the lungs in raw X-rays with a trained segmenter, and writes the box around them.

    python -m research.segment --workdir=RUN --source=RAW_OR_PREPARED --out=boxes.csv

RUN is a finished run of a model that segments, RAW_OR_PREPARED a folder or .zip of images or a prepared dataset. The
table has a row for each image (input_pipeline/boxes.py); an image without a credible mask is kept whole, a damaged one
is listed, each with its reason (research/segment/rule.py states the rule). Contact sheets with contours and boxes lie
in a folder beside the table. `python -m input_pipeline.prepare --boxes=boxes.csv` crops. Exit status: 0 finished, 2 a
mistake in command, run or source, 75 stopped by SIGTERM or Ctrl-C with nothing written.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import collections
import pathlib
from collections.abc import Sequence

from input_pipeline import boxes
from input_pipeline.cli import UserError, progress
from research.training.signals import StopSignal, run_and_leave


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
      UserError: a number is impossible, or the table cannot be written where it is asked for.
    """
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.segment", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run whose model segments")
    add("--source", required=True, help="folder or .zip of images, or a prepared dataset; only read")
    add("--out", required=True, help="the table of boxes, a .csv")
    add("--trial", default="", help="name of a trial; default the best on validation")
    add("--margin", type=float, default=0.05, help="added on each side of a box, as a share of its own side")
    add("--batch_size", type=int, default=16, help="images at once")
    add("--limit", type=int, default=0, help="only so many images, evenly over the source; 0 = all")
    add("--sheets", type=int, default=2, help="contact sheets of each kind, at most; 0 draws none")
    values = parser.parse_args(arguments)
    out = pathlib.Path(values.out)
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out={out} cannot be written; name a .csv in a folder that exists.")
    if not 0 <= values.margin < 1 or values.batch_size < 1 or values.limit < 0 or values.sheets < 0:
        raise UserError("--margin lies in [0, 1), --batch_size is at least 1, --limit and --sheets at least 0.")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens run and source, segments image by image, writes the table."""
    values = parse(arguments)
    import numpy as np

    from research import runs
    from research.segment import applying, choosing, sheets
    from research.training import compilation, sharding

    out, source = pathlib.Path(values.out), applying.Images(pathlib.Path(values.source))
    compilation.keep_programs()
    stop = StopSignal()
    stop.install()
    run = runs.open_run(pathlib.Path(values.workdir))
    mesh = sharding.make_mesh()
    trial = choosing.segmenting_trial(run, values.trial, mesh)
    segmenter = applying.Segmenter(trial, runs.load(trial, run.path, mesh, stop), values.batch_size)
    total, resize = len(source.names), trial.config.data.resize
    numbers = np.arange(total)
    if values.limit and values.limit < total:
        numbers = np.linspace(0, total - 1, values.limit).round().astype(int)
    print(f"Trial {trial.name} at {trial.config.image_size} px on {len(numbers)} of {total} images.", flush=True)
    chosen = sheets.Chosen(len(numbers), values.sheets)
    found = applying.pictures(source, numbers.tolist(), trial, 4 * values.batch_size)
    rows = []
    for picture, mask in progress(applying.masks(segmenter, found, stop), len(numbers), "segmenting"):
        rows.append(applying.box_of(picture, mask, resize, values.margin))
        if picture.image is not None:
            chosen.see(len(rows) - 1, picture.image, mask, rows[-1], resize)
    folder = out.with_name(f"{out.stem}_sheets")
    paths = chosen.write(folder)
    boxes.write(out, rows)
    for (status, reason), count in collections.Counter((row.status, row.reason) for row in rows).most_common():
        print(f"{count:6d}  {status}{': ' + reason if reason else ''}")
    print(f"Finished: {out}" + (f", {len(paths)} contact sheets in {folder}" if paths else ""))
    return 0


if __name__ == "__main__":
    run_and_leave(main)
