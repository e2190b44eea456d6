"""What does a fluorescence micrograph of cells look like when its protein sits in given organelles?

Every organelle has a pattern drawn on the cells of a field of view; the protein channel is the sum of the
patterns of an image's labels. This is no model of biology: it has the right objects at the right places, so
that a network must look at shape and place to name the organelle.

The protein channel is finally rank-mapped to a reference histogram drawn without looking at the labels (exact
histogram specification: Coltuc, Bolon and Chassery, IEEE TIP 2006): its own histogram tells nothing about the
label. Where it lies on the other two channels still does, as in real micrographs.
"""

from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.simulate_field import (
    REFERENCE_SIZE,
    Field,
    blur,
    directions,
    draw_threads,
    expression,
    in_nuclei,
    lay_out,
    lookup,
    repeat_cells,
    splat,
    texture,
    walk,
)


def mitochondria(rng: np.random.Generator, field: Field) -> np.ndarray:
    """Short bent threads in the cytoplasm, denser around the nucleus; in some images fragmented to grains."""
    cell = repeat_cells(rng, field, 50, 80)
    angle = rng.uniform(0, 2 * np.pi, len(cell))
    room = field.reach[cell] - 0.9 * np.linalg.norm(field.axes[cell], axis=(1, 2)) / np.sqrt(2)
    beyond = room * rng.random(len(cell)) ** 1.3
    wall = np.einsum("nij,nj->ni", field.axes[cell], directions(angle))
    start = field.centre[cell] + wall * (1.06 + beyond / np.linalg.norm(wall, axis=1))[:, None]
    heading = angle + rng.normal(np.pi / 2, 0.9, len(cell))
    steps = int(rng.integers(4, 14))
    image = draw_threads(field, walk(rng, start, heading, steps, 0.8 * field.scale, 0.3), cell)
    return blur(image * (1 - field.nucleus), 0.6 * field.scale)


def nuclear_bodies(rng: np.random.Generator, field: Field) -> np.ndarray:
    """A few bright round dots in the nucleus."""
    cell = repeat_cells(rng, field, 2, 6)
    points = in_nuclei(rng, field, cell, 0.8)
    weights = np.exp(rng.normal(0, 0.25, len(cell))) * field.gain[cell]
    image = splat(points, weights * (1 - 0.8 * lookup(field.nucleoli, points)), len(field.owner))
    return blur(image, rng.uniform(1.1, 1.4) * field.scale)


def nucleoli(rng: np.random.Generator, field: Field) -> np.ndarray:
    """The two to four large blobs in the nucleus."""
    return field.nucleoli * (1 + 0.15 * texture(rng, len(field.owner), 3 * field.scale))


def golgi_apparatus(rng: np.random.Generator, field: Field) -> np.ndarray:
    """A compact ribbon hugging one side of the nucleus, at the centrosome."""
    cell = repeat_cells(rng, field, 9, 15)
    outward = field.centrosome - field.centre
    distance = np.linalg.norm(outward, axis=1)[cell]
    across = np.arctan2(outward[:, 1], outward[:, 0])[cell]
    along = across + np.pi / 2
    spread = distance * rng.normal(0, 0.33, len(cell))
    lift = distance * rng.normal(0.06, 0.09, len(cell))
    # The ribbon follows the nuclear envelope: away from its middle it bends back around the nucleus.
    sag = spread**2 / (2.2 * distance)
    start = field.centrosome[cell] + directions(along) * spread[:, None] + directions(across) * (lift - sag)[:, None]
    path = walk(rng, start, along + rng.normal(0, 0.5, len(cell)), 6, 0.8 * field.scale, 0.4)
    return blur(draw_threads(field, path, cell) * (1 - 0.8 * field.nucleus), 0.8 * field.scale)


def nucleoplasm(rng: np.random.Generator, field: Field) -> np.ndarray:
    """The nucleus, evenly, except for the nucleoli."""
    grain = 1 + 0.1 * texture(rng, len(field.owner), 4 * field.scale)
    return field.nucleus * (1 - 0.8 * field.nucleoli) * grain * expression(field)


