"""Is the program started over with huge pages where that helps, once, and as it was?"""

import os
import subprocess
import sys

import pytest

from research import memory

PROGRAM = """
import os, sys
from research import memory
memory.restart_with_huge_pages()
print(os.getpid(), sys.argv)
"""


@pytest.fixture
def started(monkeypatch):
    """What would be started."""
    calls = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda path, arguments: calls.append((path, arguments)))
    monkeypatch.setattr(memory, "_offered", lambda: True)
    return calls


def test_program_is_started_over_with_its_arguments(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    memory.restart_with_huge_pages()
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    memory.restart_with_huge_pages()
    assert len(started) == 1


def test_program_goes_on_where_it_is_settled_or_cannot_help(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    memory.restart_with_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(memory, "_offered", lambda: False)
    memory.restart_with_huge_pages()
    assert not started and "GLIBC_TUNABLES" not in os.environ


@pytest.mark.parametrize("setting, offered", [("always [madvise] never", True), ("[always] madvise never", False)])
def test_setting_of_linux_decides(setting, offered, tmp_path, monkeypatch):
    (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(memory, "_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    assert memory._offered() == offered
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.31", raising=False)
    assert not memory._offered()


def test_the_process_stays_the_same(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.getcwd(), environment.get("PYTHONPATH"))))
    command = [sys.executable, str(script), "--flag=a b", "", "c"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output = process.communicate(timeout=60)[0]
    assert output.strip() == f"{process.pid} {[str(script), '--flag=a b', '', 'c']}"
    assert process.returncode == 0
