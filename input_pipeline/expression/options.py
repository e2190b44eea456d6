"""Which options does the reading of expression have (`--set key=value`), and what may they be?"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from input_pipeline.cli import UserError
from input_pipeline.expression.scale import SCALES
from input_pipeline.studies.manifest import check_options

CHOICES = {
    "scale": ("auto", *SCALES),
    "samples": ("tumours", "all", "normals"),
    "aliquots": ("first", "mean", "all"),
    "missing": ("zero", "drop", "mean"),
}
"""Options with a fixed set of values; the first is the default."""

OPTIONS = ("table", "labels", *CHOICES, "genes", "min_variance", "min_mean", "top_genes")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of one reading.

    Attributes:
        table: name of the table, where several could be meant.
        labels: name of the file of labels, where several could be meant.
        scale: of the values; "auto" detects it.
        samples: "tumours" only; "all", where normal tissue has the label of its cohort; "normals", where it is a class.
        aliquots: of a sample that was measured several times, the "first", the "mean" or "all".
        missing: missing values count as no expression ("zero") or as the gene's "mean", or "drop" the gene.
        genes: name of a file that lists the genes to keep.
        min_variance: lowest variance of a gene on the log2 scale.
        min_mean: lowest mean of a gene on the log2 scale.
        top_genes: how many of the most variable genes are kept.
    """

    table: str | None = None
    labels: str | None = None
    scale: str = "auto"
    samples: str = "tumours"
    aliquots: str = "first"
    missing: str = "zero"
    genes: str | None = None
    min_variance: float | None = None
    min_mean: float | None = None
    top_genes: int | None = None


def parse(options: Mapping[str, str]) -> Settings:
    """The settings of `options`.

    Raises:
        UserError: an option is unknown or has an impossible value.
    """
    check_options("cancer_genes", options, OPTIONS)
    values: dict = {name: text.strip() for name, text in options.items()}
    for name, text in values.items():
        if name in CHOICES and text not in CHOICES[name]:
            raise UserError(f"--set {name}={text} is unknown: choose one of {', '.join(CHOICES[name])}.")
        if not text:
            raise UserError(f"--set {name}= has no value: give one or leave the option out.")
    for name in ("min_variance", "min_mean"):
        if name in values:
            values[name] = _number(name, values[name], float, "a number")
    if "top_genes" in values:
        values["top_genes"] = _number("top_genes", values["top_genes"], int, "a whole number above 0")
    if values.get("top_genes", 1) < 1 or values.get("min_variance", 0) < 0:
        raise UserError("--set top_genes must be above 0 and min_variance not below 0: correct the option.")
    return Settings(**values)


def _number(name: str, text: str, kind: Callable, wanted: str) -> float:
    try:
        value = kind(text)
        if not math.isfinite(value) or "_" in text:
            raise ValueError
    except ValueError as error:
        raise UserError(f"--set {name}={text} is not {wanted}: give {wanted}.") from error
    return value
