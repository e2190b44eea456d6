"""A user's own data without code: class folders and tables, rule by rule, and the sentence for every mistake."""

import collections
import pathlib

import pytest

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.studies import csv_rows, folder, table
from tests.input_pipeline.picture_files import tree

SHARED = pathlib.Path(__file__).parents[3] / "shared"


def by_id(manifest):
    return {example.id: example for example in manifest.examples}


def reasons(manifest):
    return collections.Counter(reason for _, reason in manifest.problems)


def test_folder_without_roles(tmp_path):
    names = ["data/10/a.jpg", "data/9/b.png", "data/9/deeper/c.PNG", "data/9/notes.txt"]
    found = folder.scan(tree(tmp_path, *names), {})
    assert found.class_names == ("9", "10") and not found.official_split and not found.multi_label
    assert {k: v.labels for k, v in by_id(found).items()} == {"10/a.jpg": (1,), "9/b.png": (0,), "9/deeper/c.PNG": (0,)}
    assert dict(found.problems) == {"data/9/notes.txt": "not an image file name"}


def test_folder_with_roles(tmp_path):
    names = ["Train/cat/1.jpg", "Train/dog/1.jpg", "val/cat/2.jpg", "TEST/dog/3.jpg", "test/4.jpg", "extra/cat/5.jpg"]
    found = folder.scan(tree(tmp_path, *names, "unlabeled/deep/6.jpg", "train/7.jpg"), {})
    roles = {k: (v.role, v.labels) for k, v in by_id(found).items()}
    assert roles == {
        "Train/cat/1.jpg": (None, (0,)),
        "Train/dog/1.jpg": (None, (1,)),
        "val/cat/2.jpg": ("validation", (0,)),
        "TEST/dog/3.jpg": ("test", (1,)),
        "test/4.jpg": ("unlabelled", ()),
        "unlabeled/deep/6.jpg": ("unlabelled", ()),
    }
    assert set(dict(found.problems)) == {"extra/cat/5.jpg", "train/7.jpg"} and found.official_split


def test_folder_groups(tmp_path):
    names = [f"train/{c}/person{i}_x.jpg" for c in "ab" for i in (1, 12)] + [
        "test/a/person1_y.jpg",
        "test/b/person3.jpg",
    ]
    source = tree(tmp_path, *names)
    found = by_id(folder.scan(source, {"group": r"(train|test)/.*(person\d+)"}))
    assert (
        found["train/a/person12_x.jpg"].group == "train/person12"
        and found["test/a/person1_y.jpg"].group != "train/person1"
    )
    assert by_id(folder.scan(source, {"group": r"person\d+"}))["test/b/person3.jpg"].group == "person3"
    for option, message in (("(", "no regular expression"), (r"patient\d", "finds nothing in")):
        with pytest.raises(UserError, match=message):
            folder.scan(source, {"group": option})


@pytest.mark.parametrize(
    "names,empty,message",
    [
        (["cat/1.jpg"], None, "has 1 class folder with images"),
        (["1.jpg", "2.jpg"], None, "has 0 class folders"),
        (["cat/1.jpg", "dog/1.jpg"], "bird", "class folder bird in .* is empty"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "train/bird", "class folder train/bird"),
        (["a/cat/1.jpg", "a/dog/1.jpg"], "a/bird", "class folder a/bird"),
        (
            ["train/cat/1.jpg", "train/dog/1.jpg", "test/bird/1.jpg"],
            None,
            "bird has images in .*, but none below train",
        ),
        (["train/cat/1.jpg", "train/dog/1.jpg", "test/Cat/1.jpg"], None, "differ only in case"),
        (["images.zip", "a.txt"], None, r"no image files \(images.zip is still packed"),
    ],
)
def test_folder_mistakes(tmp_path, names, empty, message):
    if empty:
        (tmp_path / empty).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        folder.scan(tree(tmp_path, *names), {})


def test_table_single_label(tmp_path):
    lines = [
        "\ufeffPath, Label ,id,group,Role,caption",
        'img/1.jpg,cat,one,p1,train,"a, b\nc"',
        "",
        "img/2.jpg,dog,two,,test,=1+1",
        "img\\3.jpg,,three,p1,unlabelled,",
        "img/4.jpg,cat,four,,,é",
    ]
    text = "\r\n".join(lines)
    found = table.scan(tree(tmp_path, *[f"img/{i}.jpg" for i in (1, 2, 3)], list__csv=text), {})
    assert found.class_names == ("cat", "dog") and not found.multi_label and found.official_split
    examples = by_id(found)
    assert (examples["one"].role, examples["one"].labels, examples["one"].group) == (None, (0,), "p1")
    assert examples["one"].caption == "a, b\nc" and examples["two"].caption == "=1+1"
    assert (examples["two"].role, examples["two"].labels) == ("test", (1,))
    assert (examples["three"].role, examples["three"].labels) == ("unlabelled", ())
    assert dict(found.problems) == {"four": "its image is not in the source"}


