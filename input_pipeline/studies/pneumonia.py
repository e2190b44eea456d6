"""Which children's chest X-rays of a download are normal, bacterial or viral, and which of them show one patient?

Kermany et al., Cell 172 (2018). Any folder that holds both `NORMAL` and `PNEUMONIA` (in any casing) counts, so Kaggle's
`chest_xray/{train,val,test}/`, Mendeley's `{train,test}/` and a bare pair of folders are all recognised, and the retina
scans that Mendeley ships beside them (`OCT/train/NORMAL`) are not. The class comes from the file name, in one of:

    person<N>_bacteria_<i>  person<N>_virus_<i>      IM-<N>-<i>  NORMAL2-IM-<N>-<i>       Kaggle, Mendeley version 2
    BACTERIA-<N>-<i>  VIRUS-<N>-<i>                  NORMAL-<N>-<i>                       Mendeley version 3

Rules:

* `test` is the test set. `train` and `val` (16 images, too few to choose anything by) are one part, from which all
  other roles are carved; without `test`, that too.
* A group is a patient: `person<N>`, or the number of the newer names; for the older normal images it is the study
  (`IM-<N>`; the same number behind `NORMAL2-` is another study). Nobody documents whether bacterial and viral persons
  are numbered apart. They are taken together: two patients in one group do no harm, one patient in two would.
* `train` and `val` share one numbering of the older names and `test` has its own: person1 of `test` is not person1 of
  `train`. The newer names number all patients in one row.
* A name of another form, or one that contradicts its folder, is left out and listed. So is a second copy of a part (the
  Kaggle archive holds its whole tree twice): the fullest counts, then the outermost.
* The images are grey; some are stored as RGB and are read as their luma.
"""

import collections
import posixpath
import re

from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource
from input_pipeline.studies.manifest import (
    ROLE_NAMES,
    Manifest,
    RawExample,
    check_options,
    is_image_name,
    list_briefly,
    packed_hint,
    stem,
)

CLASS_NAMES = ("normal", "bacteria", "virus")

_FOLDERS = ("NORMAL", "PNEUMONIA")
_DEVELOPMENT = ("train", "validation", "")
_PERSON = re.compile(r"person(\d+)_(bacteria|virus)(?:_\d+)+", re.IGNORECASE)
_NORMAL = re.compile(r"(NORMAL\d+-)?IM-(\d+)(?:-\d+)+", re.IGNORECASE)
_NEWER = re.compile(r"(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+", re.IGNORECASE)


def parse_name(name: str) -> tuple[int, str, bool] | None:
    """What a file name says: label, patient, and whether patients are numbered across all folders.

    Returns:
        None for a name of another form. Leading zeros do not make another patient.
    """
    name = stem(name)
    if found := _PERSON.fullmatch(name):
        return CLASS_NAMES.index(found[2].lower()), f"person{int(found[1])}", False
    if found := _NORMAL.fullmatch(name):
        return 0, f"{(found[1] or '').upper()}IM-{int(found[2])}", False
    if found := _NEWER.fullmatch(name):
        return CLASS_NAMES.index(found[1].lower()), f"patient{int(found[2])}", True
    return None


def _part(holder: str) -> str:
    """The role that the innermost folder with a known name stands for, or "" if none has one."""
    for component in reversed(holder.lower().split("/")):
        if component in ROLE_NAMES:
            return ROLE_NAMES[component]
    return ""


def _holders(source: RawSource) -> dict[str, dict[str, list[str]]]:
    """Parent folder -> `NORMAL` or `PNEUMONIA` -> names of the files directly in it, for parents that have both."""
    holders: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for folder in source.folders():
        parent, name = posixpath.split(folder)
        if name.upper() in _FOLDERS:
            holders[parent].setdefault(name.upper(), [])
    for name in source.names():
        parent, folder = posixpath.split(posixpath.dirname(name))
        if parent in holders and folder.upper() in _FOLDERS:
            holders[parent][folder.upper()].append(name)
    return {parent: folders for parent, folders in holders.items() if len(folders) == len(_FOLDERS)}


