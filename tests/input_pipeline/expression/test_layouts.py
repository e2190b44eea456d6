"""Is the same study the same matrix, whichever layout it was downloaded in?"""

import bz2
import gzip
import json
import zipfile

import numpy as np
import pytest

from input_pipeline.cli import UserError
from tests.input_pipeline.expression import layouts
from tests.input_pipeline.expression.layouts import ALIQUOTS, COLUMNS, GENES, NAMES, NORMAL, PATIENTS, RELAPSE, read

TUMOURS = sorted([RELAPSE, *ALIQUOTS])


def expected(values, ids=TUMOURS, columns=COLUMNS):
    """log2(x + 1) of linear `values` [genes, samples], computed in double precision: [ids, genes]."""
    return np.log2(np.maximum(values[:, [columns.index(name) for name in ids]].T, 0) + 1)


def check(found, values, ids=TUMOURS, columns=COLUMNS, tolerance=2e-6):
    assert found.ids == tuple(ids)
    np.testing.assert_allclose(found.values, expected(values, ids, columns), rtol=0, atol=tolerance)
    assert found.patients == tuple(name[:12] for name in ids)
    assert found.labels == tuple(PATIENTS[name[:12]] for name in ids)
    json.dumps(found.notes)


def test_pancanatlas(tmp_path):
    values = layouts.linear()
    values[3, 4], values[5, 2] = -0.7311, np.nan
    layouts.pancanatlas(tmp_path / "raw", values)
    layouts.workbook(
        tmp_path / "raw/TCGA-CDR-SupplementalTableS1.xlsx",
        {
            "Notes": [["nothing"]],
            "TCGA-CDR": [
                [None, "bcr_patient_barcode", "type", "DSS"],
                *([number, patient, code, "#N/A"] for number, (patient, code) in enumerate(PATIENTS.items())),
            ],
        },
    )
    found = read(tmp_path / "raw")
    check(found, np.nan_to_num(values, nan=0))
    assert found.genes == NAMES
    assert found.notes["layout"] == "pancanatlas" and found.notes["labels"]["kind"] == "TCGA-CDR"
    assert found.notes["scale"]["used"] == "linear" and not found.notes["scale"]["given"]
    assert found.notes["missing"]["values found"] == found.notes["missing"]["values filled in"] == 1
    [(place, reason)] = found.problems
    assert place.startswith(f"{NORMAL} (EBPlus") and place.endswith("line 1, column 11)")
    assert reason.startswith("solid tissue normal")
    assert set(found.official_roles) == {None}


@pytest.mark.parametrize("packing", [None, gzip, bz2])
def test_xena(tmp_path, packing):
    values = layouts.linear()
    columns = [name[:15] for name in COLUMNS]
    rows = [(gene.replace("?|", "").split("|")[0], np.log2(row + 1)) for gene, row in zip(GENES, values, strict=True)]
    path = layouts.table(
        tmp_path / "raw/EB++AdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.xena",
        [(name, [*row[:-1], ""] if name == "KRT5" else row) for name, row in rows],
        ["sample", *columns],
        number="{:.9f}".format,
    )
    if packing:
        path.with_name(f"{path.name}.{'gz' if packing is gzip else 'bz2'}").write_bytes(
            packing.compress(path.read_bytes())
        )
        path.unlink()
    (tmp_path / "raw/Survival_SupplementalTable_S1_20171025_xena_sp").write_text(
        "sample\t_PATIENT\tcancer type abbreviation\tOS\n"
        + "".join(f"{name}\t{name[:12]}\t{PATIENTS[name[:12]]}\t1\n" for name in columns)
    )
    found = read(tmp_path / "raw", samples="all")
    values[-1, -1] = 0  # the empty cell
    check(found, values, sorted(columns), columns)
    assert found.genes == ("?|100130426", "A1BG", "SLC35E2", "SLC35E2#2", "TP53", "GATA3", "KRT5")
    assert found.notes["layout"] == "xena" and found.notes["labels"]["kind"] == "Xena survival"
    assert found.notes["scale"]["used"] == "log2p1"
    [(place, reason)] = found.problems
    assert place.startswith("SLC35E2#2 (EB++") and "line 5)" in place and "occurs again" in reason


