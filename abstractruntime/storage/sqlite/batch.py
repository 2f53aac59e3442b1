"""Group commit: whatever queued up while the last flush was on its way shares the next one.

A batch of steps, which is what a busy runtime writes, is one statement that begins, writes and flushes by itself. Any
other batch is first tried whole in a transaction, with as few statements as there are kinds of writes. If a guard
fails or anything raises, it is taken back and done again member by member, each in a savepoint, so that only the
culprit fails.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ...core.errors import StoreUnclear
from ..base import Write
from ..listing import attempt_due
from .due import stir
from .failures import FROM_SQLITE, commit_failed, given_up, translated
from .messages import register
from .statements import MOST_FILLED, QUERIES, first, write_filled, write_rows
from .writes import identity_row, next_run_id, rest_at, stand, store, wait_row

log = logging.getLogger("abstractruntime.storage.sqlite")

_ID_OF_RUN = QUERIES["id_of_run"]
_INSERT_RUNS = QUERIES["insert_runs"]
_INSERT_STATES = QUERIES["insert_states"]
_LAND_STEPS = QUERIES["land_steps"]
_LAND_RECORDS = QUERIES["land_records"]
_REPLACE_STATE = QUERIES["replace_state"]
_INSERT_LEDGER = QUERIES["insert_ledger"]
_DELETE_WAITS = QUERIES["delete_waits"]
_INSERT_WAITS = QUERIES["insert_waits"]
_DELETE_REQUESTS = QUERIES["delete_requests"]

#: one operation: a `Write`, or a function that is run whole in the connection's thread
Operation = Write | Callable[[sqlite3.Connection], Any]

#: how many integers of runs are remembered
_REMEMBERED = 100_000


class Failed:
    """The outcome of an operation that raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _NotWhole(Exception):
    """A guard failed somewhere; which one is found out member by member."""


