"""Do colours stand for the values, and does nothing of an image or a name break a picture or the page?"""

import types

import cv2
import matplotlib
import numpy as np

from research.explain import pages, pictures
from research.explain.cases import Case
from research.explain.methods import Options

VALUES = np.array([[0.0, 1.0, 2.0], [4.0, -4.0, -1.0]])


def test_colours_are_those_of_the_value():
    signed = pictures.colour(VALUES, True)
    table = matplotlib.colormaps["coolwarm"]
    np.testing.assert_array_equal(signed[1, 0], table(1.0, bytes=True)[:3])
    np.testing.assert_array_equal(signed[1, 1], table(0.0, bytes=True)[:3])
    np.testing.assert_array_equal(signed[0, 0], table(0.5, bytes=True)[:3])
    plain = pictures.colour(np.abs(VALUES), False)
    np.testing.assert_array_equal(plain[0, 0], matplotlib.colormaps["inferno"](0.0, bytes=True)[:3])
    assert pictures.limit(np.zeros((2, 2))) == 1.0  # no division by zero
    lightness = [cv2.cvtColor(np.uint8([[c]]), cv2.COLOR_RGB2LAB)[0, 0, 0]
                 for c in pictures.colour(np.linspace(0, 1, 20)[None], False)[0]]  # fmt: skip
    assert (np.diff(np.array(lightness, int)) > 0).all()


def test_where_a_map_is_zero_the_image_shows_through():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    for signed in (False, True):
        values = np.where(np.arange(3) == 1, VALUES if signed else np.abs(VALUES), 0)
        shown = pictures.overlay(image, values, signed)
        np.testing.assert_allclose(shown[:, 0], np.repeat(image[:, 0].mean(-1, keepdims=True), 3, -1), atol=0.51)
        assert np.ptp(shown[1, 1].astype(int)) > 20  # coloured


def test_strips_are_enlarged_by_a_whole_number():
    image = np.random.default_rng(1).integers(0, 65536, (30, 41, 1)).astype(np.uint16)
    strip = pictures.strip(image, np.random.default_rng(2).normal(size=(30, 41)), True)
    assert strip.shape == (180, 3 * 246, 3) and strip.dtype == np.uint8
    np.testing.assert_array_equal(strip[:6, :6], np.full((6, 6, 3), image[0, 0, 0] >> 8))


def hostile_case(right=None):
    name = '<script>alert(1)</script> $x^2$ "=cmd'
    return Case(f"{name}/ä.png", 0, 1, name, 0.25, None if right is None else (name,), (), right, "g")


def test_a_figure_with_hostile_names_and_odd_maps(tmp_path):
    maps = [("Grad-CAM", np.zeros((7, 9)), False, "logit"), ("IG", np.full((7, 9), np.nan), True, "logit")]
    region = np.arange(63).reshape(7, 9) > 30
    image = np.zeros((7, 9, 2), np.uint8)
    pictures.draw(tmp_path / "new" / "a.png", image, maps, pages.title_of(hostile_case()), region)
    assert cv2.imread(str(tmp_path / "new" / "a.png")).shape[0] > 300


def test_the_page_escapes_and_sorts_into_sections():
    cases = [hostile_case(False), hostile_case(True), hostile_case()]
    trial = types.SimpleNamespace(name="<b>trial")
    request = types.SimpleNamespace(methods=("gradcam",), images="<i>", command="python <x>")
    source = types.SimpleNamespace(ids=range(9), role="")
    table = [{"method": "gradcam", "group": "g", "deletion_auc": 0.1, "insertion_auc": 0.4}]
    cascade = [{"method": "gradcam", "random_modules": 1, "random_from": "<u>", "rank_correlation": None,
                "rank_correlation_absolute": 0.2, "ssim": 0.3, "images": 0}]  # fmt: skip
    files = [f"pictures/case {n}.png" for n in range(3)]
    html = pages.page(trial, request, Options(layer="<q>"), source, cases, files, table, cascade, ["<w>"])
    for mark in ("<script>alert", "<b>trial", "<i>", "<x>", "<u>", "<w>", "<q>"):
        assert mark not in html
    places = [html.index(f'id="{name}"') for name in ("wrong", "right", "unknown", "faithful", "random", "how")]
    assert places == sorted(places)
    assert 'src="pictures/case%200.png"' in html and "3 of 9 images" in html
