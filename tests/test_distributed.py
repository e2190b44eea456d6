"""Jobs of several processes: they compute what one process computes, die together, and go on with any number.

The slow tests: `pytest -m slow tests/test_distributed.py`, about three minutes on two cores.
"""

import json
import pathlib
import signal
import socket
import subprocess

import jax
import numpy as np
import pytest
from absl import flags

from configs import hpa
from input_pipeline.cli import UserError
from research import study
from research.training import cluster, sharding
from research.training.loop import Training
from research.training.signals import EXIT_STOPPED, Stopped, StopSignal
from tests.running import ENVIRONMENT, ROOT, command, ledger, metric_rows

BATCH = 15  # odd: padded on two processes
CHANGES = {
    "epochs": 0.0, "steps": 8, "batch_size": BATCH, "image_size": 24, "evaluate_every": "4 steps",
    "checkpoint_every": "4 steps", "log_every": "2 steps", "model.head_dropout": 0.2, "optimizer.ema": 0.9,
    "data.augment.rotation": 40.0, "data.augment.mixup": 0.3, "evaluation.tta": "flips",
    "evaluation.baselines": False, "evaluation.explain": "", "evaluation.bootstrap": 20,
}  # fmt: skip
CACHE = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


def start(folder: pathlib.Path, data, processes: int, *arguments: str, **environment: dict[int, str]) -> list:
    """Starts the processes of a job; of `environment` each gets its own value of a variable, if it has one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = [f"--config.{name}={value}" for name, value in CHANGES.items()] + [f"--config.data.dir={data.directory}"]
    started, launch = [], len(list(folder.glob("ids*.0")))
    for number in range(processes):
        job = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={number}")
        line = command("configs/hpa.py:smoke", folder / "run", *shared, *job, "--peer_timeout=10", *arguments,
                       module="tests.distributed_driver")  # fmt: skip
        own = {name: values[number] for name, values in environment.items() if number in values}
        own = {"DRIVER_IDS": str(folder / f"ids{launch}.{number}"), "DRIVER_REPORT": "0"} | own
        started.append(subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT | CACHE | own, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    return started


def ends(processes: list) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def train(folder: pathlib.Path, data, devices: int, stop: StopSignal | None = None, **changes) -> Training:
    """The same training in this process, on the first `devices` of the simulated ones."""
    folder.mkdir(exist_ok=True)
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict(CHANGES | changes)
    mesh, stop = sharding.make_mesh(jax.devices()[:devices]), stop or StopSignal()
    trial = study.SharedImages().attach(study.expand(config.lock(), data)[0], mesh)
    training = Training(trial, folder, mesh, stop)
    training.run()
    return training


def test_a_killed_peer_ends_the_job_and_the_same_command_continues_it(simulated, tmp_path):
    """Two processes, the second killed at step 6, then again to the end = one process with two devices, bit for bit."""
    (tmp_path / "one").mkdir()
    first, second = ends(start(tmp_path, simulated, 2, DRIVER_SIGNAL={1: "9"}, DRIVER_STEP={1: "6"}))
    assert second[0] == -signal.SIGKILL
    assert first[0] == cluster.EXIT_PEER and first[2].strip().endswith("with the same commands."), first
    one = start(tmp_path / "one", simulated, 1, JAX_NUM_CPU_DEVICES={0: "2"})
    first, second = ends(start(tmp_path, simulated, 2))
    ((status, _, errors),) = ends(one)
    assert status == 0, errors
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "continuing from step 4" in first[1] and "Phase" not in second[1]  # one speaks for all
    run, one = tmp_path / "run", tmp_path / "one" / "run"
    assert metric_rows(run) == metric_rows(one)
    assert ledger(run) == ledger(one) and ledger(run)[0]["status"] == "finished"
    files = sorted(file.name for file in (one / "predictions").iterdir())
    assert len(files) == 4 and files == sorted(file.name for file in (run / "predictions").iterdir())
    for name in files:
        assert (run / "predictions" / name).read_bytes() == (one / "predictions" / name).read_bytes(), name
    assert not [path for path in (tmp_path / "run").rglob("*") if ".tmp" in path.name]


class StopAt(StopSignal):
    """Asks for a stop at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.training = step, None

    def check(self) -> None:
        if self.training and self.training.state is not None and int(self.training.state.step) >= self.step:
            raise Stopped


@pytest.mark.slow
def test_devices_may_change_at_every_resume(simulated, tmp_path, monkeypatch):
    """1 → 2 → 4 → 1 devices, two steps each: the same examples at every step, and nearly the same losses."""
    taken: dict[str, dict[int, list[str]]] = {"changing": {}, "whole": {}}
    run, take = "whole", Training._batches

    def batches(self, phase, first):
        if isinstance(self.stop, StopAt):
            self.stop.training = self
        original = sharding.put_batch
        count = iter(range(first, 10**6))

        def put(mesh, batch):
            if "id" in batch:
                ids = [name for name in batch["id"] if name]
                assert taken[run].setdefault(next(count), ids) == ids
            return original(mesh, batch)

        with monkeypatch.context() as patch:
            patch.setattr(sharding, "put_batch", put)
            staged = take(self, phase, first)
        return staged

    monkeypatch.setattr(Training, "_batches", batches)
    changes = {"data.cache": "ram"}
    whole = train(tmp_path / "whole", simulated, 1, **changes).meta["history"]
    run = "changing"
    for devices, until in ((1, 2), (2, 4), (4, 6)):
        with pytest.raises(Stopped):
            train(tmp_path / "changing", simulated, devices, stop=StopAt(until), **changes)
    changing = train(tmp_path / "changing", simulated, 1, **changes).meta["history"]
    assert taken["changing"] == taken["whole"] and len(taken["whole"]) == 8
    np.testing.assert_allclose([r["loss"] for r in changing], [r["loss"] for r in whole], rtol=2e-3)


