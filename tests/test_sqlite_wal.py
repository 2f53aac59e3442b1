"""The write-ahead log: left behind, cut short, damaged, and kept short."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest

from abstractruntime import (
    AsyncSqliteRunStore,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteRunStore,
    StoreCorrupt,
)
from abstractruntime.storage.sqlite import checkpoints, schema, watch
from abstractruntime.storage.sqlite import database as database_module
from abstractruntime.storage.sqlite.checkpoints import Checkpoint, LogKeeper

from . import desks
from .desks import Desk
from .scale import scaled

facade, path = desks.facade, desks.path


def left_behind(path: Path, commits: int) -> list[int]:
    """A database as a killed process leaves it; where the log ended before each of these commits, and at the end."""
    source = path.with_name("source.db")
    with SqliteDatabase(source) as database:
        store = SqliteRunStore(database)
        store.load("make the file")
        database.checkpoint("TRUNCATE")
        ends = []
        for number in range(commits):
            ends.append(os.stat(f"{source}-wal").st_size)
            store.save(RunState(f"run-{number}", "w", RunStatus.RUNNING, "n", vars={"number": number}))
        ends.append(os.stat(f"{source}-wal").st_size)
        for suffix in ("", "-wal"):
            shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
    return ends


def read_back(path: Path) -> int:
    with SqliteDatabase(path) as database:
        return len(SqliteRunStore(database).list_runs())


def test_a_log_that_was_left_behind_is_taken_whole(path):
    left_behind(path, 10)
    assert read_back(path) == 10


def test_a_log_whose_last_commit_was_cut_short_holds_all_commits_before(path, seed):
    ends = left_behind(path, 10)
    log = Path(f"{path}-wal")
    os.truncate(log, random.Random(seed).randrange(ends[-2], ends[-1]))
    assert read_back(path) == 9


def test_damage_anywhere_in_a_log_is_found_or_costs_nothing(tmp_path, seed):
    """The last commit alone cannot be told from one that a power failure cut short."""
    rng = random.Random(seed)
    origin = tmp_path / "origin.db"
    ends = left_behind(origin, 8)
    found = 0
    for number in range(scaled(25, 1_000)):
        path = tmp_path / f"{number}.db"
        content = bytearray(Path(f"{origin}-wal").read_bytes())
        content[rng.randrange(ends[-2])] ^= 1 << rng.randrange(8)
        shutil.copy(origin, path)
        Path(f"{path}-wal").write_bytes(content)
        try:
            assert read_back(path) == 8
        except StoreCorrupt:
            found += 1
            assert Path(f"{path}-wal").read_bytes() == content
    assert found


def test_a_damaged_log_is_corrupt_on_every_way_in_and_without_it_the_older_state_opens(path, facade):
    ends = left_behind(path, 10)
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    content[ends[5] + 1_000] ^= 1
    log.write_bytes(content)
    desk = Desk(path, facade)
    desk.is_refused(StoreCorrupt)
    desk.close()
    assert log.read_bytes() == content
    log.unlink()
    assert read_back(path) == 0


# Checkpoints


def log_size(path: Path) -> int:
    return os.stat(f"{path}-wal").st_size


def save(store: SqliteRunStore, count: int, name: str = "run") -> None:
    for number in range(count):
        store.save(RunState(f"{name}-{number}", "w", RunStatus.RUNNING, "n", vars={"x": "x" * 3_000}))


async def test_a_checkpoint_says_how_far_it_came(path):
    async with SqliteDatabase(path) as database:
        store = AsyncSqliteRunStore(database)
        await store.save(RunState("r", "w", RunStatus.RUNNING, "n"))
        done = await database.acheckpoint()
        assert (done.busy, done.log_pages) == (False, done.moved_pages)
        assert done.log_pages > 0
        assert await database.acheckpoint("TRUNCATE") == Checkpoint(busy=False, log_pages=0, moved_pages=0)
        assert log_size(path) == 0
        for mode in ("FULL", "RESTART"):
            assert not (await database.acheckpoint(mode)).busy


def test_a_checkpoint_that_somebody_is_in_the_way_of_is_busy(path, monkeypatch):
    monkeypatch.setattr(database_module, "_CHECKPOINT_WAITS", 0.01)
    with SqliteDatabase(path) as database, closing(database.connection()) as reader:
        store = SqliteRunStore(database)
        save(store, 1)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchall()
        save(store, 1, "more")
        assert database.checkpoint("FULL").busy
        found = database.checkpoint()
        assert found.moved_pages < found.log_pages
        reader.execute("ROLLBACK")
        assert not database.checkpoint("TRUNCATE").busy


def test_an_unknown_kind_of_checkpoint_is_refused(path):
    with SqliteDatabase(path) as database, pytest.raises(ValueError, match="PASSIVE, FULL, RESTART, TRUNCATE; found"):
        database.checkpoint("HARD")  # type: ignore[arg-type]


def test_in_memory_there_is_no_log():
    with SqliteDatabase(":memory:") as database:
        assert database.checkpoint("TRUNCATE") == Checkpoint(busy=False, log_pages=0, moved_pages=0)


def test_without_automatic_checkpoints_the_log_grows_until_somebody_asks_for_one(path):
    with SqliteDatabase(path, wal_autocheckpoint=0) as database:
        save(SqliteRunStore(database), 50)
        before = database.checkpoint()
        assert before.log_pages > 50
        assert not database.checkpoint("TRUNCATE").busy
        assert log_size(path) == 0


class Readers:
    """Two connections in a thread that read in turns, each beginning before the other ends: one always reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading, self._stop = Event(), Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()
        self._reading.wait(30)

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        one, other = (sqlite3.connect(self._path, isolation_level=None) for _ in range(2))
        _begin_to_read(one)
        self._reading.set()
        while not self._stop.is_set():
            _begin_to_read(other)
            one.execute("ROLLBACK")
            one, other = other, one
        one.close()
        other.close()


