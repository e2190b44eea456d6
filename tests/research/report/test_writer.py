"""Do metrics survive a kill and a resume without loss and without duplicates, readable by TensorBoard?"""

import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from input_pipeline import cli, records
from research.report import writer

ROOT = pathlib.Path(__file__).parents[3]


def read_events(directory):
    return [event for path in sorted(pathlib.Path(directory).iterdir()) for event in read_file(path)]


def read_file(path):
    from tensorboardX.proto import event_pb2

    return [event_pb2.Event.FromString(frame[12:-4]) for frame in records.read_frames(path)]  # checks the CRCs


def values(events):
    return [(event.step, value) for event in events for value in event.summary.value]


def write_everything(directory):
    metrics = writer.MetricWriter(directory)
    setting = {"learning_rate": 1e-3, "amsgrad": True, "loss": "focal", "head": (64, 32), "seed": np.int64(3)}
    metrics.write_hparams(setting, {"validation/macro_f1": None})
    metrics.write_scalars(1, {"train/loss": np.float32(0.5), "train/rate": 2})
    metrics.write_scalars(2, {"train/loss": float("nan")})
    metrics.write_images(2, {"augmented": np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)})
    metrics.write_texts(2, {"note": "simulated"})
    metrics.write_histograms(2, {"weights": np.array([0.0, 1.0, 1.0, np.nan, 3.0])}, {"weights": 3})
    metrics.write_pr_curve(2, {"pr/Nucleoli": ([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.3])})
    metrics.close()
    metrics.close()


def test_events_hold_what_was_written(tmp_path):
    write_everything(tmp_path)
    found = values(read_events(tmp_path))
    tags = {value.tag: value for _, value in found}
    losses = [(step, value.simple_value) for step, value in found if value.tag == "train/loss"]
    assert losses[0] == (1, 0.5) and losses[1][0] == 2 and math.isnan(losses[1][1])
    picture = cv2.imdecode(np.frombuffer(tags["augmented/1"].image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    want = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)[1]
    np.testing.assert_array_equal(picture[..., ::-1], want)
    assert tags["note/text_summary"].tensor.string_val[0] == b"simulated"
    assert sum(tags["weights"].histo.bucket) == 4 and tags["weights"].histo.max == 3.0
    curve = np.array(tags["pr/Nucleoli"].tensor.float_val).reshape(6, -1)
    assert curve[0, 0] == 2 and curve[1, 0] == 2  # at threshold 0: two true, two false positives
    assert not any(path.is_dir() for path in tmp_path.iterdir())  # hparams make no run of their own


def test_no_tensorflow_or_torch_is_imported(tmp_path):
    code = (
        "import sys; from research.report import writer; w = writer.MetricWriter(sys.argv[1]);"
        "w.write_scalars(1, {'a': 1.0}); w.close();"
        "print(sorted({'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_inactive_writer_writes_nothing(tmp_path):
    metrics = writer.MetricWriter(tmp_path / "run", active=False)
    metrics.write_scalars(1, {"a": 1.0})
    metrics.write_hparams({"a": 1})
    metrics.flush()
    metrics.close()
    assert not (tmp_path / "run").exists()


def interrupted_run(directory):
    """Steps 1..5, killed inside a record after the checkpoint of step 3; goes on from 3 to 6."""
    metrics = writer.MetricWriter(directory)
    metrics.write_hparams({"seed": 0})
    for step in range(1, 6):
        metrics.write_scalars(step, {"loss": step})
        metrics.write_images(step, {"batch": np.full((4, 4, 3), step, np.uint8)})
    metrics.flush()
    first = next(pathlib.Path(directory).iterdir())
    first.write_bytes(first.read_bytes() + b"\x20\x00\x00\x00half")
    metrics = writer.MetricWriter(directory, resume_step=3)  # within the same second
    for step in range(4, 7):
        metrics.write_scalars(step, {"loss": 10 * step})
    metrics.close()
    assert len(list(pathlib.Path(directory).iterdir())) == 2


def test_resume_marks_what_to_purge(tmp_path):
    from tensorboardX.proto import event_pb2

    interrupted_run(tmp_path)
    events = read_file(sorted(tmp_path.iterdir())[1])
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == event_pb2.SessionLog.START and events[1].step == 4


def test_tensorboard_shows_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    interrupted_run(tmp_path)
    shown = accumulator.EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)
    ]  # fmt: skip
    assert [event.step for event in shown.Images("batch")] == [1, 2, 3]
    assert "_hparams_/session_start_info" in shown.PluginTagToContent("hparams")


