"""Are classes, patients and the test set of the pneumonia study read right from every layout, and all else listed?"""

import collections
import pathlib
import zipfile

import numpy as np
import pytest

from input_pipeline import images, prepare, raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.studies import pneumonia
from tests.input_pipeline import picture_files as files
from tests.input_pipeline.picture_files import tree

REAL = pathlib.Path(__file__).parents[3] / "shared/data/pneumonia"

KAGGLE = [
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/IM-0500-0001-0002.jpeg",
    "train/NORMAL/NORMAL2-IM-0115-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "train/PNEUMONIA/person447_virus_921_1.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "val/PNEUMONIA/person1_bacteria_8.jpeg",
    "test/NORMAL/IM-0115-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
    "test/PNEUMONIA/person100_bacteria_475.jpeg",
]
NEWER = [
    "train/NORMAL/NORMAL-1049278-0001.jpeg",
    "train/PNEUMONIA/BACTERIA-1135262-0001.jpeg",
    "train/PNEUMONIA/BACTERIA-1135262-0002.jpeg",
    "train/PNEUMONIA/VIRUS-1056329-0001.jpeg",
    "test/NORMAL/NORMAL-0001-0001.jpeg",
    "test/PNEUMONIA/VIRUS-1135262-0003.jpeg",
]


def by_id(manifest):
    return {example.id: example for example in manifest.examples}


@pytest.mark.parametrize(
    "name,expected",
    [
        ("person1_bacteria_1.jpeg", (1, "person1", False)),
        ("a/b/person1000_virus_1681.JPEG", (2, "person1000", False)),
        ("person447_virus_921_1.jpeg", (2, "person447", False)),
        ("person01_Bacteria_1.png", (1, "person1", False)),
        ("IM-0115-0001.jpeg", (0, "IM-115", False)),
        ("IM-0500-0001-0002.jpeg", (0, "IM-500", False)),
        ("NORMAL2-IM-1427-0001.jpeg", (0, "NORMAL2-IM-1427", False)),
        ("BACTERIA-1135262-0001.jpeg", (1, "patient1135262", True)),
        ("VIRUS-1056329-0001.jpeg", (2, "patient1056329", True)),
        ("NORMAL-1049278-0001.jpeg", (0, "patient1049278", True)),
    ],
)
def test_names(name, expected):
    assert pneumonia.parse_name(name) == expected


@pytest.mark.parametrize(
    "name",
    ["person_bacteria_1", "person1_fungus_1", "person1_bacteria", "person1bacteria_1", "xperson1_virus_2", "IM-0115"]
    + ["NORMAL-IM-0115-0001", "VIRUS-12", "VIRUS--1", "person1_bacteria_1 (2)", "person\u00b2_virus_1", "image", ""],
)
def test_malformed_names_are_nobody(name):
    assert pneumonia.parse_name(f"{name}.jpeg") is None


@pytest.mark.parametrize("above", ["", "chest_xray/", "archive/chest_xray/"])
def test_kaggle(tmp_path, above):
    names = [above + name for name in KAGGLE]
    names += [f"{above}train/.DS_Store", f"__MACOSX/{above}train/NORMAL/._IM-0115-0001.jpeg"]
    found = pneumonia.scan(tree(tmp_path, *names), {})
    examples = by_id(found)
    assert list(examples) == sorted(KAGGLE) and not found.problems and found.official_split and found.grey
    assert found.class_names == ("normal", "bacteria", "virus") and not found.multi_label
    assert [examples[name].labels[0] for name in KAGGLE] == [0, 0, 0, 1, 2, 2, 0, 1, 0, 2, 1]
    assert [examples[name].role for name in KAGGLE] == [None] * 8 + ["test"] * 3
    groups = {name: examples[name].group for name in KAGGLE}
    one = [name for name in KAGGLE if "person1_" in name]
    # train and val share one numbering, test has its own.
    assert {groups[name] for name in one if not name.startswith("test")} == {"development/person1"}
    assert {groups[name] for name in one if name.startswith("test")} == {"test/person1"}
    studies = [groups[name] for name in KAGGLE if "IM-0115" in name]
    assert studies == ["development/IM-115", "development/NORMAL2-IM-115", "test/IM-115"]
    assert found.notes["patients"] == {"development": 6, "test": 3}


