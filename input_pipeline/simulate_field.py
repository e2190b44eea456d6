"""Where do the cells of a simulated field of view lie, and with which strokes is something drawn onto them?

Cells lie on a jittered lattice and meet where their elliptic distances are equal (an anisotropic Voronoi
diagram with bent borders); each gets a nucleus, two to four nucleoli and a centrosome beside the nucleus.

Lengths are in pixels, positions are (x, y); sizes are stated for an image of 128 pixels and scale with it.
"""

from typing import NamedTuple

import cv2
import numpy as np

REFERENCE_SIZE = 128


class Field(NamedTuple):
    """One field of view: n visible cells on an image of S x S pixels."""

    scale: float  # pixels per reference pixel
    owner: np.ndarray  # [S, S] int, the cell that a pixel belongs or is nearest to
    inside: np.ndarray  # [S, S] in 0..1, is the pixel within a cell
    edge: np.ndarray  # [S, S] distance to the cell's outline, negative outside
    nucleus: np.ndarray  # [S, S] in 0..1
    nucleus_depth: np.ndarray  # [S, S] 0 at the nuclear centre, 1 on its envelope
    nucleoli: np.ndarray  # [S, S] in 0..1
    reach: np.ndarray  # [n] cell radius
    centre: np.ndarray  # [n, 2] of the nucleus
    axes: np.ndarray  # [n, 2, 2] the nuclear ellipse: columns are its half axes
    centrosome: np.ndarray  # [n, 2]
    nucleolus: np.ndarray  # [m, 3] x, y, radius
    gain: np.ndarray  # [n] how much protein a cell expresses


