"""Are the simulated raw files like the real download, the same every time, and worth learning from?"""

import collections
import csv
import hashlib
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import simulate, simulate_cells, simulate_field
from input_pipeline.cli import UserError

REPOSITORY = pathlib.Path(__file__).parents[2]
# Counts of labels 0..9, and images with 1..4 labels, among the 15,389 train images of the course.
COURSE_LABELS = [1666, 1430, 2025, 1560, 7273, 859, 4574, 2071, 836, 1007]
COURSE_CARDINALITIES = [8538, 5835, 971, 45]


def digests(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fields(count: int, size: int = 128) -> list[simulate_field.Field]:
    return [simulate_field.lay_out(np.random.default_rng([11, number]), size) for number in range(count)]


def cytoplasm_of(field: simulate_field.Field) -> np.ndarray:
    return field.inside * (1 - field.nucleus)


def share(pattern: np.ndarray, region: np.ndarray) -> float:
    """Which part of a pattern's light falls into a region?"""
    return float((pattern * region).sum() / pattern.sum())


def test_label_table_has_the_course_counts():
    sets = simulate.hpa_label_sets()
    assert len(sets) == 15_389
    labels = collections.Counter(label for labels in sets for label in labels)
    assert [labels[k] for k in range(10)] == COURSE_LABELS
    cardinalities = collections.Counter(map(len, sets))
    assert [cardinalities[k] for k in range(1, 5)] == COURSE_CARDINALITIES
    distinct = collections.Counter(sets)
    assert len(distinct) == 122
    assert sum(count == 1 for count in distinct.values()) == 12
    assert all(list(labels) == sorted(set(labels)) for labels in distinct)


def test_label_table_agrees_with_public_table():
    """Pair frequencies against the real HPA-2018 label file, which the table was fitted to."""
    path = REPOSITORY / "../shared/data/hpa/kaggle2018/train.csv"
    if not path.exists():
        pytest.skip("needs ../shared/data/hpa")
    to_course = {23: 0, 5: 1, 2: 2, 7: 3, 0: 4, 3: 5, 25: 6, 21: 7, 19: 8, 4: 9}
    real = np.zeros((10, 10))
    rows = 0
    for row in read_csv(path):
        labels = [to_course[int(k)] for k in row["Target"].split() if int(k) in to_course]
        rows += bool(labels)
        real[np.ix_(labels, labels)] += 1
    simulated = np.zeros((10, 10))
    for labels in simulate.hpa_label_sets():
        simulated[np.ix_(labels, labels)] += 1
    assert np.abs(real / rows - simulated / 15_389).max() < 0.006


def test_full_size_deals_every_label_set_once():
    train, test = simulate.hpa_assignment(15_389, 3_847, seed=4)
    assert collections.Counter(train.values()) == collections.Counter(simulate.hpa_label_sets())
    assert len(train) == 15_389 and len(test) == 3_847 and not set(train) & set(test)
    identifiers = sorted([*train, *test])
    assert identifiers[0] >= 0 and identifiers[-1] <= 31_071
    assert np.diff(identifiers).max() > 1


def test_sets_grow_without_moving_each_other():
    small, small_test = simulate.hpa_assignment(50, 7, seed=1)
    large, large_test = simulate.hpa_assignment(70, 19, seed=1)
    assert list(small.items()) == list(large.items())[:50]
    assert list(small_test.items()) == list(large_test.items())[:7]
    other, _ = simulate.hpa_assignment(50, 7, seed=2)
    assert list(other) != list(small)


def test_folder_layout(tmp_path):
    folder = simulate.hpa(tmp_path / "raw" / "hpa", num_train=13, num_test=3, seed=5, workers=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "SIMULATED.txt",
        "submission.csv",
        "test",
        "train",
        "train.csv",
    ]
    rows = read_csv(folder / "train.csv")
    assert list(rows[0]) == ["Image", "Label"] and len(rows) == 13
    assert {row["Image"] + ".png" for row in rows} == {path.name for path in (folder / "train/train").iterdir()}
    assert all(set(row["Label"].split(" ")) <= set("0123456789") for row in rows)
    submission = read_csv(folder / "submission.csv")
    assert [row["Label"] for row in submission] == ["0"] * 3
    assert {row["Image"] + ".png" for row in submission} == {path.name for path in (folder / "test/test").iterdir()}
    # Width, height, 8 bits, colour type 2 (RGB) from the PNG header.
    header = (folder / "train/train" / f"{rows[0]['Image']}.png").read_bytes()[:29]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert [*header[16:26]] == [0, 0, 0, 128, 0, 0, 0, 128, 8, 2]
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_channel_order_of_the_files(tmp_path):
    """cv2 reads BGR: the first plane must be the nuclei, the last the microtubules."""
    data = simulate.hpa_image(17, (4,), seed=3, size=128)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    rendered = simulate_cells.render((4,), np.random.default_rng([3, 17]), 128)
    np.testing.assert_array_equal(image[..., ::-1], rendered)
    field = simulate_field.lay_out(np.random.default_rng([3, 17]), 128)
    inside, outside = field.nucleus > 0.99, field.nucleus < 0.01
    assert image[..., 0][inside].mean() > 3 * image[..., 0][outside].mean()
    assert image[..., 2][inside].mean() < image[..., 2][outside & (field.inside > 0.9)].mean()


def test_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "_ALONE", 1)
    monkeypatch.setattr(simulate, "_CHUNK", 3)
    alone = digests(simulate.hpa(tmp_path / "alone", 11, 2, size=48, seed=9, workers=1))
    pool = digests(simulate.hpa(tmp_path / "pool", 11, 2, size=48, seed=9, workers=2))
    assert alone == pool and len(alone) == 11 + 2 + 3
    other = digests(simulate.hpa(tmp_path / "other", 11, 2, size=48, seed=10, workers=1))
    assert not set(alone.values()) & {other[name] for name in other if name.endswith(".png")}
    images = [digest for name, digest in alone.items() if name.endswith(".png")]
    assert len(set(images)) == len(images)


