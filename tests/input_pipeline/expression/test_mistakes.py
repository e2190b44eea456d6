"""Is whatever is wrong with a table or its labels named with file, line and column, and never a silent number?"""

import gzip

import numpy as np
import pytest

from input_pipeline import raw
from input_pipeline.cli import UserError
from input_pipeline.expression import parsing
from tests.input_pipeline.expression import layouts
from tests.input_pipeline.expression.layouts import ALIQUOTS, COLUMNS, GENES, PATIENTS, read

NAME = "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv"


@pytest.fixture
def root(tmp_path):
    layouts.pancanatlas(tmp_path / "raw", layouts.linear())
    layouts.two_columns(tmp_path / "raw")
    return tmp_path / "raw"


def change(root, edit, name=NAME):
    """Applies `edit` to the list of the lines (lists of cells) of a table."""
    path = root / name
    lines = [line.split("\t") for line in path.read_text().split("\n")[:-1]]
    edit(lines)
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")


def refused(root, *parts, **options):
    """The sentence that ends the reading, which must hold `parts` in this order."""
    with pytest.raises(UserError) as caught:
        read(root, **options)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text
    position = 0
    for part in parts:
        assert part in text[position:], (part, text)
        position = text.index(part, position) + len(part)


@pytest.mark.parametrize(
    "cell, reason",
    [
        ("12,5", "'12,5' is not a number; write a number with a decimal point"),
        ("abc", "'abc' is not a number"),
        ("1_000", "'1_000' is not a number"),
        ("0x1p3", "'0x1p3' is not a number"),
        ("1 2", "'1 2' is not a number"),
        ("١٢", "'١٢' is not a number"),
        ("", "the cell is empty; write a number, or NA for a missing value"),
        ("  ", "the cell is empty"),
        ("inf", "'inf' is not a finite number"),
        ("-Infinity", "'-Infinity' is not a finite number"),
        ("1e39", "'1e39' is not a finite number"),
        ('"3', "line 6: the quoting is broken"),
    ],
)
@pytest.mark.parametrize("beside_missing", [False, True])
def test_a_cell_that_is_no_number(root, cell, reason, beside_missing):
    def edit(lines):
        lines[5][3] = cell
        if beside_missing:
            lines[5][1] = "NA"

    change(root, edit)
    place = [f"{NAME}, line 6 (gene TP53|7157), column 4 (sample {COLUMNS[2]}): "] if "line" not in reason else [NAME]
    refused(root, *place, reason)


def test_every_way_to_write_a_missing_value(root):
    marks = ["NA", "NaN", "nan", "N/A", "#N/A", "NULL", "null", "-nan"]

    def edit(lines):
        lines[4][1 : 1 + len(marks)] = marks

    change(root, edit)
    assert read(root).notes["missing"]["values found"] == len(marks)


def test_a_line_that_is_cut_off(root):
    change(root, lambda lines: lines.__setitem__(5, lines[5][:4]))
    last = f"3 values where the header has 10 (the last is that of sample {COLUMNS[2]}): the line is cut off"
    refused(root, f"{NAME}, line 6 (gene TP53|7157): {last}")


def test_a_table_whose_end_is_missing(root):
    path = root / NAME
    path.write_bytes(path.read_bytes()[:-50])
    refused(root, f"{NAME}, line 8 (gene KRT5|3852): ", "the line is cut off, so download the file again")


def test_a_line_that_is_too_long(root):
    change(root, lambda lines: lines[3].append("7.5"))
    refused(root, f"{NAME}, line 4 (gene SLC35E2|9906): 11 values where the header has 10", "remove what is too much")


def test_delimiters_at_the_ends_of_lines_are_no_shifted_header(root):
    change(root, lambda lines: [line.append("") for line in lines[1:]])
    refused(root, f"{NAME}, line 2 (gene ?|100130426): 11 values where the header has 10")
    change(root, lambda lines: lines[0].append(""))
    refused(root, f"{NAME}, line 1, column 12: the column has no name")


