"""Is the simulated contest laid out like the real one, the same every time, and as hard as its docstring says?"""

import collections
import csv
import hashlib
import itertools
import pathlib
import re

import cv2
import numpy as np
import pytest
from sklearn.metrics import f1_score

from input_pipeline import prepare, scene_captions, scene_shapes, simulate
from input_pipeline import simulate_captions as simulation
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.studies.captions import CATEGORIES, CLASS_NAMES

TRAIN, TEST, SIZE = 131, 13, 48


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "raw"
    return simulate.load("captions")(folder, TRAIN, TEST, SIZE, seed=3, workers=1)


@pytest.fixture(scope="module")
def scenes():
    return simulation.draw_scenes(TRAIN + TEST, np.random.default_rng([3, 0]))


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def test_layout_of_the_download(raw, scenes):
    assert {path.name for path in raw.iterdir()} == {"data", "train.csv", "test.csv", simulate.MARKER}
    assert {path.name for path in (raw / "data").iterdir()} == {f"{i}.jpg" for i in range(TRAIN + TEST)}
    text = (raw / "train.csv").read_text()
    starts = re.findall(r'^(\d+)\.jpg,([\d ]+),"', text, re.MULTILINE)  # the rule that holds for the real file
    assert text.startswith("ImageID,Labels,Caption\n") and [int(n) for n, _ in starts] == list(range(TRAIN))
    for row, (_, cell) in enumerate(starts):
        assert {CATEGORIES[int(number)] for number in cell.split()} == set(simulation._names(scenes.labels[row]))
    assert any(cell.split() != sorted(cell.split(), key=int) for _, cell in starts)
    assert text.count("\n") > TRAIN + 1, "some captions hold newlines"
    rows = list(csv.reader((raw / "train.csv").open(newline="")))
    assert any(len(row) > 3 for row in rows) and any('"' in row[-1] for row in rows), "it breaks ordinary readers"
    assert (raw / "test.csv").read_text().startswith(f'ImageID,Caption\n{TRAIN}.jpg,"')
    shapes = collections.Counter(cv2.imread(str(raw / f"data/{i}.jpg"), -1).shape for i in range(TRAIN + TEST))
    assert {len(shape) for shape in shapes} == {2, 3} and len({shape[:2] for shape in shapes}) == 4
    assert all(max(shape[:2]) == SIZE for shape in shapes)