def firehose(root, cohort, values, columns):
    path = f"{cohort}.rnaseqv2__illuminahiseq_rnaseqv2__unc_edu__Level_3__RSEM_genes_normalized__data.data.txt"
    header = ["Hybridization REF", *columns]
    rows = [("gene_id", ["normalized_count"] * len(columns)), *zip(GENES, values, strict=True)]
    return layouts.table(root / path, rows, header)


def test_firehose(tmp_path):
    values = layouts.linear()
    for cohort in ("ACC", "BRCA", "COAD", "READ"):
        chosen = [i for i, name in enumerate(COLUMNS) if PATIENTS[name[:12]] == cohort]
        firehose(tmp_path / "raw", cohort, values[:, chosen], [COLUMNS[i] for i in chosen])
    found = read(tmp_path / "raw")
    check(found, values)
    assert found.genes == NAMES and found.notes["layout"] == "firehose" and len(found.notes["tables"]) == 4

    chosen = [i for i, name in enumerate(COLUMNS) if PATIENTS[name[:12]] in ("COAD", "READ")]
    union = firehose(tmp_path / "raw", "COADREAD", values[:, chosen], [COLUMNS[i] for i in chosen])
    again = read(tmp_path / "raw")
    check(again, values)
    assert (union.name, "COADREAD repeats the samples of COAD and READ") in again.problems

    union.rename(union.with_name(union.name.replace("COADREAD", "STAD")))
    with pytest.raises(UserError, match=r"STAD.*line 1, column 2: .*TCGA-AA-3488.* a second time, first at COAD"):
        read(tmp_path / "raw")


def test_firehose_of_other_values_is_named(tmp_path):
    rows = [("gene_id", ["raw_count"] * 9), *zip(GENES, layouts.linear(), strict=True)]
    layouts.table(tmp_path / "raw/BRCA.uncv2.data.txt", rows, ["Hybridization REF", *COLUMNS])
    with pytest.raises(UserError, match="BRCA.uncv2.data.txt: not Firehose's table RSEM_genes_normalized"):
        read(tmp_path / "raw")


def cohorts(root, values, shift=0.001):
    """survpath's folders: samples × genes, patients' barcodes, log2(x + 0.001)."""
    for cohort in ("acc", "brca", "coad", "read"):
        chosen = [(ALIQUOTS.index(name), name) for name in ALIQUOTS if PATIENTS[name[:12]] == cohort.upper()]
        rows = [(name[:12], np.log2(values[:, index + 1] + shift)) for index, name in chosen]
        symbols = [gene.split("|")[0] + ("" if gene != GENES[3] else "B") for gene in GENES[1:]]
        rows = [(name, row[1:]) for name, row in rows]
        layouts.table(root / cohort / "rna_clean.csv", rows, ["", *symbols], ",", number="{:.7f}".format)
    clinical = root / "clinical_data/tcga_coadread_clinical.csv"
    clinical.parent.mkdir(exist_ok=True)
    clinical.write_text(",case_id,stage,subtype,grade\n0,TCGA-AG-3574,N/A,READ,N/A\n1,P-1,N/A,READ,N/A\n")


def test_cohorts_in_folders(tmp_path):
    values = layouts.linear()
    values[2, 3] = 0
    cohorts(tmp_path / "raw", values)
    found = read(tmp_path / "raw")
    assert found.notes["layout"] == "cohort_tables" and found.notes["scale"]["used"] == "log2p0.001"
    assert found.ids == found.patients == tuple(sorted(PATIENTS))
    assert found.labels == tuple(PATIENTS[name] for name in found.ids)
    order = [COLUMNS.index(f"{name}-01A-11R-A29S-07") for name in found.ids]
    np.testing.assert_allclose(found.values, np.log2(values[1:, order].T + 0.001), atol=2e-6)
    assert found.values.min() == pytest.approx(np.log2(0.001), abs=1e-6)  # nothing was clipped
    assert found.problems == []


