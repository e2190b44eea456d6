"""Which pixel of a square picture belongs to which gene, and how is that kept with a run?"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A map from genes to pixels.

    Attributes:
      name: how it was built, one of `building.BUILDERS`.
      genes: G unique names in the order of the expression vector.
      side: pixels of a side of the picture.
      pixel: int32 `[G]`, row-major number of each gene's pixel, `row * side + column`; -1 where a gene is left out.
        Genes that share a pixel are averaged there.
      notes: what a reader of the run should know, one sentence, or "".
    """

    name: str
    genes: tuple[str, ...]
    side: int
    pixel: np.ndarray
    notes: str = ""

    def __post_init__(self):
        pixel = np.asarray(self.pixel)
        if pixel.shape != (len(self.genes),) or not np.issubdtype(pixel.dtype, np.integer):
            raise ValueError(f"{len(self.genes)} genes need as many whole numbers as pixels, not {pixel.shape}")
        if self.side < 1 or (pixel < -1).any() or (pixel >= self.side**2).any():
            raise ValueError(f"pixels of a picture of side {self.side} are -1 or 0 ... {self.side**2 - 1}")
        if len(set(self.genes)) != len(self.genes):
            raise ValueError("the names of genes must be unique")
        pixel = pixel.astype(np.int32)
        pixel.setflags(write=False)
        object.__setattr__(self, "genes", tuple(self.genes))
        object.__setattr__(self, "pixel", pixel)

    @property
    def placed(self) -> np.ndarray:
        """bool `[G]`: which genes are in the picture."""
        return self.pixel >= 0

    def counts(self) -> np.ndarray:
        """int64 `[side, side]`: genes of each pixel."""
        return np.bincount(self.pixel[self.placed], minlength=self.side**2).reshape(self.side, self.side)


def smallest_side(genes: int) -> int:
    """Pixels of a side of the smallest square picture that has a pixel for each of `genes`."""
    return max(1, math.isqrt(max(genes, 1) - 1) + 1)


def summary(layout: Layout) -> dict[str, int | str]:
    """Figures for reports.

    Returns:
      name, notes, side, genes, placed, empty (pixels without a gene), collisions (genes that share their pixel with
      another one) and largest_collision (genes of the fullest pixel, 0 or 1 without any).
    """
    counts = layout.counts()
    return {
        "name": layout.name,
        "side": layout.side,
        "genes": len(layout.genes),
        "placed": int(layout.placed.sum()),
        "empty": int((counts == 0).sum()),
        "collisions": int(counts[counts > 1].sum()),
        "largest_collision": int(counts.max()),
        "notes": layout.notes,
    }


def describe(layout: Layout) -> str:
    """The summary as one line of text."""
    figures = summary(layout)
    line = "layout {name}: {placed} of {genes} genes on {side} x {side} pixels, {empty} of them empty".format(**figures)
    if figures["collisions"]:
        line += "; {collisions} genes share a pixel, at most {largest_collision} of them one".format(**figures)
    return f"{line}; {layout.notes}" if layout.notes else line


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes an object with sorted keys, the same bytes for the same content, atomically."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    cli.atomic_write(path, text + "\n")


def read_json(path: str | os.PathLike, what: str) -> dict:
    """Reads what `write_json` wrote.

    Raises:
      UserError: there is no such file or it is not a JSON object.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {what} {path}; name a run folder that was trained on expression data.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no {what}: {error}; restore the file or train again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no {what}: it is not a JSON object; restore the file or train again.")
    return content


def require_same_genes(expected: Sequence[str], given: Sequence[str], what: str) -> None:
    """Checks that two vectors have the same genes in the same order.

    Raises:
      UserError: they differ; the first difference is named.
    """
    if len(expected) != len(given):
        raise UserError(
            f"{what} is for {len(expected)} genes, the data set has {len(given)}; use the data set it was built for, "
            "or train again."
        )
    for position, (ours, theirs) in enumerate(zip(expected, given, strict=True)):
        if ours != theirs:
            raise UserError(
                f"{what} has {ours!r} as gene {position + 1}, the data set {theirs!r}; use the data set it was built "
                "for, or train again."
            )


def save(layout: Layout, path: str | os.PathLike) -> None:
    """Writes the layout as JSON; the same layout gives the same bytes."""
    content = dataclasses.asdict(layout) | {"genes": list(layout.genes), "pixel": layout.pixel.tolist()}
    write_json(path, content)


def load(path: str | os.PathLike, genes: Sequence[str] | None = None) -> Layout:
    """Reads a layout.

    Args:
      path: of the JSON file that `save` wrote.
      genes: of the data set that it is to be used with; None to skip the check.

    Raises:
      UserError: the file is missing or broken, or the layout is for other genes.
    """
    content = read_json(path, "layout")
    try:
        values = {field.name: content[field.name] for field in dataclasses.fields(Layout)}
        layout = Layout(**values | {"genes": tuple(values["genes"]), "pixel": np.array(values["pixel"])})
    except KeyError as error:
        raise UserError(f"{path} is no layout: it lacks {error}; restore the file or train again.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is no layout: {error}; restore the file or train again.") from None
    if genes is not None:
        require_same_genes(layout.genes, genes, f"the layout {path}")
    return layout
