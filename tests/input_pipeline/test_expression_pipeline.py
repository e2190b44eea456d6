"""Are vectors of gene expression prepared unchanged, by the rules that hold for images?"""

import hashlib
import json
import os

import numpy as np
import pytest

from input_pipeline import prepare, raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.example_proto import decode_example
from input_pipeline.records import RecordSource
from input_pipeline.studies import cancer_genes
from tests.input_pipeline.expression_sets import TYPES, G, N, expression, replace_reader, row_of
from tests.input_pipeline.picture_files import snapshot


@pytest.fixture
def table(monkeypatch):
    """Puts expression data in place of what the reader finds; returns how it was called."""
    return lambda found: replace_reader(monkeypatch, found)


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    (root / "table.tsv").write_text("read by another module\n")
    return root


@pytest.fixture
def prepared(table, raw_folder, tmp_path):
    table(expression())
    report = prepare.prepare("cancer_genes", raw_folder, tmp_path / "out", folds=3)
    return open_dataset(tmp_path / "out"), report


def test_records_hold_the_vectors(prepared):
    dataset, _ = prepared
    found = expression()
    assert dataset.genes == found.genes and dataset.channels == 1 and dataset.dtype == np.float32
    assert dataset.class_names == ("BRCA", "KIRC", "LUAD") and not dataset.multi_label and not dataset.simulated
    assert sorted(dataset.ids) == list(found.ids)
    source = RecordSource(dataset.directory)
    source.verify()
    for index, identifier in enumerate(dataset.ids):
        row = row_of(identifier)
        np.testing.assert_array_equal(dataset.vector(index), found.values[row])
        assert dataset.class_names[dataset.labels[index]] == found.labels[row]
        example = decode_example(source[index])
        assert example.keys() == {"id", "group", "label", "expression"}
        assert example["expression"] == [found.values[row].astype("<f4").tobytes()] == [dataset.encoded(index)]


