"""The baselines of steps: plain sqlite3 and a plain dict, given what the runtime really wrote.

The raw SQLite writer gets the same rows with the same bytes, on a copy of the same file, in the same batches, with
the same guards. It is one thread without a loop, and everything it writes lies ready before its clock starts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from abstractruntime import InMemoryLedgerStore, InMemoryRunStore, RunState, SqliteDatabase, StepRecord
from abstractruntime.core.backend import Write
from abstractruntime.storage.sqlite.batch import Operation
from abstractruntime.storage.sqlite.schema import open_connection

from .workload import Spent, Stopwatch

_STATE = """
UPDATE states SET revision = ?, records = ?, data = ?
WHERE id = ? AND revision = ? AND records = ? AND requested = 0
"""
_LEDGER = "INSERT INTO ledger (run, seq, count, lookup_key, data) VALUES (?, ?, ?, ?, ?)"

#: (run id, revision, records before, records added, lookup key, data of the state, data of the records)
Written = tuple[str, int, int, int, str | None, bytes, bytes]


class Recorder:
    """Notes every batch of steps that a database commits from now on."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.batches: list[list[Written]] = []
        lane = database.backend._writer  # the one place where the size of a batch is known
        self._run_batch = lane._run_batch
        lane._run_batch = self

    def __call__(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        """Run the batch as ever."""
        steps = [_written(operation) for operation in operations if isinstance(operation, Write)]
        if steps:
            self.batches.append(steps)
        return self._run_batch(connection, operations)

    @property
    def data_bytes(self) -> int:
        """Bytes of all records that were committed."""
        return sum(len(step[-1]) for batch in self.batches for step in batch)


def _written(write: Write) -> Written:
    assert write.hot, "a step of the workload changes nothing but revision, records and data"
    before, run = write.expected_records, write.run
    return run.run_id, run.revision, before, write.count, write.lookup_key, write.data, write.records


def copy(database: SqliteDatabase, path: Path) -> None:
    """Copy the database as it is now, page by page, into a new file."""
    source, target = database.connection(), sqlite3.connect(path)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()


def write_to_sqlite(path: Path, batches: Sequence[Sequence[Written]], steps: int) -> Spent:
    """Write the batches, which are the work of so many steps, with plain sqlite3; nothing else is in its way."""
    connection = open_connection(str(path), synchronous="FULL", busy_timeout=30.0)
    try:
        keys: dict[str, int] = dict(connection.execute("SELECT run_id, id FROM runs").fetchall())
        prepared = [
            ([_state(keys, step) for step in batch], [_ledger(keys, step) for step in batch]) for batch in batches
        ]
        with Stopwatch() as watch:
            for states, ledger in prepared:
                connection.execute("BEGIN IMMEDIATE")
                if connection.executemany(_STATE, states).rowcount != len(states):
                    raise AssertionError("a guard failed: the copy is not where the runtime was")
                connection.executemany(_LEDGER, ledger)
                connection.execute("COMMIT")
    finally:
        connection.close()
    return watch.spent(steps)


def write_to_dict(runs: InMemoryRunStore, ledgers: InMemoryLedgerStore, ids: Sequence[str], steps: int) -> Spent:
    """Encode states and records like those in the stores, once per commit of so many steps, and keep the bytes."""
    encode = msgspec.json.Encoder().encode
    commits: list[tuple[str, RunState, list[StepRecord]]] = []
    for run_id in ids:
        run = runs.load(run_id)
        assert run is not None
        written = [msgspec.json.decode(data, type=list[StepRecord]) for data in ledgers._ledgers[run_id]]
        commits += [(run_id, run, some) for some in written]
    states: dict[str, bytes] = {}
    records: dict[str, list[bytes]] = {run_id: [] for run_id in ids}
    with Stopwatch() as watch:
        for run_id, run, some in commits:
            states[run_id] = encode(run)
            records[run_id].append(encode(some))
    return watch.spent(steps)


def _state(keys: dict[str, int], step: Written) -> tuple[Any, ...]:
    run_id, revision, before, added, _, data, _ = step
    return revision, before + added, data, keys[run_id], revision - 1, before


def _ledger(keys: dict[str, int], step: Written) -> tuple[Any, ...]:
    run_id, _, before, added, lookup_key, _, records = step
    return keys[run_id], before + 1, added, lookup_key, records