def _strays(source: RawSource, holders: dict[str, dict[str, list[str]]]) -> list[str]:
    """Image files below a folder of both classes that lie directly in neither of the two."""
    listed = {name for folders in holders.values() for names in folders.values() for name in names}
    above = tuple(f"{holder}/" if holder else "" for holder in holders)
    return [name for name in source.names() if name not in listed and name.startswith(above) and is_image_name(name)]


def _choose(holders: dict[str, dict[str, list[str]]], problems: list[tuple[str, str]]) -> dict[str, str]:
    """One folder for each part: the fullest, then the outermost, then the first by name."""
    chosen: dict[str, str] = {}
    size = {h: sum(is_image_name(name) for names in holders[h].values() for name in names) for h in holders}
    for holder in sorted(holders, key=lambda h: (-size[h], h.count("/"), h)):
        part = _part(holder)
        if part in chosen:
            problems.append((holder or ".", f"a second copy of {chosen[part] or '.'}: folder left out"))
        else:
            chosen[part] = holder
    if "" in chosen and "train" in chosen:
        problems.append((chosen.pop("") or ".", f"not below {chosen['train']}: folder left out"))
    return chosen


def _example(name: str, holder: str, part: str, folder: str) -> RawExample | str:
    """The example in a file, or why it is none."""
    if not is_image_name(name):
        return "not an image file name"
    found = parse_name(name)
    if found is None:
        return "its name tells neither class nor patient"
    label, patient, everywhere = found
    if (label == 0) != (folder == "NORMAL"):
        return f"its name says {CLASS_NAMES[label]}, its folder {folder}"
    # Ids do not show what the download nests its folders in, so that predictions can be compared between layouts.
    identifier = posixpath.join(posixpath.basename(holder) if part else "", folder, posixpath.basename(name))
    numbering = "" if everywhere else "development/" if part in _DEVELOPMENT else f"{part}/"
    return RawExample(identifier, (name,), (label,), None if part in _DEVELOPMENT else part, numbering + patient)


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the X-rays of both layouts.

    Raises:
        UserError: no folder holds `NORMAL` and `PNEUMONIA` to train on, or a class has no image there.
    """
    check_options("pneumonia", options, ())
    problems: list[tuple[str, str]] = []
    holders = _holders(source)
    chosen = _choose(holders, problems)
    if not set(chosen) & {"train", ""}:
        found = f"found only {list_briefly(sorted(holders))}" if holders else "found none"
        raise UserError(
            f"{source.path} has no folder with NORMAL and PNEUMONIA to train on; {found}"
            f"{packed_hint(source.names())}: give the folder above chest_xray as --source."
        )
    examples: list[RawExample] = []
    for part, holder in sorted(chosen.items()):
        for folder, names in holders[holder].items():
            for name in names:
                found = _example(name, holder, part, folder)
                if isinstance(found, str):
                    problems.append((name, found))
                else:
                    examples.append(found)
    problems += [(name, "lies beside NORMAL and PNEUMONIA or too deep in them") for name in _strays(source, holders)]
    trained = {example.labels[0] for example in examples if example.role is None}
    if absent := [name for label, name in enumerate(CLASS_NAMES) if label not in trained]:
        raise UserError(
            f"no image in {source.path} that is named like the study's (person1_bacteria_1.jpeg, IM-0115-0001.jpeg, "
            f"BACTERIA-1135262-0001.jpeg) has the class {absent[0]}: restore the download, or use --study=folder for "
            "images of your own."
        )
    patients: dict[str, set[str]] = collections.defaultdict(set)
    for example in examples:
        patients["test" if example.role == "test" else "development"].add(example.group)
    return Manifest(
        study="pneumonia",
        class_names=CLASS_NAMES,
        multi_label=False,
        examples=sorted(examples, key=lambda example: example.id),
        problems=sorted(problems, key=lambda problem: (problem[1], problem[0])),
        official_split=any(example.role == "test" for example in examples),
        notes={
            "folders": {part or "unnamed": holder or "." for part, holder in sorted(chosen.items())},
            "patients": {part: len(groups) for part, groups in sorted(patients.items())},
            "rule": "test is the test set; train and val are one part, all other roles are carved from it by patient",
        },
        grey=True,
    )
