"""What does a chest X-ray look like when its lungs are clear, hold a focal consolidation, or a diffuse marking?

    python -m input_pipeline.simulate --study=pneumonia --out=DIR      (or --study=lung_masks)

A frontal X-ray is drawn from a chest's own shape (`Chest`: lungs, heart, spine, ribs; one for each patient) and from
what differs between films of one patient (position, exposure, noise). This is no model of disease: bacterial pneumonia
is one or two soft-edged patches inside a lung, viral pneumonia a fine net over both lungs that is densest around the
hila, tuberculosis (of the mask study) nodules in the apices. Exposure varies more than an opacity changes the mean
brightness, so that a network has to look at shape and place. Some films are marked `R` and some opacities are faint.

Lengths are in units of half the image's side, positions (x, y) in -1..1 with y downwards.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from input_pipeline import images, simulate
from input_pipeline.cli import progress
from input_pipeline.simulate_field import blur, texture

PNEUMONIA_TRAIN = 600  # the study has 5,216 images, and 16 called val
PNEUMONIA_TEST = 120  # the study has 624
MASKS_TRAIN = 110  # the four public sets have 704 together
SHARES = {"normal": 1341, "bacteria": 2530, "virus": 1345}  # of the study's 5,216
VALIDATION = 16  # images of the study's folder `val`, half of them normal and half bacterial
# Raise it with every change that changes an image: another version's folder is not mistaken for this one.
VERSION = 1
_REFERENCE = 128  # pixels; textures and the blur of the film are stated for it and scale
_MOST = 20_000  # images that may be asked for
_RGB_EVERY = 17  # one image in so many is stored as RGB, as some of the study's are


class Chest(NamedTuple):
    """The shape of one patient's chest; `side` counts the image's left lung first, then its right one."""

    apex: np.ndarray  # [side] y of the top of the lungs
    base: np.ndarray  # [side] y of the diaphragm's dome
    outer: np.ndarray  # [side] |x| of the lateral border at its widest
    inner: float  # |x| of the medial border above the heart
    taper: float  # how much narrower the apex is, 0..1
    heart: np.ndarray  # x of its centre, half axis across
    dome: float  # height of the diaphragm's dome
    ribs: np.ndarray  # [side, rib, (y at the spine, slope, thickness, brightness)]
    tissue: np.ndarray  # [128, 128] uneven absorption of muscle, vessels and skin, about -1..1


def draw_chest(rng: np.random.Generator) -> Chest:
    """A random chest. Two patients differ enough not to be taken for one photograph (duplicates.py)."""
    apex, base, count = rng.uniform(-0.82, -0.58), rng.uniform(0.26, 0.56), int(rng.integers(7, 11))
    spacing = (base - apex + 0.2) / count
    ribs = np.empty((2, count, 4))
    ribs[..., 0] = apex - 0.1 + spacing * (np.arange(count) + rng.random() + rng.normal(0, 0.16, (2, count)))
    ribs[..., 1] = rng.uniform(0.15, 0.55) + rng.normal(0, 0.05, (2, count))
    ribs[..., 2] = spacing * rng.uniform(0.12, 0.3, (2, count))
    ribs[..., 3] = rng.uniform(0.3, 1.2, (2, count))
    return Chest(
        apex=apex + rng.normal(0, 0.04, 2),
        base=base + rng.normal(0, 0.05, 2),
        outer=rng.uniform(0.52, 0.8) + rng.normal(0, 0.03, 2),
        inner=rng.uniform(0.08, 0.17),
        taper=rng.uniform(0.35, 0.7),
        heart=np.array([rng.uniform(0.0, 0.16), rng.uniform(0.2, 0.36)]),
        dome=rng.uniform(0.08, 0.26),
        ribs=ribs,
        tissue=sum(0.5 * texture(rng, _REFERENCE, grain) for grain in (5.0, 9.0, 20.0)),
    )


def _grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y `[S, S]` of the pixels in a chest that stands a little turned, shifted and zoomed."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    angle, zoom = np.float32(rng.normal(0, 0.05)), np.float32(rng.uniform(0.92, 1.15))
    shift = rng.normal(0, 0.05, 2).astype(np.float32)
    column, row = line[None] * zoom + shift[0], line[:, None] * zoom + shift[1]
    return column * np.cos(angle) + row * np.sin(angle), row * np.cos(angle) - column * np.sin(angle)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 far below zero, 1 far above, over about `width`."""
    return 1 / (1 + np.exp(-4 / width * np.clip(distance, -2 * width, 2 * width)))


