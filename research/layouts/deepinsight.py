"""Where does DeepInsight put the genes of a picture?

Sharma et al. 2019 (doi:10.1038/s41598-019-47765-6): every gene is a point whose coordinates are its values in the
training examples (scaled to 0..1 per gene). The points are embedded in the plane, the smallest rectangle that
contains their convex hull is turned upright and laid over the pixels, and each gene belongs to the pixel under its
point. Genes that share a pixel are averaged.

Embeddings: `tsne` with the cosine distance between genes, as in the authors' program pyDeepInsight, after a reduction
to 50 dimensions when there are more examples than that (van der Maaten and Hinton 2008, section 4.2; without centring,
which keeps the cosines); `pca`; and `umap`, also with the cosine distance, if umap-learn is installed. Of 10,404 genes
t-SNE takes two minutes on two cores, PCA two seconds.

Up to its version 0.2.3 pyDeepInsight turns the hull by the angle of an edge instead of back by it, and leaves out the
edge that closes the hull, so that its rectangle is as a rule not the smallest; here it is. Hull and pixels are
otherwise the same, which the tests show with its figures.
"""

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from input_pipeline.cli import UserError

METHODS = ("tsne", "pca", "umap")
DIMENSIONS = 50
PERPLEXITY = 30.0
NEIGHBOURS = 15


def embed(values: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Points in the plane, one for each gene.

    Args:
      values: `[N, G]`, the training examples, finite.
      method: one of `METHODS`.
      seed: of what the method draws.

    Returns:
      float64 `[G, 2]`.

    Raises:
      UserError: too few genes or examples, an unknown method, or umap-learn is missing.
    """
    if method not in METHODS:
        raise UserError(f"the method {method!r} is unknown; choose of {', '.join(METHODS)}.")
    if values.shape[1] < 4 or values.shape[0] < 2:
        raise UserError(
            f"DeepInsight needs at least 4 genes that vary and 2 training examples, not {values.shape[1]} and "
            f"{values.shape[0]}; choose another layout."
        )
    points = _unit_range(np.asarray(values, np.float32)).T
    if method == "pca":
        from sklearn.decomposition import PCA

        with np.errstate(invalid="ignore"):  # shares of a variance of zero, which nobody asks for
            return PCA(2, random_state=seed).fit_transform(points.astype(np.float64))
    if min(points.shape) > DIMENSIONS:
        from sklearn.decomposition import TruncatedSVD

        points = TruncatedSVD(DIMENSIONS, random_state=seed).fit_transform(points)
    return np.asarray(_tsne(points, seed) if method == "tsne" else _umap(points, seed), np.float64)


def _unit_range(values: np.ndarray) -> np.ndarray:
    """Each gene scaled to 0..1; a gene without variation becomes 0."""
    least = values.min(0)
    extent = values.max(0) - least
    return (values - least) * np.divide(1.0, extent, out=np.zeros_like(extent), where=extent > 0)


def _tsne(points: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)  # a point has to have three times as many neighbours
    return TSNE(2, metric="cosine", perplexity=perplexity, init="random", random_state=seed).fit_transform(points)


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError:
        raise UserError(
            "the layout 'deepinsight_umap' needs umap-learn; run `pip install umap-learn`, or choose 'deepinsight'."
        ) from None
    neighbours = min(NEIGHBOURS, len(points) - 1)
    return umap.UMAP(n_components=2, metric="cosine", n_neighbors=neighbours, random_state=seed).fit_transform(points)


def smallest_rectangle(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation that turns the smallest rectangle around the points upright.

    One side of that rectangle lies along an edge of the convex hull (Freeman and Shapira 1975), so the directions of
    all edges are tried.

    Args:
      points: float64 `[G, 2]`.

    Returns:
      Rotation float64 `[2, 2]`, `points @ rotation.T` are the upright ones; and the numbers of the points at the
      corners of the hull.

    Raises:
      UserError: the points lie on a line.
    """
    try:
        corners = ConvexHull(points).vertices
    except (QhullError, ValueError):
        raise UserError(
            "the genes' points lie on a line, because too few training examples tell the genes apart; choose another "
            "layout, or give more examples."
        ) from None
    hull = points[corners]
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2))
    cosines, sines = np.cos(angles), np.sin(angles)
    rotations = np.stack([np.stack([cosines, sines], -1), np.stack([-sines, cosines], -1)], 1)
    areas = np.prod(np.ptp(np.einsum("rij,cj->rci", rotations, hull), axis=1), axis=1)
    # Equal areas up to rounding: the smallest angle, whatever the processor makes of the last digits.
    return rotations[np.argmax(areas <= areas.min() * (1 + 1e-9))], corners


def rasterise(points: np.ndarray, side: int) -> np.ndarray:
    """The pixel of each point when the smallest rectangle around them is stretched over the picture.

    Args:
      points: float64 `[G, 2]`.
      side: pixels of a side.

    Returns:
      Row-major numbers int32 `[G]`; the first coordinate of the upright points counts rows.
    """
    rotation, _ = smallest_rectangle(points)
    upright = points @ rotation.T
    least = upright.min(0)
    scaled = (upright - least) / (upright.max(0) - least) * side
    row, column = np.minimum(np.floor(scaled).astype(np.int32), side - 1).T
    return row * np.int32(side) + column
