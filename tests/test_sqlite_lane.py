"""The lane: one connection for any number of loops and threads, that nobody can strand, spoil or wait for in vain."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.lowlevel
import pytest

from abstractruntime.core import portal
from abstractruntime.core.errors import StoreClosed
from abstractruntime.core.journal import prepare_save
from abstractruntime.core.models import RunState, RunStatus
from abstractruntime.storage.sqlite import AsyncSqliteRunStore, SqliteDatabase, SqliteLedgerStore, SqliteRunStore
from abstractruntime.storage.sqlite import lane as lane_module
from abstractruntime.storage.sqlite.batch import Reader, Writer
from abstractruntime.storage.sqlite.lane import Lane, in_thread

from .scale import scaled

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with SqliteDatabase(tmp_path / "runs.sqlite3") as made:
        yield made


def run(run_id: str) -> RunState:
    return RunState(run_id, "w", RunStatus.RUNNING, "n")


async def turns(count: int = 20) -> None:
    """Let everything run that can run."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def test_aiosqlite_still_runs_a_function_in_the_thread_of_a_connection():
    """The package's one private call. If this fails, aiosqlite has changed: see `lane.in_thread`."""
    threads: list[threading.Thread] = []
    connection = aiosqlite.Connection(lambda: sqlite3.connect(":memory:", check_same_thread=False), 64)
    connection._thread.daemon = True
    await connection
    await in_thread(connection, lambda: threads.append(threading.current_thread()))
    await connection.close()
    assert threads == [connection._thread]
    assert connection._thread.daemon


async def test_whatever_queued_up_shares_the_next_batch(tmp_path):
    sizes: list[int] = []
    gate = threading.Event()
    writer = Writer("x")

    def counted(connection: sqlite3.Connection, operations: Any) -> list[Any]:
        sizes.append(len(operations))
        return writer(connection, operations)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / "x", isolation_level=None, check_same_thread=False)

    lane = Lane("lane", connect, counted)
    async with anyio.create_task_group() as group:
        group.start_soon(lane.run, lambda connection: gate.wait(10))
        while sizes != [1]:
            await anyio.lowlevel.checkpoint()
        for number in range(2_500):
            group.start_soon(lane.run, lambda connection, n=number: n)
        await turns()
        gate.set()
    # at most 512, and while more than 64 wait only half of them: the loop prepares others while these are flushed
    assert sizes == [1, 512, 512, 512, 482, 241, 121, 60, 60]
    await lane.close()


async def test_each_operation_gets_its_own_answer_and_its_own_error(database):
    def answer(number: int, connection: sqlite3.Connection) -> int:
        if number % 3 == 0:
            raise ValueError(number)
        return number

    async def ask(number: int) -> None:
        if number % 3:
            assert await database.backend.write(partial(answer, number)) == number
            return
        with pytest.raises(ValueError, match=f"^{number}$"):
            await database.backend.write(partial(answer, number))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)