def lung_depth(chest: Chest, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far inside a lung a position is, `[S, S]`: positive inside, negative outside, zero on the border."""
    side, lung = np.abs(x), (x > 0).astype(int)
    apex, base, widest = (values[lung].astype(np.float32) for values in (chest.apex, chest.base, chest.outer))
    height = np.clip((y - apex) / (base + chest.dome - apex), 0, 1)
    outer = widest * (1 - chest.taper * np.clip(1 - 1.6 * height, 0, 1) ** 2)
    # The heart pushes the medial border of the lungs outwards, mostly that of the image's right.
    centre, across = chest.heart
    reach = np.clip(1 - ((y - base + 0.25) / 0.42) ** 2, 0, 1) ** 0.5
    inner = np.maximum(chest.inner, (np.sign(x) * centre + across) * reach)
    # A dome that is deepest in the angle beside the ribs.
    middle = 0.4 * widest
    floor = base + chest.dome * ((side - middle) / (widest - middle)) ** 2
    roof = apex + 0.8 * ((side - 0.35 * widest) / widest) ** 2
    return np.minimum.reduce([outer - side, side - inner, floor - y, y - roof])


def _ribs(chest: Chest, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bright bands `[S, S]`: ribs that rise a little from the spine and fall outwards, and the clavicles."""
    side = np.abs(x)
    image = np.zeros_like(x)
    for lung, right in enumerate((x <= 0, x > 0)):
        bands = np.zeros_like(x)
        for height, slope, thickness, brightness in chest.ribs[lung].astype(np.float32):
            curve = height + slope * (2.2 * side**2 - 0.5 * side)
            bands += brightness * np.exp(-(((y - curve) / thickness) ** 2))
        clavicle = chest.apex[lung] + 0.16 - 0.25 * side
        bands += np.exp(-(((y - clavicle) / 0.035) ** 2)) * _soft(side - 0.12, 0.1)
        image = np.where(right, bands, image)
    return image


def _anatomy(chest: Chest, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Absorption `[S, S]` of a chest with clear lungs, 0 (air) to about 1."""
    side, apex, base = np.abs(x), float(chest.apex.mean()), float(chest.base.mean())
    wide = float(chest.outer.max())
    shoulders = _soft(y - apex + 0.2 - 0.45 * (side - 0.25).clip(0), 0.06)
    body = np.maximum(_soft(wide + 0.14 - side, 0.06) * shoulders, _soft(0.24 - side, 0.06) * (y < 0))
    spine = np.exp(-((side / 0.1) ** 4)) * (1 + 0.15 * np.cos(2 * np.pi * y / 0.12))
    centre, across = chest.heart
    heart = _soft(1 - np.hypot((x - centre) / across, (y - base + 0.25) / 0.42), 0.35)
    belly = _soft(y - base - 0.06, 0.2)
    image = body * (0.5 + 0.2 * spine + 0.2 * heart * (1 - belly) + 0.26 * belly - 0.33 * inside)
    scale = np.float32(_REFERENCE / 2)
    tissue = cv2.remap(chest.tissue, (x + 1) * scale, (y + 1) * scale, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    thorax = _soft(wide + 0.06 - side, 0.06) * _soft(base + 0.3 - y, 0.2)
    return image + body * (0.09 * _ribs(chest, x, y) * thorax + 0.045 * tissue)


def _patches(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Focal consolidation `[S, S]`: one patch in a lung, sometimes a second, with a ragged soft border."""
    image = np.zeros_like(x)
    weight = np.where((inside > 0.9) & (y > -0.45), inside, 0).ravel().astype(np.float64)
    ragged = texture(rng, len(x), 10 * len(x) / _REFERENCE)
    for _ in range(1 + (rng.random() < 0.3)):
        place = int(np.searchsorted(np.cumsum(weight), rng.random() * weight.sum()))
        centre_x, centre_y = x.flat[place], y.flat[place]
        axes = rng.uniform(0.14, 0.3, 2)
        distance = np.hypot((x - centre_x) / axes[0], (y - centre_y) / axes[1])
        same_lung = np.sign(x) == np.sign(centre_x)
        image = np.maximum(image, _soft(1 + 0.25 * ragged - distance, 0.5) * same_lung)
    return rng.uniform(0.14, 0.32) * image * inside


def _net(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Interstitial marking `[S, S]`: fine strands over both lungs, densest around the hila."""
    scale = len(x) / _REFERENCE
    strands = sum(np.exp(-((texture(rng, len(x), grain * scale) / 0.3) ** 2)) for grain in (5, 7.5)) / 2
    hila = np.exp(-(((np.abs(x) - 0.25) / 0.3) ** 2) - ((y + 0.05) / 0.45) ** 2)
    veil = 0.25 * hila
    return rng.uniform(0.12, 0.26) * inside * (strands * (0.45 + 0.75 * hila) + veil)


def _nodules(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Apical infiltrate `[S, S]`: several small nodules in the upper part of one lung."""
    image = np.zeros_like(x)
    side = rng.choice([-1, 1])
    for _ in range(int(rng.integers(3, 8))):
        centre = side * rng.uniform(0.2, 0.5), rng.uniform(-0.6, -0.25)
        image += np.exp(-(((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / rng.uniform(0.03, 0.07) ** 2))
    return rng.uniform(0.12, 0.25) * np.minimum(image, 1.2) * inside


OPACITIES = {"normal": None, "bacteria": _patches, "virus": _net, "tuberculosis": _nodules}
"""What is added to a clear lung for each class."""


def render(
    finding: str, chest: Chest, rng: np.random.Generator, size: int = _REFERENCE
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one film and the mask of its lungs.

    Args:
        finding: a key of `OPACITIES`.
        chest: the patient.
        rng: the only source of randomness; the same state gives the same film.
        size: S, height and width in pixels.

    Returns:
        uint8 `[S, S]`, and the lungs as float32 `[S, S]` in 0..1, soft over about two pixels at their border.
    """
    x, y = _grid(rng, size)
    depth = lung_depth(chest, x, y)
    mask = np.clip(0.5 + depth * size / 4, 0, 1).astype(np.float32)
    inside = _soft(depth, 0.05).astype(np.float32)
    image = _anatomy(chest, x, y, inside)
    opacity = OPACITIES[finding]
    if opacity is not None:
        image = image + opacity(rng, x, y, inside)
    image = blur(image.astype(np.float32), rng.uniform(0.5, 0.8) * size / _REFERENCE)
    image = image + rng.uniform(0.008, 0.02) * rng.standard_normal(image.shape, np.float32)
    exposed = np.clip(image, 0, 1.3) ** rng.uniform(0.8, 1.25) * rng.uniform(170, 255) + rng.uniform(0, 18)
    film = np.clip(np.rint(exposed), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        corner = (int(0.03 * size), int(rng.uniform(0.1, 0.4) * size))
        cv2.putText(film, "R", corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * size / _REFERENCE, 235, 1)
    return film, mask


class _Film(NamedTuple):
    """One X-ray to write; everything in it is drawn from the seed, `patient` and `number`."""

    path: str  # relative to the folder
    finding: str
    patient: tuple[int, ...]
    number: int
    mask_path: str = ""


def _write_films(films: Sequence[_Film], root: pathlib.Path, seed: int, size: int) -> list[int]:
    """Renders and writes a chunk: JPEG, or PNG with its mask; returns the numbers of the films."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for film in films:
            chest = draw_chest(np.random.default_rng([seed, 1, *film.patient]))
            rng = np.random.default_rng([seed, 2, *film.patient, film.number])
            image, mask = render(film.finding, chest, rng, size)
            if film.mask_path:
                (root / film.path).write_bytes(images.encode_png(image[..., None]))
                soft = np.rint(255 * mask).astype(np.uint8)
                (root / film.mask_path).write_bytes(images.encode_png(soft[..., None]))
            else:
                channels = 3 if film.number % _RGB_EVERY == 0 else 1
                pixels = np.repeat(image[..., None], channels, axis=2)
                data = simplejpeg.encode_jpeg(pixels, 92, "RGB" if channels == 3 else "GRAY")
                (root / film.path).write_bytes(data)
    finally:
        cv2.setNumThreads(threads)
    return [film.number for film in films]


def _simulate(
    study: str,
    out_dir: str | os.PathLike,
    films: Sequence[_Film],
    numbers: tuple[int, int],
    size: int,
    seed: int,
    workers: int | None,
) -> pathlib.Path:
    """Writes the films, and the marker, into a folder that appears when it is complete."""
    marker = (
        "The X-rays in this folder are simulated; nobody was exposed for them. Train and evaluate with them to try the "
        "code, never to learn about lungs.\n"
        f"study={study} train={numbers[0]} test={numbers[1]} size={size} seed={seed} version={VERSION}\n"
    )

    def fill(folder: pathlib.Path) -> None:
        for parent in {pathlib.Path(path).parent for film in films for path in (film.path, film.mask_path) if path}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        work = functools.partial(_write_films, root=folder, seed=seed, size=size)
        for _ in progress(simulate.in_parallel(work, films, workers), len(films), "simulating X-rays"):
            pass

    return simulate.build_folder(out_dir, marker, fill)


def _films_of(findings: Sequence[str], part: int, rng: np.random.Generator) -> Iterator[tuple[str, str, _Film]]:
    """Class folder, file name and film of each image; a patient has one to four films of one class.

    Patients are numbered from 1 in each part, as in the study: person1 of `test` is not person1 of `train`.
    """
    left: dict[str, int] = dict.fromkeys(SHARES, 0)
    patients: dict[str, int] = {}
    for number, finding in enumerate(findings, 1):
        if not left[finding]:
            left[finding] = int(rng.choice([1, 1, 1, 2, 2, 4]))
            patients[finding] = 1 + max(patients.values(), default=0)
        patient, left[finding] = patients[finding], left[finding] - 1
        film = _Film("", finding, (part, patient), number)
        if finding == "normal":
            yield "NORMAL", f"IM-{patient:04d}-{number:04d}.jpeg", film
        else:
            yield "PNEUMONIA", f"person{patient}_{finding}_{number}.jpeg", film


def pneumonia(
    out_dir: str | os.PathLike,
    num_train: int = PNEUMONIA_TRAIN,
    num_test: int = PNEUMONIA_TEST,
    size: int = _REFERENCE,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Writes simulated raw files of the pneumonia study in the layout of Kaggle's download.

    `chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, grey with a few RGB strays, classes in the study's
    proportions up to the luck of the draw. `val` holds the first normal and bacterial images, together an eighth of the
    train images and at most 16. The same arguments give the same bytes with the same numpy, OpenCV and simplejpeg,
    whatever `workers` is. The folder appears when it is complete; one that already holds this very simulation is kept.

    Args:
        out_dir: the folder to write; absent, empty, or holding the same simulation.
        num_train: images in `train` and `val` together, at least 24.
        num_test: images in `test`; without any, there is no such folder.
        size: height and width in pixels.
        seed: of everything drawn.
        workers: processes to render with; None = one for each core.

    Returns:
        The folder, absolute.

    Raises:
        UserError: if a number is out of range or the folder holds something else.
    """
    simulate.check(num_train, num_test, seed, _MOST, 24, size, workers)
    names, counts = list(SHARES), np.array(list(SHARES.values()))
    films = []
    for part, (folder, number) in enumerate((("train", num_train), ("test", num_test))):
        # The first three are one of each class, so that even a small sample has them all.
        drawn = np.random.default_rng([seed, part, 0]).choice(len(names), number, p=counts / counts.sum())
        findings = [*names, *(names[k] for k in drawn)][:number]
        for_val = dict.fromkeys(("normal", "bacteria"), min(number // 16, VALIDATION // 2) if part == 0 else 0)
        for class_folder, name, film in _films_of(findings, part, np.random.default_rng([seed, part, 1])):
            held_out = film.number > len(names) and for_val.get(film.finding, 0) > 0
            if held_out:
                for_val[film.finding] -= 1
            where = f"chest_xray/{'val' if held_out else folder}/{class_folder}/{name}"
            films.append(film._replace(path=where))
    return _simulate("pneumonia", out_dir, films, (num_train, num_test), size, seed, workers)


def lung_masks(
    out_dir: str | os.PathLike,
    num_train: int = MASKS_TRAIN,
    num_test: int = 0,
    size: int = _REFERENCE,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Writes simulated pairs of X-ray and lung mask: `cxr/MCUCXR_0001_0.png` and `masks/MCUCXR_0001_0.png`.

    Masks are grey and antialiased, as those of public copies are. Every second X-ray or so has nodules (`_1`,
    tuberculosis). The arguments are those of `pneumonia`, except that the download has no test folder: the number of
    pairs is `num_train + num_test`, at least 1.
    """
    simulate.check(num_train, num_test, seed, _MOST, 1, size, workers)
    rng = np.random.default_rng([seed, 3])
    films = []
    for number, sick in enumerate(rng.permutation(num_train + num_test) % 2, 1):
        name = f"MCUCXR_{number:04d}_{sick}.png"
        films.append(_Film(f"cxr/{name}", ("normal", "tuberculosis")[sick], (2, number), number, f"masks/{name}"))
    return _simulate("lung_masks", out_dir, films, (num_train, num_test), size, seed, workers)
