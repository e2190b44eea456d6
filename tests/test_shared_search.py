"""Two processes train the trials of one search, and one is killed: is every trial there once, with its own result?"""

import collections
import contextlib
import csv
import math
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.running import ENVIRONMENT, ROOT, command, ledger
from tests.searching import RATES, SHAPES, arguments, config_file, configure, data, rows_of  # noqa: F401

optuna = pytest.importorskip("optuna")

GRID = (SHAPES, RATES, ("seed", (0, 1, 2)))
SPACE = (("optimizer.learning_rate", ("log", 1e-4, 1e-1)), ("model.options.widths", ("choice", (4,), (4, 6))))
LEASE = 4.0


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL server of its own."""
    pytest.importorskip("psycopg")
    from tests.research.search.test_postgres import Server

    server = Server()
    yield server.url
    server.control("stop", "-m", "immediate")
    shutil.rmtree(server.folder)


class Worker:
    """A process of research.main in a workdir of its own."""

    def __init__(self, name, folder, config, given):
        self.name, self.workdir = name, folder / name
        self.command = command(config, self.workdir, *given, f"--config.search.worker={name}")
        self.log = folder / f"{name}.log"
        self.start()

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)

    def rows(self, status):
        with contextlib.suppress(OSError):
            return [row for row in ledger(self.workdir) if row["status"] == status]
        return []

    def wait(self, condition):
        deadline = time.monotonic() + 300
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, self.log.read_text()

    def end(self):
        assert self.process.wait(timeout=300) == 0, self.log.read_text()


def kill_one(storage, data, folder, finished: int, delay: float, again: bool, **changes):  # noqa: F811
    """Kills the first of two workers `delay` seconds after it trains with `finished` trials done; returns figures.

    Args:
      again: whether the killed worker is started again; else the other one takes its trials over.
    """
    config = configure(
        data, search__storage=storage, search__study="shared", search__lease_seconds=60.0 if again else LEASE,
        search__cohort=3, **changes,
    )  # fmt: skip
    given = arguments(config, data)
    file = config_file(folder, data)
    one = Worker("one", folder, file, given)
    one.wait(lambda: one.rows("running"))
    two = Worker("two", folder, file, given)
    one.wait(lambda: len(one.rows("finished")) >= finished and one.rows("running"))
    time.sleep(delay)
    one.kill()
    figures = {"finished before": len(one.rows("finished")), "running when killed": len(one.rows("running"))}
    if again:
        one.start()
        one.end()
    two.end()
    return figures | judge(storage, one, two)


def judge(storage, one, two) -> dict:
    """Checks that nothing is lost or doubled, in the storage and in the ledgers; returns what it counted."""
    from research.search import storages

    opened = storages.open_storage(storage)
    trials = opened.get_all_trials(opened.get_study_id_from_name("shared"))
    storages.close_storage(opened)
    states = collections.Counter(trial.state.name for trial in trials)
    marks = collections.Counter(t.system_attrs["research:gone"] for t in trials if "research:gone" in t.system_attrs)
    assert states["RUNNING"] == states["WAITING"] == 0
    with open(two.workdir / "all_trials.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert all(row["status"] == "finished" for row in rows)
    keys = [row["overrides"] for row in rows]
    assert len(set(keys)) == len(keys) == states["COMPLETE"] and len({row["id"] for row in rows}) == len(rows)
    assert len(trials) == len(rows) + sum(marks.values())
    # Each row is that of the worker that trained the trial, and nobody else finished it.
    own = {worker.name: {row["setting"]: row for row in worker.rows("finished")} for worker in (one, two)}
    for row in rows:
        mine = own[row["worker"]][row["id"]]
        for column in ("parameters", "state_sha256", "best_step", "validation/accuracy", "validation/loss"):
            assert row[column] == mine[column], (row["id"], column)
    doubled = own["one"].keys() & own["two"].keys()
    assert all(marks["abandoned"] for _ in doubled)  # told by nobody before its worker died
    for worker in (one, two):
        if worker.process.returncode == 0:
            assert (worker.workdir / "report" / "index.html").exists()
    shares = collections.Counter(row["worker"] for row in rows)
    return {"trials": len(rows), "by worker": dict(shares), "retried": marks["abandoned"], "doubled": len(doubled)}


def test_one_of_two_workers_is_killed(data, tmp_path):  # noqa: F811
    """A grid in a journal: the trials of the dead worker go to the other one after the lease."""
    figures = kill_one(str(tmp_path / "x.journal"), data, tmp_path, 1, 0.1, again=False, search__grid=GRID)
    assert figures["trials"] == 12 and figures["retried"] >= figures["running when killed"], figures


@pytest.mark.slow
def test_one_of_two_workers_on_postgresql_is_killed(postgres, data, tmp_path):  # noqa: F811
    """The same on a server; all rows are those of one worker that trained everything by itself."""
    figures = kill_one(postgres, data, tmp_path, 3, 0.2, again=False, search__grid=GRID)
    print(f"PostgreSQL, no restart: {figures}")
    assert figures["trials"] == 12 and figures["retried"] >= 1, figures


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("again", [False, True], ids=["gone", "restarted"])
def test_a_sampled_search_whose_worker_is_killed(kind, moment, again, data, tmp_path, request):  # noqa: F811
    """TPE with a budget: killed at different moments, restarted or not."""
    names = {"journal": tmp_path / "x.journal", "sqlite": tmp_path / "x.db"}
    storage = request.getfixturevalue("postgres") if kind == "postgresql" else str(names[kind])
    delay = float(np.random.default_rng(moment).uniform(0, 1.5))
    figures = kill_one(
        storage, data, tmp_path, 3 * (moment % 2), delay, again,
        search__sampler="tpe", search__budget=14, search__space=SPACE,
    )  # fmt: skip
    print(f"{kind}, {'restarted' if again else 'gone'}, killed after {delay:.2f} s: {figures}")
    assert figures["trials"] == 14 and (not again or figures["retried"] == 0), figures


@pytest.mark.slow
def test_two_workers_find_what_one_finds(data, tmp_path):  # noqa: F811
    """The rows of a grid's trials do not depend on who trains them in which batch, up to rounding."""
    figures = kill_one(str(tmp_path / "x.journal"), data, tmp_path, 1, 0.0, again=True, search__grid=GRID)
    assert figures["trials"] == 12
    alone = Worker("alone", tmp_path, config_file(tmp_path, data), arguments(configure(data, search__grid=GRID), data))
    alone.end()
    expected = {row["id"]: row for row in rows_of(alone.workdir)}
    for worker in ("one", "two"):
        for row in rows_of(tmp_path / worker):
            assert math.isclose(
                float(row["validation/loss"]), float(expected[row["id"]]["validation/loss"]), rel_tol=0.02
            )
