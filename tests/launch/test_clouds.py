"""The scripts for Compute Engine and TPU VMs, run against a stub of gcloud with buckets and machines in a folder."""

import os
import pathlib
import re
import shutil
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = {"gce": ROOT / "launch" / "gce" / "run.sh", "tpu": ROOT / "launch" / "tpu_vm" / "run.sh"}
FOLDER = "gs://bucket/studies/hpa"

# Files below $CLOUD/bucket are objects; $CLOUD/state is the machine's state. `plan` has a line for each look at it.
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
object() { echo "$CLOUD/${1#gs://}"; }
case "$*" in
  "storage cat "*) cat "$(object "$3")" 2> /dev/null || exit 1 ;;
  "storage cp - "*) mkdir -p "$(dirname "$(object "$4")")"; cat > "$(object "$4")" ;;
  *" describe "*)
    if [[ -s "$CLOUD/plan" ]]; then
      line=$(head -n1 "$CLOUD/plan"); sed -i 1d "$CLOUD/plan"
      if [[ "$line" == status* ]]; then
        mkdir -p "$CLOUD/bucket/studies/hpa"
        echo "${line#status }" > "$CLOUD/bucket/studies/hpa/status-0"; echo the end > "$CLOUD/bucket/studies/hpa/log-0"
      else echo "$line" > "$CLOUD/state"; fi
    fi
    cat "$CLOUD/state" 2> /dev/null || exit 1 ;;
  *" create "* | *" start "*) echo RUNNING > "$CLOUD/state" ;;
  *" delete "*) rm -f "$CLOUD/state" ;;
esac
"""


class Cloud:
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.stub("gcloud", GCLOUD)

    def stub(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(stat.S_IRWXU)

    def run(self, script: pathlib.Path, *arguments: str, plan=(), **variables: str) -> subprocess.CompletedProcess:
        (self.folder / "plan").write_text("".join(f"{line}\n" for line in plan))
        given = {"PROJECT": "p", "ZONE": "z", "NAME": "hpa", "FOLDER": FOLDER, "TPU": "v5litepod-8", "RUNTIME": "r"}
        environment = os.environ | given | {"CLOUD": str(self.folder), "POLL": "0.01"}
        environment["PATH"] = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {k: v for k, v in (environment | variables).items() if v}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def calls(self, word: str = "") -> list[str]:
        file = self.folder / "calls"
        return [line for line in file.read_text().splitlines() if word in line] if file.exists() else []

    def object(self, name: str) -> pathlib.Path:
        return self.folder / "bucket/studies/hpa" / name


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_dry_run_changes_nothing(cloud, kind):
    found = cloud.run(SCRIPTS[kind], "--dry_run", "--config=c.py")
    assert found.returncode == 0 and not cloud.calls()
    assert " create hpa --project=p --zone=z" in found.stdout and " delete hpa" in found.stdout
    assert ("SPOT" in found.stdout) if kind == "gce" else ("--spot" in found.stdout)
    on_demand = cloud.run(SCRIPTS[kind], "--dry_run", "--config=c.py", SPOT="false").stdout
    assert "SPOT" not in on_demand and "--spot" not in on_demand


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("status", [0, 2])
def test_study_that_is_taken_away_twice(cloud, kind, status):
    if not (ROOT / ".git").exists():
        pytest.skip("the code is listed by git")
    gone = "TERMINATED" if kind == "gce" else "PREEMPTED"
    plan = ["", "RUNNING", gone, gone, "RUNNING", gone, f"status {status}"]
    found = cloud.run(SCRIPTS[kind], "--config=c.py", "--x=a b", plan=plan)
    assert found.returncode == status, found.stderr
    assert "the end" in found.stdout
    assert len(cloud.calls(" create ")) + len(cloud.calls(" start ")) >= 3
    assert " delete " in cloud.calls()[-1] or " delete " in cloud.calls()[-2]
    arguments = cloud.object("arguments").read_bytes().split(b"\0")
    assert arguments == [b"--config=c.py", b"--x=a b", f"--workdir={FOLDER}/run".encode(), b""]
    names = subprocess.run(["tar", "-tzf", cloud.object("code.tar.gz")], capture_output=True, text=True).stdout.split()
    assert "launch/run.py" in names and "setup.py" in names and not any(name.startswith(".git/") for name in names)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_gives_up(cloud, kind):
    gone = "TERMINATED" if kind == "gce" else "PREEMPTED"
    found = cloud.run(SCRIPTS[kind], "--config=c.py", plan=["RUNNING"] + [gone] * 30, RESTARTS="2")
    assert found.returncode == 75 and "giving up" in found.stderr
    assert not cloud.calls("code.tar.gz")  # the machine was there: nothing is uploaded again


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PROJECT": ""}, "PROJECT is not set"),
        ({"FOLDER": "/local"}, "gs://BUCKET"),
        ({"FOLDER": "gs://bucket"}, "gs://BUCKET"),
        ({"NAME": "Not good"}, "small letters"),
    ],
)
def test_mistakes(cloud, kind, variables, words):
    found = cloud.run(SCRIPTS[kind], "--config=c.py", **variables)
    assert found.returncode == 2 and words in found.stderr and not cloud.calls()


def test_flags_of_the_study_are_needed(cloud):
    assert "--config" in cloud.run(SCRIPTS["gce"], "--dry_run").stderr


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs Google's gcloud")
@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_gcloud_knows_the_flags(cloud, kind):
    variables = {"ACCELERATOR": "type=t,count=1", "ACCOUNT": "a@b"} if kind == "gce" else {"ACCOUNT": "a@b"}
    printed = cloud.run(SCRIPTS[kind], "--dry_run", "--config=c.py", **variables).stdout
    for line in printed.splitlines():
        if line.startswith("gcloud "):
            words = line.split()
            command = words[: next(i for i, word in enumerate(words) if word == "hpa")]
            known = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
            known = re.sub(r"\x1b\[[0-9;]*m", "", known)
            for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert flag in ("--project", "--quiet") or re.search(rf"{flag}\b", known), (command, flag)


METADATA = r"""#!/usr/bin/env bash
case "$*" in
  *astral.sh*) printf '%s\n' 'mkdir -p "$UV_INSTALL_DIR"; cp "$CLOUD/uv" "$UV_INSTALL_DIR/uv"' ;;
  *) cat "$CLOUD/metadata/${!###*/}" 2> /dev/null || exit 22 ;;
