"""Are Dice and IoU of masks right: against sets of pixels, in the empty cases, with intervals, through the file?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import segmentation, statistics

K = 3


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(5)
    true, predicted = rng.integers(0, K + 1, (2, 11, 6, 9)).astype(np.uint8)
    true[0] = predicted[0] = 0  # nothing there, nothing found
    true[1], predicted[1] = 0, 2  # invented
    true[2], predicted[2] = 3, 0  # missed
    predicted[3] = true[3]
    return predicted, true


def by_sets(predicted, true, k) -> tuple[float, float]:
    """Dice and IoU from sets of pixel positions."""
    ours, theirs = ({tuple(p) for p in np.argwhere(m == k)} for m in (predicted, true))
    if not ours and not theirs:
        return 1.0, 1.0
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)), len(ours & theirs) / len(ours | theirs)


def test_images_and_classes_against_sets(maps):
    pixels = segmentation.counts(*maps, K)
    expected = np.array([[by_sets(p, t, k) for k in range(1, K + 1)] for p, t in zip(*maps, strict=True)])
    np.testing.assert_array_equal(segmentation.dice(pixels), expected[..., 0])
    np.testing.assert_array_equal(segmentation.iou(pixels), expected[..., 1])
    found = segmentation.evaluate(pixels)
    assert found["dice"] == pytest.approx(expected[..., 0].mean(), abs=1e-15)
    assert found["iou"] == pytest.approx(expected[..., 1].mean(), abs=1e-15)
    tall = [np.concatenate(list(m), axis=0) for m in maps]  # all images as one
    pooled = np.array([by_sets(*tall, k) for k in range(1, K + 1)]).mean(axis=0)
    np.testing.assert_allclose((found["pooled_dice"], found["pooled_iou"]), pooled, rtol=1e-15)


def test_empty_masks(maps):
    own = segmentation.dice(segmentation.counts(*maps, K))
    assert own[0].tolist() == [1, 1, 1]  # both empty
    assert own[1].tolist() == [1, 0, 1] and own[2].tolist() == [1, 1, 0]
    assert segmentation.evaluate(np.zeros((2, 1, 3), int)) == dict.fromkeys(segmentation.METRICS, 1.0)


def test_intervals_are_those_of_the_cluster_bootstrap(maps):
    pixels, groups = segmentation.counts(*maps, K), np.arange(11) // 2
    found = segmentation.estimates(pixels, groups, 300, seed=4)
    for name in segmentation.METRICS:
        low, high = statistics.cluster_bootstrap(
            lambda rows, name=name: segmentation.evaluate(pixels[rows])[name], groups, n=300, seed=4
        )
        np.testing.assert_allclose((found[name]["low"], found[name]["high"]), (low, high), rtol=1e-12)
        assert found[name]["value"] == segmentation.evaluate(pixels)[name]
    assert np.isnan(segmentation.estimates(pixels, np.zeros(11), 300)["dice"]["low"])


def test_the_file_comes_back(maps, tmp_path):
    pixels = segmentation.counts(*maps, K)
    ids = ["=cmd", "a,b", "1", *map(str, range(20, 28))]
    files = [f"m/{i}.png" for i in range(11)]
    path = tmp_path / "t_test.csv"
    segmentation.write(path, ids, ["g", "h"] * 5 + ["-1"], files, pixels, ("left lung", "right, lung", "heart"))
    back = segmentation.read(path)
    assert back.ids == tuple(ids) and back.groups[-1] == "-1"
    assert back.class_names == ("left lung", "right, lung", "heart")
    assert back.files[3] == tmp_path / "m/3.png"
    np.testing.assert_array_equal(back.pixels, pixels)
    header = path.read_text().splitlines()[0]
    assert header.startswith("id,group,mask,dice_left lung,iou_left lung,both_left lung")


def test_mistakes_are_named(maps, tmp_path):
    with pytest.raises(ValueError, match="cannot be compared"):
        segmentation.counts(maps[0][:3], maps[1], K)
    with pytest.raises(ValueError, match="above the 2 classes"):
        segmentation.counts(*maps, 2)
    with pytest.raises(UserError, match="no image to compare"):
        segmentation.evaluate(np.zeros((0, 1, 3)))
    for text, words in (("id,group\na,b\n", "no prediction file of masks"), ("", "no prediction file of masks")):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            segmentation.read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("id,group,mask,dice_a,both_a,predicted_a,true_a\na,g,m.png,1.0,2,,2\n")
    with pytest.raises(UserError, match="a count that is no number"):
        segmentation.read(tmp_path / "x.csv")
    with pytest.raises(UserError, match="does not exist"):
        segmentation.read(tmp_path / "none.csv")