@pytest.mark.parametrize("cells", ["a b|b||c a", "a;b | c|b||a", "2 10|10||2"])
def test_table_multi_label(tmp_path, cells):
    if cells == "a;b | c|b||a":
        cells, expected, names = "a;b c|b c||a", [(0, 1), (1,), (), (0,)], ("a", "b c")
    elif cells[0] == "2":
        expected, names = [(0, 1), (1,), (), (0,)], ("2", "10")
    else:
        expected, names = [(0, 1), (1,), (), (0, 2)], ("a", "b", "c")
    rows = "".join(f"{i}.jpg,{cell}\n" for i, cell in enumerate(cells.split("|")))
    found = table.scan(tree(tmp_path, *[f"{i}.jpg" for i in range(4)], t__csv="file,labels\n" + rows), {})
    assert found.multi_label and found.class_names == names
    assert [example.labels for example in found.examples] == expected


def test_table_options(tmp_path):
    text = "ImageID;Finding;Patient\na.jpg;1;7\nb.jpg;none;8\n"
    source = tree(tmp_path, "pictures/a.jpg", "pictures/b.jpg", "notes.csv", tables__csv=text)
    options = {"csv": "tables.csv", "images": "pictures", "path": "imageid", "label": "Finding", "group": "Patient"}
    found = table.scan(source, {**options, "classes": "none, pneumonia"})
    assert found.class_names == ("none", "pneumonia") and by_id(found)["a.jpg"].labels == (1,)
    assert by_id(found)["b.jpg"].group == "8"
    for change, message in (
        ({"csv": "x.csv"}, "x.csv is not in"),
        ({"images": "nowhere"}, "folder images=nowhere is not in"),
        ({"label": "Diagnosis"}, "must name the columns"),
        ({"classes": "none"}, "two or more"),
        ({"classes": "none,other", "label": "Patient"}, "line 2: the label 7 is not among 0..1"),
        ({"color": "x"}, "no option 'color'"),
    ):
        with pytest.raises(UserError, match=message):
            table.scan(source, {**options, **change})
    with pytest.raises(UserError, match=r"2 tables .* name the table with --set csv=NAME"):
        table.scan(source, {})


HEAD = "path,label,id,role\na.jpg,cat,1,\nb.jpg,dog,2,\n"


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "columns path, label, not ''"),
        ("path,label\n", "has a header but no rows"),
        ("a.jpg,cat\nb.jpg,dog\n", "line 1: the header must name the columns path, label"),
        ("path,label,Label\na.jpg,cat,dog\n", "column 'label' occurs twice"),
        (HEAD + "c.jpg,cat,3\n", "line 4: 3 cells where the header has 4"),
        (HEAD + 'c.jpg,"cat"x,3,\n', "line 4: .*correct the line"),
        (HEAD + 'c.jpg,"cat,3,\n', "correct the line"),
        (HEAD + ",cat,3,\n", "line 4: the path is empty"),
        (HEAD + "c.jpg,,3,\n", "line 4: the label is empty"),
        (HEAD + "c.jpg,cat,3,tset\n", "line 4: unknown role 'tset'"),
        (HEAD + "c.jpg,cat,1,\n", "line 4: the id 1 is in line 2"),
        (HEAD + "a.jpg,dog,1,\n", "line 4: a.jpg is in line 2 with other values"),
        (HEAD.encode() + b"c.jpg,caf\xe9,3,\n", "line 4: not UTF-8"),
        (HEAD + "c.jpg,c\0t,3,\n", "line 4: a NUL character"),
        (HEAD.replace("dog", "cat"), "names 1 class, a study needs two"),
        (HEAD.replace("dog", "3").replace("cat", "-1"), "line 2: the label -1 is no whole number"),
        (HEAD.replace("dog", "3").replace("cat", "1.5"), "line 2: the label 1.5 is no whole number"),
        (HEAD.replace("dog", "d" * 300), "line 3: .* cannot be a class name"),
        ("path,label,labels\na.jpg,1,1\n", "has both columns, label and labels"),
        ("path,labels\na.jpg,x;y|z\nb.jpg,x\n", "holds both ';' and '|'"),
        ("path,labels\na.jpg,x x\nb.jpg,y\n", "line 2: a label occurs twice"),
        (HEAD.replace("a.jpg", "../../a.jpg").replace("b.jpg", "/b.jpg"), "none of the 2 images"),
    ],
)
def test_table_mistakes(tmp_path, text, message):
    source = tree(tmp_path, "a.jpg", "b.jpg", "c.jpg", t__csv=text)
    with pytest.raises(UserError, match=message) as caught:
        table.scan(source, {})
    assert "\n" not in str(caught.value)


def test_table_repeated_row_is_listed(tmp_path):
    found = table.scan(tree(tmp_path, "a.jpg", "b.jpg", t__csv=HEAD + "a.jpg,cat,1,\n"), {})
    assert len(found.examples) == 2 and reasons(found) == {"its row occurs twice": 1}


def test_huge_cell_is_refused(tmp_path):
    source = tree(tmp_path, "a.jpg", t__csv=HEAD + "c.jpg,cat,3," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match="line 4: field larger than field limit"):
        csv_rows.read_rows(source, "t.csv", ["path"])


@pytest.mark.skipif(not (SHARED / "data/captions").is_dir(), reason="needs ../shared/data")
def test_a_real_table():
    options = {"csv": "coco_index.csv", "path": "Path", "id": "ImageID", "labels": "Labels", "caption": "Caption"}
    found = table.scan(raw.open_source(SHARED / "data/captions"), options)
    assert len(found.examples) == 80 and found.multi_label and not found.problems
    first = found.examples[0]
    assert [found.class_names[label] for label in first.labels] == ["9", "28", "62", "67"]
    assert first.caption.startswith("some outdoor tables")
