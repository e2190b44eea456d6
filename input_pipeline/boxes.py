"""Which part of each raw image is to be kept? A table that `research.segment` writes and `prepare --boxes` reads.

`boxes.csv` has one row for each image: `file` (its name in the source, or the id of an example), `status` ("cropped",
"whole" or "unreadable"), `reason` (why it is not cropped), `width` and `height` of the image, the box `left`, `top`,
`right`, `bottom` in pixels (the last two outside of it), `area_share` and `components` of the mask that it comes from.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from input_pipeline import images, tabular
from input_pipeline.cli import UserError
from input_pipeline.images import Admitted, BadImage
from input_pipeline.studies.manifest import RawExample

NAME = "boxes.csv"
"""What the table is called in a dataset that was made with it."""

STATES = ("cropped", "whole", "unreadable")
_NUMBERS = ("width", "height", "left", "top", "right", "bottom")
COLUMNS = ("file", "status", "reason", *_NUMBERS, "area_share", "components")


@dataclasses.dataclass(frozen=True)
class Box:
    """A row: see above; all numbers of an unreadable image are 0."""

    file: str
    status: str
    reason: str = ""
    width: int = 0
    height: int = 0
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    area_share: float = 0.0
    components: int = 0

    def problem(self) -> str:
        """What is impossible about it, in words; empty if nothing is."""
        if self.status not in STATES:
            return f"its status {self.status!r} is none of {', '.join(STATES)}"
        if self.status == "cropped" and not (
            0 <= self.left < self.right <= self.width and 0 <= self.top < self.bottom <= self.height
        ):
            return "its box does not lie inside its image"
        return ""

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The part of `[height, width, C]` inside the box, a copy.

        Raises:
            BadImage: the image has another size than the one that the box was made for.
        """
        if image.shape[:2] != (self.height, self.width):
            raise BadImage(
                f"its box was made for {self.width} x {self.height} pixels: run research.segment on this source"
            )
        return image[self.top : self.bottom, self.left : self.right].copy()

    def admitted(self, image: Admitted) -> Admitted:
        """The image cut to the box and stored as PNG, which loses nothing. Raises `BadImage`, see `crop`."""
        pixels = self.crop(image.image)
        height, width, _ = pixels.shape
        return dataclasses.replace(
            image, data=images.encode_png(pixels), format="PNG", height=height, width=width, image=pixels
        )

    def segmentation(self, encoded: bytes) -> bytes:
        """A PNG of class numbers cut to the box.

        Raises:
            BadImage: nothing but background is left.
        """
        numbers = self.crop(images.decode(encoded))
        if not numbers.any():
            raise BadImage("its mask is empty inside its box")
        return images.encode_png(numbers)


def write(path: str | os.PathLike, rows: Iterable[Box]) -> None:
    """Writes the table, atomically."""
    tabular.write_csv(path, COLUMNS, [dataclasses.asdict(row) | {"reason": row.reason or None} for row in rows])


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The table of a file.

    Attributes:
        content: its bytes.
        by_file: row by name.
    """

    content: bytes
    by_file: Mapping[str, Box]

    def of(self, examples: Sequence[RawExample]) -> dict[str, Box]:
        """First file of an example → its box, for those that are cropped.

        Raises:
            UserError: the table names none of the examples.
        """
        found = {example.paths[0]: self.row(example) for example in examples}
        if not any(found.values()):
            first = next(iter(self.by_file), "nothing")
            raise UserError(
                f"--boxes names none of the images of the source, but for example {first!r}: make the boxes from the "
                "same source by research.segment."
            )
        return {name: box for name, box in found.items() if box and box.status == "cropped"}

    def row(self, example: RawExample) -> Box | None:
        """The row of an example, by its first file or its id."""
        return self.by_file.get(example.paths[0]) or self.by_file.get(example.id)


def read(path: str | os.PathLike) -> Boxes:
    """Reads what `write` wrote.

    Raises:
        UserError: the file is missing, has other columns, or a row is impossible (with its line).
    """
    columns, table = tabular.read_csv(path)
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"{path} has no column {missing[0]}: give a table that research.segment wrote as --boxes.")
    rows: dict[str, Box] = {}
    for line, row in enumerate(table, 2):
        try:
            numbers = {name: int(row[name]) for name in _NUMBERS}
            numbers |= {"area_share": float(row["area_share"]), "components": int(row["components"])}
            box = Box(str(row["file"]), str(row["status"]), str(row["reason"] or ""), **numbers)
            problem = box.problem()
        except (TypeError, ValueError):
            problem = "a number is missing"
        if problem or box.file in rows:
            raise UserError(
                f"{path}, line {line}: {problem or 'its file occurs a second time'}: write the table again with "
                "research.segment."
            )
        rows[box.file] = box
    return Boxes(pathlib.Path(path).read_bytes(), rows)