def test_mendeley_without_val_beside_retina_scans(tmp_path):
    retina = [
        f"CellData/OCT/{part}/{name}/{name}-12-1.jpeg" for part in ("train", "test") for name in ("CNV", "NORMAL")
    ]
    names = [f"CellData/chest_xray/{name}" for name in NEWER]
    found = pneumonia.scan(tree(tmp_path, *names, *retina), {})
    examples = by_id(found)
    assert list(examples) == sorted(NEWER) and not found.problems
    # These numbers are of one row, so that the patient is the same in both parts, whatever the class says.
    same = [e.group for e in found.examples if "1135262" in e.id]
    assert same == ["patient1135262"] * 3 and found.notes["patients"] == {"development": 3, "test": 2}


def test_a_patient_of_the_test_set_does_not_train(tmp_path):
    many = [f"train/NORMAL/NORMAL-{i}-1.jpeg" for i in range(2, 8)]
    many += [f"train/PNEUMONIA/{c}-{k}{i}-1.jpeg" for k, c in enumerate(("BACTERIA", "VIRUS"), 1) for i in range(6)]
    files.write(tmp_path / "raw", {name: files.jpeg(seed) for seed, name in enumerate([*NEWER, *many])})
    report = prepare.prepare("pneumonia", tmp_path / "raw", tmp_path / "out", workers=1)
    left_out = ["train/PNEUMONIA/BACTERIA-1135262-0001.jpeg", "train/PNEUMONIA/BACTERIA-1135262-0002.jpeg"]
    assert report["copies_of_test"] == {"count": 2, "ids": left_out}


def test_without_test_and_without_parts(tmp_path):
    train = pneumonia.scan(tree(tmp_path / "a", *[n for n in KAGGLE if n.startswith("train")]), {})
    assert {example.role for example in train.examples} == {None} and not train.official_split
    bare = [name.removeprefix("train/").replace("NORMAL/", "normal/") for name in KAGGLE if name.startswith("train")]
    found = pneumonia.scan(tree(tmp_path / "b", *bare), {})
    assert sorted(by_id(found)) == sorted(n.removeprefix("train/") for n in KAGGLE if n.startswith("train"))


def test_the_tree_a_second_time(tmp_path):
    twice = [f"chest_xray/{inner}{name}" for inner in ("", "chest_xray/") for name in KAGGLE]
    twice += [f"chest_xray/__MACOSX/chest_xray/{name}" for name in KAGGLE]
    found = pneumonia.scan(tree(tmp_path / "folder", *twice), {})
    assert {example.paths[0] for example in found.examples} == {f"chest_xray/{name}" for name in KAGGLE}
    copies = {f"chest_xray/chest_xray/{part}": f"chest_xray/{part}" for part in ("train", "val", "test")}
    assert dict(found.problems) == {a: f"a second copy of {b}: folder left out" for a, b in copies.items()}
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for name in twice:
            archive.writestr(name, "")
    zipped = pneumonia.scan(raw.open_source(tmp_path / "archive.zip"), {})
    assert zipped.examples == found.examples and zipped.problems == found.problems
    # The outer copy of one part is cut short: the fuller one counts, and the ids are the same.
    cut = [name for name in twice if name not in ("chest_xray/" + KAGGLE[3], "chest_xray/" + KAGGLE[4])]
    fuller = pneumonia.scan(tree(tmp_path / "cut", *cut), {})
    assert list(by_id(fuller)) == list(by_id(found))
    assert by_id(fuller)[KAGGLE[0]].paths == (f"chest_xray/chest_xray/{KAGGLE[0]}",)


