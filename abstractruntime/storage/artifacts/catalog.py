"""The catalog: what the metadata files said when they were last read, in one SQLite file.

It spares a process that lists for the first time the reading of every file. It is never trusted further than that:
each row is checked, and compared with the stamp of its file; whatever differs is read from the file. So a catalog that
is missing, damaged, behind or written by another process costs time and nothing else.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

from ...core.errors import StoreCorrupt
from .disk import META
from .metas import Look, Seen, decode_meta, encode_meta, look
from .models import ArtifactMetadata

log = logging.getLogger("abstractruntime.storage.artifacts")

#: seconds to wait for another process; after that the rows are written another time
_BUSY_SECONDS = 5.0

#: errors that say nothing of the file's content
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
}

_CREATE = (
    "CREATE TABLE IF NOT EXISTS artifacts "
    "(artifact_id TEXT PRIMARY KEY, stamp TEXT NOT NULL, meta BLOB NOT NULL) WITHOUT ROWID"
)
_READ = "SELECT artifact_id, stamp, meta FROM artifacts"
_PUT = "INSERT OR REPLACE INTO artifacts (artifact_id, stamp, meta) VALUES (?, ?, ?)"
_DROP = "DELETE FROM artifacts WHERE artifact_id = ?"


class Catalog:
    """What is known of all artifacts in a folder of metadata files. Thread-safe.

    A connection is opened when there is something to read or write, and closed at once.
    """

    def __init__(self, path: Path, refs: Path) -> None:
        self._path, self._refs = path, refs
        self._lock = threading.Lock()
        self._known: dict[str, Seen] | None = None
        self._told: dict[str, str] = {}

    def metas(self) -> list[ArtifactMetadata]:
        """The metadata of all artifacts as it is now; damaged files are left out, and told of in the log."""
        with self._lock:
            known = self._stored() if self._known is None else self._known
            found = look(self._refs, known)
            self._tell(found)
            self._store(known, found.seen)
            self._known = found.seen
            return [seen.meta for seen in found.seen.values()]

    def rebuild(self) -> int:
        """Forget everything and read every metadata file again; how many artifacts there are."""
        with self._lock:
            self._discard()
            self._known = {}
        return len(self.metas())

    def _tell(self, found: Look) -> None:
        problems = {name: str(error) for name, error in found.damaged.items()}
        for name, problem in problems.items():
            if self._told.get(name) != problem:
                log.warning("Left out of lists: %s", problem)
        self._told = problems

    def _stored(self) -> dict[str, Seen]:
        """What the catalog holds and can be trusted with."""
        if not self._path.exists():
            return {}
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection:
                rows = connection.execute(_READ).fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self._failed(error)
            return {}
        try:
            return {name: Seen(stamp, decode_meta(data, self._refs / f"{name}{META}")) for name, stamp, data in rows}
        except StoreCorrupt:
            self._failed("a row is damaged")
            return {}

    def _store(self, before: dict[str, Seen], now: dict[str, Seen]) -> None:
        """Write what changed since the rows were read or written."""
        changed = {name: seen for name, seen in now.items() if before.get(name) != seen}
        gone = before.keys() - now.keys()
        if not (changed or gone):
            return
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")  # what a power failure spoils is made anew
                connection.execute(_CREATE)
                connection.executemany(_DROP, [(name,) for name in gone])
                rows = [(name, seen.stamp, encode_meta(seen.meta)) for name, seen in changed.items()]
                connection.executemany(_PUT, rows)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self._failed(error)

    def _failed(self, problem: object) -> None:
        """A busy or full disk costs the next process time; a damaged file goes, so that the next is a sound one."""
        log.warning("%s: the catalog could not be used (%s); the metadata files are read instead.", self._path, problem)
        if getattr(problem, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
            self._discard()

    def _discard(self) -> None:
        for suffix in ("", "-journal"):
            with suppress(OSError):
                Path(f"{self._path}{suffix}").unlink()
