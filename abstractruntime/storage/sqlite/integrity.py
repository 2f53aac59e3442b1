"""Whether a database is whole: what SQLite finds, and whether all that it holds can be read and agrees."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from threading import Event

from ...core.codec import decode_records, decode_run
from ...core.errors import StoreCorrupt
from ...core.models import RunState
from .failures import FROM_SQLITE, translated
from .statements import QUERIES, first
from .writes import identity_row, rest_at, wait_row

_RUNS_THAT_MISCOUNT = QUERIES["runs_that_miscount"]
_ALL_STATES = QUERIES["all_states"]
_ALL_RECORDS = QUERIES["all_records"]
_WAIT_OF_RUN = QUERIES["wait_of_run"]
_RECORDS_NEWEST_FIRST = QUERIES["records_newest_first"]

#: problems that are told
_TOLD = 10

#: steps of SQLite's machine between two looks at whether to stop
_STEPS = 10_000


def stop_at(connection: sqlite3.Connection, stop: Event) -> None:
    """Let a statement of this connection that is under way end with an error when `stop` is set."""
    connection.set_progress_handler(stop.is_set, _STEPS)


def check(connection: sqlite3.Connection, path: str, *, full: bool) -> None:
    """Raise StoreCorrupt with what is wrong.

    `full` also compares tables with their indexes, reads every state and every record, and compares them with the
    columns beside them and with each other.
    """
    try:
        rows = connection.execute(f"PRAGMA {'integrity_check' if full else 'quick_check'}({_TOLD})").fetchall()
        found = [text for (text,) in rows if text != "ok"]
        if full and not found:
            for (run_id,) in connection.execute(_RUNS_THAT_MISCOUNT, (_TOLD,)):
                found.append(f"the state of run {run_id!r} counts other records than its ledger has")
            found += islice(_unreadable(connection), _TOLD)
    except FROM_SQLITE as error:
        raise translated(error, path) from error
    if found:
        raise StoreCorrupt(f"{path}: the database is damaged. Restore it from a backup. Found: {'; '.join(found)}")


def _unreadable(connection: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with each state and ledger."""
    for run_pk, run_id, head, data, *columns in connection.execute(_ALL_STATES):
        try:
            run = decode_run(data, run_id)
        except StoreCorrupt as error:
            yield str(error)
            continue
        wait = connection.execute(_WAIT_OF_RUN, (run_pk,)).fetchone()
        if run.root_run_id is None:
            run.root_run_id = columns[-1]  # which a migration has found for a run of an older version
        said = (run.run_id, run.revision, str(run.status), rest_at(run), run.owner, run.tokens, *identity_row(run))
        if said != (run_id, *columns) or wait != _told_wait(run_pk, run):
            yield f"the columns of run {run_id!r} say something else than its data"
        last = first(connection, _RECORDS_NEWEST_FIRST, (run_pk,))
        if head is not None and (last is None or _last_hash(last, run_id) not in (head, None)):
            yield f"the chain of run {run_id!r} does not end where its state says"
    for run_id, count, data in connection.execute(_ALL_RECORDS):
        try:
            records = decode_records(data, run_id)
        except StoreCorrupt as error:
            yield str(error)
            continue
        if len(records) != count or any(record.run_id != run_id for record in records):
            yield f"the ledger of run {run_id!r} has a row with other records than it counts"


def _told_wait(run_pk: int, run: RunState) -> tuple[object, ...] | None:
    """The row of the wait but for `since`, which older versions did not write."""
    row = wait_row(run_pk, run)
    return None if row is None else row[:-1]


def _last_hash(data: bytes, run_id: str) -> str | None:
    try:
        return decode_records(data, run_id)[-1].record_hash
    except StoreCorrupt:  # it is told as such
        return None
