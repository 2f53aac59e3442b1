"""Opens a connection: pragmas, and the schema brought to this version by numbered migrations."""

from __future__ import annotations

import sqlite3
from typing import Literal

from ...core.errors import StoreError, StoreSchemaTooNew
from .failures import FROM_SQLITE, translated
from .statements import first, migrations, statements_of

Synchronous = Literal["FULL", "NORMAL"]

_MIGRATIONS = migrations()

#: what `PRAGMA user_version` says of a file that this version wrote
LATEST = _MIGRATIONS[-1][0]

#: pages of log before they are carried over into the file: two more flushes each time
CHECKPOINT_PAGES = 2_000
CACHE_KIB = 16_384
_STATEMENTS = 256

#: bytes that a log which was once longer keeps on the disk when it begins anew
_LOG_BYTES = 32 << 20


def open_connection(
    path: str,
    *,
    synchronous: Synchronous,
    busy_timeout: float,
    wal_autocheckpoint: int = CHECKPOINT_PAGES,
    cache_kib: int = CACHE_KIB,
) -> sqlite3.Connection:
    """A connection to the migrated database, in autocommit mode, usable from any one thread at a time.

    Several processes may open the same new file at once. Raises StoreSchemaTooNew for a file of a newer version,
    StoreCorrupt for what is no database, StoreBusy and StoreError where it cannot be opened.
    """
    try:
        connection = sqlite3.connect(
            path, timeout=busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
        )
    except FROM_SQLITE as error:
        raise translated(error, path) from error
    try:
        _use_wal(connection)
        for name, value in (
            ("synchronous", synchronous),
            ("wal_autocheckpoint", wal_autocheckpoint),
            ("journal_size_limit", _LOG_BYTES),
            ("cache_size", -cache_kib),
        ):
            connection.execute(f"PRAGMA {name} = {value}")
        _migrate(connection, path)
    except BaseException as error:
        connection.close()
        meaning = translated(error, path)
        if meaning is error:
            raise
        raise meaning from error
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. While another process does the same SQLite refuses at once instead of waiting."""
    for _ in range(100):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY:
                raise
        connection.execute("BEGIN IMMEDIATE")  # waits for whoever is at it, as long as busy_timeout
        connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    if check_version(connection, path) == LATEST:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection, path)  # another process may have been faster
        if version == 0 and first(connection, "SELECT 1 FROM sqlite_master WHERE name IN ('runs', 'ledger')"):
            raise StoreError(
                f"{path}: found tables named runs or ledger that this package did not make. "
                "Open a path of its own; what the old file holds is untouched."
            )
        for number, script in _MIGRATIONS:
            if number > version:
                for statement in statements_of(script):
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {LATEST}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The version of the schema in the file. Raises StoreSchemaTooNew."""
    version: int = first(connection, "PRAGMA user_version")
    if version > LATEST:
        raise StoreSchemaTooNew(
            f"{path}: schema version {version} was written by a newer version of the package; this one reads up to "
            f"{LATEST}. Upgrade abstractruntime."
        )
    return version
