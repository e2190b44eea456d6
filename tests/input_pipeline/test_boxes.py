"""Does `prepare --boxes` store exactly the pixels inside the boxes, say so in its report, and refuse nonsense?"""

import json

import numpy as np
import pytest

from input_pipeline import boxes, images, prepare, simulate_lungs
from input_pipeline.boxes import Box
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """A raw folder of 24 simulated chests with their masks."""
    return simulate_lungs.lung_masks(tmp_path_factory.mktemp("chests") / "raw", 24, size=64, seed=2, workers=1)


def names(raw):
    return sorted(str(path.relative_to(raw)) for path in (raw / "cxr").iterdir())


def table(raw, path, change=None):
    """A box for every X-ray but the first, which stays whole, and the last, which has no row."""
    rows = []
    for number, name in enumerate(names(raw)[:-1]):
        box = Box(name, "cropped", "", 64, 64, 3 + number % 5, 2, 60, 61 - number % 3, 0.3, 2)
        rows.append(box if number else Box(name, "whole", "one lung only", 64, 64, 0, 0, 64, 64, 0.1, 1))
    boxes.write(path, change(rows) if change else rows)
    return {row.file: row for row in rows}


def test_the_table_comes_back(chests, tmp_path):
    rows = table(chests, tmp_path / "boxes.csv")
    assert boxes.read(tmp_path / "boxes.csv").by_file == rows
    assert rows[names(chests)[0]].reason == "one lung only"


def test_the_stored_pixels_are_those_inside_the_boxes(chests, tmp_path):
    rows = table(chests, tmp_path / "boxes.csv")
    report = prepare.prepare("lung_masks", chests, tmp_path / "cut", boxes=tmp_path / "boxes.csv")
    whole = prepare.prepare("lung_masks", chests, tmp_path / "whole")
    cut, full = open_dataset(tmp_path / "cut"), open_dataset(tmp_path / "whole")
    assert list(cut.ids) == list(full.ids) and cut.fingerprint != full.fingerprint
    assert list(cut.roles) == list(full.roles) and list(cut.groups) == list(full.groups)
    for index, identifier in enumerate(cut.ids):
        other = int(np.flatnonzero(full.ids == identifier)[0])
        box = rows.get(f"cxr/{identifier}.png")
        for read in ("encoded", "encoded_segmentation"):
            ours, theirs = (images.decode(getattr(d, read)(i)) for d, i in ((cut, index), (full, other)))
            if box is not None and box.status == "cropped":
                theirs = theirs[box.top : box.bottom, box.left : box.right]
            np.testing.assert_array_equal(ours, theirs)
    kept = report["boxes"]
    assert kept["cropped"] == 22 and {k: v["count"] for k, v in kept["whole"].items()} == {
        "one lung only": 1,
        "no row": 1,
    }
    assert (tmp_path / "cut" / "boxes.csv").read_bytes() == (tmp_path / "boxes.csv").read_bytes()
    assert "boxes" not in whole and not (tmp_path / "whole" / "boxes.csv").exists()
    assert json.loads((tmp_path / "cut" / "ingest_report.json").read_text())["boxes"] == kept


def test_workers_and_ids_make_no_difference(chests, tmp_path):
    """The same bytes by two processes, and by a table that names ids instead of files."""
    table(chests, tmp_path / "boxes.csv")
    prepare.prepare("lung_masks", chests, tmp_path / "a", boxes=tmp_path / "boxes.csv", workers=1)
    prepare.prepare("lung_masks", chests, tmp_path / "b", boxes=tmp_path / "boxes.csv", workers=2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    text = (tmp_path / "boxes.csv").read_text().replace("cxr/", "").replace(".png", "")
    (tmp_path / "ids.csv").write_text(text)
    prepare.prepare("lung_masks", chests, tmp_path / "c", boxes=tmp_path / "ids.csv", workers=1)
    record = next((tmp_path / "a").glob("*train*.tfrecord-00000-of-00001"))
    assert record.read_bytes() == (tmp_path / "c" / record.name).read_bytes()


def test_an_image_of_another_size_or_an_empty_mask_is_skipped_with_its_reason(chests, tmp_path):
    def change(rows):
        rows[1] = Box(rows[1].file, "cropped", "", 80, 64, 0, 0, 70, 60)
        rows[2] = Box(rows[2].file, "cropped", "", 64, 64, 0, 0, 3, 3)
        return rows

    table(chests, tmp_path / "boxes.csv", change)
    report = prepare.prepare("lung_masks", chests, tmp_path / "out", boxes=tmp_path / "boxes.csv", max_bad=0.2)
    assert report["counts"]["skipped"] == 2
    assert any("its box was made for 80 x 64 pixels" in reason for reason in report["skipped"])
    assert "its mask is empty inside its box" in report["skipped"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,status\nx,whole\n", "has no column reason"),
        ("{head}x,cropped,,64,64,10,0,5,64,0.1,2\n", "line 2: its box does not lie inside its image"),
        ("{head}x,cropped,,64,64,0,0,65,64,0.1,2\n", "line 2: its box does not lie inside"),
        ("{head}x,whole,,64,64,0,0,64,64,0.1,2\nx,whole,,64,64,0,0,64,64,0.1,2\n", "line 3: its file occurs a second"),
        ("{head}x,half,,64,64,0,0,64,64,0.1,2\n", "line 2: its status 'half'"),
        ("{head}x,cropped,,64,64,,0,64,64,0.1,2\n", "line 2: a number is missing"),
        ("{head}other.png,whole,,64,64,0,0,64,64,0.1,2\n", "names none of the images of the source"),
        ("{head}", "names none of the images"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(chests, tmp_path, text, words):
    path = tmp_path / "boxes.csv"
    path.write_text(text.format(head=",".join(boxes.COLUMNS) + "\n"))
    with pytest.raises(UserError, match=words):
        prepare.prepare("lung_masks", chests, tmp_path / "out", boxes=path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_table_is_named(chests, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepare.main(["--study=lung_masks", f"--source={chests}", f"--out={tmp_path}/o", "--boxes=none.csv"])


def test_the_command_crops(chests, tmp_path, capsys):
    table(chests, tmp_path / "boxes.csv")
    arguments = ["--study=lung_masks", f"--source={chests}", f"--out={tmp_path}/o", f"--boxes={tmp_path}/boxes.csv"]
    prepare.main(arguments)
    assert "22 cropped to their boxes, 2 left whole" in capsys.readouterr().out
