"""Helpers of the tests that run whole commands."""

import csv
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"}


def command(config: str, workdir: pathlib.Path, *arguments: str, module: str = "research.main") -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", module, f"--config={config}", f"--workdir={workdir}", *arguments]


def run(config: str, workdir: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs to the end; the result has stdout, stderr and returncode."""
    return subprocess.run(
        command(config, workdir, *arguments),
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def ledger(workdir: pathlib.Path) -> list[dict[str, str]]:
    """The rows of trials.csv."""
    with open(workdir / "trials.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metric_rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