def test_same_arguments_same_bytes(raw, tmp_path):
    again = simulation.captions(tmp_path / "again", TRAIN, TEST, SIZE, seed=3, workers=1)
    assert digests(again) == digests(raw)
    assert simulation.captions(again, TRAIN, TEST, SIZE, seed=3) == again
    other = simulation.captions(tmp_path / "other", TRAIN, TEST, SIZE, seed=4, workers=1)
    assert digests(other)["train.csv"] != digests(raw)["train.csv"]
    with pytest.raises(UserError, match="already holds other files"):
        simulation.captions(again, TRAIN, TEST, SIZE, seed=4)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_train": 0}, "0 train and 5 test images cannot be simulated"),
        ({"num_test": -1}, "-1 test"),
        ({"num_train": 40_001}, "at most 40000"),
        ({"size": 31}, "31 pixels"),
        ({"size": 2000}, "2000 pixels"),
        ({"seed": -1}, "seed -1"),
        ({"workers": 0}, "0 worker"),
    ],
)
def test_wrong_arguments(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        simulation.captions(tmp_path / "x", **{"num_train": 5, "num_test": 5, **change})
    assert not list(tmp_path.iterdir())


def test_prepared(raw, scenes, tmp_path):
    report = prepare.prepare("captions", raw, tmp_path / "out", workers=1)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.simulated and len(dataset) == TRAIN + TEST and report["counts"]["left_out"] == 0
    assert report["duplicates"]["statistics"]["near_duplicates"] <= 2, "scenes are not taken for copies"
    order = [int(name.partition(".")[0]) for name in dataset.ids]
    labelled = dataset.roles != "unlabelled"
    np.testing.assert_array_equal(dataset.labels[labelled] > 0, scenes.labels[order][labelled])
    text = (raw / "train.csv").read_text()
    for number, caption in zip(order, dataset.captions, strict=True):
        if number < TRAIN:
            assert f',"{caption}"\n' in text and text.count(f"\n{number}.jpg,") == 1


# ------------------------------------------------------------------------------------------ captions and pictures


def nouns(name):
    return [noun.replace("_", " ") for noun in scene_captions.NOUNS[name].split()]


def named_in(caption: str) -> set[str]:
    words = f" {' '.join(re.findall('[a-z]+', caption.lower()))} "
    return {name for name in CLASS_NAMES if any(f" {noun} " in words for noun in nouns(name))}


def test_what_is_named_can_be_read_from_the_caption_and_nothing_else(monkeypatch):
    monkeypatch.setattr(scene_captions, "_MISSPELT", 0.0)
    assert tuple(scene_captions.NOUNS) == CLASS_NAMES
    everything = list(itertools.chain.from_iterable(map(nouns, CLASS_NAMES)))
    assert len(set(everything)) == len(everything)
    rng = np.random.default_rng(0)
    for number in range(600):
        names = [name for name in CLASS_NAMES if rng.random() < 0.12]
        assert named_in(scene_captions.write(names, rng, number)) == set(names), number


def test_some_words_are_misspelt_by_two_letters():
    text, changed = "a motorcycle is in a busy street, next to a cat", 0
    for seed in range(200):
        words = scene_captions._misspelt(text, np.random.default_rng(seed)).split(" ")
        pairs = [(old, new) for old, new in zip(text.split(" "), words, strict=True) if old != new]
        assert len(pairs) <= 1
        for old, new in pairs:
            assert sorted(old) == sorted(new) and old[0] == new[0] and len(old) >= 5 and old.isalpha()
            assert sum(x != y for x, y in zip(old, new, strict=True)) == 2
        changed += len(pairs)
    assert changed > 150
    assert scene_captions._misspelt("a cat, a dog", np.random.default_rng(0)) == "a cat, a dog"


def test_every_kind_changes_the_picture_where_it_stands():
    assert tuple(scene_shapes.SHAPES) == CLASS_NAMES
    means = []
    for name in CLASS_NAMES:
        with_it, without = (
            scene_shapes.render(names, np.random.default_rng(5), 97, 121).astype(int) for names in ([name], [])
        )
        assert with_it.shape == (97, 121, 3)
        difference = np.abs(with_it - without).max(axis=2)
        means.append((difference > 40).mean())
    assert min(means) > 0.005 and max(means) < 0.6
    crowd = scene_shapes.render(CLASS_NAMES, np.random.default_rng(1), 33, 32)
    assert crowd.shape == (33, 32, 3) and crowd.dtype == np.uint8
    assert scene_shapes.render([], np.random.default_rng(1), 32, 500).std() > 0


# ------------------------------------------------------------------------------------------------------------ bounds


def test_label_sets_are_as_skewed_as_the_contests():
    members, shares = simulation.label_sets()
    assert len(set(map(tuple, members.tolist()))) == len(members) == 237 and members.any(axis=1).all()
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    real = np.array([22797, 1164, 4365, 1272, 1132, 1395, 1221, 2210, 1042, 1471, 604, 605, 252, 1934, 1099, 1430, 1525,
                     1020]) / 30_000  # fmt: skip
    ratio = shares @ members / real
    assert 0.70 < ratio.min() and ratio.max() < 1.02 and 0.74 < (shares @ members)[0] < 0.78
    drawn = simulation.draw_scenes(500, np.random.default_rng(2)).labels.mean(axis=0)
    np.testing.assert_allclose(drawn, shares @ members, atol=0.03)


def brute_posterior(scene, modality):
    """Bayes' rule written out label by label."""
    members, shares = simulation.label_sets()
    total, result = 0.0, np.zeros(18)
    for labels, share in zip(members, shares, strict=True):
        weight = share
        for kind, seen, present, absent in (
            ("image", scene[0], simulation.DRAWN, simulation.LOOKALIKE),
            ("text", scene[1], simulation.NAMED, simulation.MISNAMED),
        ):
            if modality in (kind, "both"):
                for name, holds, visible in zip(CLASS_NAMES, labels, seen, strict=True):
                    rate = (present if holds else absent)[name]
                    weight *= rate if visible else 1 - rate
        total += weight
        result += weight * labels
    return result / total


@pytest.mark.parametrize("modality", ["image", "text", "both"])
def test_posteriors_are_bayes_rule(modality):
    scenes = simulation.draw_scenes(7, np.random.default_rng(4))
    found = simulation.posteriors(scenes, modality)
    for row in range(7):
        expected = brute_posterior((scenes.drawn[row], scenes.named[row]), modality)
        np.testing.assert_allclose(found[row], expected, atol=1e-12)
    with pytest.raises(ValueError, match="unknown modality"):
        simulation.posteriors(scenes, "sound")


def test_greatest_f1_is_that_of_the_best_subset():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(9)
        subsets = (np.array(s) for s in itertools.product([False, True], repeat=9))
        best = max(2 * p[s].sum() / (s.sum() + p.sum()) for s in subsets)
        assert simulation.greatest_f1(p.reshape(3, 3)) == pytest.approx(best)


def test_bounds_are_reached_by_the_decision_that_they_stand_for():
    """On fresh scenes, labels cut at half of the bound score the bound: with the labels, not their probabilities."""
    bounds = simulation.best_f1(6_000)
    scenes = simulation.draw_scenes(6_000, np.random.default_rng(99))
    for modality, expected in bounds.items():
        decided = simulation.posteriors(scenes, modality) > expected["micro_f1"] / 2
        assert f1_score(scenes.labels, decided, average="micro") == pytest.approx(expected["micro_f1"], abs=0.012)
    assert bounds["image"]["micro_f1"] == pytest.approx(0.87, abs=0.006)
    assert bounds["text"]["micro_f1"] == pytest.approx(0.82, abs=0.006)
    assert bounds["both"]["micro_f1"] == pytest.approx(0.93, abs=0.006)
    macro = [bounds[modality]["macro_f1"] for modality in ("image", "text", "both")]
    np.testing.assert_allclose(macro, [0.76, 0.71, 0.87], atol=0.02)


def test_each_modality_misses_what_the_other_has():
    scenes = simulation.draw_scenes(4_000, np.random.default_rng(5))
    unseen, unnamed = scenes.labels & ~scenes.drawn, scenes.labels & ~scenes.named
    assert (unseen & scenes.named).sum() > 0.7 * unseen.sum() and (unnamed & scenes.drawn).sum() > 0.8 * unnamed.sum()
