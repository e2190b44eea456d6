"""Are DeepInsight's hull, rectangle and pixels those of pyDeepInsight, OpenCV and geometry?"""

import importlib.util
import json

import cv2
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.layouts import deepinsight
from research.layouts.building import build
from research.layouts.layout import Layout
from research.layouts.render import gather, prepare
from research.layouts.scaling import fit_scale
from tests.research.layouts import make_deepinsight_golden as golden


@pytest.fixture(scope="module")
def authors():
    """What pyDeepInsight found."""
    return json.loads(golden.FILE.read_text())


def symmetries(picture: np.ndarray) -> list[np.ndarray]:
    """The eight rotations and reflections of `[..., side, side]`."""
    turned = [np.rot90(picture, times, (-2, -1)) for times in range(4)]
    return turned + [np.flip(one, -1) for one in turned]


def numbered(pixel: np.ndarray, side: int) -> np.ndarray:
    """bool `[G, side, side]`: where each gene is."""
    return np.eye(side * side, dtype=bool)[pixel].reshape(-1, side, side)


def same_up_to_symmetry(some: np.ndarray, others: np.ndarray) -> bool:
    return any(np.array_equal(some, one) for one in symmetries(others))


@pytest.mark.parametrize("number", range(len(golden.CASES)))
def test_hull_rectangle_pixels_and_pictures_are_pydeepinsight_s(number, authors):
    seed, count, degrees, side, opposite = golden.CASES[number]
    found = authors["cases"][number]
    points = golden.cloud(seed, count, degrees, opposite)
    turn, corners = deepinsight.smallest_rectangle(points)
    assert sorted(corners.tolist()) == found["hull"]
    area = np.prod(np.ptp(points @ turn.T, axis=0))
    np.testing.assert_allclose(area, 45.0)  # the rectangle that the points were drawn in
    pixel = deepinsight.rasterise(points, side)
    theirs = numbered(np.array(found["coordinates"]) @ [side, 1], side)
    if not opposite:  # where pyDeepInsight does not find the smallest rectangle
        assert found["area"] > 1.5 * area and not same_up_to_symmetry(numbered(pixel, side), theirs)
        return
    np.testing.assert_allclose(area, found["area"])
    assert same_up_to_symmetry(numbered(pixel, side), theirs)
    layout = Layout("deepinsight", tuple(map(str, range(count))), side, pixel)
    pictures = np.asarray(gather(golden.matrix(seed, 3, count).astype(np.float32), prepare(layout)))
    expected = symmetries(np.array(found["pictures"]))
    assert min(np.abs(pictures - one).max() for one in expected) < 1e-5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count, side", [(4, 3), (29, 7), (400, 16)])
def test_hull_rectangle_and_pixels_are_opencv_s(seed, count, side):
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 2)) @ random.normal(size=(2, 2)) + random.normal(0, 9, 2)
    points = points.astype(np.float32).astype(np.float64)
    turn, corners = deepinsight.smallest_rectangle(points)
    hull = cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]
    assert sorted(corners.tolist()) == sorted(hull.tolist())
    _, sides, angle = cv2.minAreaRect(points.astype(np.float32))
    np.testing.assert_allclose(np.prod(np.ptp(points @ turn.T, axis=0)), np.prod(sides), rtol=1e-4)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    upright = points @ np.array([[cosine, -sine], [sine, cosine]])
    place = (upright - upright.min(0)) / np.ptp(upright, axis=0) * side
    theirs = np.minimum(place.astype(int), side - 1) @ [side, 1]
    # OpenCV's angles have five digits: points at the border of a pixel may be on either side.
    sure = np.all((np.abs(place - np.round(place)) > 1e-3) | (np.abs(place) < 1e-3) | (np.abs(place - side) < 1e-3), 1)
    assert sure.mean() > 0.9
    pixel = deepinsight.rasterise(points, side)
    assert same_up_to_symmetry(numbered(pixel, side)[sure], numbered(theirs, side)[sure])


def test_no_angle_gives_a_smaller_rectangle_and_corners_touch_the_borders():
    points = golden.cloud(5, 90, 31.0, False) ** 3
    turn, _ = deepinsight.smallest_rectangle(points)
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-12)
    angles = np.linspace(0, np.pi / 2, 2001)
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], -1).reshape(-1, 2, 2)
    areas = np.prod(np.ptp(np.einsum("rij,gj->rgi", turns, points), axis=1), axis=1)
    assert np.prod(np.ptp(points @ turn.T, axis=0)) <= areas.min()
    rows, columns = np.divmod(deepinsight.rasterise(points, 9), 9)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 8, 0, 8)


def test_the_embedding_by_pca_is_that_of_a_singular_value_decomposition():
    values = golden.matrix(2, 8, 60)
    values[:, 7] = 3.0  # a gene without variation
    extent = np.where(np.ptp(values, axis=0) > 0, np.ptp(values, axis=0), 1)
    points = ((values - values.min(0)) / extent).T
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    found = deepinsight.embed(values, "pca", 0)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :2] * singular[:2]), atol=1e-4)


def test_tsne_puts_programmes_together_and_repeats_itself():
    """Three programmes of genes that rise and fall together, more examples and genes than dimensions."""
    random = np.random.default_rng(4)
    programme = np.repeat([0, 1, 2], 18)
    values = (random.normal(size=(60, 3))[:, programme] + 0.2 * random.normal(size=(60, 54))).astype(np.float32)
    genes = [f"G{number}" for number in range(54)]
    layout, again = (build("deepinsight", genes, values, side=40, seed=1) for _ in range(2))
    np.testing.assert_array_equal(layout.pixel, again.pixel)
    assert layout.notes == "tsne, seed 1"
    place = np.stack(np.divmod(layout.pixel, 40), -1)
    centre = np.stack([place[programme == one].mean(0) for one in range(3)])
    nearest = np.argmin(np.square(place[:, None] - centre).sum(-1), axis=1)
    assert np.mean(nearest == programme) > 0.95


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_umap_is_asked_for():
    with pytest.raises(UserError, match="pip install umap-learn.*choose 'deepinsight'"):
        build("deepinsight_umap", ("A", "B", "C", "D"), golden.matrix(0, 5, 4))


def test_unknown_methods_are_named():
    with pytest.raises(UserError, match="'isomap' is unknown; choose of tsne, pca, umap"):
        deepinsight.embed(golden.matrix(0, 5, 4), "isomap", 0)


def test_norm_2_is_pydeepinsight_s(authors):
    train, other = golden.scaling_values()
    scale = fit_scale("log_global", train)
    np.testing.assert_allclose(scale(train), authors["norm2"]["train"], atol=1e-6)
    np.testing.assert_allclose(scale(other), authors["norm2"]["other"], atol=1e-6)
    assert np.min(other) < np.min(train)  # below what was seen, where the logarithm is cut
