"""What is there to look at, after thousands of images were segmented? Contact sheets with contours and boxes."""

import dataclasses
import pathlib
import posixpath

import cv2
import numpy as np

from input_pipeline import plotting
from input_pipeline.boxes import Box
from research.report import overlays

ON_A_SHEET = 40
COLUMNS = 8
_BOX = (86, 180, 233)


@dataclasses.dataclass
class Chosen:
    """What is drawn: a sample of the cropped images, evenly over the source, and the first that were kept whole.

    Args:
      total: images in the source. sheets: of each kind, at most.
    """

    total: int
    sheets: int

    def __post_init__(self) -> None:
        self._most = self.sheets * ON_A_SHEET
        self._sampled = set(np.linspace(0, self.total - 1, min(self._most, self.total)).round().astype(int).tolist())
        self.cropped: list[tuple[np.ndarray, str]] = []
        self.whole: list[tuple[np.ndarray, str]] = []

    def see(self, number: int, image: np.ndarray, mask: np.ndarray, box: Box, resize: str) -> None:
        """Keeps the drawing of image `number` if it is to be shown.

        Args:
          image: `[S, S, C]` as the network saw it. mask: `[S, S]`. resize: how it was made square.
        """
        if box.status == "cropped":
            if number in self._sampled:
                self.cropped.append((draw(image, mask, box, resize), _caption(box)))
        elif len(self.whole) < self._most:
            self.whole.append((draw(image, mask, box, resize), _caption(box)))

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Writes the sheets into `folder` as PNG, and returns their paths."""
        paths = []
        for kind, title in (("cropped", "Boxes and lung contours"), ("whole", "Kept whole")):
            entries = getattr(self, kind)
            for start in range(0, len(entries), ON_A_SHEET):
                part = entries[start : start + ON_A_SHEET]
                paths.append(folder / f"{kind}_{start // ON_A_SHEET + 1}.png")
                drawings, captions = zip(*part, strict=True)
                plotting.montage(drawings, captions, paths[-1], COLUMNS, title, cell=1.6)
        return paths


def _caption(box: Box) -> str:
    name = plotting.shorten(posixpath.basename(box.file), 24)
    return f"{name}\n{plotting.shorten(box.reason, 30)}" if box.reason else name


def draw(image: np.ndarray, mask: np.ndarray, box: Box, resize: str) -> np.ndarray:
    """The image with the contour of its mask (orange) and the box (blue), uint8 RGB."""
    canvas = overlays.outline(overlays.enlarged(image), mask > 0, overlays.PREDICTED, 2)
    if box.status == "cropped":
        side = min(box.width, box.height)
        spans = (box.width, box.height) if resize == "stretch" else (side, side)
        corners = []
        for name, whole, span in (
            ("left", box.width, spans[0]), ("top", box.height, spans[1]),
            ("right", box.width, spans[0]), ("bottom", box.height, spans[1]),
        ):  # fmt: skip
            share = (getattr(box, name) - (whole - span) // 2) / span
            corners.append(int(round(share * (len(canvas) - 1))))
        cv2.rectangle(canvas, corners[:2], corners[2:], _BOX, 2)
    return canvas
