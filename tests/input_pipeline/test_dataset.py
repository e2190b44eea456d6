"""Prepared data sets: what `open_dataset` gives, and what it refuses."""

import json
import pickle

import numpy as np
import pytest

from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from tests.input_pipeline.record_sets import encoded_picture, write_dataset

ROLES = (["train"] * 9 + ["validation", "calibration", "test", "unlabelled"] * 2)[:17]


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_single_label(tmp_path):
    labels = [[i % 3] if ROLES[i] != "unlabelled" else [] for i in range(17)]
    dataset = open_dataset(write_dataset(tmp_path / "data", 17, labels=labels, roles=ROLES))
    assert (dataset.name, len(dataset), dataset.num_classes) == ("tiny", 17, 3)
    assert dataset.class_names == ("a", "b", "c")
    assert (dataset.multi_label, dataset.simulated, dataset.channels, dataset.dtype) == (False, False, 3, np.uint8)
    assert dataset.labels.dtype == np.int32
    assert dataset.labels.tolist() == [own[0] if own else -1 for own in labels]
    assert dataset.ids[13] == "cell/013" and dataset.groups[13] == "group 6"
    assert dataset.folds.tolist() == [-1] * 17
    assert dataset.captions is None
    for index in (16, 0, 5):
        assert dataset.encoded(index) == encoded_picture(index)


def test_multi_label(tmp_path):
    labels = [[0, 2], [], [1]]
    dataset = open_dataset(write_dataset(tmp_path / "data", 3, labels=labels, multi_label=True))
    assert dataset.labels.dtype == np.float32
    assert dataset.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_labels_of_unlabelled_examples_are_hidden(tmp_path):
    for multi_label in (False, True):
        path = write_dataset(tmp_path / str(multi_label), 2, roles=["train", "unlabelled"], multi_label=multi_label)
        labels = open_dataset(path).labels
        assert (labels[1] == (0 if multi_label else -1)).all()
        assert (labels[0] >= 0).all()


def test_roles(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", 17, roles=ROLES))
    for role in ("train", "validation", "calibration", "test", "unlabelled"):
        assert dataset.indices(role).tolist() == [i for i in range(17) if ROLES[i] == role]
        assert dataset.indices(role).dtype == np.int64
    with pytest.raises(UserError, match="unknown role 'trian'"):
        dataset.indices("trian")
    moved = dataset.with_roles(["test"] * 17)
    assert len(moved.indices("test")) == 17 and len(dataset.indices("test")) == 2
    assert moved.encoded(3) == dataset.encoded(3) and moved.fingerprint == dataset.fingerprint
    with pytest.raises(UserError, match="unknown role 'exam'"):
        dataset.with_roles(["exam"] * 17)
    with pytest.raises(ValueError, match="17 roles"):
        dataset.with_roles(["test"])


def test_folds_and_captions(tmp_path):
    path = write_dataset(tmp_path / "data", 6, captions=["", "a cell", "Zelle über", "d", "e", "f"])
    edit(path / "splits.json", lambda s: [e.update(fold=i % 3) for i, e in enumerate(s["examples"].values())])
    dataset = open_dataset(path)
    assert dataset.folds.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.captions == ["", "a cell", "Zelle über", "d", "e", "f"]


def test_channels_and_depth(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", 2, channels=4, dtype=np.uint16))
    assert (dataset.channels, dataset.dtype) == (4, np.uint16)


def test_pickling(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", 7))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.encoded(6) == dataset.encoded(6) and copy.fingerprint == dataset.fingerprint


def test_fingerprint_follows_the_content(tmp_path):
    first = open_dataset(write_dataset(tmp_path / "first", 7)).fingerprint
    assert open_dataset(write_dataset(tmp_path / "second", 7)).fingerprint == first
    assert open_dataset(write_dataset(tmp_path / "roles", 7, roles=["test"] * 7)).fingerprint != first
    changed = write_dataset(tmp_path / "image", 7, changes={3: {"image": encoded_picture(8)}})
    assert open_dataset(changed).fingerprint != first


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: prepare it with .*input_pipeline.prepare --study"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no records.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": None}, "record 1 of shard tiny-train.tfrecord-00000-of-00001 has no feature `image`"),
        ({"image": 5}, "record 1 of shard tiny-train.tfrecord-00000-of-00001 has no feature `image`"),
        ({"image": [b"two", b"images"]}, "has no feature `image` holding one string of bytes"),
        ({"id": b"another"}, "is not the example 'cell/001' that splits.json expects there"),
        ({"id": None}, "is not the example 'cell/001'"),
    ],
)
def test_an_example_that_is_not_what_it_should_be(tmp_path, change, sentence):
    dataset = open_dataset(write_dataset(tmp_path / "data", 3, changes={1: change}))
    assert dataset.encoded(0) == encoded_picture(0)
    with pytest.raises(UserError, match=sentence):
        dataset.encoded(1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["examples"].popitem(), "names 2 examples but the records hold 3"),
        (lambda s: s["examples"]["cell/001"].update(label=[3]), "outside the 3 classes"),
        (lambda s: s["examples"]["cell/001"].update(label=[-1]), "outside the 3 classes"),
        (lambda s: s["examples"]["cell/001"].update(label=[1.5]), "outside the 3 classes"),
        (lambda s: s["examples"]["cell/001"].update(label=[0, 1]), "2 labels in a single-label data set"),
        (lambda s: s["examples"]["cell/001"].update(label=[]), "without a label outside the role `unlabelled`"),
        (lambda s: s["examples"]["cell/001"].update(role="exam"), "unknown role 'exam'"),
        (lambda s: s["examples"]["cell/001"].pop("role"), "lacks what a data set needs"),
        (lambda s: s.pop("class_names"), "lacks what a data set needs"),
        (lambda s: s.update(examples=[]), "lacks what a data set needs"),
    ],
)
def test_inconsistent_splits(tmp_path, change, sentence):
    path = write_dataset(tmp_path / "data", 3)
    edit(path / "splits.json", change)
    with pytest.raises(UserError, match=sentence):
        open_dataset(path)


@pytest.mark.parametrize("name", ["splits.json", "features.json"])
def test_broken_metadata(tmp_path, name):
    path = write_dataset(tmp_path / "data", 3)
    (path / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is not readable JSON"):
        open_dataset(path)
    (path / name).write_text("[]")
    with pytest.raises(UserError, match=f"{name} does not hold a JSON object"):
        open_dataset(path)
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_dataset(path)


def test_features_without_an_image(tmp_path):
    path = write_dataset(tmp_path / "data", 3)
    (path / "features.json").write_text(json.dumps({"featuresDict": {"features": {}}}))
    with pytest.raises(UserError, match="declares no image"):
        open_dataset(path)
