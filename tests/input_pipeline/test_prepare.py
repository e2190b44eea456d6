"""From raw files to a finished dataset: what is stored, what is reported, and that it is all or nothing."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from input_pipeline import assemble, images, prepare
from input_pipeline.dataset import open_dataset
from input_pipeline.example_proto import decode_example
from input_pipeline.records import RecordSource
from tests.input_pipeline import picture_files as files

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset with one image of each fate, its source and its report."""
    root = tmp_path_factory.mktemp("prepared")
    content = files.class_folders(root / "raw")
    content["dog/exif.jpg"] = files.jpeg(77, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    content["cat/copy.jpg"] = content["cat/01.jpg"]
    content["cat/cut.jpg"] = content["cat/02.jpg"][:500]
    files.write(root / "raw", {**content, "cat/notes.txt": b"no picture"})
    report = prepare.prepare("folder", root / "raw", root / "out", workers=1, folds=3)
    return root, content, report


def test_records_hold_the_original_bytes(prepared):
    root, content, _ = prepared
    dataset = open_dataset(root / "out")
    assert len(dataset) == 42 and dataset.class_names == ("cat", "dog") and dataset.channels == 3
    source = RecordSource(root / "out")
    source.verify()
    for index, identifier in enumerate(dataset.ids):
        example = decode_example(source[index])
        assert example["id"] == [identifier.encode()] and example["label"] == [identifier.startswith("dog")]
        assert example["group"] == [dataset.groups[index].encode()]
        image = images.decode(dataset.encoded(index))
        sizes = [example[f"image/{what}"][0] for what in ("height", "width", "channels")]
        assert sizes == list(image.shape)
        if identifier != "dog/exif.jpg":
            assert dataset.encoded(index) == content[identifier]
    upright = images.decode(dataset.encoded(list(dataset.ids).index("dog/exif.jpg")))
    plain = images.decode(content["dog/exif.jpg"])
    np.testing.assert_array_equal(upright, np.rot90(plain, -1))


def test_records_are_ordered_by_role_and_hash(prepared):
    dataset = open_dataset(prepared[0] / "out")
    key = [(role, hashlib.sha256(i.encode()).digest()) for role, i in zip(dataset.roles, dataset.ids, strict=True)]
    assert key == sorted(key)
    train = dataset.labels[dataset.indices("train")]
    assert 4 < np.abs(np.diff(train)).sum()  # classes are mixed


def test_roles_groups_and_folds(prepared):
    dataset = open_dataset(prepared[0] / "out")
    assert set(dataset.roles) == {"train", "validation", "calibration", "test"}
    groups = dict(zip(dataset.ids, dataset.groups, strict=True))
    assert groups["cat/copy.jpg"] == groups["cat/01.jpg"] and len(set(groups.values())) == 41
    for values in (dataset.roles, dataset.folds):
        assert len({(g, v) for g, v in zip(dataset.groups, values, strict=True)}) == 41
    assert set(dataset.folds) == {0, 1, 2}


def test_report(prepared):
    root, content, report = prepared
    assert report == json.loads((root / "out" / "ingest_report.json").read_text())
    assert report["counts"] == {
        "read": 43, "readable": 42, "stored": 42, "skipped": 1, "repaired": 1, "left_out": 1,
    }  # fmt: skip
    ((reason, entry),) = report["skipped"].items()
    assert "truncated" in reason and entry == {"count": 1, "ids": ["cat/cut.jpg"]}
    assert report["repaired"] == {"EXIF orientation 6 applied": {"count": 1, "first": ["dog/exif.jpg"]}}
    assert report["left_out"] == {"not an image file name": {"count": 1, "first": ["cat/notes.txt"]}}
    assert report["duplicates"]["sets"] == [["cat/01.jpg", "cat/copy.jpg"]]
    assert report["duplicates"]["byte_identical_copies"] == 1
    assert report["clusters"]["cat"]["sizes"] == {"1": 19, "2": 1} and report["clusters"]["dog"]["files"] == 21
    assert sum(entry["files"] for entry in report["roles"].values()) == 42
    assert sum(report["folds"].values()) == 42 and report["images"]["sizes"] == {"31x23": 41, "23x31": 1}
    text = (root / "out" / "ingest_report.json").read_text()
    assert str(root) not in text


def test_the_folder_holds_nothing_else(prepared):
    names = set(os.listdir(prepared[0] / "out"))
    shards = {f"folder-{role}.tfrecord-00000-of-00001" for role in ("train", "validation", "calibration", "test")}
    others = {"features.json", "dataset_info.json", "label.labels.txt", "records.json", "splits.json"}
    assert names == shards | {f"{name}.idx" for name in shards} | others | {"ingest_report.json"}
    assert os.listdir(prepared[0]) and not any(name.startswith(".") for name in os.listdir(prepared[0]))


def test_tfds_opens_it(prepared):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(prepared[0] / "out")
    dataset = open_dataset(prepared[0] / "out")
    assert builder.info.name == "folder"
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert builder.info.features["image"].shape == (None, None, 3)
    for role, split in builder.info.splits.items():
        assert split.num_examples == len(dataset.indices(role))
        assert [os.path.basename(path) for path in split.filepaths] == [f"folder-{role}.tfrecord-00000-of-00001"]
        assert builder.info.splits[role].num_bytes > 0


def test_same_bytes_for_any_number_of_workers_and_from_any_process(prepared, tmp_path):
    root, _, _ = prepared
    options = ["--study=folder", f"--source={root / 'raw'}", f"--out={tmp_path / 'out'}", "--folds=3"]
    command = [sys.executable, "-m", "input_pipeline.prepare", *options, "--workers=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert "42 of 43 images stored" in done.stdout
    assert files.snapshot(tmp_path / "out") == files.snapshot(root / "out")


def test_zip_gives_the_same_dataset(prepared, tmp_path):
    root, content, _ = prepared
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name, data in [*content.items(), ("cat/notes.txt", b"no picture")]:
            archive.writestr(f"download/{name}", data)
    prepare.prepare("folder", tmp_path / "raw.zip", tmp_path / "out", workers=1, folds=3)
    ours, theirs = files.snapshot(tmp_path / "out"), files.snapshot(root / "out")
    # Only the listing differs: names in the archive have a folder more.
    assert {name for name in ours if ours[name] != theirs[name]} == {"ingest_report.json"}


def test_seed_moves_the_roles(prepared, tmp_path):
    root, _, _ = prepared
    prepare.prepare("folder", root / "raw", tmp_path / "out", workers=1, seed=1, near_duplicates=False)
    roles = {tuple(d.ids[d.indices("test")]) for d in map(open_dataset, (tmp_path / "out", root / "out"))}
    assert len(roles) == 2


def test_official_test_and_its_copies(tmp_path):
    names = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
    content = files.class_folders(tmp_path / "raw", 8, names, "TRAIN/")
    files.class_folders(tmp_path / "raw", 2, names, "TEST/")
    files.write(tmp_path / "raw", {"TEST/MONOCYTE/copy.jpg": content["TRAIN/MONOCYTE/01.jpg"]})
    report = prepare.prepare("blood_cells", tmp_path / "raw", tmp_path / "out", workers=1, folds=2)
    dataset = open_dataset(tmp_path / "out")
    test = set(dataset.ids[dataset.indices("test")])
    assert test == {i for i in dataset.ids if i.startswith("TEST/")} and len(test) == 9
    assert "TRAIN/MONOCYTE/01.jpg" not in dataset.ids
    assert report["copies_of_test"] == {"count": 1, "ids": ["TRAIN/MONOCYTE/01.jpg"]}
    assert report["duplicates"]["sets_across_official_roles"]["count"] == 1
    assert (dataset.folds[dataset.indices("test")] == -1).all()
    assert (dataset.folds[dataset.roles != "test"] >= 0).all() and report["official_split"]


def test_hpa_2018_channels_become_one_image(tmp_path):
    planes, rows = {}, ["Id,Target"]
    for i in range(12):
        for c, channel in enumerate(("red", "green", "blue")):
            planes[i, c] = files.pixels(17, 19, 1, seed=100 * i + c)
            files.write(tmp_path / "raw", {f"train/id{i}_{channel}.png": files.save(planes[i, c], "PNG")})
        rows.append(f"id{i},{(0, 25)[i % 2]} 5")
    files.write(tmp_path / "raw", {"train.csv": "\n".join(rows).encode()})
    report = prepare.prepare("hpa", tmp_path / "raw", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    for index, identifier in enumerate(dataset.ids):
        i = int(identifier[2:])
        np.testing.assert_array_equal(
            images.decode(dataset.encoded(index)), np.dstack([planes[i, c] for c in range(3)])
        )
        assert list(np.flatnonzero(dataset.labels[index])) == [1, (4, 6)[i % 2]]
    assert report["multi_label"] and any("Mitochondria" in warning for warning in report["warnings"])
    single = prepare.prepare("hpa", tmp_path / "raw", tmp_path / "one", workers=1, options={"channels": "blue"})
    assert single["images"]["channels"] == {"1": 12} and open_dataset(tmp_path / "one").channels == 1


def test_table_with_captions_groups_and_unlabelled(tmp_path):
    rows = ["path,label,group,role,caption"]
    for i in range(24):
        files.write(tmp_path / "raw", {f"{i}.png": files.png(i)})
        role = "unlabelled" if i >= 21 else ""
        rows.append(f'{i}.png,{"" if role else "ab"[i % 2]},patient{i // 2 if i < 20 else i},{role},"caption {i}, é"')
    files.write(tmp_path / "raw", {"list.csv": "\n".join(rows).encode(), "SIMULATED.txt": b""})
    prepare.prepare("table", tmp_path / "raw", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.simulated and dataset.captions[0] == f"caption {dataset.ids[0][:-4]}, é"
    assert sorted(dataset.ids[dataset.indices("unlabelled")]) == ["21.png", "22.png", "23.png"]
    assert (dataset.labels[dataset.indices("unlabelled")] == -1).all()
    index = list(dataset.ids).index("22.png")
    assert decode_example(RecordSource(tmp_path / "out")[index])["label"] == [-1]
    pairs = {i: set() for i in range(10)}
    for identifier, role, group in zip(dataset.ids, dataset.roles, dataset.groups, strict=True):
        number = int(identifier[:-4])
        if number < 20:
            pairs[number // 2].add((role, group))
            assert group == f"patient{number // 2}"
    assert all(len(seen) == 1 for seen in pairs.values())


def test_augmented_copies_share_a_group(tmp_path):
    rng = np.random.default_rng(5)
    files.class_folders(tmp_path / "raw", 10)
    noise = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    texture = np.asarray(files.Image.fromarray(noise).resize((192, 144), files.Image.BICUBIC))
    copies = {f"cat/texture{k}.jpg": files.save(np.rot90(texture, k).copy(), "JPEG", quality=90 - k) for k in range(4)}
    copies["cat/mirror.jpg"] = files.save(texture[:, ::-1].copy(), "JPEG", quality=92)
    files.write(tmp_path / "raw", copies)
    report = prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
    assert report["clusters"]["cat"]["sizes"] == {"1": 10, "5": 1}


def test_one_bit_depth(tmp_path):
    files.class_folders(tmp_path / "raw", 20)
    deep = np.random.default_rng(0).integers(0, 65536, (9, 9, 3), dtype=np.uint16)
    files.write(tmp_path / "raw", {"cat/deep.png": images.encode_png(deep)})
    report = prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
    assert report["skipped"] == {"16-bit image among 8-bit images": {"count": 1, "ids": ["cat/deep.png"]}}
    assert "cat/deep.png" not in open_dataset(tmp_path / "out").ids


def test_shards_are_cut_by_size(prepared, tmp_path, monkeypatch):
    root, content, _ = prepared
    monkeypatch.setattr(assemble.write_dataset, "__defaults__", (6000,))
    prepare.prepare("folder", root / "raw", tmp_path / "out", workers=1)
    shards = sorted(path for path in (tmp_path / "out").glob("folder-train.tfrecord-*") if path.suffix != ".idx")
    assert len(shards) > 3 and shards[-1].name.endswith(f"-{len(shards) - 1:05d}-of-{len(shards):05d}")
    largest = max(map(len, content.values()))
    assert all(0 < path.stat().st_size < 6000 + 2 * largest for path in shards)
    open_dataset(tmp_path / "out")
    assert assemble._shards([5], 100) == [0] and assemble._shards([30] * 7, 100) == [0, 2, 5]