esac
"""
UV = r"""#!/usr/bin/env bash
echo "uv $*" >> "$CLOUD/calls"
if [[ "$1" == venv ]]; then mkdir -p venv/bin; printf '#!/bin/sh\n' > venv/bin/python; chmod +x venv/bin/python; fi
[[ "$1" != pip || -z "${FAIL:-}" ]]
"""
SYSTEMD = r"""#!/usr/bin/env bash
echo "systemd-run $*" >> "$CLOUD/calls"
exit "$(cat "$CLOUD/study_status")"
"""


def boot(cloud: Cloud, status: int, metadata: dict[str, str], **variables: str) -> pathlib.Path:
    """Runs startup.sh as a machine would; returns its home."""
    for name, text in {"curl": METADATA, "systemd-run": SYSTEMD, "systemctl": "#!/bin/sh\necho running\n"}.items():
        cloud.stub(name, text)
    cloud.stub("poweroff", '#!/bin/sh\necho poweroff >> "$CLOUD/calls"\n')
    (cloud.folder / "uv").write_text(UV)
    (cloud.folder / "uv").chmod(stat.S_IRWXU)
    (cloud.folder / "study_status").write_text(str(status))
    (cloud.folder / "metadata").mkdir(exist_ok=True)
    for name, value in metadata.items():
        (cloud.folder / "metadata" / name).write_text(value)
    cloud.object("").mkdir(parents=True, exist_ok=True)
    cloud.object("arguments").write_bytes(b"--config=c.py\0--x=a b\0")
    subprocess.run(["tar", "-czf", cloud.object("code.tar.gz"), "-C", ROOT, "setup.py", "constraints.txt"], check=True)
    home = cloud.folder / "home"
    cloud.run(ROOT / "launch" / "gce" / "startup.sh", STUDY_HOME=str(home), **variables)
    return home


GCE = {"study-folder": FOLDER, "study-extra": "cuda12,remote"}
TPU = {"study-folder": FOLDER, "study-extra": "tpu", "study-tpu": "hpa", "study-zone": "z"}


@pytest.mark.parametrize("status", [0, 2, 75, 76, 137])
def test_machine_runs_the_study_and_ends(cloud, status):
    home = boot(cloud, status, GCE)
    assert (home / "code" / "setup.py").exists()
    assert cloud.calls("uv pip")[0].endswith("-e code[cuda12,remote] -c code/constraints.txt")
    assert cloud.calls("systemd-run")[0].endswith("venv/bin/python launch/run.py --config=c.py --x=a b")
    assert cloud.calls()[-1] == "poweroff"
    assert cloud.object("status-0").exists() == (status in (0, 2))
    if status == 0:  # started once more, it has nothing to do
        boot(cloud, 1, GCE)
        assert len(cloud.calls("systemd-run")) == 1 and cloud.calls()[-1] == "poweroff"


def test_machine_that_cannot_install_says_so_and_ends(cloud):
    boot(cloud, 0, GCE, FAIL="1")
    assert cloud.object("status-0").read_text() == "1\n" and not cloud.calls("systemd-run")
    assert cloud.object("log-0").exists() and cloud.calls()[-1] == "poweroff"


@pytest.mark.parametrize("host", [0, 3])
def test_first_host_of_a_slice_deletes_it(cloud, host):
    boot(cloud, 0, TPU | {"agent-worker-number": str(host)})
    assert cloud.object(f"status-{host}").read_text() == "0\n"
    assert bool(cloud.calls(" delete hpa")) == (host == 0) and not cloud.calls("poweroff")
