"""The studies that `input_pipeline.prepare` knows: one module each with `scan(source, options) -> Manifest`.

A study in `EXPRESSION` reads its tables while it scans: its `scan` takes a scratch folder as well.
"""

import importlib
from types import ModuleType

from input_pipeline.cli import UserError

STUDIES = {
    "hpa": "input_pipeline.studies.hpa",
    "blood_cells": "input_pipeline.studies.blood_cells",
    "folder": "input_pipeline.studies.folder",
    "table": "input_pipeline.studies.table",
    "pneumonia": "input_pipeline.studies.pneumonia",
    "lung_masks": "input_pipeline.studies.lung_masks",
    "cancer_genes": "input_pipeline.studies.cancer_genes",
    "captions": "input_pipeline.studies.captions",
}

EXPRESSION = frozenset({"cancer_genes"})
"""Studies whose examples are vectors of gene expression instead of images."""


def load(name: str) -> ModuleType:
    """The module of a study.

    Raises:
        UserError: for a name that is not in `STUDIES`.
    """
    if name not in STUDIES:
        raise UserError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}.")
    return importlib.import_module(STUDIES[name])
