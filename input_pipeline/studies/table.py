"""How does a user's own CSV of images and labels become a dataset, without writing code?

Columns: `path` (or `file`, `filename`, `image`) and either `label` (one class) or `labels` (any number of classes);
optional `id`, `group` (patient, photograph), `role` and `caption`. Columns by other names are given as options, for
example `--set path=ImageID label=Diagnosis`. Rules:

* Paths are relative to the CSV's folder, to the source, or to the folder given as option `images`.
* `labels` cells are separated by `;` or `|` if any cell holds one, otherwise by blanks (option `separator`).
* Class names are sorted (as numbers if all are whole numbers). Option `classes=a,b,c` fixes names and order; labels
  may then be names or indices into that list. Option `csv` names the table when the source holds several.
* `role`: train, validation, calibration, test, unlabelled; an empty cell or `train` is the part from which the roles
  that the table does not provide are carved. An empty `label` needs the role unlabelled; an empty `labels` cell means
  that no class applies.
* A row whose image is missing is left out and listed; a malformed row stops the run and names its line.
"""

import dataclasses
import posixpath
import re
from collections.abc import Iterable

from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource, printable
from input_pipeline.studies import csv_rows
from input_pipeline.studies.manifest import ROLE_NAMES, Manifest, RawExample, check_options, list_briefly, packed_hint

_PATH_NAMES = ("path", "file", "filename", "image")
_OPTIONAL = ("id", "group", "role", "caption")
_OPTIONS = ("csv", "images", "separator", "classes", "path", "label", "labels", *_OPTIONAL)


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """One row before class names are known."""

    line: int
    path: str
    names: tuple[str, ...]
    id: str
    group: str | None
    role: str | None
    caption: str | None


def _find_table(source: RawSource, options: dict[str, str]) -> str:
    tables = [name for name in source.names() if name.lower().endswith((".csv", ".tsv"))]
    if "csv" in options:
        if options["csv"] not in source.names():
            raise UserError(f"{options['csv']} is not in {source.path}: it holds {list_briefly(tables) or 'no CSV'}.")
        return options["csv"]
    if len(tables) != 1:
        found = f"{len(tables)} tables ({list_briefly(tables)})" if tables else "no .csv"
        raise UserError(
            f"{source.path} holds {found}{packed_hint(source.names()) if not tables else ''}: "
            "name the table with --set csv=NAME."
        )
    return tables[0]


def _columns(source: RawSource, table: str, options: dict[str, str]) -> dict[str, str]:
    """Our name -> plain column name for every column that is used."""
    present = csv_rows.header(source, table)
    path = options.get("path") or next((name for name in _PATH_NAMES if name in present), "path")
    if "label" in options and "labels" in options:
        raise UserError("give either the option label or the option labels, not both.")
    kind = "labels" if "labels" in options or ("label" not in options and "labels" in present) else "label"
    if "label" not in options and "labels" not in options and {"label", "labels"} <= set(present):
        raise UserError(
            f"{table} has both columns, label and labels: choose with --set label=label or --set labels=labels."
        )
    columns = {"path": path, kind: options.get(kind, kind)}
    columns |= {name: options.get(name, name) for name in _OPTIONAL if name in options or name in present}
    columns = {ours: csv_rows.plain(theirs) for ours, theirs in columns.items()}
    if "id" in columns and columns["id"] == columns["path"] and "id" not in options:
        del columns["id"]
    return columns


class _Paths:
    """Finds the files that a table's paths mean."""

    def __init__(self, source: RawSource, table: str, options: dict[str, str]):
        self.names = set(source.names())
        folders = [options["images"].strip("/")] if "images" in options else [posixpath.dirname(table), ""]
        self.folders = list(dict.fromkeys(folders))
        if "images" in options and folders[0] not in source.folders():
            raise UserError(f"the folder images={options['images']} is not in {source.path}: correct the option.")

    def find(self, path: str) -> str | None:
        for folder in self.folders:
            # Only names that the source lists are ever opened, so `..` cannot lead anywhere else.
            name = posixpath.normpath(posixpath.join(folder, path.replace("\\", "/")))
            if name in self.names:
                return name
        return None


def _separator(rows: Iterable[csv_rows.Row], column: str, options: dict[str, str]) -> str | None:
    if "separator" in options:
        if not options["separator"].strip():
            raise UserError("the option separator must be a visible character such as ';' or '|'.")
        return options["separator"]
    cells = [row.cells[column] for row in rows]
    present = [mark for mark in (";", "|") if any(mark in cell for cell in cells)]
    if len(present) == 2:
        raise UserError(f"the column {column} holds both ';' and '|': choose one with --set separator=...")
    return present[0] if present else None


