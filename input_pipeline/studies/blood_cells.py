"""Where are the four classes of white blood cells in a download, and which part of it is the official test set?

Any folder that holds the four class names (in any casing) counts, so the Kaggle archive (`dataset2-master/
dataset2-master/images/{TRAIN,TEST,TEST_SIMPLE}/<CLASS>/`), the copy of the original study and a bare folder of four
classes are all recognised. Rules:

* Below `TRAIN`, or in a folder without a known name: the roles are carved out (by photograph, see splits.py).
* Below `TEST` and `TEST_SIMPLE`: role `test`. TEST_SIMPLE holds the unaugmented photographs of which TEST holds
  augmented copies, so it belongs to the same photographs and to the same side.
* A second folder of the same part (archives often hold the tree twice) is left out and listed.
* File names (`_<position>_<random>.jpeg`) do not identify the photograph and are not used as groups.
"""

import collections
import posixpath

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
)

CLASS_NAMES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")


def _part(holder: str) -> str:
    """Which part of the download a folder of classes is: "train", "test", "test_simple", ... or "" if unnamed."""
    for component in reversed(holder.lower().split("/")):
        plain = component.replace("-", "_").replace(" ", "_")
        if plain == "test_simple" or plain in ROLE_NAMES:
            return plain if plain == "test_simple" else ROLE_NAMES[plain]
    return ""


def _holders(source: RawSource) -> dict[str, dict[int, list[str]]]:
    """Parent folder -> class -> image names, for every folder that has a class's name."""
    index = {name: i for i, name in enumerate(CLASS_NAMES)}
    holders: dict[str, dict[int, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for folder in source.folders():
        parent, name = posixpath.split(folder)
        if name.upper() in index:
            holders[parent][index[name.upper()]] = []
    for name in source.names():
        parent, class_name = posixpath.split(posixpath.dirname(name))
        if class_name.upper() in index and is_image_name(name):
            holders[parent][index[class_name.upper()]].append(name)
    return holders


def _choose(holders: dict[str, dict[int, list[str]]], problems: list[tuple[str, str]]) -> dict[str, str]:
    """One folder for each part of the download: the fullest, then the outermost, then the first by name."""
    chosen: dict[str, str] = {}
    size = {holder: sum(map(len, classes.values())) for holder, classes in holders.items()}
    for holder in sorted(holders, key=lambda h: (-size[h], h.count("/"), h)):
        part = _part(holder)
        complete = len(holders[holder]) == len(CLASS_NAMES)
        if not complete and part == "":
            problems.append((holder or ".", "holds only some of the four classes: folder left out"))
        elif part in chosen:
            problems.append((holder or ".", f"a second copy of {chosen[part] or '.'}: folder left out"))
        else:
            chosen[part] = holder
    return chosen


def _check(holders: dict[str, dict[int, list[str]]], chosen: dict[str, str], source: RawSource) -> None:
    labelled = [holder for part, holder in chosen.items() if part in ("", "train")]
    if not labelled:
        found = f"found only {list_briefly(sorted(holders))}" if holders else "found none of them"
        raise UserError(
            f"{source.path} has no folder with the four classes {', '.join(CLASS_NAMES)} to train on; {found}"
            f"{packed_hint(source.names())}: give the folder above them as --source."
        )
    for label, name in enumerate(CLASS_NAMES):
        if not any(holders[holder].get(label) for holder in labelled):
            raise UserError(
                f"the class folder {posixpath.join(labelled[0], name)} in {source.path} is missing or holds no images: "
                "restore it from the download."
            )


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the images of the four classes; ids are names relative to the folder that all parts share.

    Raises:
        UserError: no folder holds the four classes, or a class has no image to train on.
    """
    check_options("blood_cells", options, ())
    problems: list[tuple[str, str]] = []
    holders = _holders(source)
    chosen = _choose(holders, problems)
    _check(holders, chosen, source)
    if "" in chosen and "train" in chosen:
        problems.append((chosen[""] or ".", f"not below {chosen['train']}: folder left out"))
        del chosen[""]

    base = posixpath.commonpath([posixpath.dirname(h) if part else h for part, h in chosen.items()])
    cut = len(base) + 1 if base else 0
    examples, counts = [], {}
    for part, holder in sorted(chosen.items()):
        role = {"": None, "train": None, "test_simple": "test"}.get(part, part)
        counts[holder[cut:] or "."] = {
            CLASS_NAMES[label]: len(names) for label, names in sorted(holders[holder].items())
        }
        for label, names in holders[holder].items():
            examples += [RawExample(name[cut:], (name,), (label,), role) for name in names]
    examples.sort(key=lambda example: example.id)
    used = {path for example in examples for path in example.paths}
    folders = tuple(f"{holder}/" if holder else "" for holder in chosen.values())
    for name in source.names():
        if name not in used and name.startswith(folders) and not is_image_name(name):
            problems.append((name, "not an image file name"))
    return Manifest(
        study="blood_cells",
        class_names=CLASS_NAMES,
        multi_label=False,
        examples=examples,
        problems=problems,
        official_split=any(example.role == "test" for example in examples),
        notes={"files": counts, "rule": "TEST and TEST_SIMPLE are the test set, all other roles are carved"},
    )
