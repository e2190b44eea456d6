"""Does the figure of the augmentation show the run's own operations, each in its row, on images of the training set?"""

import cv2
import numpy as np
import pytest

from configs import common
from input_pipeline import augment, plotting
from research.report import augmentations
from research.training import build

SETTINGS = {
    "flip_horizontal": True,
    "rotation": 20.0,
    "brightness": 0.3,
    "erasing": 1.0,
    "mixup": 0.4,
}


def trial_of(dataset, **settings):
    config = common.default()
    config.image_size = 32
    config.data.augment.update(settings)
    return build.Trial("t", "t", {}, config, dataset, None, None)


@pytest.fixture
def drawn(monkeypatch):
    """What the montage is given."""
    given = {}
    montage = plotting.montage

    def spy(pictures, captions, path, columns, title, row_names, **more):
        given.update(rows=np.asarray(pictures, np.float32).reshape(len(row_names), columns, 32, 32, -1))
        given.update(names=row_names)
        montage(pictures, captions, path, columns, title, row_names, **more)

    monkeypatch.setattr(plotting, "montage", spy)
    return given


def test_a_row_for_each_operation_and_one_for_all(simulated, tmp_path, drawn):
    trial = trial_of(simulated, **SETTINGS)
    assert augmentations.draw(tmp_path / "augmentations.png", trial)
    assert cv2.imread(str(tmp_path / "augmentations.png")).std() > 1
    assert len(drawn["names"]) == len(set(drawn["names"])) == len(SETTINGS) + 2
    rows = dict(zip(drawn["names"], drawn["rows"], strict=True))
    plain = rows["as it is read"]
    assert np.array_equal(plain[0], plain[2]) and np.array_equal(plain[3], plain[5])
    assert not np.array_equal(plain[0], plain[3])
    for image, original in zip(rows["mirrored: half of them"], plain, strict=True):
        assert np.allclose(image, original, atol=1e-2) or np.allclose(image, original[:, ::-1], atol=1e-2)
    assert all((image == 127.5).any() for image in rows["erasing: 100% of them"])
    factors = rows["brightness ± 30%"].sum(axis=(1, 2, 3)) / plain.sum(axis=(1, 2, 3))
    assert factors.min() > 0.65 and factors.max() < 1.35 and len(set(factors.round(3))) == 6
    again = dict(rows)
    augmentations.draw(tmp_path / "again.png", trial)
    for name, row in zip(drawn["names"], drawn["rows"], strict=True):
        np.testing.assert_array_equal(row, again[name])
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "augmentations.png").read_bytes()


def test_one_operation_stands_alone_and_nothing_gives_no_file(simulated, tmp_path, drawn):
    assert augmentations.draw(tmp_path / "one.png", trial_of(simulated, rotation=5.0), count=3)
    assert drawn["names"] == ["as it is read", "rotation up to 5°"] and drawn["rows"].shape[1] == 3
    assert not augmentations.draw(tmp_path / "none.png", trial_of(simulated, erasing_value="noise"))
    assert not (tmp_path / "none.png").exists()


def test_every_operation_has_words():
    """None is forgotten when one is added to the augmentation."""
    values = {bool: True, float: 0.2, tuple: (1, 2.0)}
    for key, neutral in augment.NEUTRAL.items():
        if key not in augmentations._STYLE:
            (found,) = augmentations.operations({key: values[type(neutral)]}).values()
            assert found == {key: values[type(neutral)]}
    assert set(augmentations._STYLE) <= set(augment.NEUTRAL)
    assert augmentations.operations(augment.NEUTRAL) == {}
