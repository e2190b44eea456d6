"""Are the views the eight symmetries of the square, and are averages taken over views of the same image?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import tta

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 2)).astype(np.float32)


def test_dihedral_views_are_turns_of_the_image_and_of_its_mirror_image():
    views = np.asarray(tta.dihedral_views(IMAGES))
    assert views.shape == (8, 3, 5, 5, 2)
    mirrored = np.flip(IMAGES, axis=2)
    expected = [np.rot90(images, turns, axes=(1, 2)) for images in (IMAGES, mirrored) for turns in range(4)]
    np.testing.assert_array_equal(views, np.stack(expected))
    assert len({view.tobytes() for view in views}) == 8


def test_flips_work_on_images_that_are_not_square():
    images = IMAGES[:, :4]
    views = [view(images) for view in tta.VIEWS["flips"]]
    expected = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]
    for view, wanted in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, wanted)


@pytest.mark.parametrize(("views", "count"), [("none", 1), ("flips", 4), ("dihedral", 8)])
def test_logits_are_averaged_over_views_row_by_row(views, count):
    kernel = np.random.default_rng(1).normal(0, 1, (50, 4)).astype(np.float32)
    calls = []

    @jax.jit
    def apply(images):
        return images.reshape(len(images), -1) @ kernel

    def counted(images):
        calls.append(images.shape)
        return apply(images)

    result = tta.tta_logits(counted, jnp.asarray(IMAGES), views)
    for row in range(len(IMAGES)):
        alone = [apply(jnp.asarray(view(IMAGES[row : row + 1]))) for view in tta.VIEWS[views]]
        np.testing.assert_allclose(result[row], np.mean(alone, axis=0)[0], rtol=1e-4, atol=1e-2)
    assert len(calls) == count


def test_the_mean_over_all_views_does_not_change_when_the_image_is_turned():
    kernel = np.random.default_rng(1).normal(0, 1, (50, 4))
    apply = lambda images: images.reshape(len(images), -1) @ kernel  # noqa: E731
    plain = tta.tta_logits(apply, IMAGES.astype(np.float64), "dihedral")
    turned = tta.tta_logits(apply, np.rot90(IMAGES, 1, axes=(1, 2)).astype(np.float64), "dihedral")
    np.testing.assert_allclose(plain, turned)


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="none, flips, dihedral"):
        tta.tta_logits(lambda images: images, IMAGES, "all")
    with pytest.raises(UserError, match="4x5"):
        tta.tta_logits(lambda images: images, IMAGES[:, :4], "dihedral")
