"""Blocking stores of commands and cursors for async callers: their methods run in worker threads."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from ..user_pair import in_thread
from .model import CommandAppendResult, CommandCursorStore, CommandPage, CommandRecord, CommandStore


class ThreadedCommandStore(CommandStore):
    """The async twin of a command store that is synchronous at heart, which is its `sync`."""

    def __init__(self, sync: Any) -> None:
        self.sync = sync

    @classmethod
    def _around(cls, sync: Any) -> Self:
        made = cls.__new__(cls)
        ThreadedCommandStore.__init__(made, sync)
        return made

    async def append(self, record: CommandRecord) -> CommandAppendResult:
        """See `CommandStore.append`."""
        found: CommandAppendResult = await in_thread(self.sync.append, record)
        return found

    async def list_after(self, *, after: int, limit: int = 1000) -> CommandPage:
        """See `CommandStore.list_after`."""
        found: CommandPage = await in_thread(partial(self.sync.list_after, after=after, limit=limit))
        return found

    async def get_last_seq(self) -> int:
        """See `CommandStore.get_last_seq`."""
        found: int = await in_thread(self.sync.get_last_seq)
        return found

    async def delete_by_run(self, run_id: str) -> int:
        """See `DeletableCommandStore.delete_by_run`."""
        found: int = await in_thread(self.sync.delete_by_run, run_id)
        return found


class ThreadedCursorStore(CommandCursorStore):
    """The async twin of a cursor store that is synchronous at heart, which is its `sync`."""

    def __init__(self, sync: Any) -> None:
        self.sync = sync

    @classmethod
    def _around(cls, sync: Any) -> Self:
        made = cls.__new__(cls)
        ThreadedCursorStore.__init__(made, sync)
        return made

    async def load(self) -> int:
        """See `CommandCursorStore.load`."""
        found: int = await in_thread(self.sync.load)
        return found

    async def save(self, cursor: int) -> None:
        """See `CommandCursorStore.save`."""
        await in_thread(self.sync.save, cursor)
