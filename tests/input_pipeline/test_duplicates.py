"""Does the grouping put copies of a photograph together, keep photographs apart, and forget the order of the files?"""

import pathlib

import cv2
import numpy as np
import pytest

from input_pipeline import duplicates, signatures
from tests.benchmarks.duplicates import keras_copy, pairwise

SHARED = pathlib.Path(__file__).parents[2] / "../shared/data"


def scene(seed: int, height: int = 150, width: int = 210) -> np.ndarray:
    """A photograph-like image of overlapping ellipses on a bright field, uint8 `[height, width, 3]`."""
    generator = np.random.default_rng(seed)
    image = np.full((height, width, 3), 225, np.uint8)
    for _ in range(35):
        centre = (int(generator.integers(0, width)), int(generator.integers(0, height)))
        axes = tuple(int(a) for a in generator.integers(5, 20, 2))
        colour = tuple(int(c) for c in generator.integers(70, 210, 3))
        cv2.ellipse(image, centre, axes, float(generator.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return image


def copies_of(images: list[np.ndarray], count: int, shift: float = 0.1, seed: int = 0):
    generator = np.random.default_rng(seed)
    made = [keras_copy(image, generator, shift) for image in images for _ in range(count)]
    truth = [index for index in range(len(images)) for _ in range(count)]
    return made, truth


def grouped(images: list[np.ndarray], **options) -> duplicates.Clusters:
    ids = [f"{index:05d}" for index in range(len(images))]
    hashes = [duplicates.content_hash(image) for image in images]
    return duplicates.cluster(ids, None, hashes, np.stack([duplicates.signature(i) for i in images]), **options)


def read(pattern: str, limit: int, longest: int = 320) -> list[np.ndarray]:
    files = sorted(SHARED.glob(pattern))
    if not files:
        pytest.skip("needs ../shared/data")
    images = [cv2.imread(str(file)) for file in files[:: max(1, len(files) // limit)][:limit]]
    return [cv2.resize(i, None, fx=min(1, longest / max(i.shape)), fy=min(1, longest / max(i.shape))) for i in images]


def test_copies_fall_together_and_scenes_stay_apart():
    images, truth = copies_of([scene(seed) for seed in range(13)], 5)
    precision, recall = pairwise(grouped(images).groups, truth)
    assert precision == 1.0
    assert recall >= 0.98


@pytest.mark.parametrize(
    "pattern", ["captions/coco_mini/*2017/*.jpg", "pneumonia/chest_xray/train/*/*.jpeg", "lung_masks/cxr/*.png"]
)
def test_precision_and_recall_on_real_photographs(pattern):
    images, truth = copies_of(read(pattern, 80), 3, shift=0.15)
    precision, recall = pairwise(grouped(images).groups, truth)
    assert precision >= 0.98
    assert recall >= 0.98


def test_distinct_photographs_are_not_merged():
    images = read("lung_masks/cxr/*.png", 60) + read("pneumonia/chest_xray/train/*/*.jpeg", 60)
    found = grouped(images)
    assert found.statistics["groups"] >= len(images) - 1


def test_real_blood_cells_of_few_photographs():
    """Files out of one class, where 16 photographs underlie the folder: groups are large, as they should be."""
    images = read("blood_cells/images/TRAIN/MONOCYTE/*.jpeg", 240)
    found = grouped(images)
    assert found.statistics["groups"] == 16


def test_result_depends_on_neither_order_nor_names_nor_workers():
    images, _ = copies_of([scene(seed) for seed in range(7)], 3)
    images.append(images[0])
    records = np.stack([duplicates.signature(image) for image in images])
    hashes = [duplicates.content_hash(image) for image in images]
    ids = [f"{index:02d}" for index in range(len(images))]
    first = duplicates.cluster(ids, None, hashes, records, workers=1)
    order = np.random.default_rng(1).permutation(len(images))
    second = duplicates.cluster(
        [f"x{ids[i]}" for i in order[::-1]], None, [hashes[i] for i in order], records[order], workers=3
    )
    assert [first.groups[i] for i in order] == second.groups
    assert first.statistics == second.statistics


def test_exact_duplicates_and_statistics():
    image, other = scene(0), scene(1)
    found = duplicates.cluster(
        ["b", "a", "c"],
        [(0,), (1,), (0,)],
        [duplicates.content_hash(i) for i in (image, image, other)],
        np.stack([duplicates.signature(i) for i in (image, image, other)]),
    )
    assert found.groups[0] == found.groups[1] != found.groups[2]
    assert found.exact == ["a", "a", "c"]
    assert found.statistics["files"] == 3
    assert found.statistics["exact_duplicates"] == 1
    assert found.statistics["near_duplicates"] == 0
    assert found.statistics["mixed_label_groups"] == 1


def test_exact_only_without_signatures_and_wrong_lengths():
    assert duplicates.cluster(["a", "b"], None, ["1", "1"], None).statistics["groups"] == 1
    assert duplicates.cluster([], None, [], None).groups == []
    with pytest.raises(ValueError, match="unique ids"):
        duplicates.cluster(["a", "a"], None, ["1", "2"], None)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((130, 70, 3), np.uint8),
        np.full((33, 47, 1), 255, np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.random.default_rng(0).integers(0, 4000, (90, 120, 4)).astype(np.uint16),
        np.random.default_rng(0).integers(0, 256, (257, 129)).astype(np.uint8),
        np.random.default_rng(0).integers(0, 256, (60, 61, 2)).astype(np.uint8),
    ],
)
def test_any_image_has_a_finite_signature(image):
    record = duplicates.signature(image)
    assert record.dtype == signatures.SIGNATURE
    assert np.isfinite(record["statistics"]).all() and np.isfinite(record["points"]).all()
    with pytest.raises(TypeError, match="float64"):
        duplicates.signature(image.astype(np.float64))


def test_uniform_images_are_not_near_duplicates():
    found = grouped([np.full((100, 100, 3), value, np.uint8) for value in (0, 40, 200)])
    assert found.statistics["groups"] == 3


def test_black_background_is_content_and_not_a_common_photograph():
    """Different spots on a black field: the field is left out as fill would be, and proves nothing."""
    images = []
    for seed in range(9):
        generator = np.random.default_rng(seed)
        image = np.zeros((128, 128, 3), np.uint8)
        for _ in range(6):
            centre = tuple(int(c) for c in generator.integers(15, 113, 2))
            cv2.circle(image, centre, int(generator.integers(6, 14)), (0, int(generator.integers(90, 255)), 180), -1)
        image = cv2.GaussianBlur(image, (0, 0), 1.5)
        images.append(cv2.add(image, generator.integers(0, 12, image.shape).astype(np.uint8)))
    assert grouped(images).statistics["groups"] == 9
    copies, truth = copies_of(images, 3, shift=0.05)
    precision, recall = pairwise(grouped(copies).groups, truth)
    assert precision == 1.0
    assert recall >= 0.4  # a dozen soft spots hold few features: what is missed stays apart, nothing is merged


def test_second_exposure_and_overlapping_field_are_other_photographs():
    image = scene(5, 240, 320)
    redder = cv2.add(image, np.full_like(image, (0, 0, 12)))
    wide = scene(6, 240, 480)
    left, right = np.ascontiguousarray(wide[:, :320]), np.ascontiguousarray(wide[:, 160:])
    photographs = [image, redder, left, right]
    images, truth = copies_of(photographs, 6)
    precision, recall = pairwise(grouped(images).groups, truth)
    assert precision == 1.0
    assert recall >= 0.98


def test_valid_area_leaves_out_fill_at_the_border_only():
    image = scene(3)
    image[:, :31] = 5
    image[70:80, 100:110] = 0
    valid = signatures.valid_area(image)
    assert not valid[:, :31].any()
    assert valid[70:80, 100:110].all() and valid[:, 31:].all()
