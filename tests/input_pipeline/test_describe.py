"""Does the description of a dataset count what is there, and say what a reader must be warned of?"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import cli, describe, images, plotting, tabular
from input_pipeline.dataset import open_dataset
from tests.input_pipeline import record_sets

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("Nucleoplasm", "=cmd $x^2$", "Golgi, apparatus")
PICTURES = {"label_distribution.png", "sizes.png", "intensities.png", "examples.png", "duplicates.png",
            "duplicates_examples.png"}  # fmt: skip


def rows(path):
    return tabular.read_csv(path)[1]


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "DPI", 50)
        yield


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory):
    folder = tmp_path_factory.mktemp("describe")
    labels = [[0], [0], [0, 2], [0, 2], [1], [2], [0, 1, 2], [], [0], [], []]
    roles = ["train"] * 6 + ["validation", "test", "test", "unlabelled", "unlabelled"]
    record_sets.write_dataset(folder / "tiny", 11, class_names=NAMES, multi_label=True, labels=labels, roles=roles)
    dataset = open_dataset(folder / "tiny")
    summary = describe.describe(dataset, folder / "out", most=0)
    return dataset, folder / "out", summary


def test_labels_and_label_sets_are_counted(multi_label):
    _, out, summary = multi_label
    table = rows(out / "labels.csv")
    assert [row["class"] for row in table] == list(NAMES)
    assert [row["images"] for row in table] == [6, 2, 4]
    assert [row["train"] for row in table] == [4, 1, 3] and [row["test"] for row in table] == [1, 0, 0]
    sets = {row["label_set"]: (row["labels"], row["images"]) for row in rows(out / "label_sets.csv")}
    assert sets == {
        NAMES[0]: (1, 3), f"{NAMES[0]} + {NAMES[2]}": (2, 2), NAMES[1]: (1, 1), NAMES[2]: (1, 1),
        " + ".join(NAMES): (3, 1), "(no label)": (0, 1),
    }  # fmt: skip
    assert "6 different, 4 of them on a single image (singletons); 1.33 labels per image, at most 3" in summary
    assert "2 images (=cmd $x^2$) to 6 (Nucleoplasm) per class" in summary


def test_cooccurrence_is_symmetric_counts(multi_label):
    _, out, _ = multi_label
    table = rows(out / "cooccurrence.csv")
    matrix = np.array([[row[name] for name in NAMES] for row in table])
    np.testing.assert_array_equal(matrix, [[6, 1, 3], [1, 2, 1], [3, 1, 4]])


def test_roles_and_groups(multi_label):
    _, out, summary = multi_label
    assert {row["role"]: row["images"] for row in rows(out / "roles.csv")} == {
        "train": 6, "validation": 1, "test": 2, "unlabelled": 2
    }  # fmt: skip
    groups = rows(out / "groups.csv")
    assert len(groups) == 5 and {row["images"] for row in groups} == {2}
    assert "groups       6, of which 5 hold several images (10 images in all; the largest has 2)" in summary
    # Images 6 (validation) and 7 (test) form one group; 8 (test) and 9 (unlabelled) are no leak.
    assert "WARNING      groups that lie in several labelled roles: 1; this split is leaky" in summary
    assert "groups whose images differ in their labels: 2 " in summary  # images 4 and 5, 6 and 7


def test_images_are_measured_exactly(multi_label):
    dataset, out, summary = multi_label
    decoded = [images.decode(dataset.encoded(index), 3) for index in range(len(dataset))]
    pixels = np.concatenate([image.reshape(-1, 3) for image in decoded])
    for channel, row in enumerate(rows(out / "intensities.csv")):
        values = pixels[:, channel].astype(float)
        assert row["channel"] == ("red", "green", "blue")[channel]
        assert row["mean"] == pytest.approx(values.mean()) and row["std"] == pytest.approx(values.std())
        assert row["minimum"] == values.min() and row["maximum"] == values.max()
        assert row["median"] == np.percentile(values, 50, method="inverted_cdf")
        assert row["percentile_99"] == np.percentile(values, 99, method="inverted_cdf")
        assert row["share_saturated"] == pytest.approx(np.mean(values == 255))
    sizes = rows(out / "sizes.csv")
    assert sum(row["images"] for row in sizes) == 11 and {row["format"] for row in sizes} == {"JPEG", "PNG"}
    assert sum(row["images"] for row in sizes if row["height"] == 20) == sum(i.shape[0] == 20 for i in decoded)
    assert "(all images looked at)" in summary


def test_pictures_are_drawn(multi_label):
    _, out, summary = multi_label
    assert {path.name for path in out.glob("*.png")} == PICTURES | {"cooccurrence.png"}
    for path in out.glob("*.png"):
        assert cv2.imread(str(path)).std() > 1, path.name
    assert (out / "summary.txt").read_text() == summary


def test_same_dataset_same_bytes(multi_label, tmp_path):
    dataset, out, _ = multi_label
    describe.describe(dataset, tmp_path, most=0)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_single_label_sixteen_bit_grey_sampled_and_simulated(tmp_path):
    record_sets.write_dataset(tmp_path / "tiny", 12, channels=1, dtype=np.uint16)
    dataset = dataclasses.replace(open_dataset(tmp_path / "tiny"), simulated=True)
    summary = describe.describe(dataset, tmp_path / "out", most=5)
    assert "SIMULATED" in summary and "5 of 12 images looked at" in summary and "0 to 65,535" in summary
    assert [row["images"] for row in rows(tmp_path / "out" / "labels.csv")] == [4, 4, 4]
    (grey,) = rows(tmp_path / "out" / "intensities.csv")
    chosen = np.linspace(0, 11, 5).round().astype(int)
    pixels = np.concatenate([record_sets.picture(i, 20 + i % 7, 30 - i % 5, 1, np.uint16).ravel() for i in chosen])
    assert grey["channel"] == "grey" and grey["mean"] == pytest.approx(pixels.mean())


def test_unlabelled_only(tmp_path):
    record_sets.write_dataset(tmp_path / "tiny", 3, labels=[[], [], []], roles=["unlabelled"] * 3)
    summary = describe.describe(open_dataset(tmp_path / "tiny"), tmp_path / "out", most=2)
    assert "every example is unlabelled" in summary and (tmp_path / "out" / "examples.png").exists()


def run(*arguments):
    command = [sys.executable, "-m", "input_pipeline.describe", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_line(tmp_path):
    record_sets.write_dataset(tmp_path / "tiny", 7)
    before = sorted(path.name for path in (tmp_path / "tiny").iterdir())
    done = run(tmp_path / "tiny", "--images=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: 7 images, 3 classes, one label per image, 3 channels of uint8\n")
    assert (tmp_path / "tiny-description" / "label_distribution.png").exists()
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == before  # the dataset stays as it was
    splits = json.loads((tmp_path / "tiny" / "splits.json").read_text())
    assert len(splits["examples"]) == 7


@pytest.mark.parametrize("arguments", [["none"], ["none", "--images=-1"]])
def test_mistakes_end_in_one_sentence_and_status_2(tmp_path, arguments):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_damaged_image_is_named(tmp_path):
    record_sets.write_dataset(tmp_path / "tiny", 4, changes={2: {"image": b"\xff\xd8\xff\xe0 no image"}})
    with pytest.raises(cli.UserError, match="cell/002"):
        describe.describe(open_dataset(tmp_path / "tiny"), tmp_path / "out", most=0)
