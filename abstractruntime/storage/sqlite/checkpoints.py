"""Carrying the write-ahead log over into the file: by hand, and when it has grown too long.

SQLite itself carries the log over every `wal_autocheckpoint` pages, but begins the log anew only at a moment when
nobody reads from it. With readers that are always busy that moment may never come, and the log grows on. So the
writer looks at its size now and then, and when it is far too long makes such a moment: readers finish what they are
at and are kept waiting no longer than that.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from typing import Literal, get_args

from msgspec import Struct

from ...core.clock import SYSTEM_CLOCK, Clock
from .failures import FROM_SQLITE, translated
from .statements import first

log = logging.getLogger("abstractruntime.storage.sqlite")

Mode = Literal["PASSIVE", "FULL", "RESTART", "TRUNCATE"]

#: the log is far too long when it has this many times the pages after which it is carried over
_FAR_TOO_LONG = 4

#: milliseconds that the writer waits for readers to leave the log
_PATIENCE_MS = 50

#: seconds between two tries at most, while somebody stays in the log
_LONGEST_PAUSE = 60.0


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What a checkpoint did."""

    #: whether a reader or writer kept it from doing all that was asked
    busy: bool
    #: pages that the log holds
    log_pages: int
    #: pages of them that the file has as well
    moved_pages: int


def check_mode(mode: str) -> None:
    """Raise ValueError unless SQLite knows this kind of checkpoint."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; found {mode!r}.")


def checkpoint(connection: sqlite3.Connection, mode: Mode, path: str) -> Checkpoint:
    """Carry the log over into the file, on a connection that is in no transaction."""
    try:
        busy, log_pages, moved_pages = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    except FROM_SQLITE as error:
        raise translated(error, path) from error
    return Checkpoint(busy=bool(busy), log_pages=max(0, log_pages), moved_pages=max(0, moved_pages))


class LogKeeper:
    """Keeps the log short: `shorten` is called now and then on the writer's connection, between transactions."""

    def __init__(self, path: str, autocheckpoint: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path, self._clock = path, clock
        self._most_pages = autocheckpoint * _FAR_TOO_LONG
        self._pause, self._next = 0.0, 0.0

    def shorten(self, connection: sqlite3.Connection) -> None:
        """Begin the log anew if it is far too long; what keeps it from that is logged and tried again later."""
        now = self._clock.monotonic()
        if not self._most_pages or now < self._next or not self._is_too_long(connection):
            return
        busy = self._begin_anew(connection)
        self._pause = min(_LONGEST_PAUSE, max(1.0, self._pause * 2)) if busy else 0.0
        self._next = now + self._pause
        if busy:
            log.warning(
                "%s: the write-ahead log has more than %d pages and a reader stays in it; it grows until that ends",
                self._path,
                self._most_pages,
            )

    def make_room(self, connection: sqlite3.Connection) -> None:
        """The disk is full: give it back what the log has, for most of it is there twice."""
        if not self._begin_anew(connection):
            log.warning("%s: the disk is full; the write-ahead log was emptied to make some room", self._path)

    def _begin_anew(self, connection: sqlite3.Connection) -> bool:
        """Empty the log; True if somebody or something was in the way."""
        patience = first(connection, "PRAGMA busy_timeout")
        connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
        try:
            return bool(first(connection, "PRAGMA wal_checkpoint(TRUNCATE)"))
        except FROM_SQLITE as error:  # the next commit says what it means
            log.warning("%s: the write-ahead log could not be carried over: %s", self._path, error)
            return True
        finally:
            connection.execute(f"PRAGMA busy_timeout = {patience}")

    def _is_too_long(self, connection: sqlite3.Connection) -> bool:
        try:
            size = os.stat(f"{self._path}-wal").st_size
        except OSError:
            return False
        return size > self._most_pages * int(first(connection, "PRAGMA page_size"))