def test_patients_and_identical_vectors_stay_together(prepared):
    dataset, report = prepared
    group = dict(zip(map(row_of, dataset.ids), dataset.groups, strict=True))
    for row in range(N):
        same = {other for other in range(N) if group[other] == group[row]}
        # Samples 3 and 22 are identical: their patients, 1 and 11, are one group.
        assert same == ({2, 3, 22, 23} if row in (2, 3, 22, 23) else {row // 2 * 2, min(row // 2 * 2 + 1, N - 1)})
    for parts in (dataset.roles, dataset.folds):
        assert len(set(zip(dataset.groups, parts, strict=True))) == len(set(dataset.groups)) == 18
    assert set(dataset.roles) == {"train", "validation", "calibration", "test"} and set(dataset.folds) == {0, 1, 2}
    assert report["duplicates"]["sets"] == [["S-003", "S-022"]] and report["duplicates"]["exact_copies"] == 1
    assert report["duplicates"]["sets_with_conflicting_labels"]["count"] == 1


def test_roles_are_stratified_by_the_fractions(table, raw_folder, tmp_path):
    table(expression(300, 7, patients=tuple(f"P{i // 2}" for i in range(300))))
    fractions = {"test": 0.3, "validation": 0.1, "calibration": 0.1}
    prepare.prepare("cancer_genes", raw_folder, tmp_path / "out", fractions=fractions)
    dataset = open_dataset(tmp_path / "out")
    for role, share in {**fractions, "train": 0.5}.items():
        counts = np.bincount(dataset.labels[dataset.indices(role)], minlength=3)
        np.testing.assert_allclose(counts, 100 * share, atol=4)


def test_official_roles_and_unlabelled_samples(table, raw_folder, tmp_path):
    roles = tuple("test" if i % 6 == 4 else None for i in range(N))
    labels = tuple("" if i >= 34 else TYPES[(i // 2) % 3] for i in range(N))
    given = expression(official_roles=roles, labels=labels, patients=tuple(map(str, range(N))))
    table(given)
    report = prepare.prepare("cancer_genes", raw_folder, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert {row_of(i) for i in dataset.ids[dataset.indices("unlabelled")]} == {34, 35, 36}
    assert (dataset.labels[dataset.indices("unlabelled")] == -1).all() and report["official_split"]
    assert {row_of(i) for i in dataset.ids[dataset.indices("test")]} == {i for i in range(34) if i % 6 == 4}


def test_the_report_tells_what_the_reader_found(prepared):
    dataset, report = prepared
    assert report == json.loads((dataset.directory / "ingest_report.json").read_text())
    assert report["left_out"] == {
        "solid tissue normal": {"count": 2, "first": ["S-998 (a.tsv, line 1, column 7)", "S-999 (b.tsv, line 3)"]},
        "no sample: not one has a value": {"count": 1, "first": ["GENE"]},
    }
    assert report["notes"] == {"layout": "pancanatlas", "scale": "log2(x+1)"} and "images" not in report
    names = hashlib.sha256("\n".join(dataset.genes).encode()).hexdigest()
    assert report["expression"] == {"genes": G, "genes_sha256": names, "dtype": "float32"}
    assert report["counts"]["stored"] == N and report["source"]["files"] == 1


def test_the_folder_holds_nothing_else(prepared):
    directory = prepared[0].directory
    shards = {f"cancer_genes-{role}.tfrecord-00000-of-00001" for role in set(prepared[0].roles)}
    others = {"features.json", "dataset_info.json", "label.labels.txt", "records.json", "splits.json"}
    others |= {"ingest_report.json", "expression.genes.txt"}
    assert set(os.listdir(directory)) == shards | {f"{name}.idx" for name in shards} | others
    assert (directory / "expression.genes.txt").read_text().splitlines() == list(expression().genes)
    assert [path.name for path in directory.parent.iterdir()] == ["out"]


def test_same_bytes_again_and_for_any_number_of_workers(table, prepared, raw_folder, tmp_path):
    calls = table(expression())
    options = {"minimum_variance": "1"}
    prepare.prepare("cancer_genes", raw_folder, tmp_path / "again", folds=3, workers=3, options=options)
    assert snapshot(tmp_path / "again") == snapshot(prepared[0].directory)
    source, given, scratch = calls[-1]
    assert isinstance(source, raw.RawSource) and given == options and not scratch.exists()


def test_tfds_decodes_the_vectors(prepared):
    tfds = pytest.importorskip("tensorflow_datasets")
    dataset = prepared[0]
    builder = tfds.builder_from_directory(dataset.directory)
    feature = builder.info.features["expression"]
    assert feature.shape == (G,) and feature.np_dtype == np.float32
    assert "image" not in builder.info.features and builder.info.features["label"].names == list(dataset.class_names)
    for index in (0, N - 1):
        decoded = feature.decode_example_np(decode_example(RecordSource(dataset.directory)[index])["expression"][0])
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, dataset.vector(index))
    for role, split in builder.info.splits.items():
        assert split.num_examples == len(dataset.indices(role))
    # What TFDS itself would declare, and how it would encode.
    own = tfds.features.Tensor(shape=(G,), dtype=np.float32, encoding="bytes")
    assert own.to_json_content() == feature.to_json_content()
    assert own.encode_example(dataset.vector(3)) == dataset.encoded(3)


# --- What is refused while preparing.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"boxes": "boxes.csv"}, "--boxes"),
        ({"max_pixels": 1000}, "--max_pixels"),
        ({"near_duplicates": True}, "--duplicates=near"),
    ],
)
def test_flags_about_pictures_are_refused(table, raw_folder, tmp_path, arguments, named):
    calls = table(expression())
    with pytest.raises(UserError, match=f"{named} is about pictures"):
        prepare.prepare("cancer_genes", raw_folder, tmp_path / "out", **arguments)
    assert not calls and not list(tmp_path.iterdir())
    prepare.prepare("cancer_genes", raw_folder, tmp_path / "out", near_duplicates=False)


def test_the_command_line_refuses_them_too(table, raw_folder, tmp_path, capsys):
    table(expression())
    arguments = ["--study=cancer_genes", f"--source={raw_folder}", f"--out={tmp_path / 'out'}"]
    for flag in ("--boxes=b.csv", "--max_pixels=7", "--duplicates=near"):
        with pytest.raises(UserError, match="is about pictures"):
            prepare.main([*arguments, flag])
    prepare.main([*arguments, "--duplicates=exact"])
    assert f"{N} of {N} samples stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("",) * N}, "none of the 37 samples .* has a label"),
        ({"genes": ("A", *("B",) * (G - 1))}, "the gene 'B' .* occurs twice"),
        ({"genes": ("A\nB", *map(str, range(G - 1)))}, "the gene .* has no name"),
        ({"genes": (" ", *map(str, range(G - 1)))}, "the gene .* has no name"),
        ({"ids": ("S-000",) * N}, "the id S-000 occurs twice"),
        ({"official_roles": ("test",) * N}, "holds no sample to train on"),
        ({"patients": ("P",) * N}, "the role .* would be empty"),
    ],
)
def test_wrong_expression_is_refused_and_leaves_nothing(table, raw_folder, tmp_path, changes, message):
    table(expression(**changes))
    with pytest.raises(UserError, match=message):
        prepare.prepare("cancer_genes", raw_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_manifest_of_unequal_parts_is_a_mistake_of_the_program():
    with pytest.raises(ValueError, match="37 samples of 101 genes have values"):
        cancer_genes.manifest_of(expression(values=np.zeros((N, G - 1), np.float32)))
    with pytest.raises(ValueError, match="zip"):
        cancer_genes.manifest_of(expression(patients=("P",)))


def test_values_that_are_not_finite_never_get_in(table, raw_folder, tmp_path):
    found = expression()
    found.values[6, 8] = np.nan
    table(found)
    report = prepare.prepare("cancer_genes", raw_folder, tmp_path / "out")
    assert report["skipped"] == {"its value of the gene GENE8|8 is no finite number": {"count": 1, "ids": ["S-006"]}}
    assert "S-006" not in open_dataset(tmp_path / "out").ids
    found.values[7:9, 8] = np.inf
    with pytest.raises(UserError, match=r"samples of 37 cannot be used, more than 5% .* gene GENE8\|8"):
        prepare.prepare("cancer_genes", raw_folder, tmp_path / "two")