def test_many_loops_and_threads_use_one_database_at_once(tmp_path):
    with SqliteDatabase(tmp_path / "runs.sqlite3") as database:
        failures: list[BaseException] = []
        start = threading.Barrier(6)

        async def drive(name: str) -> None:
            store = AsyncSqliteRunStore(database)
            for number in range(scaled(10, 200)):
                state = run(f"{name}-{number}")
                await asyncio.gather(store.save(state), *(store.load(f"{name}-{earlier}") for earlier in range(number)))
                state.vars["seen"] = name
                await store.save(state)

        def in_loop(name: str) -> None:
            try:
                start.wait(10)
                for part in range(3):  # a loop each time: the lanes must not mind that the last one was closed
                    asyncio.run(drive(f"{name}-{part}"))
            except BaseException as error:
                failures.append(error)

        def blocking(name: str) -> None:
            try:
                start.wait(10)
                store = SqliteRunStore(database)
                for number in range(scaled(30, 200)):
                    store.save(run(f"{name}-{number}"))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=in_loop, args=(f"loop{number}",)) for number in range(4)]
        threads += [threading.Thread(target=blocking, args=(f"thread{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        found = SqliteRunStore(database).list_runs(limit=1_000_000)
        assert len(found) == 12 * scaled(10, 200) + 2 * scaled(30, 200)
        assert all(state.vars["seen"] in state.run_id for state in found if state.run_id.startswith("loop"))


def test_a_loop_that_is_closed_while_it_waits_does_no_harm_to_the_others(tmp_path):
    path = tmp_path / "runs.sqlite3"
    with SqliteDatabase(path) as database:
        SqliteRunStore(database).save(run("first"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        loop = asyncio.new_event_loop()
        waiting = AsyncSqliteRunStore(database).save(run("second"))
        task = loop.create_task(waiting)
        deaf: list[Any] = []
        loop.set_exception_handler(lambda loop, context: deaf.append(context))  # the task is left pending on purpose
        for _ in range(200):
            loop.run_until_complete(asyncio.sleep(0))
        assert not task.done()
        loop.close()
        other.execute("ROLLBACK")
        other.close()
        store = SqliteRunStore(database)
        store.save(run("third"))
        assert {state.run_id for state in store.list_runs()} >= {"first", "third"}
        del waiting, task
        gc.collect()


@pytest.mark.parametrize("how", ["native", "scope", "twice"])
async def test_a_cancelled_caller_waits_for_its_commit_and_is_cancelled_then(database, how):
    store = AsyncSqliteRunStore(database)
    await store.save(run("first"))
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    scope = anyio.CancelScope()
    outcome: list[str] = []

    async def save() -> None:
        with scope:
            try:
                await database.backend.commit(prepare_save(None, run("second"), overwrite=False, commit_id="c"))
                outcome.append("returned")
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise

    task = asyncio.create_task(save())
    await anyio.lowlevel.checkpoint()  # now it is queued, or on its way
    if how == "scope":
        scope.cancel()
    else:
        task.cancel()
        if how == "twice":
            await turns()
            task.cancel()
    await turns()
    assert outcome == []  # it may land yet, so nobody is told anything
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait([task])
    assert outcome == ["cancelled"]
    assert task.cancelled() is (how != "scope")
    assert await store.load("second") is not None


async def test_a_cancelled_reader_leaves_at_once(tmp_path):
    gate = threading.Event()
    lane = Lane(
        "lane", lambda: sqlite3.connect(tmp_path / "x", check_same_thread=False, isolation_level=None), Reader("x")
    )
    with anyio.move_on_after(0) as scope:
        await lane.run(lambda connection: gate.wait(10))
    assert scope.cancelled_caught
    gate.set()
    assert await lane.run(lambda connection: 1) == 1
    await lane.close()


async def test_a_commit_that_takes_too_long_is_left_behind_by_its_cancelled_caller(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lane_module, "CARRIED_THROUGH", 0.01)
    gate = threading.Event()
    lane = Lane(
        "lane", lambda: sqlite3.connect(tmp_path / "x", check_same_thread=False, isolation_level=None), Writer("x")
    )
    with anyio.move_on_after(0) as scope:
        await lane.run(lambda connection: gate.wait(10), carry=True)
    assert scope.cancelled_caught
    assert "goes on in the background" in caplog.text
    gate.set()
    await lane.close()


async def test_closing_finishes_what_was_begun_and_refuses_what_comes_later(database):
    store = AsyncSqliteRunStore(database)
    async with anyio.create_task_group() as group:
        for number in range(50):
            made = prepare_save(None, run(f"r{number}"), overwrite=False, commit_id="c")
            group.start_soon(database.backend.commit, made)
        await anyio.lowlevel.checkpoint()  # now they are queued
        group.start_soon(database.aclose)
        await anyio.lowlevel.checkpoint()
        group.start_soon(database.aclose)
    for late in (store.load("r1"), store.save(run("late"))):
        with pytest.raises(StoreClosed, match="was closed"):
            await late
    await database.aclose()
    with pytest.raises(StoreClosed):
        database.connection()
    async with SqliteDatabase(database.path) as again:
        assert len(await AsyncSqliteRunStore(again).list_runs(limit=100)) == 50
    assert sorted(os.listdir(Path(database.path).parent)) == ["runs.sqlite3"]


async def test_whoever_asks_while_the_lane_closes_is_answered(tmp_path, seed):
    """Neither an operation nor a second close may be forgotten, whenever it comes."""
    for number in range(scaled(20, 500)):
        database = SqliteDatabase(tmp_path / f"{number}.sqlite3")
        store = AsyncSqliteRunStore(database)
        answers: list[str] = []

        async def save(store: AsyncSqliteRunStore = store, answers: list[str] = answers, number: int = number) -> None:
            for turn in range(number % 7 + 3):
                try:
                    await store.save(run(f"r{turn}"), overwrite=True)
                    answers.append("saved")
                except StoreClosed:
                    answers.append("closed")

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(save)
                await turns(number)
                group.start_soon(database.aclose)
                group.start_soon(database.aclose)
        assert len(answers) == number % 7 + 3


async def test_a_database_that_nobody_used_is_closed_without_being_opened(tmp_path):
    database = SqliteDatabase(tmp_path / "folder" / "runs.sqlite3")
    await database.aclose()
    assert not (tmp_path / "folder").exists()


async def test_a_lane_that_failed_to_open_tries_again(tmp_path):
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    database = SqliteDatabase(folder / "runs.sqlite3")
    store = AsyncSqliteRunStore(database)
    for _ in range(2):
        with pytest.raises(Exception, match="folder cannot be made"):
            await store.load("r")
    folder.unlink()
    await store.save(run("r"))
    assert await store.load("r") is not None
    await database.aclose()


async def test_a_database_that_fails_to_open_while_it_is_closed_is_closed(tmp_path):
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    database = SqliteDatabase(folder / "runs.sqlite3")

    async def load() -> None:
        with pytest.raises(Exception, match="folder cannot be made"):
            await AsyncSqliteRunStore(database).load("r")

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        await anyio.lowlevel.checkpoint()
        group.start_soon(database.aclose)
    with pytest.raises(StoreClosed):
        await AsyncSqliteRunStore(database).load("r")


def test_a_database_that_is_dropped_ends_its_threads(tmp_path):
    database = SqliteDatabase(tmp_path / "runs.sqlite3")
    asyncio.run(AsyncSqliteRunStore(database).save(run("r")))
    threads = [lane._connection._thread for lane in database._lanes if lane._connection]
    assert len(threads) == 2
    del database
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_the_same_store_serves_blocking_and_async_callers(tmp_path):
    with SqliteDatabase(tmp_path / "runs.sqlite3") as database:
        store = SqliteRunStore(database)
        store.save(run("r"))
        assert asyncio.run(store.aio.load("r")) == store.load("r") == portal.call(store.aio.load, "r")


FORK = """
import os, sys
from abstractruntime.core.models import RunState, RunStatus
from abstractruntime.storage.sqlite import SqliteDatabase, SqliteRunStore
database, closed = SqliteDatabase(sys.argv[1]), SqliteDatabase(sys.argv[1])
store = SqliteRunStore(database)
store.save(RunState("parent", "w", RunStatus.RUNNING, "n"))
SqliteRunStore(closed).load("parent")
closed.close()
child = os.fork()
if child == 0:
    assert store.load("parent") is not None
    store.save(RunState("child", "w", RunStatus.RUNNING, "n"))
    try:
        SqliteRunStore(closed).load("parent")
    except Exception as error:
        assert "was closed" in str(error)
    else:
        os._exit(1)
    database.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
store.save(RunState("after", "w", RunStatus.RUNNING, "n"))
print(sorted(run.run_id for run in store.list_runs()))
"""


def test_after_a_fork_the_child_opens_anew_and_the_parent_goes_on(tmp_path):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(tmp_path / "runs.sqlite3")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.stdout.strip(), found.stderr) == ("['after', 'child', 'parent']", "")


FORGETS = """
import asyncio, sys
from abstractruntime.core.models import RunState, RunStatus
from abstractruntime.storage.sqlite import AsyncSqliteRunStore, SqliteDatabase, SqliteLedgerStore, SqliteRunStore
database = SqliteDatabase(sys.argv[1])
if sys.argv[2] == "async":
    asyncio.run(AsyncSqliteRunStore(database).save(RunState("r", "w", RunStatus.RUNNING, "n")))
else:
    SqliteRunStore(database).save(RunState("r", "w", RunStatus.RUNNING, "n"))
print("saved")
"""


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_a_program_that_forgets_to_close_ends_quietly(tmp_path, kind):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", FORGETS, str(tmp_path / "runs.sqlite3"), kind]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    told = [line for line in found.stderr.splitlines() if not line.startswith("Executing <")]  # a busy machine is slow
    assert (found.stdout, told, found.returncode) == ("saved\n", [], 0)


def test_the_ledger_twin_blocks_too(tmp_path):
    with SqliteDatabase(tmp_path / "runs.sqlite3") as database:
        assert SqliteLedgerStore(database).list("r") == []
