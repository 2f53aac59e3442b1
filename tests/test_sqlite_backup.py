"""A copy of a database that is in use, and the check of one."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteRunStore,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
)
from abstractruntime.storage.sqlite import backup
from abstractruntime.storage.sqlite.chores import Chores

from .checks import check_ledger, check_on_the_way
from .killed_worker import WORKFLOW, answer, handlers
from .scale import scaled
from .test_twins import shape

ROOT = Path(__file__).parent.parent


def fill(database: SqliteDatabase, runs: int) -> SqliteRunStore:
    store = SqliteRunStore(database)
    for number in range(runs):
        store.save(RunState(f"run-{number}", "w", RunStatus.COMPLETED, "n", vars={"x": "x" * 2_000}))
    return store


def runs_in(path: Path) -> int:
    with SqliteDatabase(path) as database:
        return len(SqliteRunStore(database).list_runs(limit=10_000))


# While runs are driven


async def drive(rt: AsyncRuntime, run_ids: list[str]) -> list[RunState]:
    """Move the runs to their ends, all at once."""

    async def move(run_id: str) -> RunState:
        state = await rt.tick(workflow=WORKFLOW, run_id=run_id)
        while state.status is RunStatus.WAITING:
            state = await answer(rt, state)
        return state

    return await asyncio.gather(*map(move, run_ids))


async def test_copies_taken_while_runs_are_driven_hold_whole_runs_that_go_on(tmp_path, seed):
    rng, world = random.Random(seed), tmp_path / "world"
    run_ids = [f"run-{number}" for number in range(scaled(12, 100))]
    copies: list[Path] = []
    async with SqliteDatabase(tmp_path / "runs.db") as database:
        stores: dict[str, Any] = {
            "run_store": AsyncSqliteRunStore(database),
            "ledger_store": AsyncSqliteLedgerStore(database),
        }
        async with AsyncRuntime(**stores, effect_handlers=handlers(world)) as rt:
            for run_id in run_ids:
                await rt.start(workflow=WORKFLOW, run_id=run_id, vars={"number": int(run_id[4:])})
            driving = asyncio.create_task(drive(rt, run_ids))
            while not driving.done():
                copies.append(await database.abackup(tmp_path / "copies" / f"{len(copies)}.db"))
            assert {state.status for state in await driving} == {RunStatus.COMPLETED}
    assert sorted(os.listdir(tmp_path / "copies")) == sorted(copy.name for copy in copies)
    for copy in rng.sample(copies, min(len(copies), scaled(3, 30))):
        await goes_on(copy, run_ids, world)


async def goes_on(copy: Path, run_ids: list[str], world: Path) -> None:
    async with SqliteDatabase(copy) as database:
        await database.acheck(full=True)
        runs, ledgers = AsyncSqliteRunStore(database), AsyncSqliteLedgerStore(database)
        for run_id in run_ids:
            state = await runs.load(run_id)
            assert state is not None
            check_on_the_way(state, await ledgers.list(run_id))
        async with AsyncRuntime(run_store=runs, ledger_store=ledgers, effect_handlers=handlers(world)) as rt:
            for state in await drive(rt, run_ids):
                assert state.status is RunStatus.COMPLETED
                check_ledger(state, await rt.get_ledger(state.run_id))


class Between(sqlite3.Connection):
    """A source that lets a test act between the steps of its copying."""

    steps = 0
    act: Any = None

    def backup(self, target: sqlite3.Connection, *, progress: Any = None, **options: Any) -> None:
        def between(status: int, remaining: int, total: int) -> None:
            self.steps += 1
            self.act()
            progress(status, remaining, total)

        super().backup(target, progress=between, **options)


def test_commits_land_between_the_steps_and_neither_spoil_the_copy_nor_begin_it_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "_PAGES", 10)
    path = tmp_path / "runs.db"
    with SqliteDatabase(path) as database:
        store = fill(database, 100)
        written: list[str] = []

        def act() -> None:
            written.append(f"late-{len(written)}")
            store.save(RunState(written[-1], "w", RunStatus.COMPLETED, "n"))

        with closing(sqlite3.connect(path, isolation_level=None, factory=Between)) as source:
            source.act = act
            pages = source.execute("PRAGMA page_count").fetchone()[0]
            backup.back_up(source, str(path), tmp_path / "copy.db", overwrite=False, stop=Event())
            assert source.steps == len(written) == -(-pages // 10) > 1
        assert len(store.list_runs(limit=1_000)) == 100 + len(written)
    assert runs_in(tmp_path / "copy.db") == 100


def test_a_copy_needs_nothing_of_what_a_writer_has_locked(tmp_path):
    path = tmp_path / "runs.db"
    with SqliteDatabase(path, busy_timeout=0) as database:
        fill(database, 3)
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM states")
            assert runs_in(database.backup(tmp_path / "copy.db")) == 3
            writer.execute("ROLLBACK")


async def test_in_a_copy_nobody_holds_a_lease_and_it_is_one_file_with_the_permissions_of_the_database(tmp_path):
    path = tmp_path / "runs.db"
    async with SqliteDatabase(path) as database:
        await database.backend.renew("me", 2**60)
        path.chmod(0o600)
        copy = await database.abackup(tmp_path / "copies" / "copy.db")
        assert await database.backend.alive("me", 0)
    assert os.listdir(copy.parent) == ["copy.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert plain.execute("SELECT count(*) FROM leases").fetchone() == (0,)


# Targets


def test_a_target_that_exists_is_refused_unless_it_may_be_replaced(tmp_path):
    with SqliteDatabase(tmp_path / "runs.db") as database:
        store = fill(database, 1)
        target = database.backup(tmp_path / "copy.db")
        before = target.read_bytes()
        store.save(RunState("more", "w", RunStatus.COMPLETED, "n"))
        with pytest.raises(FileExistsError, match="overwrite=True"):
            database.backup(target)
        assert target.read_bytes() == before
        assert database.backup(str(target), overwrite=True) == target
    assert runs_in(target) == 2


def test_a_target_that_would_spoil_something_is_refused(tmp_path):
    path = tmp_path / "runs.db"
    with SqliteDatabase(path) as database:
        fill(database, 1)
        with pytest.raises(ValueError, match="the database itself"):
            database.backup(path, overwrite=True)
        with pytest.raises(StoreError, match="is a folder"):
            database.backup(tmp_path)
        (tmp_path / "copy.db-wal").touch()
        with pytest.raises(StoreError, match="was not closed"):
            database.backup(tmp_path / "copy.db", overwrite=True)
        (tmp_path / "in the way").touch()
        with pytest.raises(StoreError, match=r"in the way.*Check the path"):
            database.backup(tmp_path / "in the way" / "copy.db")
    with SqliteDatabase(":memory:") as database, pytest.raises(StoreError, match="no second connection"):
        database.backup(tmp_path / "memory.db")
    assert not list(tmp_path.glob("*.part"))


def test_a_target_that_somebody_makes_meanwhile_is_left_alone(tmp_path):
    path, target = tmp_path / "runs.db", tmp_path / "copy.db"
    with SqliteDatabase(path) as database:
        fill(database, 1)
        with closing(sqlite3.connect(path, isolation_level=None, factory=Between)) as source:
            source.act = lambda: target.write_text("mine")
            with pytest.raises(FileExistsError, match="somebody else"):
                backup.back_up(source, str(path), target, overwrite=False, stop=Event())
    assert target.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


# Copies that come to nothing


@pytest.mark.parametrize("exists", [False, True])
def test_a_backup_that_is_stopped_leaves_the_target_as_it_was(tmp_path, monkeypatch, exists):
    monkeypatch.setattr(backup, "_PAGES", 5)
    path, target, stop = tmp_path / "runs.db", tmp_path / "copy.db", Event()
    with SqliteDatabase(path) as database:
        store = fill(database, 100)
        if exists:
            database.backup(target)
            store.delete("run-0")
        with closing(sqlite3.connect(path, isolation_level=None, factory=Between)) as source:
            source.act = lambda: stop.set() if source.steps == 3 else None
            with pytest.raises(StoreClosed, match="stopped"):
                backup.back_up(source, str(path), target, overwrite=True, stop=stop)
    assert not list(tmp_path.glob(".*"))
    assert (runs_in(target) if exists else target.exists()) == (100 if exists else False)


KILLED = """
import os, sqlite3, sys
from pathlib import Path
from threading import Event
from abstractruntime.storage.sqlite import backup
backup._PAGES = 5
class Killed(sqlite3.Connection):
    def backup(self, target, *, progress, **options):
        super().backup(target, progress=lambda *how_far: os._exit(9) if how_far[1] < 20 else None, **options)
