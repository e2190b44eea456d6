"""What does the authors' program pyDeepInsight say where our DeepInsight layout and scaling are compared with it?

Runs where pyDeepInsight 0.2.3 is installed (GPL-3, so only its numbers are kept here), never in the test suite:

    python -m venv VENV && VENV/bin/pip install pyDeepInsight==0.2.3 torch
    VENV/bin/python tests/research/layouts/make_deepinsight_golden.py

Writes deepinsight_golden.json beside itself. The tests use all of it but `main`.

pyDeepInsight turns the hull by the angle of an edge in place of back by it, so its rectangle is the smallest only where
the hull has an edge of the opposite angle as well. `cloud` has one, unless told otherwise.
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("deepinsight_golden.json")
# (seed, points, degrees, side, whether the hull has an edge of the opposite angle)
CASES = (
    (0, 37, 20.0, 5, True),
    (1, 150, 33.0, 8, True),
    (2, 61, 12.5, 11, True),
    (3, 40, 25.0, 6, False),
)


def cloud(seed: int, count: int, degrees: float, opposite: bool) -> np.ndarray:
    """Points float64 `[count, 2]` in a rectangle of 9 x 5 turned by `degrees`, one corner of which may be cut off."""
    random = np.random.default_rng(seed)
    angle = np.radians(degrees)
    cut = np.tan(2 * angle)
    corners = [(9.0, 0.0), (9.0, 5.0), (0.0, 5.0), *([(1.5, 0.0), (0.0, 1.5 * cut)] if opposite else [(0.0, 0.0)])]
    inner = random.uniform((0, 0), (9, 5), (20 * count, 2))
    inner = inner[(inner[:, 0] / 1.5 + inner[:, 1] / (1.5 * cut) > 1) | (not opposite)][: count - len(corners)]
    points = random.permutation(np.concatenate([corners, inner]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T


def matrix(seed: int, samples: int, genes: int) -> np.ndarray:
    """Values float64 `[samples, genes]`, some of them negative."""
    random = np.random.default_rng(seed)
    return random.normal(random.uniform(-1, 6, genes), random.uniform(0, 2, genes), (samples, genes))


def scaling_values() -> tuple[np.ndarray, np.ndarray]:
    """Training values `[9, 7]`, and others `[5, 7]` that go beyond them, but not as far as pyDeepInsight's NaN."""
    train = matrix(10, 9, 7)
    return train, np.maximum(matrix(11, 5, 7) * 1.5 - 2, -np.abs(train.min(0)) - 0.7)


class _Given:
    """A feature extractor that gives the points themselves."""

    def fit_transform(self, points):
        return points


def main() -> None:
    """Writes the file."""
    from pyDeepInsight import ImageTransformer
    from pyDeepInsight.utils import Norm2Scaler
    from scipy.spatial import ConvexHull

    cases = []
    for seed, count, degrees, side, opposite in CASES:
        points = cloud(seed, count, degrees, opposite)
        transformer = ImageTransformer(feature_extractor=_Given(), pixels=side)
        transformer.fit(points.T)
        values = matrix(seed, 3, count)
        pictures = transformer.transform(values, img_format="scalar")
        hull = ConvexHull(points).vertices
        _, turn = transformer._minimum_bounding_rectangle(points[hull])
        cases.append(
            {
                "hull": sorted(hull.tolist()),
                "area": float(np.prod(np.ptp(points @ turn.T, axis=0))),
                "coordinates": transformer.coords().tolist(),
                "pictures": pictures.tolist(),
            }
        )
    train, other = scaling_values()
    scaler = Norm2Scaler().fit(train)
    scaled = {"train": scaler.transform(train).tolist(), "other": scaler.transform(other).tolist()}
    FILE.write_text(json.dumps({"cases": cases, "norm2": scaled}) + "\n")


if __name__ == "__main__":
    main()
