"""Does a prediction file give back exactly what was written, whatever the ids, and is a broken one
refused?
"""

import csv

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import predictions

IDS = [
    "plain",
    "a,b",
    'say "x"',
    "=1+1",
    "+x",
    "-x",
    "@x",
    "'quoted",
    "''two",
    "zelle-ü細胞",
    "two\nlines",
    "\ttab",
    "\rcr",
    " ",
]
NAMES = ["Golgi, apparatus", 'the "other"', "=class"]


def logits(num_examples, num_classes=3):
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (num_examples, num_classes)) * 10.0 ** generator.integers(-30, 30, num_classes)
    return values.astype(np.float32)


def test_everything_comes_back_as_it_was(tmp_path):
    path = tmp_path / "a.csv"
    values = logits(len(IDS))
    values[0] = [0.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    labels = np.random.default_rng(1).integers(-1, 3, len(IDS))
    predictions.write(path, IDS, IDS[::-1], labels, values, NAMES)
    found = predictions.read(path)
    assert list(found.ids) == IDS and list(found.groups) == IDS[::-1] and list(found.class_names) == NAMES
    assert found.logits.dtype == np.float32 and found.logits.tobytes() == values.tobytes()
    np.testing.assert_array_equal(found.labels(multi_label=False), labels)
    assert found.folds is None
    again = tmp_path / "b.csv"
    predictions.write(again, found.ids, found.groups, found.labels(False), found.logits, found.class_names)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_no_text_cell_can_run_as_a_formula(tmp_path):
    path = tmp_path / "p.csv"
    predictions.write(path, IDS, IDS, np.zeros(len(IDS), int), logits(len(IDS)), NAMES)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "group", "label", "logit_Golgi, apparatus", 'logit_the "other"', "logit_=class"]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows[1:] for cell in row[:2])
    assert rows[1][0] == "plain"


def test_pandas_reads_the_file_too(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "p.csv"
    values = logits(3)
    predictions.write(path, ["1", "02", "x,y"], ["g", "g", "h"], np.array([0, 2, 1]), values, list("abc"), fold=4)
    table = pandas.read_csv(path, dtype={"id": str})
    assert table["id"].tolist() == ["1", "02", "x,y"] and table["fold"].tolist() == [4, 4, 4]
    np.testing.assert_array_equal(table[["logit_a", "logit_b", "logit_c"]].to_numpy(np.float32), values)


def test_multi_label_files_and_folds_are_pooled(tmp_path):
    multi_hot = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]], np.float32)
    parts = []
    for fold in range(2):
        path = tmp_path / f"{fold}.csv"
        ids = [f"{fold}-{i}" for i in range(3)]
        predictions.write(path, ids, ["g"] * 3, multi_hot, logits(3), list("abc"), fold=[fold] * 3)
        parts.append(predictions.read(path))
    assert parts[0].label_indices == ((1, 2), (), (0, 2))
    pooled = predictions.concatenate(parts)
    assert pooled.folds.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(pooled.labels(multi_label=True), np.concatenate([multi_hot, multi_hot]))
    with pytest.raises(UserError, match="has 2 labels"):
        pooled.labels(multi_label=False)
    with pytest.raises(UserError, match="'0-0' occurs twice"):
        predictions.concatenate([parts[0], parts[0]])
    np.testing.assert_allclose(pooled.scores(False).sum(axis=1), 1)


def test_names_that_are_not_unicode_survive(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    predictions.write(tmp_path / "p.csv", [name], [""], np.array([0]), logits(1), NAMES)
    assert predictions.read(tmp_path / "p.csv").ids == (name,)


def test_an_empty_set_has_a_header(tmp_path):
    predictions.write(tmp_path / "p.csv", [], [], np.zeros(0, int), np.zeros((0, 3)), NAMES)
    assert predictions.read(tmp_path / "p.csv").logits.shape == (0, 3)


def test_what_cannot_be_right_is_not_written(tmp_path):
    path, good = tmp_path / "p.csv", logits(2)

    def write(ids=("a", "b"), groups=("g", "g"), labels=(0, 1), values=good, names=NAMES):
        predictions.write(path, ids, groups, np.array(labels), values, names)

    broken = good.copy()
    broken[1, 1] = np.nan
    for words, wrong in [
        ("row 1", {"values": broken}),
        ("do not fit", {"ids": ("a",)}),
        ("do not fit", {"groups": ("a",)}),
        ("do not fit", {"names": NAMES[:2]}),
        ("do not fit", {"labels": (0,)}),
        ("'a' occurs twice", {"ids": ("a", "a")}),
        ("'x' occurs twice", {"names": ["x", "x", "y"]}),
        ("between -1", {"labels": (0, 3)}),
        ("0 or 1", {"labels": np.full((2, 3), 0.5)}),
    ]:
        with pytest.raises(UserError, match=words):
            write(**wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prediction file"),
        ("id,group,logit_a\n", "no prediction file"),
        ("id,group,label\n", "no prediction file"),
        ("id,group,label,score_a\n", "no prediction file"),
        ("id,group,label,logit_a,logit_a\n", "occurs twice"),
        ("id,group,label,logit_a\nx,g,0,1\ny,g,0,\n", "line 3"),
        ("id,group,label,logit_a\nx,g,0,nan\n", "line 2: a logit is not finite"),
        ("id,group,label,logit_a\nx,g,0,1e60\n", "line 2: a logit is not finite"),
        ("id,group,label,logit_a\nx,g,1,1\n", "line 2: label '1'"),
        ("id,group,label,logit_a\nx,g,-1,1\n", "line 2"),
        ("id,group,label,logit_a,logit_b\nx,g,1 0,1,1\n", "ascending"),
        ("id,group,label,logit_a\nx,g,0,1,7\n", "5 cells instead of 4"),
        ("id,group,label,logit_a\n\n", "0 cells"),
        ("id,group,label,logit_a\nx,g,0,1\nx,g,0,1\n", "'x' occurs twice"),
        ("id,group,fold,label,logit_a\nx,g,one,0,1\n", "line 2"),
        ('id,group,label,logit_a\n"x,g,0,1\n', "cannot be read as CSV"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        predictions.read(path)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no predictions at"):
        predictions.read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(tmp_path / "b.csv")