def _begin_to_read(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM runs").fetchone()


def test_the_log_stays_short_although_somebody_always_reads(path, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_LONGEST_PAUSE", 0.0)  # a reader that was slow once makes it no less eager
    pages, longest = 10, 0
    with SqliteDatabase(path, wal_autocheckpoint=pages) as database:
        store = SqliteRunStore(database)
        store.load("make the file")
        with Readers(path):
            for number in range(scaled(150, 3_000)):
                save(store, 1, f"run-{number}")
                longest = max(longest, log_size(path))
    assert longest < 1_000_000, "without the keeper it would be more than 5 MB"


def test_sqlite_alone_never_begins_the_log_anew_while_somebody_always_reads(path, monkeypatch):
    """Why there is a keeper: here one reader begins after each write, before the one before it ends."""
    monkeypatch.setattr(LogKeeper, "shorten", lambda self, connection: None)
    pages = 10
    with SqliteDatabase(path, wal_autocheckpoint=pages) as database, closing(database.connection()) as one:
        store = SqliteRunStore(database)
        save(store, 1, "first")
        with closing(database.connection()) as other:
            _begin_to_read(one)
            for number in range(150):
                save(store, 1, f"run-{number}")
                _begin_to_read(other)
                one.execute("ROLLBACK")
                one, other = other, one
        assert log_size(path) > 4_000_000


def test_a_reader_that_stays_is_told_of_and_holds_nobody_up_for_long(path, monkeypatch, caplog):
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.0)
    with SqliteDatabase(path, wal_autocheckpoint=1) as database, closing(database.connection()) as reader:
        store = SqliteRunStore(database)
        save(store, 1)
        _begin_to_read(reader)
        save(store, 20, "more")
        assert "a reader stays in it" in caplog.text
        assert len(caplog.records) == 1, "tried again later, and later each time"
        assert len(store.list_runs()) == 21


def test_an_unbusy_log_that_was_once_long_is_cut_when_it_begins_anew(path, monkeypatch):
    monkeypatch.setattr(schema, "_LOG_BYTES", 8_192)
    with SqliteDatabase(path, wal_autocheckpoint=200) as database:
        store = SqliteRunStore(database)
        save(store, 100)
        assert log_size(path) > 100_000
        assert not database.checkpoint("RESTART").busy
        save(store, 1, "last")
        assert log_size(path) < 100_000


# Options


@pytest.mark.parametrize(
    "option",
    [
        {"busy_timeout": -1},
        {"busy_timeout": float("nan")},
        {"busy_timeout": "30"},
        {"busy_timeout": 1e9},
        {"wal_autocheckpoint": -1},
        {"wal_autocheckpoint": 1.5},
        {"wal_autocheckpoint": True},
        {"cache_kib": 0},
        {"readers": 0},
        {"readers": 65},
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_by_name(path, option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"{name} must be a.* number from \d+ to \d+, found"):
        SqliteDatabase(path, **option)


async def test_options_reach_every_connection(path):
    async with SqliteDatabase(path, busy_timeout=2, wal_autocheckpoint=7, cache_kib=512, readers=3) as database:
        wanted = {"busy_timeout": 2_000, "wal_autocheckpoint": 7, "cache_size": -512}

        def found(connection: sqlite3.Connection) -> dict[str, int]:
            return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}

        seen = [await database.backend.read(found) for _ in range(3)]
        assert [await database.backend.write(found), *seen] == [wanted] * 4


async def test_several_readers_read_at_once(path):
    async with SqliteDatabase(path, readers=3) as database:
        meeting = Barrier(3)

        def meet(connection: sqlite3.Connection) -> int:
            return meeting.wait(30)

        assert sorted(await asyncio.gather(*(database.backend.read(meet) for _ in range(3)))) == [0, 1, 2]
