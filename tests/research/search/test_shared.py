"""Do workers that share a study train each setting once, whatever dies, wherever it is kept?"""

import collections
import contextlib
import multiprocessing
import random
import threading
import time
import types

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.report import tables
from research.search import samplers, shared, storages
from research.search.front import Objective
from research.search.trials import OverrideSet

optuna = pytest.importorskip("optuna")

OBJECTIVES = (Objective("parameters", False, True), Objective("validation/accuracy", True, False))
GRID = [
    OverrideSet(f"{'wide' if width > 8 else '{narrow}'}-{rate:g}", {"rate": rate, "filters": (width, 2 * width)})
    for width in (4, 8, 16, 32)
    for rate in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
]
SPACE = samplers.parse_space(
    (("rate", ("log", 1e-4, 1e-1)), ("width", ("integer", 2, 40)), ("f", ("choice", (8,), ())))
)


def row(claim):
    """What a training would find."""
    width = claim.overrides.get("width") or claim.overrides["filters"][0]
    accuracy = 1 / (1 + abs(np.log10(claim.overrides["rate"]) + 2)) - 1 / width
    return {
        "id": claim.name,
        "status": "finished",
        "seed": 0,
        "overrides": claim.overrides,
        "parameters": np.int64(9 * width**2),
        "metrics": {"validation": {"accuracy": np.float32(accuracy), "loss": float("nan")}},
    }


def work(url, worker, lock_seconds=3):
    """A worker's whole life."""
    storages.LOCK_SECONDS = lock_seconds
    study = shared.SharedStudy(url, "grid", OBJECTIVES, worker=worker, lease_seconds=1.0, attempts=100)
    study.enqueue(GRID)
    with study.renewing():
        while study.unfinished():
            claims = study.ask(3)
            for claim in claims:
                time.sleep(0.05)
                study.tell(claim, row(claim))
            if not claims:
                time.sleep(0.1)


def assert_complete(url):
    """Each point of the grid is there once: for the ledger, and for whoever opens the storage with optuna."""
    study = shared.SharedStudy(url, "grid", OBJECTIVES, worker="reader")
    rows = study.rows()
    assert [r["id"] for r in rows] == [entry.name for entry in GRID]
    assert {r["status"] for r in rows} == {"finished"} and study.unfinished() == 0 and not study.ask(9)
    trials = study._storage.get_all_trials(study._study_id)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == len(GRID)
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    study.close()


def kill_one_of_two(url, seed, again):
    """Two workers begin together and one is killed at a random moment; `again` starts it a second time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "research.search.shared", "tests.research.search.test_shared"])
    processes = [context.Process(target=work, args=(url, name)) for name in ("first", "second")]
    for process in processes:
        process.start()
    chance, watcher = random.Random(seed), open_study(url, "watcher")
    ended = chance.randrange(16)
    while len(watcher.rows()) < ended and processes[0].is_alive():
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.1))
    processes[0].kill()
    watcher.close()
    if again:
        processes[0].join()
        processes[0] = context.Process(target=work, args=(url, "first"))
        processes[0].start()
    for process in processes:
        process.join(200)
        assert process.exitcode in ((0, -9) if process is processes[0] and not again else (0,))
    assert_complete(url)


@pytest.fixture(params=["trials.journal", "trials.db"])
def url(request, tmp_path):
    return str(tmp_path / "made" / request.param)


@pytest.fixture
def journal(tmp_path):
    return str(tmp_path / "trials.journal")


@pytest.fixture
def clock(monkeypatch):
    """The clock of this process, in seconds; it stands still."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(shared, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def open_study(url, worker="one", **options):
    return shared.SharedStudy(url, "grid", OBJECTIVES, worker=worker, **options)


