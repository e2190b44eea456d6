"""Which photos, labels and captions of the COMP5329 contest become examples, with or without their image files?

`train.csv` (`ImageID,Labels,Caption`), `test.csv` (`ImageID,Caption`) and `data/<number>.jpg`; how the tables are read,
whichever of their dialects it is, is the business of `captions_table`. Rules:

* Labels are COCO category numbers, 1 to 19 without 12, any number of them. What is no such number is dropped and
  counted; a record with no label left is left out and listed.
* The records of the test table are `unlabelled`, or the official `test` set where it has labels after all.
* Records with the same caption, but for case, punctuation and blanks, are one group: text models must not be tested on
  captions that they were fitted to. Copies among the images join these groups.
* A record whose image is missing is left out and listed. A malformed table stops the run and names its line.

Options: `csv=NAME` names the table with labels where there are several and none is called train.csv (a column `Path`
may say where images lie, as in an index of COCO); `captions_only=yes` takes the records without any image files, each
with one grey pixel for a picture; `cleaned=yes` puts `train_cleaned.csv` and `test_cleaned.csv` into the data set: the
records that were taken, in proper CSV, with the contest's columns and numbers.
"""

import collections
import dataclasses
import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from input_pipeline import tabular
from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource, printable
from input_pipeline.studies import captions_table, csv_rows
from input_pipeline.studies.captions_table import Record, Table
from input_pipeline.studies.manifest import (
    Manifest,
    RawExample,
    check_options,
    is_image_name,
    list_briefly,
    packed_hint,
)

CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse",
}  # fmt: skip
"""The contest's numbers (COCO category ids) and their names, in the order of the classes."""

CLASS_NAMES = tuple(CATEGORIES.values())
NUMBERS = tuple(CATEGORIES)

_OPTIONS = ("csv", "captions_only", "cleaned")
_LISTED = 20
"""How many ids the notes list for a reason."""


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "no").lower()
    if value not in ("yes", "no", "true", "false", "1", "0"):
        raise UserError(f"the option {name}={options[name]} must be yes or no.")
    return value in ("yes", "true", "1")


def _outermost(names: Iterable[str]) -> str:
    return min(names, key=lambda name: (name.count("/"), name))


def _choose(source: RawSource, names: Sequence[str], called: str, what: str) -> str | None:
    """The outermost table called so, or the only one; None when there is none."""
    named = [name for name in names if posixpath.basename(name).lower() == called]
    if named or len(names) == 1:
        return _outermost(named or names)
    if names:
        raise UserError(
            f"{source.path} holds several tables {what} ({list_briefly(names)}): name the right one {called}"
            + (", or give it as --set csv=NAME." if called == "train.csv" else ".")
        )
    return None


