"""From a training to crops, by the commands that a user types; and every mistake in them."""

import json
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from input_pipeline import boxes, images, prepare, simulate_lungs
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from research.segment import __main__ as segment
from research.segment import sheets
from tests.running import ENVIRONMENT, ROOT, ledger, run

CONFIG = "configs/lung_masks.py:smoke"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the smoke preset."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    result = run(CONFIG, workdir)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Simulated X-rays of children of several sizes, with a damaged file, a black film and a text among them."""
    raw = simulate_lungs.pneumonia(tmp_path_factory.mktemp("films") / "raw", 30, 6, size=80, seed=7, workers=1)
    first, second, third = sorted(raw.rglob("*.jpeg"))[:3]
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(images.encode_png(np.zeros((70, 90, 1), np.uint8)))
    image = images.decode(third.read_bytes(), 1)
    third.write_bytes(images.encode_png(cv2.resize(image, (200, 120))[..., None]))
    (raw / "notes.txt").write_text("no image")
    return raw


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "research.segment", *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_the_report_shows_dice_and_masks(trained):
    numbers = json.loads((trained / "report" / "metrics.json").read_text())
    (row,) = ledger(trained)
    headline = {entry["name"]: entry for entry in numbers["headline"]}
    assert headline["dice"]["value"] == float(row["test/dice"]) > 0.6
    assert headline["dice"]["low"] <= headline["dice"]["value"] <= headline["dice"]["high"]
    assert numbers["task"] == "segmentation" and numbers["per_class"][0]["class"] == "lung"
    assert numbers["baselines"][0]["name"] == "mean training mask"
    page = (trained / "report" / "index.html").read_text()
    assert "masks_worst.png" in page and "masks_best.png" in page and "IoU" in page
    assert "temperature" not in page.split("How these numbers")[1].split("<table")[0].lower()


def test_boxes_sheets_and_crops(trained, films, tmp_path):
    """The whole way: boxes of raw files, damaged ones listed, and a prepared data set of the crops."""
    out = tmp_path / "boxes.csv"
    result = command(f"--workdir={trained}", f"--source={films}", f"--out={out}", "--batch_size=5")
    assert result.returncode == 0, result.stderr
    table = boxes.read(out).by_file
    files = sorted(str(path.relative_to(films)) for path in films.rglob("*.jpeg"))
    assert list(table) == files  # the text is no image
    first, second, third = (table[name] for name in files[:3])
    assert first.status == "unreadable" and "damaged" in first.reason
    assert (second.status, second.width, second.height, second.right, second.bottom) == ("whole", 90, 70, 90, 70)
    assert second.reason == "image of one brightness"
    assert (third.width, third.height) == (200, 120)
    assert sum(box.status == "cropped" for box in table.values()) > 20
    pictures = sorted(path.name for path in (tmp_path / "boxes_sheets").iterdir())
    assert pictures == ["cropped_1.png", "whole_1.png"]
    assert "segmenting: 36/36" in result.stderr and "s left" in result.stderr
    report = prepare.prepare("pneumonia", films, tmp_path / "crops", boxes=out, max_bad=0.1)
    assert report["boxes"]["cropped"] == sum(box.status == "cropped" for box in table.values())
    assert sorted(entry for part in report["boxes"]["whole"].values() for entry in part["ids"])


