"""Does the rule know a pair of lungs, and does its box lie where they are in the raw image?"""

import numpy as np
import pytest

from research.segment import rule


def mask(*boxes: tuple[int, int, int, int], size: int = 100) -> np.ndarray:
    """Rectangles (left, top, right, bottom) on a square."""
    found = np.zeros((size, size), np.uint8)
    for left, top, right, bottom in boxes:
        found[top:bottom, left:right] = 1
    return found


LEFT, RIGHT = (10, 20, 40, 80), (60, 15, 90, 75)


def test_two_lungs():
    found = rule.judge(mask(LEFT, RIGHT))
    assert found.reason == "" and found.components == 2 and found.area_share == pytest.approx(0.36)
    assert found.box == (0.10, 0.15, 0.90, 0.80)


def test_lungs_that_merge_and_specks_beside_them():
    merged = mask(LEFT, RIGHT, (40, 40, 60, 44))
    assert rule.judge(merged).components == 1 and rule.judge(merged).reason == ""
    specks = mask(LEFT, RIGHT, (0, 0, 9, 9), (92, 60, 99, 99))  # 0.8 % of the image; 2.7 %, a seventh of a lung
    assert rule.judge(specks) == rule.judge(mask(LEFT, RIGHT))
    diagonal = mask((10, 20, 50, 60), (50, 60, 90, 99))  # they touch at a corner: one part
    assert rule.judge(diagonal).components == 1


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ((), "no mask"),
        (((3, 3, 9, 9),), "no mask"),
        (((30, 30, 55, 55),), "mask covers less than 8%"),
        (((2, 2, 98, 98),), "mask covers more than 70%"),
        ((LEFT,), "one lung only"),
        ((LEFT, RIGHT, (42, 1, 58, 40), (42, 42, 58, 70), (42, 72, 58, 99)), "more than 4 parts"),
        ((LEFT, (60, 20, 75, 47)), "lungs of very different size"),
        (((20, 5, 80, 35), (25, 50, 75, 90)), "lungs not side by side"),
        (((50, 20, 80, 80), (85, 20, 99, 60)), "both parts on one side"),
        (((0, 0, 48, 66), (52, 0, 100, 66)), "mask on more than 30% of the border"),
    ],
)
def test_what_is_not_credible(boxes, reason):
    found = rule.judge(mask(*boxes))
    assert found.reason == reason and found.box is None


def test_the_box_holds_further_parts():
    found = rule.judge(mask(LEFT, RIGHT, (45, 85, 75, 99)))
    assert found.reason == "" and found.components == 3 and found.box == (0.10, 0.15, 0.90, 0.99)


def test_numbers_of_several_classes_count_together():
    numbers = mask(LEFT) + 2 * mask(RIGHT)
    assert rule.judge(numbers) == rule.judge(mask(LEFT, RIGHT))


def test_the_box_in_pixels_of_the_raw_image():
    box = (0.10, 0.15, 0.90, 0.80)
    # Wide 800 and high 400 pixels of 1000 x 600; 5 % of 800 are 40, of 390 are 19.5.
    assert rule.in_pixels(box, 1000, 600, "stretch") == (60, 70, 940, 500)
    assert rule.in_pixels(box, 1000, 600, "stretch", margin=0.0) == (100, 90, 900, 480)
    assert rule.in_pixels(box, 1000, 600, "crop", margin=0.0) == (260, 90, 740, 480)
    assert rule.in_pixels(box, 600, 1001, "crop", margin=0.0) == (60, 290, 540, 680)
    assert rule.in_pixels((0.0, 0.02, 1.0, 0.99), 50, 70, "stretch") == (0, 0, 50, 70)


def test_random_masks_never_leave_the_image():
    rng = np.random.default_rng(0)
    for _ in range(60):
        ends = np.sort(rng.integers(0, 65, (4, 2)), axis=1)
        boxes = [(x0, y0, x1 + 1, y1 + 1) for (x0, x1), (y0, y1) in (ends[:2], ends[2:])]
        found = rule.judge(mask(*boxes, size=64))
        assert (found.box is None) == bool(found.reason)
        if found.box:
            width, height = rng.integers(20, 400, 2)
            left, top, right, bottom = rule.in_pixels(found.box, width, height, "stretch")
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
