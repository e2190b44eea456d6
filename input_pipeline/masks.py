"""How do mask files become one map of class numbers, and how is that map resized together with its image?

A mask file is any image that `images.admit` takes: 8 or 16 bits, grey, palette or RGB, one lung or both. Bright is the
object: a pixel belongs to it when its largest channel is above half of the range (127 of 255, which puts the border of
an antialiased mask where it belongs). A file whose largest value is 1 holds class numbers already. Several files (left
and right lung) are united. What is stored is a lossless one-channel PNG of 0 (background) and 1 (object).
"""

from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.images import BadImage

ASPECT_TOLERANCE = 0.01
"""A mask of another size than its image is resized to it when their aspect ratios differ by no more than this."""


def foreground(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The object of one decoded mask, bool `[height, width]`.

    Args:
        image: uint8 or uint16 `[H, W, C]`; a mask of another size than asked for is resized before it is thresholded.
        height, width: of the image that the mask belongs to.
    """
    plane = image.max(axis=-1)
    half = 0 if plane.max() == 1 else np.iinfo(plane.dtype).max // 2
    if plane.shape == (height, width):
        return plane > half
    # Thresholding first would leave stairs; a map of class numbers has nothing in between, so its middle is a half.
    shrinks = height < plane.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(plane.astype(np.float32), (width, height), interpolation=how) > max(half, 0.5)


def merge(files: Sequence[bytes], height: int, width: int, max_pixels: int) -> tuple[bytes, str]:
    """Unites the masks of one image.

    Args:
        files: encoded masks, at least one.
        height, width: of the image.
        max_pixels: limit of pixels in a mask.

    Returns:
        PNG of uint8 `[height, width, 1]` with values 0 and 1, and what was changed in words, or an empty string.

    Raises:
        BadImage: a mask is damaged or of another shape than the image, or all of them are empty or full.
    """
    united = np.zeros((height, width), bool)
    changes = []
    for data in files:
        try:
            image = images.admit(data, max_pixels).image
        except BadImage as error:
            raise BadImage(f"its mask cannot be used: {error}") from error
        rows, columns = image.shape[:2]
        if abs(rows * width - columns * height) > ASPECT_TOLERANCE * columns * height:
            raise BadImage(f"its mask has another shape: {columns} x {rows} for {width} x {height} pixels")
        if (rows, columns) != (height, width):
            changes.append("mask resized to the size of its image")
        united |= foreground(image, height, width)
    if not united.any():
        raise BadImage("its mask is empty")
    if united.all():
        raise BadImage("its mask covers the whole image")
    return images.encode_png(united[..., None].astype(np.uint8)), "; ".join(dict.fromkeys(changes))


def resize(labels: np.ndarray, size: int, method: str) -> np.ndarray:
    """Resizes a map of class numbers with the very geometry of `images.resize`; each pixel takes its largest share.

    Args:
        labels: uint8 `[H, W]`.
        size, method: see `images.resize`.

    Returns:
        uint8 `[size, size]` holding no other numbers than `labels` does; in a draw the smallest wins.
    """
    present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=1)).astype(np.uint8)
    shares = [
        images.resize((labels == number).astype(np.float32)[..., None], size, method)[..., 0] for number in present[1:]
    ]
    if not shares:
        return np.full((size, size), present[0], np.uint8)
    if len(shares) == 1:  # the common case, half the work: the other share is what is missing to one
        return np.where(shares[0] > 0.5, present[1], present[0])
    stacked = np.stack([1.0 - np.sum(shares, axis=0), *shares])
    return present[np.argmax(stacked, axis=0)]
