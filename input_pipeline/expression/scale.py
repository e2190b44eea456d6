"""On which scale are the values of a table, and how do they come to a log2 scale without being logged twice?

* `linear`: counts, RSEM or TPM, up to thousands and more; PanCanAtlas's batch adjustment leaves some below 0. They are
  clipped at 0 and become log2(x + 1).
* `log2p1`: log2(x + 1), below 0 only where x was. Left as it is, like the next two.
* `log2p0.001`: log2(x + 0.001), whose smallest value is log2(0.001) = -9.966.
* `zscore`: each gene centred and divided by its standard deviation.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from input_pipeline.cli import UserError

SCALES = ("linear", "log2p1", "log2p0.001", "zscore")
FLOOR = math.log2(0.001)
_HIGHEST_LOG = 30.0
"""No expression reaches 2^30; tables on a linear scale exceed 30 in their first lines."""
_HIGHEST_POSSIBLE_LOG = 64.0
"""Above this, nobody may call a value a logarithm."""
_FLOOR_TOLERANCE = 0.01
_CENTRED = 0.1
_SPREAD = (0.5, 1.5)


@dataclasses.dataclass(frozen=True)
class Range:
    """What is known of the values of a table: extremes (NaN when there is none), and whether all are whole numbers."""

    minimum: float
    maximum: float
    whole: bool
    negative: int
    missing: int


def measure(blocks: Iterable[np.ndarray]) -> Range:
    """The range of all values; `blocks` are float32 arrays with NaN for missing values."""
    minimum, maximum, whole, negative, missing = math.inf, -math.inf, True, 0, 0
    for block in blocks:
        absent = int(np.isnan(block).sum())
        missing += absent
        if absent == block.size:
            continue
        minimum = min(minimum, float(np.nanmin(block)))
        maximum = max(maximum, float(np.nanmax(block)))
        negative += int((block < 0).sum())
        if whole:
            whole = bool(np.array_equal(block, np.rint(block), equal_nan=True))
    if minimum > maximum:
        minimum = maximum = math.nan
    return Range(minimum, maximum, whole, negative, missing)


def is_standardised(gene_means: np.ndarray, gene_deviations: np.ndarray) -> bool:
    """Whether genes are centred at 0 and spread by 1, by the medians over genes (`[G]` each, NaN for unknown)."""
    known = np.isfinite(gene_means) & np.isfinite(gene_deviations)
    if not known.any():
        return False
    centre = float(np.median(np.abs(gene_means[known])))
    return centre < _CENTRED and _SPREAD[0] < float(np.median(gene_deviations[known])) < _SPREAD[1]


def detect(found: Range, standardised: bool) -> str:
    """The scale of a table.

    Args:
        found: the range of its values.
        standardised: see `is_standardised`.
    """
    if found.maximum > _HIGHEST_LOG or (found.whole and found.minimum >= 0 and found.maximum > 1):
        return "linear"
    if found.minimum < 0 and standardised:
        return "zscore"
    if abs(found.minimum - FLOOR) < _FLOOR_TOLERANCE:
        return "log2p0.001"
    return "log2p1"


def check(scale: str, found: Range, table: str) -> None:
    """Refuses a scale that the values of a table cannot have.

    Raises:
        UserError: a value is too large to be a logarithm.
    """
    if scale != "linear" and found.maximum > _HIGHEST_POSSIBLE_LOG:
        raise UserError(
            f"{table} has values up to {found.maximum:g}, which are not on the scale {scale}: leave out --set scale or "
            "give scale=linear."
        )


def to_log2(values: np.ndarray, scale: str) -> np.ndarray:
    """Float32 values on the log2 scale; NaN stays NaN. `values` may be overwritten."""
    if scale != "linear":
        return values
    np.maximum(values, 0, out=values)
    values += 1
    return np.log2(values, out=values)


def zero(scale: str) -> float:
    """The value of a gene that is not expressed (for z-scores: of average expression)."""
    return FLOOR if scale == "log2p0.001" else 0.0
