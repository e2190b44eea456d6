"""Are the images those that were asked for, as the network sees them, and is what cannot be used refused?"""

import types

import cv2
import numpy as np
import pytest

from input_pipeline import images as image_files
from input_pipeline.cli import UserError
from input_pipeline.loader import eval_batches
from research.explain.sources import by_ids, open_images


@pytest.fixture
def trial(simulated):
    data = types.SimpleNamespace(resize="stretch")
    config = types.SimpleNamespace(image_size=19, data=data)
    return types.SimpleNamespace(
        picture=None,
        dataset=simulated,
        config=config,
        channels=simulated.channels,
        threads=1,
        num_classes=simulated.num_classes,
    )


def test_a_role(trial, simulated):
    found = open_images(trial, "test")
    indices = simulated.indices("test")
    assert found.ids == tuple(simulated.ids[indices]) and found.role == "test" and found.known.all()
    rows = np.array([3, 0, 2])
    batch = next(eval_batches(simulated, indices[rows], 3, 19, simulated.channels, threads=1))
    np.testing.assert_array_equal(found.read(rows), batch["image"])
    np.testing.assert_array_equal(found.labels[rows], batch["label"])
    np.testing.assert_array_equal(by_ids(trial, [found.ids[2]]), found.read(np.array([2])))
    assert not open_images(trial, "unlabelled").known.any() and found.read_regions is None


def test_a_list_of_ids(trial, simulated, tmp_path):
    ids = [simulated.ids[9], simulated.ids[4], simulated.ids[9]]
    file = tmp_path / "chosen.csv"
    file.write_text("note;id\n" + "".join(f"x;{name}\n" for name in ids))
    assert open_images(trial, str(file)).ids == (ids[0], ids[1])
    file.write_text(f"id\n{ids[0]}\nnobody\n")
    with pytest.raises(UserError, match="line 3: the data set .* has no image 'nobody'"):
        open_images(trial, str(file))
    file.write_text("name\na\n")
    with pytest.raises(UserError, match="must name the columns id"):
        open_images(trial, str(file))


def picture(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    cv2.imwrite(str(path), image)
    return image


def test_a_folder(trial, tmp_path):
    folder = tmp_path / "new"
    picture(folder / "b" / "two.png", (40, 30, 3))
    grey = picture(folder / "one.png", (33, 33), 1)
    (folder / "notes.txt").write_text("no image")
    found = open_images(trial, str(folder))
    assert found.ids == ("b/two.png", "one.png") and not found.known.any() and found.role == ""
    channels = trial.channels
    expected = image_files.resize(np.repeat(grey[..., None], channels, -1), 19)
    np.testing.assert_array_equal(found.read(np.array([1]))[0], expected)
    (folder / "b" / "two.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match="two.png cannot be used"):
        found.read(np.array([0]))


def test_nothing_there(trial, tmp_path):
    with pytest.raises(UserError, match="neither a role .* nor a CSV file nor a folder"):
        open_images(trial, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="holds no image file"):
        open_images(trial, str(tmp_path))


def test_regions(trial, simulated, tmp_path):
    ids = simulated.ids[simulated.indices("test")]
    mask = np.zeros((38, 38), np.uint8)
    mask[:, :10] = 255
    file = tmp_path / f"{ids[1]}"
    file = file if file.suffix else file.with_name(f"{file.name}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file.with_suffix(".png")), mask)
    found = open_images(trial, "test", str(tmp_path)).read_regions(np.array([0, 1]))
    expected = np.zeros((2, 19, 19), bool)
    expected[1, :, :5] = True
    np.testing.assert_array_equal(found, expected)  # the first has no mask
    with pytest.raises(UserError, match="is no folder"):
        open_images(trial, "test", str(file))
    (other := tmp_path / "other").mkdir()
    cv2.imwrite(str(other / "somebody.png"), mask)
    with pytest.raises(UserError, match="holds no mask for any of"):
        open_images(trial, "test", str(other))
