"""What does a simulated scene look like? Shapes of 18 kinds, and some of no kind, before sky and ground.

Each kind is a list of primitives in a square from -1 to 1 (x to the right, y down), so that a kind is known by colour
and form together. Objects stand in cells of a grid, of random size, place, shade and direction; they do not overlap
much, so whatever is drawn can be seen.
"""

from collections.abc import Sequence

import cv2
import numpy as np

_FINE = 2  # drawn at this multiple of the size, then reduced, which smooths the borders

_SKIN, _DARK, _WHITE, _GREY = (224, 172, 130), (40, 40, 45), (240, 240, 240), (150, 150, 155)

# A primitive: ("o", colour, cx, cy, rx, ry) ellipse, ("O", …) its outline, ("p", colour, x, y, x, y, …) polygon,
# ("l", colour, x, y, x, y) line, ("c",) the colour of clothes, different for each person.
_CLOTHES = None
SHAPES = {
    "person": [
        ("p", (50, 60, 110), -0.3, 0.3, 0.3, 0.3, 0.3, 1, 0.07, 1, 0, 0.5, -0.07, 1, -0.3, 1),
        ("p", _CLOTHES, -0.4, -0.45, 0.4, -0.45, 0.5, 0.2, 0.3, 0.35, -0.3, 0.35, -0.5, 0.2),
        ("o", _SKIN, 0, -0.72, 0.24, 0.27),
    ],
    "bicycle": [
        ("O", (20, 120, 90), -0.55, 0.35, 0.4, 0.4), ("O", (20, 120, 90), 0.55, 0.35, 0.4, 0.4),
        ("l", (20, 120, 90), -0.55, 0.35, -0.1, -0.3), ("l", (20, 120, 90), -0.1, -0.3, 0.4, -0.3),
        ("l", (20, 120, 90), 0.55, 0.35, 0.35, -0.6), ("l", (20, 120, 90), 0, 0.35, -0.2, -0.5),
        ("l", (20, 120, 90), 0, 0.35, 0.4, -0.3), ("l", _DARK, 0.15, -0.6, 0.5, -0.6),
    ],
    "car": [
        ("p", (200, 30, 40), -1, 0.05, 1, 0.05, 1, 0.5, -1, 0.5),
        ("p", (200, 30, 40), -0.6, 0.05, -0.35, -0.4, 0.4, -0.4, 0.7, 0.05),
        ("p", (190, 220, 240), -0.4, 0, -0.25, -0.28, 0.3, -0.28, 0.45, 0),
        ("o", _DARK, -0.55, 0.5, 0.22, 0.22), ("o", _DARK, 0.55, 0.5, 0.22, 0.22),
    ],
    "motorcycle": [
        ("o", _DARK, -0.6, 0.4, 0.38, 0.38), ("o", _DARK, 0.6, 0.4, 0.38, 0.38),
        ("p", (240, 130, 20), -0.7, -0.1, 0.3, -0.25, 0.55, 0.2, -0.3, 0.35), ("l", _GREY, 0.6, 0.4, 0.35, -0.6),
        ("l", _DARK, 0.1, -0.65, 0.45, -0.55),
    ],
    "airplane": [
        ("p", (120, 170, 225), -0.1, -0.05, 0.25, -0.05, -0.25, -0.75, -0.45, -0.75),
        ("p", (120, 170, 225), -0.1, 0.05, 0.25, 0.05, -0.25, 0.75, -0.45, 0.75),
        ("p", (60, 110, 190), -0.75, 0, -0.55, 0, -0.8, -0.45, -0.98, -0.45), ("o", _WHITE, 0, 0, 1, 0.17),
        ("o", (60, 110, 190), 0.8, -0.03, 0.12, 0.07),
    ],
    "bus": [
        ("p", (245, 200, 20), -1, -0.55, 1, -0.55, 1, 0.5, -1, 0.5),
        ("p", (90, 110, 130), -0.85, -0.4, -0.4, -0.4, -0.4, -0.05, -0.85, -0.05),
        ("p", (90, 110, 130), -0.25, -0.4, 0.2, -0.4, 0.2, -0.05, -0.25, -0.05),
        ("p", (90, 110, 130), 0.35, -0.4, 0.85, -0.4, 0.85, -0.05, 0.35, -0.05),
        ("o", _DARK, -0.55, 0.5, 0.2, 0.2), ("o", _DARK, 0.55, 0.5, 0.2, 0.2),
    ],
    "train": [
        ("p", (40, 60, 170), -1, -0.1, 0.35, -0.1, 0.35, -0.65, 1, -0.65, 1, 0.45, -1, 0.45),
        ("p", _WHITE, -1, 0.1, 1, 0.1, 1, 0.2, -1, 0.2), ("p", _DARK, -0.85, -0.6, -0.6, -0.6, -0.6, -0.1, -0.85, -0.1),
        ("p", (200, 220, 240), 0.5, -0.5, 0.85, -0.5, 0.85, -0.15, 0.5, -0.15),
        *[("o", _DARK, x, 0.55, 0.17, 0.17) for x in (-0.75, -0.25, 0.25, 0.75)],
    ],
    "truck": [
        ("p", (90, 140, 60), -1, -0.6, 0.35, -0.6, 0.35, 0.4, -1, 0.4),
        ("p", (215, 215, 200), 0.42, -0.2, 0.75, -0.2, 1, 0.1, 1, 0.4, 0.42, 0.4),
        ("o", _DARK, -0.6, 0.5, 0.22, 0.22), ("o", _DARK, -0.1, 0.5, 0.22, 0.22), ("o", _DARK, 0.7, 0.5, 0.22, 0.22),
    ],
    "boat": [
        ("p", (130, 80, 40), -0.9, 0.35, 0.9, 0.35, 0.55, 0.8, -0.55, 0.8), ("l", _DARK, 0, 0.35, 0, -0.95),
        ("p", _WHITE, 0.06, -0.9, 0.75, 0.2, 0.06, 0.2), ("p", (235, 220, 190), -0.06, -0.7, -0.06, 0.2, -0.5, 0.2),
    ],
    "traffic light": [
        ("p", _DARK, -0.3, -0.95, 0.3, -0.95, 0.3, 0.55, -0.3, 0.55), ("l", _DARK, 0, 0.5, 0, 1),
        ("o", (235, 30, 30), 0, -0.68, 0.19, 0.19), ("o", (250, 200, 30), 0, -0.2, 0.19, 0.19),
        ("o", (40, 200, 70), 0, 0.28, 0.19, 0.19),
    ],
    "fire hydrant": [
        ("p", (235, 70, 40), -0.28, -0.45, 0.28, -0.45, 0.28, 0.75, -0.28, 0.75),
        ("o", (235, 70, 40), 0, -0.45, 0.28, 0.28),
        ("p", (200, 50, 30), -0.45, 0.7, 0.45, 0.7, 0.45, 0.95, -0.45, 0.95),
        ("o", (250, 190, 60), -0.4, 0, 0.16, 0.18), ("o", (250, 190, 60), 0.4, 0, 0.16, 0.18),
        ("o", (250, 190, 60), 0, -0.75, 0.1, 0.12),
    ],
    "stop sign": [
        ("l", _GREY, 0, 0.2, 0, 1),
        ("p", (190, 10, 30), -0.25, -0.95, 0.25, -0.95, 0.6, -0.6, 0.6, -0.1, 0.25, 0.25, -0.25, 0.25, -0.6, -0.1,
         -0.6, -0.6),
        ("p", _WHITE, -0.45, -0.46, 0.45, -0.46, 0.45, -0.24, -0.45, -0.24),
    ],
    "parking meter": [
        ("l", _GREY, 0, 0.1, 0, 1), ("o", (110, 115, 125), 0, -0.5, 0.38, 0.42),
        ("p", (110, 115, 125), -0.38, -0.5, 0.38, -0.5, 0.26, 0.15, -0.26, 0.15),
        ("o", (150, 230, 200), 0, -0.58, 0.24, 0.2),
    ],
    "bench": [
        ("p", (165, 105, 50), -0.95, -0.45, 0.95, -0.45, 0.95, -0.25, -0.95, -0.25),
        ("p", (165, 105, 50), -0.95, -0.15, 0.95, -0.15, 0.95, 0.05, -0.95, 0.05),
        ("p", (195, 135, 70), -1, 0.2, 1, 0.2, 1, 0.38, -1, 0.38), ("l", _DARK, -0.7, 0.35, -0.7, 0.9),
        ("l", _DARK, 0.7, 0.35, 0.7, 0.9),
    ],
    "bird": [
        ("o", (40, 180, 200), 0, 0.1, 0.5, 0.33), ("o", (40, 180, 200), 0.48, -0.22, 0.23, 0.23),
        ("p", (250, 180, 40), 0.66, -0.28, 0.98, -0.15, 0.66, -0.08),
        ("p", (20, 120, 150), -0.1, 0, -0.6, -0.65, 0.3, -0.05),
        ("p", (20, 120, 150), -0.4, 0.05, -0.98, -0.1, -0.9, 0.3),
    ],
    "cat": [
        ("p", (235, 150, 60), -0.68, -0.9, -0.1, -0.4, -0.6, -0.1),
        ("p", (235, 150, 60), 0.68, -0.9, 0.1, -0.4, 0.6, -0.1),
        ("o", (235, 150, 60), 0, 0.05, 0.7, 0.62), ("o", (60, 150, 60), -0.27, -0.08, 0.12, 0.15),
        ("o", (60, 150, 60), 0.27, -0.08, 0.12, 0.15), ("o", (230, 110, 120), 0, 0.22, 0.1, 0.08),
        ("l", _WHITE, -0.9, 0.2, -0.25, 0.3), ("l", _WHITE, 0.9, 0.2, 0.25, 0.3),
    ],
    "dog": [
        ("l", (120, 75, 45), -0.5, 0.2, -0.55, 0.95), ("l", (120, 75, 45), 0.25, 0.2, 0.3, 0.95),
        ("o", (120, 75, 45), -0.15, 0.2, 0.6, 0.3), ("o", (150, 100, 65), 0.55, -0.3, 0.3, 0.3),
        ("o", (80, 50, 30), 0.35, -0.25, 0.13, 0.32), ("o", (150, 100, 65), 0.82, -0.2, 0.17, 0.13),
        ("l", (120, 75, 45), -0.7, 0.1, -0.95, -0.4),
    ],
    "horse": [
        *[("l", (85, 40, 35), x, 0.1, x, 1) for x in (-0.5, -0.3, 0.3, 0.5)], ("o", (110, 50, 40), 0, 0.05, 0.65, 0.28),
        ("p", (110, 50, 40), 0.3, 0, 0.55, 0.1, 0.85, -0.6, 0.6, -0.85), ("o", (110, 50, 40), 0.8, -0.68, 0.2, 0.14),
        ("p", (30, 20, 20), 0.25, -0.1, 0.45, 0, 0.62, -0.85, 0.45, -0.8), ("l", (30, 20, 20), -0.6, 0, -0.9, 0.5),
    ],
}  # fmt: skip