class Reader:
    """Runs a batch of reading operations on one snapshot of the database."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        """The outcome of each operation, in order."""
        try:
            connection.execute("BEGIN")
        except FROM_SQLITE as error:
            return [Failed(translated(error, self._path)) for _ in operations]
        outcomes = [attempt(connection, operation, self._path) for operation in operations]
        connection.rollback()
        return outcomes


class Writer:
    """Runs a batch of writing operations in one transaction. Used by one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids: dict[str, int] = {}
        self._found: dict[str, int] = {}

    def __call__(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        """The outcome of each operation, in order: durable when this returns."""
        self._found = {}
        try:
            steps = _steps_alone(operations)
            outcomes = (steps and self._landed(connection, steps)) or self._applied(connection, operations)
        except FROM_SQLITE as error:  # not even the transaction or a savepoint could be had: nothing was done
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return [Failed(translated(error, self._path)) for _ in operations]
        if not connection.in_transaction:  # a statement of steps that is done, or SQLite itself gave up the whole
            return outcomes
        try:
            connection.execute("COMMIT")
        except FROM_SQLITE as error:
            self._ids.clear()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return self._commit_failed(outcomes, error)
        self._remember()
        return outcomes

    def _landed(self, connection: sqlite3.Connection, steps: Sequence[Write]) -> list[Any] | None:
        """All the steps as one statement that is its own transaction; None where nothing of it was written."""
        outcomes = [None] * len(steps)
        try:
            self._land(connection, steps)
        except _NotWhole:
            return None
        except FROM_SQLITE as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code == sqlite3.SQLITE_IOERR and isinstance(commit_failed(error, self._path), StoreUnclear):
                return self._commit_failed(outcomes, error)  # perhaps it was only the flush that failed
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):  # it has waited for long enough
                raise
            return None
        except (OverflowError, UnicodeError, ValueError):  # a value that cannot be bound
            return None
        self._remember()
        return outcomes

    def _commit_failed(self, outcomes: Sequence[Any], error: Exception) -> list[Any]:
        log.error("%s: a commit of %d writes failed: %s", self._path, len(outcomes), error)
        return [
            outcome if isinstance(outcome, Failed) else Failed(commit_failed(error, self._path)) for outcome in outcomes
        ]

    def _applied(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            return self._whole(connection, operations)
        except Exception:  # whatever it is, member by member shows whose it is
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self._found = {}
        connection.execute("BEGIN IMMEDIATE")
        return self._one_by_one(connection, operations)

    def _whole(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        writes = [operation for operation in operations if isinstance(operation, Write) and _is_plain(operation)]
        if writes:
            self._write_all(connection, writes)
        if len(writes) == len(operations):
            return [None] * len(operations)
        outcomes: list[Any] = []
        for operation in operations:
            done = isinstance(operation, Write) and _is_plain(operation)
            outcomes.append(None if done else self._in_savepoint(connection, operation))
            if not connection.in_transaction:  # SQLite gave it up, and with it what was written before
                raise _NotWhole
        return outcomes

    def _one_by_one(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        outcomes: list[Any] = []
        for operation in operations:
            outcomes.append(self._in_savepoint(connection, operation))
            if not connection.in_transaction:
                return [Failed(given_up(outcomes[-1].error, self._path)) for _ in operations]
        return outcomes

    def _in_savepoint(self, connection: sqlite3.Connection, operation: Operation) -> Any:
        connection.execute("SAVEPOINT member")
        outcome = attempt(connection, operation, self._path)
        if connection.in_transaction:
            if isinstance(outcome, Failed):
                connection.execute("ROLLBACK TO member")
            connection.execute("RELEASE member")
        return outcome

    def _write_all(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
        """All writes with one statement per kind, or `_NotWhole`. Two of one run land in their order, or not here."""
        steps: list[Write] = []
        ledger: list[tuple[Any, ...]] = []
        landings: list[tuple[Any, ...]] = []
        full: list[tuple[int, Write]] = []
        born: list[Write] = []
        for write in writes:
            if write.expected is None:
                born.append(write)
                continue
            if write.hot:
                steps.append(write)
                continue
            run, base = write.run, write.expected_records
            run_pk = self._ids.get(run.run_id) or self._look_up(connection, run.run_id)
            if write.landing:
                landings.append((base + write.count, run.chain_head, run_pk, write.expected, base))
            else:
                full.append((run_pk, write))
            if write.count:
                ledger.append((run_pk, base + 1, write.count, write.lookup_key, write.records))
        for start in range(0, len(steps), MOST_FILLED):
            self._land(connection, steps[start : start + MOST_FILLED])
        if landings and connection.executemany(_LAND_RECORDS, landings).rowcount != len(landings):
            raise _NotWhole
        if full:
            if len({run_pk for run_pk, _ in full}) != len(full):  # the wait of one must not survive the other
                raise _NotWhole
            self._replace_all(connection, full)
        if born:
            self._insert_all(connection, born, ledger)
        if ledger:
            write_rows(connection, _INSERT_LEDGER, ledger)
        for write in writes:
            for request in write.requests:
                stand(connection, request)

    def _land(self, connection: sqlite3.Connection, steps: Sequence[Write]) -> None:
        """Steps as one statement. Raises when a guard fails; nothing of the statement is stored then."""
        values: list[Any] = []
        known = self._ids
        for write in steps:
            run = write.run
            run_pk = known.get(run.run_id) or self._look_up(connection, run.run_id)
            if run.revision - 1 != write.expected or write.answered:  # not what the statement's guard says
                raise _NotWhole
            values += (
                run_pk,
                run.revision,
                write.expected_records,
                write.count,
                write.lookup_key or "",
                run.chain_head or "",
                run.tokens,
                bytearray(write.data),
                bytearray(write.records),
            )
        write_filled(connection, _LAND_STEPS, values, len(steps))

    def _replace_all(self, connection: sqlite3.Connection, writes: Sequence[tuple[int, Write]]) -> None:
        rows, waits = [], []
        for run_pk, write in writes:
            run, base = write.run, write.expected_records
            new = (
                run.revision,
                base + write.count,
                str(run.status),
                rest_at(run),
                run.owner,
                write.data,
                run.chain_head,
                run.tokens,
                attempt_due(run),
            )
            rows.append((*new, run_pk, write.expected, base, write.answered))
            wait = wait_row(run_pk, run)
            if wait is not None:
                waits.append(wait)
        if connection.executemany(_REPLACE_STATE, rows).rowcount != len(rows):
            raise _NotWhole
        connection.executemany(_DELETE_WAITS, [(run_pk,) for run_pk, _ in writes])
        self._register_all(connection, waits, writes)
        answered = [(run_pk,) for run_pk, write in writes if write.answered]
        if answered:
            connection.executemany(_DELETE_REQUESTS, answered)

    def _insert_all(
        self, connection: sqlite3.Connection, writes: Sequence[Write], ledger: list[tuple[Any, ...]]
    ) -> None:
        runs, states, waits = [], [], []
        for run_pk, write in enumerate(writes, next_run_id(connection)):
            run = write.run
            self._found[run.run_id] = run_pk
            runs.append((run_pk, run.run_id, *identity_row(run)))
            state = (run_pk, run.revision, write.count, str(run.status), rest_at(run), run.owner, write.data)
            states.append((*state, run.chain_head, run.tokens, attempt_due(run)))
            wait = wait_row(run_pk, run)
            if wait is not None:
                waits.append(wait)
            if write.count:
                ledger.append((run_pk, 1, write.count, write.lookup_key, write.records))
        write_rows(connection, _INSERT_RUNS, runs)
        write_rows(connection, _INSERT_STATES, states)
        self._register_all(connection, waits, [(self._found[write.run.run_id], write) for write in writes])

    def _register_all(
        self, connection: sqlite3.Connection, waits: Sequence[Sequence[Any]], writes: Sequence[tuple[int, Write]]
    ) -> None:
        write_rows(connection, _INSERT_WAITS, waits)
        for run_pk, write in writes:
            if write.run.waiting is not None:
                register(connection, run_pk, write.run)
                stir(connection, run_pk, write.run)

    def _look_up(self, connection: sqlite3.Connection, run_id: str) -> int:
        run_pk: int | None = first(connection, _ID_OF_RUN, (run_id,))
        if run_pk is None:
            raise _NotWhole
        self._found[run_id] = run_pk
        return run_pk

    def _remember(self) -> None:
        """Only what is durable: an integer of a transaction that was rolled back is given to another run."""
        if not self._found:
            return
        self._ids.update(self._found)
        while len(self._ids) > _REMEMBERED:
            del self._ids[next(iter(self._ids))]


def _is_plain(write: Write) -> bool:
    """Whether it writes one run and nothing else but requests."""
    return not (write.also or write.messages)


def _steps_alone(operations: Sequence[Operation]) -> list[Write] | None:
    """The operations, if they are steps and no more than one statement takes."""
    steps = [operation for operation in operations if type(operation) is Write and operation.hot]
    return steps if len(steps) == len(operations) <= MOST_FILLED else None


def attempt(connection: sqlite3.Connection, operation: Operation, path: str) -> Any:
    """What the operation returns, or `Failed` with the error as a store means it."""
    try:
        return store(connection, operation) if isinstance(operation, Write) else operation(connection)
    except Exception as error:  # a boundary between threads: it is raised again where the operation is awaited
        return Failed(translated(error, path))
