"""Does research.predict say of raw files what the run said of them, and refuse what it cannot do?"""

import csv
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import research
from configs import blood_cells
from input_pipeline import prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from research import features, predict
from research.evaluation import predictions, score
from research.prediction import inputs
from research.prediction.model import Model
from research.runs import read_config
from research.training.signals import Stopped, StopSignal
from tests.research.prediction import runs
from tests.running import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images in all kinds of files, and a run on them: crops, views, averaged weights, statistics of the data set."""
    root = tmp_path_factory.mktemp("photos")
    raw = runs.photographs(root / "raw")
    prepare.prepare("folder", raw, root / "prepared", workers=1)
    changes = {"image_size": 17, "data.resize": "crop", "model.options": {"widths": (4, 8)}, "evaluation.tta": "flips",
               "evaluation.batch_size": 9, "optimizer.ema": 0.9, "data.normalize": "dataset"}  # fmt: skip
    return raw, runs.finished(root / "run", blood_cells.get_config("single,smoke"), root / "prepared", **changes)


def table(path: pathlib.Path) -> dict[str, dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def numbers(rows, classes) -> np.ndarray:
    return np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows])


def saved(run: pathlib.Path, multi_label: bool):
    (trial,) = {file.name.removesuffix("_test.csv") for file in (run / "predictions").glob("*_test.csv")}
    return score.score(run, [trial], multi_label, read_config(run).evaluation)


def test_every_kind_of_file_and_input(photos, tmp_path, capsys):
    """Files of all formats, as folder, archive, table, pattern and data set, equal the saved predictions."""
    raw, run = photos
    expected = saved(run, False)
    names = sorted(file.relative_to(raw).as_posix() for file in raw.rglob("*") if file.is_file())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in names:
            archive.write(raw / name, name)
    lines = [f'{number},"{raw / name}",x\n' for number, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("Key,Picture,unused\n" + "".join(lines[::-1]))
    given = {
        "folder": [f"--images={raw}"],
        "archive": [f"--images={tmp_path / 'images.zip'}"],
        "pattern": [f"--images={raw}/**/image*"],
        "table": [f"--images={tmp_path / 'list.csv'}", "--columns=path=picture,id=Key"],
        "prepared": [f"--images={raw.parent / 'prepared'}"],
        "role": ["--role=test"],
        "other batches": [f"--images={raw}", "--batch_size=5"],
    }
    for kind, arguments in given.items():
        out = tmp_path / f"{kind}.csv"
        assert predict.main([f"--workdir={run}", f"--out={out}", *arguments]) == 0
        rows = table(out)
        if kind == "table":
            assert list(rows) == [str(number) for number in range(len(names))][::-1]
            rows = {names[int(key)]: row for key, row in rows.items()}
        assert len(rows) == (len(expected.ids) if kind == "role" else len(names))
        of_test = [rows[name] for name in expected.ids]
        found = numbers(of_test, expected.class_names)
        np.testing.assert_allclose(found, expected.scores, atol=1e-6 if kind == "other batches" else 1e-8)
        assert [row["predicted"] for row in of_test] == [expected.class_names[k] for k in expected.predicted]
    assert f"{len(names)}/{len(names)}" in capsys.readouterr().err
    assert list(table(tmp_path / "folder.csv")) == names and not list(tmp_path.glob(".*"))
    model = research.load(run)
    assert model.classes == expected.class_names and model.temperature == expected.temperatures[0]
    assert model.thresholds is None


def test_unreadable_files_stay_in_the_table(photos, tmp_path, capsys):
    raw, run = photos
    folder = tmp_path / "=images"
    shutil.copytree(raw, folder)
    one = next(file for file in sorted(folder.rglob("*.jpeg")))
    (folder / "=1+1,.jpeg").write_bytes(one.read_bytes())
    (folder / "cut.jpeg").write_bytes(one.read_bytes()[: one.stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "notes.png").write_text("no image")
    (folder / "read me.txt").write_text("no image either")
    os.mkfifo(folder / "pipe.png")
    (folder / "outside.jpeg").symlink_to(next(raw.rglob("*.jpeg")))
    out = tmp_path / "out.csv"
    assert predict.main([f"--workdir={run}", f"--images={folder}", f"--out={out}"]) == 0
    rows = table(out)
    bad = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert set(bad) == {"cut.jpeg", "empty.png", "notes.png", "outside.jpeg", "pipe.png"}
    assert bad["empty.png"] == "empty file" and "truncated" in bad["cut.jpeg"] and "leads out" in bad["outside.jpeg"]
    assert all(not row["predicted"] and not row["probability_dark"] for row in map(rows.get, bad))
    assert rows["'=1+1,.jpeg"]["probability_dark"] == rows[one.relative_to(folder).as_posix()]["probability_dark"]
    said = capsys.readouterr().err
    assert f"warning: 5 of {len(rows)} images" in said and "1 files of" in said
    listed = tmp_path / "list.csv"
    listed.write_text(f"path\n{one}\nnothing.png\n/dev/zero\n", "utf-8")
    assert predict.main([f"--workdir={run}", f"--images={listed}", f"--out={out}"]) == 0
    assert [row["status"] for row in table(out).values()] == ["ok", "there is no such file", "not a regular file"]


def test_mistakes_end_in_one_sentence(photos, tmp_path):
    raw, run = photos
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "broken.png").write_text("no image")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "twice.csv").write_text(f"path\n{raw}/a\n{raw}/a\n")
    image = str(next(raw.rglob("*.jpeg")))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    ledger = (unfinished / "trials.csv").read_text()
    (unfinished / "trials.csv").write_text(ledger.replace("finished", "running"))
    cases = [
        ([f"--workdir={tmp_path}", f"--images={image}"], "is no run"),
        ([f"--workdir={unfinished}", f"--images={image}"], "no trial of .* is finished"),
        ([f"--images={image}", "--trial=other"], "there is no trial other"),
        ([f"--images={image}", "--trial=front"], "give one"),
        ([f"--images={tmp_path / 'nothing'}"], "holds no image file"),
        ([f"--images={tmp_path / 'empty'}"], "none of 1 images can be used; the first, broken.png: not an image"),
        ([f"--images={tmp_path}/*.jpeg"], "matches no file"),
        ([f"--images={tmp_path}/missing"], "does not exist"),
        ([f"--images={tmp_path / 'other.csv'}"], "no column of paths .its columns: a, b."),
        ([f"--images={tmp_path / 'other.csv'}", "--columns=path=c"], "no column of paths"),
        ([f"--images={image}", "--columns=paths=c"], "is not written"),
        ([f"--images={tmp_path / 'twice.csv'}"], "line 3: .* is in line 2 too"),
        ([f"--images={image}", "--role=test"], "give one of them"),
        (["--role=tests"], "unknown role"),
        ([], "nothing to look at"),
        ([f"--images={image}", "--batch_size=-1"], "batch_size=-1 is impossible"),
        ([f"--table={tmp_path / 'other.csv'}"], "was trained on images"),
        ([f"--images={image}", f"--captions={tmp_path / 'other.csv'}"], "reads no captions"),
        ([f"--images={image}", "--scale=linear"], "give both or none"),
        ([f"--images={image}", f"--out={tmp_path}/missing/out.csv"], "there is no folder"),
        ([f"--images={image}", f"--out={tmp_path}"], "is a folder"),
        ([f"--images={image}", f"--out={tmp_path}/out.xlsx"], "must end in .csv"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(UserError, match=sentence) as raised:
            predict.main([f"--workdir={run}", f"--out={tmp_path / 'out.csv'}", *arguments])
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*out.csv*"))


def test_a_stop_leaves_nothing(photos, tmp_path, monkeypatch):
    raw, run = photos
    calls = itertools.count()

    def check(self):
        if next(calls) == 3:
            raise Stopped

    monkeypatch.setattr(StopSignal, "check", check)
    with pytest.raises(Stopped):
        predict.main([f"--workdir={run}", f"--images={raw}", f"--out={tmp_path / 'out.csv'}", "--batch_size=3"])
    assert not os.listdir(tmp_path)


def test_the_command_and_its_status(photos, tmp_path):
    raw, run = photos
    command = [sys.executable, "-m", "research.predict", f"--workdir={run}", f"--out={tmp_path / 'out.csv'}"]
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*command, f"--images={raw}"], check=False, **settings)
    assert done.returncode == 0 and done.stdout.endswith(f"Finished: {tmp_path / 'out.csv'}\n"), done.stderr
    done = subprocess.run([*command[:-1], f"--images={raw}", "--out=none/out.csv"], check=False, **settings)
    assert done.returncode == 2 and done.stderr.startswith("error: --out=none/out.csv: there is no folder none")
    code = "import sys, research; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_from_python(photos):
    """Paths, bytes, arrays of one or many sizes and PIL images are the same images; so are floats and other types."""
    raw, run = photos
    model = Model(run, batch_size=7)
    paths = [next(raw.rglob("image 00.png")), next(raw.rglob("image 06.png")), next(raw.rglob("image 03.png"))]
    expected = model.predict(paths)
    assert expected.probabilities.shape == (3, 2) and expected.probabilities.dtype == np.float32
    assert expected.ids == tuple(map(str, paths)) and set(expected.predicted) <= {"dark", "light"}
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1, rtol=1e-6)
    pictures = [Image.open(path) for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    assert arrays[2].ndim == 2  # grey, where the network takes colour
    for images in ([path.read_bytes() for path in paths], pictures, arrays, [a.astype(np.float64) for a in arrays]):
        found = model.predict(images, ids="abc")
        assert found.ids == ("a", "b", "c") and found.predicted == expected.predicted
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    random = np.random.default_rng(0)
    many = random.integers(0, 255, (16, 21, 30, 3), np.uint8)
    whole = model.predict(many)
    assert whole.ids[:2] == ("0", "1") and len(whole.ids) == 16
    np.testing.assert_array_equal(model.predict(list(many)).probabilities, whole.probabilities)
    np.testing.assert_array_equal(model.predict(many.astype(np.float32)).probabilities, whole.probabilities)
    mixed = model.predict([paths[0], "missing.png", many[0]])
    assert mixed.status == ("ok", "there is no such file", "ok") and mixed.predicted[1] == ""
    assert np.isnan(mixed.probabilities[1]).all() and np.isfinite(mixed.probabilities[::2]).all()
    seen = model.features(many)
    assert seen.shape[0] == 16 and seen.dtype == np.float32
    assert not len(model.predict([]).ids)
    for wrong, sentence in [
        (many / 255.0, "multiply by 255"),
        (many.astype(np.int64), "give uint8"),
        (np.full((1, 4, 4, 3), np.nan), "finite floats"),
        (many[0], r"\[N, H, W, C\]"),
        ([many[0][..., :2]], "1, 3 or 4 channels"),
        ("image.png", "into a list"),
        (None, "needs images"),
    ]:
        with pytest.raises(UserError, match=sentence):
            model.predict(wrong)
    with pytest.raises(UserError, match="reads no captions"):
        model.predict(many, captions=["a"] * 16)
    with pytest.raises(UserError, match="15 ids for 16 images"):
        model.predict(many, ids=range(15))


def test_features(photos, tmp_path):
    """The head of the network makes the run's own logits of the features; Parquet and CSV hold the same."""
    import pandas as pd

    raw, run = photos
    logdir = tmp_path / "projector"
    for name in ("features.parquet", "features.csv"):
        arguments = [f"--workdir={run}", "--role=test", f"--out={tmp_path / name}", f"--projector={logdir}"]
        assert features.main(arguments) == 0
    whole, text = pd.read_parquet(tmp_path / "features.parquet"), pd.read_csv(tmp_path / "features.csv")
    columns = [name for name in whole if name.startswith("feature_")]
    np.testing.assert_array_equal(whole[columns].to_numpy(), text[columns].to_numpy(np.float32))
    test = predictions.read(next((run / "predictions").glob("*_test.csv")))
    assert list(whole["id"]) == list(test.ids) and set(whole["status"]) == {"ok"}
    assert list(whole["label"]) == [name.split("/")[0] for name in test.ids]
    model = Model(run)
    model.network._predictor.views = "none"  # features are those of the image as it is
    found = inputs.of_dataset(model.trial.dataset, model.trial.dataset.indices("test"))
    logits = np.concatenate([rows for _, rows in model.network.over(model.network.logits, model._batches(found))])
    variables = model.network._variables["params"]
    kernel = next(value for name, value in variables.items() if name.startswith("head/") and name.endswith("kernel"))
    bias = next(value for name, value in variables.items() if name.startswith("head/") and name.endswith("bias"))
    found = whole[columns].to_numpy() @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    assert {path.name for path in (logdir / "00000").rglob("*.*")} == {"tensors.tsv", "metadata.tsv", "sprite.png"}
    assert len((logdir / "00000" / "features" / "tensors.tsv").read_text().splitlines()) == len(whole)
    assert (logdir / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(next(raw.rglob("*.jpeg")), folder / "a.jpeg")
    (folder / "b.jpeg").touch()
    assert features.main([f"--workdir={run}", f"--images={folder}", f"--out={tmp_path / 'some.parquet'}"]) == 0
    some = pd.read_parquet(tmp_path / "some.parquet")
    assert list(some["status"]) == ["ok", "empty file"]
    assert some[columns].isna().sum(axis=1).tolist() == [0, len(columns)]
    with pytest.raises(UserError, match="must end in .csv or .parquet"):
        features.main([f"--workdir={run}", "--role=test", f"--out={tmp_path / 'features.npy'}"])


def test_parquet_needs_pyarrow(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        features.main([f"--workdir={photos[1]}", "--role=test", f"--out={tmp_path / 'a.parquet'}"])


def test_segmentation_is_another_command(photos, monkeypatch, tmp_path):
    from research.training import build, task

    monkeypatch.setattr(build.Trial, "task", task.SEGMENTATION)
    with pytest.raises(UserError, match="python -m research.segment"):
        predict.main([f"--workdir={photos[1]}", "--role=test", f"--out={tmp_path / 'a.csv'}"])


def test_what_prepare_did_beside_is_told(photos, tmp_path, capsys):
    """Images that `prepare` cut to boxes cannot be told from whole ones; the user is."""
    raw, run = photos
    report = open_dataset(raw.parent / "prepared").directory / "ingest_report.json"
    before = report.read_text()
    try:
        report.write_text(before.replace("{", '{"boxes": {},', 1))
        assert predict.main([f"--workdir={run}", f"--images={raw}", f"--out={tmp_path / 'a.csv'}"]) == 0
    finally:
        report.write_text(before)
    assert "were cut to boxes" in capsys.readouterr().err