def nucleoli_fibrillar_center(rng: np.random.Generator, field: Field) -> np.ndarray:
    """Small dots clustered where the nucleoli are."""
    blob = np.repeat(np.arange(len(field.nucleolus)), rng.integers(2, 5, len(field.nucleolus)))
    x, y, radius = field.nucleolus[blob].T
    points = np.stack([x, y], 1) + directions(rng.uniform(0, 2 * np.pi, len(blob))) * (0.8 * radius)[:, None]
    weights = lookup(field.nucleus, points) * np.exp(rng.normal(0, 0.2, len(blob)))
    return blur(splat(points, weights, len(field.owner)), 0.75 * field.scale)


def cytosol(rng: np.random.Generator, field: Field) -> np.ndarray:
    """The cytoplasm, smoothly, thinning towards the outline; the nucleus is left out."""
    height = np.sqrt(np.clip(field.edge / field.reach.astype(np.float32)[field.owner], 0, 0.4) / 0.4)
    grain = 1 + 0.12 * texture(rng, len(field.owner), 5 * field.scale)
    return field.inside * (1 - 0.9 * field.nucleus) * (0.35 + 0.65 * height) * grain * expression(field)


def plasma_membrane(rng: np.random.Generator, field: Field) -> np.ndarray:
    """The outline of each cell, of uneven brightness."""
    width = rng.uniform(0.8, 1.3) * field.scale
    rim = np.exp(-0.5 * ((field.edge - field.scale) / width) ** 2)
    uneven = 0.75 + 0.45 * texture(rng, len(field.owner), 9 * field.scale)
    return rim * np.clip(uneven, 0.15, 1.6) * expression(field)


def centrosome(rng: np.random.Generator, field: Field) -> np.ndarray:
    """One or two dots beside the nucleus where the microtubules meet."""
    cell = repeat_cells(rng, field, 1, 2)
    points = field.centrosome[cell] + rng.normal(0, 1.2 * field.scale, (len(cell), 2))
    return blur(splat(points, field.gain[cell], len(field.owner)), rng.uniform(1.1, 1.4) * field.scale)


def nuclear_speckles(rng: np.random.Generator, field: Field) -> np.ndarray:
    """Many irregular spots of middling size in the nucleus, off the nucleoli."""
    cell = np.repeat(repeat_cells(rng, field, 14, 24), 3)
    middle = np.repeat(in_nuclei(rng, field, cell[::3], 0.85), 3, 0)
    points = middle + rng.normal(0, 1.0 * field.scale, middle.shape)
    weights = np.exp(rng.normal(0, 0.3, len(cell))) * field.gain[cell]
    image = splat(points, weights, len(field.owner)) * (1 - 0.9 * field.nucleoli) * field.nucleus
    return blur(image, 0.8 * field.scale)


# Position = label of the study.
PATTERNS: tuple[Callable[[np.random.Generator, Field], np.ndarray], ...] = (
    mitochondria,
    nuclear_bodies,
    nucleoli,
    golgi_apparatus,
    nucleoplasm,
    nucleoli_fibrillar_center,
    cytosol,
    plasma_membrane,
    centrosome,
    nuclear_speckles,
)


def microtubules(rng: np.random.Generator, field: Field) -> np.ndarray:
    """Filaments `[S, S]` from centrosome to outline, fainter above and below the nucleus; about 0..1."""
    cell = repeat_cells(rng, field, 40, 60)
    heading = rng.uniform(0, 2 * np.pi, len(cell))
    stride = 0.9 * field.scale
    steps = int(1.5 * field.reach.max() / stride)
    path = walk(rng, field.centrosome[cell], heading, steps, stride, 0.11)
    image = blur(draw_threads(field, path, cell), 0.6 * field.scale)
    image = np.minimum(image, 6 * image.mean()) * (1 - 0.6 * field.nucleus)
    return image / (4 * image.mean() + 1e-6) + 0.12 * field.inside


