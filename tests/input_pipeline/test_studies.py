"""What the HPA and blood-cell studies recognise in raw downloads, and the sentence for everything that is wrong."""

import collections
import pathlib
import zipfile

import pytest

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.studies import STUDIES, blood_cells, hpa, hpa_2018, load
from tests.input_pipeline.picture_files import tree

SHARED = pathlib.Path(__file__).parents[3] / "shared"


def by_id(manifest):
    return {example.id: example for example in manifest.examples}


def reasons(manifest):
    return collections.Counter(reason for _, reason in manifest.problems)


def test_registry():
    for name in STUDIES:
        assert callable(load(name).scan)
    with pytest.raises(UserError, match="choose one of hpa, blood_cells, folder, table"):
        load("flowers")


# ------------------------------------------------------------------------------------------------------ hpa, ten labels

COURSE = "Image,Label\n0,4 1\n10,9\n2,0\n7,3\n"


@pytest.mark.parametrize("train,test", [("train/train", "test/test"), ("train", "test"), ("x/train", "x/test")])
def test_hpa_course(tmp_path, train, test):
    names = [f"{train}/{i}.png" for i in (0, 2, 10, 55)] + [f"{test}/{i}.png" for i in (1, 3)]
    submission = "Image,Label\n1,0\n3,0\n4,0\n"
    found = hpa.scan(tree(tmp_path, *names, train__csv=COURSE, submission__csv=submission), {})
    assert found.class_names[0] == "Mitochondria" and len(found.class_names) == 10 and found.multi_label
    assert [example.id for example in found.examples] == ["0", "1", "2", "3", "10"]
    examples = by_id(found)
    assert examples["0"].labels == (1, 4) and examples["0"].paths == (f"{train}/0.png",)
    assert examples["0"].role is None and not found.official_split
    assert examples["1"].role == "unlabelled" and examples["1"].labels == ()
    assert dict(found.problems) == {
        "7": "its image is missing",
        "4": "in the submission file, but its image is missing",
        f"{train}/55.png": "no row in train.csv",
    }


def test_hpa_jovian_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name, text in {
            "Human protein atlas/train.csv": COURSE,
            "submission.csv": "Image,Label\n1,0\n",
            **{f"Human protein atlas/train/{i}.png": "" for i in (0, 2, 7, 10)},
            "Human protein atlas/test/1.png": "",
            "__MACOSX/Human protein atlas/train/._0.png": "",
        }.items():
            archive.writestr(name, text)
    found = hpa.scan(raw.open_source(tmp_path / "raw.zip"), {})
    assert len(found.examples) == 5 and not found.problems
    assert by_id(found)["1"].role == "unlabelled"


def test_hpa_takes_the_outermost_copy_and_never_a_test_image_for_training(tmp_path):
    names = ["train/0.png", "train/train/0.png", "test/2.png", "train/10.png", "train/7.png"]
    found = hpa.scan(tree(tmp_path, *names, train__csv=COURSE), {})
    assert by_id(found)["0"].paths == ("train/0.png",)
    assert dict(found.problems) == {"2": "its image lies only in the test folder"}


@pytest.mark.parametrize(
    "line,message",
    [
        ("3,10", r"train.csv, line 6: the label 10 of 3 is no whole number in 0..9"),
        ("3,-1", "label -1"),
        ("3,1.0", "label 1.0"),
        ("3,one", "label one"),
        ("3,", "has no label"),
        (",3", "is no id"),
        ("0,4", "0 has other labels in line 2"),
        ("3", "line 6: 1 cells where the header has 2"),
        ("3,1,2", "line 6: 3 cells where the header has 2"),
        ('3,"1', "line 6: unexpected end of data"),
    ],
)
def test_hpa_broken_label_table(tmp_path, line, message):
    source = tree(tmp_path, "train/0.png", train__csv=COURSE + line + "\n")
    with pytest.raises(UserError, match=message):
        hpa.scan(source, {})


def test_hpa_repeated_row_bom_and_crlf(tmp_path):
    text = b"\xef\xbb\xbf" + (COURSE + "0.png,1 4\n").replace("\n", "\r\n").encode()
    found = hpa.scan(tree(tmp_path, *[f"train/{i}.png" for i in (0, 2, 7, 10)], train__csv=text), {})
    assert len(found.examples) == 4 and dict(found.problems) == {"0": "its row occurs twice in train.csv"}