def _flags(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    values(["main", *arguments])
    return values


def test_flags_of_a_job_are_understood_or_refused_in_a_sentence(monkeypatch):
    for mark in cluster._MARKS:
        monkeypatch.delenv(mark, raising=False)
    assert cluster._stated(_flags()) is None and cluster._detected() is None
    whole = ("--coordinator=10.0.0.1:8476", "--num_processes=3", "--process_id=2")
    assert cluster._stated(_flags(*whole)) == ("10.0.0.1:8476", 3, 2, None)
    for arguments, words in {
        whole[:2]: "--process_id is missing",
        ("--coordinator=host", *whole[1:]): "HOST:PORT",
        ("--coordinator=host:99999", *whole[1:]): "HOST:PORT",
        (*whole[:2], "--process_id=3"): "none of 0 to 2",
    }.items():
        with pytest.raises(UserError, match=words):
            cluster._stated(_flags(*arguments))


def test_slurm_says_who_takes_part(monkeypatch):
    """As `srun` sets them; a step of one task, or a batch script outside of a step, is no job of several processes."""
    step = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "node[007-009],login1", "SLURM_NTASKS": "3",
            "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    address, number, own, devices = cluster._detected()
    assert (address.split(":")[0], number, own, devices) == ("node007", 3, 1, [0])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert cluster._detected() is None
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert cluster._detected() is None


def test_coordinator_listens_where_it_is_stated(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    assert cluster._bind_address("127.0.0.1:5000", detected=False) == "127.0.0.1:5000"
    assert cluster._bind_address("10.1.2.3:5000", detected=True) == "10.1.2.3:5000"
    assert cluster._bind_address("127.0.1.1:5000", detected=True) == "[::]:5000"  # no other node could reach it
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.9:1")
    assert cluster._bind_address("10.1.2.3:5000", detected=False) == "10.0.0.9:1"


@pytest.mark.slow
def test_processes_may_change_at_every_resume(simulated, tmp_path):
    """1 → 2 → 1 processes, stopped by SIGTERM in any one of them: the same examples at every step as in one."""
    arguments = ("--config.checkpoint_every=1 steps", "--config.evaluate_every=8 steps")
    for processes, step in ((1, 2), (2, 5), (1, None)):
        last = processes - 1
        told = {} if step is None else {"DRIVER_SIGNAL": {last: "15"}, "DRIVER_STEP": {last: str(step)}}
        for status, _, errors in ends(start(tmp_path, simulated, processes, *arguments, **told)):
            assert status == (0 if step is None else EXIT_STOPPED), errors
    taken: dict[int, list[str]] = {}
    for file in sorted(tmp_path.glob("ids*.0")):
        parts = [part for part in (file, file.with_suffix(".1")) if part.exists() and part.stem == file.stem]
        stretches = [[json.loads(line) for line in part.read_text().splitlines()] for part in parts]
        for stretch in zip(*stretches, strict=True):
            for offset, ids in enumerate(zip(*(own["ids"] for own in stretch), strict=False)):
                joined = [name for rows in ids for name in rows if name]
                assert taken.setdefault(stretch[0]["first"] + offset, joined) == joined
    assert sorted(taken) == list(range(8)) and all(len(ids) == BATCH for ids in taken.values())
    whole = train(tmp_path / "one", simulated, 1, evaluate_every="8 steps", checkpoint_every="1 steps").meta["history"]
    rows = metric_rows(tmp_path / "run")
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in whole], rtol=2e-3)


@pytest.mark.slow
def test_parameters_spread_over_processes_are_saved_and_restored_whole(simulated, tmp_path):
    """FSDP over two processes, killed and continued; then its predictions are those of whole parameters."""
    rules = "--config.shard_parameters=('.*kernel',)"
    first, _ = ends(start(tmp_path, simulated, 2, rules, DRIVER_SIGNAL={1: "9"}, DRIVER_STEP={1: "6"}))
    assert first[0] == cluster.EXIT_PEER
    for status, _, errors in ends(start(tmp_path, simulated, 2, rules)):
        assert status == 0, errors
    train(tmp_path / "one", simulated, 2, shard_parameters=(".*kernel",))
    losses = [[row["loss"] for row in metric_rows(folder)] for folder in (tmp_path / "run", tmp_path / "one")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_the_coordinator_may_die_as_well_and_a_search_takes_all_processes(simulated, tmp_path):
    """Two trials one after another; process 0 is killed in the first; latencies and report come at the end."""
    search = ("--config.search.trials=({'name': 'a'}, {'name': 'b', 'seed': 7})", "--config.search.latency=True")
    first, second = ends(start(tmp_path, simulated, 2, *search, DRIVER_SIGNAL={0: "9"}, DRIVER_STEP={0: "6"}))
    assert first[0] == -signal.SIGKILL
    assert second[0] == cluster.EXIT_PEER and second[2].strip().endswith("with the same commands."), second
    for status, _, errors in ends(start(tmp_path, simulated, 2, *search, DRIVER_REPORT={0: "1", 1: "1"})):
        assert status == 0, errors
    rows = ledger(tmp_path / "run")
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert float(rows[0]["latency_p50_ms"]) > 0 and rows[0]["latency_p50_ms"] == rows[1]["latency_p50_ms"]
    assert (tmp_path / "run" / "report" / "index.html").exists()


@pytest.mark.slow
def test_mistakes_end_all_processes_with_status_2(simulated, tmp_path):
    for status, _, errors in ends(start(tmp_path, simulated, 2, "--config.search.halving.budget=0.5")):
        assert status == 2 and "config.search.halving.budget is not for a job of several processes" in errors, errors
