"""Whether a database is whole: what SQLite finds, and whether states and ledgers agree."""

from __future__ import annotations

import sqlite3
from threading import Event

from ...core.errors import StoreCorrupt
from .failures import translated
from .statements import QUERIES

_RUNS_THAT_MISCOUNT = QUERIES["runs_that_miscount"]

#: problems that are told
_TOLD = 10

#: steps of SQLite's machine between two looks at whether to stop
_STEPS = 10_000


def stop_at(connection: sqlite3.Connection, stop: Event) -> None:
    """Let a statement of this connection that is under way end with an error when `stop` is set."""
    connection.set_progress_handler(stop.is_set, _STEPS)


def check(connection: sqlite3.Connection, path: str, *, full: bool) -> None:
    """Raise StoreCorrupt with what is wrong. `full` also compares tables with their indexes, states with ledgers."""
    try:
        rows = connection.execute(f"PRAGMA {'integrity_check' if full else 'quick_check'}({_TOLD})").fetchall()
        found = [text for (text,) in rows if text != "ok"]
        if full and not found:
            for (run_id,) in connection.execute(_RUNS_THAT_MISCOUNT, (_TOLD,)):
                found.append(f"the state of run {run_id!r} counts other records than its ledger has")
    except sqlite3.Error as error:
        raise translated(error, path) from error
    if found:
        raise StoreCorrupt(f"{path}: the database is damaged. Restore it from a backup. Found: {'; '.join(found)}")
