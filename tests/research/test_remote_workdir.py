"""Runs in object stores: snapshots, generations, the lock, the mirror; the store is in memory and fails on demand."""

import json
import os
import pathlib
import shutil
import threading
import time

import pytest

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.remote import StoreError
from research.remote import __main__ as command
from research.remote import generations, mirror, snapshot
from research.remote.generations import LOCK, Pusher, pull
from research.remote.lock import Lock, LostLock, lease
from research.remote.snapshot import Restless, Snapshots
from research.training import cluster
from research.training.signals import Stopped
from tests.research.memory_store import MemoryStore, Owner, read, state, write

PART = 10


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESEARCH_REMOTE_LEASE", "1")
    for module in (generations, mirror):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    monkeypatch.setattr(mirror, "POLL", 0.05)


# Snapshots


def test_a_snapshot_leaves_out_what_is_temporary(tmp_path):
    write(tmp_path / "run", state(1) | {".lock": "", "a/.tmp.4/x": "", "data/raw/1.png": "", "data/prepared/y": "1"})
    held = Snapshots(tmp_path / "run", tmp_path / "links", PART).take()
    assert sorted(held) == sorted({*state(1), "data/prepared/y"})
    item = held["checkpoints/a/1/x"]
    assert item.size == len(state(1)["checkpoints/a/1/x"]) and len(item.pieces) == -(-item.size // PART)
    shutil.rmtree(tmp_path / "run")
    assert b"".join(map(item.read, item.pieces)).decode() == state(1)["checkpoints/a/1/x"]


def test_a_file_changed_in_place_is_noticed(tmp_path):
    write(tmp_path / "run", {"a": "1" * 25})
    held = Snapshots(tmp_path / "run", tmp_path / "links", PART).take()["a"]
    (tmp_path / "run" / "a").write_text("2" * 25)
    with pytest.raises(Restless):
        held.read(held.pieces[0])


def test_logs_may_grow_meanwhile(tmp_path):
    write(tmp_path / "run", state(1))
    snapshots = Snapshots(tmp_path / "run", tmp_path / "links", PART)
    held = snapshots.take()["metrics.jsonl"]
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write("row 2\n")
    assert b"".join(map(held.read, held.pieces)).decode() == "row 0\nrow 1\n"
    assert snapshots.take()["metrics.jsonl"].size == 18
    assert len(os.listdir(tmp_path / "links")) == len(state(1))


def test_snapshots_are_moments_of_the_run(tmp_path):
    """A writer changes three files in turn; every snapshot is a state that it went through."""
    folder, stop = tmp_path / "run", threading.Event()
    write(folder, {"a": "0", "b": "0", "metrics.jsonl": ""})

    def run():
        for n in range(1, 10_000):
            with open(folder / "metrics.jsonl", "a") as log:
                log.write("x")
            atomic_write(folder / "a", str(n))
            atomic_write(folder / "b", str(n))
            if stop.wait(0.005 + 0.02 * (n % 5)):
                return

    writer = threading.Thread(target=run)
    writer.start()
    snapshots, seen = Snapshots(folder, tmp_path / "links", PART), set()
    try:
        deadline = time.monotonic() + 60
        while len(seen) < 8 and time.monotonic() < deadline:
            held = snapshots.take()
            a, b = (int(b"".join(map(held[name].read, held[name].pieces))) for name in "ab")
            assert b <= a <= b + 1 and a <= held["metrics.jsonl"].size <= b + 1
            seen.add(a)
    finally:
        stop.set()
        writer.join()
    assert len(seen) == 8


# Generations


def push(store, folder, links, pusher=None, owner=None):
    pusher = pusher or Pusher(store, owner or Owner(), None)
    held = Snapshots(folder, links, PART).take()
    pusher.push(held)
    pusher.copy_for_people(held, logs=True)
    return pusher


def test_there_and_back(tmp_path):
    store, pusher = MemoryStore(), None
    for step in range(5):
        write(tmp_path / "run", state(step))
        pusher = push(store, tmp_path / "run", tmp_path / "links", pusher)
        write(tmp_path / "elsewhere", {"checkpoints/a/99/x": "stale", "trials.csv": "other\n"})
        manifest = pull(store, tmp_path / "elsewhere")
        assert manifest.generation == (1, step + 1) and read(tmp_path / "elsewhere") == state(step)
        assert not (tmp_path / "elsewhere" / "checkpoints" / "a" / "99").exists()
    assert generations.manifests(store) == [(1, 5), (1, 4)]
    needed = set().union(*(generations.read_manifest(store, g).parts for g in [(1, 5), (1, 4)]))
    assert {name.rpartition("/")[2] for name in store.names(".mirror/objects")} == needed
    assert store.read("trials.csv") == b"step 4\n" and store.read("empty") == b""
    assert not store.names("checkpoints")
    before = len(store.written)
    push(store, tmp_path / "run", tmp_path / "links", pusher)
    assert not [name for name in store.written[before:] if "objects" in name], "parts were written twice"
    assert pull(MemoryStore(), tmp_path / "none") is None and not (tmp_path / "none").exists()


def test_whatever_moment_the_machine_vanishes(tmp_path, monkeypatch):
    """Stops after every single operation of three pushes: the store gives the last state or the one before it."""
    monkeypatch.setattr(snapshot, "_TICK", 0.0)  # nobody writes while a snapshot is taken
    states, operations = [state(s) for s in range(3)], 0
    while True:
        store, lost = MemoryStore(), False
        links, run = tmp_path / "links", tmp_path / "run"
        pusher, complete = Pusher(store, Owner(), None), -1
        store.left = operations
        for step, content in enumerate(states):
            write(run, content)
            try:
                pusher.push(Snapshots(run, links, PART).take())
                complete = step
            except StoreError:
                lost = True
                break
        store.left = None
        found = pull(store, tmp_path / "out")
        if found is None:
            assert complete == -1
        else:
            step = states.index(read(tmp_path / "out"))
            assert complete <= step <= complete + 1
            write(run, state(7))
            second = Pusher(store, Owner(2), found)
            second.push(Snapshots(run, links, PART).take())
            assert pull(store, tmp_path / "out").generation == (2, 1) and read(tmp_path / "out") == state(7)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if not lost:
            break
        operations += 1
    assert operations > 20


def test_damage_is_passed_over_aloud(tmp_path, caplog):
    store, pusher = MemoryStore(), None
    for step in range(2):
        write(tmp_path / "run", state(step))
        pusher = push(store, tmp_path / "run", tmp_path / "links", pusher)
    only_new = next(iter(pusher.last.parts - generations.read_manifest(store, (1, 1)).parts))
    good = store.objects[f".mirror/objects/{only_new}"]
    store.objects[f".mirror/objects/{only_new}"] = b"x" + good[1:]
    with caplog.at_level("WARNING"):
        assert pull(store, tmp_path / "out").generation == (1, 1)
    assert read(tmp_path / "out") == state(0)
    assert pull(store, tmp_path / "out", mend=True) and f".mirror/objects/{only_new}" not in store.objects
    for name in store.names(".mirror/objects"):
        store.objects[name] = b""
    with pytest.raises(UserError, match="damaged"):
        pull(store, tmp_path / "other")
    write(tmp_path / "out", state(5))
    with pytest.raises(UserError, match="damaged"):
        pull(store, tmp_path / "out")
    assert read(tmp_path / "out") == state(5), "nothing is changed before all is there"


@pytest.mark.parametrize("files", [
    {"../evil": {"size": 0, "parts": []}}, {"/etc/evil": {"size": 0, "parts": []}}, {"a": {"size": 5, "parts": []}},
    {"a": {"size": 1, "parts": ["../x"]}}, {"a": []}, [], None,
])  # fmt: skip
def test_hostile_manifests_are_damaged_ones(tmp_path, files):
    store = MemoryStore()
    content = {"part_bytes": PART, "files": files}
    store.write(".mirror/manifests/00000001-00000001.json", json.dumps(content).encode())
    with pytest.raises(UserError, match="damaged"):
        pull(store, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_an_owner_that_was_replaced_changes_nothing(tmp_path):
    store = MemoryStore()
    write(tmp_path / "run", state(0))
    old = push(store, tmp_path / "run", tmp_path / "links", owner=Owner(1))
    write(tmp_path / "run", state(3))
    push(store, tmp_path / "run", tmp_path / "links", Pusher(store, Owner(2), old.last))
    old._lock.lost = True
    write(tmp_path / "run", state(1))
    with pytest.raises(LostLock):
        push(store, tmp_path / "run", tmp_path / "links", old)
    assert pull(store, tmp_path / "out").generation == (2, 1) and read(tmp_path / "out") == state(3)


# The lock


def test_the_lock_is_handed_on(capsys):
    store = MemoryStore()
    first, second, third = (Lock(store, LOCK, name) for name in "abc")
    first.acquire()
    with pytest.raises(UserError, match="Another run is at work"):
        second.acquire()
    first.release()
    second.acquire()
    assert second.number == first.number + 1 and list(store.names(LOCK)) == [f"{LOCK}/00000002.json"]
    second._stop.set()  # the machine vanishes
    second._thread.join()
    start = time.monotonic()
    third.acquire()
    assert time.monotonic() - start >= 1.0 and "taking it over" in capsys.readouterr().err
    with pytest.raises(LostLock, match="Another machine"):
        second.check()
    third.check()
    third._stop.set()
    third._thread.join()
    again = Lock(store, LOCK, "c")  # the same cache, so the process before is known to be gone
    start = time.monotonic()
    again.acquire()
    assert time.monotonic() - start < 1.0
    again.release()


def test_one_of_several_gets_the_lock(monkeypatch):
    monkeypatch.setenv("RESEARCH_REMOTE_LEASE", "2")
    for _ in range(3):
        store, got, refused = MemoryStore(), [], []

        def acquire(number, store=store, got=got, refused=refused):
            lock = Lock(store, LOCK, str(number))
            try:
                lock.acquire()
                got.append(lock)
            except UserError:
                refused.append(number)

        threads = [threading.Thread(target=acquire, args=(n,)) for n in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(got) == 1 and len(refused) == 7
        got[0].release()


@pytest.mark.parametrize("text", ["0", "soon", "nan", "-3", "1e9"])
def test_a_lease_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv("RESEARCH_REMOTE_LEASE", text)
    with pytest.raises(UserError, match="RESEARCH_REMOTE_LEASE"):
        lease()


# The mirror


@pytest.fixture
def store(monkeypatch):
    made = MemoryStore()
    monkeypatch.setattr(mirror, "Store", lambda url: made)
    monkeypatch.setattr(command, "Store", lambda url: made)
    return made


def test_a_local_folder_is_itself():
    with mirror.local("runs/x") as folder:
        assert folder == pathlib.Path("runs/x")


def test_a_run_moves_from_machine_to_machine(store, tmp_path, monkeypatch):
    for step in range(3):
        with mirror.local(store.url) as folder:
            assert read(folder) == (state(step - 1) if step else {})
            write(folder, state(step))
        monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / f"cache{step}"))
    command.main([f"--url={store.url}", f"--out={tmp_path / 'out'}"])
    assert read(tmp_path / "out") == state(2)
    with pytest.raises(UserError, match="exists"):
        command.main([f"--url={store.url}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="no address"):
        command.main(["--url=runs/x", f"--out={tmp_path / 'other'}"])
    store.objects.clear()
    with pytest.raises(UserError, match="no run"):
        command.main([f"--url={store.url}", f"--out={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


def test_it_is_pushed_while_the_run_goes_on(store):
    with mirror.local(store.url) as folder:
        for step in range(3):
            write(folder, state(step))
            deadline = time.monotonic() + 60
            while store.objects.get("trials.csv") != f"step {step}\n".encode() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert store.read("trials.csv") == f"step {step}\n".encode()


@pytest.mark.parametrize("end", [Stopped, UserError, RuntimeError, KeyboardInterrupt])
def test_it_is_pushed_however_the_run_ends(store, tmp_path, end):
    with pytest.raises(end):
        with mirror.local(store.url) as folder:
            write(folder, state(0))
            raise end("…")
    pull(store, tmp_path / "out")
    assert read(tmp_path / "out") == state(0)
    assert json.loads(store.read(f"{LOCK}/00000001.json"))["released"]


def test_a_push_that_fails_for_good_is_an_error(store, tmp_path):
    with pytest.raises(UserError, match="not in s3://bucket/runs/x .*the store is gone"):
        with mirror.local(store.url) as folder:
            write(folder, state(1))
            store.left = 0
    store.left = None
    with mirror.local(store.url) as folder:  # the same machine: the cache goes on, and nothing is waited for
        assert read(folder) == state(1)
    pull(store, tmp_path / "out")
    assert read(tmp_path / "out") == state(1)


def test_a_run_that_was_continued_elsewhere_is_fetched_anew(store, tmp_path, monkeypatch):
    with mirror.local(store.url) as folder:
        write(folder, state(1))
    here = folder
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "other"))
    with mirror.local(store.url) as folder:
        write(folder, state(2))
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    write(here, state(9))  # what a run did here after its lock was lost
    with mirror.local(store.url) as folder:
        assert folder == here and read(folder) == state(2)


def test_a_run_that_is_taken_over_ends(store, monkeypatch):
    asked = []
    monkeypatch.setattr(mirror.os, "kill", lambda pid, number: asked.append(number))
    with pytest.raises(LostLock):
        with mirror.local(store.url) as folder:
            write(folder, state(0))
            store.write(f"{LOCK}/00000009.json", b'{"token": "of another"}')
            deadline = time.monotonic() + 60
            while not asked and time.monotonic() < deadline:
                time.sleep(0.02)
    assert asked == [15]


def test_two_runs_on_one_machine(store):
    with mirror.local(store.url):
        with pytest.raises(UserError, match="on this machine"):
            with mirror.local(store.url):
                pass


def test_a_run_that_was_deleted_in_the_store_is_not_resurrected(store):
    with mirror.local(store.url) as folder:
        write(folder, state(0))
    store.objects.clear()
    with pytest.raises(UserError, match="holds no run"):
        with mirror.local(store.url):
            pass
    shutil.rmtree(folder)
    with mirror.local(store.url) as folder:
        assert read(folder) == {}
    assert not store.names(".mirror/manifests"), "an empty run is no generation"


def test_a_dry_run_touches_nothing(store, tmp_path):
    with mirror.local(store.url, dry_run=True) as folder:
        assert not folder.exists()
    assert not store.objects and not (tmp_path / "cache").exists()


def test_a_job_of_several_processes_is_refused(store, monkeypatch):
    monkeypatch.setattr(cluster, "count", lambda: 2)
    with pytest.raises(UserError, match="disk that all share"):
        with mirror.local(store.url):
            pass
