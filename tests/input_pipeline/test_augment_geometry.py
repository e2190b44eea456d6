"""Do flips, affine maps, crops and their composition give torchvision v2's results for its parameters?"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import augment_geometry as geometry

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment_geometry.npz")


@pytest.fixture(scope="module")
def drawn():
    return np.load(GOLDEN / "augment_draw.npz")


def affine_of(rows):
    rows = jnp.asarray(rows, jnp.float32)
    return geometry.Affine(rows[:, 0], rows[:, 1:3], rows[:, 3], rows[:, 4:6])


def rotation_of(angle, batch=2):
    """`F.rotate`'s counter-clockwise angle as parameters."""
    return affine_of([[-angle, 0, 0, 1, 0, 0]] * batch)


@functools.partial(jax.jit, static_argnames=("interpolation", "fill"))
def warped(images, matrix, crop, *, interpolation, fill):
    y, x = geometry.positions(matrix, crop, *images.shape[1:3])
    return geometry.sample(images, y, x, interpolation=interpolation, fill=fill)


def warp(images, matrix, crop=None, *, interpolation, fill):
    return np.asarray(warped(jnp.asarray(images), matrix, crop, interpolation=interpolation, fill=fill))


affine_matrix = jax.jit(geometry.affine_matrix)


def assert_same_pixels(ours, theirs, most_different=0.004):
    """Equal pixels, but for rare ties of nearest reading that rounding decides differently."""
    different = np.mean(np.any(np.abs(ours.astype(np.float64) - theirs) > 1e-2, axis=-1))
    assert different <= most_different, different


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_equals_torchvision(golden, interpolation):
    for row, expected in zip(golden["affine"], golden[f"affine_{interpolation}"], strict=True):
        matrix = affine_matrix(affine_of([row] * 2))
        ours = warp(golden["images"], matrix, interpolation=interpolation, fill="constant")
        if interpolation == "nearest":
            assert_same_pixels(ours, expected)
        else:
            np.testing.assert_allclose(ours, expected, atol=0.02)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_with_both_fills(golden, interpolation):
    ours = warp(
        golden["images"],
        affine_matrix(rotation_of(float(golden["rotate_angle"]))),
        interpolation=interpolation,
        fill="constant",
    )
    np.testing.assert_allclose(ours, golden[f"rotate_{interpolation}"], atol=0.02)
    matrix = affine_matrix(rotation_of(float(golden["reflect_angle"])))
    ours = warp(golden["images"], matrix, interpolation=interpolation, fill="reflect")
    np.testing.assert_allclose(ours, golden[f"reflect_{interpolation}"], atol=0.02)


def test_flips_before_an_affine_map_are_folded_into_it(golden):
    yes, no = jnp.ones(2, bool), jnp.zeros(2, bool)
    matrix = affine_matrix(affine_of([[47.1, 0, 0, 1, 0, 0]] * 2))
    matrix = geometry.after_dihedral(matrix, geometry.Dihedral(no, yes, yes))
    ours = warp(golden["images"], matrix, interpolation="nearest", fill="constant")
    assert_same_pixels(ours, golden["flip_then_affine_nearest"])


def test_resized_crop_equals_torchvision(golden):
    for box, expected in zip(golden["crop"], golden["crop_bilinear"], strict=True):
        crop = geometry.Crop(*(jnp.full(2, side, jnp.float32) for side in box))
        ours = warp(golden["images"], geometry.identity_matrix(2), crop, interpolation="bilinear", fill="constant")
        np.testing.assert_allclose(ours, expected, atol=0.02)


def test_reflection_repeats_when_the_map_leaves_the_image_far():
    image = np.arange(5.0, dtype=np.float32).reshape(1, 1, 5, 1)
    x = jnp.arange(-9.0, 11.0)[None, None]
    wide = np.pad(image, ((0, 0), (0, 0), (9, 9), (0, 0)), mode="symmetric")
    for start in (0, 5, 10, 15):
        part = x[..., start : start + 5]
        ours = geometry.sample(jnp.asarray(image), jnp.zeros_like(part), part, interpolation="nearest", fill="reflect")
        np.testing.assert_array_equal(np.asarray(ours)[0, 0, :, 0], wide[0, 0, start : start + 5, 0])


