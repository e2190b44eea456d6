"""Which images are meant: a folder, a .zip, a table of paths, a pattern, a file, or examples of a prepared data set?

Every input is listed before the first is read, in a fixed order: files by name, rows of a table as they stand there,
examples as the data set has them. What cannot be read stays in its place, with the reason.
"""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.raw import printable
from input_pipeline.studies import csv_rows
from input_pipeline.studies.manifest import is_image_name
from research.prediction import files

PATH_NAMES = ("path", "file", "filename", "image")  # of the column of paths, as in input_pipeline/studies/table.py
COLUMNS = ("path", "id", "caption")
_TABLES = (".csv", ".tsv")
_MAGIC = "*?["


@dataclasses.dataclass(frozen=True)
class Inputs:
    """N inputs of a network, not read yet.

    Attributes:
      ids: N unique names.
      paths: N places, "" where an input is no file.
      read: from row to encoded bytes or an image `[H, W, C]`, uint8 or uint16; raises `raw.Unreadable`. None where
        there is nothing to look at.
      refused: why rows cannot be read, where that is known already.
      captions: N captions, None for a missing one; None where none are known.
      vectors: float32 `[N, G]`, the values of samples; None for images.
      genes: G names of the values of vectors.
      labels: N names of the true classes, "" where unknown; None where none are known.
      notes: sentences for the user.
      unit: what an input is called.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    read: Callable[[int], bytes | np.ndarray] | None = None
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)
    captions: Sequence[str | None] | None = None
    vectors: np.ndarray | None = None
    genes: tuple[str, ...] = ()
    labels: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    unit: str = "image"

    def __len__(self) -> int:
        return len(self.ids)


def of_images(spec: str, columns: Mapping[str, str]) -> Inputs:
    """What `--images` names.

    Args:
      spec: folder or .zip of images, folder of a prepared data set, .csv or .tsv of paths, pattern, or one file.
      columns: the user's names of columns by ours (`COLUMNS`).

    Raises:
      UserError: nothing is there, or a table is malformed.
    """
    path = pathlib.Path(spec)
    if path.is_dir():
        if (path / "splits.json").is_file():
            dataset = open_dataset(path)
            return of_dataset(dataset, np.arange(len(dataset)))
        return _of_source(raw.FolderSource(path, raw.MAX_FILE_BYTES), path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _of_source(raw.ZipSource(path, raw.MAX_FILE_BYTES), path)
    if path.is_file() and path.suffix.lower() in _TABLES:
        return _of_table(path, columns)
    if path.exists():
        return _of_files([str(path)], path.parent)
    if any(mark in spec for mark in _MAGIC):
        found = sorted(name for name in glob.iglob(spec, recursive=True) if not os.path.isdir(name))
        if not found:
            raise UserError(f"--images={spec} matches no file; correct the pattern, and quote it in the shell.")
        return _of_files(found, _fixed_part(spec))
    raise UserError(f"--images={spec} does not exist; name a folder, .zip, .csv, file or pattern.")


def _of_source(source: raw.RawSource, path: pathlib.Path) -> Inputs:
    names = source.names()
    images = [name for name in names if is_image_name(name)]
    entries = sorted([(name, "") for name in images] + source.problems)
    if not images:
        kinds = f" among {len(names)} files" if names else ""
        raise UserError(f"{path} holds no image file{kinds}; name another folder for --images.")
    ids, reasons = zip(*entries, strict=True)
    other, locked = len(names) - len(images), files.Locked(source)
    return Inputs(
        ids, _Below(path, ids), lambda row: locked.read(ids[row]),
        {row: reason for row, reason in enumerate(reasons) if reason},
        notes=(f"{other} files of {path} have no image's name and are passed over.",) if other else (),
    )  # fmt: skip


class _Below(Sequence):
    """The paths of names below a folder, made when they are asked for."""

    def __init__(self, folder: pathlib.Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            return [f"{self._folder}/{name}" for name in self._names[rows]]
        return f"{self._folder}/{self._names[rows]}"


def _of_files(names: Sequence[str], base: pathlib.Path) -> Inputs:
    """Files, with their paths relative to `base` as ids."""
    ids = [pathlib.PurePath(os.path.relpath(name, base)).as_posix() for name in names]
    return Inputs(ids, names, lambda row: files.read(pathlib.Path(names[row])))


def _fixed_part(pattern: str) -> pathlib.Path:
    """The folders of a pattern before the first that holds a mark."""
    parts = pathlib.Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if any(mark in part for mark in _MAGIC))
    return pathlib.Path(*parts[:fixed])


def _of_table(path: pathlib.Path, columns: Mapping[str, str]) -> Inputs:
    source = files.open_named(path, "--images")
    present = csv_rows.header(source, path.name)
    wanted = {ours: csv_rows.plain(name) for ours, name in columns.items()}
    wanted.setdefault("path", next((name for name in PATH_NAMES if name in present), ""))
    wanted |= {name: name for name in ("id", "caption") if name in present and name not in wanted}
    if not wanted["path"] or wanted["path"] not in present:
        shown = ", ".join(printable(name, 30) for name in present[:8]) or "none"
        raise UserError(f"{path} has no column of paths (its columns: {shown}); name it with --columns=path=NAME.")
    rows = csv_rows.read_rows(source, path.name, list(wanted.values()))
    folder, ids, paths, captions = path.parent, {}, [], []
    for row in rows:
        place = row.cells[wanted["path"]]
        name = row.cells[wanted["id"]] if "id" in wanted else place
        where = f"{path}, line {row.line}"
        if not place or not name:
            raise UserError(f"{where}: the {'id' if place else 'path'} is empty; write one.")
        if name in ids:
            raise UserError(f"{where}: {printable(name)!r} is in line {ids[name]} too; change one, or add a column id.")
        ids[name] = row.line
        paths.append(str(folder / place))
        captions.append(row.cells[wanted["caption"]] or None if "caption" in wanted else None)
    return Inputs(
        list(ids), paths, lambda row: files.read(pathlib.Path(paths[row])),
        captions=captions if "caption" in wanted else None,
    )  # fmt: skip


def of_dataset(dataset: Dataset, indices: np.ndarray) -> Inputs:
    """The examples `indices` of a prepared data set.

    Raises:
      UserError: there are none.
    """
    if not len(indices):
        raise UserError(f"{dataset.directory} has no example of that role; name another.")
    ids, captions = [str(name) for name in dataset.ids[indices]], dataset.captions
    common = {
        "captions": None if captions is None else [captions[index] or None for index in indices],
        "labels": _label_names(dataset, indices),
        "unit": dataset.unit,
    }
    if dataset.genes:
        return Inputs(ids, [""] * len(ids), vectors=_Vectors(dataset, indices), genes=dataset.genes, **common)

    def read(row: int) -> bytes:
        try:
            return dataset.encoded(int(indices[row]))
        except UserError as error:
            raise raw.Unreadable(str(error)) from error

    return Inputs(ids, [""] * len(ids), read, **common)


class _Vectors:
    """The vectors of examples, read when they are asked for; slices of rows give float32 `[n, G]`."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self._dataset, self._indices = dataset, indices
        self.shape = (len(indices), len(dataset.genes))

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([self._dataset.vector(int(index)) for index in self._indices[rows]])


