"""What does a study say about a raw download: which files are examples, with which labels, roles and groups?"""

import collections
import dataclasses
import posixpath
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.nuclei import CellFinder
from input_pipeline.raw import RawSource, printable

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

ROLE_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
"""Names of official folders and of the cells in a role column, in lower case."""

_LONGEST_ID = 1024


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One example of the raw download.

    Attributes:
        id: unique name, the key of predictions and splits.
        paths: names in the source; one is an image, several are single-channel files in channel order. Without any, the
            example is a row of `Manifest.values`, or has one grey pixel for a picture (captions alone).
        labels: ascending indices into the class names; empty when unlabelled (or, multi-label, when no class applies).
        role: "validation", "calibration", "test" or "unlabelled" where the source decides it; "train" when it may
            only train; None when it is in the part that the missing roles are carved from.
        group: name of what must stay on one side of a split (a patient), if known.
        caption: text that belongs to the image, if any.
        masks: names of the files that together are the image's mask (see `input_pipeline.masks`), if any.
    """

    id: str
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    role: str | None = None
    group: str | None = None
    caption: str | None = None
    masks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `scan` found.

    Attributes:
        study: its name, which becomes the name of the prepared dataset.
        class_names: in the order of the label indices.
        multi_label: whether an example may carry several labels.
        examples: in a deterministic order.
        problems: `(id or name, reason)` of everything that was left out.
        official_split: whether the source itself sets examples aside for testing.
        notes: further facts for the ingest report (layout, rules applied, counts), JSON values only.
        channels: names of the channels when examples are combined from single-channel files, otherwise empty.
        grey: whether the images are grey, so that a colour file among them is read as its luma.
        segmentation_classes: what the numbers 0, 1, … of a mask mean; empty when the examples have no masks, otherwise
            every example has one.
        genes: G unique names when the examples are vectors of gene expression, otherwise empty.
        values: their values, `[N, G]` in the order of `examples` and `genes`, read row by row (it may be a memory map).
        cell_finder: finds nuclei or cells in every image and adds or crops, if that is asked for.
        tables: files that belong to the dataset as they are, by the name that they get in it.
    """

    study: str
    class_names: tuple[str, ...]
    multi_label: bool
    examples: list[RawExample]
    problems: list[tuple[str, str]]
    official_split: bool
    notes: dict
    channels: tuple[str, ...] = ()
    grey: bool = False
    segmentation_classes: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()
    values: np.ndarray | None = None
    cell_finder: CellFinder | None = None
    tables: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What an example is called in sentences."""
        return "sample" if self.genes else "image" if self.has_files else "record"

    @property
    def has_files(self) -> bool:
        """Whether the examples are files of the download; they are vectors or captions alone otherwise."""
        return any(example.paths for example in self.examples)


def check(manifest: Manifest, source: RawSource) -> None:
    """Holds every study to the contract, whoever wrote it.

    Raises:
        UserError: names what breaks it.
    """
    ids = collections.Counter(example.id for example in manifest.examples)
    repeated = [identifier for identifier, count in ids.items() if count > 1]
    if repeated:
        raise UserError(f"the id {printable(repeated[0])} occurs twice in {source.path}: rename one.")
    for example in manifest.examples:
        if not example.id or len(example.id.encode("utf-8", "replace")) > _LONGEST_ID or not example.id.isprintable():
            raise UserError(f"{printable(example.id)!r} in {source.path} cannot be an id: rename the file.")
        if any(not 0 <= label < len(manifest.class_names) for label in example.labels):
            raise UserError(f"{example.id} in {source.path} has a label outside the classes.")
    if not any(example.role in (None, "train") for example in manifest.examples):
        raise UserError(f"{source.path} holds no {manifest.unit} to train on: check --source and --study.")
    genes = collections.Counter(manifest.genes)
    for gene, count in genes.items():
        if count > 1 or not gene.isprintable() or not gene.strip():
            raise UserError(f"the gene {printable(gene)!r} in {source.path} occurs twice or has no name: rename it.")


def is_image_name(name: str) -> bool:
    """Whether the name ends like an image's; the content decides in the end."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def stem(name: str) -> str:
    """The file name without folders and without an image's extension."""
    base = posixpath.basename(name)
    root, extension = posixpath.splitext(base)
    return root if extension.lower() in IMAGE_EXTENSIONS else base


def check_options(study: str, options: Mapping[str, str], known: Collection[str]) -> None:
    """Refuses options that the study does not have.

    Raises:
        UserError: names the option and the known ones.
    """
    for name in options:
        if name not in known:
            choice = f"it knows {', '.join(sorted(known))}" if known else "it has none"
            raise UserError(f"the study {study} has no option {name!r}: {choice}.")


def list_briefly(names: Iterable[str], limit: int = 3) -> str:
    """The first names, and how many more there are, for a sentence."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def packed_hint(names: Iterable[str]) -> str:
    """A remark for error messages when the download holds archives that have not been unpacked."""
    packed = [name for name in names if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"))]
    return f" ({list_briefly(packed)} is still packed: unpack it first)" if packed else ""
