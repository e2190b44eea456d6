"""Are the pictures those of loops over genes and pixels, and do attributions find back to the genes?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.layouts import render as rendering
from research.layouts.layout import Layout
from research.layouts.render import prepare, render, to_genes
from research.layouts.scaling import KINDS, Scale, fit_scale

NONE = Scale(np.float32(0), np.float32(1), "none")


def layout_of(pixel, side: int) -> Layout:
    return Layout("random", tuple(f"G{number}" for number in range(len(pixel))), side, np.array(pixel))


def layouts() -> dict[str, Layout]:
    random = np.random.default_rng(0)
    crowded = np.repeat([7, 3, 20, 0, 24], [1, 4, 5, 17, 70])
    return {
        "one": layout_of([0], 1),
        "full": layout_of(random.permutation(25), 5),
        "zeros behind": layout_of(random.permutation(19), 5),
        "left out": layout_of([3, -1, 0, -1, 8], 3),
        "nothing": layout_of([-1, -1], 2),
        "few share": layout_of([2, 2, 0, 3, 2, 8], 3),
        "many share": layout_of(random.permutation(crowded), 5),
        "at random": layout_of(random.integers(-1, 49, 200), 7),
    }


NAMES = list(layouts())
SIZES = [(name, 1, "nearest") for name in NAMES] + [
    ("full", 3, "nearest"),
    ("full", 1.7, "bilinear"),
    ("many share", 2.6, "nearest"),
    ("at random", 1.7, "bilinear"),
]


def values_of(layout: Layout, batch: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(5, 3, (batch, 1, len(layout.genes), 1)), jnp.float32)


def picture(layout: Layout, vector: np.ndarray) -> np.ndarray:
    """Means of the genes of every pixel, by loops."""
    found = np.zeros(layout.side**2)
    for number in range(layout.side**2):
        genes = [vector[gene] for gene, pixel in enumerate(layout.pixel) if pixel == number]
        found[number] = np.mean(genes) if genes else 0
    return found.reshape(layout.side, layout.side)


@pytest.mark.parametrize("name, kind", [(name, "gene") for name in NAMES] + [("many share", kind) for kind in KINDS])
def test_pictures_equal_loops(name, kind):
    layout = layouts()[name]
    values = values_of(layout)
    scale = fit_scale(kind, np.asarray(values)[:2, 0, :, 0])
    times = 2
    images = jax.jit(lambda v, t, s: render(v, t, s, times * layout.side, 3))(values, prepare(layout), scale)
    assert images.shape == (3, times * layout.side, times * layout.side, 3) and images.dtype == jnp.float32
    for image, vector in zip(images, scale(values[:, 0, :, 0]), strict=True):
        expected = np.kron(picture(layout, np.asarray(vector)), np.ones((times, times)))
        for channel in range(3):
            np.testing.assert_allclose(image[..., channel], expected, rtol=1e-5, atol=1e-6)


def test_tables_are_of_bounded_width_and_hold_every_gene_once():
    for layout in layouts().values():
        tables = prepare(layout)
        assert all(table.shape[1] <= rendering.FAN for table in tables.tables)
        assert tables.tables[-1].shape[0] == layout.side**2
        genes = tables.tables[0][tables.tables[0] < len(layout.genes)]
        assert sorted(genes.tolist()) == np.flatnonzero(layout.placed).tolist()
        assert (tables.share is None) == (layout.counts().max() <= 1)
        assert sum(table.size for table in tables.tables) <= rendering.FAN * (layout.side**2 * 2 + len(layout.genes))


@pytest.mark.parametrize("side, size", [(3, 7), (5, 13), (102, 224)])
def test_nearest_takes_the_pixel_under_each_centre(side, size):
    pixels = jnp.arange(2.0 * side * side).reshape(2, side, side)
    enlarged = rendering.enlarge(pixels, size)
    place = ((np.arange(size) + 0.5) * side / size).astype(int)
    np.testing.assert_array_equal(enlarged, np.asarray(pixels)[:, place][:, :, place])


def test_bilinear_is_opencv_s_and_averages_when_it_shrinks():
    import cv2

    pixels = np.random.default_rng(2).normal(size=(2, 5, 5)).astype(np.float32)
    for size in (10, 13):
        expected = np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR) for one in pixels])
        np.testing.assert_allclose(rendering.enlarge(jnp.asarray(pixels), size, "bilinear"), expected, atol=1e-5)
    np.testing.assert_allclose(rendering.enlarge(jnp.ones((1, 9, 9)), 4, "bilinear"), np.ones((1, 4, 4)), rtol=1e-5)
    np.testing.assert_array_equal(rendering.enlarge(jnp.asarray(pixels), 5, "bilinear"), pixels)


@pytest.mark.parametrize("name, times, method", SIZES)
def test_gradients_are_differences(name, times, method):
    """The pictures are linear in the scaled values, so a difference of any length is exact."""
    layout = layouts()[name]
    size, tables = int(np.ceil(times * layout.side)), prepare(layout)
    weights = np.random.default_rng(3).normal(size=(1, size, size, 2)).astype(np.float32)
    steps = np.eye(len(layout.genes), dtype=np.float32)[:40, None, :, None]

    def total(vectors):
        return jnp.sum(weights * render(vectors, tables, NONE, size, 2, method), axis=(1, 2, 3))

    @jax.jit
    def measured(vectors):
        gradient = jax.grad(lambda values: total(values)[0])(vectors)[0, 0, :, 0]
        return gradient, total(steps), to_genes(weights, tables, method)[0]

    gradient, differences, transposed = map(np.asarray, measured(values_of(layout, 1)))
    np.testing.assert_allclose(gradient[:40], differences, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(transposed, gradient, rtol=1e-4, atol=1e-4)
    assert not np.any(gradient[~layout.placed])


@pytest.mark.parametrize("name, times, method", SIZES)
def test_sums_of_attributions_are_kept(name, times, method):
    """Of linear scores of the pictures: weight times value, summed over the pixels and over the genes."""
    layout = layouts()[name]
    size, tables = int(np.ceil(times * layout.side)), prepare(layout)
    weights = np.random.default_rng(3).normal(size=(3, size, size, 3)).astype(np.float32)

    @jax.jit
    def measured(values):
        images, transpose = jax.vjp(lambda vectors: render(vectors, tables, NONE, size, 3, method), values)
        return weights * images, to_genes(weights * images, tables, method), transpose(weights)[0] * values

    attributions, genes, by_vectors = map(np.asarray, measured(values_of(layout)))
    expected, largest = attributions.sum((1, 2, 3)), np.abs(attributions).sum((1, 2, 3)).max()
    if method == "nearest" or layout.counts().min() > 0:  # else empty pixels have a part of their neighbours'
        np.testing.assert_allclose(genes.sum(1), expected, atol=1e-5 * largest)
    # By the vectors themselves the sum is the score in any case: the pictures are linear in them.
    np.testing.assert_allclose(by_vectors.sum((1, 2, 3)), expected, atol=1e-5 * largest)


def test_genes_that_share_a_pixel_share_its_attribution():
    layout = layout_of([0, 0, 3, -1], 2)
    attributions = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(6.0).at[0, 1, 1, 0].set(-2.0).at[0, 0, 1, 0].set(9.0)
    np.testing.assert_allclose(to_genes(attributions, prepare(layout)), [[3.0, 3.0, -2.0, 0.0]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": jnp.zeros((2, 1, 4, 1))}, "do not fit a layout of 5 genes"),
        ({"values": jnp.zeros((2, 5))}, "do not fit a layout"),
        ({"values": jnp.zeros((2, 5, 1, 1))}, "do not fit a layout"),
        ({"size": 2}, "would leave out genes of a layout of 3; choose a larger image_size"),
        ({"size": 0, "method": "bilinear"}, "image of 0 pixels"),
        ({"method": "cubic"}, "'cubic' is unknown; choose of nearest, bilinear"),
    ],
)
def test_nonsense_is_refused(change, message):
    layout = layouts()["left out"]
    given = {"values": values_of(layout), "tables": prepare(layout), "scale": NONE, "size": 6} | change
    with pytest.raises(UserError, match=message):
        render(**given)
