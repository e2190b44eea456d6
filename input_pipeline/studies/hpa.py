"""How do the three public forms of the Human Protein Atlas images become one ten-class dataset?

The form is recognised by the header of the label table, not by folder names:

* `Image,Label`: the course (`train/train/<id>.png`, `train.csv`, `submission.csv`) and Jovian (`Human protein
  atlas/train/<id>.png`, ...). RGB images, labels 0..9. Labels in a submission file are dummies.
* `Id,Target`: HPA-2018 (`train/<uuid>_{red,green,blue,yellow}.png`). Labels 0..27, see hpa_2018.py.

Rules for both: images of ids in a submission file, or below a folder named `test`, are `unlabelled`, unless the label
table names them; an id whose image is missing, and an image that no table names, is left out and listed; a malformed
row stops the run and names its line. When a file occurs twice (archives nest), the outermost copy is used.

No column names a cell line, an antibody or a patient, so groups come from the images alone (duplicates.py).
"""

import collections
import dataclasses
import posixpath
import re

from input_pipeline import nuclei
from input_pipeline.cli import UserError
from input_pipeline.nuclei import CellFinder
from input_pipeline.raw import RawSource, printable
from input_pipeline.studies import csv_rows, hpa_2018
from input_pipeline.studies.manifest import (
    Manifest,
    RawExample,
    check_options,
    is_image_name,
    list_briefly,
    packed_hint,
    stem,
)

CLASS_NAMES = hpa_2018.CLASS_NAMES

_COURSE = ("image", "label")
_HPA_2018 = ("id", "target")


def _outermost(names: list[str]) -> str:
    return min(names, key=lambda name: (name.count("/"), name))


def _tables(source: RawSource, columns: tuple[str, str], submission: bool) -> list[str]:
    """CSV files with these columns, by what they are called: `*submission*.csv` or another name."""
    return [
        name
        for name in source.names()
        if name.lower().endswith(".csv")
        and ("submission" in posixpath.basename(name).lower()) == submission
        and set(columns) <= set(csv_rows.header(source, name))
    ]


def _label_table(source: RawSource) -> tuple[str, tuple[str, str]]:
    for columns in (_COURSE, _HPA_2018):
        tables = _tables(source, columns, submission=False)
        named = [name for name in tables if posixpath.basename(name).lower() == "train.csv"]
        if named or len(tables) == 1:
            return _outermost(named or tables), columns
        if tables:
            raise UserError(
                f"{source.path} holds several label tables ({list_briefly(tables)}): name the right one train.csv."
            )
    raise UserError(
        f"{source.path} holds no label table (train.csv with the columns Image,Label or Id,Target)"
        f"{packed_hint(source.names())}: give the folder of the whole download as --source."
    )


def read_labels(
    source: RawSource, table: str, columns: tuple[str, str], num_labels: int
) -> tuple[dict[str, tuple[int, ...]], list[tuple[str, str]]]:
    """Label table as id -> ascending labels, and the rows that were left out.

    Raises:
        UserError: names the file and the line of a label that is no whole number in 0..num_labels-1, of an empty label
            or id, and of an id whose second row differs from its first.
    """
    labels: dict[str, tuple[int, ...]] = {}
    lines: dict[str, int] = {}
    problems = []
    for row in csv_rows.read_rows(source, table, columns):
        identifier, cell = (row.cells[column] for column in columns)
        identifier = stem(identifier)
        where = f"{table}, line {row.line}"
        if not identifier or len(identifier) > 200 or not identifier.isprintable():
            raise UserError(f"{where}: the {columns[0]} {printable(identifier, 40)!r} is no id; correct the line.")
        words = cell.split()
        if not words:
            raise UserError(f"{where}: {identifier} has no label; give one or remove the line.")
        for word in words:
            if not re.fullmatch(r"\d{1,4}", word) or int(word) >= num_labels:
                raise UserError(
                    f"{where}: the label {printable(word, 40)} of {identifier} is no whole number in "
                    f"0..{num_labels - 1}; correct the line."
                )
        found = tuple(sorted({int(word) for word in words}))
        if identifier in labels:
            if labels[identifier] != found:
                raise UserError(f"{where}: {identifier} has other labels in line {lines[identifier]}; remove one line.")
            problems.append((identifier, f"its row occurs twice in {table}"))
        labels[identifier], lines[identifier] = found, row.line
    return labels, problems


def _submission_ids(source: RawSource) -> set[str]:
    """Ids listed in submission files; their labels are dummies and are never read."""
    ids = set()
    for columns in (_COURSE, ("id", "predicted")):
        for table in _tables(source, columns, submission=True):
            ids |= {stem(row.cells[columns[0]]) for row in csv_rows.read_rows(source, table, columns)}
    return ids - {""}


def _below_test(name: str) -> bool:
    return "test" in posixpath.dirname(name).lower().split("/")


def _index(source: RawSource) -> tuple[dict[str, str], dict[str, str]]:
    """Stem -> outermost image name, for images below a folder named `test` and for all others."""
    test: dict[str, list[str]] = collections.defaultdict(list)
    other: dict[str, list[str]] = collections.defaultdict(list)
    for name in source.names():
        if is_image_name(name):
            (test if _below_test(name) else other)[stem(name)].append(name)
    return {k: _outermost(v) for k, v in test.items()}, {k: _outermost(v) for k, v in other.items()}


def _natural(identifier: str) -> tuple:
    return (0, int(identifier), identifier) if re.fullmatch(r"\d{1,18}", identifier) else (1, 0, identifier)