def test_a_table_that_ends_in_its_gzip(root):
    data = gzip.compress((root / NAME).read_bytes())
    (root / NAME).unlink()
    (root / f"{NAME}.gz").write_bytes(data[:-300])
    refused(root, f"{NAME}.gz", "ends before its content does, as an interrupted download would", "download it again")
    (root / f"{NAME}.gz").write_bytes(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    refused(root, f"{NAME}.gz", "damaged")


def test_names_that_are_missing_or_no_text(root):
    change(root, lambda lines: lines[3].__setitem__(0, ""))
    refused(root, f"{NAME}, line 4, column 1: the gene has no name")
    path = root / NAME
    path.write_bytes(path.read_bytes().replace(b"GATA3", b"GATA\xff"))
    path.write_bytes(path.read_bytes().replace(b"\n\t", b"\nX|5\t", 1))
    refused(root, f"{NAME}, line 7, column 1: not UTF-8 text; save the table again as UTF-8")
    path.write_bytes(path.read_bytes().replace(b"GATA\xff", b"GATA\x07"))
    refused(root, f"{NAME}, line 7, column 1: the name GATA\\x07|2625 holds control characters")


def test_utf_16_is_named(root):
    path = root / NAME
    path.write_bytes(path.read_text().encode("utf-16"))
    refused(root, "no table of gene expression", NAME, "save it again")


def test_line_ends_of_old_macs_are_named(root):
    path = root / NAME
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    refused(root, "no table of gene expression", NAME, "line 1: the name", "control characters")


def test_damage_anywhere_is_a_sentence_or_harmless(root):
    generator = np.random.default_rng(0)
    path = root / NAME
    whole = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            start = int(generator.integers(0, len(data)))
            if generator.random() < 0.5:
                data[start : start + int(generator.integers(1, 40))] = b""
            else:
                data[start] = int(generator.choice([0, 9, 10, 13, 34, 44, 45, 46, 48, 95, 110, 124, 255]))
        path.write_bytes(data)
        try:
            assert len(read(root).ids) > 0
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 3


def test_genes_that_occur_twice(root):
    change(root, lambda lines: lines[6].__setitem__(0, "ANOTHER|7157"))
    refused(root, f"{NAME}, line 7: the gene ANOTHER|7157 occurs a second time, first at {NAME}, line 6; remove one")
    change(root, lambda lines: (lines[6].__setitem__(0, "SAME"), lines[7].__setitem__(0, "SAME")))
    found = read(root)
    assert found.genes[-2:] == ("SAME", "SAME#2")
    assert f"SAME#2 ({NAME}, line 8)" in dict(found.problems)


def test_samples_that_occur_twice(root):
    change(root, lambda lines: lines[0].__setitem__(5, ALIQUOTS[0]))
    refused(
        root, f"{NAME}, line 1, column 6: the sample {ALIQUOTS[0]} occurs a second time", f"{NAME}, line 1, column 3"
    )


def test_no_labels(root):
    (root / "labels.csv").unlink()
    refused(root, "has no file of labels beside", NAME, "TCGA-CDR-SupplementalTableS1.xlsx", "--set labels=NAME")
    refused(root, "--set labels=gone.csv", "no file of labels", labels="gone.csv")


def test_labels_that_know_only_some(root):
    pairs = {key: label for key, label in PATIENTS.items() if label != "COAD"}
    layouts.two_columns(root, pairs=pairs)
    found = read(root)
    for name in ("TCGA-AA-3488", "TCGA-AA-3489"):
        index = found.ids.index(f"{name}-01A-11R-A29S-07")
        assert (found.labels[index], found.official_roles[index]) == ("", "unlabelled")
        place = f"{found.ids[index]} ({NAME}, line 1, column {COLUMNS.index(found.ids[index]) + 2})"
        assert dict(found.problems)[place] == "labels.csv does not know it; kept without a label"
    assert found.notes["samples"]["without label"] == 2 and found.labels.count("") == 2


def test_labels_of_somebody_else(root):
    layouts.two_columns(root, pairs={"TCGA-ZZ-0001": "ACC", "TCGA-ZZ-0002": "BRCA"})
    refused(root, "labels.csv has a label for none of the 9 samples", "TCGA-ZZ-0001", COLUMNS[0], "--set labels=NAME")


def test_labels_that_contradict_each_other(root):
    with (root / "labels.csv").open("a") as file:
        file.write("tcga-or-a5j1,BRCA\n")
    refused(root, "labels.csv, line 10: TCGA-OR-A5J1 is BRCA here and ACC on line 2")


def test_a_damaged_file_of_labels(root):
    with (root / "labels.csv").open("a") as file:
        file.write("TCGA-XX-0001,BRCA,more\n")
    refused(root, "labels.csv, line 10: 3 cells where the header has 2")
    (root / "labels.csv").unlink()
    (root / "TCGA-CDR.xlsx").write_bytes(b"PK no workbook")
    refused(root, "has no file of labels")
    refused(root, "TCGA-CDR.xlsx is no Excel workbook", labels="TCGA-CDR.xlsx")


def test_tables_that_cannot_be_told_apart(root):
    layouts.pancanatlas(root, layouts.linear(seed=3), name="second.tsv")
    refused(root, "several tables could be meant", NAME, "second.tsv", "--set table=NAME")
    assert read(root, table="second.tsv").notes["tables"] == ["second.tsv"]
    refused(root, "--set table=third.tsv names no table", NAME, table="third.tsv")
    layouts.two_columns(root, "others.csv")
    refused(root, "several files could hold the labels", "--set labels=NAME", table="second.tsv")
    assert read(root, table="second.tsv", labels="others.csv").notes["labels"]["file"] == "others.csv"


def test_rows_and_columns_that_cannot_be_told_apart(tmp_path):
    rows = [(f"a{i}", [40.5, 2.0, 3.0]) for i in range(4)]
    path = layouts.table(tmp_path / "raw/table.csv", rows, ["", "b0", "b1", "b2"], ",")
    refused(tmp_path / "raw", "table.csv, line 1: nothing tells whether rows are genes or samples")
    layouts.two_columns(path.parent, pairs={"b0": "x", "b2": "y"})
    found = read(path.parent)
    assert found.ids == ("b0", "b1", "b2") and found.genes == ("a0", "a1", "a2", "a3")
    assert found.labels == ("x", "", "y")


def test_nothing_to_read(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/readme.txt").write_text("Hello, this is\nnot a table\n")
    refused(tmp_path / "raw", "holds no table of gene expression")
    (tmp_path / "raw/table.tsv").write_text("gene_id\tTCGA-OR-A5J1-01\tTCGA-OR-A5J2-01\n")
    layouts.two_columns(tmp_path / "raw")
    refused(tmp_path / "raw", "holds no table of gene expression")
    refused(tmp_path / "raw", "table.tsv has a header but no rows", table="table.tsv")


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"scales": "linear"}, ["the study cancer_genes has no option 'scales'", "min_variance"]),
        ({"scale": "log10"}, ["--set scale=log10 is unknown", "auto, linear, log2p1, log2p0.001, zscore"]),
        ({"samples": ""}, ["--set samples= is unknown"]),
        ({"genes": ""}, ["--set genes= has no value"]),
        ({"genes": "gone.txt"}, ["the list of genes gone.txt cannot be read"]),
        ({"min_variance": "-1"}, ["min_variance"]),
        ({"min_variance": "nan"}, ["--set min_variance=nan is not a number"]),
        ({"min_mean": "much"}, ["--set min_mean=much is not a number"]),
        ({"top_genes": "0"}, ["top_genes must be above 0"]),
        ({"top_genes": "1.5"}, ["--set top_genes=1.5 is not a whole number above 0"]),
        ({"top_genes": "1_0"}, ["--set top_genes=1_0 is not a whole number"]),
        ({"min_mean": "99"}, ["no gene is left after min_mean=99, of 7"]),
        ({"scale": "log2p1"}, ["has values up to ", "not on the scale log2p1", "scale=linear"]),
    ],
)
def test_options(root, options, parts):
    refused(root, *parts, **options)


