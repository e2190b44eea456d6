"""Are the captions of both dialects read whole, labels checked, images found, and all else listed?"""

import collections
import csv
import io
import json
import pathlib

import numpy as np
import pytest

from input_pipeline import prepare, raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.studies import captions, captions_repairs, captions_table
from tests.input_pipeline import picture_files as files
from tests.input_pipeline.picture_files import tree

REAL = pathlib.Path(__file__).parents[3] / "shared/data/captions"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/captions")

HEAD = "ImageID,Labels,Caption\n"
TEXTS = [
    "A plain caption.",
    'a sign that reads "Los Angeles".',
    'the word "stop," and a comma, too',
    'ends with "quotes"',
    '"begins" with them',
    "two\nlines and\n\nmore",
    "a slash / a back\\slash",
    "",
    'one " alone',
    "it's 100% ünï",
]


def original(texts, labels="1 3", header=HEAD):
    cells = [f"{labels}," if "Labels" in header else ""] * len(texts)
    return header + "".join(
        f'{i}.jpg,{cell}"{text}"\n' for i, (cell, text) in enumerate(zip(cells, texts, strict=True))
    )


def quoted(texts, labels="1 3", delimiter=",", newline="\r\n", quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerows([["ImageID", "Labels", "Caption"], *([f"{i}.jpg", labels, t] for i, t in enumerate(texts))])
    return text.getvalue()


def read(tmp_path, text, name="train.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return captions_table.read(raw.open_source(tmp_path), name)


def scan(tmp_path, train, test=None, options=None, images=()):
    texts = {"train__csv": train} | ({"test__csv": test} if test else {})
    options = {"captions_only": "yes"} if options is None and not images else options or {}
    return captions.scan(tree(tmp_path, *images, **texts), options)


def reasons(manifest):
    return collections.Counter(reason for _, reason in manifest.problems)


# ------------------------------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize(
    "text,dialect",
    [
        (original(TEXTS), "original"),
        (original(TEXTS).rstrip("\n"), "original"),
        (original(TEXTS).replace("\n", "\r\n"), "original"),
        ("\ufeff" + original(TEXTS), "original"),
        (original(TEXTS) + "\n \n", "original"),
        (original(TEXTS[:1]), "quoted"),
        (quoted(TEXTS), "quoted"),
        (quoted(TEXTS, newline="\n", quoting=csv.QUOTE_ALL), "quoted"),
        (quoted(TEXTS, delimiter=";"), "quoted"),
        (quoted([text.replace("\n", "\r") for text in TEXTS]), "quoted"),
        (quoted(TEXTS) + "\r\n\r\n", "quoted"),
    ],
)
def test_every_caption_is_intact_in_every_dialect(tmp_path, text, dialect):
    table = read(tmp_path, text)
    assert table.dialect == dialect and table.labelled and not table.restored
    assert [record.caption for record in table.records] == TEXTS[: len(table.records)]
    assert [record.id for record in table.records] == [f"{i}.jpg" for i in range(len(table.records))]
    assert {record.labels for record in table.records} == {"1 3"} and len(table.records) in (1, len(TEXTS))


def test_lines_of_records_are_those_of_the_file(tmp_path):
    lines = original(TEXTS).split("\n")
    for text in (original(TEXTS), quoted(TEXTS)):
        for record in read(tmp_path, text).records:
            assert lines[record.line - 1].startswith(f"{record.id},")


def test_a_test_table_has_no_labels(tmp_path):
    table = read(tmp_path, original(TEXTS, header="ImageID,Caption\n"))
    assert not table.labelled and table.dialect == "original"
    assert [record.caption for record in table.records] == TEXTS


@pytest.mark.parametrize(
    "text,message",
    [
        (HEAD, "has a header but no records"),
        ("", "line 1: the header must be"),
        ("Image,Label\n0,1\n", "line 1: the header must be ImageID,Labels,Caption"),
        ("ImageID,Caption,Caption\n0.jpg,a,b\n", "line 1: the header must be"),
        (HEAD + '0.jpg,1,"a "b" c"\n1.jpg,1,"cut of', "line 3: the caption of 1.jpg has no quote at its end"),
        (HEAD + '0.jpg,1,"a "b" c"\n1.jpg,1\n', r"line 3: '1.jpg,1' is no record of the form id,labels,\"caption\""),
        (HEAD + '0.jpg,1,"a "b" c"\n1.jpg,1,unquoted\n2.jpg,1,"d"\n', "line 3: '1.jpg,1,unquoted' is no record"),
        (HEAD + '0.jpg,1,"a "b" c"\nstray words\n1.jpg,1,"d"\n', "line 2: the caption of 0.jpg has no quote"),
        (HEAD + "0.jpg,1,plain\n1.jpg,1\n", "line 3: 2 cells where the header has 3"),
        (HEAD + "0.jpg,1,plain\n1.jpg,1,a,b\n", "line 3: 4 cells where the header has 3"),
        (HEAD + '0.jpg,1,plain\n1.jpg,1,"open\n', "line 3: unexpected end of data"),
        (HEAD.encode() + b'0.jpg,1,"caf\xe9"\n', "line 2: not UTF-8"),
        (HEAD.encode() + b'0.jpg,1,"a\0"\n', "line 2: a NUL character"),
    ],
)
def test_damaged_tables_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("text", [original(TEXTS), quoted(TEXTS)])
def test_any_damage_is_refused_or_read_but_never_a_crash(tmp_path, text):
    rng, data, outcomes = np.random.default_rng(0), text.encode(), collections.Counter()
    for _ in range(150):
        at, kind = int(rng.integers(len(data))), rng.integers(4)
        middle = (b"", bytes([rng.integers(256)]), b'"', b"\n")[kind]
        try:
            records = read(tmp_path, data[:at] + middle + data[at + int(kind < 2) :]).records
            outcomes["read"] += 1
            assert 1 <= len(records) <= len(TEXTS) + 1 and all(isinstance(r.caption, str) for r in records)
        except UserError as error:
            outcomes["refused"] += 1
            assert "train.csv" in str(error)
    assert min(outcomes["read"], outcomes["refused"]) > 10


@pytest.mark.parametrize("end", range(1, 4))
def test_a_file_that_is_cut_off_never_gives_a_shorter_caption(tmp_path, end):
    with pytest.raises(UserError, match="no quote at its end"):
        read(tmp_path, HEAD + '0.jpg,1,"a "b" c"\n1.jpg,1,"whole words."'[:-end])


# ----------------------------------------------------------------------------------------------------------- real files


@needs_real
def test_both_real_files_have_the_same_30000_captions():
    source = raw.open_source(REAL)
    first, second = (captions_table.read(source, name) for name in ("train.csv", "train_resaved.csv"))
    assert (first.dialect, second.dialect) == ("original", "quoted")
    rows = [[(r.id, r.labels, r.caption) for r in table.records] for table in (first, second)]
    assert len(rows[0]) == len(rows[1]) == 30_000 and rows[0] == rows[1]
    assert [name for name, _, _ in rows[0]] == [f"{i}.jpg" for i in range(30_000)]
    # An independent reading: no line of the original is lost, and only outer quotes are.
    lines = [f'{name},{labels},"{caption}"' for name, labels, caption in rows[0]]
    assert (REAL / "train.csv").read_text() == HEAD + "\n".join(lines) + "\n"
    assert not first.restored and len(second.restored) == 85
    assert sum('"' in caption for _, _, caption in rows[0]) == 82 and sum("\n" in c for _, _, c in rows[0]) == 4


@needs_real
def test_restoring_changes_nothing_that_it_does_not_know():
    for name in ("train.csv", "train_resaved.csv"):
        for record in captions_table.read(raw.open_source(REAL), name).records[:3000]:
            assert captions_repairs.restored(record.id, record.caption) == record.caption
    for name in ("552.jpg", "9508.jpg", "14957.jpg", "x.jpg", ""):
        for caption in ("", '"', "oh no", 'COURT"/"', "something else entirely", 'with caution" tape"'):
            assert captions_repairs.restored(name, caption) == caption


@needs_real
def test_the_real_set_without_images(tmp_path):
    manifest = captions.scan(raw.open_source(REAL), {"captions_only": "yes"})
    counts = collections.Counter(label for example in manifest.examples for label in example.labels)
    assert [counts[label] for label in range(18)] == [
        22797, 1164, 4365, 1272, 1132, 1395, 1221, 2210, 1042, 1471, 604, 605, 252, 1934, 1099, 1430, 1525, 1020,
    ]  # fmt: skip
    assert len(manifest.examples) == 30_000 and not manifest.problems and not manifest.notes["labels_dropped"]
    assert manifest.notes["tables_not_used"] == ["coco_index.csv", "train_resaved.csv"]
    groups = collections.Counter(example.group for example in manifest.examples if example.group)
    assert len(groups) == 389 and sum(groups.values()) == 1220 and min(groups.values()) == 2


@needs_real
def test_real_photos(tmp_path):
    report = prepare.prepare(
        "captions", REAL, tmp_path / "out", workers=1, options={"csv": "coco_index.csv"}, near_duplicates=False,
        fractions={"validation": 0.15, "calibration": 0.15, "test": 0.15},
    )  # fmt: skip
    dataset = open_dataset(tmp_path / "out")
    rows = list(csv.DictReader(open(REAL / "coco_index.csv")))
    known = {name: {int(n) for n in row["Labels"].split()} & set(captions.NUMBERS) for row in rows
             for name in [row["ImageID"]]}  # fmt: skip
    assert set(dataset.ids) == {name for name, labels in known.items() if labels}
    for row, name in enumerate(dataset.ids):
        assert {captions.NUMBERS[k] for k in np.flatnonzero(dataset.labels[row])} == known[name]
    by_id = {row["ImageID"]: row["Caption"] for row in rows}
    assert dataset.captions == [by_id[name] for name in dataset.ids]
    left = {name for name, labels in known.items() if not labels}
    assert report["left_out"]["no label from 1 to 19 without 12"]["count"] == len(left) > 0
    assert report["notes"]["labels_dropped"]["outside 1 to 19"]["count"] > 100


# --------------------------------------------------------------------------------------------------- labels and records


@pytest.mark.parametrize(
    "cell,labels,dropped",
    [
        ("1", (0,), []),
        ("19 1", (0, 17), []),
        ("13 11  3", (2, 10, 11), []),
        ("1 1", (0,), []),
        ("12 1", (0,), ["12, which the contest leaves out"]),
        ("0 20 -1 1", (0,), ["outside 1 to 19", "outside 1 to 19", "not a whole number"]),
        ("person 2.0 ² ١ 1e3", (), ["not a whole number"] * 5),
        ("9999999999999999999999", (), ["not a whole number"]),
        ("", (), []),
    ],
)
def test_labels(cell, labels, dropped):
    assert captions.valid_labels(cell) == (labels, dropped)


def test_what_is_dropped_is_counted_and_a_record_without_labels_listed(tmp_path):
    rows = [("0", "1 12"), ("1", "12"), ("2", "cat"), ("3", "99 2"), ("4", ""), ("5", "19")]
    found = scan(tmp_path, HEAD + "".join(f'{n}.jpg,{labels},"{n} words"\n' for n, labels in rows))
    assert {example.id: example.labels for example in found.examples} == {"0.jpg": (0,), "3.jpg": (1,), "5.jpg": (17,)}
    assert reasons(found) == {"no label from 1 to 19 without 12": 3}
    assert [name for name, _ in found.problems] == ["1.jpg", "2.jpg", "4.jpg"]
    assert found.notes["labels_dropped"] == {
        "12, which the contest leaves out": {"count": 2, "first": ["0.jpg", "1.jpg"]},
        "not a whole number": {"count": 1, "first": ["2.jpg"]},
        "outside 1 to 19": {"count": 1, "first": ["3.jpg"]},
    }
    assert found.multi_label and found.class_names[0] == "person" and len(found.class_names) == 18


def test_repeated_records(tmp_path):
    line = '7.jpg,1,"a "b" c"\n'
    found = scan(tmp_path, HEAD + line + line, "ImageID,Caption\n7.jpg,x\n8.jpg,y\n")
    assert [example.id for example in found.examples] == ["7.jpg", "8.jpg"] and found.examples[0].labels == (0,)
    assert reasons(found) == {
        "its row occurs twice in train.csv": 1,
        "in test.csv, but the table with labels has it too": 1,
    }
    with pytest.raises(UserError, match="line 3: 7.jpg is in line 2 with other values"):
        scan(tmp_path, HEAD + line + '7.jpg,1,"other"\n')
    with pytest.raises(UserError, match="train.csv, line 2: the ImageID '' is no id"):
        scan(tmp_path, HEAD + ",1,x\n")


def test_a_test_table_is_unlabelled_or_official(tmp_path):
    train = original(TEXTS)
    found = scan(tmp_path, train, 'ImageID,Caption\n90.jpg,"A "big" plain"\n')
    roles = {example.id: (example.role, example.labels) for example in found.examples}
    assert roles["90.jpg"] == ("unlabelled", ()) and roles["0.jpg"] == (None, (0, 2)) and not found.official_split
    found = scan(tmp_path, train, HEAD + "90.jpg,2,words\n")
    assert {example.id: example.role for example in found.examples}["90.jpg"] == "test" and found.official_split


def test_same_words_are_one_group(tmp_path):
    texts = ["A man, riding.", "a  MAN riding", "a man riding\n", "a man rides", "", "", "?!"]
    found = scan(tmp_path, original(texts), "ImageID,Caption\n90.jpg,A man riding\n")
    groups = {example.id: example.group for example in found.examples}
    assert len({groups[name] for name in ("0.jpg", "1.jpg", "2.jpg", "90.jpg")}) == 1 and groups["0.jpg"]
    assert {groups[f"{i}.jpg"] for i in (3, 4, 5, 6)} == {None}
    assert found.notes["captions_missing"] == 2 and found.notes["repeated_captions"] == {"groups": 1, "records": 4}


# -------------------------------------------------------------------------------------------------------------- sources


def test_images_are_found_wherever_they_lie(tmp_path):
    train = HEAD + "0.jpg,1,a b\n1.jpg,2,c d\n2.jpg,3,e f\n"
    found = scan(tmp_path, train, images=["data/0.jpg", "x/data/0.jpg", "data/1.jpg"])
    assert [example.paths for example in found.examples] == [("data/0.jpg",), ("data/1.jpg",)]
    assert found.problems == [("2.jpg", "its image is missing")]


def test_the_path_column_never_leads_out_of_the_source(tmp_path):
    train = "ImageID,Path,Labels,Caption\n0.jpg,../secret.jpg,1,x\n1.jpg,data/1.jpg,1,y\n2.jpg,/etc/2.jpg,1,z\n"
    (tmp_path / "secret.jpg").touch()
    found = scan(tmp_path / "raw", train, images=["data/1.jpg", "data/0.jpg"])
    assert [example.paths for example in found.examples] == [("data/1.jpg",)] and len(found.problems) == 2


@pytest.mark.parametrize(
    "texts,options,message",
    [
        ({"notes__txt": "x"}, {}, "holds no table of captions and labels"),
        ({"test__csv": "ImageID,Caption\n0.jpg,x\n"}, {}, "holds no table of captions and labels"),
        ({"a__csv": HEAD, "b__csv": HEAD}, {}, "several tables of captions and labels .* train.csv, or give it as"),
        ({"train__csv": HEAD + "0.jpg,1,x\n"}, {}, "none of the 1 records .* its image is missing.*captions_only=yes"),
        ({"train__csv": HEAD + "0.jpg,12,x\n"}, {"captions_only": "yes"}, "none of the 1 records of train.csv"),
        ({"train__csv": HEAD}, {"captions_only": "maybe"}, "captions_only=maybe must be yes or no"),
        ({"train__csv": HEAD}, {"csv": "none.csv"}, "none.csv is not in"),
        ({"x__csv": "ImageID,Caption\n0.jpg,a\n"}, {"csv": "x.csv"}, "x.csv has no column Labels"),
        ({"train__csv": HEAD}, {"images": "data"}, "has no option 'images': it knows captions_only, cleaned, csv"),
    ],
)
def test_wrong_sources_and_options(tmp_path, texts, options, message):
    with pytest.raises(UserError, match=message):
        captions.scan(tree(tmp_path, **texts), options)


# ------------------------------------------------------------------------------------------------------------ preparing


def numbered(count, header=HEAD, first=0):
    rows = [f'{first + i}.jpg,{"1 3" if i % 2 else "1"},"caption "{i}" of many"\n' for i in range(count)]
    return header + "".join(
        rows if "Labels" in header else (row.replace(",1 3,", ",").replace(",1,", ",") for row in rows)
    )


@pytest.fixture(scope="module")
def without_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    (root / "raw").mkdir()
    same = '40.jpg,2,"twice"\n41.jpg,3,"Twice!"\n42.jpg,4,""\n43.jpg,5,""\n'
    (root / "raw/train.csv").write_text(numbered(40) + same)
    (root / "raw/test.csv").write_text(numbered(7, "ImageID,Caption\n", 90))
    flags = [f"--source={root / 'raw'}", "--study=captions", "--captions_only", "--set", "cleaned=yes"]
    prepare.main([*flags, f"--out={root / 'out'}", "--folds=3"])
    return root


def test_prepared_without_images(without_images):
    dataset = open_dataset(without_images / "out")
    assert len(dataset) == 51 and dataset.multi_label and dataset.num_classes == 18
    assert (dataset.roles == "unlabelled").sum() == 7 and not dataset.labels[dataset.roles == "unlabelled"].any()
    assert set(dataset.roles) == {"train", "validation", "calibration", "test", "unlabelled"}
    row = {name: i for i, name in enumerate(dataset.ids)}
    assert dataset.captions[row["3.jpg"]] == 'caption "3" of many' and dataset.captions[row["42.jpg"]] == ""
    assert dataset.channels == 1 and len({dataset.encoded(i) for i in range(len(dataset))}) == 1
    # Equal pictures make no group: only the captions of the same words do (test captions repeat those of training).
    assert dataset.groups[row["40.jpg"]] == dataset.groups[row["41.jpg"]]
    assert dataset.groups[row["42.jpg"]] != dataset.groups[row["43.jpg"]]
    assert dataset.groups[row["90.jpg"]] == dataset.groups[row["0.jpg"]]
    assert len(set(dataset.groups)) == 51 - 7 - 1
    report = json.loads((without_images / "out/ingest_report.json").read_text())
    assert report["duplicates"]["exact_sets"] == 0 and report["duplicates"]["statistics"]["comparisons"] == 0
    assert report["notes"]["captions_only"] is True


def test_cleaned_tables_are_proper_csv(without_images):
    for name, table in (("train", original(TEXTS)), ("test", None)):
        rows = list(csv.reader(open(without_images / f"out/{name}_cleaned.csv", newline=""), strict=True))
        assert rows[0] == (["ImageID", "Labels", "Caption"] if table else ["ImageID", "Caption"])
        assert len(rows) == (45 if table else 8)
    assert ["3.jpg", "1 3", 'caption "3" of many'] in list(
        csv.reader(open(without_images / "out/train_cleaned.csv", newline=""))
    )
    source = raw.open_source(without_images / "out")
    again = captions_table.read(source, "train_cleaned.csv")
    first = captions_table.read(raw.open_source(without_images / "raw"), "train.csv")
    assert [(r.id, r.labels, r.caption) for r in again.records] == [(r.id, r.labels, r.caption) for r in first.records]


@pytest.mark.parametrize("change", [{"near_duplicates": True}, {"max_pixels": 5}])
def test_flags_of_images_are_refused_without_images(without_images, tmp_path, change):
    with pytest.raises(UserError, match="is about pictures"):
        prepare.prepare("captions", without_images / "raw", tmp_path / "x", options={"captions_only": "1"}, **change)
    assert not list(tmp_path.iterdir())


def test_prepared_with_images_grey_and_unreadable_ones(tmp_path):
    content = {f"data/{i}.jpg": files.jpeg(i) for i in range(24)}
    content["data/3.jpg"] = files.save(files.pixels(23, 31, 1, 3), "JPEG")
    content["data/5.jpg"] = content["data/5.jpg"][:200]
    content["data/9.jpg"] = content["data/4.jpg"]
    content |= {f"data/{i}.jpg": files.jpeg(i) for i in (90, 91)}
    content |= {"train.csv": numbered(24).encode(), "test.csv": numbered(2, "ImageID,Caption\n", 90).encode()}
    files.write(tmp_path / "raw", content)
    options = {"max_bad": 0.1, "near_duplicates": False}
    report = prepare.prepare("captions", tmp_path / "raw", tmp_path / "out", workers=1, **options)
    dataset = open_dataset(tmp_path / "out")
    assert report["counts"]["skipped"] == 1 and "5.jpg" not in set(dataset.ids) and dataset.channels == 3
    groups = dict(zip(dataset.ids, dataset.groups, strict=True))
    assert groups["4.jpg"] == groups["9.jpg"] and groups["0.jpg"] == groups["90.jpg"]
    assert report["images"]["channels"] == {"3": 24, "1": 1}
    prepare.prepare("captions", tmp_path / "raw", tmp_path / "again", workers=2, **options)
    assert files.snapshot(tmp_path / "out") == files.snapshot(tmp_path / "again")