def test_one_of_two_workers_is_killed(url):
    kill_one_of_two(url, 0, again=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_one_of_two_workers_is_killed_at_other_moments(url, seed):
    kill_one_of_two(url, seed, again=seed % 2 == 0)


def test_without_the_lock_nothing_is_doubled_either(url, monkeypatch):
    """The lock saves work; who is right is decided by the storage."""
    open_study(url).close()
    monkeypatch.setattr(storages, "mutex", lambda url, name: contextlib.nullcontext)
    trained, lock = [], threading.Lock()

    def live(worker):
        study = open_study(url, worker)
        study.enqueue(GRID[:8])
        while claims := study.ask(2):
            for claim in claims:
                with lock:
                    trained.append(claim.number)
                assert study.tell(claim, row(claim))
        study.close()

    threads = [threading.Thread(target=live, args=(f"w{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = open_study(url, "reader")
    assert sorted(r["id"] for r in study.rows()) == sorted(entry.name for entry in GRID[:8])
    assert len(trained) == len(set(trained)) == 8


def looks_away(study, settings, reads):
    """Makes a worker act on what it read before others wrote, as it can where the lock fails."""
    read, left = study._read, [settings] * reads
    study._read = lambda: left.pop() if left else read()


def marks(study):
    """How many trials were given up, for which reason."""
    trials = study._storage.get_all_trials(study._study_id)
    return collections.Counter(t.system_attrs["research:gone"] for t in trials if t.state.name == "FAIL")


def test_a_list_that_is_added_twice_counts_once(url):
    one, two = open_study(url, "one"), open_study(url, "two")
    before = two._read()
    one.enqueue(GRID[:3])
    claims = one.ask(2)
    looks_away(two, before, 1)
    two.enqueue(GRID[:3])
    assert [claim.number for claim in two.ask(9)] == [2] and marks(one) == {"duplicate": 3}
    assert all(one.tell(claim, row(claim)) for claim in claims) and len(two.rows()) == 2


def test_a_trial_that_two_reach_for_goes_to_one(url):
    one, two = open_study(url, "one"), open_study(url, "two")
    one.enqueue(GRID[:2])
    before = two._read()
    (claim,) = one.ask(1)
    looks_away(two, before, 2)
    assert [c.number for c in two.ask(2)] == [1] and one.tell(claim, row(claim)) and one.rows()[0]["worker"] == "one"


def test_a_dead_workers_trial_that_two_reach_for_goes_to_one(url, clock):
    dead, one, two = (open_study(url, name, lease_seconds=60) for name in ("dead", "one", "two"))
    dead.enqueue(GRID[:1])
    dead.ask(1)
    one.ask(1), two.ask(1)
    clock.seconds = 61
    before = two._read()
    (claim,) = one.ask(1)
    looks_away(two, before, 2)
    assert two.ask(1) == [] and marks(one) == {"abandoned": 1}
    one._discard(one._read()[samplers.identity(claim.overrides)].standing, "abandoned")
    before = two._read()  # nobody has the setting now
    (claim,) = one.ask(1)
    looks_away(two, before, 2)
    assert two.ask(1) == [] and marks(one) == {"abandoned": 2, "duplicate": 1} and one.tell(claim, row(claim))


def test_a_list_is_shared_out(url):
    one, two = open_study(url, "one"), open_study(url, "two")
    one.enqueue(GRID)
    two.enqueue(GRID[::-1])
    claims = one.ask(5) + two.ask(4) + one.ask(100)
    assert [claim.number for claim in claims] == list(range(24)) and two.ask(1) == []
    assert [claim.name for claim in claims] == [entry.name for entry in GRID]
    assert [claim.overrides for claim in claims] == [entry.overrides for entry in GRID]
    assert one.unfinished() == 24 and one.rows() == []
    assert two.tell(claims[6], row(claims[6])) and not two.tell(claims[6], row(claims[6]))
    (found,) = one.rows()
    expected = tables.flatten(row(claims[6]) | {"worker": "two"})
    assert expected.pop("validation/loss") != 0 and tables.flatten(found) == expected
    longer = [*GRID, OverrideSet("more", {"rate": 0.5, "filters": (4, 8)})]
    one.enqueue(longer)
    assert [claim.name for claim in two.ask(9)] == ["more"]


def test_a_silent_workers_trials_are_taken_over_once(url, clock):
    silent, two, three = (open_study(url, name, lease_seconds=60) for name in ("silent", "two", "three"))
    silent.enqueue(GRID[:4])
    lost = silent.ask(2)
    kept = two.ask(2)
    clock.seconds = 50
    for study in (two, three):
        assert study.ask(4) == []
    clock.seconds = 70  # silent has been watched for 70 s, two has spoken 20 s ago
    (first,) = three.ask(1)
    (second,) = two.ask(4)
    assert [first.number, second.number] == [claim.number for claim in lost]
    assert (first.name, first.overrides) == (lost[0].name, lost[0].overrides) and first.trial_id != lost[0].trial_id
    assert not silent.tell(lost[0], row(lost[0]))  # it was only slow
    assert three.tell(first, row(first)) and two.tell(second, row(second)) and not silent.tell(lost[1], row(lost[1]))
    assert all(two.tell(claim, row(claim)) for claim in kept)
    assert [r["worker"] for r in two.rows()] == ["three", "two", "two", "two"] and two.unfinished() == 0


def test_a_slow_workers_result_stands_where_nobody_took_over(journal, clock):
    slow, other = open_study(journal, "slow", lease_seconds=60), open_study(journal, "other", lease_seconds=60)
    slow.enqueue(GRID[:1])
    (claim,) = slow.ask(1)
    other.ask(1)
    clock.seconds = 1000
    assert slow.tell(claim, row(claim)) and other.ask(1) == [] and len(other.rows()) == 1


def test_a_worker_that_speaks_keeps_its_trials(journal, clock):
    one, two = open_study(journal, "one", lease_seconds=60), open_study(journal, "two", lease_seconds=60)
    one.enqueue(GRID[:2])
    assert len(one.ask(2)) == 2
    for clock.seconds in range(0, 600, 50):
        one.renew()
        assert two.ask(2) == []


def test_renewing_in_the_background(journal):
    one, two = open_study(journal, "one", lease_seconds=1.0), open_study(journal, "two", lease_seconds=60)
    one.enqueue(GRID[:1])
    one.ask(1)
    count = two._storage.get_study_system_attrs(two._study_id)["research:worker:one"]
    with one.renewing():
        for _ in range(200):
            if two._storage.get_study_system_attrs(two._study_id)["research:worker:one"] != count:
                break
            time.sleep(0.05)
        else:
            pytest.fail("nothing was renewed")


def test_a_restarted_worker_gets_its_own_back_first(url):
    one = open_study(url, "one")
    one.enqueue(GRID)
    before = one.ask(3)
    assert one.tell(before[1], row(before[1])) and one.mine() == []
    again = open_study(url, "one")
    assert again.ask(5) == [before[0], before[2]]
    assert [claim.number for claim in again.ask(2)] == [3, 4]
    one._renewed = -1000  # as if time had passed
    with pytest.raises(UserError, match="another process works as one"):
        one.renew()


def test_deaths_between_two_steps_lose_nothing(url, clock):
    """Dead before a waiting trial was signed; dead after a silent worker's trial was ended."""
    one, two = open_study(url, "one", lease_seconds=60), open_study(url, "two", lease_seconds=60)
    one.enqueue(GRID[:2])
    states = optuna.trial.TrialState
    one._storage.set_trial_state_values(
        one._read()[samplers.identity(GRID[0].overrides)].standing._trial_id, states.RUNNING
    )
    (claim,) = one.ask(1)
    assert two.ask(5) == []
    one._discard(one._read()[samplers.identity(GRID[1].overrides)].standing, "abandoned")
    assert [c.number for c in two.ask(5)] == [1]
    clock.seconds = 61
    assert [c.number for c in two.ask(5)] == [0] and not one.tell(claim, row(claim))
    assert two.unfinished() == 2


def test_a_trial_that_kills_its_workers_fails(journal, clock):
    for number in range(3):
        study = open_study(journal, f"w{number}", lease_seconds=60, attempts=3)
        study.enqueue(GRID[:1])
        study.ask(1)
        clock.seconds += 61
        study.ask(1)
        assert study._read()[samplers.identity(GRID[0].overrides)].abandoned == number
    last = open_study(journal, "last", lease_seconds=60, attempts=3)
    last.ask(1)
    clock.seconds += 61
    assert last.ask(1) == [] and last.unfinished() == 0
    assert [r["status"] for r in last.rows()] == ["failed: 3 workers died over it"]


def test_failures_infeasible_and_diverged_trials_are_rows(journal):
    study = open_study(journal)
    study.enqueue(GRID[:4])
    claims = study.ask(9, feasible=lambda overrides: overrides["rate"] != GRID[2].overrides["rate"])
    assert [claim.number for claim in claims] == [0, 1, 3]
    assert study.fail(claims[0], "out of memory", {"seed": 3})
    assert not study.fail(claims[0], "again") and not study.tell(claims[0], row(claims[0]))
    assert study.tell(claims[1], row(claims[1]) | {"metrics": {"validation": {"accuracy": float("nan")}}})
    assert study.tell(claims[2], row(claims[2]))
    rows = study.rows()
    assert [r["status"] for r in rows] == ["failed: out of memory", "finished", "infeasible", "finished"]
    assert rows[0]["seed"] == 3 and rows[0]["id"] == GRID[0].name and "accuracy" not in rows[1]["metrics"]
    assert study.unfinished() == 0 and study.ask(1) == []


def test_a_search_goes_on_where_it_was_left_in_any_storage(tmp_path):
    """Proposals, names and results are the same in one go and after a restart in the middle of a cohort."""

    def open_search(name, worker="one"):
        return shared.SharedStudy(
            str(tmp_path / name), "s", OBJECTIVES, "nsga2", SPACE, seed=7, budget=54, worker=worker, lease_seconds=60
        )

    def limit(overrides):
        return overrides["width"] < 32

    whole = open_search("a.journal")
    while claims := whole.ask(18, limit):
        assert all(whole.tell(claim, row(claim)) for claim in claims)
    part = open_search("b.db")
    for claim in part.ask(18, limit)[:13]:
        part.tell(claim, row(claim))
    part.close()
    part = open_search("b.db")
    while claims := part.ask(18, limit):
        assert all(part.tell(claim, row(claim)) for claim in claims)
    rows = whole.rows()
    assert [tables.flatten(r) for r in part.rows()] == [tables.flatten(r) for r in rows] and len(rows) == 54
    assert rows[3]["id"] == "nsga23" and max(r["overrides"]["width"] for r in rows) < 32
    assert len({samplers.identity(r["overrides"]) for r in rows}) == 54
    two = open_search("b.db", "two")
    assert two.ask(5) == []


def test_two_workers_never_get_the_same_proposal(journal):
    small = samplers.parse_space((("rate", ("choice", 1e-4, 1e-3, 1e-2)), ("width", ("integer", 2, 5))))
    studies = [open_study(journal, name, sampler="tpe", space=small) for name in ("one", "two")]
    given = OverrideSet("given", {"rate": 1e-3, "width": 3})
    studies[0].enqueue([given])
    claims = [claim for _ in range(3) for study in studies for claim in study.ask(3)]
    assert claims[0].name == "given" and len(claims) == 12 == len({samplers.identity(c.overrides) for c in claims})
    assert studies[0].ask(1) == []


def test_optuna_sees_parameters_names_and_rows(url):
    study = open_study(url)
    study.enqueue(GRID)
    for claim in study.ask(24):
        study.tell(claim, row(claim))
    seen = optuna.load_study(study_name="grid", storage=study._storage)
    assert seen.metric_names == ["log10 parameters", "validation/accuracy"]
    assert [direction.name for direction in seen.directions] == ["MINIMIZE", "MAXIMIZE"]
    trial = seen.trials[7]
    assert trial.params == {"rate": 1e-3, "filters": "8x16"} and trial.distributions["rate"].log
    assert trial.values == pytest.approx([np.log10(9 * 64), 1 / 2 - 1 / 8]) and trial.user_attrs["parameters"] == 576
    assert len(seen.best_trials) >= 4 and len(seen.trials_dataframe()) == 24


def test_wrong_use_is_said(journal):
    study = open_study(journal)
    with pytest.raises(UserError, match="has the objectives log10 parameters, validation/accuracy, not bytes"):
        shared.SharedStudy(journal, "grid", [Objective("bytes", False, False)])
    study.enqueue(GRID[:1])
    (claim,) = study.ask(1)
    with pytest.raises(UserError, match="has no validation/accuracy"):
        study.tell(claim, {"id": claim.name, "parameters": 3})
    with pytest.raises(UserError, match="begin another study"):
        study.enqueue([OverrideSet("x", {"filters": (5,)})])
    for sampler, space in (("best", SPACE), ("tpe", None)):
        with pytest.raises(UserError, match="config.search"):
            open_study(journal, sampler=sampler, space=space)
