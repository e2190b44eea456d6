"""Does each public file of labels give every sample the label that it has there, on whatever barcode they meet?"""

import gzip

import pytest

from input_pipeline.cli import UserError
from input_pipeline.expression import barcodes, workbook
from tests.input_pipeline.expression import layouts
from tests.input_pipeline.expression.layouts import ALIQUOTS, COLUMNS, PATIENTS, read

REFUSED = {"TCGA-AG-3574"}


def test_the_parts_of_a_barcode():
    full = "TCGA-OR-A5J1-01A-11R-A29S-07"
    assert barcodes.patient(full) == "TCGA-OR-A5J1" and barcodes.sample(full) == "TCGA-OR-A5J1-01"
    assert barcodes.join_keys(full) == (full, "TCGA-OR-A5J1-01A", "TCGA-OR-A5J1-01", "TCGA-OR-A5J1")
    assert barcodes.join_keys("TCGA-OR-A5J1-01") == ("TCGA-OR-A5J1-01", "TCGA-OR-A5J1")
    assert barcodes.canonical("tcga.or.a5j1.01") == "TCGA-OR-A5J1-01"
    for name in ("GTEX-1117F-0226", "TCGA-OR", "TCGA-OR-A5J1-1", "TCGA-OR-A5J1-01-", "", "TCGA-OR-A5J1\n"):
        assert barcodes.canonical(name) in (None, "TCGA-OR-A5J1" if name.endswith("\n") else None)
        assert barcodes.type_code("GTEX-1117F") is None
    codes = {code: f"TCGA-OR-A5J1-{code:02d}A" for code in barcodes.SAMPLE_TYPES}
    assert {code: barcodes.type_code(name) for code, name in codes.items()} == {code: code for code in codes}
    assert [code for code, name in codes.items() if barcodes.is_normal(name)] == [10, 11, 12, 13, 14]
    assert [code for code, name in codes.items() if barcodes.is_control(name)] == [20, 50, 60, 61]
    assert barcodes.names_one_aliquot(full) and not barcodes.names_one_aliquot("TCGA-OR-A5J1-01A")
    assert len(barcodes.COHORTS) == 33


@pytest.mark.parametrize(
    "label, name",
    [
        ("uces", "UCEC"),
        ("brca", "BRCA"),
        ("Breast Invasive Carcinoma", "BRCA"),
        ("kidney clear cell carcinoma", "KIRC"),
        ("diffuse large B-cell lymphoma", "DLBC"),
        ("coadread", "COADREAD"),
        (" Basal ", "Basal"),
    ],
)
def test_class_names(label, name):
    assert barcodes.class_name(label) == name


@pytest.fixture
def root(tmp_path):
    layouts.pancanatlas(tmp_path / "raw", layouts.linear())
    return tmp_path / "raw"


def labels_by_id(found):
    return dict(zip(found.ids, found.labels, strict=True))


@pytest.mark.parametrize("length", [12, 15, 16, 28])
@pytest.mark.parametrize("header", ["sample,label", "whatever,else", ",Class", "", "barcode,note,tumor_type"])
def test_tables_of_ids_and_labels(root, length, header):
    pairs = {name[:length]: PATIENTS[name[:12]] for name in COLUMNS}
    if header.count(",") == 2:
        pairs = {key: f"12,{label}" for key, label in pairs.items()}
    layouts.two_columns(root, header=header, pairs=pairs)
    assert labels_by_id(read(root)) == {name: PATIENTS[name[:12]] for name in COLUMNS[:-1]}


def test_a_label_of_one_sample_is_not_that_of_another(root):
    layouts.two_columns(root, pairs={name[:15]: "primary" for name in ALIQUOTS})
    found = labels_by_id(read(root))
    assert found.pop(COLUMNS[0]) == "" and set(found.values()) == {"primary"}


def test_shorter_ids_than_those_of_the_labels(tmp_path):
    patients = [*PATIENTS]
    rows = [(name, [70.0, 1.5, 2.5]) for name in patients]
    layouts.table(tmp_path / "raw/t.csv", rows, ["", "A", "B", "C"], ",")
    pairs = {f"{name}-01": PATIENTS[name] for name in patients}
    layouts.two_columns(tmp_path / "raw", pairs=pairs)
    assert labels_by_id(read(tmp_path / "raw")) == PATIENTS
    layouts.two_columns(tmp_path / "raw", pairs=pairs | {f"{patients[0]}-02": "LAML"})
    found = read(tmp_path / "raw")
    assert labels_by_id(found)[patients[0]] == ""
    assert f"several labels for {patients[0]} (ACC, LAML)" in dict(found.problems)[f"{patients[0]} (t.csv, line 2)"]