@pytest.mark.parametrize("block_bytes", [1, 400, 2**24])
def test_blocks_do_not_change_the_result(root, block_bytes):
    source = raw.open_source(root)
    values = np.loadtxt(root / NAME, str, delimiter="\t")[1:, 1:].astype(np.float32)
    table = parsing.Table(NAME, "\t", "gene_id", tuple(COLUMNS), True)
    keep = np.array([1, 4, 9])
    found = [block for block, _ in parsing.blocks(source, table, keep, block_bytes)]
    assert (len(found) == 7) == (block_bytes == 1) and (len(found) == 1) == (block_bytes == 2**24)
    assert [name for block in found for name in block.names] == list(GENES)
    assert [line for block in found for line in block.lines] == list(range(2, 9))
    np.testing.assert_array_equal(np.concatenate([block.values for block in found]), values[:, keep])


def test_numbers_are_rounded_correctly():
    texts = [
        "0.1",
        "1e-45",
        "16777217",
        "3.4028234e38",
        "-0",
        "  7.25 ",
        "1E3",
        "+2.5",
        ".5",
        "5.",
        "123456789.123456789",
    ]
    table = parsing.Table("t", "\t", "", tuple("abcdefghijk"), True)
    name, values = parsing.parse_line(table, 2, "\t".join(["g", *texts]).encode())
    assert name == "g" and values.dtype == np.float32
    assert values.tolist() == [float(np.float32(text.strip())) for text in texts]


def test_a_line_without_end_is_refused(root, monkeypatch):
    monkeypatch.setattr(parsing, "MAX_LINE_BYTES", 500)
    with (root / NAME).open("a") as file:
        file.write("x" * 700)
    refused(root, f"{NAME}, line 9: longer than 0 MiB")
