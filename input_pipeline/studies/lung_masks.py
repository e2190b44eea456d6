"""Which chest X-rays of a download have a lung mask, in one file or in two, and what is each pair called?

The adult X-rays of the U.S. National Library of Medicine (Jaeger et al., Quant. Imaging Med. Surg. 4, 2014) circulate
in four layouts, which one rule reads, so that also other pairs of folders work:

    cxr/<name>.png            masks/<name>.png                                         (and images/, CXR_png/, ...)
    CXR_png/MCUCXR_0001_0.png ManualMask/{leftMask,rightMask}/MCUCXR_0001_0.png        Montgomery: united
    CXR_png/CHNCXR_0001_0.png mask/CHNCXR_0001_0_mask.png                              Shenzhen
    CXR_png/, test/           masks/MCUCXR_0001_0.png, masks/CHNCXR_0001_0_mask.png    Kaggle's merge of the two

* A file is a mask when the end of its name says `mask`, or a folder below those that all images share, unless a folder
  further in says `cxr`, `image` or `test`; `left` or `right` there makes it one lung. All other images are X-rays. A
  mask belongs to the X-ray of its name without `_mask`, `_left` and `_right`.
* Of several masks of a name, those in the folder nearest to the X-ray count, a mask of both lungs before halves.
* Left out and listed: X-rays without a mask (the merge has 96), or with that of one lung only; masks without an X-ray;
  and a second file of one name and size (archives hold trees twice; the merge repeats X-rays in `test/`).
* Names end in `_0` (normal) or `_1` (tuberculosis), which become the classes, so that both occur in every role. If a
  name ends otherwise, or one of the two does not occur, all X-rays are of one class, `chest`.
* How mask files become numbers (0 background, 1 lung) is decided in input_pipeline/masks.py.
"""

import collections
import dataclasses
import posixpath
import re

from input_pipeline.cli import UserError
from input_pipeline.raw import RawSource
from input_pipeline.studies.manifest import (
    Manifest,
    RawExample,
    check_options,
    is_image_name,
    packed_hint,
    stem,
)

CLASS_NAMES = ("normal", "tuberculosis")
SEGMENTATION_CLASSES = ("background", "lung")

_SUFFIX = re.compile(r"[_-](mask|(?:left|right)(?:[_-]?mask)?)$", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"mask", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(r"cxr|image|img|x-?ray|^test", re.IGNORECASE)
_FINDING = re.compile(r".*_([01])", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask file: the stem of its X-ray, and "left", "right" or "" for both lungs."""

    name: str
    key: str
    side: str


def _side(text: str) -> str:
    return next((side for side in ("left", "right") if side in text.lower()), "")


def parse_mask(name: str, shared: str = "") -> _Mask | None:
    """What the name of an image file says about it as a mask; None for that of an X-ray.

    Args:
        name: in the source.
        shared: the folder that holds all images, which says nothing about any one of them ("lung_masks").
    """
    key, suffix = stem(name), ""
    while found := _SUFFIX.search(key):
        suffix, key = f"{found[1]}{suffix}", key[: found.start()]
    inside: list[str] = []
    for folder in reversed(posixpath.dirname(name)[len(shared) :].split("/")):
        if _IMAGE_FOLDER.search(folder) and not _MASK_FOLDER.search(folder):
            break
        inside.append(folder)
    if not any(map(_MASK_FOLDER.search, [*inside, suffix])):
        return None
    return _Mask(name, key, next(filter(None, map(_side, [suffix, *inside])), ""))


def _outermost(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.count("/"), name))


def _shared(first: str, second: str) -> int:
    """How many leading folders two files share."""
    pairs = zip(posixpath.dirname(first).split("/"), posixpath.dirname(second).split("/"), strict=False)
    return next((depth for depth, (one, other) in enumerate(pairs) if one != other), 10**6)


def _unique_images(names: list[str], source: RawSource, problems: list[tuple[str, str]]) -> dict[str, str]:
    """Stem -> the X-ray of that stem, the outermost of its copies.

    Raises:
        UserError: two files of one stem are not of one size, so that they are no copies.
    """
    by_stem: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        by_stem[stem(name)].append(name)
    chosen = {}
    for key, files in sorted(by_stem.items()):
        first, *others = _outermost(files)
        for name in others:
            if source.size(name) != source.size(first):
                raise UserError(f"{first} and {name} in {source.path} have one name but differ: rename one of the two.")
            problems.append((name, "a second copy of an X-ray"))
        chosen[key] = first
    return chosen


def _choose(image: str, masks: list[_Mask]) -> tuple[str, ...] | str:
    """The files of the mask of an X-ray, or why there is none."""
    if not masks:
        return "has no mask"
    nearest: dict[str, str] = {}
    for mask in sorted(masks, key=lambda mask: (-_shared(image, mask.name), mask.name.count("/"), mask.name)):
        nearest.setdefault(mask.side, mask.name)
    if "" in nearest:
        return (nearest[""],)
    if missing := {"left", "right"} - set(nearest):
        return f"has no mask of the {min(missing)} lung"
    return nearest["left"], nearest["right"]


def _labels(ids: list[str]) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the label of each X-ray."""
    findings = [_FINDING.fullmatch(identifier) for identifier in ids]
    labels = [int(found[1]) if found else -1 for found in findings]
    if set(labels) == {0, 1}:
        return CLASS_NAMES, labels
    return ("chest",), [0] * len(ids)


def scan(source: RawSource, options: dict[str, str]) -> Manifest:
    """Lists the X-rays that have a mask; ids are their file names without extension.

    Raises:
        UserError: there is no pair, or two different X-rays have one name.
    """
    check_options("lung_masks", options, ())
    problems: list[tuple[str, str]] = []
    images, masks = [], collections.defaultdict(list)
    names = [name for name in source.names() if is_image_name(name)]
    shared = posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else ""
    for name in names:
        if mask := parse_mask(name, shared):
            masks[mask.key].append(mask)
        else:
            images.append(name)
    unique = _unique_images(images, source, problems)
    pairs: dict[str, tuple[str, tuple[str, ...]]] = {}
    for key, image in unique.items():
        found = _choose(image, masks.get(key, []))
        if isinstance(found, str):
            problems.append((image, found))
        else:
            pairs[key] = (image, found)
            problems += [(m.name, "another mask of the same X-ray") for m in masks[key] if m.name not in found]
    problems += [(mask.name, "a mask without an X-ray") for key in masks.keys() - unique.keys() for mask in masks[key]]
    if not pairs:
        raise UserError(
            f"{source.path} holds {len(unique)} X-rays and {len(masks)} masks, but no X-ray with its mask"
            f"{packed_hint(source.names())}: give a folder that holds both, such as cxr/ and masks/, with files of one "
            "name (or NAME_mask)."
        )
    class_names, labels = _labels(list(pairs))
    return Manifest(
        study="lung_masks",
        class_names=class_names,
        multi_label=False,
        examples=[
            RawExample(key, (image,), (label,), masks=files)
            for (key, (image, files)), label in zip(pairs.items(), labels, strict=True)
        ],
        problems=sorted(problems, key=lambda problem: (problem[1], problem[0])),
        official_split=False,
        notes={
            "pairs": len(pairs),
            "united_from_two_lungs": sum(len(files) == 2 for _, files in pairs.values()),
            "rule": "a mask pixel above half of the range is lung",
        },
        grey=True,
        segmentation_classes=SEGMENTATION_CLASSES,
    )