source = sqlite3.connect(sys.argv[1], isolation_level=None, factory=Killed)
backup.back_up(source, sys.argv[1], Path(sys.argv[2]), overwrite=True, stop=Event())
"""


def test_a_process_that_is_killed_in_a_backup_leaves_the_target_as_it_was(tmp_path):
    path, target = tmp_path / "runs.db", tmp_path / "copy.db"
    with SqliteDatabase(path) as database:
        store = fill(database, 100)
        database.backup(target)
        store.delete("run-0")
        command = [sys.executable, "-c", KILLED, str(path), str(target)]
        assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 9
        assert len(list(tmp_path.glob(".copy.db.*.part"))) == 1
        assert runs_in(target) == 100
        database.backup(target, overwrite=True)
    assert runs_in(target) == 99


CRAMPED = """
import resource, sys
from abstractruntime import SqliteDatabase, StoreFull
with SqliteDatabase(sys.argv[1]) as database:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        database.backup(sys.argv[2], overwrite=True)
    except StoreFull as error:
        print(error)
"""


def test_without_room_for_the_copy_the_target_stays_as_it_was(tmp_path):
    path, target = tmp_path / "runs.db", tmp_path / "copy.db"
    with SqliteDatabase(path) as database:
        fill(database, 1)
        database.backup(target)
        fill(database, 0)
        store = SqliteRunStore(database)
        for number in range(100):
            store.save(RunState(f"more-{number}", "w", RunStatus.COMPLETED, "n", vars={"x": "x" * 2_000}))
    command = [sys.executable, "-c", CRAMPED, str(path), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ".copy.db." in done.stdout
    assert "nothing was written" in done.stdout
    assert not list(tmp_path.glob(".*"))
    assert runs_in(target) == 1
    assert issubclass(StoreFull, StoreError)


# Chores


async def test_a_chore_is_stopped_when_its_caller_is_cancelled_and_when_the_database_is_closed():
    chores, ended = Chores("x"), []

    def work(stop: Event) -> None:
        stop.wait(30)
        ended.append(stop.is_set())
        raise StoreClosed("stopped")

    task = asyncio.create_task(chores.run(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    task = asyncio.create_task(chores.run(work))
    await asyncio.sleep(0)
    await chores.close()
    assert ended == [True, True]
    with pytest.raises(StoreClosed):
        await task
    await chores.close()
    assert await chores.run(lambda stop: 7) == 7


async def test_a_closed_database_is_not_looked_after(tmp_path):
    database = SqliteDatabase(tmp_path / "runs.db")
    await database.aclose()
    for call in (database.abackup(tmp_path / "copy.db"), database.acheck(), database.acheckpoint()):
        with pytest.raises(StoreClosed):
            await call
    assert os.listdir(tmp_path) == []


def test_blocking_and_async_methods_take_the_same_arguments():
    for name in ("backup", "check", "checkpoint", "close"):
        ours, other = getattr(SqliteDatabase, name), getattr(SqliteDatabase, f"a{name}")
        assert shape(ours) == shape(other)


# The check


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["runs.db", ":memory:"])
def test_a_whole_database_passes_the_check(tmp_path, monkeypatch, name, full):
    monkeypatch.chdir(tmp_path)
    with SqliteDatabase(name) as database:
        fill(database, 5)
        database.check(full=full)


def test_the_full_check_finds_a_run_that_does_not_agree_with_its_ledger(tmp_path):
    with SqliteDatabase(tmp_path / "runs.db") as database:
        fill(database, 5)
        with closing(database.connection()) as plain:
            plain.execute("UPDATE states SET records = 2 WHERE id = (SELECT id FROM runs WHERE run_id = 'run-3')")
        database.check()
        with pytest.raises(StoreCorrupt, match="the state of run 'run-3' counts other records"):
            database.check(full=True)


def test_the_full_check_finds_an_index_that_does_not_agree_with_its_table(tmp_path):
    path = tmp_path / "runs.db"
    with SqliteDatabase(path) as database:
        fill(database, 5)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA writable_schema = ON")
        plain.execute("UPDATE sqlite_master SET sql = replace(sql, '(status, rest_at)', '(rest_at, status)')")
        plain.commit()
    with SqliteDatabase(path) as database, pytest.raises(StoreCorrupt, match="states_at_rest"):
        database.check(full=True)
