"""Snapshots in a SQLite database, beside its runs or in one of their own."""

from __future__ import annotations

import logging
import sqlite3
from functools import partial

from ...core.errors import StoreCorrupt, StoreUnclear
from ...core.portal import drive
from ..base import checked_limit
from ..sqlite.database import SqliteDatabase
from ..sqlite.statements import QUERIES
from .base import SnapshotStore, snapshot_filter
from .model import Snapshot, StoredSnapshot, check_snapshot_id, stored

log = logging.getLogger("abstractruntime.storage")

_SAVE_SNAPSHOT = QUERIES["save_snapshot"]
_LOAD_SNAPSHOT = QUERIES["load_snapshot"]
_DELETE_SNAPSHOT = QUERIES["delete_snapshot"]
_SNAPSHOTS_BY_AGE = QUERIES["snapshots_by_age"]
_SNAPSHOTS_OF_RUN = QUERIES["snapshots_of_run"]


class AsyncSqliteSnapshotStore(SnapshotStore):
    """Snapshots in a SQLite database. Usable from any number of event loops at once.

    A row that cannot be read raises `StoreCorrupt` in `load`; `list` warns of it and gives the others.
    """

    def __init__(self, db: SqliteDatabase) -> None:
        self.db = db

    async def save(self, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`."""
        kept = stored(snapshot)
        told = kept.told()
        row = (told.snapshot_id, told.run_id, told.created_at, kept.about, kept.data)
        write = partial(_write, query=_SAVE_SNAPSHOT, parameters=row)
        try:
            await self.db.backend.write(write)
        except StoreUnclear:
            await self.db.backend.write(write)  # saving it twice does no harm
        snapshot.updated_at = told.updated_at

    async def load(self, snapshot_id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        found = await self.db.backend.read(partial(_stored, snapshot_id=check_snapshot_id(snapshot_id)))
        return None if found is None else found.whole()

    async def delete(self, snapshot_id: str) -> bool:
        """See `SnapshotStore.delete`."""
        parameters = (check_snapshot_id(snapshot_id),)
        return await self.db.backend.write(partial(_write, query=_DELETE_SNAPSHOT, parameters=parameters)) == 1

    async def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> list[Snapshot]:
        """See `SnapshotStore.list`."""
        find = partial(_found, run_id=run_id, tag=tag, query=query, limit=checked_limit(limit))
        return await self.db.backend.read(find)


class SqliteSnapshotStore(SnapshotStore):
    """Snapshots in a SQLite database, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.aio = AsyncSqliteSnapshotStore(db)
        self.db = db

    def save(self, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`."""
        drive(self.aio.save, snapshot)

    def load(self, snapshot_id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        return drive(self.aio.load, snapshot_id)

    def delete(self, snapshot_id: str) -> bool:
        """See `SnapshotStore.delete`."""
        return drive(self.aio.delete, snapshot_id)

    def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> list[Snapshot]:
        """See `SnapshotStore.list`."""
        return drive(self.aio.list, run_id=run_id, tag=tag, query=query, limit=limit)


def _write(connection: sqlite3.Connection, query: str, parameters: tuple[object, ...]) -> int:
    return connection.execute(query, parameters).rowcount


def _stored(connection: sqlite3.Connection, snapshot_id: str) -> StoredSnapshot | None:
    row = connection.execute(_LOAD_SNAPSHOT, (snapshot_id,)).fetchone()
    return None if row is None else StoredSnapshot(about=row[0], data=row[1])


def _found(
    connection: sqlite3.Connection, run_id: str | None, tag: str | None, query: str | None, limit: int
) -> list[Snapshot]:
    """Narrow rows are filtered here, as the contract says, and the states of those that match are read."""
    matches = snapshot_filter(run_id, tag, query)
    rows = connection.execute(_SNAPSHOTS_BY_AGE) if run_id is None else connection.execute(_SNAPSHOTS_OF_RUN, (run_id,))
    found: list[Snapshot] = []
    for snapshot_id, about in rows:
        try:
            kept = _stored(connection, snapshot_id) if matches(StoredSnapshot(about=about, data=b"").told()) else None
            found += () if kept is None else (kept.whole(),)
        except StoreCorrupt as error:
            log.warning("Snapshot %s is left out of a list: %s", snapshot_id, error)
        if len(found) == limit:
            break
    rows.close()
    return found
