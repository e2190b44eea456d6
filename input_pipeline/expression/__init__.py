"""What does a table of gene expression amount to, whichever of the public layouts it was downloaded in?"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """N samples × G genes with their labels, as `input_pipeline.expression.reading.read` returns them.

    Attributes:
        genes: G unique names in the order of the table: the symbol, or `SYMBOL|ENTREZ` where a symbol occurs twice or
            is unknown (`?|100130426`).
        ids: N unique sample ids, barcodes as in the table, ascending.
        patients: N names, the group that each sample must stay with in a split.
        labels: N class names, "" where a sample has none.
        values: float32 `[N, G]`, finite, on a log2 scale unless `notes["scale"]` says z-score; a memory map in the
            scratch folder when it is large.
        official_roles: N roles, None unless the source fixes them; "unlabelled" for samples without a label.
        problems: `(sample, gene, file or line, reason)` of everything that was left out.
        notes: facts for the ingest report (layout, scale found, filters, imputed values, duplicates, counts), JSON
            values only.
    """

    genes: tuple[str, ...]
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: tuple[str, ...]
    values: np.ndarray
    official_roles: tuple[str | None, ...]
    problems: list[tuple[str, str]]
    notes: dict
