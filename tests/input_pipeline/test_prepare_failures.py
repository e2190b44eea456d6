"""Preparing is all or nothing: bad images, wrong arguments, kills, crashes and rivals leave no half-written dataset."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from input_pipeline import assemble, building, ingest, prepare, raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from tests.input_pipeline import picture_files as files

ROOT = pathlib.Path(__file__).parents[2]


def refused(tmp_path, message, study="folder", raw_name="raw", out="out", **arguments):
    with pytest.raises(UserError, match=message) as caught:
        prepare.prepare(study, tmp_path / raw_name, tmp_path / out, **{"workers": 1, **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".out.preparing").exists()


def test_too_many_bad_images_stop_the_run(tmp_path):
    content = files.class_folders(tmp_path / "raw", 10)
    files.write(tmp_path / "raw", {name: data[:60] for name, data in list(content.items())[:3]})
    refused(tmp_path, r"2 of the first 2 images of 20 cannot be used, more than 5% .*cat/0", max_bad=0.05)
    refused(tmp_path, "more than 14%", max_bad=0.14)
    assert not (tmp_path / "out").exists()
    report = prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1, max_bad=0.15)
    assert report["counts"]["skipped"] == 3


def test_all_images_truncated(tmp_path):
    content = files.class_folders(tmp_path / "raw", 10)
    files.write(tmp_path / "raw", {name: data[:200] for name, data in content.items()})
    refused(tmp_path, "2 of the first 2 images of 20 cannot be used")
    refused(tmp_path, "none of the images in .* can be used", max_bad=1.0)


def test_a_class_without_a_readable_image_stops_the_run(tmp_path):
    files.class_folders(tmp_path / "raw", 20)
    files.write(tmp_path / "raw", {"bird/1.jpg": b"no image"})
    refused(tmp_path, "no image of the class bird")


def test_targets(tmp_path):
    files.class_folders(tmp_path / "raw", 10)
    (tmp_path / "file").write_text("x")
    files.write(tmp_path / "full", {"something": b"x"})
    (tmp_path / "out").mkdir()
    refused(tmp_path, "is not empty and is no prepared dataset", out="full")
    refused(tmp_path, "is a file", out="file")
    refused(tmp_path, "lies inside the raw data", out="raw/prepared")
    refused(tmp_path, "lies inside the raw data", out="raw")
    refused(tmp_path, "does not exist", raw_name="nowhere")
    prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)  # an empty folder may be taken
    before = files.snapshot(tmp_path / "out")
    refused(tmp_path, "is a prepared dataset already: remove it or choose another")
    assert files.snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"study": "flowers"}, "unknown study 'flowers'"),
        ({"workers": 0}, "--workers=0"),
        ({"seed": -1}, "--seed=-1"),
        ({"folds": 1}, "--folds=1"),
        ({"folds": 50}, "fewer than 50 folds"),
        ({"max_bad": 1.5}, "--max_bad=1.5"),
        ({"max_pixels": 0}, "--max_pixels=0"),
        ({"options": {"color": "x"}}, "no option 'color'"),
        ({"fractions": {"test": 1.2}}, "test=1.2"),
        ({"fractions": {"train": 0.5}}, "train=0.5"),
        ({"fractions": {"test": 0.9}}, "nothing to train on"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    files.class_folders(tmp_path / "raw", 10)
    refused(tmp_path, message, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    files.class_folders(tmp_path / "raw", 10)
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(assemble, "encode_example", fail)
        with pytest.raises(type(error)):
            prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
        assert os.listdir(tmp_path) == ["raw"]


def test_two_runs_into_one_folder(tmp_path):
    files.class_folders(tmp_path / "raw", 10)
    with building.building(tmp_path / "out") as folder:
        with pytest.raises(UserError, match="another run is preparing"):
            prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
        (folder / "x").write_text("still here")
    assert (tmp_path / "out" / "x").read_text() == "still here"


SLOW = """
import sys, time
from input_pipeline import prepare, ingest
class Slow(ingest.Reader):
    def read(self, paths):
        time.sleep(0.05)
        return super().read(paths)
prepare.Reader = Slow
import __main__
Slow.__module__ = "slow_reader"
sys.modules["slow_reader"] = __main__
prepare.prepare("folder", sys.argv[1], sys.argv[2], workers=1)
"""


def test_killed_half_way(tmp_path):
    files.class_folders(tmp_path / "raw", 30)
    process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "raw", tmp_path / "out"], cwd=ROOT)
    temporary = tmp_path / ".out.preparing"
    deadline = time.monotonic() + 60
    while not (temporary / "images.spool").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert temporary.exists() and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "out")
    prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
    assert sorted(os.listdir(tmp_path)) == ["out", "raw"] and "images.spool" not in os.listdir(tmp_path / "out")


WORKERS = """
import sys, os
from input_pipeline import ingest, prepare, raw
from input_pipeline.studies.manifest import RawExample
source = raw.open_source(sys.argv[1])
examples = [RawExample(name, (name,), ()) for name in source.names()]
outcomes = ingest.ingest(ingest.Reader(source, (), 10**6, False), examples, 2)
next(outcomes)
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(children, "jax" in sys.modules, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_workers_end_with_a_killed_parent_and_need_no_guard(tmp_path):
    """The script has no `if __name__ == "__main__"`, which spawned workers usually require."""
    files.class_folders(tmp_path, 100)
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    *children, jax_loaded = process.stdout.readline().split()
    assert len(children) >= 2 and jax_loaded == "False"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children))
    process.stdin.close()
    process.stdout.close()


def is_alive(pid: str) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_that_vanishes_or_is_a_bomb_is_one_bad_image(tmp_path):
    files.class_folders(tmp_path, 1)
    source = raw.open_source(tmp_path)
    reader = ingest.Reader(source, (), 100, True)
    assert "more pixels than the limit" in reader.read(("cat/00.png",)).error
    (tmp_path / "dog" / "00.png").unlink()
    assert reader.read(("dog/00.png",)).error == "cannot be read: No such file or directory"


def test_join_groups():
    assert prepare.join_groups(["a", "b", "c", "d"], [None] * 4) == ["a", "b", "c", "d"]
    joined = prepare.join_groups(["a", "a", "b", "c", "d", "d"], ["p1", None, "p1", "p2", "p3", "p2"])
    assert joined == ["p1", "p1", "p1", "p2", "p2", "p2"]


def test_command_line_ends_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "input_pipeline.prepare", "--study=hpa", f"--source={tmp_path}", "--out=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    with pytest.raises(UserError, match="the following arguments are required: --source, --out"):
        prepare.main(["--study=hpa"])
    with pytest.raises(UserError, match="invalid int value"):
        prepare.main(["--study=hpa", "--source=.", "--out=x", "--workers=two"])
    with pytest.raises(UserError, match="no KEY=VALUE pair"):
        prepare.main(["--study=hpa", "--source=.", "--out=x", "--set", "channels"])
