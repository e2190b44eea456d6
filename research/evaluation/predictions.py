"""What did a model say about each example? Predictions as a CSV file, joined by id.

Columns: `id`, `group`, `fold` (only if given), `label`, then `logit_<class name>` for every class in the
    order of the
dataset. `label` holds the class indices, ascending, separated by spaces; it is empty for an unlabelled
example and for a multi-label example without labels. Logits are written with nine significant digits, which
gives back the same float32. UTF-8, comma, double quotes doubled, one line feed per row.

Spreadsheets run a cell that starts with `=`, `+`, `-`, `@`, tab or carriage return as a formula. An id or
group that does, or that starts with an apostrophe, is written with one apostrophe before it; reading takes
one leading apostrophe away, so every id comes back as it was. Logits are numbers and are left alone.
"""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError, atomic_write
from research.evaluation import calibration

_GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")
_PREFIX = "logit_"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of one prediction file.

    Attributes:
        ids: `[N]` strings.
        groups: `[N]` strings.
        label_indices: per example its class indices, ascending; empty if unlabelled or without labels.
        logits: float32 `[N, K]`.
        class_names: `[K]`.
        folds: int64 `[N]`, or None.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    label_indices: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    class_names: tuple[str, ...]
    folds: np.ndarray | None = None

    def labels(self, multi_label: bool) -> np.ndarray:
        """float32 multi-hot `[N, K]`, or int32 `[N]` with -1 for unlabelled.

        Raises:
            UserError: several labels in a single-label task.
        """
        if multi_label:
            dense = np.zeros(self.logits.shape, np.float32)
            for row, indices in enumerate(self.label_indices):
                dense[row, list(indices)] = 1.0
            return dense
        for name, indices in zip(self.ids, self.label_indices, strict=True):
            if len(indices) > 1:
                raise UserError(f"{name!r} has {len(indices)} labels, but the task has one label per example.")
        return np.array([indices[0] if indices else -1 for indices in self.label_indices], np.int32)

    def scores(self, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
        """Probabilities float64 `[N, K]`: sigmoid (multi-label) or softmax of the logits over the
        temperature.
        """
        return calibration.probabilities(self.logits, multi_label, temperature)


def guard(text: str) -> str:
    """A text with an apostrophe before it if a spreadsheet would run it, or if it has one already."""
    return f"'{text}" if text.startswith(_GUARDED) else text


def quote(cell: str) -> str:
    """A cell of a CSV, in quotes where it needs them."""
    # csv.writer leaves a lone carriage return bare (Python 3.11), and a reader ends the row there.
    return '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in ',"\r\n') else cell


def _unguard(text: str) -> str:
    return text[1:] if text.startswith("'") else text


def _label_cells(labels: np.ndarray | Sequence, num_examples: int, num_classes: int) -> list[str]:
    labels = np.asarray(labels)
    if labels.shape not in ((num_examples,), (num_examples, num_classes)):
        raise UserError(
            f"labels of shape {labels.shape} do not fit {num_examples} predictions of {num_classes} classes."
        )
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise UserError("multi-label labels must be 0 or 1.")
        return [" ".join(map(str, np.flatnonzero(row))) for row in labels]
    if labels.size and (labels.min() < -1 or labels.max() >= num_classes):
        raise UserError(f"labels must lie between -1 (unlabelled) and {num_classes - 1}.")
    return ["" if label < 0 else str(int(label)) for label in labels]


def write(
    path: str | os.PathLike,
    ids: Sequence[str],
    groups: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    fold: int | Sequence[int] | np.ndarray | None = None,
) -> None:
    """Writes predictions; the file is absent (or as before) or complete.

    Args:
        path: the CSV file; its folder exists.
        ids: `[N]`, unique.
        groups: `[N]`.
        labels: int `[N]` with -1 for unlabelled, or multi-hot `[N, K]`.
        logits: `[N, K]`, finite; kept as float32.
        class_names: `[K]`, unique.
        fold: one number for all rows, or `[N]`, or None for no such column.

    Raises:
        UserError: lengths that differ, repeated ids or class names, logits that are not finite.
    """
    logits = np.asarray(logits, np.float32)
    if logits.ndim != 2 or logits.shape != (len(ids), len(class_names)) or len(groups) != len(ids):
        raise UserError(
            f"predictions of shape {logits.shape} do not fit {len(ids)} ids, {len(groups)} groups "
            f"and {len(class_names)} classes."
        )
    calibration.check_finite(logits)
    cells = _label_cells(labels, len(ids), len(class_names))
    header = ["id", "group", "label"] + [f"{_PREFIX}{name}" for name in class_names]
    rows = [[guard(str(i)), guard(str(g)), cell] for i, g, cell in zip(ids, groups, cells, strict=True)]
    if fold is not None:
        folds = np.broadcast_to(np.asarray(fold, np.int64), (len(ids),))
        header.insert(2, "fold")
        for row, number in zip(rows, folds, strict=True):
            row.insert(2, str(number))
    _check_unique([str(i) for i in ids], "id")
    _check_unique(list(class_names), "class name")
    lines = [",".join(map(quote, header))]
    for row, values in zip(rows, logits.tolist(), strict=True):
        lines.append(",".join([*map(quote, row), *(f"{value:.9g}" for value in values)]))
    # Names of files that were not valid UTF-8 hold lone surrogates; they pass through, in both directions.
    atomic_write(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def _check_unique(names: list, what: str) -> None:
    if len(set(names)) != len(names):
        seen: set = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise UserError(f"the {what} {twice!r} occurs twice in the predictions; every {what} must be unique.")


def read(path: str | os.PathLike) -> Predictions:
    """Reads what `write` wrote.

    Raises:
        UserError: a missing file, columns or cells that are not as described above (with the line), repeated
            ids.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there are no predictions at {path}; run the study that writes them first.")
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        num_fixed = 4 if header[:4] == ["id", "group", "fold", "label"] else 3
        names = header[num_fixed:]
        known = num_fixed == 4 or header[:3] == ["id", "group", "label"]
        if not known or not names or not all(name.startswith(_PREFIX) for name in names):
            raise UserError(
                f"{path} is no prediction file: its columns must be id, group, label "
                f"and one {_PREFIX}<class> per class."
            )
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); write the predictions again.") from error
    class_names = tuple(name[len(_PREFIX) :] for name in names)
    _check_unique(list(class_names), "class name")
    logits = np.empty((len(rows), len(class_names)), np.float32)
    labels, folds = [], np.empty(len(rows), np.int64)
    for position, (line, row) in enumerate(rows):
        try:
            labels.append(_parse_row(row, num_fixed, len(header), logits[position]))
            folds[position] = int(row[2]) if num_fixed == 4 else -1
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}; write the predictions again.") from error
    ids = tuple(_unguard(row[0]) for _, row in rows)
    _check_unique(list(ids), "id")
    groups = tuple(_unguard(row[1]) for _, row in rows)
    return Predictions(ids, groups, tuple(labels), logits, class_names, folds if num_fixed == 4 else None)


def _parse_row(row: list[str], num_fixed: int, width: int, logits: np.ndarray) -> tuple[int, ...]:
    """Fills `logits` `[K]` and returns the label indices; raises `ValueError` for anything else than `write`
    writes.
    """
    if len(row) != width:
        raise ValueError(f"{len(row)} cells instead of {width}")
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is refused below
        logits[:] = [float(cell) for cell in row[num_fixed:]]
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    indices = tuple(int(cell) for cell in row[num_fixed - 1].split())
    if any(not 0 <= index < len(logits) for index in indices) or list(indices) != sorted(set(indices)):
        raise ValueError(f"label {row[num_fixed - 1]!r} is not an ascending list of class indices")
    return indices


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Pools the test predictions of several folds; every id may occur once.

    Raises:
        UserError: no parts, different classes, repeated ids.
    """
    if not parts:
        raise UserError("there are no predictions to pool.")
    first = parts[0]
    for part in parts[1:]:
        if part.class_names != first.class_names:
            raise UserError("predictions of different classes cannot be pooled.")
    ids = tuple(name for part in parts for name in part.ids)
    _check_unique(list(ids), "id")
    numbered = all(part.folds is not None for part in parts)
    return Predictions(
        ids,
        tuple(name for part in parts for name in part.groups),
        tuple(indices for part in parts for indices in part.label_indices),
        np.concatenate([part.logits for part in parts]),
        first.class_names,
        np.concatenate([part.folds for part in parts]) if numbered else None,
    )
