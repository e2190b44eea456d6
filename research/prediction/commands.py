"""What do `research.predict` and `research.features` have in common: flags, inputs, and rows written as they come?"""

import argparse
import collections
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from input_pipeline.cli import UserError, progress
from input_pipeline.raw import printable
from research.training.signals import StopSignal

COLUMNS = ("path", "id", "caption")
_SHOWN = 3  # reasons why files cannot be read


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser with the flags that say which run and which inputs."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(f"python -m research.{name}", description=text, formatter_class=form)
    add = made.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--trial", default="", help="of trials.csv; default: the one that the run's report shows")
    add("--images", default="", help="folder, .zip, prepared data set, .csv with a column path, pattern, or one file")
    add("--role", default="", help="of the run's own data set, instead of --images: test, validation, …")
    add("--table", default="", help="table of gene expression, for a run on it")
    add("--scale", default="auto", help="of the table's values; default: found out")
    add("--captions", default="", help=".csv with the columns id and caption, for a run that reads them")
    add("--columns", default="", help="other names of columns, as path=File,id=Image,caption=Text")
    add("--batch_size", type=int, default=0, help="inputs at once; default: as in the run's own predictions")
    return made


def check(values: argparse.Namespace) -> None:
    """Refuses impossible flags, and reads `--columns` into a dict.

    Raises:
      UserError: names the flag.
    """
    if sum(map(bool, (values.images, values.role, values.table))) > 1:
        raise UserError("--images, --role and --table say the same thing three ways; give one of them.")
    if not (values.images or values.role or values.table or values.captions):
        raise UserError("nothing to look at: give --images, or --role, or --table, or --captions.")
    if values.batch_size < 0:
        raise UserError(f"--batch_size={values.batch_size} is impossible; give 1 or more.")
    pairs = [entry.partition("=") for entry in values.columns.split(",") if entry.strip()]
    for ours, mark, theirs in pairs:
        if ours.strip() not in COLUMNS or not mark or not theirs.strip():
            raise UserError(f"--columns={values.columns} is not written path=NAME,id=NAME,caption=NAME; correct it.")
    values.columns = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    from input_pipeline.expression.scale import SCALES

    if values.scale not in ("auto", *SCALES):
        raise UserError(f"--scale={values.scale} is unknown; choose of auto, {', '.join(SCALES)}.")
    if values.scale != "auto" and not values.table:
        raise UserError("--scale is that of --table; give both or none.")


def open_model(values: argparse.Namespace, stop: StopSignal):
    """The `model.Model` that the flags name; from now on SIGTERM and Ctrl-C ask `stop`.

    Raises:
      UserError: there is no such run or trial, or it is not finished.
    """
    from research.prediction.model import Model  # imports JAX; mistakes in the flags answer without
    from research.training import compilation

    compilation.keep_programs()
    stop.install()
    return Model(values.workdir, values.trial, values.batch_size, stop=stop)


@contextlib.contextmanager
def inputs_of(values: argparse.Namespace, model) -> Iterator:
    """The inputs that the flags name, as the model needs them; what they need on disk vanishes in the end.

    Raises:
      UserError: the flags, the files and the model do not go together.
    """
    from research.prediction import expression, inputs

    with tempfile.TemporaryDirectory(prefix="research-predict-") as scratch:
        trial, kind = model.trial, _kind(model)
        if values.table and not model.genes:
            raise UserError(f"{values.workdir} was trained on {kind}, not on gene expression; give --images.")
        if values.captions and not model.reads:
            raise UserError(f"the model of {values.workdir} reads no captions; leave out --captions.")
        found = None
        if values.table:
            found = expression.read(pathlib.Path(values.table), trial, values.scale, pathlib.Path(scratch))
        elif values.role:
            found = inputs.of_dataset(trial.dataset, trial.dataset.indices(values.role))
        elif values.images:
            found = inputs.of_images(values.images, values.columns)
        if found is not None and (found.vectors is None) == bool(model.genes):
            flag = "--table" if model.genes else "--images"
            raise UserError(f"{values.workdir} was trained on {kind}; give {flag} with what it takes.")
        if model.genes and found is not None and found.genes != model.genes:
            raise UserError(f"{values.images} has other genes than {values.workdir}; give its table as --table.")
        if values.captions:
            found = inputs.with_captions(found, pathlib.Path(values.captions), values.columns)
        if found is None or found.read is None and model.looks:
            raise UserError(f"the model of {values.workdir} looks at images; give --images as well.")
        if model.reads and (found.captions is None or not any(found.captions)):
            raise UserError(f"the model of {values.workdir} reads captions; give --captions with id and caption.")
        for note in (*found.notes, *_made_differently(model, values)):
            print(note, file=sys.stderr, flush=True)
        yield found


def _kind(model) -> str:
    return "gene expression" if model.genes else "images" if model.looks else "captions"


def _made_differently(model, values: argparse.Namespace) -> list[str]:
    """Warnings where `prepare` did more with the run's images than these will see."""
    from input_pipeline.dataset import read_json

    report = model.trial.dataset.directory / "ingest_report.json"
    if not values.images or not model.looks or not report.is_file():
        return []
    if (pathlib.Path(values.images) / "splits.json").is_file():
        return []
    content, found = read_json(report), []
    if "boxes" in content:
        found.append("cut to boxes (--boxes)")
    if str((content.get("notes") or {}).get("layout", "")).startswith("Id,Target"):
        found.append("joined of a file for each channel")
    elif (content.get("notes") or {}).get("cells"):
        found.append("cut to, or joined with, the cells in them")
    elif model.trial.channels not in (1, 3):
        found.append(f"joined to {model.trial.channels} channels")
    return [
        f"warning: the run's images were {what} by prepare; these are taken as they are, so prepare them the same way "
        "and give the prepared folder as --images."
        for what in found
    ]


def write(rows: Iterator[tuple], found, writer) -> None:
    """Writes batches as they come, with progress, and warns of the inputs that have no result.

    Args:
      rows: tuples of batch, numbers `[count, columns]`, of each row the texts behind id and path, reasons by row.
      found: the inputs. writer: `writing.Csv` or `writing.Parquet`.

    Raises:
      UserError: no input could be used.
    """
    bad: collections.Counter = collections.Counter()
    first: list[tuple[int, str]] = []

    def each() -> Iterator[None]:
        nonlocal first
        for batch, numbers, texts, errors in rows:
            start, count = batch.start, batch.count
            names = zip(found.ids[start : start + count], found.paths[start : start + count], strict=True)
            writer.add([[*name, *text] for name, text in zip(names, texts, strict=True)], numbers)
            for row, reason in sorted(errors.items()):
                bad[reason] += 1
                first = first or [(start + row, reason)]
            yield from (None for _ in range(count))

    for _ in progress(each(), len(found), f"{found.unit}s"):
        pass
    total = sum(bad.values())
    if total and total == len(found):
        row, reason = first[0]
        raise UserError(f"none of {total} {found.unit}s can be used; the first, {printable(found.ids[row])}: {reason}.")
    if total:
        shown = "; ".join(f"{count} x {printable(reason)}" for reason, count in bad.most_common(_SHOWN))
        text = f"warning: {total} of {len(found)} {found.unit}s could not be used ({shown})."
        print(text, file=sys.stderr, flush=True)


def status_of(errors: dict[int, str], count: int) -> list[str]:
    """The column `status` of a batch."""
    return [errors.get(row, "ok") for row in range(count)]
