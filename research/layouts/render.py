"""How does a device draw a batch of expression vectors as pictures, and how do attributions find back to the genes?

Values are scaled (scaling.py), gathered to the pixels of a layout (layout.py), enlarged to the size that the network
wants and repeated for its channels. A layout becomes a `Gather`, tables of which genes each pixel takes, so that
nothing is scattered, also where genes share a pixel: the first table adds up to `FAN` genes at a time, the next one
those sums, until one number is left for every pixel. A scatter would add in any order on a GPU; gathers give the same
bits in every run. A pixel without a gene is 0 after the scaling.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.layouts.layout import Layout
from research.layouts.scaling import Scale

METHODS = ("nearest", "bilinear")
FAN = 4  # numbers that one step of a sum adds


@flax.struct.dataclass
class Gather:
    """A layout as tables, a pytree.

    Attributes:
      tables: int32 `[M_1, k_1]` ... `[P, k_n]`: each number of a level is the sum of these numbers of the level before;
        the first level takes genes. One past the last number means 0. P is `side ** 2`.
      share: float32 `[P]`, 1 / genes of the pixel, 0 where there are none; or None where no genes share a pixel.
      genes: G.
      side: pixels of a side.
    """

    tables: tuple[np.ndarray, ...]
    share: np.ndarray | None
    genes: int = flax.struct.field(pytree_node=False)
    side: int = flax.struct.field(pytree_node=False)


def prepare(layout: Layout) -> Gather:
    """The tables of a layout, on the host."""
    pixels, width = layout.side**2, FAN
    numbers = np.flatnonzero(layout.placed)
    numbers = numbers[np.argsort(layout.pixel[numbers], kind="stable")]  # of what each pixel takes, pixel by pixel
    counts = np.bincount(layout.pixel[layout.placed], minlength=pixels)
    share = None if counts.max() <= 1 else (1.0 / np.maximum(counts, 1) * (counts > 0)).astype(np.float32)
    available, tables = len(layout.genes), []
    while counts.max() > width:
        parts = -(-counts // width)
        tables.append(_table(numbers, counts, parts, width, available))
        available, numbers, counts = int(parts.sum()), np.arange(parts.sum()), parts
    tables.append(_table(numbers, counts, np.ones_like(counts), max(int(counts.max()), 1), available))
    return Gather(tuple(tables), share, len(layout.genes), layout.side)


def _table(numbers: np.ndarray, counts: np.ndarray, parts: np.ndarray, width: int, empty: int) -> np.ndarray:
    """`numbers`, of which each pixel has `counts`, in `parts` rows of `width` for each, filled up with `empty`."""
    table = np.full((int(parts.sum()), width), empty, np.int32)
    first_row, first_number = np.cumsum(parts) - parts, np.cumsum(counts) - counts
    pixel = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(len(numbers)) - first_number[pixel]
    table[first_row[pixel] + inside // width, inside % width] = numbers
    return table


def gather(values: jax.Array, tables: Gather) -> jax.Array:
    """Scaled values float32 `[B, G]` to pixels `[B, side, side]`: means of the genes of each, 0 where there is none."""
    outputs = values
    for table in tables.tables:
        padded = jnp.pad(outputs, ((0, 0), (0, 1)))
        # One gather for each column: XLA on CPU adds them in one loop, where it would store [B, M, k].
        outputs = sum(jnp.take(padded, column, axis=1, mode="clip") for column in jnp.asarray(table).T)
    if tables.share is not None:
        outputs = outputs * tables.share
    return outputs.reshape(-1, tables.side, tables.side)


def enlarge(pixels: jax.Array, size: int, method: str = "nearest") -> jax.Array:
    """Pictures `[B, side, side]` to `[B, size, size]`.

    Args:
      pixels: the pictures.
      size: pixels of a side; smaller than before only with "bilinear", which then averages.
      method: "nearest" or "bilinear", with pixels' centres as in `jax.image.resize`.

    Raises:
      UserError: an unknown method, or "nearest" would leave out pixels.
    """
    batch, side = pixels.shape[:2]
    if method not in METHODS:
        raise UserError(f"the enlargement {method!r} is unknown; choose of {', '.join(METHODS)}.")
    if size < 1 or (size < side and method == "nearest"):
        raise UserError(
            f"an image of {size} pixels a side would leave out genes of a layout of {side}; choose a larger "
            "image_size, or 'bilinear'."
        )
    if size == side:
        return pixels
    if method == "nearest" and size % side == 0:
        times = size // side
        return jnp.broadcast_to(pixels[:, :, None, :, None], (batch, side, times, side, times)).reshape(
            batch, size, size
        )
    return jax.image.resize(pixels, (batch, size, size), method)


def draw(values: jax.Array, tables: Gather, size: int, channels: int, method: str = "nearest") -> jax.Array:
    """The linear part of `render`: scaled values `[B, G]` to `[B, size, size, channels]`."""
    pictures = enlarge(gather(values, tables), size, method)
    return jnp.broadcast_to(pictures[..., None], (*pictures.shape, channels))


def render(
    values: jax.Array, tables: Gather, scale: Scale, size: int, channels: int = 3, method: str = "nearest"
) -> jax.Array:
    """Expression vectors to images.

    Args:
      values: `[B, 1, G, 1]` on a log2 scale.
      tables: of the layout, from `prepare`.
      scale: from `scaling.fit_scale`; its kind says in which range the values of the images are.
      size: S, pixels of a side of the images.
      channels: C; all are equal.
      method: "nearest" or "bilinear".

    Returns:
      float32 `[B, S, S, C]`.

    Raises:
      UserError: vectors of another length, or what `enlarge` refuses.
    """
    if values.ndim != 4 or values.shape[1:] != (1, tables.genes, 1):
        raise UserError(
            f"expression vectors of shape {values.shape} do not fit a layout of {tables.genes} genes; use the data set "
            "that the layout was built for."
        )
    return draw(scale(values[:, 0, :, 0]), tables, size, channels, method)


def to_genes(attributions: jax.Array, tables: Gather, method: str = "nearest") -> jax.Array:
    """Attributions of image values summed back to the genes: the transpose of `draw`.

    Every image value gives its attribution to the genes that it shows, by their share in it, so nothing is lost or
    counted twice: the sum over genes is the sum over the image values, less what lies on pixels without a gene (which
    attributions by gradient times difference leave at 0, except that "bilinear" draws their neighbours into them).
    Where genes share a pixel, they share its attribution equally whatever their values; the gradient by the expression
    vector itself, times the difference of the vectors, tells them apart.

    Args:
      attributions: `[B, S, S, C]`.
      tables: of the layout.
      method: with which the images were enlarged.

    Returns:
      float32 `[B, G]`; 0 for genes that the layout leaves out.
    """
    attributions = jnp.asarray(attributions, jnp.float32)
    batch, size, _, channels = attributions.shape
    vectors = jax.ShapeDtypeStruct((batch, tables.genes), jnp.float32)
    transpose = jax.linear_transpose(lambda values: draw(values, tables, size, channels, method), vectors)
    return transpose(attributions)[0]