def test_hpa_wrong_folders(tmp_path):
    with pytest.raises(UserError, match=r"no label table .*train\.zip is still packed"):
        hpa.scan(tree(tmp_path / "a", "train.zip", notes__csv="x,y\n"), {})
    with pytest.raises(UserError, match="none of the 4 images of train.csv is there"):
        hpa.scan(tree(tmp_path / "b", "elsewhere.png", train__csv=COURSE), {})
    with pytest.raises(UserError, match="several label tables"):
        hpa.scan(tree(tmp_path / "c", "train/0.png", a__csv=COURSE, b__csv=COURSE), {})
    with pytest.raises(UserError, match="channels is for"):
        hpa.scan(tree(tmp_path / "d", "train/0.png", train__csv=COURSE), {"channels": "red"})
    with pytest.raises(UserError, match="no option 'channel': it knows channels"):
        hpa.scan(tree(tmp_path / "e", "train/0.png", train__csv=COURSE), {"channel": "red"})


# ------------------------------------------------------------------------------------------------------------- HPA-2018

IDS = "Id,Target\naa,16 0\nbb,23 5 1\ncc,1 16\ndd,25\nee,7 21\n"


def channel_files(*pairs):
    return [f"train/{key}_{channel}.png" for key, channels in pairs for channel in channels.split()]


def test_hpa_2018(tmp_path):
    names = channel_files(("aa", "red green blue yellow"), ("bb", "red green blue"), ("cc", "red green blue"))
    names += channel_files(("dd", "green"), ("zz", "red green blue"))
    names += [name.replace("train/", "test/") for name in channel_files(("t1", "red green blue"), ("t2", "red"))]
    submission = "Id,Predicted\nt1,0\nt2,0\nt3,0\n"
    source = tree(tmp_path, *names, train__csv=IDS, sample_submission__csv=submission)
    found = hpa.scan(source, {})
    examples = by_id(found)
    assert list(examples) == ["aa", "bb", "t1"] and found.channels == ("red", "green", "blue")
    assert examples["aa"].labels == (4,) and examples["bb"].labels == (0, 1)
    assert examples["aa"].paths == ("train/aa_red.png", "train/aa_green.png", "train/aa_blue.png")
    assert examples["t1"].role == "unlabelled"
    assert dict(found.problems) == {
        "cc": "none of the ten labels",
        "dd": "missing channels: red, blue",
        "ee": "missing channels: red, green, blue",
        "t2": "unlabelled, missing channels: green, blue",
        "t3": "unlabelled, missing channels: red, green, blue",
        "zz": "no row in train.csv",
    }
    assert found.notes["labels_dropped"] == {"1": 1, "16": 1}
    assert found.notes["images_without_the_ten_labels"] == 1
    green = by_id(hpa.scan(source, {"channels": "green"}))
    assert green["dd"].paths == ("train/dd_green.png",) and green["dd"].labels == (6,)
    four = by_id(hpa.scan(source, {"channels": "red,green,blue,yellow"}))
    assert list(four) == ["aa"] and four["aa"].paths[3] == "train/aa_yellow.png"


def test_hpa_2018_mapping_is_the_stated_one():
    stated = "23→0 5→1 2→2 7→3 0→4 3→5 25→6 21→7 19→8 4→9"
    assert {int(a): int(b) for a, b in (pair.split("→") for pair in stated.split())} == hpa_2018.MAPPING
    # The 28 names of the competition, in its order; each mapped label must keep its name.
    names = (
        "Nucleoplasm|Nuclear membrane|Nucleoli|Nucleoli fibrillar center|Nuclear speckles|Nuclear bodies|"
        "Endoplasmic reticulum|Golgi apparatus|Peroxisomes|Endosomes|Lysosomes|Intermediate filaments|Actin filaments|"
        "Focal adhesion sites|Microtubules|Microtubule ends|Cytokinetic bridge|Mitotic spindle|"
        "Microtubule organizing center|Centrosome|Lipid droplets|Plasma membrane|Cell junctions|Mitochondria|"
        "Aggresome|Cytosol|Cytoplasmic bodies|Rods & rings"
    ).split("|")
    for theirs, ours in hpa_2018.MAPPING.items():
        assert names[theirs] == hpa_2018.CLASS_NAMES[ours]


@pytest.mark.parametrize("channels", ["", "green,green", "infrared", "red,green"])
def test_hpa_2018_wrong_channels(tmp_path, channels):
    source = tree(tmp_path, *channel_files(("aa", "red green blue")), train__csv=IDS)
    with pytest.raises(UserError, match="must list one, three or four different names"):
        hpa.scan(source, {"channels": channels})


def test_hpa_2018_label_out_of_range(tmp_path):
    with pytest.raises(UserError, match="line 7: the label 28 of ff is no whole number in 0..27"):
        hpa.scan(tree(tmp_path, *channel_files(("aa", "red")), train__csv=IDS + "ff,28\n"), {})


