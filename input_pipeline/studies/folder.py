"""How do a user's own class folders become a dataset, without writing code?

    <class>/<image>                      every role is carved out
    train/<class>/<image>  test/...      official roles: train, val or validation, calibration, test, unlabelled

Images may lie deeper below a class folder. Roles that the folders do not provide are carved from `train/`. Images that
lie directly in `test/`, and everything in `unlabelled/`, are unlabelled: predicted, never scored. Class names are
sorted (as numbers if all of them are whole numbers), and the order is stored with the dataset.

Option `group=REGEX`: what the regular expression finds in an id (its groups joined by "/", or the whole match) names
the patient or photograph whose images must stay on one side of every split, for example `group=person\\d+`, or
`group=(train|test)/.*(person\\d+)` where the two folders number their patients separately.
"""

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
)


def _shared_depth(names: list[str]) -> int:
    """How many leading folders all images share, not counting one that names a role."""
    parts = [name.split("/")[:-1] for name in names]
    depth = 0
    while all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1:
        if parts[0][depth].lower() in ROLE_NAMES:
            break
        depth += 1
    return depth


def _place(parts: list[str], official: bool) -> tuple[str | None, str | None]:
    """Role and class of an image with the relative path `parts`; class None when it has none."""
    if not official:
        return None, parts[0] if len(parts) > 1 else None
    role = ROLE_NAMES[parts[0].lower()]
    class_name = parts[1] if len(parts) > 2 else None
    if role == "unlabelled" or (role == "test" and class_name is None):
        return "unlabelled", None
    return (None if role == "train" else role), class_name


def _class_names(found: set[str], source: RawSource) -> tuple[str, ...]:
    by_case: dict[str, str] = {}
    for name in sorted(found):
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"the class folders {other} and {name} in {source.path} differ only in case: rename one.")
    if len(found) < 2:
        raise UserError(
            f"{source.path} has {len(found)} class folder{'s' if len(found) != 1 else ''} with images, a study needs "
            f"two{packed_hint(source.names())}: put each class into a folder of its own, optionally below "
            "train/ and test/."
        )
    numeric = all(re.fullmatch(r"\d{1,9}", name) for name in found)
    return tuple(sorted(found, key=(lambda name: (int(name), name)) if numeric else None))


def _check_empty(source: RawSource, prefix: str, official: bool) -> None:
    """Refuses class folders without any file: a class nobody can learn is a mistake better seen now."""
    depth = prefix.count("/") + (2 if official else 1)
    filled = {"/".join(name.split("/")[:depth]) for name in source.names()}
    for folder in source.folders():
        if not folder.startswith(prefix) or folder.count("/") + 1 != depth or folder in filled:
            continue
        role = ROLE_NAMES.get(folder[len(prefix) :].split("/")[0].lower())
        if not official or role not in (None, "unlabelled"):
            raise UserError(
                f"the class folder {folder} in {source.path} is empty: fill it or remove it, then prepare again."
            )


def _group_of(pattern: re.Pattern | None, identifier: str) -> str | None:
    if pattern is None:
        return None
    found = pattern.search(identifier)
    if found is None:
        raise UserError(
            f"the option group={pattern.pattern} finds nothing in {identifier}: "
            "write an expression that fits every image."
        )
    return "/".join(part or "" for part in found.groups()) if pattern.groups else found.group()


def _pattern(options: dict[str, str]) -> re.Pattern | None:
    if "group" not in options:
        return None
    try:
        return re.compile(options["group"])
    except re.error as error:
        raise UserError(f"the option group={options['group']} is no regular expression: {error}.") from error


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the images below class folders; ids are their names below the folders that all of them share.

    Raises:
        UserError: fewer than two classes, an empty class folder, a class that only the test folder has, class names
            that differ only in case, or a `group` that does not fit.
    """
    check_options("folder", options, ("group",))
    pattern = _pattern(options)
    images = [name for name in source.names() if is_image_name(name)]
    if not images:
        raise UserError(f"{source.path} holds no image files{packed_hint(source.names())}: give another --source.")
    depth = _shared_depth(images)
    prefix = "".join(f"{part}/" for part in images[0].split("/")[:depth])
    problems = [(name, "not an image file name") for name in source.names() if not is_image_name(name)]
    top = {name[len(prefix) :].split("/")[0].lower() for name in images}
    official = bool(top & set(ROLE_NAMES))
    found: list[tuple[str, str | None, str | None]] = []
    for name in images:
        parts = name[len(prefix) :].split("/")
        if official and (len(parts) < 2 or parts[0].lower() not in ROLE_NAMES):
            problems.append((name, "lies outside train, validation, calibration, test and unlabelled"))
            continue
        role, class_name = _place(parts, official)
        if class_name is None and role != "unlabelled":
            problems.append((name, "lies in no class folder"))
            continue
        found.append((name, role, class_name))

    classes = _class_names({class_name for _, _, class_name in found if class_name is not None}, source)
    _check_empty(source, prefix, official)
    trained = {class_name for _, role, class_name in found if role is None}
    if official and set(classes) - trained:
        raise UserError(
            f"{list_briefly(sorted(set(classes) - trained))} has images in {source.path}, but none below train: "
            "a class needs images to learn from."
        )
    examples = []
    for name, role, class_name in found:
        identifier = name[len(prefix) :]
        labels = () if class_name is None else (classes.index(class_name),)
        examples.append(RawExample(identifier, (name,), labels, role, _group_of(pattern, identifier)))
    return Manifest(
        study="folder",
        class_names=classes,
        multi_label=False,
        examples=examples,
        problems=problems,
        official_split=any(example.role == "test" for example in examples),
        notes={"layout": "class folders below official roles" if official else "class folders"},
    )
