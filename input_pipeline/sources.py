"""Where does each study's raw data lie, under which terms, and what does `prepare` take of it?

Only places whose addresses several independent projects use are listed; for all else a person finds the instruction in
`MANUAL`. The first place of a study is the default. Sizes and checksums stand here where the publisher or several
projects state them; the others are recorded at the first download (input_pipeline/download.py).
"""

import dataclasses
import types
from collections.abc import Mapping

KAGGLE = "https://www.kaggle.com"


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a place.

    Attributes:
        name: what it is called in the folder RAW.
        url: where it lies; https.
        kind: what it begins with: "zip" (also .xlsx), "gzip" or "text".
        size: bytes, or None where nobody states them.
        md5: hexadecimal, or "".
    """

    name: str
    url: str
    kind: str
    size: int | None = None
    md5: str = ""


@dataclasses.dataclass(frozen=True)
class Place:
    """One public form of a study's raw data.

    Attributes:
        title: what it is.
        licence: in the publisher's words, as far as known.
        page: where a person reads the terms, and accepts them where that is asked for.
        files: all are needed.
        source: what `prepare --source` takes, below RAW ("" = RAW itself).
        kaggle: "", "dataset" or "competition": the latter needs a token and accepted rules.
        remark: what else to know, one sentence or "".
    """

    title: str
    licence: str
    page: str
    files: tuple[File, ...]
    source: str = ""
    kaggle: str = ""
    remark: str = ""


def _dataset(owner: str, name: str, title: str, licence: str) -> Place:
    url = f"{KAGGLE}/api/v1/datasets/download/{owner}/{name}"
    page = f"{KAGGLE}/datasets/{owner}/{name}"
    return Place(title, licence, page, (File(f"{name}.zip", url, "zip"),), f"{name}.zip", "dataset")


def _competition(name: str, title: str, licence: str, remark: str = "") -> Place:
    url = f"{KAGGLE}/api/v1/competitions/data/download-all/{name}"
    page = f"{KAGGLE}/competitions/{name}/rules"
    return Place(title, licence, page, (File(f"{name}.zip", url, "zip"),), f"{name}.zip", "competition", remark)


_NLM = "National Library of Medicine: free for research and teaching, with citation of Jaeger et al. 2014"
_GDC = "https://api.gdc.cancer.gov/data"
_XENA = "https://tcga-pancan-atlas-hub.s3.us-east-1.amazonaws.com/download"
_OPENI = "https://openi.nlm.nih.gov/imgs/collections"

PLACES: Mapping[str, Mapping[str, Place]] = types.MappingProxyType(
    {
        "hpa": {
            "jovian": _competition(
                "jovian-pytorch-z2g",
                "512 px RGB images of ten organelles, the course's classes",
                "the competition's rules; images of the Human Protein Atlas, CC BY-SA 3.0",
            ),
            "hpa2018": _competition(
                "human-protein-atlas-image-classification",
                "HPA-2018, four single-channel images for each of 31,072 ids, 28 classes",
                "the competition's rules; images of the Human Protein Atlas, CC BY-SA 3.0",
                "An archive within the archive has to be unpacked by hand before `prepare`.",
            ),
        },
        "blood_cells": {
            "kaggle": _dataset("paultimothymooney", "blood-cells", "12,500 augmented pictures of white cells", "MIT"),
        },
        "pneumonia": {
            "mendeley": Place(
                "Kermany et al., paediatric chest X-rays, version 2 as in the paper",
                "CC BY 4.0",
                "https://data.mendeley.com/datasets/rscbjbr9sj/2",
                (
                    File(
                        "ChestXRay2017.zip",
                        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
                        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
                        "zip",
                    ),
                ),
                "ChestXRay2017.zip",
            ),
            "kaggle": _dataset("paultimothymooney", "chest-xray-pneumonia", "the same with a folder val", "CC BY 4.0"),
        },
        "lung_masks": {
            "kaggle": _dataset(
                "nikhilpandey360",
                "chest-xray-masks-and-labels",
                "Montgomery and Shenzhen merged, 800 X-rays and 704 masks",
                _NLM,
            ),
            "montgomery": Place(
                "Montgomery County, 138 X-rays with a mask of each lung",
                _NLM,
                "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
                (File("NLM-MontgomeryCXRSet.zip", f"{_OPENI}/NLM-MontgomeryCXRSet.zip", "zip"),),
                "NLM-MontgomeryCXRSet.zip",
            ),
        },
        "cancer_genes": {
            "gdc": Place(
                "TCGA PanCanAtlas, RNA-seq of 11,069 aliquots, and the clinical resource with the tumour types",
                "open-access tier of the Genomic Data Commons; cite the PanCanAtlas papers",
                "https://gdc.cancer.gov/about-data/publications/pancanatlas",
                (
                    File(
                        "TCGA-CDR-SupplementalTableS1.xlsx",
                        f"{_GDC}/1b5f413e-a8d1-4d10-92eb-7c4ae739ed81",
                        "zip",
                        2_945_129,
                        "a4591b2dcee39591f59e5e25a6ce75fa",
                    ),
                    File(
                        "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv",
                        f"{_GDC}/3586c0da-64d0-4b74-a449-5ff4d9136611",
                        "text",
                        1_882_540_959,
                        "02e72c33071307ff6570621480d3c90b",
                    ),
                ),
            ),
            "xena": Place(
                "the same as log2(x+1) at the UCSC Xena hub, packed",
                "open; cite Goldman et al. 2020 and the PanCanAtlas papers",
                "https://xenabrowser.net/datapages/?cohort=TCGA%20Pan-Cancer%20(PANCAN)",
                (
                    File(
                        "Survival_SupplementalTable_S1_20171025_xena_sp",
                        f"{_XENA}/Survival_SupplementalTable_S1_20171025_xena_sp",
                        "text",
                    ),
                    File(
                        "EB++AdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.xena.gz",
                        f"{_XENA}/EB%2B%2BAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.xena.gz",
                        "gzip",
                    ),
                ),
            ),
        },
    }
)
"""study -> name of the place -> place; the first is the default."""

MANUAL: Mapping[str, str] = types.MappingProxyType(
    {
        "captions": (
            "the photos and captions of COMP5329 are given to the members of the course only: put train.csv, test.csv "
            "and data/*.jpg into a folder and run `python -m input_pipeline.prepare --study=captions --source=FOLDER`"
        ),
        "folder": "this is for images of your own: give their folder to `prepare --study=folder --source=FOLDER`",
        "table": "this is for images of your own: give the folder of CSV and images to `prepare --study=table`",
    }
)
"""Studies whose data cannot be fetched, and what to do instead."""