@pytest.mark.skipif(not (SHARED / "data/hpa/kaggle2018").is_dir(), reason="needs ../shared/data")
def test_the_real_broken_download():
    source = raw.open_source(SHARED / "data/hpa/kaggle2018")
    with pytest.raises(UserError) as caught:
        hpa.scan(source, {})
    sentence = str(caught.value)
    assert "none of the 31072 ids" in sentence and "31012 have no file at all" in sentence and "\n" not in sentence
    have = {c: len(list((SHARED / "data/hpa/kaggle2018/train").glob(f"*_{c}.png"))) for c in hpa_2018.CHANNELS}
    for channel in ("red", "green", "blue"):
        assert f"{channel} is missing for {31072 - have[channel]}" in sentence
    assert f"channels=green ({have['green']} ids have it)" in sentence
    green = hpa.scan(source, {"channels": "green"})
    assert 0 < len(green.examples) <= have["green"] and all(len(e.paths) == 1 for e in green.examples)


# ---------------------------------------------------------------------------------------------------------- blood cells

CELLS = [f"{name}/_{i}_{j}.jpeg" for name in blood_cells.CLASS_NAMES for i, j in ((0, 11), (1, 7))]


@pytest.mark.parametrize("above", ["", "dataset2-master/dataset2-master/images/", "Blood_cell_dataset/"])
def test_blood_cells_with_test_folders(tmp_path, above):
    names = [f"{above}{part}/{cell}" for part in ("TRAIN", "TEST", "TEST_SIMPLE") for cell in CELLS]
    names += ["dataset-master/dataset-master/JPEGImages/BloodImage_00000.jpg", f"{above}TRAIN/MONOCYTE/readme.txt"]
    found = blood_cells.scan(tree(tmp_path, *names), {})
    examples = by_id(found)
    assert len(examples) == 24 and found.official_split and found.class_names == blood_cells.CLASS_NAMES
    assert examples["TRAIN/LYMPHOCYTE/_0_11.jpeg"].labels == (1,)
    assert examples["TRAIN/LYMPHOCYTE/_0_11.jpeg"].role is None
    assert {e.role for e in found.examples if e.id.startswith("TEST")} == {"test"}
    assert reasons(found) == {"not an image file name": 1}


def test_blood_cells_without_test_folders(tmp_path):
    only_train = blood_cells.scan(tree(tmp_path / "a", *[f"x/TRAIN/{cell}" for cell in CELLS]), {})
    bare = blood_cells.scan(tree(tmp_path / "b", *[cell.lower() for cell in CELLS]), {})
    directly = blood_cells.scan(tree(tmp_path / "c", *CELLS), {})
    assert len(only_train.examples) == len(bare.examples) == len(directly.examples) == 8
    assert "TRAIN/MONOCYTE/_0_11.jpeg" in by_id(only_train) and "monocyte/_0_11.jpeg" in by_id(bare)
    assert not only_train.official_split and {e.role for e in only_train.examples} == {None}


def test_blood_cells_second_copy_and_strays(tmp_path):
    names = [f"{part}/{cell}" for part in ("images/TRAIN", "images/images/TRAIN") for cell in CELLS]
    names += ["images/TRAIN/MONOCYTE/extra.jpg", "elsewhere/MONOCYTE/stray.jpg", *[f"aside/{cell}" for cell in CELLS]]
    found = blood_cells.scan(tree(tmp_path, *names), {})
    assert len(found.examples) == 9
    assert dict(found.problems) == {
        "images/images/TRAIN": "a second copy of images/TRAIN: folder left out",
        "elsewhere": "holds only some of the four classes: folder left out",
        "aside": "not below images/TRAIN: folder left out",
    }


def test_blood_cells_missing(tmp_path):
    with pytest.raises(UserError, match="found none of them"):
        blood_cells.scan(tree(tmp_path / "a", "cats/1.jpg"), {})
    with pytest.raises(UserError, match="class folder TRAIN/MONOCYTE .* is missing or holds no images"):
        blood_cells.scan(tree(tmp_path / "b", *[f"TRAIN/{c}" for c in CELLS if "MONO" not in c]), {})
    (tmp_path / "c" / "TRAIN" / "MONOCYTE").mkdir(parents=True)
    with pytest.raises(UserError, match="class folder TRAIN/MONOCYTE"):
        blood_cells.scan(tree(tmp_path / "c", *[f"TRAIN/{c}" for c in CELLS if "MONO" not in c]), {})
    with pytest.raises(UserError, match="to train on"):
        blood_cells.scan(tree(tmp_path / "d", *[f"TEST/{c}" for c in CELLS]), {})
