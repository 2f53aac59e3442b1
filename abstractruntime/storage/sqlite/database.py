"""One SQLite file: opened when it is first used, shared by the stores that are made on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from ...core import portal
from ...core.errors import StoreClosed, StoreError
from . import backup, integrity
from .backend import SqliteBackend
from .batch import Reader, Writer
from .checkpoints import Checkpoint, LogKeeper, Mode, check_mode, checkpoint
from .chores import Chores
from .failures import translated_os
from .lane import Lane
from .locks import OwnerLocks
from .schema import CACHE_KIB, CHECKPOINT_PAGES, Synchronous, open_connection
from .watch import Place, Watch

T = TypeVar("T")

_MEMORY = ":memory:"

#: seconds that a checkpoint waits for others; it holds up writers meanwhile
_CHECKPOINT_WAITS = 1.0

#: what the numbers among the options may be
_LEAST_AND_MOST = {
    "busy_timeout": (0, 86_400),
    "wal_autocheckpoint": (0, 1_000_000),
    "cache_kib": (64, 1 << 24),
    "readers": (1, 64),
}


class SqliteDatabase:
    """A database file for runs and ledgers; `~` is expanded and the folder made.

    Nothing is opened before the first use. One connection writes and `readers` read, each in a daemon thread, for all
    event loops and threads of the process; other processes may use the same file.

    With `synchronous="FULL"` (default) a commit has reached the disk when it returns. `"NORMAL"` is faster and
    survives the death of the process, but when the machine loses power the last commits may be gone: an effect that
    was performed may then be performed again, and an answer that was acknowledged be asked for again.

    `busy_timeout` is how many seconds a write waits for another process before it raises StoreBusy. Every
    `wal_autocheckpoint` pages of 4 KiB the write-ahead log is carried over into the file; 0 leaves that to
    `checkpoint()`. `cache_kib` is the memory for pages, per connection.

    What goes wrong below is a StoreError that names the file, the cause and the next step (see `core.errors`); none
    ends a run, and the object goes on when the cause is gone. Only a file that was deleted or replaced needs a new one.

    `":memory:"` is a database of this object alone. Use it as a context manager, sync or async, or call `close()`;
    a program that forgets to still ends.

    >>> with SqliteDatabase("~/runs.sqlite3") as database:  # doctest: +SKIP
    ...     store = SqliteRunStore(database)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 30.0,
        wal_autocheckpoint: int = CHECKPOINT_PAGES,
        cache_kib: int = CACHE_KIB,
        readers: int = 1,
    ) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f'synchronous must be "FULL" or "NORMAL", found {synchronous!r}.')
        _check_number("busy_timeout", busy_timeout, int | float)
        _check_number("wal_autocheckpoint", wal_autocheckpoint)
        _check_number("cache_kib", cache_kib)
        _check_number("readers", readers)
        in_memory = str(path) == _MEMORY
        self.path = _MEMORY if in_memory else str(_absolute(path))
        self._closed = False
        self._chores = Chores(self.path)
        connect = partial(
            open_connection,
            self.path,
            synchronous=synchronous,
            busy_timeout=busy_timeout,
            wal_autocheckpoint=wal_autocheckpoint,
            cache_kib=cache_kib,
        )
        writes, reads = Writer(self.path), Reader(self.path)
        if in_memory:
            self._connect: Callable[[], sqlite3.Connection] = connect
            writer = Lane(f"sqlite-writer {self.path}", connect, writes)
            lanes: tuple[Lane, ...] = (writer,)
        else:
            place = Place(self.path, check_log=synchronous == "FULL")
            self._connect = partial(place.open, partial(_connect, self.path, connect))
            watch = Watch(place, self._connect, writes, LogKeeper(self.path, wal_autocheckpoint))
            writer = Lane(f"sqlite-writer {self.path}", watch.connect, watch.run)
            watches = [Watch(place, partial(_connect_reader, self._connect), reads) for _ in range(readers)]
            lanes = tuple(
                Lane(f"sqlite-reader-{number} {self.path}", watch.connect, watch.run)
                for number, watch in enumerate(watches)
            )
        self._lanes = {writer, *lanes}
        locks = None if in_memory else OwnerLocks(Path(f"{self.path}-owners"))
        #: what the runtime commits to
        self.backend = SqliteBackend(writer, lanes, locks)

    def connection(self) -> sqlite3.Connection:
        """A new plain `sqlite3` connection to the file, for SQL of your own; yours to close.

        Rows are `sqlite3.Row`. Raises StoreError for `":memory:"`, which has one connection only, and StoreClosed.
        """
        self._check_open()
        if self.path == _MEMORY:
            raise StoreError('":memory:" has no second connection. Use a file, for instance in a temporary folder.')
        connection = self._connect()
        connection.row_factory = sqlite3.Row
        return connection

    # -- looking after the file

    async def acheckpoint(self, mode: Mode = "PASSIVE") -> Checkpoint:
        """Carry the write-ahead log over into the file; how far that came.

        `"PASSIVE"` moves what it can and waits for nobody. `"FULL"` waits for writers and readers, so that everything
        is moved; `"RESTART"` also for the log to be begun anew by the next commit, and `"TRUNCATE"` empties it at
        once. These hold up writers and wait for a second at most; `busy` then says that somebody was in the way.
        """
        check_mode(mode)
        if self.path == _MEMORY:  # it has no log
            self._check_open()
            return Checkpoint(busy=False, log_pages=0, moved_pages=0)

        def work(connection: sqlite3.Connection, stop: Event) -> Checkpoint:
            connection.execute(f"PRAGMA busy_timeout = {int(_CHECKPOINT_WAITS * 1000)}")
            return checkpoint(connection, mode, self.path)

        return await self._beside(work)

    def checkpoint(self, mode: Mode = "PASSIVE") -> Checkpoint:
        """Like `acheckpoint`, and blocks until it is done."""
        return portal.call(self.acheckpoint, mode)

    async def abackup(self, target: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the database, as it is when the copying begins, to the file `target`; its absolute path.

        The runtimes on it go on meanwhile, in this process and in others. The copy is one file that opens as a
        database; each run in it is whole, and nobody holds one: an effect that was in flight is performed again, or as
        the policy says. It is checked and flushed before it appears under its name, all at once. Until it is done the
        write-ahead log cannot be begun anew, so there must be room for what is written meanwhile.

        Raises FileExistsError for a file that is there, unless `overwrite`; StoreCorrupt when the database is damaged,
        and then leaves the target as it was, as with every error; StoreFull, StoreReadOnly, StoreError of the target.
        A process that is killed may leave a hidden `.part` file behind.
        """
        goal = _absolute(target)
        if self.path == _MEMORY:
            self.connection()  # says why not

        def work(connection: sqlite3.Connection, stop: Event) -> Path:
            backup.check_target(self.path, goal, overwrite=overwrite)
            backup.back_up(connection, self.path, goal, overwrite=overwrite, stop=stop)
            return goal

        return await self._beside(work)

    def backup(self, target: str | Path, *, overwrite: bool = False) -> Path:
        """Like `abackup`, and blocks until it is done."""
        return portal.call(self.abackup, target, overwrite=overwrite)

    async def acheck(self, *, full: bool = False) -> None:
        """Read the whole file and raise StoreCorrupt with what is damaged.

        With `full` the indexes are compared with their tables too, and the states of runs with their ledgers; that
        takes several times as long. The runtimes on it go on meanwhile.
        """
        if self.path == _MEMORY:
            await self.backend.read(partial(integrity.check, path=self.path, full=full))
            return

        def work(connection: sqlite3.Connection, stop: Event) -> None:
            integrity.stop_at(connection, stop)
            integrity.check(connection, self.path, full=full)

        await self._beside(work)

    def check(self, *, full: bool = False) -> None:
        """Like `acheck`, and blocks until it is done."""
        portal.call(self.acheck, full=full)

    # -- closing

    async def aclose(self) -> None:
        """Finish what was begun and close the file; a backup or check under way is stopped.

        Later use raises StoreClosed; closing again does nothing.
        """
        self._closed = True
        await self._chores.close()
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

    async def _beside(self, work: Callable[[sqlite3.Connection, Event], T]) -> T:
        """Do long work on a connection and in a thread of its own, beside the lanes."""
        self._check_open()

        def on_a_connection(stop: Event) -> T:
            with closing(self._connect()) as connection:
                return work(connection, stop)

        return await self._chores.run(on_a_connection)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"{self.path} was closed. Make a new SqliteDatabase.")


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _check_number(name: str, value: Any, kind: Any = int) -> None:
    least, most = _LEAST_AND_MOST[name]
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:  # NaN is not
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what} from {least} to {most}, found {value!r}.")


def _connect(path: str, connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translated_os(error, path, "its folder cannot be made") from error
    return connect()


def _connect_reader(connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    connection = connect()
    connection.execute("PRAGMA query_only = ON")
    return connection
