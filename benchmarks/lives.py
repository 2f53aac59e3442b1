"""Starts and resumes per second on SQLite, beside plain sqlite3 that writes the same rows in as many commits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectType,
    RunState,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.storage.sqlite.batch import Operation
from abstractruntime.storage.sqlite.schema import open_connection

from . import raw
from .table import Row, row
from .workload import Spent, Stopwatch

_RUNS = 1000


def ask(run: RunState, ctx: object) -> StepPlan:
    """Wait for a person; the answer ends the run."""
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "done")


def done(run: RunState, ctx: object) -> StepPlan:
    """The end."""
    return StepPlan("done", complete_output={})


QUESTION: WorkflowSpec[Any] = WorkflowSpec("question", "ask", {"ask": ask, "done": done})


class _Commits:
    """Counts the commits of a database from now on."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.sizes: list[int] = []
        lane = database.backend._writer  # the one place where the size of a batch is known
        self._run_batch = lane._run_batch
        lane._run_batch = self

    def __call__(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        """Run the batch as ever."""
        self.sizes.append(len(operations))
        return self._run_batch(connection, operations)


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of starts and resumes."""
    runs = max(10, round(_RUNS * scale))
    found = [_lived(folder, runs) for _ in range(rounds)]
    for index, what in enumerate(("starts", "resumes")):
        pairs = [lived[index] for lived in found]
        rates = [(figure.rate, baseline.rate) for figure, baseline in pairs]
        yield row(f"{what}, SQLite FULL, {runs:,} runs at once", f"{what}/s", rates, "raw sqlite3, same rows")


def _lived(folder: Path, runs: int) -> list[tuple[Spent, Spent]]:
    with TemporaryDirectory(dir=folder) as name:
        return asyncio.run(_live(Path(name), runs))


async def _live(folder: Path, runs: int) -> list[tuple[Spent, Spent]]:
    database = SqliteDatabase(folder / "runtime.sqlite3")
    runtime = AsyncRuntime(run_store=AsyncSqliteRunStore(database), ledger_store=AsyncSqliteLedgerStore(database))
    async with database, runtime:
        await runtime.start(workflow=QUESTION)
        raw.copy(database, folder / "starts.sqlite3")
        commits = _Commits(database)
        with Stopwatch() as starting:
            ids = await asyncio.gather(*(runtime.start(workflow=QUESTION) for _ in range(runs)))
        start_sizes, commits.sizes = commits.sizes, []
        assert sum(start_sizes) == runs
        rows = _read(database, "SELECT * FROM runs WHERE id > 1"), _read(database, "SELECT * FROM states WHERE id > 1")
        raw_starts = _write_starts(folder / "starts.sqlite3", start_sizes, *rows)
        states = await asyncio.gather(*(runtime.tick(workflow=QUESTION, run_id=run_id) for run_id in ids))
        raw.copy(database, folder / "resumes.sqlite3")
        last = _read(database, "SELECT max(id) FROM ledger")[0][0]
        commits.sizes = []
        with Stopwatch() as resuming:
            await asyncio.gather(*(_answer(runtime, state) for state in states))
        ledger = _read(database, f"SELECT run, seq, count, data FROM ledger WHERE id > {last} ORDER BY run")
        after = _read(database, "SELECT id, revision, records, data FROM states WHERE id > 1 ORDER BY id")
        raw_resumes = _write_resumes(folder / "resumes.sqlite3", commits.sizes, after, ledger)
    return [(starting.spent(runs), raw_starts), (resuming.spent(runs), raw_resumes)]


async def _answer(runtime: AsyncRuntime, state: RunState) -> None:
    key = state.waiting.wait_key if state.waiting else None
    answer = {"text": "yes"}
    await runtime.resume(workflow=QUESTION, run_id=state.run_id, wait_key=key, payload=answer, max_steps=0)


def _read(database: SqliteDatabase, query: str) -> list[tuple[Any, ...]]:
    connection = database.connection()
    try:
        return [tuple(found) for found in connection.execute(query)]
    finally:
        connection.close()


def _batches(rows: Sequence[Any], sizes: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for size in sizes:
        yield rows[start : start + size]
        start += size


def _write_starts(path: Path, sizes: Sequence[int], runs: Sequence[Any], states: Sequence[Any]) -> Spent:
    insert_run = f"INSERT INTO runs VALUES ({', '.join('?' * len(runs[0]))})"
    insert_state = f"INSERT INTO states VALUES ({', '.join('?' * len(states[0]))})"
    connection = open_connection(str(path), synchronous="FULL", busy_timeout=30.0)
    with Stopwatch() as watch:
        for some_runs, some_states in zip(_batches(runs, sizes), _batches(states, sizes), strict=True):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert_run, some_runs)
            connection.executemany(insert_state, some_states)
            connection.execute("COMMIT")
    connection.close()
    return watch.spent(len(runs))


def _write_resumes(path: Path, sizes: Sequence[int], after: Sequence[Any], ledger: Sequence[Any]) -> Spent:
    update = """
    UPDATE states SET revision = ?, records = ?, status = 'running', rest_at = NULL, data = ?
    WHERE id = ? AND revision = ?
    """
    states = [(revision, records, data, run, revision - 1) for run, revision, records, data in after]
    connection = open_connection(str(path), synchronous="FULL", busy_timeout=30.0)
    with Stopwatch() as watch:
        for some, records in zip(_batches(states, sizes), _batches(ledger, sizes), strict=True):
            connection.execute("BEGIN IMMEDIATE")
            if connection.executemany(update, some).rowcount != len(some):
                raise AssertionError("a guard failed: the copy is not where the runtime was")
            connection.executemany("DELETE FROM waits WHERE run = ?", [(state[3],) for state in some])
            connection.executemany("INSERT INTO ledger (run, seq, count, data) VALUES (?, ?, ?, ?)", records)
            connection.execute("COMMIT")
    connection.close()
    return watch.spent(len(states))