def _parse(row: csv_rows.Row, columns: dict[str, str], separator: str | None, table: str) -> _Parsed:
    def cell(name: str) -> str | None:
        return row.cells[columns[name]] or None if name in columns else None

    where = f"{table}, line {row.line}"
    path = row.cells[columns["path"]]
    if not path:
        raise UserError(f"{where}: the path is empty; name the image file.")
    role = cell("role")
    if role is not None:
        if role.lower() not in ROLE_NAMES:
            raise UserError(
                f"{where}: unknown role {printable(role)!r}; use train, validation, calibration, test or unlabelled."
            )
        role = ROLE_NAMES[role.lower()]
        role = None if role == "train" else role
    if "label" in columns:
        label = row.cells[columns["label"]]
        if not label and role != "unlabelled":
            raise UserError(f"{where}: the label is empty; give a label or the role unlabelled.")
        names = (label,) if label else ()
    else:
        names = tuple(part.strip() for part in row.cells[columns["labels"]].split(separator) if part.strip())
        if len(set(names)) != len(names):
            raise UserError(f"{where}: a label occurs twice; remove one.")
    names = () if role == "unlabelled" else names
    return _Parsed(row.line, path, names, cell("id") or path, cell("group"), role, cell("caption"))


def _class_names(parsed: list[_Parsed], options: dict[str, str], table: str) -> tuple[str, ...]:
    if "classes" in options:
        names = tuple(name.strip() for name in options["classes"].split(","))
        if len(names) < 2 or "" in names or len(set(names)) != len(names):
            raise UserError(f"the option classes={options['classes']} must list two or more different names.")
        return names
    first = {}
    for row in parsed:
        for name in row.names:
            first.setdefault(name, row.line)
    numbers = {name for name in first if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name)}
    if first and numbers == set(first):
        for name, line in first.items():
            if not re.fullmatch(r"\d{1,9}", name):
                raise UserError(f"{table}, line {line}: the label {name} is no whole number from 0 on; correct it.")
        names = tuple(sorted(first, key=lambda name: (int(name), name)))
    else:
        names = tuple(sorted(first))
    if len(names) < 2:
        raise UserError(f"{table} names {len(names)} class{'es' if len(names) != 1 else ''}, a study needs two.")
    for name in names:
        if len(name) > 200 or not name.isprintable():
            raise UserError(f"{table}, line {first[name]}: {printable(name, 40)!r} cannot be a class name.")
    return names


def _labels(row: _Parsed, index: dict[str, int], fixed: bool, table: str) -> tuple[int, ...]:
    labels = []
    for name in row.names:
        if name in index:
            labels.append(index[name])
        elif fixed and re.fullmatch(r"\d{1,9}", name) and int(name) < len(index):
            labels.append(int(name))
        else:
            allowed = f"0..{len(index) - 1} and the names given as classes"
            raise UserError(f"{table}, line {row.line}: the label {printable(name, 40)} is not among {allowed}.")
    return tuple(sorted(set(labels)))


def _examples(
    parsed: list[_Parsed], paths: _Paths, classes: tuple[str, ...], fixed: bool, table: str
) -> tuple[list[RawExample], list[tuple[str, str]]]:
    index = {name: i for i, name in enumerate(classes)}
    examples: list[RawExample] = []
    problems: list[tuple[str, str]] = []
    line_of_id: dict[str, int] = {}
    line_of_file: dict[str, tuple[int, _Parsed]] = {}
    for row in parsed:
        labels = _labels(row, index, fixed, table)
        name = paths.find(row.path)
        if name is None:
            problems.append((printable(row.id), "its image is not in the source"))
            continue
        if name in line_of_file:
            line, earlier = line_of_file[name]
            if dataclasses.replace(row, line=line) == earlier:
                problems.append((printable(row.id), "its row occurs twice"))
                continue
            raise UserError(f"{table}, line {row.line}: {row.path} is in line {line} with other values; remove one.")
        if row.id in line_of_id:
            line = line_of_id[row.id]
            raise UserError(f"{table}, line {row.line}: the id {printable(row.id)} is in line {line} too; change one.")
        line_of_file[name], line_of_id[row.id] = (row.line, row), row.line
        examples.append(RawExample(row.id, (name,), labels, row.role, row.group, row.caption))
    return examples, problems


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the images of a table, in the order of its rows.

    Raises:
        UserError: no table or several, a missing column, or a malformed row, named by its line.
    """
    check_options("table", options, _OPTIONS)
    table = _find_table(source, options)
    columns = _columns(source, table, options)
    rows = csv_rows.read_rows(source, table, list(columns.values()))
    separator = _separator(rows, columns["labels"], options) if "labels" in columns else None
    parsed = [_parse(row, columns, separator, table) for row in rows]
    classes = _class_names(parsed, options, table)
    examples, problems = _examples(parsed, _Paths(source, table, options), classes, "classes" in options, table)
    if not examples:
        raise UserError(
            f"none of the {len(rows)} images of {table} is in {source.path}{packed_hint(source.names())}: "
            "give the folder that holds them, or name it with --set images=FOLDER."
        )
    return Manifest(
        study="table",
        class_names=classes,
        multi_label="labels" in columns,
        examples=examples,
        problems=problems,
        official_split=any(example.role == "test" for example in examples),
        notes={"table": table, "columns": columns, "rows": len(rows)},
    )