def test_what_does_not_fit_is_listed(tmp_path):
    strays = {
        "train/NORMAL/person7_virus_1.jpeg": "its name says virus, its folder NORMAL",
        "train/PNEUMONIA/IM-0200-0001.jpeg": "its name says normal, its folder PNEUMONIA",
        "train/PNEUMONIA/person8_fungus_1.jpeg": "its name tells neither class nor patient",
        "train/NORMAL/scan.jpeg": "its name tells neither class nor patient",
        "train/NORMAL/readme.txt": "not an image file name",
        "train/person9_virus_1.jpeg": "lies beside NORMAL and PNEUMONIA or too deep in them",
        "train/PNEUMONIA/more/person9_virus_2.jpeg": "lies beside NORMAL and PNEUMONIA or too deep in them",
    }
    found = pneumonia.scan(tree(tmp_path, *KAGGLE, *strays), {})
    assert dict(found.problems) == strays and len(found.examples) == len(KAGGLE)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"found none .*raw\.zip is still packed"):
        pneumonia.scan(tree(tmp_path / "a", "raw.zip", "train/NORMAL/IM-1-1.jpeg"), {})
    with pytest.raises(UserError, match="to train on; found only test"):
        pneumonia.scan(tree(tmp_path / "b", *[name for name in KAGGLE if name.startswith("test")]), {})
    with pytest.raises(UserError, match="has the class virus: restore"):
        pneumonia.scan(tree(tmp_path / "c", *[name for name in KAGGLE if "train" not in name or "vir" not in name]), {})
    with pytest.raises(UserError, match="--study=folder for images of your own"):
        pneumonia.scan(tree(tmp_path / "d", "NORMAL/1.png", "PNEUMONIA/2.png"), {})
    with pytest.raises(UserError, match="no option 'group'"):
        pneumonia.scan(tree(tmp_path / "e", *KAGGLE), {"group": "person"})


def test_prepared(tmp_path):
    """Grey, RGB, palette and 16-bit files in one download: one channel, and no patient on two sides."""
    content = {}
    for i in range(40):
        kind = [f"NORMAL/IM-{i // 2:04d}-{i:04d}", f"PNEUMONIA/person{i // 3}_bacteria_{i}"]
        kind += [f"PNEUMONIA/person{i // 2 + 20}_virus_{i}"]
        for k, name in enumerate(kind):
            grey = files.pixels(channels=1, seed=100 * k + i)
            stray = np.repeat(grey, 3, axis=2) if i % 7 == 0 else grey
            content[f"chest_xray/train/{name}.jpeg"] = files.save(stray, "JPEG", quality=95)
    for i, (folder, name) in enumerate(
        (("NORMAL", "IM-0001-0001"), ("PNEUMONIA", "person1_bacteria_1"), ("PNEUMONIA", "person21_virus_2"))
    ):
        content[f"chest_xray/test/{folder}/{name}.jpeg"] = files.save(files.pixels(channels=1, seed=900 + i), "JPEG")
    deep = (files.pixels(channels=1, seed=5).astype(np.uint16) * 256)[..., 0]
    content["chest_xray/train/NORMAL/IM-9000-0001.jpeg"] = files.save(deep, "PNG")
    coloured = files.save(files.pixels(seed=6), "PNG")
    content["chest_xray/train/NORMAL/IM-9001-0001.jpeg"] = coloured
    files.write(tmp_path / "raw", content)
    report = prepare.prepare("pneumonia", tmp_path / "raw", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    assert report["counts"]["stored"] == len(dataset) == 124 and not report["warnings"] and not dataset.simulated
    assert list(report["skipped"]) == ["16-bit image among 8-bit images"]
    assert dataset.channels == 1 and dataset.segmentation_classes == ()
    assert report["images"]["channels"] == {"1": 105, "3": 19}
    roles = collections.defaultdict(set)
    for group, role in zip(dataset.groups, dataset.roles, strict=True):
        roles[group].add(role)
    assert all(len(found) == 1 for found in roles.values())
    assert set(dataset.ids[dataset.roles == "test"]) == {i for i in dataset.ids if i.startswith("test/")}
    assert {"test/person1", "development/person1"} <= set(dataset.groups)
    index = list(dataset.ids).index("train/NORMAL/IM-9001-0001.jpeg")
    red, green, blue = files.pixels(seed=6).astype(float).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(images.decode(dataset.encoded(index), dataset.channels)[..., 0], luma, atol=0.51)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/pneumonia")
def test_the_real_download():
    found = pneumonia.scan(raw.open_source(REAL), {})
    assert not found.problems and not found.official_split
    assert collections.Counter(e.labels[0] for e in found.examples) == {0: 1341, 1: 2530, 2: 1345}
    assert found.notes["patients"] == {"development": 2846}
    assert len({e.group for e in found.examples if "person" in e.group}) == 1635
