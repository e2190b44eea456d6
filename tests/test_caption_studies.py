"""Does a study of photos and captions go from the contest's files to a report, with rivals that read the captions?"""

import csv
import pathlib
import shutil

import pytest

from input_pipeline import prepare
from input_pipeline.dataset import open_dataset
from tests import running

PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "captions" / "coco_index.csv"


def test_smoke(tmp_path):
    result = running.run("configs/captions.py:smoke", tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = {row["id"]: row for row in running.ledger(tmp_path / "run")}
    assert set(rows) == {"text", "joined"} and all(row["status"] == "finished" for row in rows.values())
    assert int(rows["joined"]["parameters"]) > int(rows["text"]["parameters"])
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "key words of the caption" in page and "SIMULATED DATA" in page
    again = running.run("configs/captions.py:smoke", tmp_path / "run")
    assert again.returncode == 0 and "finished" in again.stdout


@pytest.mark.skipif(not PHOTOS.exists(), reason="the real photos are not here")
def test_real_photos_are_loaded_and_a_batch_of_them_is_learnt_by_heart(tmp_path):
    """80 photos of COCO in the contest's layout: its numbers up to 19 are COCO's."""
    (tmp_path / "raw" / "data").mkdir(parents=True)
    lines = ["ImageID,Labels,Caption"]
    with open(PHOTOS, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            labels = [number for number in row["Labels"].split() if int(number) <= 19]
            if labels and (PHOTOS.parent / row["Path"]).exists():
                name = f"{len(lines)}.jpg"
                shutil.copy(PHOTOS.parent / row["Path"], tmp_path / "raw" / "data" / name)
                lines.append(f'{name},{" ".join(labels)},"{row["Caption"]}"')
    (tmp_path / "raw" / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare.prepare("captions", tmp_path / "raw", tmp_path / "data")
    found = open_dataset(tmp_path / "data")
    assert len(found) == len(lines) - 1 > 40 and found.captions is not None
    result = running.run(
        "configs/captions.py:smoke", tmp_path / "run", f"--config.data.dir={tmp_path / 'data'}",
        "--config.overfit_one_batch=True", "--config.model.options.text_options.dropout=0.0",
        "--config.search.trials=()", "--config.model.options.text_options.word_dropout=0.0",
    )  # fmt: skip
    assert result.returncode == 0 and "by heart" in result.stdout, result.stdout + result.stderr