def chromatin(rng: np.random.Generator, field: Field) -> np.ndarray:
    """DNA `[S, S]`: clumped chromatin, darker nucleoli, brightness that differs as in the cell cycle."""
    brightness = np.exp(rng.normal(0, 0.3, len(field.reach))).astype(np.float32)[field.owner]
    clumps = 1 + 0.16 * texture(rng, len(field.owner), 3.5 * field.scale)
    dome = np.sqrt(np.clip(1.25 - field.nucleus_depth**2, 0, None))
    return field.nucleus * (1 - 0.55 * field.nucleoli) * clumps * dome * brightness


def protein(labels: Sequence[int], rng: np.random.Generator, field: Field) -> np.ndarray:
    """The protein before exposure `[S, S]`: the labels' patterns, each at its own intensity, and haze."""
    image = np.zeros_like(field.inside)
    for label in labels:
        pattern = PATTERNS[label](rng, field).astype(np.float32).clip(0)
        # Half of the bright part of a pattern reaches 1, whether it covers half a cell or three pixels of it.
        peak = np.median(pattern[pattern >= 0.2 * pattern.max()])
        image = image + pattern / (peak + 1e-6) * rng.uniform(0.55, 1.0)
    # Light from out of focus, and unspecific staining which thickens towards the middle of a cell.
    image = image + rng.uniform(0.06, 0.16) * blur(image, 5 * field.scale)
    height = np.sqrt(np.clip(field.edge / field.reach.astype(np.float32)[field.owner], 0, 0.6) / 0.6)
    cloud = 1 + 0.25 * texture(rng, len(image), 7 * field.scale)
    cloud = cloud + 0.15 * texture(rng, len(image), 3 * field.scale)
    return image + rng.uniform(0.04, 0.1) * field.inside * (0.3 + 0.7 * height) * cloud * expression(field)


def _camera(rng: np.random.Generator, image: np.ndarray, noise: float) -> np.ndarray:
    """Adds photon and read-out noise to `image [S, S]`."""
    # The variance of photon counts is their mean; that of the read-out is constant.
    return image + noise * np.sqrt(image.clip(0) + 0.06) * rng.standard_normal(image.shape, np.float32)


def _expose(rng: np.random.Generator, image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scales `image [S, S]` so that its 99th percentile falls at random between `low` and `high` of 255."""
    top = np.partition(image.ravel(), int(0.99 * image.size))[int(0.99 * image.size)]
    return image / (top + 1e-6) * rng.uniform(low, high) + rng.uniform(0, 10)


def _specify_histogram(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Replaces the k-th smallest value of `image [S, S]` by that of a random, label-blind reference."""
    steepness, floor, ceiling = rng.uniform(3.5, 8), rng.uniform(0, 14), rng.uniform(130, 255)
    quantile = np.linspace(0, 1, image.size, dtype=np.float32)
    reference = floor + (ceiling - floor) * np.expm1(steepness * quantile) / np.expm1(steepness)
    mapped = np.empty(image.size, np.float32)
    mapped[np.argsort(image, axis=None, kind="stable")] = reference
    return mapped.reshape(image.shape)


def render(labels: Sequence[int], rng: np.random.Generator, size: int = REFERENCE_SIZE) -> np.ndarray:
    """Renders one micrograph whose protein sits in the organelles `labels` (indices 0..9, see `PATTERNS`).

    Args:
      labels: indices into `PATTERNS`, at least one.
      rng: the only source of randomness; the same state gives the same image.
      size: height and width in pixels, at least 32.

    Returns:
      uint8 `[size, size, 3]`: red = microtubules, green = protein, blue = nucleus.
    """
    field = lay_out(rng, size)
    focus = rng.uniform(0.45, 0.8) * field.scale
    noise = rng.uniform(0.01, 0.035)
    red = _expose(rng, _camera(rng, blur(microtubules(rng, field), focus), 2 * noise), 70, 230)
    blue = _expose(rng, _camera(rng, blur(chromatin(rng, field), focus), noise), 90, 235)
    green = _camera(rng, blur(protein(labels, rng, field), focus), noise)
    # A little of the other dyes bleeds into the protein channel.
    green = green + rng.uniform(0, 0.00006) * (red + blue)
    image = np.stack([red, _specify_histogram(rng, green), blue], -1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
