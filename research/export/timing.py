"""How long does an exported file take for one batch, on one thread of one core?

A child process measures, as in `research.search.latency`, so that neither the threads nor the memory of the export have
a part in it.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import logging

LONGEST = 15.0  # seconds of timed calls for a file


def measure(folder: pathlib.Path, files: Sequence[str], inputs: Sequence[dict], batch: int, runs: int) -> dict:
    """Median and 95th percentile of each file's time.

    Args:
      folder: where the files are.
      inputs: name, shape without the batch axis, and type of each input.
      batch: examples of a call.
      runs: timed calls, fewer where they would take longer than `LONGEST`.

    Returns:
      {file: {"p50_ms", "p95_ms", "batch", "threads", "runs", "runtime"}}, without those that could not be measured,
      which is logged.
    """
    from research.search import latency

    root, job = pathlib.Path(__file__).parents[2], folder / ".latency"
    job.mkdir()
    content = {"files": list(files), "inputs": list(inputs), "batch": batch, "runs": runs}
    (job / "job.json").write_text(json.dumps(content), encoding="utf-8")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    environment = os.environ | latency.THREADS | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "research.export.timing", str(folder)]
    child = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if child.returncode:
        logging.warning("The latencies were not all measured: %s", child.stderr.strip()[-2000:])
    found = {}
    for file in files:
        if (job / f"{file}.json").exists():
            found[file] = json.loads((job / f"{file}.json").read_text(encoding="utf-8"))
    for path in job.iterdir():
        path.unlink()
    job.rmdir()
    return found


def _measure_here(folder: pathlib.Path) -> None:
    """The child: measures one file after the other; an answer each, so that a crash does not lose those before it."""
    if hasattr(os, "sched_setaffinity"):
        # Before JAX makes its threads, which are as many as there are cores.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import jax

    from research.export import onnx_graph, stablehlo
    from research.search import latency

    job = json.loads((folder / ".latency" / "job.json").read_text(encoding="utf-8"))
    generator = np.random.default_rng(0)
    given = [_example(generator, job["batch"], entry) for entry in job["inputs"]]
    for file in job["files"]:
        if file == onnx_graph.FILE:
            import onnxruntime

            runtime = f"ONNX Runtime {onnxruntime.__version__}"
            call = onnx_graph.load(folder / file, [entry["name"] for entry in job["inputs"]], threads=1)
        else:
            runtime, call = f"XLA, jax {jax.__version__}", stablehlo.load(folder / file)
        call(given)
        start = time.perf_counter()
        call(given)
        runs = int(np.clip(LONGEST / (time.perf_counter() - start), min(10, job["runs"]), job["runs"]))
        times = latency.times(lambda call=call: call(given), runs, min(5, runs))
        p50, p95 = np.quantile(times, [0.5, 0.95])
        answer = {"p50_ms": round(float(p50), 4), "p95_ms": round(float(p95), 4), "batch": job["batch"]}
        answer |= {"threads": 1, "runs": runs, "runtime": runtime}
        (folder / ".latency" / f"{file}.json").write_text(json.dumps(answer), encoding="utf-8")


def _example(generator: np.random.Generator, batch: int, entry: dict) -> np.ndarray:
    shape, dtype = (batch, *entry["shape"]), np.dtype(entry["type"])
    if entry["name"] == "caption":
        return np.ones(shape, dtype)
    if dtype == np.float32:
        return generator.uniform(0, 255 if entry["name"] == "image" else 10, shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


if __name__ == "__main__":
    _measure_here(pathlib.Path(sys.argv[1]))
