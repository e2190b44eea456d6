"""The entry of all launchers starts a study again when that helps, and only then, and passes signals on once."""

import json
import os
import pathlib
import pty
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENTRY = ROOT / "launch" / "run.py"

# Stands for Python: notes its arguments, then does what the next word of the file `plan` says.
STUB = r"""#!/usr/bin/env bash
cd "$STUB_FOLDER"
echo "$*" >> calls
word=$(head -n1 plan)
if [ "$(wc -l < plan)" -gt 1 ]; then sed -i 1d plan; fi
trap 'echo TERM >> signals; stopped=1' TERM
trap 'echo INT >> signals; stopped=1' INT
case "$word" in
  make*) set -- ${word#make }; sleep 0.3; mkdir "$1";;
  die) kill -KILL $$;;
  wait) echo $$ > started; while [ -z "${stopped:-}" ]; do sleep 0.02; done; sleep 0.2; exit 75;;
  deaf) trap - TERM; echo $$ > started; while true; do sleep 0.02; done;;
  *) exit "$word";;
esac
"""


class Launch:
    """Runs the entry with the stub in a folder of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        stub = folder / "python"
        stub.write_text(STUB)
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCH_", "SLURM_"))}
        self.environment |= {"LAUNCH_PYTHON": str(stub), "LAUNCH_BACKOFF": "0.01", "STUB_FOLDER": str(folder)}

    def start(self, *plan: str, arguments=("--config=c.py",), **environment: str) -> subprocess.Popen:
        (self.folder / "plan").write_text("".join(f"{word}\n" for word in plan))
        command = [sys.executable, str(ENTRY), *arguments]
        return subprocess.Popen(command, env=self.environment | environment, stderr=subprocess.PIPE, text=True)

    def run(self, *plan: str, **options) -> tuple[int, str]:
        process = self.start(*plan, **options)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []

    def signals(self) -> list[str]:
        return (self.folder / "signals").read_text().split() if (self.folder / "signals").exists() else []

    def started(self) -> int:
        """Waits until the stub waits for a signal; returns its process."""
        return int(wait_for(lambda: (self.folder / "started").exists() and (self.folder / "started").read_text()))


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def alive(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def test_starts_again_after_75_76_and_signals(launch):
    status, errors = launch.run("75", "die", "76", "0", arguments=("--config=a b.py", "--workdir=x"))
    assert status == 0
    assert launch.calls() == ["-m research.main --config=a b.py --workdir=x"] * 4
    assert "stopped; starting it again" in errors and "died of signal 9" in errors and "lost another process" in errors


@pytest.mark.parametrize("status", [0, 1, 2, 77])
def test_keeps_other_statuses(launch, status):
    assert launch.run(str(status))[0] == status
    assert len(launch.calls()) == 1


def test_gives_up_at_the_limit(launch):
    status, errors = launch.run("die", LAUNCH_RESTARTS="3")
    assert status == 75 and len(launch.calls()) == 4 and "giving up" in errors
    pauses = [line.partition(" again in ")[2].split(" s ")[0] for line in errors.splitlines() if " again in " in line]
    assert pauses == ["0.01", "0.02", "0.04"]


def test_passes_sigterm_on_once(launch):
    process = launch.start("wait", "0")
    launch.started()
    process.terminate()
    assert process.wait(60) == 75
    assert launch.signals() == ["TERM"] and len(launch.calls()) == 1


def test_study_that_dies_of_the_signal(launch):
    process = launch.start("deaf")
    launch.started()
    process.terminate()
    assert process.wait(60) == 75 and len(launch.calls()) == 1


def test_sigterm_during_the_pause(launch):
    process = launch.start("75", "0", LAUNCH_BACKOFF="300")
    wait_for(launch.calls)
    time.sleep(0.3)
    process.terminate()
    assert process.wait(60) == 75 and len(launch.calls()) == 1


def test_slurm_has_signalled_the_study_itself(launch):
    process = launch.start("wait", SLURM_STEP_ID="0")
    study = launch.started()
    process.terminate()
    os.kill(study, signal.SIGTERM)
    assert process.wait(60) == 75
    assert launch.signals() == ["TERM"]


def test_ctrl_c_in_a_terminal_arrives_once(launch):
    (launch.folder / "plan").write_text("wait\n")
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which jobs in the background of a shell inherit ignored
        os.execve(sys.executable, [sys.executable, str(ENTRY), "--config=c.py"], launch.environment)
    launch.started()
    os.write(terminal, b"\x03")
    ended: list[tuple[int, int]] = []
    try:
        wait_for(lambda: ended.append(os.waitpid(process, os.WNOHANG)) or ended[-1][0])
    finally:
        if not ended or not ended[-1][0]:
            os.kill(process, signal.SIGKILL)
    os.close(terminal)
    status = ended[-1][1]
    assert os.waitstatus_to_exitcode(status) == 75
    assert launch.signals() == ["INT"]


def test_killed_entry_leaves_no_study_behind(launch):
    process = launch.start("wait")
    study = launch.started()
    process.kill()
    process.wait()
    wait_for(lambda: not alive(study))
    assert launch.signals() == ["TERM"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LAUNCH_RESTARTS": "many"}, "LAUNCH_RESTARTS=many"),
        ({"LAUNCH_BACKOFF": "-1"}, "LAUNCH_BACKOFF=-1"),
        ({"LAUNCH_BACKOFF": "inf"}, "LAUNCH_BACKOFF=inf"),
        ({"LAUNCH_DATA": "nowhere/data"}, "LAUNCH_RAW and LAUNCH_STUDY"),
        ({"LAUNCH_PYTHON": "/nowhere/python"}, "LAUNCH_PYTHON"),
    ],
)
def test_mistakes(launch, environment, words):
    status, errors = launch.run("0", **environment)
    assert status == 2 and words in errors and "Traceback" not in errors and not launch.calls()


def test_prepares_what_is_not_there(launch, tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    environment = {"LAUNCH_STUDY": "hpa", "LAUNCH_RAW": str(raw), "LAUNCH_DATA": str(data)}
    assert launch.run(f"make {data}", "0", **environment)[0] == 0
    study = f"-m research.main --config=c.py --config.data.dir={data}"
    assert launch.calls() == [f"-m input_pipeline.prepare --study=hpa --source={raw} --out={data}", study]
    assert launch.run("0", **environment)[0] == 0
    assert launch.calls()[2:] == [study]


def test_downloads_what_is_not_there(launch, tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    environment = {"LAUNCH_STUDY": "hpa", "LAUNCH_RAW": str(raw), "LAUNCH_DATA": str(data)}
    assert launch.run("2", **environment)[0] == 2  # a refusal of the download
    assert launch.calls() == [f"-m input_pipeline.download --study=hpa --out={raw}"]
    assert launch.run(f"make {raw}", f"make {data}", "0", **environment)[0] == 0
    assert [call.split()[1] for call in launch.calls()[1:]] == [
        "input_pipeline.download", "input_pipeline.prepare", "research.main"
    ]  # fmt: skip


def test_interrupted_download_goes_on_and_its_archive_is_the_source(launch, tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    (raw / "cells.zip").write_bytes(b"")
    (raw / "download.json").write_text(json.dumps({}))
    environment = {"LAUNCH_STUDY": "hpa", "LAUNCH_RAW": str(raw), "LAUNCH_DATA": str(data)}
    assert launch.run("0", f"make {data}", "0", **environment)[0] == 0
    assert launch.calls()[0].startswith("-m input_pipeline.download")
    assert f"--source={raw / 'cells.zip'}" in launch.calls()[1]


def test_hosts_with_a_common_disk_prepare_once(launch, tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    environment = {"LAUNCH_STUDY": "hpa", "LAUNCH_RAW": str(raw), "LAUNCH_DATA": str(data)}
    hosts = [launch.start(f"make {data}", "0", **environment), None]
    wait_for(lambda: len(launch.calls()) == 1)
    hosts[1] = subprocess.Popen(hosts[0].args, env=launch.environment | environment)
    assert [host.wait(60) for host in hosts] == [0, 0]
    assert [call.split()[1] for call in launch.calls()] == ["input_pipeline.prepare"] + ["research.main"] * 2


def test_stop_while_preparing(launch, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    process = launch.start("wait", LAUNCH_STUDY="hpa", LAUNCH_RAW=str(raw), LAUNCH_DATA=str(tmp_path / "data"))
    launch.started()
    process.terminate()
    assert process.wait(60) == 75 and len(launch.calls()) == 1


def test_data_in_a_store_is_taken_as_it_is(launch):
    assert launch.run("0", LAUNCH_DATA="gs://bucket/data")[0] == 0
    assert launch.calls() == ["-m research.main --config=c.py --config.data.dir=gs://bucket/data"]


def test_help(launch):
    assert subprocess.run([sys.executable, str(ENTRY), "--help"], capture_output=True).returncode == 0
    assert subprocess.run([sys.executable, str(ENTRY)], capture_output=True).returncode == 2
