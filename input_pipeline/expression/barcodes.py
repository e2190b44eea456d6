"""What does a TCGA barcode say: which patient, which sample, tumour or normal tissue, and which tumour type is meant?

A barcode grows from the left (Genomic Data Commons, "TCGA Barcode"): `TCGA-OR-A5J1` is a patient (12 characters),
`TCGA-OR-A5J1-01` a sample of type 01 (15), `TCGA-OR-A5J1-01A-11R-A29S-07` an aliquot that was measured (28). R writes
the dashes as points; both are understood, in either case.
"""

import re

_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?:-(\d{2})(?:[A-Z](?:-[A-Z0-9-]+)?)?)?")
_ALIQUOT_LENGTH = 20
"""Barcodes at least this long name one portion or aliquot; shorter ones may stand for several."""

SAMPLE_TYPES = {
    1: "primary solid tumour",
    2: "recurrent solid tumour",
    3: "primary blood-derived cancer, peripheral blood",
    4: "recurrent blood-derived cancer, bone marrow",
    5: "additional new primary",
    6: "metastatic",
    7: "additional metastatic",
    8: "human tumour original cells",
    9: "primary blood-derived cancer, bone marrow",
    10: "blood-derived normal",
    11: "solid tissue normal",
    12: "buccal cell normal",
    13: "EBV-immortalised normal",
    14: "bone marrow normal",
    20: "control analyte",
    40: "recurrent blood-derived cancer, peripheral blood",
    50: "cell line",
    60: "primary xenograft tissue",
    61: "cell-line-derived xenograft tissue",
}
"""Characters 14 and 15 of a barcode (Genomic Data Commons, "Sample Type Codes")."""

COHORTS = {
    "ACC": "adrenocortical carcinoma",
    "BLCA": "bladder urothelial carcinoma",
    "BRCA": "breast invasive carcinoma",
    "CESC": "cervical squamous cell carcinoma and endocervical adenocarcinoma",
    "CHOL": "cholangiocarcinoma",
    "COAD": "colon adenocarcinoma",
    "DLBC": "lymphoid neoplasm diffuse large b-cell lymphoma",
    "ESCA": "esophageal carcinoma",
    "GBM": "glioblastoma multiforme",
    "HNSC": "head and neck squamous cell carcinoma",
    "KICH": "kidney chromophobe",
    "KIRC": "kidney renal clear cell carcinoma",
    "KIRP": "kidney renal papillary cell carcinoma",
    "LAML": "acute myeloid leukemia",
    "LGG": "brain lower grade glioma",
    "LIHC": "liver hepatocellular carcinoma",
    "LUAD": "lung adenocarcinoma",
    "LUSC": "lung squamous cell carcinoma",
    "MESO": "mesothelioma",
    "OV": "ovarian serous cystadenocarcinoma",
    "PAAD": "pancreatic adenocarcinoma",
    "PCPG": "pheochromocytoma and paraganglioma",
    "PRAD": "prostate adenocarcinoma",
    "READ": "rectum adenocarcinoma",
    "SARC": "sarcoma",
    "SKCM": "skin cutaneous melanoma",
    "STAD": "stomach adenocarcinoma",
    "TGCT": "testicular germ cell tumors",
    "THCA": "thyroid carcinoma",
    "THYM": "thymoma",
    "UCEC": "uterine corpus endometrial carcinoma",
    "UCS": "uterine carcinosarcoma",
    "UVM": "uveal melanoma",
}
"""The 33 tumour types by code, with the study names of the Genomic Data Commons in lower case."""

UNIONS = {
    "COADREAD": ("COAD", "READ"),
    "GBMLGG": ("GBM", "LGG"),
    "KIPAN": ("KICH", "KIRC", "KIRP"),
    "STES": ("ESCA", "STAD"),
}
"""Cohorts of Firehose that repeat the samples of others."""

MISSPELT = {"UCES": "UCEC"}
"""Codes as the study's `big_table.csv` writes them."""

_DISEASE_CODES = {
    **{disease: code for code, disease in COHORTS.items()},
    "cervical & endocervical cancer": "CESC",  # these as the phenotype files of Xena write them
    "diffuse large b-cell lymphoma": "DLBC",
    "head & neck squamous cell carcinoma": "HNSC",
    "kidney clear cell carcinoma": "KIRC",
    "kidney papillary cell carcinoma": "KIRP",
    "pheochromocytoma & paraganglioma": "PCPG",
    "testicular germ cell tumor": "TGCT",
    "uterine corpus endometrioid carcinoma": "UCEC",
    "adrenocortical cancer": "ACC",
}


def canonical(name: str) -> str | None:
    """The barcode in capitals with dashes, or None when the name is no TCGA barcode."""
    text = name.strip().upper().replace(".", "-")
    return text if _BARCODE.fullmatch(text) else None


def join_keys(name: str) -> tuple[str, ...]:
    """Under which names a sample may be known elsewhere: the name, its vial (16), sample (15) and patient (12)."""
    barcode = canonical(name)
    if barcode is None:
        return (name.strip(),)
    return tuple(dict.fromkeys([barcode, *(barcode[:length] for length in (16, 15, 12) if len(barcode) >= length)]))


def patient(name: str) -> str:
    """The patient's barcode (12 characters); a name that is no barcode is a patient of its own."""
    barcode = canonical(name)
    return name.strip() if barcode is None else barcode[:12]


def sample(name: str) -> str:
    """The sample's barcode (15 characters), or as much as the name tells."""
    barcode = canonical(name)
    return name.strip() if barcode is None else barcode[:15]


def names_one_aliquot(name: str) -> bool:
    """Whether the name can stand for one measurement only, so that finding it twice is a mistake."""
    barcode = canonical(name)
    return barcode is None or len(barcode) >= _ALIQUOT_LENGTH


def type_code(name: str) -> int | None:
    """The type of the sample (see `SAMPLE_TYPES`), None when the name does not tell."""
    found = _BARCODE.fullmatch(canonical(name) or "")
    return int(found[1]) if found and found[1] else None


def is_normal(name: str) -> bool:
    """Whether the sample is normal tissue: types 10 to 19."""
    return 10 <= (type_code(name) or 0) < 20


def is_control(name: str) -> bool:
    """Whether the sample is neither a patient's tumour nor normal tissue: control analytes, cell lines, xenografts."""
    code = type_code(name) or 0
    return code >= 20 and code != 40


def cohort_in(name: str) -> str:
    """The one code of a cohort that a name of a file or folder holds between other marks, "" for none or several."""
    found = {token.upper() for token in re.split(r"[^A-Za-z0-9]+", name)} & {*COHORTS, *UNIONS}
    return found.pop() if len(found) == 1 else ""


def class_name(label: str) -> str:
    """A tumour type's code from a code or a disease's name in any case; other labels stay as they are."""
    code = label.strip().upper()
    code = MISSPELT.get(code, code)
    return code if code in COHORTS or code in UNIONS else _DISEASE_CODES.get(label.strip().lower(), label.strip())
