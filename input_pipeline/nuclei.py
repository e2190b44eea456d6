"""Where are the nuclei and the cells in a fluorescence image? Classical segmentation, nothing is learnt.

Nuclei: the DNA channel is smoothed, its square root (dim nuclei lie beside bright ones) is cut at Otsu's threshold
(1979), notches and holes are closed and specks dropped. Parts are then divided among the peaks of their distance to the
background, each pixel to the nearest peak, which parts nuclei that touch. Cells: the cytoskeleton's channel, cut in the
same way after more smoothing, is divided among the nuclei, each pixel to the nearest one in reach. Lengths are shares
of the image's shorter side or of a usual nucleus, so that any size will do.
"""

import dataclasses

import cv2
import numpy as np
from scipy import ndimage

from input_pipeline import images
from input_pipeline.images import Admitted, BadImage

KINDS = ("nuclei", "cells")
SMOOTHING = 1 / 96  # deviation of the Gaussian for nuclei, four times as much for cells
NOTCH = 1 / 48  # radius of what is closed
SPECK = 1 / 6  # of a usual nucleus: what is smaller is none
LEAST = 5e-4  # share of the image's pixels below which nothing is a nucleus
MARGIN = 0.05  # around a crop, as a share of its own side
APART = 0.7  # nearest peaks of two nuclei, in radii of a usual one
REACH = 2.5  # of a cell from its nucleus, in the same radii


def nuclei(plane: np.ndarray) -> np.ndarray:
    """Nuclei in a DNA channel.

    Args:
        plane: uint8 or uint16 `[H, W]`.

    Returns:
        int32 `[H, W]`, numbers of the nuclei from 1 on, 0 elsewhere; all 0 in an image of one brightness.
    """
    side = min(plane.shape)
    mask = _foreground(plane, SMOOTHING).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(2 * round(NOTCH * side) + 1))
    parts, _ = ndimage.label(ndimage.binary_fill_holes(mask))
    areas = np.bincount(parts.reshape(-1))
    areas[0] = 0
    usual = float(np.median(areas[areas > LEAST * plane.size])) if (areas > LEAST * plane.size).any() else 0.0
    if not usual:
        return np.zeros(plane.shape, np.int32)
    mask = (areas >= max(LEAST * plane.size, SPECK * usual))[parts]
    radius = np.sqrt(usual / np.pi)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    # The plateau of a peak is one seed, also where rounding has cut it into several pixels.
    smooth = cv2.GaussianBlur(distance, (0, 0), max(0.5, 0.15 * radius))
    peaks = (smooth == cv2.dilate(smooth, _disc(2 * max(1, round(APART * radius)) + 1))) & mask
    seeds, _ = ndimage.label(peaks, np.ones((3, 3)))
    return _divided(mask, seeds)


def cells(numbers: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Cells around nuclei.

    Args:
        numbers: of `nuclei`, `[H, W]`.
        plane: uint8 or uint16 `[H, W]`, the channel of the cytoskeleton.

    Returns:
        int32 `[H, W]`: the cell of nucleus n has the number n.
    """
    if not numbers.any():
        return np.zeros(numbers.shape, np.int32)
    away, nearest = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
    areas = np.bincount(numbers.reshape(-1))[1:]
    reach = REACH * np.sqrt(np.median(areas[areas > 0]) / np.pi)
    inside = (_foreground(plane, 4 * SMOOTHING) & (away <= reach)) | (numbers > 0)
    return np.where(inside, numbers[tuple(nearest)], 0).astype(np.int32)


def _divided(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Every part of a mask divided among its own seeds; parts without any are left out. The numbers have no gaps."""
    parts, count = ndimage.label(mask)
    result = np.zeros(mask.shape, np.int32)
    for number, where in enumerate(ndimage.find_objects(parts, count), 1):
        own = parts[where] == number
        inside = np.where(own, seeds[where], 0)
        if inside.any():
            nearest = ndimage.distance_transform_edt(inside == 0, return_distances=False, return_indices=True)
            result[where][own] = inside[tuple(nearest)][own]
    found = np.unique(result)
    return np.searchsorted(found, result).astype(np.int32) if found[0] == 0 else result


def _foreground(plane: np.ndarray, smoothing: float) -> np.ndarray:
    """bool `[H, W]`: where the root of the smoothed channel is above Otsu's threshold."""
    smooth = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), max(0.5, smoothing * min(plane.shape)))
    root = np.sqrt(smooth)
    low, high = float(root.min()), float(root.max())
    if high <= low:
        return np.zeros(plane.shape, bool)
    levels = np.round((root - low) * (255 / (high - low))).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    return levels > threshold


def _disc(side: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


@dataclasses.dataclass(frozen=True)
class CellFinder:
    """Finds nuclei or cells and adds them to an image as a channel, or cuts the image to them; picklable.

    Attributes:
        kind: one of `KINDS`.
        dna, cytoskeleton: which channels of the image they are.
        crop: cut, with `MARGIN` around all that was found, instead of adding; an image without any stays whole.
    """

    kind: str
    dna: int
    cytoskeleton: int
    crop: bool = False

    def numbers(self, image: np.ndarray) -> np.ndarray:
        """int32 `[H, W]` of an image `[H, W, C]`, see `nuclei` and `cells`."""
        found = nuclei(image[..., self.dna])
        return cells(found, image[..., self.cytoskeleton]) if self.kind == "cells" else found

    def applied(self, image: Admitted) -> Admitted:
        """The image with one channel more that is full where something was found, or cut to it; as PNG.

        Raises:
            BadImage: it lacks the channels.
        """
        pixels = image.image
        if pixels.shape[2] <= max(self.dna, self.cytoskeleton):
            raise BadImage(f"it has {pixels.shape[2]} channels, and its {self.kind} need others")
        mask = self.numbers(pixels) > 0
        if self.crop:
            result = np.ascontiguousarray(pixels[box_around(mask)])
        else:
            full = (mask * np.iinfo(pixels.dtype).max).astype(pixels.dtype)
            result = np.concatenate([pixels, full[..., None]], axis=-1)
        height, width, channels = result.shape
        changes = {"data": images.encode_png(result), "format": "PNG", "image": result}
        return dataclasses.replace(image, height=height, width=width, channels=channels, **changes)


def box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around a mask, bool `[H, W]`, with `MARGIN`; all where it is empty."""
    slices = []
    for axis, length in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(found):
            return slice(None), slice(None)
        margin = round(MARGIN * (found[-1] + 1 - found[0]))
        slices.append(slice(max(0, int(found[0]) - margin), min(length, int(found[-1]) + 1 + margin)))
    return slices[0], slices[1]
