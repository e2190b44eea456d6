"""Is a mask that of a pair of lungs, and which box holds them?

The rule, on the mask at the size that the network sees (pixels above probability 0.5):

1. Connected parts smaller than 1 % of the image, or than a sixth of the largest part, are specks and do not count: the
   dark air beside a neck or under an arm looks like lung to a network. None left: no mask.
2. What is left covers 8 % to 70 % of the image.
3. It is one part (lungs that merge), or two to four, of which the two largest are the lungs and the others bits of lung
   or air that the box may hold as well. One part spans at least 45 % of the columns, since a single lung is narrower,
   and leaving the other out would be worse than not cropping. The two largest lie side by side (the centre of each is
   outside of the other's columns), on both sides of the chest (half way between their centres is in the middle 40 % of
   the columns: a lung and the air under its arm are not), and the smaller has a quarter of the larger one's area.
4. At most 30 % of the image's border pixels belong to it: a mask that fills the border is no organ.

Where all hold, the mask is credible. The box is the smallest around the parts, with 5 % of its own width and height
added on each side, cut off at the image's border; otherwise the image is kept whole, and the reason is listed.
"""

import dataclasses
import math

import cv2
import numpy as np

MARGIN = 0.05
SPECK = 0.01
SPECK_OF_LARGEST = 1 / 6
AREA = (0.08, 0.70)
LEAST_OF_TWO = 0.25
LEAST_SPAN = 0.45
MOST_PARTS = 4
MIDDLE = (0.30, 0.70)
MOST_BORDER = 0.30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found in a mask.

    Attributes:
      reason: why it is not credible; empty if it is.
      box: (left, top, right, bottom) in shares of the image's sides, without a margin; None if it is not credible.
      area_share: of the parts that count, in the image.
      components: how many there are.
    """

    reason: str
    box: tuple[float, float, float, float] | None
    area_share: float
    components: int


def judge(mask: np.ndarray) -> Finding:
    """Applies the rule to a mask, bool or class numbers `[H, W]` (all classes together)."""
    height, width = mask.shape
    _, numbers, statistics, centres = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    least = max(SPECK * mask.size, SPECK_OF_LARGEST * areas[1:].max(initial=0))
    large = [i for i in range(1, len(areas)) if areas[i] >= least]  # 0 is the background
    parts, centres = statistics[large], centres[large]
    share = float(parts[:, cv2.CC_STAT_AREA].sum() / mask.size)
    reason = _reason(parts, centres[:, 0], share, np.isin(numbers, large), width)
    if reason:
        return Finding(reason, None, share, len(parts))
    left, top, wide, high = parts[:, :4].T
    box = left.min() / width, top.min() / height, (left + wide).max() / width, (top + high).max() / height
    return Finding("", tuple(map(float, box)), share, len(parts))


def _reason(parts: np.ndarray, centres: np.ndarray, share: float, counted: np.ndarray, width: int) -> str:
    """Why the parts `[n, 5]` (OpenCV's statistics) are no pair of lungs; empty if they are."""
    if not len(parts):
        return "no mask"
    if not AREA[0] <= share <= AREA[1]:
        return f"mask covers less than {AREA[0]:.0%}" if share < AREA[0] else f"mask covers more than {AREA[1]:.0%}"
    if len(parts) > MOST_PARTS:
        return f"more than {MOST_PARTS} parts"
    areas = parts[:, cv2.CC_STAT_AREA]
    pair = np.argsort(-areas, kind="stable")[:2]
    areas, centres = areas[pair], centres[pair]
    begin = parts[pair, cv2.CC_STAT_LEFT]
    end = begin + parts[pair, cv2.CC_STAT_WIDTH]
    if len(parts) == 1:
        if end[0] - begin[0] < LEAST_SPAN * width:
            return "one lung only"
    elif areas[1] < LEAST_OF_TWO * areas[0]:
        return "lungs of very different size"
    elif any(begin[1 - i] <= centres[i] < end[1 - i] for i in (0, 1)):
        return "lungs not side by side"
    elif not MIDDLE[0] <= centres.mean() / width <= MIDDLE[1]:
        return "both parts on one side"
    border = np.concatenate([counted[0], counted[-1], counted[1:-1, 0], counted[1:-1, -1]])
    return f"mask on more than {MOST_BORDER:.0%} of the border" if border.mean() > MOST_BORDER else ""


def in_pixels(
    box: tuple[float, float, float, float], width: int, height: int, resize: str, margin: float = MARGIN
) -> tuple[int, int, int, int]:
    """A box in shares of what the network saw, as (left, top, right, bottom) in pixels of the raw image.

    Args:
      box: see `Finding`.
      width, height: of the raw image.
      resize: how it was made square: "stretch", or "crop", the central square.
      margin: added on each side, as a share of the box's own side.
    """
    side = min(width, height)
    spans = (width, height) if resize == "stretch" else (side, side)
    result = []
    for axis, (span, whole) in enumerate(zip(spans, (width, height), strict=True)):
        offset, low, high = (whole - span) // 2, box[axis] * span, box[axis + 2] * span
        extra = margin * (high - low)
        result.append((max(0, math.floor(offset + low - extra)), min(whole, math.ceil(offset + high + extra))))
    (left, right), (top, bottom) = result
    return left, top, right, bottom