def test_finished_folder_is_kept_and_another_is_refused(tmp_path, monkeypatch):
    folder = simulate.hpa(tmp_path / "hpa", 4, 1, size=32, seed=0, workers=1)
    before = digests(folder)

    def never(*arguments):
        raise AssertionError("rendered again")

    monkeypatch.setattr(simulate, "hpa_image", never)
    assert simulate.hpa(tmp_path / "hpa", 4, 1, size=32, seed=0, workers=1) == folder
    with pytest.raises(UserError, match="already holds"):
        simulate.hpa(tmp_path / "hpa", 4, 1, size=32, seed=1, workers=1)
    assert digests(folder) == before


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    calls = []
    original = simulate.hpa_image

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(simulate, "hpa_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate.hpa(tmp_path / "hpa", 5, 0, size=32, workers=1)
    assert len(calls) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_train": 0},
        {"num_test": -1},
        {"num_train": 31_072, "num_test": 1},
        {"size": 8},
        {"seed": -1},
        {"workers": 0},
    ],
)
def test_numbers_out_of_range(tmp_path, arguments):
    with pytest.raises(UserError):
        simulate.hpa(tmp_path / "hpa", **{"num_train": 2, "num_test": 1, "size": 32} | arguments)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "input_pipeline.simulate", f"--out={tmp_path / 'hpa'}", "--size=32"]
    done = subprocess.run(
        [*command, "--study=hpa", "--train=5", "--test=2"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = digests(simulate.hpa(tmp_path / "again", 5, 2, size=32, workers=1))
    assert digests(tmp_path / "hpa") == expected
    wrong = subprocess.run([*command, "--study=hqa"], cwd=REPOSITORY, capture_output=True, text=True)
    assert wrong.returncode == 2 and "hqa" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("size", [32, 96, 131, 256])
def test_any_size_has_the_same_kind_of_content(size):
    image = simulate_cells.render((0, 7), np.random.default_rng(2), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    for channel in range(3):
        assert image[..., channel].std() > 5


def test_fields_hold_several_cells():
    cells, spans = [], []
    for field in fields(60):
        seen = np.bincount(field.owner[field.inside > 0.5], minlength=len(field.reach))
        cells.append((seen > 0.02 * field.owner.size).sum())
        spans.append(field.reach.mean())
        assert (field.nucleus > 0.5).sum() > 250
        assert ((field.nucleoli > 0) <= (field.nucleus > 0)).all()
    assert 4 <= np.quantile(cells, 0.05) and np.quantile(cells, 0.95) <= 16
    assert max(spans) > 1.4 * min(spans)


def test_patterns_lie_in_their_organelles():
    """The share of a pattern's light in each part of the cell, averaged over fields of view."""
    light = collections.defaultdict(list)
    for number, field in enumerate(fields(12)):
        rim = np.abs(field.edge) < 4
        # The places that a pattern should fill, or a ring around the nucleus for what lies beside it.
        ring = (field.nucleus_depth > 0.8) & (field.nucleus_depth < 2.0)
        regions = {
            "nucleus": field.nucleus,
            "nucleoli": field.nucleoli,
            "cytoplasm": cytoplasm_of(field),
            "rim": rim,
            "ring": ring,
        }
        for label, draw in enumerate(simulate_cells.PATTERNS):
            pattern = draw(np.random.default_rng([number, label]), field)
            assert pattern.shape == (128, 128) and np.isfinite(pattern).all()
            for name, region in regions.items():
                light[label, name].append(share(pattern, region))
    mean = {key: np.mean(values) for key, values in light.items()}
    area = np.mean([(field.nucleoli / field.nucleus.sum()).sum() for field in fields(12)])
    assert mean[0, "cytoplasm"] > 0.85
    assert mean[1, "nucleus"] > 0.85 and mean[1, "nucleoli"] < 1.5 * area
    assert mean[2, "nucleoli"] > 0.8
    assert mean[3, "cytoplasm"] > 0.7 and mean[3, "ring"] > 0.75
    # Below 1 because the soft borders of pattern and region multiply.
    assert mean[4, "nucleus"] > 0.95 and mean[4, "nucleoli"] < 0.5 * area
    assert mean[5, "nucleus"] > 0.9 and mean[5, "nucleoli"] > 0.5
    assert mean[6, "cytoplasm"] > 0.9
    assert mean[7, "rim"] > 0.85 and mean[7, "nucleus"] < 0.1
    assert mean[8, "ring"] > 0.8 and mean[8, "nucleus"] < 0.35
    assert mean[9, "nucleus"] > 0.85 and mean[9, "nucleoli"] < 0.6 * area


def test_microtubules_meet_at_the_centrosome():
    closer = []
    for number, field in enumerate(fields(12)):
        image = simulate_cells.microtubules(np.random.default_rng(number), field)
        x, y = np.rint(field.centrosome).astype(int).T
        valid = (x >= 0) & (x < 128) & (y >= 0) & (y < 128)
        closer += (image[y[valid], x[valid]] / image[field.inside > 0.5].mean()).tolist()
    assert np.median(closer) > 2.5


def test_multi_label_images_show_every_pattern():
    """Nucleoplasm with plasma membrane: bright nuclei and rim, dark between; each alone lacks the other."""
    contrast = collections.defaultdict(list)
    for number in range(12):
        for labels in ((4,), (7,), (4, 7)):
            green = simulate_cells.render(labels, np.random.default_rng(number), 128)[..., 1].astype(float)
            field = simulate_field.lay_out(np.random.default_rng(number), 128)
            between = green[(field.inside > 0.9) & (field.edge > 6) & (field.nucleus_depth > 1.3)].mean()
            contrast[labels, "nucleus"].append(green[field.nucleus > 0.9].mean() / between)
            contrast[labels, "rim"].append(green[np.abs(field.edge - 1) < 1].mean() / between)
    median = {key: np.median(values) for key, values in contrast.items()}
    assert median[(4,), "nucleus"] > 3 > median[(4,), "rim"]
    assert median[(7,), "rim"] > 3 > median[(7,), "nucleus"]
    assert median[(4, 7), "nucleus"] > 2 and median[(4, 7), "rim"] > 2


def test_protein_histogram_carries_no_label():
    """Quantiles of the protein channel have the same distribution for all labels (Kolmogorov-Smirnov)."""
    stats = pytest.importorskip("scipy.stats")
    levels = [0.1, 0.5, 0.9, 0.99]
    quantiles = np.empty((10, 40, len(levels)))
    for label, number in np.ndindex(10, 40):
        image = simulate_cells.render((label,), np.random.default_rng([label, number]), 48)
        quantiles[label, number] = np.quantile(image[..., 1], levels)
    p_values = [
        stats.ks_2samp(quantiles[label, :, q], np.delete(quantiles, label, 0)[..., q].ravel()).pvalue
        for label, q in np.ndindex(10, len(levels))
    ]
    # 40 dependent tests; Bonferroni's bound at 0.2% for the family. A leak gives 1e-10 and less.
    assert min(p_values) > 0.002 / 40
    # The histogram is not one constant either: exposure varies between images.
    assert (quantiles.std((0, 1)) > [2, 2, 8, 15]).all()


def test_shape_tells_the_label_where_the_histogram_does_not():
    """The brightest 3% of pixels are many threads for mitochondria, and few patches for cytosol."""

    def patches(label: int, number: int) -> int:
        image = simulate_cells.render((label,), np.random.default_rng([label, number]), 128)[..., 1]
        smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
        return cv2.connectedComponents((smooth > np.quantile(smooth, 0.97)).astype(np.uint8))[0]

    counts = {label: [patches(label, number) for number in range(12)] for label in (0, 6)}
    assert np.median(counts[0]) > 1.5 * np.median(counts[6])
