"""The job scripts for SLURM, run by stubs of its commands: who gets which flags, and what goes back to the queue."""

import os
import pathlib
import signal
import stat
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SLURM = ROOT / "launch" / "slurm"

STUBS = {
    # Starts one task for each node, as srun does, passes SIGTERM on, and ends with the largest status.
    "srun": r"""#!/usr/bin/env bash
nodes=1
while [[ "$1" == --* ]]; do
  if [[ "$1" == --nodes=* ]]; then nodes=${1#--nodes=}; fi
  echo "$1" >> "$STUB_FOLDER/srun"
  shift
done
tasks=()
for ((i = 0; i < nodes; i++)); do SLURM_STEP_ID=0 SLURM_PROCID=$i "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
worst=0
for task in "${tasks[@]}"; do
  status=0
  wait "$task" || status=$?
  while kill -0 "$task" 2> /dev/null; do status=0; wait "$task" || status=$?; done
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
""",
    "squeue": '#!/usr/bin/env bash\necho "$STUB_STATE"\n',
    "scontrol": r"""#!/usr/bin/env bash
if [[ "$1 $2" == "show hostnames" ]]; then printf 'node%s\n' 7 8 9; else echo "$*" >> "$STUB_FOLDER/scontrol"; fi
""",
    # Python: notes its arguments and ends as told.
    "stub_python": r"""#!/usr/bin/env bash
echo "$*" >> "$STUB_FOLDER/calls"
if [[ "$STUB_STATUS" == wait ]]; then
  trap 'stopped=1' TERM
  echo > "$STUB_FOLDER/started"
  while [[ -z "${stopped:-}" ]]; do sleep 0.02; done
  exit 75
fi
exit "$STUB_STATUS"
""",
}


class Cluster:
    """A folder with the stubs, and what they wrote."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in STUBS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(stat.S_IRWXU)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "LAUNCH_"))}
        environment |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "STUB_FOLDER": str(self.folder),
            "STUB_STATE": "RUNNING",
            "STUB_STATUS": "0",
            "LAUNCH_PYTHON": "stub_python",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "40123",
            "SLURM_JOB_NODELIST": "node[7-9]",
        }
        command = ["bash", str(SLURM / script), *arguments]
        return subprocess.Popen(command, env=environment | variables, stderr=subprocess.PIPE, text=True)

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines() if (self.folder / name).exists() else []


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_one_node(cluster):
    assert cluster.run("study.sbatch", "--config=a b.py", "--workdir=/x")[0] == 0
    assert cluster.lines("calls") == ["launch/run.py --config=a b.py --workdir=/x"]
    assert cluster.lines("scontrol") == []


def test_three_nodes(cluster):
    assert cluster.run("study.sbatch", "--config=c.py", SLURM_JOB_NUM_NODES="3")[0] == 0
    shared = "launch/run.py --config=c.py --coordinator=node7:20123 --num_processes=3 --process_id="
    assert sorted(cluster.lines("calls")) == [f"{shared}{i}" for i in range(3)]
    assert "--kill-on-bad-exit=0" in cluster.lines("srun")


@pytest.mark.parametrize("status", ["75", "76", "137"])
def test_what_may_continue_goes_back_to_the_queue(cluster, status):
    code, errors = cluster.run("study.sbatch", "--config=c.py", STUB_STATUS=status)
    assert code == int(status) and "back to the queue" in errors
    assert cluster.lines("scontrol") == ["requeue 40123"]


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_what_is_over_does_not(cluster, status):
    assert cluster.run("study.sbatch", "--config=c.py", STUB_STATUS=status)[0] == int(status)
    assert cluster.lines("scontrol") == []


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_cancelled_job_is_not_requeued(cluster, state):
    assert cluster.run("study.sbatch", "--config=c.py", STUB_STATUS="75", STUB_STATE=state)[0] == 75
    assert cluster.lines("scontrol") == []


def test_returns_are_limited(cluster):
    _, errors = cluster.run(
        "study.sbatch", "--config=c.py", STUB_STATUS="75", SLURM_RESTART_COUNT="3", LAUNCH_REQUEUES="3"
    )
    assert "giving up" in errors and cluster.lines("scontrol") == []


@pytest.mark.parametrize("nodes", [1, 2])
def test_signal_before_the_end_of_the_time(cluster, nodes):
    process = cluster.start("study.sbatch", "--config=c.py", STUB_STATUS="wait", SLURM_JOB_NUM_NODES=str(nodes))
    end = time.monotonic() + 60
    while not cluster.lines("started") or len(cluster.lines("calls")) < nodes:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # to the batch script alone: --signal=B:TERM
    process.communicate(timeout=60)
    assert process.returncode == 75 and cluster.lines("scontrol") == ["requeue 40123"]


def test_array_of_workers(cluster, tmp_path):
    runs = tmp_path / "all runs"
    variables = {"LAUNCH_RUNS": str(runs), "SLURM_ARRAY_TASK_ID": "5"}
    assert cluster.run("search.sbatch", "--config=c.py", **variables)[0] == 0
    storage = f"--config.search.storage={runs}/search.journal"
    assert cluster.lines("calls") == [
        f"launch/run.py --config=c.py --workdir={runs}/worker-5 {storage} --config.search.worker=worker-5"
    ]
    assert runs.is_dir()
    cluster.run("search.sbatch", "--config=c.py", **variables, LAUNCH_STORAGE="postgresql://h/d")
    assert "--config.search.storage=postgresql://h/d" in cluster.lines("calls")[1]


@pytest.mark.parametrize(
    ("script", "variables", "words"),
    [
        ("search.sbatch", {"SLURM_ARRAY_TASK_ID": "0"}, "set LAUNCH_RUNS"),
        ("search.sbatch", {"LAUNCH_RUNS": "runs"}, "job array"),
        ("study.sbatch", {"SLURM_SUBMIT_DIR": ""}, "this script is for sbatch"),
    ],
)
def test_mistakes(cluster, script, variables, words):
    code, errors = cluster.run(script, "--config=c.py", **variables)
    assert code != 0 and words in errors and not cluster.lines("calls")


def test_directives():
    for script in ("study.sbatch", "search.sbatch"):
        lines = (SLURM / script).read_text().splitlines()
        directives = [line for line in lines if line.startswith("#SBATCH ")]
        assert "#SBATCH --requeue" in directives and "#SBATCH --signal=B:TERM@120" in directives
        # SLURM reads no directive after the first command.
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        assert all(lines.index(directive) < first for directive in directives)
