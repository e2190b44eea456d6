"""Are nuclei and cells found where they are, parted where they touch, and stored as `prepare` is asked to?"""

import json

import cv2
import numpy as np
import pytest

from input_pipeline import images, nuclei, prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.nuclei import CellFinder

HEIGHT, WIDTH = 151, 203
DISCS = [(40, 50, 15), (40, 74, 14), (100, 150, 20), (110, 40, 12)]  # row, column, radius; the first two touch


def disc(row, column, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def scene(seed=0, dtype=np.uint8):
    """DNA, cytoskeleton, and the truth of both, as bool."""
    rng = np.random.default_rng(seed)
    kernels = np.any([disc(*own) for own in DISCS], axis=0)
    bodies = np.any([disc(row, column, 1.8 * radius) for row, column, radius in DISCS], axis=0)
    planes = [180 * kernels + 20, 120 * bodies + 15]
    planes = [np.clip(plane + rng.normal(0, 12, plane.shape), 0, 255) for plane in planes]
    scale = 257 if dtype == np.uint16 else 1
    return *[(plane.astype(np.uint8) * dtype(scale)).astype(dtype) for plane in planes], kernels, bodies


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_nuclei_are_found_and_parted(dtype):
    dna, _, truth, _ = scene(dtype=dtype)
    found = nuclei.nuclei(dna)
    assert found.dtype == np.int32 and sorted(np.unique(found)) == list(range(5))
    assert overlap(found > 0, truth) > 0.9
    for own in DISCS[2:]:
        inside = found[disc(*own)]
        assert len(np.unique(inside[inside > 0])) == 1
    first, second = (found[row, column] for row, column, _ in DISCS[:2])
    assert first != second and 0 not in (first, second)


def test_the_threshold_is_otsus():
    dna = scene(3)[0]
    root = np.sqrt(cv2.GaussianBlur(dna.astype(np.float32), (0, 0), min(dna.shape) / 96))
    # Otsu 1979: the cut with the greatest variance between the two sides, by trying all.
    cuts = np.unique(root)[1:-1:7]
    between = []
    for cut in cuts:
        high, low = root[root > cut], root[root <= cut]
        between.append(len(high) * len(low) * (high.mean() - low.mean()) ** 2)
    assert overlap(nuclei.nuclei(dna) > 0, root > cuts[int(np.argmax(between))]) > 0.95


def test_cells_grow_from_their_nuclei():
    dna, cytoskeleton, _, truth = scene()
    kernels = nuclei.nuclei(dna)
    found = nuclei.cells(kernels, cytoskeleton)
    assert set(np.unique(found)) == set(np.unique(kernels)) and overlap(found > 0, truth) > 0.85
    np.testing.assert_array_equal(found[kernels > 0], kernels[kernels > 0])
    assert found[100, 150 + 32] == found[100, 150]


@pytest.mark.parametrize("plane", [np.zeros((9, 7), np.uint8), np.full((1, 1), 3, np.uint8), np.eye(5, dtype=np.uint8)])
def test_nothing_there(plane):
    assert nuclei.nuclei(plane).shape == plane.shape
    assert not nuclei.nuclei(np.zeros_like(plane)).any()
    assert not nuclei.cells(np.zeros(plane.shape, np.int32), plane).any()


def test_a_box_with_its_margin():
    mask = np.zeros((50, 60), bool)
    mask[10:30, 0:40] = True
    assert nuclei.box_around(mask) == (slice(9, 31), slice(0, 42))
    assert nuclei.box_around(mask & False) == (slice(None), slice(None))


@pytest.fixture
def download(tmp_path):
    """The course's layout with six images."""
    raw = tmp_path / "raw"
    (raw / "train" / "train").mkdir(parents=True)
    for number in range(12):
        dna, cytoskeleton, _, _ = scene(number)
        image = np.stack([cytoskeleton, np.roll(dna, number, 1), dna], axis=-1)
        (raw / "train" / "train" / f"{number}.png").write_bytes(images.encode_png(image))
    rows = [f"{number},{number % 2}" for number in range(12)]
    (raw / "train.csv").write_text("Image,Label\n" + "\n".join(rows) + "\n")
    return raw


def test_prepare_adds_the_mask_as_a_channel(download, tmp_path):
    prepare.prepare("hpa", download, tmp_path / "out", workers=1, near_duplicates=False, options={"mask": "cells"})
    dataset = open_dataset(tmp_path / "out")
    assert dataset.channels == 4
    row = int(np.flatnonzero(dataset.ids == "3")[0])
    stored = images.decode(dataset.encoded(row))
    raw = images.decode((download / "train" / "train" / "3.png").read_bytes())
    np.testing.assert_array_equal(stored[..., :3], raw)
    want = nuclei.cells(nuclei.nuclei(raw[..., 2]), raw[..., 0]) > 0
    np.testing.assert_array_equal(stored[..., 3], want * 255)


def test_prepare_crops_to_the_nuclei(download, tmp_path):
    prepare.prepare("hpa", download, tmp_path / "out", workers=1, near_duplicates=False, options={"crop": "nuclei"})
    dataset = open_dataset(tmp_path / "out")
    raw = images.decode((download / "train" / "train" / "5.png").read_bytes())
    stored = images.decode(dataset.encoded(int(np.flatnonzero(dataset.ids == "5")[0])))
    np.testing.assert_array_equal(stored, raw[nuclei.box_around(nuclei.nuclei(raw[..., 2]) > 0)])
    assert stored.shape[0] < raw.shape[0] and dataset.channels == 3
    assert json.loads((tmp_path / "out" / "ingest_report.json").read_text())["counts"]["stored"] == 12


@pytest.mark.parametrize("options", [{"mask": "brains"}, {"mask": "nuclei", "crop": "cells"}, {"crop": "x"}])
def test_nonsense_is_refused(download, tmp_path, options):
    with pytest.raises(UserError):
        prepare.prepare("hpa", download, tmp_path / "out", workers=1, near_duplicates=False, options=options)
    with pytest.raises(images.BadImage):
        CellFinder("nuclei", 2, 0).applied(images.admit(images.encode_png(np.zeros((8, 8, 1), np.uint8))))