OTHERS = {
    "tree": [
        ("p", (100, 70, 45), -0.12, 0.2, 0.12, 0.2, 0.12, 1, -0.12, 1), ("o", (50, 130, 55), 0, -0.3, 0.6, 0.62),
    ],
    "house": [
        ("p", (205, 190, 165), -0.7, -0.1, 0.7, -0.1, 0.7, 0.9, -0.7, 0.9),
        ("p", (140, 90, 80), -0.9, -0.1, 0, -0.9, 0.9, -0.1),
        ("p", (90, 70, 60), -0.15, 0.35, 0.2, 0.35, 0.2, 0.9, -0.15, 0.9),
    ],
    "cloud": [
        ("o", (235, 238, 242), -0.35, 0.1, 0.5, 0.3), ("o", (235, 238, 242), 0.35, 0.1, 0.55, 0.32),
        ("o", (235, 238, 242), 0, -0.15, 0.45, 0.35),
    ],
    "ball": [("o", (230, 90, 170), 0, 0.3, 0.5, 0.5), ("o", _WHITE, -0.15, 0.15, 0.15, 0.15)],
}  # fmt: skip
"""Things that are no label."""


def _jittered(colour: tuple | None, shade: np.ndarray, clothes: np.ndarray) -> tuple[int, ...]:
    chosen = clothes if colour is None else np.asarray(colour, np.float64)
    return tuple(int(v) for v in np.clip(chosen * shade, 0, 255))


