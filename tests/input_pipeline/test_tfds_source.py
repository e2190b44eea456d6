"""TFDS data sets as array_record, built and read without TensorFlow."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import images, loader
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.sampling import Sampler
from input_pipeline.tfds_source import find_directory
from tests.input_pipeline.record_sets import encoded_picture

TRAIN, TEST = 40, 7
COPY = 3
"""The training example whose image is also the first of the test split."""


def _tfds():
    pytest.importorskip("array_record")
    return pytest.importorskip("tensorflow_datasets")


def build(data_dir, raw_dir, dataset_name: str, multi_label: bool, splits: dict[str, range]) -> None:
    """Builds a tiny data set; TFDS encodes images from files only when TensorFlow is not there."""
    tfds = _tfds()
    raw_dir.mkdir(exist_ok=True)

    def examples(numbers: range):
        for i in numbers:
            path = raw_dir / f"{i}.png"
            path.write_bytes(encoded_picture(2 * (COPY if i == TRAIN else i)))
            yield i, {"image": str(path), "label": [i % 3] * (i % 4 > 0) if multi_label else i % 3}

    class TinyBuilder(tfds.core.GeneratorBasedBuilder):
        name = dataset_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["ring", "rod", "cube"])
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.Sequence(label) if multi_label else label,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {split: examples(numbers) for split, numbers in splits.items()}

        def _generate_examples(self):
            raise AssertionError("the split generators give the examples")

    TinyBuilder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    everything = {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST), "extra": range(2)}
    build(root / "data", root / "raw", "tiny_shapes", False, everything)
    build(root / "data", root / "raw", "tiny_tags", True, {"train": range(TRAIN)})
    return root / "data"


@pytest.fixture(scope="module")
def dataset(data_dir):
    return open_dataset(f"tfds:tiny_shapes@{data_dir}")


def test_tensorflow_is_not_needed(dataset):
    assert "tensorflow" not in sys.modules


def test_splits_become_roles_and_the_missing_ones_are_carved(dataset):
    assert (dataset.name, dataset.class_names, dataset.multi_label) == ("tiny_shapes", ("ring", "rod", "cube"), False)
    assert (dataset.channels, dataset.dtype, len(dataset)) == (3, np.uint8, TRAIN + TEST)
    official = np.array([name.startswith("test/") for name in dataset.ids])
    assert sorted(dataset.ids[official]) == [f"test/{i}" for i in range(TEST)]
    assert (dataset.roles[official] == "test").all()
    # "test" exists and is not carved; of 40 training examples about a tenth goes to each of the other two.
    assert 2 <= len(dataset.indices("validation")) <= 7
    assert 2 <= len(dataset.indices("calibration")) <= 7
    assert len(dataset.indices("train")) >= 28


def test_a_copy_of_a_test_image_is_in_no_other_role(dataset):
    encoded = encoded_picture(2 * COPY)
    copies = [i for i in range(len(dataset)) if dataset.encoded(i) == encoded]
    assert len(copies) == 2
    assert sorted(dataset.roles[copies]) == ["duplicate_of_test", "test"]
    assert len(set(dataset.groups[copies])) == 1


def test_labels_belong_to_their_images(dataset):
    label_of = {encoded_picture(2 * i): i % 3 for i in range(TRAIN + TEST) if i != TRAIN}
    for index in range(len(dataset)):
        if dataset.labels[index] >= 0 and dataset.encoded(index) != encoded_picture(2 * COPY):
            assert dataset.labels[index] == label_of[dataset.encoded(index)]


def test_opening_again_gives_the_same(dataset, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    again = open_dataset("tfds:tiny_shapes:1.0.0")
    assert again.fingerprint == dataset.fingerprint and again.roles.tolist() == dataset.roles.tolist()


def test_batches_come_from_it(dataset):
    sampler = Sampler("uniform", dataset.labels, dataset.indices("train"), seed=0)
    for batch in loader.train_batches(dataset, sampler, 8, 0, 6, 16, threads=2):
        for row, index in enumerate(batch["index"]):
            expected = images.resize(images.decode(dataset.encoded(index), 3), 16)
            np.testing.assert_array_equal(batch["image"][row], expected)


def test_multi_label(data_dir):
    dataset = open_dataset(f"tfds:tiny_tags@{data_dir}")
    assert dataset.multi_label and dataset.labels.shape == (TRAIN, 3) and dataset.labels.dtype == np.float32
    assert len(dataset.indices("unlabelled")) == 0
    assert dataset.labels.sum() == sum(i % 4 > 0 for i in range(TRAIN))
    assert len(dataset.indices("test")) >= 3


# --- What is refused.


@pytest.fixture
def copy(data_dir, tmp_path):
    target = tmp_path / "tiny_shapes" / "1.0.0"
    shutil.copytree(data_dir / "tiny_shapes" / "1.0.0", target)
    return target


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_missing_data_set_says_how_to_build_it(tmp_path):
    with pytest.raises(UserError, match=r"no TFDS data set shapes in .*`tfds build shapes --file_format=array_record"):
        open_dataset(f"tfds:shapes@{tmp_path}")
    for spec in ("tfds:", "tfds:../secret", "tfds:/etc"):
        with pytest.raises(UserError, match="names no data set"):
            open_dataset(f"{spec}@{tmp_path}")


def test_versions_and_configurations(copy, tmp_path):
    shutil.copytree(copy, copy.with_name("1.10.0"))
    shutil.copytree(copy, copy.with_name("1.9.0"))
    assert find_directory(f"tiny_shapes@{tmp_path}").name == "1.10.0"
    assert find_directory(f"tiny_shapes:1.9.0@{tmp_path}").name == "1.9.0"
    with pytest.raises(UserError, match="no TFDS data set tiny_shapes:2.0.0"):
        find_directory(f"tiny_shapes:2.0.0@{tmp_path}")
    shutil.copytree(copy, tmp_path / "shapes" / "round" / "1.0.0")
    assert find_directory(f"shapes/round@{tmp_path}").parent.name == "round"
    with pytest.raises(UserError, match="write one of tfds:shapes/round"):
        find_directory(f"shapes@{tmp_path}")


def test_another_format(copy, tmp_path):
    edit(copy / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="is stored as tfrecord"):
        open_dataset(f"tfds:tiny_shapes@{tmp_path}")


def test_foreign_feature_classes_are_not_imported(copy, tmp_path):
    """TFDS would import the module that features.json names, and so run its code."""
    (tmp_path / "hostile_features.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")

    def change(features):
        features["featuresDict"]["features"]["label"]["pythonClassName"] = "hostile_features.Label"

    edit(copy / "features.json", change)
    command = f"from input_pipeline.dataset import open_dataset; open_dataset('tfds:tiny_shapes@{tmp_path}')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert "declares the feature class hostile_features.Label" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.pop("image"), "declares no image feature"),
        (lambda f: f.pop("label"), "which feature is the label"),
        (lambda f: f["image"]["image"]["shape"].update(dimensions=["-1", "-1", "7"]), "no image of 1 to 4 channels"),
    ],
)
def test_data_sets_of_another_kind(copy, tmp_path, change, sentence):
    edit(copy / "features.json", lambda features: change(features["featuresDict"]["features"]))
    with pytest.raises(UserError, match=sentence):
        open_dataset(f"tfds:tiny_shapes@{tmp_path}")


@pytest.mark.parametrize("position", [150, 2000, 9000])  # the rest of the file is padding
def test_a_flipped_bit_is_noticed(copy, tmp_path, position):
    shard = next(copy.glob("tiny_shapes-train.array_record*"))
    data = bytearray(shard.read_bytes())
    data[position] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"record \d+ of split train in .* is damaged"):
        open_dataset(f"tfds:tiny_shapes@{tmp_path}")
