"""Two processes that the same entry starts make one job; one that is killed comes back, and the result is the same."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.running import ENVIRONMENT, ROOT, ledger


def start(folder: pathlib.Path, port: int, index: int) -> subprocess.Popen:
    """One host: the entry, with the flags that say who it is."""
    command = [sys.executable, ROOT / "launch" / "run.py", "--config=configs/hpa.py:smoke"]
    command += [f"--workdir={folder / 'run'}"]
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}", "--peer_timeout=10"]
    with open(folder / f"log{index}", "wb") as log:
        environment = ENVIRONMENT | {"LAUNCH_BACKOFF": "1"}
        return subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, stdout=log, stderr=log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def job(folder: pathlib.Path, killed: int | None) -> str:
    """Runs the job, kills the study of one host after the first checkpoint, and returns the digest of the result."""
    folder.mkdir()
    port = free_port()
    hosts = [start(folder, port, index) for index in range(2)]
    try:
        if killed is not None:
            end = time.monotonic() + 300
            while "step 5 " not in (folder / "log0").read_text():
                assert time.monotonic() < end
                time.sleep(0.1)
            (study,) = pathlib.Path(f"/proc/{hosts[killed].pid}/task/{hosts[killed].pid}/children").read_text().split()
            os.kill(int(study), signal.SIGKILL)
        assert [host.wait(600) for host in hosts] == [0, 0], (folder / "log0").read_text()
    finally:
        for host in hosts:
            host.kill()
    logs = (folder / "log0").read_text() + (folder / "log1").read_text()
    assert ("starting it again" in logs) == (killed is not None)
    return ledger(folder / "run")[0]["state_sha256"]


@pytest.mark.slow
def test_killed_host_comes_back(tmp_path):
    whole = job(tmp_path / "whole", None)
    assert [job(tmp_path / f"killed{host}", host) for host in (0, 1)] == [whole, whole]
