"""The border to sqlite3: what its errors mean for a store."""

from __future__ import annotations

import sqlite3

from ...core.errors import StoreBusy, StoreCorrupt, StoreError

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk could not be read or written; check it and the permissions of the folder",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only; SQLite also writes -wal and -shm files beside it",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check that the folder exists and may be written to",
    sqlite3.SQLITE_PERM: "the file may not be opened; check its permissions",
    sqlite3.SQLITE_TOOBIG: "a value is larger than SQLite can store; keep it in an artifact",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
}


def translated(error: BaseException, path: str) -> BaseException:
    """The `StoreError` that says what an error of sqlite3 means for this file; any other error as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    found: StoreError
    if primary in _BUSY:
        found = StoreBusy(
            f"{path}: another process kept the database locked for longer than busy_timeout ({error}). Nothing was "
            "written. Look for a process that holds a transaction open, or raise busy_timeout."
        )
    elif primary in _CORRUPT:
        found = StoreCorrupt(f"{path}: this is no readable SQLite database ({error}). Restore it from a backup.")
    else:
        advice = _ADVICE.get(primary or 0, "the database refused it")
        found = StoreError(f"{path}: {advice} ({error}{f', code {code}' if code else ''}).")
    found.__cause__ = error
    return found
