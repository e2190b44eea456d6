"""Expression data in place of what the reader of tables finds, for the tests of what happens behind it."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.expression import Expression
from input_pipeline.studies import cancer_genes

N, G = 37, 101
TYPES = ("KIRC", "BRCA", "LUAD")


def expression(n: int = N, size: int = G, **changes) -> Expression:
    """Samples of three types; patients have two each (the last one has one), and samples 3 and 22 are identical."""
    values = np.random.default_rng(5).normal(5, 3, (n, size)).astype(np.float32)
    values[22] = values[3]
    fields = {
        "genes": tuple(f"GENE{i}|{i}" for i in range(size)),
        "ids": tuple(f"S-{i:03d}" for i in range(n)),
        "patients": tuple(f"P-{i // 2:03d}" for i in range(n)),
        "labels": tuple(TYPES[(i // 2) % 3] for i in range(n)),
        "values": values,
        "official_roles": (None,) * n,
        "problems": [
            ("S-998", "a.tsv, line 1, column 7: solid tissue normal"),
            ("S-999", "b.tsv, line 3: solid tissue normal"),
            ("GENE", "no sample: not one has a value"),
        ],
        "notes": {"layout": "pancanatlas", "scale": "log2(x+1)"},
    }
    return Expression(**{**fields, **changes})


def replace_reader(patch: pytest.MonkeyPatch, found: Expression) -> list:
    """Makes the reader find this, mapped from the scratch folder; returns the arguments of its calls."""
    calls = []

    def read(source, options, scratch):
        assert not list(scratch.iterdir())
        np.save(scratch / "values.npy", found.values)
        calls.append((source, options, scratch))
        mapped = np.load(scratch / "values.npy", mmap_mode="r")
        return dataclasses.replace(found, values=mapped)

    patch.setattr(cancer_genes.reading, "read", read)
    return calls


def row_of(identifier: str) -> int:
    return int(identifier[2:])
