"""Where do several workers keep the trials of one search? Optuna's storages, opened so that they do not race or tear.

What optuna leaves open, and is mended here: its creation of tables fails when two workers begin together (optuna issue
1092); on SQLite, two workers can take one waiting trial (issue 4002); a worker killed in the middle of a write leaves
a journal that nobody can read (issue 5138).
"""

import contextlib
import json
import os
import pathlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from input_pipeline.cli import UserError
from research.search.samplers import load_optuna

LOCK_SECONDS = 30  # after which a journal's lock is taken from a worker that does not give it back
_SQLITE = (".db", ".sqlite", ".sqlite3")
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")


def _parse(url: str) -> tuple[str, str]:
    """The kind of a storage (journal, sqlite, postgresql) and its path or URL."""
    scheme, separator, rest = url.partition("://")
    if not separator and url:
        return ("sqlite" if url.lower().endswith(_SQLITE) else "journal"), os.path.abspath(url)
    if scheme in ("sqlite", "journal") and rest.startswith("/") and len(rest) > 1:
        return scheme, os.path.abspath(rest[1:])
    if scheme in _POSTGRESQL and rest:
        return "postgresql", f"postgresql+psycopg://{rest}"
    raise UserError(
        f"config.search.storage is '{_without_password(url)}'; write a path (in .db for SQLite, else a journal), "
        "sqlite:///PATH, journal:///PATH or postgresql://USER@HOST/DATABASE."
    )


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else url


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Whatever SQLAlchemy, a driver or optuna raise when a storage is opened, as a `UserError` without the password."""
    load_optuna()
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{_without_password(url)} needs {error.name}; run `pip install -e '.[sweep]'`.") from error
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the storage {_without_password(url)} cannot be used ({reason}); check config.search.storage."
        ) from error


def open_storage(url: str):
    """Optuna's storage, to be opened by one worker at a time, in `mutex`; a file is made where it does not exist."""
    optuna = load_optuna()
    kind, place = _parse(url)
    if kind == "journal":
        return optuna.storages.JournalStorage(_Journal(place))
    if kind == "postgresql":
        # A connection may have been cut by a firewall during an hour of training.
        storage = optuna.storages.RDBStorage(_literal(place), engine_kwargs={"pool_pre_ping": True})
        _listen(storage.engine, _notice_lost_machines)
    else:
        patient = {"connect_args": {"timeout": 600}}
        storage = optuna.storages.RDBStorage(f"sqlite:///{_literal(place)}", engine_kwargs=patient)
        _lock_at_once(storage.engine)
    return optuna.storages.get_storage(storage)


def _literal(url: str) -> str:
    """With braces that optuna does not fill in."""
    return url.replace("{", "{{").replace("}", "}}")


def close_storage(storage) -> None:
    """Gives connections back."""
    storage.remove_session()
    if (engine := getattr(getattr(storage, "_backend", None), "engine", None)) is not None:
        engine.dispose()


def _listen(engine, on_connect: Callable[[Any], None]) -> None:
    import sqlalchemy

    sqlalchemy.event.listen(engine, "connect", lambda connection, _: on_connect(connection))
    engine.dispose()  # connections that were made before


def _lock_at_once(engine) -> None:
    """Every SQLite transaction takes the write lock when it begins: what it has read is still so when it writes.

    After SQLAlchemy's guide to SQLite's transactions. The write-ahead log spares a wait for the disk at each of the
    some twenty values of a row; only a loss of power can cost the last results, and then their trials are run again.
    """
    import sqlalchemy

    def prepare(connection) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    sqlalchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    _listen(engine, prepare)


def _notice_lost_machines(connection) -> None:
    """The server ends a session, and frees its locks, a minute after the machine vanished; not after two hours."""
    with connection.cursor() as cursor:
        for setting, value in (("idle", 30), ("interval", 10), ("count", 3)):
            cursor.execute(f"SET tcp_keepalives_{setting} = {value}")
    connection.commit()


class _Journal:
    """Optuna's journal of one file, whose last line may be torn by the death of its writer."""

    def __init__(self, path: str) -> None:
        journal = load_optuna().storages.journal
        self._path, self._lock = path, _FileLock(path)
        self.read_logs = journal.JournalFileBackend(path, lock_obj=self._lock).read_logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds lines; what stands behind the last complete one belongs to a write that nobody was told of."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._lock:
            _cut_torn_line(self._path)
            with open(self._path, "ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())


def _cut_torn_line(path: str) -> None:
    """Ends a file behind its last line end."""
    with open(path, "r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


class _FileLock:
    """Optuna's lock by an exclusive file, which network folders have, too."""

    def __init__(self, path: str) -> None:
        self._lock = load_optuna().storages.journal.JournalFileOpenLock(path, grace_period=LOCK_SECONDS)

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was taken from us
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_) -> None:
        self.release()


def mutex(url: str, name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A lock that one worker at a time holds; at its holder's death it is free, for a journal after a while.

    A file's folder is made where it does not exist.
    """
    kind, place = _parse(url)
    if kind == "postgresql":
        return _server_mutex(place, name)
    pathlib.Path(place).parent.mkdir(parents=True, exist_ok=True)
    return (lambda: _FileLock(f"{place}.choice")) if kind == "journal" else (lambda: _sqlite_mutex(f"{place}.lock"))


@contextlib.contextmanager
def _sqlite_mutex(path: str) -> Iterator[None]:
    connection = sqlite3.connect(path, timeout=3600, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


def _server_mutex(url: str, name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    _listen(engine, _notice_lost_machines)
    statement = sqlalchemy.text("SELECT pg_advisory_xact_lock(:room, :study)").bindparams(
        room=zlib.crc32(b"research.search") - 2**31, study=zlib.crc32(name.encode()) - 2**31
    )

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with engine.begin() as connection:
            connection.execute(statement)
            yield

    return hold