def test_a_zip_and_a_prepared_data_set_get_the_same_boxes(trained, films, tmp_path, monkeypatch):
    monkeypatch.setattr("research.training.signals.StopSignal.install", lambda self: None)
    packed = tmp_path / "films.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(films.rglob("*.*")):
            archive.write(path, path.relative_to(films))
    prepare.prepare("pneumonia", films, tmp_path / "prepared", max_bad=0.1)
    found = {}
    for name, source in (("raw", films), ("zip", packed), ("prepared", tmp_path / "prepared")):
        out = tmp_path / f"{name}.csv"
        segment.main([f"--workdir={trained}", f"--source={source}", f"--out={out}", "--sheets=0"])
        found[name] = boxes.read(out).by_file
    assert (tmp_path / "raw.csv").read_bytes() == (tmp_path / "zip.csv").read_bytes()
    ids = {str(name) for name in open_dataset(tmp_path / "prepared").ids}
    assert set(found["prepared"]) == ids
    by_end = {name.partition("/")[2]: box for name, box in found["raw"].items()}
    for name, box in found["prepared"].items():
        other = next(found for end, found in by_end.items() if end.endswith(name))
        assert (box.left, box.top, box.right, box.bottom) == (other.left, other.top, other.right, other.bottom)
    few = tmp_path / "few.csv"
    segment.main([f"--workdir={trained}", f"--source={films}", f"--out={few}", "--limit=7", "--sheets=0"])
    assert len(boxes.read(few).by_file) == 7


def test_the_drawing_shows_contour_and_box():
    image, mask = np.full((32, 32, 1), 90, np.uint8), np.zeros((32, 32), np.uint8)
    mask[8:24, 4:28] = 1
    for width, height, resize in ((320, 160, "stretch"), (320, 160, "crop")):
        box = boxes.Box("a/b.png", "cropped", "", width, height, 100, 20, 220, 140)
        canvas = sheets.draw(image, mask, box, resize)
        blue = np.argwhere((canvas == sheets._BOX).all(-1))
        left = (100 / 320 if resize == "stretch" else 20 / 160) * 223
        assert abs(blue[:, 1].min() - left) <= 2 and abs(blue[:, 0].min() - 20 / 160 * 223) <= 2
        assert (canvas == sheets.overlays.PREDICTED).all(-1).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out": "{tmp}/none/boxes.csv"}, "cannot be written"),
        ({"out": "{tmp}"}, "cannot be written"),
        ({"source": "{tmp}/none"}, "does not exist"),
        ({"source": "{tmp}/texts"}, "holds no image files"),
        ({"workdir": "{tmp}"}, "no config.json"),
        ({"trial": "other"}, "there is no trial other"),
        ({"margin": "-1"}, "--margin lies in"),
        ({"batch_size": "0"}, "--batch_size is at least 1"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(trained, films, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr("research.training.signals.StopSignal.install", lambda self: None)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    given = {"workdir": trained, "source": films, "out": tmp_path / "boxes.csv"}
    given |= {key: value.format(tmp=tmp_path) for key, value in changes.items()}
    with pytest.raises(UserError, match=words):
        segment.main([f"--{key}={value}" for key, value in given.items()])
    assert not (tmp_path / "boxes.csv").exists()


def test_an_unfinished_run_is_refused(trained, films, tmp_path, monkeypatch):
    monkeypatch.setattr("research.training.signals.StopSignal.install", lambda self: None)
    shutil.copytree(trained, tmp_path / "run")
    table = tmp_path / "run" / "trials.csv"
    table.write_text(table.read_text().replace("finished", "running"))
    with pytest.raises(UserError, match="no trial of .* is finished"):
        segment.main([f"--workdir={tmp_path / 'run'}", f"--source={films}", f"--out={tmp_path / 'b.csv'}"])


def test_a_run_that_segments_is_not_compressed(trained, monkeypatch):
    from research.compress import __main__ as compress

    monkeypatch.setattr("research.training.signals.StopSignal.install", lambda self: None)
    with pytest.raises(UserError, match="only models that classify are compressed"):
        compress.main([f"--workdir={trained}", "--latency_runs=0"])


def test_a_run_that_classifies_does_not_segment(trained, films, tmp_path, monkeypatch):
    monkeypatch.setattr("research.training.signals.StopSignal.install", lambda self: None)
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"] |= {"name": "simple_cnn", "options": {"widths": [4, 8]}}
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="simple_cnn of .* classifies images; name a --workdir whose model segments"):
        segment.main([f"--workdir={workdir}", f"--source={films}", f"--out={tmp_path / 'b.csv'}"])
