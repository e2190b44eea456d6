"""What must hold of the parsers for every input that hypothesis can think of?

python -m pytest -m slow tests/campaign/test_properties.py
"""

import csv
import io
import tempfile

import numpy as np
import pytest

from input_pipeline import records, splits, tabular
from input_pipeline.cli import UserError
from input_pipeline.example_proto import decode_example, encode_example
from input_pipeline.expression import parsing
from input_pipeline.raw import open_source
from input_pipeline.studies import captions_table
from research.evaluation import predictions
from research.report import tables

hypothesis = pytest.importorskip("hypothesis")
given, settings, strategies = hypothesis.given, hypothesis.settings, hypothesis.strategies

pytestmark = pytest.mark.slow
MANY = settings(max_examples=300, deadline=None, derandomize=True)

texts = strategies.text(strategies.characters(exclude_categories=("Cs",)), max_size=40)
awkward = strategies.one_of(texts, strategies.text("=+-@\t\r\n'\",; 01.eE", max_size=12))
printed = strategies.text(strategies.characters(exclude_categories=("Cs", "Cc")), max_size=30)


@MANY
@given(strategies.lists(strategies.binary(max_size=300), min_size=1, max_size=20), strategies.randoms())
def test_records_come_back_in_any_order(payloads, random):
    with tempfile.TemporaryDirectory() as folder:
        with records.RecordWriter(f"{folder}/x-train.tfrecord-00000-of-00001") as writer:
            for payload in payloads:
                writer.write(payload)
        records.write_index(folder)
        source = records.RecordSource(folder)
        order = list(range(len(payloads)))
        random.shuffle(order)
        assert [source[index] for index in order] == [payloads[index] for index in order]


