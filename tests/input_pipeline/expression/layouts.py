"""One small study, written in every layout in which expression is downloaded."""

import pathlib
import zipfile

import numpy as np

from input_pipeline import raw
from input_pipeline.expression import reading

GENES = ("?|100130426", "A1BG|1", "SLC35E2|9906", "SLC35E2|728661", "TP53|7157", "GATA3|2625", "KRT5|3852")
NAMES = ("?|100130426", "A1BG", "SLC35E2|9906", "SLC35E2|728661", "TP53", "GATA3", "KRT5")
PATIENTS = {
    "TCGA-OR-A5J1": "ACC",
    "TCGA-OR-A5J2": "ACC",
    "TCGA-3C-AAAU": "BRCA",
    "TCGA-3C-AALI": "BRCA",
    "TCGA-AR-A1AK": "BRCA",
    "TCGA-AA-3488": "COAD",
    "TCGA-AA-3489": "COAD",
    "TCGA-AG-3574": "READ",
}
ALIQUOTS = [f"{patient}-01A-11R-A29S-07" for patient in PATIENTS]
NORMAL = "TCGA-3C-AAAU-11A-11R-A29S-07"
RELAPSE = "TCGA-OR-A5J1-02A-11R-A29S-07"
COLUMNS = [RELAPSE, *ALIQUOTS, NORMAL]


def linear(num_genes=7, num_samples=10, seed=0):
    """RSEM-like values `[genes, samples]` with four decimals, a few of them 0."""
    generator = np.random.default_rng(seed)
    values = np.exp(generator.normal(5, 2, (num_genes, num_samples)))
    values[generator.random(values.shape) < 0.1] = 0
    values[1] += 900  # some value is above every logarithm
    return np.round(values, 4)


def table(path, rows, header, delimiter="\t", end="\n", last=True, prefix=b"", quote=False, number="{:.4f}".format):
    """Writes a header and `(name, values)` rows; NaN as NA, texts as they are."""

    def line(cells):
        return delimiter.join(f'"{cell}"' if quote else cell for cell in cells)

    def text(value):
        return value if isinstance(value, str) else "NA" if np.isnan(value) else number(value)

    lines = [line(header), *(line([name, *map(text, values)]) for name, values in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(prefix + (end.join(lines) + (end if last else "")).encode())
    return path


def pancanatlas(root, values, name="EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv", **options):
    """PanCanAtlas's matrix of `values` `[7, 10]`."""
    return table(root / name, zip(GENES, values, strict=True), ["gene_id", *COLUMNS], **options)


def two_columns(root, name="labels.csv", header="sample,label", pairs=None):
    """A table of ids and labels, by default of patients."""
    pairs = PATIENTS if pairs is None else pairs
    root.mkdir(parents=True, exist_ok=True)
    lines = [header] if header else []
    (root / name).write_text("\n".join([*lines, *(f"{key},{label}" for key, label in pairs.items())]) + "\n")
    return root / name


_SPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def workbook(path, sheets):
    """An .xlsx of `{title: rows}`; texts go to the shared strings, None is left out, "#N/A" is an error cell."""
    shared: list[str] = []
    parts = {}
    for number, rows in enumerate(sheets.values(), 1):
        lines = ""
        for row, cells in enumerate(rows, 1):
            lines += f'<row r="{row}">'
            for column, cell in zip("ABCDEFGH", cells, strict=False):
                if cell == "#N/A":
                    lines += f'<c r="{column}{row}" t="e"><v>#N/A</v></c>'
                elif isinstance(cell, str):
                    lines += f'<c r="{column}{row}" t="s"><v>{len(shared)}</v></c>'
                    shared.append(cell)
                elif cell is not None:
                    lines += f'<c r="{column}{row}"><v>{cell}</v></c>'
            lines += "</row>"
        # Numbered backwards: the order of the parts is not that of the sheets.
        part = f"worksheets/sheet{len(sheets) + 1 - number}.xml"
        parts[part] = f'<worksheet xmlns="{_SPACE}"><sheetData>{lines}</sheetData></worksheet>'
    titles = "".join(f'<sheet name="{title}" r:id="r{i}"/>' for i, title in enumerate(sheets))
    links = "".join(f'<Relationship Id="r{i}" Target="{part}"/>' for i, part in enumerate(parts))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_SPACE}" xmlns:r="{_RELATIONS}"><sheets>{titles}</sheets></workbook>',
        )
        archive.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{links}</Relationships>")
        items = "".join(f"<si><t>{text}</t></si>" for text in shared)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{_SPACE}">{items}</sst>')
        for part, text in parts.items():
            archive.writestr(f"xl/{part}", text)
    return path


def read(root, **options):
    """Reads a folder or .zip, with its scratch folder beside it."""
    scratch = pathlib.Path(root).parent / "scratch"
    scratch.mkdir(exist_ok=True)
    found = reading.read(raw.open_source(root), options, scratch)
    assert not list(scratch.glob("stage-*")) and not (scratch / "table.parquet").exists()
    assert found.values.shape == (len(found.ids), len(found.genes)) and found.values.dtype == np.float32
    assert np.isfinite(found.values).all() and list(found.ids) == sorted(set(found.ids))
    assert len(found.patients) == len(found.labels) == len(found.official_roles) == len(found.ids)
    assert len(set(found.genes)) == len(found.genes)
    return found