def test_cohorts_in_the_names_of_files(tmp_path):
    cohorts(tmp_path / "old", layouts.linear())
    whole = read(tmp_path / "old")
    for path in (tmp_path / "old").glob("*/rna_clean.csv"):
        target = tmp_path / "new" / f"TCGA-{path.parent.name.upper()}.log2.csv"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    found = read(tmp_path / "new")
    assert found.labels == whole.labels and found.notes["layout"] == "cohort_tables"
    assert np.array_equal(found.values, whole.values)


def test_folders_of_any_names(tmp_path):
    cohorts(tmp_path / "raw", layouts.linear())
    for number, path in enumerate(sorted((tmp_path / "raw").glob("*/rna_clean.csv"))):
        path.parent.rename(path.parent.with_name(f"batch {number}"))
    assert set(read(tmp_path / "raw").labels) == {f"batch {number}" for number in range(4)}
    layouts.two_columns(tmp_path / "raw")
    found = read(tmp_path / "raw")
    assert found.labels == tuple(PATIENTS[name] for name in found.ids)
    assert found.notes["layout"] == "tables_in_folders"


def test_tables_about_genes_are_no_expression(tmp_path):
    layouts.pancanatlas(tmp_path / "raw", layouts.linear())
    layouts.two_columns(tmp_path / "raw")
    (tmp_path / "raw/positions.csv").write_text("gene,chromosome,start,strand\nTP53,17,7661779,-\nA1BG,19,58345178,-\n")
    (tmp_path / "raw/programmes.csv").write_text("gene,type\nTP53,BRCA\nA1BG,COAD\n")
    found = read(tmp_path / "raw")
    assert found.notes["layout"] == "pancanatlas" and found.notes["labels"]["file"] == "labels.csv"


def test_cohorts_with_a_named_file_of_labels(tmp_path):
    cohorts(tmp_path / "raw", layouts.linear())
    layouts.two_columns(tmp_path / "raw", "mine.csv", pairs={name: "late" for name in PATIENTS})
    assert set(read(tmp_path / "raw").labels) == {"ACC", "BRCA", "COAD", "READ"}
    assert set(read(tmp_path / "raw", labels="mine.csv").labels) == {"late"}


def test_cohorts_with_other_genes_keep_what_they_share(tmp_path):
    cohorts(tmp_path / "raw", layouts.linear())
    path = tmp_path / "raw/brca/rna_clean.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    swapped = [[row[0], row[6], *row[2:6], "OTHER" if row is lines[0] else row[1]] for row in lines]
    path.write_text("\n".join(",".join(row) for row in swapped))
    found = read(tmp_path / "raw")
    full = ("A1BG", "SLC35E2", "SLC35E2B", "TP53", "GATA3", "KRT5")
    assert found.genes == full[1:]
    reasons = dict(found.problems)
    assert (
        "1 genes are not in all tables" in reasons["brca/rna_clean.csv"] and "(OTHER)" in reasons["brca/rna_clean.csv"]
    )
    row = found.ids.index("TCGA-3C-AALI")
    line = next(row for row in lines if row[0] == "TCGA-3C-AALI")
    np.testing.assert_allclose(found.values[row], np.array(line[2:], np.float32))


def test_cognoma(tmp_path):
    values = layouts.linear()
    entrez = [gene.split("|")[1] for gene in GENES]
    rows = [(name[:15], np.log2(values[:, index] + 1)) for index, name in enumerate(COLUMNS)]
    layouts.table(tmp_path / "raw/expression-matrix.tsv", rows, ["sample_id", *entrez], number="{:.9f}".format)
    (tmp_path / "raw/expression-genes.tsv").write_text(
        "entrez_gene_id\tsymbol\tgene_type\tmean_expression\n"
        + "".join(f"{gene.split('|')[1]}\t{gene.split('|')[0]}\tcoding\t6.5\n" for gene in GENES[1:])
    )
    (tmp_path / "raw/samples.tsv").write_text(
        "sample_id\tpatient_id\tacronym\tage\n"
        + "".join(f"{name[:15]}\t{name[:12]}\t{PATIENTS[name[:12]]}\t60\n" for name in COLUMNS)
    )
    found = read(tmp_path / "raw")
    short = [name[:15] for name in COLUMNS]
    check(found, values, sorted(short[:-1]), short)
    assert found.genes == ("100130426", *NAMES[1:])
    assert found.notes["layout"] == "cognoma" and found.notes["labels"]["kind"] == "cognoma samples"


