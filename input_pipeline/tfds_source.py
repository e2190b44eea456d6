"""How is a TensorFlow Datasets data set opened without TensorFlow: `config.data.source = "tfds:NAME"`.

The data set must be stored as array_record (`tfds build NAME --file_format=array_record`), a random-access format that
checks its own hashes. Records are taken as raw bytes and parsed here, so images stay encoded until the loader needs
them. As in TFDS, EXIF orientation is ignored.

TFDS imports whatever module a `features.json` names. Only TFDS's own feature classes are therefore accepted, and the
builder's code is never run: nothing is downloaded or generated, only files are read.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from input_pipeline.cli import UserError, progress
from input_pipeline.dataset import Dataset, image_feature, label_array, read_json
from input_pipeline.example_proto import parse_example
from input_pipeline.image_headers import MAX_PIXELS, BadImage, probe
from input_pipeline.splits import UNLABELLED, assign_roles

SPLIT_ROLES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "unsupervised": "unlabelled",
}
"""TFDS split -> role; splits of other names are left out."""

CARVE_SEED = 0
"""The roles that a TFDS data set lacks are always carved in the same way."""

_FRACTIONS = {"validation": 0.1, "calibration": 0.1, "test": 0.15}
_TRUSTED_FEATURES = "tensorflow_datasets.core.features."


def _version_key(directory: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in directory.name.split("."))


def find_directory(spec: str) -> pathlib.Path:
    """The folder of a TFDS data set `NAME[/CONFIG][:VERSION][@DATA_DIR]`: the newest version unless one is given.

    DATA_DIR is `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`, when left out.

    Raises:
        UserError: when it is not there; says how to build it, or which configurations exist.
    """
    name, _, data_dir = spec.partition("@")
    name, _, version = name.partition(":")
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(data_dir).expanduser()
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(f"'tfds:{spec}' names no data set: write tfds:NAME or tfds:NAME@DATA_DIR.")
    base = root / name
    versions = sorted((path.parent for path in base.glob("*/features.json")), key=_version_key)
    if version:
        versions = [path for path in versions if path.name == version]
    if versions:
        return versions[-1]
    configurations = sorted({path.parent.parent.name for path in base.glob("*/*/features.json")})
    if configurations:
        raise UserError(
            f"the TFDS data set {name} has configurations: write one of "
            + ", ".join(f"tfds:{name}/{configuration}" for configuration in configurations)
            + "."
        )
    wanted = f"{name}:{version}" if version else name
    raise UserError(
        f"there is no TFDS data set {wanted} in {root}: build it, where TensorFlow is installed, with "
        f"`tfds build {wanted.split('/')[0]} --file_format=array_record --data_dir={root}`."
    )


def _feature_classes(node: object) -> Iterator[str]:
    """Every `pythonClassName` anywhere in a features.json."""
    if isinstance(node, dict):
        if "pythonClassName" in node:
            yield str(node["pythonClassName"])
        for value in node.values():
            yield from _feature_classes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _feature_classes(value)


def _label_key(features: dict, supervised: str | None) -> tuple[str, bool]:
    """The feature that holds the label, and whether it is a sequence of classes (multi-label)."""
    declared = features["featuresDict"]["features"]
    single = [key for key, value in declared.items() if "classLabel" in value]
    several = [key for key, value in declared.items() if "classLabel" in value.get("sequence", {}).get("feature", {})]
    for key in (supervised, "label", "labels"):
        if key in single or key in several:
            return key, key in several
    if len(single) + len(several) == 1:
        return (single + several)[0], bool(several)
    raise UserError(
        f"the TFDS data set must say which feature is the label: it has the class features {single + several}, none of "
        "them supervised or called `label`."
    )


def _keys(directory: pathlib.Path, features: dict, info: dict) -> tuple[str, str, bool]:
    """The names of the image and label features, and whether the labels are several."""
    if info.get("fileFormat") != "array_record":
        raise UserError(
            f"{directory} is stored as {info.get('fileFormat', 'tfrecord')}, which only TensorFlow reads at random: "
            "build it again with `tfds build --file_format=array_record`."
        )
    strangers = [name for name in _feature_classes(features) if not name.startswith(_TRUSTED_FEATURES)]
    if strangers:
        raise UserError(f"{directory} declares the feature class {strangers[0]}, which is not TFDS's own: not opened.")
    try:
        declared = features["featuresDict"]["features"]
        pair = [item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"]]
    except (KeyError, TypeError):
        declared, pair = features.get("featuresDict", {}).get("features", {}), []
    image_keys = [key for key, value in declared.items() if "image" in value]
    image_key = next((key for key in (*pair[:1], "image", *image_keys) if key in image_keys), None)
    if image_key is None:
        raise UserError(f"{directory} declares no image feature: only image data sets can be opened.")
    return image_key, *_label_key(features, pair[1] if len(pair) > 1 else None)


class _TfdsImages:
    """Encoded images out of array_record files, over the splits in order."""

    def __init__(self, directory: pathlib.Path, splits: list[str], image_key: str):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._sources = [builder.as_data_source(split=split, deserialize_method=raw) for split in splits]
        self._names = splits
        self.sizes = [len(source) for source in self._sources]
        self._starts = np.cumsum([0, *self.sizes])
        self._directory, self._image_key = directory, image_key
        self.features = builder.info.features

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """The split's position among the splits, and the record's position inside the split."""
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        return split, int(index - self._starts[split])

    def example(self, index: int):
        """The feature map of an example.

        Raises:
            UserError: when array_record finds the record damaged, or it is no Example; names the split and the record.
        """
        split, record = self.locate(index)
        try:
            payload = self._sources[split][record]
        except Exception as error:  # array_record raises ValueError, RuntimeError or IndexError for damaged files
            raise UserError(
                f"record {record} of split {self._names[split]} in {self._directory} is damaged "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): "
                "build the data set again with `tfds build --file_format=array_record --overwrite`."
            ) from error
        return parse_example(payload).features.feature

    def image(self, features, index: int) -> bytes:
        """The encoded image in a feature map."""
        values = features[self._image_key].bytes_list.value if self._image_key in features else ()
        if len(values) != 1:
            split, record = self.locate(index)
            raise UserError(
                f"record {record} of split {self._names[split]} in {self._directory} holds no encoded image."
            )
        return values[0]

    def encoded(self, index: int) -> bytes:
        return self.image(self.example(index), index)

    def captions(self) -> list[str] | None:
        return None


def _scan(store: _TfdsImages, label_key: str) -> tuple[list[list[int]], list[str]]:
    """Labels and content hashes of all examples; refuses images that the loader could not decode."""
    label_lists, hashes = [], []
    for index in progress(range(len(store)), len(store), "reading labels"):
        features = store.example(index)
        image = store.image(features, index)
        try:
            info = probe(image)
        except BadImage as error:
            raise UserError(f"example {index} of the TFDS data set has an unreadable image: {error}.") from error
        if info.format not in ("JPEG", "PNG") or info.mode == "CMYK" or info.width * info.height > MAX_PIXELS:
            raise UserError(
                f"example {index} of the TFDS data set is a {info.mode} {info.format} of {info.width} x {info.height} "
                f"pixels: only grey or RGB, JPEG or PNG, at most {MAX_PIXELS / 1e6:g} million pixels can be loaded."
            )
        labels = features[label_key].int64_list.value if label_key in features else ()
        label_lists.append([int(label) for label in labels if label >= 0])
        hashes.append(hashlib.sha256(image).hexdigest())
    return label_lists, hashes


def _roles(
    splits: list[str], sizes: list[int], label_lists: list[list[int]], groups: list[str], multi_label: bool
) -> np.ndarray:
    """The TFDS splits as roles; those that are missing are carved out of train, by group."""
    roles = np.repeat([SPLIT_ROLES[split] for split in splits], sizes)
    if not multi_label:
        # ImageNet and others ship test splits whose labels are hidden.
        roles[[not labels for labels in label_lists]] = UNLABELLED
    fixed = [None if role == "train" else str(role) for role in roles]
    return np.array(
        assign_roles(label_lists, groups, fixed, fractions=_FRACTIONS, seed=CARVE_SEED, multi_label=multi_label)
    )


def open_tfds(spec: str) -> Dataset:
    """Opens `NAME[/CONFIG][:VERSION][@DATA_DIR]`, a TFDS array_record data set with an image and a class label.

    The splits become roles (`SPLIT_ROLES`); validation, calibration and test are carved out of train where they are
    missing. Byte-identical images form a group, so a copy of a test image does not stay in another role. Every record
    is read once, for labels and hashes.

    Raises:
        UserError: when it is missing, stored in another format, damaged, or no image classification data set.
    """
    directory = find_directory(spec)
    features_path = directory / "features.json"
    features, info = read_json(features_path), read_json(directory / "dataset_info.json")
    image_key, label_key, multi_label = _keys(directory, features, info)
    channels, dtype = image_feature(features, features_path, image_key)
    splits = [str(split["name"]) for split in info.get("splits", ()) if split["name"] in SPLIT_ROLES]
    if "train" not in splits:
        raise UserError(f"the TFDS data set in {directory} has no split called train.")
    store = _TfdsImages(directory, splits, image_key)
    label_feature = store.features[label_key]
    class_names = tuple((label_feature.feature if multi_label else label_feature).names)
    label_lists, hashes = _scan(store, label_key)
    sizes = store.sizes
    roles = _roles(splits, sizes, label_lists, hashes, multi_label)
    ids = [f"{split}/{record}" for split, size in zip(splits, sizes, strict=True) for record in range(size)]
    labels = label_array(ids, label_lists, len(class_names), multi_label)
    labels[roles == UNLABELLED] = 0 if multi_label else -1
    identity = [info["name"], info.get("version"), class_names, label_lists, hashes, roles.tolist()]
    return Dataset(
        name=str(info["name"]),
        directory=directory,
        class_names=class_names,
        multi_label=multi_label,
        simulated=False,
        channels=channels,
        dtype=dtype,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        ids=np.array(ids, dtype=object),
        labels=labels,
        roles=roles,
        groups=np.array(hashes, dtype=object),
        folds=np.full(len(ids), -1, np.int32),
        images=store,
    )
