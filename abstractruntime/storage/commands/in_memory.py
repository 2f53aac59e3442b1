"""Commands in memory: for tests and for work that need not outlive the process."""

from __future__ import annotations

import threading
from bisect import bisect_right

from msgspec.structs import replace

from ...core.codec import encode
from ...core.ids import check_text
from .aio import ThreadedCommandStore, ThreadedCursorStore
from .model import (
    CommandAppendResult,
    CommandCursorStore,
    CommandPage,
    CommandRecord,
    CommandStore,
    checked,
    checked_cursor,
    checked_window,
    decode_command,
    page_of,
)


class InMemoryCommandStore(CommandStore):
    """Commands in memory. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        #: number and bytes of each command, in order
        self._seqs: list[int] = []
        self._rows: list[bytes] = []
        self._by_id: dict[str, int] = {}

    @property
    def aio(self) -> AsyncInMemoryCommandStore:
        """This store for async callers."""
        return AsyncInMemoryCommandStore._around(self)

    def append(self, record: CommandRecord) -> CommandAppendResult:
        """See `CommandStore.append`."""
        clean = checked(record)
        with self._lock:
            known = self._by_id.get(clean.command_id)
            if known is not None:
                return CommandAppendResult(accepted=False, duplicate=True, seq=known)
            self._last += 1
            self._seqs.append(self._last)
            self._rows.append(encode(replace(clean, seq=self._last)))
            self._by_id[clean.command_id] = self._last
            return CommandAppendResult(accepted=True, duplicate=False, seq=self._last)

    def list_after(self, *, after: int, limit: int = 1000) -> CommandPage:
        """See `CommandStore.list_after`."""
        after, limit = checked_window(after, limit)
        with self._lock:
            start = bisect_right(self._seqs, after)
            rows = self._rows[start : start + limit]
        return page_of([decode_command(row, "memory") for row in rows], after)

    def get_last_seq(self) -> int:
        """See `CommandStore.get_last_seq`."""
        return self._last

    def delete_by_run(self, run_id: str) -> int:
        """See `DeletableCommandStore.delete_by_run`."""
        check_text(run_id, "run_id")
        with self._lock:
            records = [decode_command(row, "memory") for row in self._rows]
            kept = [record for record in records if record.run_id != run_id]
            self._seqs, self._rows = [record.seq for record in kept], [encode(record) for record in kept]
            self._by_id = {record.command_id: record.seq for record in kept}
            return len(records) - len(kept)


class InMemoryCommandCursorStore(CommandCursorStore):
    """A cursor in memory, which begins at `initial`. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self, initial: int = 0) -> None:
        self._cursor = checked_cursor(initial, "initial")

    @property
    def aio(self) -> AsyncInMemoryCommandCursorStore:
        """This store for async callers."""
        return AsyncInMemoryCommandCursorStore._around(self)

    def load(self) -> int:
        """See `CommandCursorStore.load`."""
        return self._cursor

    def save(self, cursor: int) -> None:
        """See `CommandCursorStore.save`."""
        self._cursor = checked_cursor(cursor)


class AsyncInMemoryCommandStore(ThreadedCommandStore):
    """`InMemoryCommandStore` for async callers; `.sync` is the store itself."""

    def __init__(self) -> None:
        super().__init__(InMemoryCommandStore())


class AsyncInMemoryCommandCursorStore(ThreadedCursorStore):
    """`InMemoryCommandCursorStore` for async callers; `.sync` is the store itself."""

    def __init__(self, initial: int = 0) -> None:
        super().__init__(InMemoryCommandCursorStore(initial))
