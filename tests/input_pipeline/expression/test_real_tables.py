"""Do the real downloads become what an independent reader makes of them?"""

import collections
import gzip
import pathlib
import zipfile

import numpy as np
import pytest

from tests.input_pipeline.expression.layouts import read

REAL = pathlib.Path(__file__).parents[4] / "shared/data/cancer_genes"
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/cancer_genes")


def linked(tmp_path, folder):
    """A copy of a folder of the real data, so that its scratch folder lies elsewhere."""
    for path in (REAL / folder).rglob("*"):
        if path.is_file():
            target = tmp_path / "raw" / path.relative_to(REAL / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "raw"


def test_survpath(tmp_path):
    root = linked(tmp_path, "survpath")
    found = read(root)
    frames = {cohort: pandas.read_csv(root / cohort / "rna_clean.csv", index_col=0) for cohort in ("blca", "coadread")}
    assert collections.Counter(found.labels) == {"BLCA": 270, "COADREAD": 238, "STAD": 252, "UCEC": 111}
    assert found.ids == found.patients and len(found.genes) == 1577
    assert found.genes == tuple(frames["blca"].columns)
    for cohort, frame in frames.items():
        frame = frame[~frame.index.duplicated()]
        rows = [found.ids.index(name) for name in frame.index]
        assert {found.labels[row] for row in rows} == {cohort.upper()}
        np.testing.assert_array_equal(found.values[rows], frame.to_numpy(np.float32))
    assert found.notes["scale"]["used"] == "log2p0.001" and found.values.min() < -9.9
    repeated = {place.split(" ")[0]: place for place, reason in found.problems if "further measurement" in reason}
    assert set(repeated) == {"TCGA-G4-6317", "TCGA-NH-A8F7", "TCGA-G5-6572", "TCGA-BK-A139"}
    assert "coadread/rna_clean.csv, line 50" in repeated["TCGA-G4-6317"] and len(found.problems) == 4
    assert len(read(root, aliquots="all").ids) == 875


@pytest.mark.parametrize("packing", ["folder", "gz", "zip"])
def test_cognoma(tmp_path, packing):
    root = linked(tmp_path, "cognoma")
    table = "subset/expression-matrix-all-genes.tsv"
    frame = pandas.read_csv(root / table, sep="\t", index_col=0)
    labels = pandas.read_csv(root / "samples.tsv", sep="\t", index_col=0)["acronym"]
    symbols = pandas.read_csv(root / "expression-genes.tsv", sep="\t", index_col=0)["symbol"]
    if packing == "gz":
        (root / f"{table}.gz").write_bytes(gzip.compress((root / table).read_bytes(), 1))
        (root / table).unlink()
        table += ".gz"
    if packing == "zip":
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in root.rglob("*.tsv"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "raw.zip"
    found = read(root, table=table)
    frame = frame.sort_index()
    assert found.ids == tuple(frame.index)
    np.testing.assert_array_equal(found.values, frame.to_numpy(np.float32))  # negatives included
    assert found.labels == tuple(labels[frame.index])
    assert found.genes == tuple(symbols[int(number)] for number in frame.columns)
    assert found.notes["scale"]["used"] == "log2p1"


def test_cognoma_many_samples(tmp_path):
    root = linked(tmp_path, "cognoma")
    found = read(root, table="expression-matrix-all-samples.tsv", min_mean="5")
    frame = pandas.read_csv(root / "subset/expression-matrix-all-samples.tsv", sep="\t", index_col=0).sort_index()
    kept = frame.loc[:, frame.mean() >= 5]
    np.testing.assert_array_equal(found.values, kept.to_numpy(np.float32))
    assert len(found.ids) == 8756 and len(set(found.labels)) == 32 and "" not in found.labels
