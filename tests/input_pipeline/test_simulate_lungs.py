"""Are the simulated X-rays like the real downloads, the same every time, and different where the classes differ?"""

import collections
import hashlib
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import images, prepare, raw, simulate, simulate_lungs
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.image_headers import probe
from input_pipeline.studies import pneumonia

ROOT = pathlib.Path(__file__).parents[2]


def digests(folder: pathlib.Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def film(finding: str, patient: int, number: int = 0, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    chest = simulate_lungs.draw_chest(np.random.default_rng([1, patient]))
    return simulate_lungs.render(finding, chest, np.random.default_rng([2, patient, number]), size)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("xrays")
    simulate_lungs.pneumonia(root / "raw", 150, 40, size=96, seed=3, workers=1)
    report = prepare.prepare("pneumonia", root / "raw", root / "out", workers=1)
    return root / "raw", open_dataset(root / "out"), report


def test_layout_of_the_pneumonia_download(sample):
    folder = sample[0]
    assert sorted(path.name for path in folder.iterdir()) == ["SIMULATED.txt", "chest_xray"]
    found = pneumonia.scan(raw.open_source(folder), {})
    parts = collections.Counter(example.id.split("/")[0] for example in found.examples)
    assert parts == {"train": 134, "val": 16, "test": 40} and not found.problems
    val = collections.Counter(e.labels[0] for e in found.examples if e.id.startswith("val"))
    assert val == {0: 8, 1: 8}
    # The proportions are the study's: 1341, 2530 and 1345 of 5216.
    counts = np.bincount([e.labels[0] for e in found.examples if e.role is None]) / 150
    np.testing.assert_allclose(counts, [0.257, 0.485, 0.258], atol=0.12)
    persons = [{e.group.split("/")[1] for e in found.examples if (e.role == "test") == side} for side in (False, True)]
    assert "person2" in persons[0] & persons[1], "both parts begin to number at 1"
    sizes = collections.Counter(collections.Counter(e.group for e in found.examples).values())
    assert set(sizes) == {1, 2, 4} or set(sizes) == {1, 2, 3, 4}


def test_pneumonia_is_prepared(sample):
    _, dataset, report = sample
    assert dataset.simulated and dataset.channels == 1 and len(dataset) == 190 and not report["warnings"]
    assert set(dataset.roles) == {"train", "validation", "calibration", "test"}
    assert {name.split("/")[0] for name in dataset.ids[dataset.roles == "test"]} == {"test"}
    assert report["images"]["channels"].keys() == {"1", "3"} and report["copies_of_test"]["count"] == 0
    # Copies are looked for, and films of different patients are none: the groups are the patients.
    named = {example.id: example.group for example in pneumonia.scan(raw.open_source(sample[0]), {}).examples}
    assert len(set(dataset.groups)) >= len(set(named.values())) - 1
    other = sum(named[name] != group for name, group in zip(dataset.ids, dataset.groups, strict=True))
    assert other <= 4


def test_lung_masks_are_prepared(tmp_path):
    simulate_lungs.lung_masks(tmp_path / "raw", 30, 5, size=64, seed=4, workers=1)
    names = {path.name for path in (tmp_path / "raw" / "cxr").iterdir()}
    assert names == {path.name for path in (tmp_path / "raw" / "masks").iterdir()} and len(names) == 35
    soft = images.decode((tmp_path / "raw" / "masks" / min(names)).read_bytes())
    assert len(np.unique(soft)) > 10 and soft.max() == 255, "antialiased, as public copies are"
    prepare.prepare("lung_masks", tmp_path / "raw", tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.simulated and len(dataset) == 35 and dataset.class_names == ("normal", "tuberculosis")
    assert np.bincount(dataset.labels).tolist() == [18, 17] and len(set(dataset.groups)) >= 34
    for index in range(35):
        image, lungs = images.decode(dataset.encoded(index)), images.decode(dataset.encoded_segmentation(index)) == 1
        assert 0.06 < lungs.mean() < 0.6
        assert image[lungs].mean() < image[~lungs & (image > 40)].mean() - 15


@pytest.mark.parametrize("size", [32, 75, 128, 300])
def test_any_size_shows_the_same_chest(size):
    reference, mask = film("normal", 5, size=128)
    image, lungs = film("normal", 5, size=size)
    assert image.shape == lungs.shape == (size, size) and image.dtype == np.uint8 and lungs.dtype == np.float32
    assert abs(lungs.mean() - mask.mean()) < 0.02
    small = [images.resize(picture[..., None], 32)[..., 0].astype(float).ravel() for picture in (image, reference)]
    assert np.corrcoef(small)[0, 1] > 0.95


def test_the_mask_is_where_the_lungs_are():
    """Two lungs, darker than the chest around them; both reach the border of the mask with the same sharpness."""
    for patient in range(20):
        image, mask = film("normal", patient)
        assert 0 <= mask.min() and mask.max() == 1 and 0.01 < ((mask > 0) & (mask < 1)).mean() < 0.3
        left, right = mask[:, :60] > 0.5, mask[:, 68:] > 0.5
        assert left.any() and right.any()
        body = (image > 60) & (mask == 0)
        assert image[mask == 1].mean() < 0.75 * image[body].mean()


def opacity(finding: str, patient: int, size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a class adds to a straight chest `[S, S]`, where its lungs are (bool), and x."""
    chest = simulate_lungs.draw_chest(np.random.default_rng([1, patient]))
    line = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(line, line)
    lungs = simulate_lungs.lung_depth(chest, x, y) > 0
    added = simulate_lungs.OPACITIES[finding](np.random.default_rng([2, patient]), x, y, lungs.astype(float))
    return added, lungs, x


def test_the_classes_differ_as_stated():
    """Patches are few, coarse and of one lung or so; a net is fine and in both; nodules are small and near the top."""
    detail = {"patches": [], "net": []}
    for patient in range(25):
        patches, lungs, x = opacity("bacteria", patient)
        assert patches.min() >= 0 and 0.1 < patches.max() < 0.4 and not patches[~lungs].any()
        pieces, _, sizes, _ = cv2.connectedComponentsWithStats((patches > patches.max() / 2).astype(np.uint8))
        large = sizes[1:, cv2.CC_STAT_AREA] > 60
        assert 1 <= large.sum() <= 4 and 0.02 < (patches > patches.max() / 2).sum() / lungs.sum() < 0.75

        net = opacity("virus", patient)[0]
        assert net.min() >= 0 and not net[~lungs].any()
        left, right = (net[lungs & side].mean() for side in (x < 0, x > 0))
        assert 0.6 < left / right < 1.6
        for name, added in (("patches", patches), ("net", net)):
            smooth = images.resize(images.resize(added.astype(np.float32)[..., None], 16), 128)[..., 0]
            detail[name].append((added - smooth)[lungs].std() / added[lungs].std())

        nodules = opacity("tuberculosis", patient)[0]
        middle = np.flatnonzero(lungs.any(axis=1)).mean()
        assert nodules[: int(middle)].sum() > 0.8 * nodules.sum() and not nodules[~lungs].any()
        assert min(nodules[lungs & side].sum() for side in (x < 0, x > 0)) < 0.05 * nodules.sum()
    assert np.median(detail["net"]) > 1.5 * np.median(detail["patches"])


def test_brightness_does_not_tell_the_class():
    """Exposure varies more than an opacity changes the mean: no threshold on it gets far above chance."""
    means = {f: np.array([film(f, 100 + p)[0].mean() for p in range(60)]) for f in ("normal", "bacteria", "virus")}
    for finding in ("bacteria", "virus"):
        above = (means[finding][:, None] > means["normal"][None]).mean()  # area under the ROC curve
        assert abs(above - 0.5) < 0.25


def test_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "_ALONE", 1)
    monkeypatch.setattr(simulate, "_CHUNK", 7)
    for make in (simulate_lungs.pneumonia, simulate_lungs.lung_masks):
        name = make.__name__
        alone = digests(make(tmp_path / name / "alone", 26, 3, size=32, seed=9, workers=1))
        pool = digests(make(tmp_path / name / "pool", 26, 3, size=32, seed=9, workers=2))
        assert alone == pool
        other = digests(make(tmp_path / name / "other", 26, 3, size=32, seed=10, workers=1))
        assert not set(alone.values()) & set(other.values())
        assert len(set(alone.values())) == len(alone) == 30 + 29 * (name == "lung_masks")


def test_a_larger_sample_keeps_the_films_of_a_smaller_one(tmp_path):
    small = digests(simulate_lungs.pneumonia(tmp_path / "small", 24, 2, size=32, workers=1))
    large = digests(simulate_lungs.pneumonia(tmp_path / "large", 31, 9, size=32, workers=1))

    def films(found: dict[str, str]) -> dict[tuple[bool, str], str]:
        return {("/test/" in k, k.rpartition("/")[2]): v for k, v in found.items() if k.endswith(".jpeg")}

    assert films(small).items() <= films(large).items() and len(films(large)) == 40


def test_grey_with_rgb_strays(sample):
    kinds = collections.Counter(probe(path.read_bytes()).mode for path in sample[0].rglob("*.jpeg"))
    assert kinds["RGB"] == 150 // 17 + 40 // 17 and kinds["L"] == 190 - kinds["RGB"]


def test_a_finished_folder_is_kept_and_another_refused(tmp_path, monkeypatch):
    folder = simulate_lungs.lung_masks(tmp_path / "raw", 2, size=32, workers=1)
    before = digests(folder)
    monkeypatch.setattr(simulate_lungs, "render", None)
    assert simulate_lungs.lung_masks(tmp_path / "raw", 2, size=32, workers=1) == folder
    with pytest.raises(UserError, match="already holds other files"):
        simulate_lungs.lung_masks(tmp_path / "raw", 3, size=32, workers=1)
    assert digests(folder) == before
    with pytest.raises(TypeError):
        simulate_lungs.lung_masks(tmp_path / "broken", 2, size=32, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    "arguments",
    [{"num_train": 23}, {"num_test": -1}, {"num_train": 20_001}, {"size": 31}, {"size": 1025}, {"seed": -1}]
    + [{"workers": 0}],
)
def test_numbers_out_of_range(tmp_path, arguments):
    with pytest.raises(UserError):
        simulate_lungs.pneumonia(tmp_path / "raw", **{"num_train": 24, "num_test": 1, "size": 32} | arguments)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "input_pipeline.simulate", "--study=lung_masks", "--size=32", "--train=3"]
    done = subprocess.run([*command, f"--out={tmp_path / 'a'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "a") == digests(simulate.load("lung_masks")(tmp_path / "b", 3, size=32, workers=1))
    with pytest.raises(UserError, match="choose one of: hpa, pneumonia, lung_masks"):
        simulate.load("lungs")
