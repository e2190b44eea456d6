"""Bad tables for `input_pipeline.prepare`: which, and what must happen? The numbers are those of `bad_data`."""

import shutil

from tests.campaign.bad_cases import Case, Place
from tests.campaign.bad_data import PREPARE, prepare
from tests.input_pipeline import picture_files as pictures

CASES: list[Case] = []


def case(name: str, **options):
    """Registers a function that writes the input and gives the arguments."""

    def decorate(build):
        CASES.append(Case(name, PREPARE, build, **options))
        return build

    return decorate


TABLES = {
    "20 caption that is not UTF-8": (b"path,label,caption\n0.png,a,caf\xe9\n", (), True),
    "21 caption that is a formula": (b"path,label,caption\n0.png,a,=cmd|' /C calc'!A0\n", ("caption=caption",), None),
    "22 header missing": (b"0.png,a\n1.png,b\n", (), True),
    "22 column twice": (b"path,label,label\n0.png,a,b\n", (), True),
    "22 byte order mark": (b"\xef\xbb\xbfpath,label\n0.png,a\n", (), None),
    "a cell of 40 MB": (b"path,label\n0.png," + b"a" * 40_000_000 + b"\n", (), True),
    "quotes that never end": (b'path,label\n0.png,"a\n1.png,b\n', (), True),
    "a NUL": (b"path,label\n0.png,a\0b\n", (), True),
    "a picture that does not exist": (b"path,label\nnowhere.png,a\n", (), None),
    "a path that leads outside": (b"path,label\n../../../etc/passwd,a\n", (), None),
    "UTF-16": ("path,label\n0.png,a\n".encode("utf-16"), (), True),
    "empty": (b"", (), True),
}


def _table(name: str, text: bytes, options: tuple[str, ...], refused: bool | None) -> None:
    def build(place: Place) -> list[str]:
        data = pictures.class_folders(place.given / "raw", 12)
        rows = "".join(f"{path},{path.split('/')[0]}{',' * bool(options)}\n" for path in data)
        shutil.copy(place.given / "raw" / "cat" / "00.png", place.given / "raw" / "0.png")
        whole = text + rows.encode() if refused is None else text
        (place.given / "raw" / "table.csv").write_bytes(whole)
        return prepare(place, "table", *(("--set", *options) if options else ()))

    # A row that cannot be used may be refused or listed.
    CASES.append(Case(f"table: {name}", PREPARE, build, refused=refused))


for _name, (_text, _options, _refused) in TABLES.items():
    _table(_name, _text, _options, _refused)


@case("23 labels out of range, as fractions, negative", words=("line 3",))
def _(place):
    return _hpa(place, "0,1\n1,28\n2,-1\n3,1.5\n")


@case("23 a negative label", words=("line 2",))
def _(place):
    return _hpa(place, "0,-1\n1,2\n")


@case("23 a label that is a fraction", words=("line 2",))
def _(place):
    return _hpa(place, "0,1.5\n1,2\n")


def _hpa(place: Place, rows: str) -> list[str]:
    folder = place.given / "raw" / "train" / "train"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(pictures.png(number))
    (place.given / "raw" / "train.csv").write_text("Image,Label\n" + rows)
    return prepare(place, "hpa")


def genes(name: str, expression: str | bytes, phenotypes: str | bytes, words: tuple[str, ...] = ()) -> None:
    """A case of an expression table and its labels."""

    def build(place: Place) -> list[str]:
        folder = place.given / "raw"
        folder.mkdir()
        for file, content in (("expression.tsv", expression), ("phenotypes.tsv", phenotypes)):
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return prepare(place, "cancer_genes")

    CASES.append(Case(f"expression: {name}", PREPARE, build, words=words))


SAMPLES = [f"TCGA-AA-{number:04d}-01" for number in range(12)]
LABELS = "sample\t_primary_disease\n" + "".join(f"{s}\tdisease {i % 2}\n" for i, s in enumerate(SAMPLES))
TABLE = "sample\t" + "\t".join(SAMPLES) + "\n"
TABLE += "".join(f"GENE{g}" + "".join(f"\t{(g * 7 + i) % 5}.5" for i in range(12)) + "\n" for g in range(9))

genes("a cell that is text", TABLE.replace("2.5", "two", 1), LABELS)
genes("a cell that is infinite", TABLE.replace("2.5", "inf", 1), LABELS)
genes("a line that is cut off", TABLE[:-9], LABELS)
genes("UTF-16", TABLE.encode("utf-16"), LABELS)
genes("no labels", TABLE, "")
genes("labels of somebody else", TABLE, LABELS.replace("TCGA-AA", "TCGA-ZZ"))
genes("a NUL", TABLE.replace("2.5", "2\0.5", 1), LABELS)
genes("a truncated gzip named .tsv", b"\x1f\x8b\x08\x00\x00\x00\x00\x00" + bytes(90), LABELS)