def _draw(canvas: np.ndarray, shape: list, centre: np.ndarray, half: float, rng: np.random.Generator) -> None:
    """Draws one object into uint8 `[H, W, 3]`; `centre` (x, y) and `half`, its half size, in pixels."""
    flip = rng.choice((-1, 1))
    stretch = rng.uniform(0.88, 1.12)
    shade = rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)
    clothes = rng.uniform(30, 230, 3)
    scale = half * np.array([flip * stretch, 1 / stretch])
    thick = max(1, round(0.16 * half))
    for kind, colour, *numbers in shape:
        paint = _jittered(colour, shade, clothes)
        if kind in "oO":
            middle = tuple(int(v) for v in np.rint(centre + scale * numbers[:2]))
            axes = tuple(max(1, int(v)) for v in np.rint(np.abs(scale) * numbers[2:]))
            cv2.ellipse(canvas, middle, axes, 0, 0, 360, paint, -1 if kind == "o" else thick)
            continue
        points = np.rint(centre + scale * np.reshape(numbers, (-1, 2))).astype(np.int32)
        if kind == "p":
            cv2.fillPoly(canvas, [points], paint)
        else:
            cv2.line(canvas, tuple(map(int, points[0])), tuple(map(int, points[1])), paint, thick)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sky above ground, both shaded and slightly rough: uint8 `[H, W, 3]`."""
    skies, grounds = (
        [(170, 205, 235), (205, 205, 210), (235, 205, 175)],
        [(135, 170, 105), (175, 170, 160), (215, 200, 155)],
    )
    horizon = int(height * rng.uniform(0.3, 0.6))
    shade = np.linspace(0.88, 1.08, height)[:, None, None]
    colours = np.where(
        np.arange(height)[:, None] < horizon, skies[rng.integers(len(skies))], grounds[rng.integers(len(grounds))]
    )
    coarse = rng.normal(0, 9, (max(2, height // 12), max(2, width // 12), 3)).astype(np.float32)
    rough = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = colours[:, None] * shade * rng.uniform(0.85, 1.1) + rough
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(names: Sequence[str], rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Renders a scene.

    Args:
        names: what is in it, keys of `SHAPES`.
        rng: the only source of randomness; the same state gives the same picture.
        height, width: in pixels.

    Returns:
        uint8 `[height, width, 3]`, RGB.
    """
    size = np.array([width, height]) * _FINE
    canvas = _ground(rng, *size[::-1])
    others = list(OTHERS)
    extra = [others[k] for k in rng.permutation(len(others))[: rng.integers(0, 3)]]
    objects = [OTHERS[name] for name in extra] + [SHAPES[name] for name in names]
    side = max(2, int(np.ceil(np.sqrt(len(objects)))))
    cells = rng.permutation(side * side)[: len(objects)]
    for shape, cell in zip(objects, cells, strict=True):
        place = np.array([cell % side, cell // side]) + 0.5 + rng.uniform(-0.1, 0.1, 2)
        half = rng.uniform(0.35, 0.46) * (size / side).min()
        _draw(canvas, shape, place * size / side, half, rng)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = image * rng.uniform(0.85, 1.1) + rng.uniform(2, 7) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