def _find_tables(source: RawSource, options: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The table with labels, then the test table, if there is one; and the tables that are not used."""
    headers = {name: csv_rows.header(source, name) for name in source.names() if name.lower().endswith(".csv")}
    # Cleaned tables are products of the study, not its input.
    tables = [
        name
        for name, columns in headers.items()
        if {captions_table.ID, captions_table.CAPTION} <= set(columns) and not name.lower().endswith("_cleaned.csv")
    ]
    for_test = [name for name in tables if posixpath.basename(name).lower() == "test.csv"]
    labelled = [name for name in tables if captions_table.LABELS in headers[name] and name not in for_test]
    if "csv" in options:
        if options["csv"] not in headers:
            raise UserError(f"{options['csv']} is not in {source.path}: it holds {list_briefly(headers) or 'no CSV'}.")
        train: str | None = options["csv"]
    else:
        train = _choose(source, labelled, "train.csv", "of captions and labels")
    if train is None:
        raise UserError(
            f"{source.path} holds no table of captions and labels (train.csv with the columns ImageID,Labels,Caption)"
            f"{packed_hint(source.names())}: give the folder of the whole download as --source."
        )
    for_test = for_test or [name for name in tables if name not in labelled]
    test = _choose(source, [name for name in for_test if name != train], "test.csv", "of captions alone")
    used = [name for name in (train, test) if name]
    return used, sorted(set(tables) - set(used))


def _unique(table: Table) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records with one of each id, and the repeated ones.

    Raises:
        UserError: an id that cannot be one, or that has two different records; names the line.
    """
    kept: dict[str, Record] = {}
    problems = []
    for record in table.records:
        where = f"{table.name}, line {record.line}"
        if not record.id or len(record.id) > 200 or not record.id.isprintable():
            raise UserError(f"{where}: the ImageID {printable(record.id, 40)!r} is no id; correct the line.")
        first = kept.setdefault(record.id, record)
        if first is record:
            continue
        if dataclasses.replace(record, line=first.line) != first:
            raise UserError(
                f"{where}: {printable(record.id)} is in line {first.line} with other values; remove one line."
            )
        problems.append((record.id, f"its row occurs twice in {table.name}"))
    return list(kept.values()), problems


def valid_labels(cell: str) -> tuple[tuple[int, ...], list[str]]:
    """Class indices in a cell of labels, ascending, and why each other word of it was dropped."""
    labels, dropped = set(), []
    for word in cell.split():
        if not re.fullmatch(r"[0-9]{1,9}", word):
            dropped.append("not a whole number")
        elif int(word) in CATEGORIES:
            labels.add(NUMBERS.index(int(word)))
        else:
            dropped.append("12, which the contest leaves out" if int(word) == 12 else "outside 1 to 19")
    return tuple(sorted(labels)), dropped


def normalised(caption: str) -> str:
    """The words of a caption in lower case, separated by single blanks; "" when it has none."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold()))


def caption_groups(captions: Sequence[str]) -> list[str | None]:
    """A group's name for each of N captions that has the same words as another one, None for all others."""
    words = [normalised(caption) for caption in captions]
    counts = collections.Counter(words)
    return [
        f"caption-{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text and counts[text] > 1 else None
        for text in words
    ]


class _Images:
    """Finds the image file of a record."""

    def __init__(self, source: RawSource, table: str):
        self._names = {name for name in source.names() if is_image_name(name)}
        self._folder = posixpath.dirname(table)
        self._by_base: dict[str, str] = {}
        for name in sorted(self._names, key=lambda name: (name.count("/"), name)):
            self._by_base.setdefault(posixpath.basename(name), name)

    def find(self, record: Record) -> str | None:
        if record.path:
            # Only names that the source lists are ever opened, so `..` cannot lead anywhere else.
            for folder in (self._folder, ""):
                name = posixpath.normpath(posixpath.join(folder, record.path.replace("\\", "/")))
                if name in self._names:
                    return name
            return None
        return self._by_base.get(posixpath.basename(record.id))


@dataclasses.dataclass
class _Found:
    """What has been taken from the tables so far."""

    examples: list[RawExample] = dataclasses.field(default_factory=list)
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def take(self, table: Table, role: str | None, images: _Images | None) -> None:
        """Takes the records of a table; `images` is None when no image files are wanted."""
        records, repeated = _unique(table)
        self.problems += repeated
        earlier = {example.id for example in self.examples}
        for record in records:
            if record.id in earlier:
                self.problems.append((record.id, f"in {table.name}, but the table with labels has it too"))
                continue
            labels, dropped = valid_labels(record.labels) if table.labelled else ((), [])
            for reason in dropped:
                self.dropped[reason].append(record.id)
            if table.labelled and not labels:
                self.problems.append((record.id, "no label from 1 to 19 without 12"))
                continue
            path = images.find(record) if images else None
            if images and path is None:
                self.problems.append((record.id, "its image is missing"))
                continue
            self.examples.append(RawExample(record.id, (path,) if path else (), labels, role, None, record.caption))


def _natural(identifier: str) -> tuple:
    number = re.match(r"[0-9]{1,18}", identifier)
    return (0, int(number[0]), identifier) if number else (1, 0, identifier)


def cleaned(examples: Iterable[RawExample], labelled: bool) -> bytes:
    """A table of the examples: ImageID, the contest's label numbers in ascending order if `labelled`, and Caption.

    A text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    rows = [["ImageID", "Labels", "Caption"] if labelled else ["ImageID", "Caption"]]
    for example in examples:
        labels = [" ".join(str(NUMBERS[label]) for label in example.labels)] if labelled else []
        rows.append([tabular.safe_text(example.id), *labels, tabular.safe_text(example.caption)])
    return tabular.csv_text(rows).encode()


def _notes(tables: Sequence[Table], unused: Sequence[str], found: _Found, captions_only: bool) -> dict:
    groups = collections.Counter(example.group for example in found.examples if example.group)
    restored = [name for table in tables for name in table.restored]
    return {
        "tables": [
            {"name": table.name, "dialect": table.dialect, "records": len(table.records), "labelled": table.labelled}
            for table in tables
        ],
        "tables_not_used": list(unused),
        "captions_only": captions_only,
        "labels_dropped": {
            reason: {"count": len(ids), "first": ids[:_LISTED]} for reason, ids in sorted(found.dropped.items())
        },
        "captions_restored": {"count": len(restored), "first": restored[:_LISTED]},
        "captions_missing": sum(not example.caption.strip() for example in found.examples),
        "repeated_captions": {"groups": len(groups), "records": sum(groups.values())},
    }


def scan(source: RawSource, options: Mapping[str, str]) -> Manifest:
    """Lists the records of the contest's tables, by number.

    Args:
        source: the download.
        options: see the module's docstring.

    Raises:
        UserError: no table, a malformed one, no image at all, or an unknown option.
    """
    check_options("captions", options, _OPTIONS)
    captions_only, wants_cleaned = _flag(options, "captions_only"), _flag(options, "cleaned")
    names, unused = _find_tables(source, options)
    tables = [captions_table.read(source, name) for name in names]
    if not tables[0].labelled:
        raise UserError(f"{names[0]} has no column Labels: name the table with labels as --set csv=NAME.")
    found = _Found()
    for_test = "test" if tables[-1].labelled else "unlabelled"
    for table, role in zip(tables, (None, for_test), strict=False):
        found.take(table, role, None if captions_only else _Images(source, table.name))
    if not any(example.role is None for example in found.examples):
        reasons = collections.Counter(reason for _, reason in found.problems).most_common(1)
        raise UserError(
            f"none of the {len(tables[0].records)} records of {names[0]} can be used"
            f"{f' ({reasons[0][1]} times: {reasons[0][0]})' if reasons else ''}{packed_hint(source.names())}: give the "
            "folder that holds the images too, or prepare without them with --set captions_only=yes."
        )
    found.examples.sort(key=lambda example: _natural(example.id))
    groups = caption_groups([example.caption for example in found.examples])
    found.examples = [
        dataclasses.replace(example, group=group) for example, group in zip(found.examples, groups, strict=True)
    ]
    products = {}
    if wants_cleaned:
        products["train_cleaned.csv"] = cleaned((e for e in found.examples if e.role is None), True)
        if len(tables) > 1:
            products["test_cleaned.csv"] = cleaned((e for e in found.examples if e.role), tables[1].labelled)
    return Manifest(
        study="captions",
        class_names=CLASS_NAMES,
        multi_label=True,
        examples=found.examples,
        problems=sorted(found.problems, key=lambda problem: (problem[1], _natural(problem[0]))),
        official_split=any(example.role == "test" for example in found.examples),
        notes=_notes(tables, unused, found, captions_only),
        tables=products,
    )
