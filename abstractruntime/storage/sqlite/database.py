"""One SQLite file: opened when it is first used, shared by the stores that are made on it."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

from ...core import portal
from ...core.errors import StoreClosed, StoreError
from .backend import SqliteBackend
from .batch import Reader, Writer
from .lane import Lane
from .locks import OwnerLocks
from .schema import Synchronous, open_connection

#: connections that read; one serves a busy process, because a batch of reads is as cheap as one of writes
READERS = 1

_MEMORY = ":memory:"


class SqliteDatabase:
    """A database file for runs and ledgers; `~` is expanded and the folder made.

    Nothing is opened before the first use. One connection writes and others read, each in a daemon thread, for all
    event loops and threads of the process; other processes may use the same file. With `synchronous="FULL"` (default)
    a commit has reached the disk when it returns. `"NORMAL"` is faster and survives the death of the process, but the
    last commits may be lost when the machine loses power. `busy_timeout` is how many seconds a write waits for
    another process before it raises StoreBusy.

    `":memory:"` is a database of this object alone. Use it as a context manager, sync or async, or call `close()`;
    a program that forgets to still ends.

    >>> with SqliteDatabase("~/runs.sqlite3") as database:  # doctest: +SKIP
    ...     store = SqliteRunStore(database)
    """

    def __init__(self, path: str | Path, *, synchronous: Synchronous = "FULL", busy_timeout: float = 30.0) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f'synchronous must be "FULL" or "NORMAL", found {synchronous!r}.')
        in_memory = str(path) == _MEMORY
        self.path = _MEMORY if in_memory else str(Path(path).expanduser().absolute())
        self._connect = partial(_connect, self.path, synchronous, busy_timeout)
        self._closed = False
        writer = Lane(f"sqlite-writer {self.path}", self._connect, Writer(self.path))
        if in_memory:
            readers: tuple[Lane, ...] = (writer,)
        else:
            connect = partial(_connect_reader, self._connect)
            readers = tuple(
                Lane(f"sqlite-reader-{number} {self.path}", connect, Reader(self.path)) for number in range(READERS)
            )
        self._lanes = {writer, *readers}
        locks = None if in_memory else OwnerLocks(Path(f"{self.path}-owners"))
        #: what the runtime commits to
        self.backend = SqliteBackend(writer, readers, locks)

    def connection(self) -> sqlite3.Connection:
        """A new plain `sqlite3` connection to the file, for SQL of your own; yours to close.

        Rows are `sqlite3.Row`. Raises StoreError for `":memory:"`, which has one connection only, and StoreClosed.
        """
        if self._closed:
            raise StoreClosed(f"{self.path} was closed. Make a new SqliteDatabase.")
        if self.path == _MEMORY:
            raise StoreError('":memory:" has no second connection. Use a file, for instance in a temporary folder.')
        connection = self._connect()
        connection.row_factory = sqlite3.Row
        return connection

    async def aclose(self) -> None:
        """Finish what was begun and close the file. Later use raises StoreClosed; closing again does nothing."""
        self._closed = True
        for lane in self._lanes:
            await lane.close()

    def close(self) -> None:
        """Like `aclose`, and blocks until it is done."""
        if not self._closed:
            portal.call(self.aclose)

    def __enter__(self) -> SqliteDatabase:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    async def __aenter__(self) -> SqliteDatabase:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"SqliteDatabase({self.path!r})"


def _connect(path: str, synchronous: Synchronous, busy_timeout: float) -> sqlite3.Connection:
    if path != _MEMORY:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: its folder cannot be made ({error}).") from error
    return open_connection(path, synchronous=synchronous, busy_timeout=busy_timeout)


def _connect_reader(connect: partial[sqlite3.Connection]) -> sqlite3.Connection:
    connection = connect()
    connection.execute("PRAGMA query_only = ON")
    return connection