@pytest.mark.parametrize("element", range(8))
def test_dihedral_by_selection_by_numpy_and_by_map_agree(element):
    images = np.random.default_rng(element).integers(0, 256, (2, 6, 6, 4)).astype(np.float32)
    transpose, horizontal, vertical = (bool(element & bit) for bit in (4, 2, 1))
    # The second example stays as it is: every example has its own element.
    dihedral = geometry.Dihedral(*(jnp.array([bit, False]) for bit in (transpose, horizontal, vertical)))
    expected = images[0].swapaxes(0, 1) if transpose else images[0]
    expected = expected[:, ::-1] if horizontal else expected
    expected = expected[::-1] if vertical else expected
    selected = np.asarray(geometry.apply_dihedral(jnp.asarray(images), dihedral))
    np.testing.assert_array_equal(selected[0], expected)
    np.testing.assert_array_equal(selected[1], images[1])
    matrix = geometry.after_dihedral(geometry.identity_matrix(2), dihedral)
    for interpolation in ("nearest", "bilinear"):
        np.testing.assert_array_equal(warp(images, matrix, interpolation=interpolation, fill="constant"), selected)


def test_composition_equals_one_map_after_the_other():
    """Bilinear reading of a linear ramp is exact, so several reads must equal the composed one."""
    y, x = np.mgrid[0:21, 0:21].astype(np.float32)
    ramp = np.stack([2 * x + 5 * y, 3 * x - y], axis=-1)[None]
    dihedral = geometry.Dihedral(jnp.array([True]), jnp.array([False]), jnp.array([True]))
    affine = affine_matrix(affine_of([[17.0, 1, -1, 1.1, 4.0, 0]]))
    crop = geometry.Crop(*(jnp.full(1, side, jnp.float32) for side in (6, 5, 9, 11)))
    one = warp(ramp, geometry.after_dihedral(affine, dihedral), crop, interpolation="bilinear", fill="reflect")
    steps = np.asarray(geometry.apply_dihedral(jnp.asarray(ramp), dihedral))
    steps = warp(steps, affine, interpolation="bilinear", fill="reflect")
    steps = warp(steps, geometry.identity_matrix(1), crop, interpolation="bilinear", fill="reflect")
    np.testing.assert_allclose(one, steps, atol=1e-3)


def test_nearest_keeps_the_dtype_and_bilinear_reads_bytes(golden):
    matrix = affine_matrix(rotation_of(30.0))
    assert warp(golden["images"], matrix, interpolation="nearest", fill="constant").dtype == np.uint8
    ours = warp(golden["images"], matrix, interpolation="bilinear", fill="reflect")
    floats = warp(golden["images"].astype(np.float32), matrix, interpolation="bilinear", fill="reflect")
    np.testing.assert_array_equal(ours, floats)


def test_affine_parameters_are_those_of_torchvision_for_the_same_numbers(drawn):
    ours = geometry.draw_affine(
        jnp.asarray(drawn["affine"]), 13, 17, rotation=25.0, translate=0.3, scale=(0.8, 1.3), shear=11.0
    )
    ours = np.column_stack([ours.angle, ours.translate, ours.scale, ours.shear])
    np.testing.assert_allclose(ours, drawn["affine_drawn"], atol=1e-4)


@pytest.mark.parametrize("name, size, scale", [("crop", (13, 17), (0.3, 1.0)), ("hard_crop", (29, 11), (0.9, 1.0))])
def test_crops_are_those_of_torchvision_for_the_same_numbers(drawn, name, size, scale):
    draw = jax.jit(lambda fraction: geometry.draw_crop(fraction, *size, scale))
    ours = np.column_stack(draw(drawn["crop"]))
    np.testing.assert_array_equal(ours, drawn[f"{name}_drawn"])


def test_dihedral_elements_are_drawn_evenly():
    fraction = jax.random.uniform(jax.random.key(3), (4000, 3))
    all_off = {"flip_horizontal": False, "flip_vertical": False}
    drawn = geometry.draw_dihedral(fraction, **all_off, dihedral=True, square=True)
    count = np.bincount(np.asarray(drawn.transpose) * 4 + drawn.flip_horizontal * 2 + drawn.flip_vertical, minlength=8)
    assert np.sum((count - 500) ** 2 / 500) < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001
    oblong = geometry.draw_dihedral(fraction, **all_off, dihedral=True, square=False)
    assert not np.any(oblong.transpose)
