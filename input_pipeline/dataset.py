"""What is a prepared data set, seen from training: labels, roles and groups in record order, and images by index.

In place of images it may hold vectors of gene expression (`Dataset.genes`), which the loader hands on as images of
shape `[1, G, 1]`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.example_proto import parse_example
from input_pipeline.records import MANIFEST, RecordSource, check_files
from input_pipeline.remote import is_remote
from input_pipeline.splits import ROLES, UNLABELLED
from input_pipeline.tfds_metadata import EXPRESSION, GENE_NAMES, SEGMENTATION_NAMES

TFDS_PREFIX = "tfds:"

_SPLITS = "splits.json"
_PREPARE = "prepare the data again with `python -m input_pipeline.prepare`"


class ImageStore(Protocol):
    """Where a data set's encoded images are read from; safe to share between threads."""

    def encoded(self, index: int) -> bytes: ...

    def encoded_segmentation(self, index: int) -> bytes: ...  # asked only where `segmentation_classes` are declared

    def captions(self) -> list[str] | None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set of N images and K classes; every array is in record order.

    Attributes:
        name: the study, or the TFDS name.
        directory: where it lies.
        class_names: K names.
        multi_label: whether an image may carry several labels.
        simulated: whether the images were rendered by `input_pipeline.simulate` (reports must say so).
        channels: channels of the images; 1 for vectors.
        dtype: uint8 or uint16, the type of the decoded images; float32 for vectors.
        fingerprint: SHA-256 over what identifies the content; a checkpoint belongs to one fingerprint.
        ids: object (str) `[N]`.
        labels: int32 `[N]` with -1 for unlabelled, or multi-hot float32 `[N, K]` with zeros for unlabelled.
        roles: str `[N]`, each one of `splits.ROLES`.
        groups: object (str) `[N]`: images that must stay on the same side of a split.
        folds: int32 `[N]`, -1 where the data set was not cut into folds.
        images: where the encoded images come from.
        segmentation_classes: what the numbers of a segmentation mean, background first; empty when there are none.
        genes: G unique names, in the order of the values, when the examples are vectors; empty when they are images.
    """

    name: str
    directory: pathlib.Path
    class_names: tuple[str, ...]
    multi_label: bool
    simulated: bool
    channels: int
    dtype: np.dtype
    fingerprint: str
    ids: np.ndarray
    labels: np.ndarray
    roles: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    images: ImageStore
    segmentation_classes: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def unit(self) -> str:
        """What an example is called in sentences."""
        return "sample" if self.genes else "image"

    def encoded(self, index: int) -> bytes:
        """The encoded image (JPEG or PNG; the bytes of a vector) of example `index`, checked by the record's checksum.

        Raises:
            UserError: when the record is damaged, belongs to another id, or holds no image.
        """
        return self.images.encoded(int(index))

    def vector(self, index: int) -> np.ndarray:
        """The values of example `index`, float32 `[G]` in the order of `genes`.

        Raises:
            UserError: when the data set holds images, or the record is damaged or holds other than G finite values.
        """
        if not self.genes:
            raise UserError(f"the data set {self.directory} holds images and no gene expression: {_PREPARE}.")
        encoded = self.encoded(index)
        vector, size = f"the vector of example {self.ids[index]!r} of {self.directory}", 4 * len(self.genes)
        if len(encoded) != size:
            raise UserError(f"{vector} has {len(encoded)} bytes, but {len(self.genes)} genes take {size}: {_PREPARE}.")
        values = np.frombuffer(encoded, "<f4").astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise UserError(f"{vector} holds a value that is no finite number: {_PREPARE}.")
        return values

    def encoded_segmentation(self, index: int) -> bytes:
        """The PNG of class numbers, uint8 `[H, W, 1]`, of the size of image `index`.

        Raises:
            UserError: when the data set has no segmentations, or the record is damaged.
        """
        self.check_segmentation()
        return self.images.encoded_segmentation(int(index))

    def check_segmentation(self) -> None:
        """Refuses a data set without segmentations.

        Raises:
            UserError: says how to get one that has.
        """
        if not self.segmentation_classes:
            raise UserError(
                f"the data set {self.directory} has no masks: prepare one that has, for example with "
                "`python -m input_pipeline.prepare --study=lung_masks`."
            )

    @property
    def captions(self) -> list[str] | None:
        """The caption of every example (reads all records), or None when the data set has none."""
        return self.images.captions()

    def indices(self, role: str) -> np.ndarray:
        """The examples of a role, int64, ascending."""
        if role not in ROLES:
            raise UserError(f"unknown role {role!r}: choose one of {', '.join(ROLES)}.")
        return np.flatnonzero(self.roles == role).astype(np.int64)

    def with_roles(self, roles: Sequence[str] | np.ndarray) -> "Dataset":
        """The same data set under other roles `[N]` (a fold, or the study's own split)."""
        roles = _checked_roles(roles, len(self))
        return dataclasses.replace(self, roles=roles)


def _checked_roles(roles: Sequence[str] | np.ndarray, n: int) -> np.ndarray:
    roles = np.asarray(roles, dtype=str)
    if roles.shape != (n,):
        raise ValueError(f"{n} roles are needed, not an array of shape {roles.shape}")
    strangers = sorted(set(np.unique(roles)) - set(ROLES))
    if strangers:
        raise UserError(f"unknown role '{strangers[0]}': the roles are {', '.join(ROLES)}.")
    return roles


class _RecordImages:
    """Images out of TFRecord shards; each record's id is compared with the one in `splits.json`."""

    def __init__(self, source: RecordSource, ids: np.ndarray, key: str):
        self._source, self._key = source, key  # `key`: the feature that holds the image, or the vector
        self._ids = [name.encode() for name in ids]

    def _features(self, index: int):
        features = parse_example(self._source[index]).features.feature
        # A protobuf map invents missing entries when they are asked for.
        found = features["id"].bytes_list.value if "id" in features else ()
        if len(found) != 1 or found[0] != self._ids[index]:
            raise UserError(
                f"{self._source.locate(index)} is not the example {self._ids[index].decode()!r} that {_SPLITS} "
                f"expects there: {_PREPARE}."
            )
        return features

    def encoded(self, index: int) -> bytes:
        return self._bytes(index, self._key)

    def encoded_segmentation(self, index: int) -> bytes:
        return self._bytes(index, "segmentation")

    def _bytes(self, index: int, name: str) -> bytes:
        features = self._features(index)
        values = features[name].bytes_list.value if name in features else ()
        if len(values) != 1:
            raise UserError(
                f"{self._source.locate(index)} has no feature `{name}` holding one string of bytes: {_PREPARE}."
            )
        return values[0]

    def captions(self) -> list[str] | None:
        if not self._ids or "caption" not in self._features(0):
            return None
        captions = []
        for index in range(len(self._ids)):
            values = self._features(index)["caption"].bytes_list.value
            captions.append(values[0].decode("utf-8") if values else "")
        return captions


def read_json(path: pathlib.Path, remedy: str = _PREPARE) -> dict:
    """The JSON object in a file of a data set.

    Raises:
        UserError: when the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, so the data set is not complete: {remedy}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: {remedy}.")
    return content


def image_feature(features: dict, path: pathlib.Path, key: str = "image") -> tuple[int, np.dtype]:
    """Channels and type of the images, from a TFDS `features.json`.

    Raises:
        UserError: when the file declares no image of 1 to 4 channels and 8 or 16 bits under `key`.
    """
    try:
        image = features["featuresDict"]["features"][key]["image"]
        channels, dtype = int(image["shape"]["dimensions"][-1]), str(image.get("dtype", "uint8"))
    except (KeyError, TypeError, IndexError, ValueError):
        channels, dtype = 0, ""
    if not 1 <= channels <= 4 or dtype not in ("uint8", "uint16"):
        raise UserError(f"{path} declares no image of 1 to 4 channels in 8 or 16 bits named {key!r}.")
    return channels, np.dtype(dtype)


def _segmentation_classes(features: dict, directory: pathlib.Path) -> tuple[str, ...]:
    """Names of the classes of the segmentations that `features.json` declares; none when it declares none."""
    if "segmentation" not in features["featuresDict"]["features"]:
        return ()
    path = directory / SEGMENTATION_NAMES
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except (FileNotFoundError, UnicodeDecodeError):
        names = ()
    if len(names) < 2 or not all(names):
        raise UserError(f"{path} does not name the classes of the masks: {_PREPARE}.")
    return names


def _genes(features: dict, directory: pathlib.Path) -> tuple[str, ...]:
    """The genes of the vectors that `features.json` declares; none when it declares none.

    Raises:
        UserError: when the vectors are not of one axis and float32, stored as raw bytes, or their genes are not named.
    """
    try:
        declared = features["featuresDict"]["features"]
    except (KeyError, TypeError):
        return ()  # `image_feature` says what is missing
    if EXPRESSION not in declared:
        return ()
    try:
        tensor = declared[EXPRESSION]["tensor"]
        (size,) = map(int, tensor["shape"]["dimensions"])
        stored = str(tensor["dtype"]), str(tensor["encoding"])
    except (KeyError, TypeError, ValueError):
        size, stored = 0, ("", "")
    if size < 1 or stored != ("float32", "bytes"):
        raise UserError(f"{directory / 'features.json'} declares no vector of float32 in raw bytes: {_PREPARE}.")
    path = directory / GENE_NAMES
    try:
        names = tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (FileNotFoundError, UnicodeDecodeError):
        names = ()
    if len(set(names)) != size or len(names) != size or not all(names):
        raise UserError(f"{path} does not name each of the {size} genes once: {_PREPARE}.")
    return names


def label_array(
    ids: Sequence[str], label_lists: Sequence[Sequence[int]], num_classes: int, multi_label: bool
) -> np.ndarray:
    """Labels as the loader gives them: int32 `[N]` (-1 where there is none) or multi-hot float32 `[N, K]`.

    Raises:
        UserError: for a label outside the classes, or several labels where one is allowed; names the example.
    """
    if multi_label:
        labels = np.zeros((len(label_lists), num_classes), np.float32)
    else:
        labels = np.full(len(label_lists), -1, np.int32)
    for row, own in enumerate(label_lists):
        if not all(isinstance(label, int) and 0 <= label < num_classes for label in own):
            raise UserError(f"example {ids[row]} has the labels {own}, outside the {num_classes} classes: {_PREPARE}.")
        if multi_label:
            labels[row, list(own)] = 1.0
        elif len(own) > 1:
            raise UserError(f"example {ids[row]} has {len(own)} labels in a single-label data set: {_PREPARE}.")
        elif own:
            labels[row] = own[0]
    return labels


def _open_prepared(directory: pathlib.Path) -> Dataset:
    source = RecordSource(directory)
    check_files(directory)
    splits_path = directory / _SPLITS
    splits = read_json(splits_path)
    try:
        examples = splits["examples"]
        name, class_names = str(splits["study"]), tuple(map(str, splits["class_names"]))
        multi_label, simulated = bool(splits["multi_label"]), bool(splits["simulated"])
        roles = [example["role"] for example in examples.values()]
        groups = [str(example["group"]) for example in examples.values()]
        label_lists = [list(example["label"]) for example in examples.values()]
        folds = [int(example.get("fold", -1)) for example in examples.values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{splits_path} lacks what a data set needs ({error}): {_PREPARE}.") from error
    if len(examples) != len(source):
        raise UserError(f"{splits_path} names {len(examples)} examples but the records hold {len(source)}: {_PREPARE}.")
    roles = _checked_roles(roles, len(examples))
    ids = np.array(list(examples), dtype=object)
    labels = label_array(ids, label_lists, len(class_names), multi_label)
    if not multi_label and ((labels < 0) & (roles != UNLABELLED)).any():
        raise UserError(f"{splits_path} has an example without a label outside the role `unlabelled`: {_PREPARE}.")
    labels[roles == UNLABELLED] = 0 if multi_label else -1
    features_path = directory / "features.json"
    features = read_json(features_path)
    genes = _genes(features, directory)
    channels, dtype = (1, np.dtype(np.float32)) if genes else image_feature(features, features_path)
    content = (directory / MANIFEST).read_bytes() + splits_path.read_bytes()
    content += (directory / GENE_NAMES).read_bytes() if genes else b""
    return Dataset(
        name=name,
        directory=directory,
        class_names=class_names,
        multi_label=multi_label,
        simulated=simulated,
        channels=channels,
        dtype=dtype,
        fingerprint=hashlib.sha256(content).hexdigest(),
        ids=ids,
        labels=labels,
        roles=roles,
        groups=np.array(groups, dtype=object),
        folds=np.array(folds, np.int32),
        images=_RecordImages(source, ids, EXPRESSION if genes else "image"),
        segmentation_classes=_segmentation_classes(features, directory),
        genes=genes,
    )


def open_dataset(spec: str | pathlib.Path) -> Dataset:
    """Opens a prepared data set.

    Args:
        spec: a folder written by `python -m input_pipeline.prepare`; its address in an object store (`s3://…`, see
            `remote_dataset`); or `tfds:NAME` or `tfds:NAME@DATA_DIR` for a TensorFlow Datasets data set stored as
            array_record (see `tfds_source`).

    Raises:
        UserError: when it is missing, incomplete or inconsistent; the sentence says how to prepare it.
    """
    if str(spec).startswith(TFDS_PREFIX):
        from input_pipeline import tfds_source

        return tfds_source.open_tfds(str(spec)[len(TFDS_PREFIX) :])
    if is_remote(spec):
        from input_pipeline import remote_dataset

        spec = remote_dataset.fetch(spec)
    directory = pathlib.Path(spec)
    if not directory.is_dir():
        raise UserError(
            f"the data set folder {directory} does not exist: prepare it with "
            f"`python -m input_pipeline.prepare --study=NAME --source=RAW --out={directory}`."
        )
    return _open_prepared(directory)