def test_merged_sample_annotations(root):
    header = "patient_barcode\taliquot_barcode\tcancer type\tplatform\tsample_annotation\tDo_not_use\n"
    other = "TCGA-3C-AALI-01A-12D-A41E-01"  # the table's own aliquot of this patient is not in the file
    lines = [(name if name[:12] != other[:12] else other, name[:12]) for name in ALIQUOTS]
    (root / "merged_sample_quality_annotations.tsv").write_text(
        header
        + "".join(
            f'{patient}\t{name}\t{PATIENTS[patient]}\tIlluminaHiSeq_RNASeqV2\t"said {number}\t{patient in REFUSED}\n'
            for number, (name, patient) in enumerate(lines)
        ),
        encoding="cp1252",
    )
    found = read(root)
    assert found.notes["labels"]["kind"] == "merged sample annotations"
    assert not any(name.startswith("TCGA-AG-3574") for name in found.ids)
    [(place, reason)] = [problem for problem in found.problems if problem[0].startswith("TCGA-AG-3574")]
    assert reason == "marked Do_not_use in merged_sample_quality_annotations.tsv" and place.endswith("tsv, line 9)")
    assert labels_by_id(found) == {name: PATIENTS[name[:12]] for name in found.ids}
    assert COLUMNS[0] in found.ids  # the relapse takes its type from the patient's other sample


def test_the_phenotypes_of_xena(root):
    disease = {"ACC": "adrenocortical cancer", "READ": "rectum adenocarcinoma"}
    lines = [
        f"{name[:15]}\t1\tPrimary Tumor\t{disease.get(PATIENTS[name[:12]]) or barcodes.COHORTS[PATIENTS[name[:12]]]}\n"
        for name in COLUMNS
    ]
    text = "sample\tsample_type_id\tsample_type\t_primary_disease\n" + "".join(lines)
    (root / "TCGA_phenotype_denseDataOnlyDownload.tsv.gz").write_bytes(gzip.compress(text.encode()))
    found = read(root, samples="all")
    assert found.notes["labels"]["kind"] == "Xena phenotype"
    assert labels_by_id(found) == {name: PATIENTS[name[:12]] for name in COLUMNS}


def test_a_file_in_the_windows_code_page(root):
    lines = [f"{name},{label},Sã\n" for name, label in PATIENTS.items()]
    (root / "labels.csv").write_text("patient,label,note\n" + "".join(lines), encoding="cp1252")
    found = read(root)
    assert set(found.labels) == set(PATIENTS.values())
    assert found.notes["labels"]["encoding"] == "Windows code page 1252"


def test_roles_and_groups(tmp_path):
    rows = [(f"s{i}", [70.0 + i, 1.5, 2.5]) for i in range(4)]
    layouts.table(tmp_path / "raw/t.csv", rows, ["", "A", "B", "C"], ",")
    path = tmp_path / "raw/labels.csv"
    path.write_text("sample,label,split,patient\ns0,x,Train,p\ns1,y,val,p\ns2,x,,q\ns3,,test,\n")
    found = read(tmp_path / "raw")
    assert found.official_roles == ("train", "validation", None, "unlabelled")
    assert found.patients == ("p", "p", "q", "s3")
    reason = "labels.csv has a line but no label for it; kept without a label"
    assert ("s3 (t.csv, line 5; labels.csv, line 5)", reason) in found.problems
    path.write_text("sample,label,split\ns0,x,later\n")
    with pytest.raises(UserError, match="labels.csv, line 2: 'later' is no role"):
        read(tmp_path / "raw")


def test_the_sheet_of_a_workbook(tmp_path):
    rows = [["a", None, "b"], [], [1.5, "x", None, "#N/A"], ["  y ", None, 0]]
    path = layouts.workbook(tmp_path / "book.xlsx", {"first": [["z"]], "TCGA & more".replace("&", "and"): rows})
    book = workbook.Workbook(path.read_bytes(), "book.xlsx")
    assert book.sheets == ("first", "TCGA and more")
    expected = [(1, ["a", "", "b"]), (3, ["1.5", "x", "", "#N/A"]), (4, ["y", "", "0"])]
    assert book.rows("TCGA and more") == expected and book.rows("first") == [(1, ["z"])]
    openpyxl = pytest.importorskip("openpyxl")
    assert [[cell for cell in row] for row in openpyxl.load_workbook(path)["first"].values] == [["z"]]


@pytest.mark.parametrize("damage", ["cut", "doctype", "order"])
def test_damaged_workbooks(tmp_path, damage):
    path = layouts.workbook(tmp_path / "book.xlsx", {"first": [["bcr_patient_barcode", "type"], ["p", "q"]]})
    data = path.read_bytes()
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        import zipfile

        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        sheet = "xl/worksheets/sheet1.xml"
        parts[sheet] = parts[sheet].replace(b'r="B1"', b'r="A1"') if damage == "order" else parts[sheet]
        parts[sheet] = b"<!DOCTYPE x>" + parts[sheet] if damage == "doctype" else parts[sheet]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        data = path.read_bytes()
    with pytest.raises(UserError, match="book.xlsx is no Excel workbook that can be read .*; save the sheet as CSV"):
        workbook.Workbook(data, "book.xlsx").rows("first")
