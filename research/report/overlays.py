"""How is a mask shown on its image? As a contour, over the image at a size that can be looked at."""

from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline import images, plotting

TRUE, PREDICTED = (0, 158, 115), (230, 159, 0)  # green and orange that the colour-blind tell apart
SHOWN = 224  # pixels a side


def enlarged(image: np.ndarray, size: int = SHOWN) -> np.ndarray:
    """An image as `plotting.to_rgb` takes it, uint8 RGB `[size, size, 3]`; 16 bits and dark films are not stretched."""
    return images.resize(plotting.to_rgb(image), size)


def outline(canvas: np.ndarray, mask: np.ndarray, colour: Sequence[int], thickness: int = 1) -> np.ndarray:
    """Draws the borders of a mask.

    Args:
      canvas: uint8 `[H, W, 3]`, which is changed.
      mask: bool or uint8 `[h, w]`, of another size perhaps; it is enlarged smoothly.
      colour: RGB. thickness: pixels.

    Returns:
      The canvas.
    """
    height, width = canvas.shape[:2]
    plane = np.asarray(mask, np.float32)
    if plane.shape != (height, width):
        plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
    borders, _ = cv2.findContours((plane > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, borders, -1, [int(part) for part in colour], thickness, cv2.LINE_AA)
    return canvas