@pytest.mark.parametrize("mangled", [False, True])
def test_big_table_of_the_study(tmp_path, mangled):
    values = layouts.linear(num_samples=6)
    codes = ["BRCA", "UCES", "BRCA", "ACC", "UCES", "BRCA"]
    header = ["BRCA", "UCES", "BRCA.1", "ACC", "UCES.1", "BRCA.2"] if mangled else codes
    layouts.table(tmp_path / "raw/big_table.csv", zip(NAMES, values, strict=True), ["gene_id", *header], ",")
    found = read(tmp_path / "raw")
    ids = ["BRCA-0001", "UCEC-0001", "BRCA-0002", "ACC-0001", "UCEC-0002", "BRCA-0003"]
    assert found.ids == tuple(sorted(ids)) == found.patients
    assert found.labels == tuple(name[:-5] for name in found.ids)
    np.testing.assert_allclose(found.values, expected(values, sorted(ids), ids), atol=2e-6)
    assert found.genes == NAMES and found.notes["layout"] == "class_header"


@pytest.mark.parametrize("genes_in_rows", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("dialect", ["plain", "crlf", "quoted", "no last end", "bom", "gz", "r", "zip"])
def test_own_tables(tmp_path, genes_in_rows, delimiter, dialect):
    values = layouts.linear(5, 7)
    ids, genes = [f"s {i}" for i in range(7)], [f"gene_{i}" for i in range(5)]
    rows = zip(genes, values, strict=True) if genes_in_rows else zip(ids, values.T, strict=True)
    header = ids if genes_in_rows else genes
    options = {
        "crlf": {"end": "\r\n"},
        "quoted": {"quote": True},
        "no last end": {"last": False},
        "bom": {"prefix": b"\xef\xbb\xbf"},
    }
    path = tmp_path / "raw/expression.csv"
    layouts.table(path, rows, header if dialect == "r" else ["", *header], delimiter, **options.get(dialect, {}))
    layouts.two_columns(tmp_path / "raw", pairs={name: "ab"[i % 2] for i, name in enumerate(ids)})
    root = tmp_path / "raw"
    if dialect == "gz":
        (root / "expression.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    if dialect == "zip":
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in root.iterdir():
                archive.write(file, f"deeper/{file.name}")
        root = tmp_path / "raw.zip"
    found = read(root)
    assert found.ids == found.patients == tuple(ids) and found.genes == tuple(genes)
    assert found.labels == tuple("ab"[i % 2] for i in range(7))
    np.testing.assert_allclose(found.values, expected(values, ids, ids), atol=2e-6)
    assert found.problems == []


@pytest.mark.parametrize("genes_in_rows", [False, True])
def test_parquet(tmp_path, genes_in_rows):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    values = layouts.linear()
    values[2, 5] = np.nan
    (tmp_path / "raw").mkdir()
    frame = pandas.DataFrame(values, GENES, COLUMNS)
    frame = frame if genes_in_rows else frame.T
    frame.to_parquet(tmp_path / "raw/table.parquet")
    layouts.two_columns(tmp_path / "raw")
    found = read(tmp_path / "raw")
    check(found, np.nan_to_num(values))
    assert found.genes == NAMES and found.notes["missing"]["values found"] == 1
    text = layouts.pancanatlas(tmp_path / "text", values)
    layouts.two_columns(text.parent)
    assert np.array_equal(read(text.parent).values, found.values)


def test_parquet_without_pyarrow_or_with_texts(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (tmp_path / "raw").mkdir()
    layouts.two_columns(tmp_path / "raw")
    frame = pandas.DataFrame({"sample": ["a", "b"], "x": [1.0, 2.0], "stage": ["I", "II"]})
    frame.to_parquet(tmp_path / "raw/table.parquet")
    with pytest.raises(UserError, match="2 columns of texts .sample, stage."):
        read(tmp_path / "raw")
    (tmp_path / "raw/table.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="no Parquet file that can be read"):
        read(tmp_path / "raw")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read(tmp_path / "raw")
