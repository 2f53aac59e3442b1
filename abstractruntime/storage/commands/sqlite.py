"""Commands and cursors in a SQLite database: the async classes are the real ones, the plain names their twins."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import Any

from ...core.clock import utc_now_iso
from ...core.codec import REFUSALS, decode, encode
from ...core.ids import check_id, check_text
from ...core.portal import drive, twin
from ..sqlite.database import SqliteDatabase
from ..sqlite.statements import QUERIES, first
from .model import (
    CommandAppendResult,
    CommandCursorStore,
    CommandPage,
    CommandRecord,
    CommandStore,
    checked,
    checked_cursor,
    checked_window,
    damaged_command,
    page_of,
)

_SEQ_OF_COMMAND = QUERIES["seq_of_command"]
_INSERT_COMMAND = QUERIES["insert_command"]
_COMMANDS_AFTER = QUERIES["commands_after"]
_LAST_COMMAND = QUERIES["last_command"]
_DELETE_COMMANDS_OF_RUN = QUERIES["delete_commands_of_run"]
_CURSOR_OF_CONSUMER = QUERIES["cursor_of_consumer"]
_SAVE_CURSOR = QUERIES["save_cursor"]


class AsyncSqliteCommandStore(CommandStore):
    """Commands in a SQLite database. Usable from any number of event loops at once."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.db = db

    async def append(self, record: CommandRecord) -> CommandAppendResult:
        """See `CommandStore.append`."""
        return await self.db.backend.write(partial(_append, record=checked(record)))

    async def list_after(self, *, after: int, limit: int = 1000) -> CommandPage:
        """See `CommandStore.list_after`."""
        after, limit = checked_window(after, limit)
        rows = await self.db.backend.read(
            lambda connection: connection.execute(_COMMANDS_AFTER, (after, limit)).fetchall()
        )
        return page_of([_record(self.db.path, *row) for row in rows], after)

    async def get_last_seq(self) -> int:
        """See `CommandStore.get_last_seq`."""
        return await self.db.backend.read(lambda connection: first(connection, _LAST_COMMAND) or 0)

    async def delete_by_run(self, run_id: str) -> int:
        """See `DeletableCommandStore.delete_by_run`."""
        check_text(run_id, "run_id")
        return await self.db.backend.write(
            lambda connection: connection.execute(_DELETE_COMMANDS_OF_RUN, (run_id,)).rowcount
        )


class AsyncSqliteCommandCursorStore(CommandCursorStore):
    """The cursor of one consumer in a SQLite database. Usable from any number of event loops at once."""

    def __init__(self, db: SqliteDatabase, *, consumer_id: str = "gateway_runner") -> None:
        self.db = db
        self.consumer_id = check_id(consumer_id, "consumer_id")

    async def load(self) -> int:
        """See `CommandCursorStore.load`."""
        return await self.db.backend.read(
            lambda connection: first(connection, _CURSOR_OF_CONSUMER, (self.consumer_id,)) or 0
        )

    async def save(self, cursor: int) -> None:
        """See `CommandCursorStore.save`."""
        row = (self.consumer_id, checked_cursor(cursor), utc_now_iso())
        await self.db.backend.write(lambda connection: connection.execute(_SAVE_CURSOR, row).rowcount)


class SqliteCommandStore(CommandStore):
    """Commands in a SQLite database, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.aio = AsyncSqliteCommandStore(db)
        self.db = db

    # Those of the interface are written out: a type checker gives an assigned name the type that its base has.
    def append(self, record: CommandRecord) -> CommandAppendResult:
        """See `CommandStore.append`."""
        return drive(self.aio.append, record)

    def list_after(self, *, after: int, limit: int = 1000) -> CommandPage:
        """See `CommandStore.list_after`."""
        return drive(self.aio.list_after, after=after, limit=limit)

    def get_last_seq(self) -> int:
        """See `CommandStore.get_last_seq`."""
        return drive(self.aio.get_last_seq)

    delete_by_run = twin(AsyncSqliteCommandStore.delete_by_run)


class SqliteCommandCursorStore(CommandCursorStore):
    """The cursor of one consumer in a SQLite database, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, db: SqliteDatabase, *, consumer_id: str = "gateway_runner") -> None:
        self.aio = AsyncSqliteCommandCursorStore(db, consumer_id=consumer_id)
        self.db, self.consumer_id = db, consumer_id

    def load(self) -> int:
        """See `CommandCursorStore.load`."""
        return drive(self.aio.load)

    def save(self, cursor: int) -> None:
        """See `CommandCursorStore.save`."""
        drive(self.aio.save, cursor)


def _append(connection: sqlite3.Connection, record: CommandRecord) -> CommandAppendResult:
    known = first(connection, _SEQ_OF_COMMAND, (record.command_id,))
    if known is not None:
        return CommandAppendResult(accepted=False, duplicate=True, seq=known)
    row = (record.command_id, record.run_id, record.type, record.ts, record.client_id, encode(record.payload))
    seq = connection.execute(_INSERT_COMMAND, row).lastrowid
    assert seq is not None
    return CommandAppendResult(accepted=True, duplicate=False, seq=seq)


def _record(path: str, seq: int, payload: Any, *others: Any) -> CommandRecord:
    try:
        found = decode(payload)
    except REFUSALS as error:
        raise damaged_command(f"{path}, command {seq}", error) from error
    command_id, run_id, type_, ts, client_id = others
    return CommandRecord(command_id, run_id, type_, found, ts, client_id, seq)