def _label_names(dataset: Dataset, indices: np.ndarray) -> list[str]:
    labels, names = dataset.labels[indices], dataset.class_names
    if dataset.multi_label:
        return [";".join(names[k] for k in np.flatnonzero(row > 0.5)) for row in labels]
    return [names[k] if k >= 0 else "" for k in labels]


def with_captions(inputs: Inputs | None, path: pathlib.Path, columns: Mapping[str, str]) -> Inputs:
    """Joins the captions of a table to inputs by id; without inputs the table's rows are the inputs.

    Raises:
      UserError: the table is malformed, repeats an id, or knows none of the inputs.
    """
    source = files.open_named(path, "--captions")
    key, text = (csv_rows.plain(columns.get(name, name)) for name in ("id", "caption"))
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in csv_rows.read_rows(source, path.name, [key, text]):
        name = row.cells[key]
        if not name:
            raise UserError(f"{path}, line {row.line}: the id is empty; write one.")
        if name in lines:
            raise UserError(f"{path}, line {row.line}: {printable(name)!r} is in line {lines[name]} too; remove one.")
        found[name], lines[name] = row.cells[text], row.line
    if inputs is None:
        ids = list(found)
        return Inputs(ids, [""] * len(ids), captions=[found[name] or None for name in ids], unit="caption")
    # Tables of this project have an apostrophe before what a spreadsheet would take for a formula.
    captions = [found.get(name, found.get(f"'{name}")) or None for name in inputs.ids]
    known = sum(caption is not None for caption in captions)
    if not known:
        first = printable(inputs.ids[0], 60)
        raise UserError(f"{path} has no caption for any of {len(inputs)} {inputs.unit}s, such as {first}; correct ids.")
    note = f"{len(inputs) - known} of {len(inputs)} {inputs.unit}s have no caption." if known < len(inputs) else ""
    return dataclasses.replace(inputs, captions=captions, notes=(*inputs.notes, *([note] if note else [])))