def test_tensorboard_reads_every_kind(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_everything(tmp_path)
    shown = accumulator.EventAccumulator(str(tmp_path))
    shown.Reload()
    tags = shown.Tags()
    assert tags["scalars"] == ["train/loss", "train/rate"]
    assert tags["images"] == ["augmented/0", "augmented/1"] and tags["histograms"] == ["weights"]
    assert set(shown.PluginTagToContent("pr_curves")) == {"pr/Nucleoli"}
    assert set(shown.PluginTagToContent("text")) == {"note/text_summary"}


def row(trial, step, **values):
    return {"trial": trial, "step": step, "split": "train", **values}


def test_jsonl_keeps_special_numbers_in_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = writer.JsonlLog(path)
    log.append(row("a", 1, loss=np.float32(0.25), rate=float("inf"), bad=float("nan"), counts=np.array([1, 2])))
    log.close()

    def refuse(name):
        raise AssertionError(name)

    json.loads(path.read_text(), parse_constant=refuse)
    (read,) = writer.read_jsonl(path)
    assert read["loss"] == 0.25 and read["rate"] == math.inf and math.isnan(read["bad"]) and read["counts"] == [1, 2]


def test_truncate_after_takes_only_the_trials_later_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = writer.JsonlLog(path)
    for step in range(1, 6):
        log.append(row("a", step, loss=step))
        log.append(row("b", step, loss=step))
    assert log.truncate_after("a", 3) == 2
    log.append(row("a", 4, loss=40))
    log.flush()
    log.close()
    rows = writer.read_jsonl(path)
    assert [r["loss"] for r in rows if r["trial"] == "a"] == [1, 2, 3, 40]
    assert [r["loss"] for r in rows if r["trial"] == "b"] == [1, 2, 3, 4, 5]
    assert writer.JsonlLog(path).truncate_after("b", -1) == 5
    assert writer.JsonlLog(path).truncate_after("b", -1) == 0
    assert {r["trial"] for r in writer.read_jsonl(path)} == {"a"}
    assert writer.read_jsonl(tmp_path / "none.jsonl") == []


def test_half_written_last_line_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"trial": "a", "step": 1}\n{"trial": "a", "st')
    assert [r["step"] for r in writer.read_jsonl(path)] == [1]
    log = writer.JsonlLog(path)
    log.append(row("a", 2))
    log.close()
    assert [r["step"] for r in writer.read_jsonl(path)] == [1, 2]


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', "\x00\x00"])
def test_damaged_middle_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"trial": "a", "step": 1}}\n{line}\n{{"trial": "a", "step": 3}}\n')
    with pytest.raises(cli.UserError, match="line 2"):
        writer.read_jsonl(path)


def test_rows_without_trial_or_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="trial and step"):
        writer.JsonlLog(tmp_path / "metrics.jsonl").append({"trial": "a"})


def test_sigkill_leaves_whole_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    code = (
        "import itertools, sys; from research.report.writer import JsonlLog; log = JsonlLog(sys.argv[1])\n"
        "for step in itertools.count(): log.append({'trial': 'a', 'step': step, 'text': 'x' * 3000})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = writer.JsonlLog(path)
    steps = [r["step"] for r in writer.read_jsonl(path)]
    assert steps == list(range(len(steps))) and len(steps) > 30
    log.truncate_after("a", 9)
    assert len(writer.read_jsonl(path)) == 10
