"""Do workers share a study on a real PostgreSQL server, which this test starts for itself?"""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

import pytest

from input_pipeline.cli import UserError
from tests.research.search import test_shared

pytest.importorskip("optuna")
pytest.importorskip("psycopg")

PASSWORD = "p@ss:word/"
QUOTED = "p%40ss%3Aword%2F"


def binaries():
    """The folder of the newest server's programs, or None."""
    found = shutil.which("initdb")
    folders = [pathlib.Path(found).parent] if found else pathlib.Path("/usr/lib/postgresql").glob("*/bin")
    usable = [folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()]
    return max(usable, key=lambda folder: [int(part) for part in folder.parts if part.isdigit()], default=None)


def account():
    """Who runs the server, as arguments of subprocess: it refuses root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("the PostgreSQL server refuses to run as root, and there is no other account")


class Server:
    """A PostgreSQL server on a free port of this machine, in a folder that is removed."""

    def __init__(self):
        self.programs = binaries() or pytest.skip("no PostgreSQL server is installed (initdb, pg_ctl)")
        self.account = account()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="postgres"))
        if self.account:
            os.chown(self.folder, self.account["user"], self.account["group"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://tester:{QUOTED}@127.0.0.1:{self.port}/postgres"
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        self.command("initdb", "-U", "tester", "-A", "scram-sha-256", "--pwfile", secret, "--no-sync")
        self.control("start")

    def command(self, program, *arguments):
        """Runs one of the server's programs on the folder."""
        subprocess.run(
            [self.programs / program, "-D", self.folder / "data", *arguments],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            timeout=120,
            **self.account,
        )

    def control(self, action, *arguments):
        """Starts, stops or restarts the server, and waits for it."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.command("pg_ctl", action, "-w", "-l", self.folder / "log", "-o", options, *arguments)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.control("stop", "-m", "immediate")
    shutil.rmtree(server.folder)


@pytest.fixture
def url(server):
    """A data base of its own."""
    import psycopg

    name = f"search{os.urandom(4).hex()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url.removesuffix("postgres") + name


def test_one_of_two_workers_is_killed(url):
    test_shared.kill_one_of_two(url, 0, again=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_one_of_two_workers_is_killed_at_other_moments(url, seed):
    test_shared.kill_one_of_two(url, seed, again=seed % 2 == 0)


def test_without_the_lock_nothing_is_doubled_either(url, monkeypatch):
    test_shared.test_without_the_lock_nothing_is_doubled_either(url, monkeypatch)


def test_a_restarted_server_is_found_again(url, server):
    study = test_shared.open_study(url)
    study.enqueue(test_shared.GRID[:3])
    claims = study.ask(3)
    server.control("restart", "-m", "fast")
    assert all(study.tell(claim, test_shared.row(claim)) for claim in claims)
    assert len(study.rows()) == 3 and study.unfinished() == 0
    study.close()


def test_refusals_hide_the_password(url):
    for wrong in (url.replace(QUOTED, "other"), url + "x"):
        with pytest.raises(UserError, match="cannot be used") as caught:
            test_shared.open_study(wrong)
        assert QUOTED not in str(caught.value) and PASSWORD not in str(caught.value)
