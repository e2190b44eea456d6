"""Are files that workers share opened, locked and mended, and refused in one sentence?"""

import sqlite3

import pytest

from input_pipeline.cli import UserError
from research.search import storages
from tests.research.search.test_shared import GRID, open_study, row

pytest.importorskip("optuna")


def test_an_sqlite_transaction_excludes_others_from_its_first_look_on(tmp_path):
    study = open_study(str(tmp_path / "trials.db"))
    with study._storage._backend.engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM trials")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(tmp_path / "trials.db", timeout=0.01).execute("BEGIN IMMEDIATE")


def test_a_torn_journal_goes_on(tmp_path):
    path = tmp_path / "trials.journal"
    study = open_study(str(path))
    study.enqueue(GRID[:2])
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "study_id": 0, "overrides": "' + b"x" * 70_000)
    (claim, other) = study.ask(2)
    assert study.tell(claim, row(claim))
    again = open_study(str(path), "two")
    assert len(again.rows()) == 1 and again.unfinished() == 1


def test_what_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "bad.db").write_bytes(b"no data base" * 1000)
    (tmp_path / "bad.journal").write_bytes(b"[1]\nnothing\n{}\n")
    (tmp_path / "folder").mkdir()
    for name in ("bad.db", "bad.journal", "folder", "bad.db/inside"):
        with pytest.raises(UserError, match="cannot be used"):
            open_study(str(tmp_path / name))
    for url in ("", "mysql://me:secret@host/db", "sqlite://", "postgresql://"):
        with pytest.raises(UserError, match="write a path") as caught:
            open_study(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="refused|cannot") as caught:
        open_study("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_urls_and_paths_name_the_same_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, path in (("sqlite:///a.db", "a.db"), (f"sqlite:///{tmp_path}/a.db", "a.db"), ("journal:///b.db", "b.db")):
        open_study(url).close()
        assert (tmp_path / path).stat().st_size
    assert open_study("a.db").unfinished() == 0
    assert (tmp_path / "b.db").read_bytes().startswith(b'{"op_code"')
    open_study("{a} b.db").close()
    assert (tmp_path / "{a} b.db").exists()
    open_study("plain", "worker").close()
    assert (tmp_path / "plain").read_bytes().startswith(b'{"op_code"')


def test_a_journals_lock_of_a_dead_worker_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "LOCK_SECONDS", 3)
    (tmp_path / "trials.journal.lock").touch()
    study = open_study(str(tmp_path / "trials.journal"))
    study.enqueue(GRID[:1])
    assert len(study.ask(1)) == 1 and not list(tmp_path.glob("*.lock"))
