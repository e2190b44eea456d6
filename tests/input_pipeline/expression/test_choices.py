"""Do the options choose samples, scales, genes and missing values as an independent computation does?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from input_pipeline.expression import scale
from tests.input_pipeline.expression import layouts
from tests.input_pipeline.expression.layouts import COLUMNS, GENES, NAMES, NORMAL, PATIENTS, read

SECOND = "TCGA-AA-3488-01B-11R-A29S-07"
THIRD = "TCGA-AA-3488-01A-21R-A29S-07"
CONTROL = "TCGA-07-0227-20A-01R-A29S-07"
COLUMNS_MORE = [SECOND, *COLUMNS, THIRD, CONTROL]


@pytest.fixture
def values():
    generator = np.random.default_rng(1)
    found = np.round(np.exp(generator.normal(4, 2, (7, 13))), 3)
    found[0] = [*range(900, 913)]
    found[3, [0, 4, 11]] = np.nan
    found[5, 2] = -3.25
    return found


@pytest.fixture
def root(tmp_path, values):
    layouts.table(tmp_path / "raw/table.tsv", zip(GENES, values, strict=True), ["gene_id", *COLUMNS_MORE])
    layouts.two_columns(tmp_path / "raw")
    return tmp_path / "raw"


def log2(values):
    """Double precision, missing values kept, samples × genes."""
    return np.log2(np.maximum(values.T, 0) + 1)


def test_tumours_only_by_default(root):
    found = read(root)
    reasons = {place.split(" ")[0]: reason for place, reason in found.problems}
    assert NORMAL not in found.ids and "samples=normals" in reasons[NORMAL]
    assert CONTROL not in found.ids and "control analyte" in reasons[CONTROL]
    assert found.notes["samples"]["kept"] == len(found.ids) == 9


def test_normals_keep_their_cohort_or_become_a_class(root):
    everything, extra = read(root, samples="all"), read(root, samples="normals")
    assert everything.labels[everything.ids.index(NORMAL)] == "BRCA"
    assert everything.labels[everything.ids.index(CONTROL)] == "" and CONTROL not in extra.ids
    assert extra.labels[extra.ids.index(NORMAL)] == "normal"
    assert set(extra.labels) == {*PATIENTS.values(), "normal"}
    assert extra.patients[extra.ids.index(NORMAL)] == NORMAL[:12]


def test_aliquots(root, values):
    at = {name: index for index, name in enumerate(COLUMNS_MORE)}
    same = sorted([SECOND, THIRD, "TCGA-AA-3488-01A-11R-A29S-07"])
    logs = log2(values)
    first, every, mean = (read(root, aliquots=mode) for mode in ("first", "all", "mean"))
    assert [name for name in first.ids if name[:12] == "TCGA-AA-3488"] == same[:1]
    further = {place.split(" ")[0] for place, reason in first.problems if "further measurement" in reason}
    assert further == set(same[1:])
    assert [name for name in every.ids if name[:12] == "TCGA-AA-3488"] == same
    for name in same:
        row = every.values[every.ids.index(name)]
        np.testing.assert_allclose(row, np.nan_to_num(logs[at[name]]), atol=2e-6)
    assert mean.ids == first.ids and mean.notes["aliquots"]["averaged samples"] == 1
    row = mean.values[mean.ids.index(same[0])]
    expected = np.nanmean(logs[[at[name] for name in same]], axis=0)  # the missing value of one does not count
    np.testing.assert_allclose(row, expected, atol=2e-6)


def test_a_patient_twice_in_a_table_of_patients(tmp_path):
    rows = [("TCGA-AA-3488", [50.0, 1.0, 1.0]), ("TCGA-AA-3488", [99.0, 3.0, 1.0]), ("TCGA-AG-3574", [2.0, 2.0, 2.0])]
    layouts.table(tmp_path / "raw/t.csv", rows, ["", "A", "B", "C"], ",")
    layouts.two_columns(tmp_path / "raw")
    assert read(tmp_path / "raw").values[:, 0] == pytest.approx([np.log2(51), np.log2(3)])
    every = read(tmp_path / "raw", aliquots="all")
    assert every.ids == ("TCGA-AA-3488", "TCGA-AA-3488#2", "TCGA-AG-3574")
    assert every.patients == ("TCGA-AA-3488", "TCGA-AA-3488", "TCGA-AG-3574")
    mean = read(tmp_path / "raw", aliquots="mean")
    assert mean.values[0, 0] == pytest.approx((np.log2(51) + np.log2(100)) / 2)


def test_missing_values(root, values):
    logs = log2(values)
    zero, mean, drop = (read(root, missing=mode, aliquots="all") for mode in ("zero", "mean", "drop"))
    order = [COLUMNS_MORE.index(name) for name in zero.ids]
    np.testing.assert_allclose(zero.values, np.nan_to_num(logs[order]), atol=2e-6)
    filled = np.where(np.isnan(logs), np.nanmean(logs[order], axis=0), logs)
    np.testing.assert_allclose(mean.values, filled[order], atol=2e-6)
    assert drop.genes == (*NAMES[:3], *NAMES[4:])
    np.testing.assert_array_equal(drop.values, np.delete(zero.values, 3, axis=1))
    assert (f"{NAMES[3]} (3 of 11)", "values are missing (missing=drop)") in drop.problems
    assert zero.notes["missing"]["values filled in"] == 3 and drop.notes["missing"]["values filled in"] == 0


def test_a_gene_without_any_value_is_left_out(root, values):
    values[2] = np.nan
    layouts.table(root / "table.tsv", zip(GENES, values, strict=True), ["gene_id", *COLUMNS_MORE])
    for mode in ("zero", "mean", "drop"):
        found = read(root, missing=mode)
        assert NAMES[2] not in found.genes and (NAMES[2], "no sample has a value of this gene") in found.problems


def test_filters(root):
    full = read(root)
    variances = full.values.astype(np.float64).var(axis=0, ddof=1)
    means = full.values.astype(np.float64).mean(axis=0)
    best = np.sort(np.argsort(-variances)[:3])
    found = read(root, top_genes="3")
    assert found.genes == tuple(full.genes[index] for index in best)
    np.testing.assert_array_equal(found.values, full.values[:, best])
    assert "no label was used" in found.notes["filters"][0]["caution"]
    limit = float(np.sort(variances)[3]) - 1e-9
    assert read(root, min_variance=repr(limit)).genes == tuple(np.array(full.genes)[variances >= limit])
    limit = float(np.sort(means)[4]) - 1e-9
    assert read(root, min_mean=repr(limit)).genes == tuple(np.array(full.genes)[means >= limit])
    assert read(root, top_genes="99").genes == full.genes


def test_a_list_of_genes(root, tmp_path):
    (root / "list.txt").write_text("# mine\nTP53\n\n728661\nGATA3|2625\nUNHEARD,of\n")
    found = read(root, genes="list.txt")
    assert found.genes == ("SLC35E2|728661", "TP53", "GATA3")
    assert ("UNHEARD", "list.txt: no gene of the table has this name") in found.problems
    (tmp_path / "elsewhere.txt").write_text("SLC35E2\r\nKRT5")  # a symbol means all genes that have it
    assert read(root, genes=str(tmp_path / "elsewhere.txt")).genes == ("SLC35E2|9906", "SLC35E2|728661", "KRT5")
    (root / "list.txt").write_text("NOBODY\n?\n")
    with pytest.raises(UserError, match="no gene is left after the list of genes, of 7 before it"):
        read(root, genes="list.txt")


def written(tmp_path, values):
    """A table of any values, samples × genes."""
    ids = [f"s{i}" for i in range(len(values))]
    genes = [f"g{i}" for i in range(values.shape[1])]
    layouts.table(tmp_path / "raw/t.csv", zip(ids, values, strict=True), ["sample_id", *genes], ",", number=repr_of)
    layouts.two_columns(tmp_path / "raw", pairs=dict.fromkeys(ids, "x"))
    return tmp_path / "raw"


def repr_of(value):
    return repr(float(value))


@pytest.mark.parametrize("kind", ["linear", "counts", "log2p1", "log2p1 below 0", "log2p0.001", "zscore"])
def test_the_scale_is_found_and_nothing_is_changed_twice(tmp_path, kind):
    generator = np.random.default_rng(2)
    counts = generator.negative_binomial(1, 0.01, (40, 9)) * (generator.random((40, 9)) < 0.9)
    small = generator.integers(0, 12, (40, 9))
    standard = np.log2(counts + 1.0)
    standard = (standard - standard.mean(axis=0)) / standard.std(axis=0)
    made = {
        "linear": counts * 1.37 - 0.5,
        "counts": small,
        "log2p1": np.log2(counts + 1),
        "log2p1 below 0": np.log2(counts + 0.4),
        "log2p0.001": np.log2(counts + 0.001),
        "zscore": standard,
    }[kind].astype(np.float32)
    name = {"counts": "linear", "log2p1 below 0": "log2p1"}.get(kind, kind)
    root = written(tmp_path, made)
    found = read(root)
    assert found.notes["scale"]["used"] == found.notes["scale"]["detected"] == name
    expected = np.log2(np.maximum(made, 0) + 1) if name == "linear" else made
    order = [int(sample[1:]) for sample in found.ids]
    np.testing.assert_allclose(found.values, expected[order], atol=2e-6)
    if name != "linear":
        np.testing.assert_array_equal(found.values, made[order])
        forced = read(root, scale="linear")
        assert forced.notes["scale"]["given"] and forced.notes["scale"]["detected"] == name
        np.testing.assert_allclose(forced.values, np.log2(np.maximum(made[order], 0) + 1), atol=2e-6)


def test_no_expression_on_the_scale_of_the_table(tmp_path):
    made = np.log2(np.array([[0, 5, 9], [3, 0, 2.5], [8, 1, 1]]) + 0.001)
    made[1, 0] = np.nan
    found = read(written(tmp_path, made))
    assert found.values[1, 0] == np.float32(scale.FLOOR) == pytest.approx(np.log2(0.001))


def test_tables_on_two_scales_are_refused(tmp_path):
    for cohort, factor in (("ACC", 1.0), ("BRCA", 500.5)):
        rows = [(f"TCGA-{cohort[:2]}-000{i}", [1.5 * factor, 2.5, 3.5 + i]) for i in range(3)]
        layouts.table(tmp_path / "raw" / cohort / "t.csv", rows, ["", "A", "B", "C"], ",")
    with pytest.raises(UserError, match="ACC/t.csv looks log2p1 and BRCA/t.csv linear: remove one, or give the scale"):
        read(tmp_path / "raw")
    assert read(tmp_path / "raw", scale="linear").notes["scale"]["detected"] == ["log2p1", "linear"]


def test_large_values_are_mapped_and_the_same(root, monkeypatch):
    from input_pipeline.expression import matrix

    small = read(root)
    monkeypatch.setattr(matrix, "MAPPED_BYTES", 1)
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 100)
    mapped = read(root)
    assert isinstance(mapped.values, np.memmap) and not isinstance(small.values, np.memmap)
    np.testing.assert_array_equal(mapped.values, small.values)
    for found in (small, mapped):
        with pytest.raises(ValueError, match="read-only"):
            found.values[0, 0] = 1