def directions(angle: np.ndarray) -> np.ndarray:
    """Unit vectors `[..., 2]` at `angle [...]` radians."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def texture(rng: np.random.Generator, size: int, grain: float) -> np.ndarray:
    """Smooth noise `[S, S]` of zero mean and about unit variance whose blobs are `grain` pixels wide."""
    coarse = max(4, round(size / grain) + 3)
    noise = rng.standard_normal((coarse, coarse), np.float32)
    noise = cv2.resize(noise, None, fx=grain, fy=grain, interpolation=cv2.INTER_CUBIC)
    offset = (min(noise.shape) - size) // 2
    return noise[offset : offset + size, offset : offset + size]


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolves `image [S, S]` with a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def splat(points: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Adds `weights [M]` at `points [M, 2]` to an empty `[S, S]` image, shared by the four nearest pixels."""
    floor = np.floor(points)
    x, y = floor.astype(np.int64).T
    fx, fy = (points - floor).T
    valid = (x >= 0) & (y >= 0) & (x < size - 1) & (y < size - 1)
    x, y, fx, fy, weights = x[valid], y[valid], fx[valid], fy[valid], weights[valid]
    corner = y * size + x
    index = np.concatenate([corner, corner + 1, corner + size, corner + size + 1])
    share = np.concatenate([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    total = np.bincount(index, share * np.tile(weights, 4), minlength=size * size)
    return total.astype(np.float32).reshape(size, size)


def lookup(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of `image [S, S]` at the pixels nearest to `points [..., 2]`; outside, the border's values."""
    nearest = np.clip(np.rint(points), 0, image.shape[0] - 1).astype(np.int64)
    return image[nearest[..., 1], nearest[..., 0]]


def walk(
    rng: np.random.Generator, start: np.ndarray, heading: np.ndarray, steps: int, stride: float, bend: float
) -> np.ndarray:
    """Threads `[T, steps, 2]` from `start [T, 2]` along `heading [T]` that turn by ~`bend` radians a step."""
    angle = rng.standard_normal((len(start), steps), np.float32) * np.float32(bend)
    angle[:, 0] += heading
    path = np.float32(stride) * directions(np.cumsum(angle, 1))
    path[:, 0] += start
    return np.cumsum(path, 1)


def _place_cells(rng: np.random.Generator, size: int, spacing: float) -> np.ndarray:
    """Cell positions `[n, 2]`, also past the image: a jittered, turned hexagonal lattice with vacancies."""
    count = int(np.ceil(size / spacing)) + 3
    column, row = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    lattice = np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], -1).reshape(-1, 2) * spacing
    lattice = lattice + rng.uniform(-0.5, 0.5, 2) * spacing
    cosine, sine = directions(rng.uniform(0, 2 * np.pi))
    points = lattice @ np.array([[cosine, sine], [-sine, cosine]]) + size / 2
    points = points + rng.normal(0, 0.13 * spacing, points.shape)
    near = ((points > -0.7 * spacing) & (points < size + 0.7 * spacing)).all(1)
    # The middle is never vacant: an image without a whole cell would not show its labels.
    middle = (np.abs(points / size - 0.5) < 0.25).all(1)
    points = points[near & (middle | (rng.random(len(points)) > rng.uniform(0.02, 0.25)))]
    return points if middle.any() else np.vstack([points, [[size / 2, size / 2]]])


def _depth(x: np.ndarray, y: np.ndarray, points: np.ndarray, axes: np.ndarray, which: np.ndarray) -> np.ndarray:
    """|A^-1 (p - c)|^2 at p = (x, y) for the ellipses numbered `which`: below 1 within the ellipse.

    The centres c are `points [n, 2]`, the half axes A `axes [n, 2, 2]`. Written out, for a matrix product
    would wake the threads of the linear algebra library in each worker process.
    """
    inverse = np.linalg.inv(axes)
    a, b = inverse[:, 0].T.astype(np.float32)
    c, d = inverse[:, 1].T.astype(np.float32)
    e, f = np.einsum("nij,nj->in", inverse, points).astype(np.float32)
    total = np.square(a[which] * x + b[which] * y - e[which])
    total += np.square(c[which] * x + d[which] * y - f[which])
    return total


def _ellipses(rng: np.random.Generator, radius: np.ndarray, stretch: float) -> np.ndarray:
    """Half axes `[n, 2, 2]` (columns) of randomly turned ellipses with mean radius `radius [n]`."""
    direction = directions(rng.uniform(0, np.pi, len(radius)))
    ratio = np.exp(np.abs(rng.normal(0, stretch, len(radius))))
    along = direction * (radius * np.sqrt(ratio))[:, None]
    across = np.stack([-direction[:, 1], direction[:, 0]], 1) * (radius / np.sqrt(ratio))[:, None]
    return np.stack([along, across], 2)


def lay_out(rng: np.random.Generator, size: int) -> Field:
    """Draws the geometry of one field of view, about 4 to 12 cells, on `size` x `size` pixels."""
    scale = size / REFERENCE_SIZE
    spacing = rng.uniform(40, 60) * scale
    points = _place_cells(rng, size, spacing)
    reach = spacing * rng.uniform(0.5, 0.72) * np.exp(rng.normal(0, 0.08, len(points)))
    outline = _ellipses(rng, reach, 0.22)

    pixel = np.arange(size, dtype=np.float32)
    x, y = np.meshgrid(pixel, pixel)
    # Outlines bend because distances are measured in smoothly displaced coordinates.
    wobble = 0.045 * spacing
    wx, wy = x + wobble * texture(rng, size, spacing / 3), y + wobble * texture(rng, size, spacing / 3)
    distance = _depth(wx.ravel(), wy.ravel(), points, outline, np.arange(len(points))[:, None])
    owner = distance.argmin(0)
    pixels = np.arange(size * size)
    nearest = np.sqrt(distance[owner, pixels])
    distance[owner, pixels] = np.inf
    second = np.sqrt(distance.min(0))
    edge = np.minimum(1 - nearest, (second - nearest) / 2) * reach.astype(np.float32)[owner]
    edge = edge.reshape(size, size)

    visible = np.bincount(owner, minlength=len(points)) > 0
    owner = (np.cumsum(visible) - 1)[owner].reshape(size, size)
    points, reach = points[visible], reach[visible]
    inside = np.clip(edge / scale + 0.5, 0, 1)
    return _lay_out_nuclei(rng, scale, spacing, points, reach, owner, inside, edge, (wx + x) / 2, (wy + y) / 2)


def _lay_out_nuclei(
    rng: np.random.Generator,
    scale: float,
    spacing: float,
    points: np.ndarray,
    reach: np.ndarray,
    owner: np.ndarray,
    inside: np.ndarray,
    edge: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> Field:
    """Puts a nucleus with nucleoli and a centrosome into each of the cells that `lay_out` has drawn."""
    size, count = len(owner), len(points)
    radius = np.minimum(spacing * rng.uniform(0.27, 0.32), 0.58 * reach) * np.exp(rng.normal(0, 0.08, count))
    centre = points + directions(rng.uniform(0, 2 * np.pi, count)) * (0.18 * reach * rng.random(count))[:, None]
    axes = _ellipses(rng, radius, 0.2)
    depth = np.sqrt(_depth(x, y, centre, axes, owner))
    nucleus = np.clip((1 - depth) * radius.astype(np.float32)[owner] / scale + 0.5, 0, 1) * inside

    side = directions(rng.uniform(0, 2 * np.pi, count)) * rng.uniform(1.1, 1.25, count)[:, None]
    centrosome = centre + np.einsum("nij,nj->ni", axes, side)

    nucleolus = _place_nucleoli(rng, radius, centre, axes)
    return Field(
        scale,
        owner,
        inside,
        edge,
        nucleus,
        depth,
        _discs(rng, nucleolus, size) * nucleus,
        reach,
        centre,
        axes,
        centrosome,
        nucleolus,
        np.exp(rng.normal(0, 0.3, count)),
    )


def _place_nucleoli(rng: np.random.Generator, radius: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Two to four nucleoli (x, y, radius) `[m, 3]` spread around the middle of each of n nuclei."""
    count = len(radius)
    number = rng.integers(2, 5, count)
    cell = np.repeat(np.arange(count), number)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(number) - number, number)
    angle = 2 * np.pi * (rank / number[cell] + rng.uniform(-0.11, 0.11, len(cell)))
    angle = angle + rng.uniform(0, 2 * np.pi, count)[cell]
    place = directions(angle) * rng.uniform(0.34, 0.58, len(cell))[:, None]
    position = centre[cell] + np.einsum("nij,nj->ni", axes[cell], place)
    blob = radius[cell] * rng.uniform(0.17, 0.28, len(cell))
    return np.column_stack([position, blob])


def _discs(rng: np.random.Generator, discs: np.ndarray, size: int) -> np.ndarray:
    """Soft, slightly oval `discs [m, 3]` (x, y, radius) drawn as `[S, S]` in 0..1."""
    position, radius = discs[:, :2], discs[:, 2]
    canvas = np.zeros((size, size), np.uint8)
    oval = np.exp(rng.normal(0, 0.16, len(radius)))
    half = np.stack([radius * oval, radius / oval], 1)
    turn = rng.uniform(0, 180, len(radius))
    sixteenths = np.rint(np.concatenate([position, half], 1) * 16).astype(int).tolist()
    for (x, y, long, short), angle in zip(sixteenths, turn, strict=True):
        cv2.ellipse(canvas, (x, y), (long, short), angle, 0, 360, 255, -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def in_nuclei(rng: np.random.Generator, field: Field, cell: np.ndarray, limit: float) -> np.ndarray:
    """Random positions `[M, 2]` within `limit` of the nuclear radius, one for each entry of `cell [M]`."""
    place = directions(rng.uniform(0, 2 * np.pi, len(cell))) * (limit * np.sqrt(rng.random(len(cell))))[:, None]
    return field.centre[cell] + np.einsum("nij,nj->ni", field.axes[cell], place)


def repeat_cells(rng: np.random.Generator, field: Field, low: int, high: int) -> np.ndarray:
    """Cell numbers, each repeated `low`..`high` times."""
    return np.repeat(np.arange(len(field.reach)), rng.integers(low, high + 1, len(field.reach)))


def draw_threads(field: Field, path: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Draws `path [T, steps, 2]` as `[S, S]`, each thread ending where it would leave its own cell."""
    own = np.logical_and.accumulate(lookup(field.owner, path) == cell[:, None], 1)
    weights = own * lookup(field.inside, path) * field.gain[cell][:, None]
    return splat(path.reshape(-1, 2), weights.ravel(), len(field.owner))


def expression(field: Field) -> np.ndarray:
    """How much protein the cell at each pixel expresses, `[S, S]`."""
    return field.gain.astype(np.float32)[field.owner]
