"""SQLite when things go wrong below it: failing flushes and statements, locks that stay, bytes that are damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from abstractruntime.core.codec import encode_run
from abstractruntime.core.errors import StoreBusy, StoreCorrupt, StoreError, StoreUnclear
from abstractruntime.storage.sqlite import SqliteDatabase
from abstractruntime.storage.sqlite.backend import SqliteBackend
from abstractruntime.storage.sqlite.batch import Reader, Writer
from abstractruntime.storage.sqlite.lane import Lane
from abstractruntime.storage.sqlite.schema import open_connection

from .test_sqlite_commit import request, run, write


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    async with SqliteDatabase(tmp_path / "runs.sqlite3") as database:
        yield database.backend


class Faulty(sqlite3.Connection):
    """A connection that fails at the statements that are in `plan`: before they run, after, or for want of room."""

    plan: list[tuple[str, str]]

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if getattr(self, "plan", None) and sql.startswith(self.plan[0][0]):
            _, how = self.plan.pop(0)
            if how == "after":
                super().execute(sql, *parameters)
            elif how == "gives up":
                super().execute("ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error" if how != "full" else "database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR if how != "full" else sqlite3.SQLITE_FULL
            raise error
        return super().execute(sql, *parameters)


@pytest.fixture
async def faulty(tmp_path: Path) -> AsyncIterator[tuple[SqliteBackend, Faulty]]:
    path = str(tmp_path / "runs.sqlite3")
    made: list[Faulty] = []

    def connect() -> sqlite3.Connection:
        open_connection(path, synchronous="FULL", busy_timeout=1).close()
        made.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Faulty))
        return made[-1]

    lanes = Lane("writer", connect, Writer(path)), Lane("reader", connect, Reader(path))
    backend = SqliteBackend(lanes[0], (lanes[1],), None)
    await backend.commit(write(run(), None))
    yield backend, made[0]
    for lane in lanes:
        await lane.close()


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_failing_flush_is_unclear_and_the_id_tells_whether_it_landed(faulty, how, hot):
    backend, connection = faulty
    connection.plan = [("INSERT INTO steps" if hot else "COMMIT", how)]
    with pytest.raises(StoreUnclear, match=r"may or may not have landed \(disk I/O error\)"):
        await backend.commit(write(run(revision=2), 1, count=1, hot=hot))
    assert await backend.landed("r", "r@2") is (how == "after")
    if how == "before":
        await backend.commit(write(run(revision=2), 1, count=1, hot=True))
    await backend.commit(write(run(revision=3), 2, before=1, hot=True))


async def test_a_failing_statement_fails_its_own_write_and_the_next_one_lands(faulty):
    backend, connection = faulty
    connection.plan = [("INSERT INTO steps", "full"), ("INSERT INTO steps", "full"), ("UPDATE states", "before")]
    with pytest.raises(StoreError, match="check it and the permissions") as caught:
        await backend.commit(write(run(revision=2), 1, hot=True))
    assert not isinstance(caught.value, StoreUnclear)
    await backend.commit(write(run(revision=2), 1, hot=True))


async def test_when_sqlite_gives_the_transaction_up_nothing_was_written_and_everyone_hears_it(faulty):
    backend, connection = faulty
    await backend.commit(write(run("other"), None))
    connection.plan = [
        ("INSERT INTO steps", "full"),
        ("INSERT INTO steps", "full"),
        ("UPDATE states", "gives up"),
    ]
    errors: list[BaseException] = []

    async def step(name: str) -> None:
        with pytest.raises(StoreError, match="nothing was written") as caught:
            await backend.commit(write(run(name, 2), 1, hot=True))
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        group.start_soon(step, "r")
        group.start_soon(step, "other")
    assert len(errors) == 2
    for name in ("r", "other"):
        loaded = await backend.load(name)
        assert loaded is not None
        assert loaded.run.revision == 1
        await backend.commit(write(run(name, 2), 1, hot=True))


async def test_when_not_even_a_savepoint_can_be_had_nothing_was_written(faulty):
    backend, connection = faulty
    connection.plan = [("INSERT INTO steps", "full"), ("INSERT INTO steps", "full"), ("SAVEPOINT", "before")]
    with pytest.raises(StoreError, match="permissions"):
        await backend.commit(write(run(revision=2), 1, hot=True))
    await backend.commit(write(run(revision=2), 1, hot=True))


async def test_a_batch_that_breaks_down_altogether_leaves_the_lane_in_order(faulty):
    backend, connection = faulty
    connection.plan = [("BEGIN", "after"), ("ROLLBACK", "before")]
    with pytest.raises(sqlite3.OperationalError):
        await backend.commit(write(run(revision=2), 1))
    await backend.commit(write(run(revision=2), 1, hot=True))


async def test_a_lock_held_for_too_long_is_busy_and_nothing_was_written(tmp_path):
    path = tmp_path / "runs.sqlite3"
    async with SqliteDatabase(path, busy_timeout=0.02) as database:
        await database.backend.commit(write(run(), None))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match="busy_timeout"):
            await database.backend.commit(write(run(revision=2), 1, hot=True))
        other.execute("ROLLBACK")
        other.close()
        await database.backend.commit(write(run(revision=2), 1, hot=True))


async def test_damaged_bytes_are_named_and_not_taken_for_a_missing_run(backend):
    await backend.commit(write(run(), None))
    await backend.write(lambda connection: connection.execute("UPDATE states SET data = x'7b'").rowcount)
    with pytest.raises(StoreCorrupt, match="run 'r'"):
        await backend.load("r")
    await backend.write(
        lambda connection: connection.execute("UPDATE states SET data = ?", (encode_run(run(revision=9)),)).rowcount
    )
    with pytest.raises(StoreCorrupt, match="revision 1, but its data is of revision 9"):
        await backend.load("r")
    await backend.write(
        lambda connection: connection.execute("UPDATE states SET data = ?", (encode_run(run("x")),)).rowcount
    )
    with pytest.raises(StoreCorrupt, match="Under the id 'r' the run 'x' is stored"):
        await backend.load("r")


async def test_damaged_requests_are_named(backend):
    await backend.commit(write(run(), None))
    await backend.commit(write(run("other"), None, requests=(request(),)))
    await backend.write(lambda connection: connection.execute("UPDATE requests SET data = x'7b7d'").rowcount)
    with pytest.raises(StoreCorrupt, match="request"):
        await backend.load("r")