def _scan_course(source: RawSource, table: str) -> Manifest:
    labels, problems = read_labels(source, table, _COURSE, len(CLASS_NAMES))
    test, other = _index(source)
    listed = _submission_ids(source) - set(labels)
    examples = [RawExample(key, (other[key],), found) for key, found in labels.items() if key in other]
    if not examples:
        raise UserError(
            f"{source.path}: none of the {len(labels)} images of {table} is there{packed_hint(source.names())}: "
            "give the folder of the whole download as --source."
        )
    for key in labels:
        if key not in other:
            where = "its image lies only in the test folder" if key in test else "its image is missing"
            problems.append((key, where))
    unlabelled = {key: test.get(key) or other.get(key) for key in (set(test) | listed) - set(labels)}
    examples += [RawExample(key, (name,), (), "unlabelled") for key, name in unlabelled.items() if name]
    problems += [(key, "in the submission file, but its image is missing") for key, n in unlabelled.items() if not n]
    problems += [(name, f"no row in {table}") for key, name in other.items() if key not in labels and key not in listed]
    return Manifest(
        study="hpa",
        class_names=CLASS_NAMES,
        multi_label=True,
        examples=sorted(examples, key=lambda example: _natural(example.id)),
        problems=sorted(problems, key=lambda problem: (problem[1], _natural(problem[0]))),
        official_split=False,
        notes={"layout": "Image,Label (course or Jovian)", "table": table, "rows": len(labels)},
    )


def _scan_2018(source: RawSource, table: str, channels: tuple[str, ...]) -> Manifest:
    labels, problems = read_labels(source, table, _HPA_2018, hpa_2018.NUM_LABELS)
    test, other = _index(source)
    listed = _submission_ids(source) - set(labels)
    usable, left_out, dropped = hpa_2018.translate(labels)
    complete = hpa_2018.complete_ids(labels, other, channels)
    if not complete:
        hint = packed_hint(source.names())
        raise UserError(hpa_2018.describe_incomplete(f"{source.path}{hint}", table, labels, other, channels))
    examples = []
    for key, found in usable.items():
        if key in complete:
            examples.append(RawExample(key, tuple(other[f"{key}_{channel}"] for channel in channels), found))
    if not examples:
        raise UserError(f"{source.path}: no image with one of the ten labels has the channels {', '.join(channels)}.")
    problems += [(key, hpa_2018.missing(key, other, channels)) for key in labels if key not in complete]
    problems += [(key, "none of the ten labels") for key in left_out if key in complete]
    for key in sorted((hpa_2018.ids_of(test) | listed) - set(labels)):
        files = test if hpa_2018.missing(key, other, channels) else other
        reason = hpa_2018.missing(key, files, channels)
        if reason:
            problems.append((key, f"unlabelled, {reason}"))
        else:
            paths = tuple(files[f"{key}_{channel}"] for channel in channels)
            examples.append(RawExample(key, paths, (), "unlabelled"))
    strangers = hpa_2018.ids_of(other) - set(labels) - listed
    problems += [(key, f"no row in {table}") for key in strangers]
    return Manifest(
        study="hpa",
        class_names=CLASS_NAMES,
        multi_label=True,
        examples=sorted(examples, key=lambda example: example.id),
        problems=sorted(problems, key=lambda problem: (problem[1], problem[0])),
        official_split=False,
        notes={
            "layout": "Id,Target (HPA-2018)",
            "table": table,
            "rows": len(labels),
            "label_rule": hpa_2018.RULE,
            "images_without_the_ten_labels": len(left_out),
            "labels_dropped": dropped,
        },
        channels=channels,
    )


def _cell_finder(options: dict[str, str], channels: tuple[str, ...]) -> CellFinder | None:
    """What the option `mask` or `crop` asks for, with images of these channels."""
    given = [name for name in ("mask", "crop") if options.get(name, "none") != "none"]
    if not given:
        return None
    name, kind = given[0], options[given[0]]
    if kind not in nuclei.KINDS or len(given) > 1:
        raise UserError(f"{name}={kind}: give one of mask and crop, and choose none, {' or '.join(nuclei.KINDS)}.")
    if not {"blue", "red"} <= set(channels) or len(channels) > 3 + (name == "crop"):
        raise UserError(f"{name}={kind} needs images of red, green and blue, not of {', '.join(channels)}.")
    return CellFinder(kind, channels.index("blue"), channels.index("red"), crop=name == "crop")


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the images of any of the three forms.

    Args:
        source: the download.
        options: `channels`, HPA-2018 only: one, three or four of red, green, blue, yellow in the order in which they
            become channels of the image (default "red,green,blue"); `mask`, "nuclei" or "cells": a fourth channel that
            is full there, or `crop`: only the box around them is kept, see `input_pipeline.nuclei` (default "none").

    Raises:
        UserError: no label table, a malformed row, no image with all channels, or an unknown option.
    """
    check_options("hpa", options, ("channels", "mask", "crop"))
    table, columns = _label_table(source)
    channels = hpa_2018.parse_channels(options.get("channels", "red,green,blue"))
    cell_finder = _cell_finder(options, channels)
    if columns == _HPA_2018:
        found = _scan_2018(source, table, channels)
    elif "channels" in options:
        raise UserError("the option channels is for the single-channel files of HPA-2018; these images are RGB.")
    else:
        found = _scan_course(source, table)
    if cell_finder is None:
        return found
    own = {"cells": f"{'crop' if cell_finder.crop else 'mask'}={cell_finder.kind}"}
    return dataclasses.replace(found, cell_finder=cell_finder, notes=found.notes | own)
