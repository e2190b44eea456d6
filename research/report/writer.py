"""Where do the numbers of a running trial go? TensorBoard event files and `metrics.jsonl`, both exact across a resume.

`MetricWriter` has the method names of `clu.metric_writers.MetricWriter`, which itself imports TensorFlow. It writes
through tensorboardX's event protos, synchronously: tensorboardX's own `SummaryWriter` hands events to a queue and a
thread, and its `flush` does not wait for them, so a checkpoint could outlive the points before it.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from input_pipeline import cli, plotting

Row = dict[str, Any]
_BINS = 64
_PR_THRESHOLDS = 127  # the largest count that the plugin's protobuf field takes as one byte


class MetricWriter:
    """Writes one TensorBoard run.

    Args:
        directory: folder of the run, `tensorboard/<trial>`; created.
        resume_step: last step of the checkpoint that the run goes on from. TensorBoard then hides what an
            interrupted run wrote after it, so no point is shown twice. None for a new run.
        active: False makes every call do nothing (for all processes but the first one).

    A step's points are on disk after `flush`, which belongs before the save of that step's checkpoint.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int | None = None, active: bool = True):
        self._events = None
        if not active:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        # tensorboardX names a file by the second and opens it for writing: a resume within one second would
        # overwrite the file before it, so the name continues to the nanosecond. TensorBoard reads in name order.
        self._event_type = event_pb2.Event
        self._events = EventsWriter(os.path.join(directory, "events"), f".{time.time_ns():020d}.{os.getpid()}")
        if resume_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(resume_step + 1, session_log=start)
        self.flush()

    def _write(self, step: int, **content) -> None:
        self._events.write_event(self._event_type(wall_time=time.time(), step=int(step), **content))

    def _write_summary(self, step: int, **value) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(step, summary=Summary(value=[Summary.Value(**value)]))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers (Python, NumPy or JAX, shape `[]` or `[1]`) under their tags; NaN and Inf are kept."""
        if self._events is not None:
            for tag, value in scalars.items():
                self._write_summary(step, tag=tag, simple_value=float(np.asarray(value).reshape(())))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes `[H, W, C]` or `[N, H, W, C]` images (uint8, uint16, or float in 0..255) as lossless PNG."""
        if self._events is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        for tag, stack in images.items():
            stack = np.asarray(stack)
            stack = stack[None] if stack.ndim == 3 else stack
            if stack.ndim != 4:
                raise ValueError(f"{tag}: images have shape [H, W, C] or [N, H, W, C], not {list(stack.shape)}")
            for index, image in enumerate(stack):
                picture = Summary.Image(
                    height=image.shape[0], width=image.shape[1], colorspace=3,
                    encoded_image_string=plotting.encode_png(image),
                )  # fmt: skip
                self._write_summary(step, tag=f"{tag}/{index}" if len(stack) > 1 else tag, image=picture)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts; TensorBoard renders them as Markdown."""
        if self._events is not None:
            from tensorboardX import summary

            for tag, text in texts.items():
                self._write(step, summary=summary.text(tag, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the distribution of each array's finite values (`num_buckets[tag]` bins, else 64)."""
        if self._events is None:
            return
        from tensorboardX import summary

        for tag, array in arrays.items():
            values = np.asarray(array, dtype=np.float64).ravel()
            values = values[np.isfinite(values)]
            if len(values):
                edges = np.histogram_bin_edges(values, (num_buckets or {}).get(tag, _BINS))
                self._write(step, summary=summary.histogram(tag, values, edges))

    def write_pr_curve(self, step: int, curves: Mapping[str, tuple[Any, Any]]) -> None:
        """Writes precision-recall curves from (labels `[N]` 0 or 1, scores `[N]` in 0..1) for each tag."""
        if self._events is None:
            return
        from tensorboardX import summary

        for tag, (labels, scores) in curves.items():
            labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
            if labels.shape != scores.shape or labels.ndim != 1 or not np.all((scores >= 0) & (scores <= 1)):
                raise ValueError(f"{tag}: a curve needs labels [N] and scores [N] between 0 and 1")
            self._write(step, summary=summary.pr_curve(tag, labels, scores, num_thresholds=_PR_THRESHOLDS))

    def write_hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> None:
        """Writes the setting of the trial into this same run, for TensorBoard's HPARAMS table.

        Args:
            hparams: flat; anything but bool, number and text is written as its text.
            metrics: tags written by `write_scalars` which the table shall show; values are ignored.
        """
        if self._events is not None:
            from tensorboardX.summary import hparams as hparams_summaries

            flat = {name: _plain(value) for name, value in hparams.items()}
            for summary in hparams_summaries(flat, dict(metrics or {})):
                self._write(0, summary=summary)

    def flush(self) -> None:
        """Returns when everything written so far is on the disk (fsync)."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes; calling it twice is harmless."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _plain(value: Any) -> bool | float | str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else str(value)


class JsonlLog:
    """The append-only `metrics.jsonl`: one JSON object a line, each with `trial` and `step`.

    JSON has no NaN and Inf, so they are written as the texts "NaN", "Infinity" and "-Infinity" (as protobuf does)
    and read back as numbers. Each row is one `write` to a file opened for appending: a killed process leaves whole
    lines and at most one half line at the end, which the next `JsonlLog` on the file takes away.

    Args:
        path: the file; created when the first row is written.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._descriptor: int | None = None
        if self._path.exists():
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self._path, whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row (values: text, numbers, None, and lists and dicts of them).

        Raises:
            ValueError: `trial` or `step` is missing, so that a resume could not find the row again.
        """
        if "trial" not in row or "step" not in row:
            raise ValueError("a row of metrics.jsonl needs the keys trial and step")
        line = json.dumps(_to_json(row), allow_nan=False, ensure_ascii=False) + "\n"
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        data = line.encode("utf-8")
        if os.write(self._descriptor, data) != len(data):
            raise OSError(28, "No space left on device", str(self._path))

    def truncate_after(self, trial: str | Collection[str], step: int) -> int:
        """Takes away the rows of a trial or of several after `step` (-1: all), atomically; other trials' rows stay.

        To be called with the step of the restored checkpoint: the resumed run writes those rows again.
        Returns the number of rows taken away.
        """
        names = {trial} if isinstance(trial, str) else set(trial)
        rows = read_jsonl(self._path)
        kept = [row for row in rows if row["trial"] not in names or row["step"] <= step]
        if len(kept) < len(rows):
            self.close()
            lines = [json.dumps(_to_json(row), allow_nan=False, ensure_ascii=False) + "\n" for row in kept]
            cli.atomic_write(self._path, "".join(lines))
        return len(rows) - len(kept)

    def flush(self) -> None:
        """Returns when all rows are on the disk (fsync); belongs before the save of a checkpoint."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_jsonl(path: str | os.PathLike) -> list[Row]:
    """The rows of a `metrics.jsonl`, [] if there is none; a half-written last line is left out.

    Raises:
        UserError: a line before the last is not a row, which no interrupted write can cause.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is empty or half-written
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or "trial" not in row or "step" not in row:
            raise cli.UserError(f"{path}, line {number} is not a row of metrics; restore the file or delete that line.")
        rows.append(_from_json(row))
    return rows


_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy or JAX array or scalar
        return _to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
