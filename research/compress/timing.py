"""How fast is a compressed network, and how much memory does it use?

As `research.search.latency` measures the trials: one image at a time, on one core, in a child process. Pruned networks
are ordinary ones. An int8 network is a program of its own, which the same child process runs in XLA; ONNX Runtime would
run another program than the one that was evaluated.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from input_pipeline.cli import UserError
from research.models.lowering import lowering_for
from research.search import latency
from research.training.build import Trial

Program = Callable[[Mapping[str, Any], jax.Array], jax.Array]
_WARM_UP = 50


def require() -> None:
    """Raises a UserError where a program cannot be handed to the child process."""
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export writes with it
        raise UserError("latencies need the package flatbuffers; install it, or pass --latency_runs=0.")


def columns(trial: Trial, arrays: Mapping[str, Mapping[str, Any]], program: Program | None, count: int) -> dict:
    """The ledger's columns of latency and memory, none where they could not be measured; takes some seconds.

    Args:
      arrays: by collection and path, of the trial's model or of `program`.
      program: (arrays, a raw image `[1, H, W, C]`) to logits; None for the trial's own model.
      count: timed runs.
    """
    if program is None:
        (measured,) = latency.measure([(trial, arrays)], count)
        return dataclasses.asdict(measured) if measured else {}
    return _measure(trial, arrays, program, count)


def _measure(trial: Trial, arrays: Mapping[str, Mapping[str, Any]], program: Program, count: int) -> dict:
    """Writes what the child process of `research.search.latency` reads, runs it, and reads its answer."""
    arrays = {kind: {path: np.asarray(value) for path, value in flat.items()} for kind, flat in arrays.items()}
    shapes = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), arrays)
    with lowering_for("cpu"):
        exporter = jax.export.export(jax.jit(lambda *arguments: program(*arguments)), platforms=("cpu",))
        exported = exporter(shapes, trial.raw)
    with tempfile.TemporaryDirectory(prefix="latency-") as name:
        folder = pathlib.Path(name)
        (folder / "0.xla").write_bytes(exported.serialize())
        np.savez(
            folder / "0.npz", **{f"{kind}:{p}": value for kind, flat in arrays.items() for p, value in flat.items()}
        )
        model = {"shape": trial.raw.shape, "dtype": str(trial.raw.dtype), "kinds": sorted(arrays), "refusal": ""}
        job = {"models": [model], "runs": count, "warm_up": _WARM_UP}
        (folder / "jobs.json").write_text(json.dumps(job), encoding="utf-8")
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "JAX_NUM_CPU_DEVICES")}
        child = subprocess.run(
            [sys.executable, "-m", "research.search.latency", name],
            env=os.environ | one | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        answer = folder / "0.json"
        if not answer.exists():
            logging.warning("The latency was not measured: %s", child.stderr.strip()[-2000:])
            return {}
        return json.loads(answer.read_text(encoding="utf-8"))