features = strategies.one_of(
    strategies.lists(strategies.binary(max_size=40), min_size=1, max_size=5),
    strategies.lists(strategies.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    strategies.lists(strategies.floats(width=32, allow_nan=False), min_size=1, max_size=5),
)


@MANY
@given(strategies.dictionaries(texts, features, max_size=6))
def test_examples_come_back(values):
    assert decode_example(encode_example(values)) == values


@MANY
@given(strategies.binary(max_size=200))
def test_bytes_are_an_example_or_refused(data):
    try:
        found = decode_example(data)
    except UserError:
        return
    assert all(isinstance(value, list) for value in found.values())


cells = strategies.one_of(strategies.none(), strategies.booleans(), strategies.integers(), awkward,
                          strategies.floats(allow_nan=False))  # fmt: skip


@MANY
@given(strategies.lists(awkward, min_size=1, max_size=4, unique=True), strategies.data())
def test_tables_come_back_and_are_never_run(columns, data):
    rows = data.draw(strategies.lists(strategies.fixed_dictionaries(dict.fromkeys(columns, cells)), max_size=5))
    with tempfile.TemporaryDirectory() as folder:
        tabular.write_csv(f"{folder}/t.csv", columns, rows)
        names, found = tabular.read_csv(f"{folder}/t.csv")
        text = open(f"{folder}/t.csv", newline="", encoding="utf-8").read()
    assert names == columns and found == rows
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not [c for c in row if c.startswith(("=", "+", "-", "@")) and isinstance(tabular.parse_cell(c), str)]


@MANY
@given(strategies.lists(awkward.filter(bool), min_size=1, max_size=5, unique=True), strategies.data())
def test_ledgers_come_back(ids, data):
    numbers = strategies.floats(allow_nan=False, allow_infinity=False)
    rows = [
        {"id": name, "status": data.draw(awkward.filter(bool)), "seed": data.draw(strategies.integers(0, 2**31)),
         "overrides": data.draw(strategies.dictionaries(texts, strategies.one_of(texts, numbers), max_size=3)),
         "metrics": {"test": {"accuracy": data.draw(numbers)}}}
        for name in ids
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tables.write_trials_csv(f"{folder}/t.csv", rows)
        found = tables.read_trials_csv(f"{folder}/t.csv")
    for row, back in zip(rows, found, strict=True):
        assert {key: back[key] for key in row} == row


@MANY
@given(strategies.lists(awkward, min_size=1, max_size=6, unique=True), strategies.integers(2, 4), strategies.data())
def test_predictions_come_back_to_the_bit(ids, classes, data):
    numbers = strategies.floats(width=32, allow_nan=False, allow_infinity=False)
    row = strategies.lists(numbers, min_size=classes, max_size=classes)
    logits = np.array([data.draw(row) for _ in ids], np.float32)
    labels = np.array([data.draw(strategies.integers(-1, classes - 1)) for _ in ids])
    names = [f"{data.draw(texts)}{number}" for number in range(classes)]
    with tempfile.TemporaryDirectory() as folder:
        predictions.write(f"{folder}/p.csv", ids, ids, labels, logits, names)
        found = predictions.read(f"{folder}/p.csv")
    assert list(found.ids) == ids == list(found.groups) and list(found.class_names) == names
    assert found.logits.tobytes() == (logits + 0).tobytes() or (found.logits == logits).all()
    assert found.labels(False).tolist() == labels.tolist()


@MANY
@given(strategies.lists(printed, min_size=1, max_size=8), strategies.sampled_from([",", ";"]))
def test_captions_of_proper_csv_come_back(captions, delimiter):
    captions = [text.strip() for text in captions]
    buffer = io.StringIO(newline="")
    rows = [["ImageID", "Labels", "Caption"], *([f"{i}.jpg", "1", text] for i, text in enumerate(captions))]
    csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/train.csv", "w", newline="", encoding="utf-8") as file:
            file.write(buffer.getvalue())
        found = captions_table.read(open_source(folder), "train.csv")
    assert [record.caption for record in found.records] == captions
    assert [record.id for record in found.records] == [f"{i}.jpg" for i in range(len(captions))]


@MANY
@given(strategies.lists(strategies.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_numbers_are_read_as_numpy_reads_them(numbers):
    table = parsing.Table("t", "\t", "", tuple(f"c{i}" for i in range(len(numbers))), True)
    line = "\t".join(["gene", *map(repr, numbers)]).encode()
    with np.errstate(over="ignore"):
        expected = np.array(numbers, np.float64).astype(np.float32)
    if np.isinf(expected).any():
        with pytest.raises(UserError, match="not a finite number"):
            parsing.parse_line(table, 2, line)
    else:
        assert parsing.parse_line(table, 2, line)[1].tobytes() == expected.tobytes()


@MANY
@given(strategies.binary(max_size=60))
def test_a_line_is_numbers_or_refused_by_its_place(line):
    table = parsing.Table("t.tsv", "\t", "", ("a", "b"), True)
    try:
        name, values = parsing.parse_line(table, 7, line)
    except UserError as error:
        assert "t.tsv, line 7" in str(error) and "\n" not in str(error)
        return
    assert name and values.shape == (2,) and not np.isinf(values).any()


@MANY
@given(strategies.lists(strategies.integers(0, 6), min_size=8, max_size=60), strategies.integers(2, 4))
def test_folds_never_cut_a_group(groups, folds):
    labels = np.arange(len(groups)) % 3
    names = [f"g{group}" for group in groups]
    fewest = min(len({name for name, own in zip(names, labels, strict=True) if own == label}) for label in range(3))
    if fewest < folds:
        with pytest.raises(UserError, match=f"fewer than {folds} folds"):
            splits.assign_folds(labels, names, folds, 0, False)
        return
    found = splits.assign_folds(labels, names, folds, 0, False)
    assert len(found) == len(groups) and set(np.unique(found)) <= set(range(folds))
    for name in set(names):
        assert len({int(fold) for fold, own in zip(found, names, strict=True) if own == name}) == 1
