"""Notices that the file is not the one that was opened: deleted, replaced, or taken over by a newer version.

SQLite goes on writing to a file that has no name any more, and all of it would be lost. So before a batch, at most
once in `LOOK_EVERY` seconds per connection, a lane looks whether its path still leads to the file it opened. What is
promised: a batch that begins later than that after the file was deleted or replaced is refused with StoreVanished.
Commits that were acknowledged in between went to the old file and are lost with it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ...core.clock import SYSTEM_CLOCK, Clock
from ...core.errors import StoreError, StoreFull
from .batch import Failed, Operation
from .checkpoints import LogKeeper
from .failures import FROM_SQLITE, check_writable, translated, translated_os, vanished
from .schema import check_version
from .wal import check_log

#: seconds between two looks at the file
LOOK_EVERY = 1.0

Identity = tuple[int, int]

#: of a file that was deleted while it was opened
_NOWHERE = (-1, -1)


class Place:
    """Which file a database opened: the same for all its connections. Safe from any thread."""

    def __init__(self, path: str, *, check_log: bool) -> None:
        self.path = path
        self._check_log = check_log
        self._file: Identity | None = None

    def open(self, connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        """A connection to the very file that was opened first. Raises StoreVanished, and makes no file in its place."""
        self.check()
        check_writable(self.path)
        if self._file is None and self._check_log:
            check_log(self.path)
        connection = connect()
        if self._file is None:
            self._file = _identity(self.path) or _NOWHERE
        return connection

    def check(self) -> None:
        """Raise StoreVanished if the path does not lead to the file that was opened."""
        if self._file is not None and _identity(self.path) != self._file:
            raise vanished(self.path)


class Watch:
    """The `connect` and `run` of a lane, with a look at the file. Used by the lane's thread alone."""

    def __init__(
        self,
        place: Place,
        connect: Callable[[], sqlite3.Connection],
        run: Callable[[sqlite3.Connection, Sequence[Operation]], list[Any]],
        keeper: LogKeeper | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._place, self._connect, self._run, self._keeper, self._clock = place, connect, run, keeper, clock
        self._beside: dict[str, Identity] = {}
        self._next = 0.0

    def connect(self) -> sqlite3.Connection:
        """Open the connection, and remember the files that SQLite keeps beside the database while it is open."""
        connection = self._connect()
        names = (f"{self._place.path}-wal", f"{self._place.path}-shm")
        self._beside = {name: found for name in names if (found := _identity(name)) is not None}
        return connection

    def run(self, connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        """Run the batch, or refuse it whole when the file is not the one that was opened."""
        now = self._clock.monotonic()
        if now >= self._next:
            try:
                self._look(connection)
            except StoreError as error:  # and the next batch looks again
                return [Failed(error)] * len(operations)
            self._next = now + LOOK_EVERY
        outcomes = self._run(connection, operations)
        if self._keeper is not None and any(_is_full(outcome) for outcome in outcomes[:1]):
            self._keeper.make_room(connection)
        return outcomes

    def _look(self, connection: sqlite3.Connection) -> None:
        path = self._place.path
        self._place.check()
        if any(_identity(name) != found for name, found in self._beside.items()):
            raise vanished(path)
        try:
            check_version(connection, path)
        except FROM_SQLITE as error:
            raise translated(error, path) from error
        if self._keeper is not None:
            self._keeper.shorten(connection)


def _is_full(outcome: Any) -> bool:
    return isinstance(outcome, Failed) and isinstance(outcome.error, StoreFull)


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise translated_os(error, path) from error
    return found.st_dev, found.st_ino
