"""Which two files make a prepared folder readable by TensorFlow Datasets (`tfds.builder_from_directory`)?

`features.json` declares the features of an example and `dataset_info.json` the splits and shards; `label.labels.txt`
holds the class names, `segmentation.labels.txt` those of the segmentations, if there are any, and
`expression.genes.txt` the genes, in the order of the values, where examples hold no image but a vector of gene
expression: raw bytes, float32, little-endian, which is TFDS's Tensor of encoding "bytes". They are written here, in
TFDS's own layout (tensorflow_datasets/core/proto), because TFDS can write TFRecord datasets only through TensorFlow. An
unlabelled image has the label -1 in a single-label dataset, which is TFDS's convention, and an empty list in a
multi-label one.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from input_pipeline.cli import atomic_write

VERSION = "1.0.0"
SEGMENTATION_NAMES = "segmentation.labels.txt"
EXPRESSION, GENE_NAMES = "expression", "expression.genes.txt"
_PREFIX = "tensorflow_datasets.core.features."


def shard_name(study: str, role: str, index: int, count: int) -> str:
    """TFDS's name of one shard: `hpa-train.tfrecord-00000-of-00002`."""
    return f"{study}-{role}.tfrecord-{index:05d}-of-{count:05d}"


def _scalar(dtype: str) -> dict:
    return {
        "pythonClassName": f"{_PREFIX}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": dtype, "encoding": "none"},
    }


def _text(description: str) -> dict:
    return {"pythonClassName": f"{_PREFIX}text_feature.Text", "text": {}, "description": description}


def _image(channels: int, bit_depth: int) -> dict:
    image = {"shape": {"dimensions": ["-1", "-1", str(channels)]}, "dtype": f"uint{bit_depth}"}
    if bit_depth == 16:
        image["encodingFormat"] = "png"
    return {
        "image": {"pythonClassName": f"{_PREFIX}image_feature.Image", "image": image},
        "image/height": _scalar("int64"),
        "image/width": _scalar("int64"),
        "image/channels": _scalar("int64"),
    }


def _vector(size: int) -> dict:
    return {
        "pythonClassName": f"{_PREFIX}tensor_feature.Tensor",
        "tensor": {"shape": {"dimensions": [str(size)]}, "dtype": "float32", "encoding": "bytes"},
        "description": f"values of the genes in {GENE_NAMES}",
    }


def features(
    num_classes: int,
    multi_label: bool,
    channels: int,
    bit_depth: int,
    captions: bool,
    segmentation_classes: int = 0,
    genes: int = 0,
) -> dict:
    """The content of `features.json`.

    Args:
        num_classes: number of classes.
        multi_label: a list of labels instead of one.
        channels: of the images after decoding.
        bit_depth: 8 or 16.
        captions: whether examples carry a caption.
        segmentation_classes: number of classes of their segmentations; 0 when they have none.
        genes: number of genes of a vector of expression, which stands in place of the image; 0 for images.
    """
    label = {
        "pythonClassName": f"{_PREFIX}class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(num_classes)},
    }
    if multi_label:
        label = {
            "pythonClassName": f"{_PREFIX}sequence_feature.Sequence",
            "sequence": {"feature": label, "length": "-1"},
        }
    content = {
        **({EXPRESSION: _vector(genes)} if genes else _image(channels, bit_depth)),
        "id": _text("unique name of the example"),
        "group": _text("examples of one group stay on one side of every split"),
        "label": label,
    }
    if captions:
        content["caption"] = _text("text that belongs to the image")
    if segmentation_classes:
        content["segmentation"] = {
            "pythonClassName": f"{_PREFIX}labeled_image.LabeledImage",
            "image": {
                "shape": {"dimensions": ["-1", "-1", "1"]},
                "dtype": "uint8",
                "encodingFormat": "png",
                "useColormap": True,
                "label": {"numClasses": str(segmentation_classes)},
            },
        }
    return {
        "pythonClassName": f"{_PREFIX}features_dict.FeaturesDict",
        "featuresDict": {"features": dict(sorted(content.items()))},
    }


def dataset_info(study: str, description: str, splits: Mapping[str, tuple[Sequence[int], int]]) -> dict:
    """The content of `dataset_info.json`.

    Args:
        study: name of the dataset.
        description: one paragraph for people.
        splits: role -> (records of each shard, bytes of all records).
    """
    return {
        "name": study,
        "version": VERSION,
        "description": description,
        "fileFormat": "tfrecord",
        "moduleName": "input_pipeline.prepare",
        "splits": [
            {
                "name": role,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(num_bytes),
                "shardLengths": [str(length) for length in lengths],
            }
            for role, (lengths, num_bytes) in splits.items()
        ],
    }


def write(
    directory: pathlib.Path,
    study: str,
    class_names: Sequence[str],
    multi_label: bool,
    image: tuple[int, int],
    captions: bool,
    splits: Mapping[str, tuple[Sequence[int], int]],
    description: str,
    segmentation_classes: Sequence[str] = (),
    genes: Sequence[str] = (),
) -> None:
    """Writes the files into a prepared folder; `image` is (channels, bit depth), `splits` as in `dataset_info`."""
    counts = len(segmentation_classes), len(genes)
    declared = features(len(class_names), multi_label, *image, captions, *counts)
    atomic_write(directory / "features.json", json.dumps(declared, indent=1) + "\n")
    info = dataset_info(study, description, splits)
    atomic_write(directory / "dataset_info.json", json.dumps(info, indent=1, ensure_ascii=False) + "\n")
    atomic_write(directory / "label.labels.txt", "".join(f"{name}\n" for name in class_names))
    if segmentation_classes:
        atomic_write(directory / SEGMENTATION_NAMES, "".join(f"{name}\n" for name in segmentation_classes))
    if genes:
        atomic_write(directory / GENE_NAMES, "".join(f"{name}\n" for name in genes))
