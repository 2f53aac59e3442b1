"""Snapshots in memory, held as bytes, so that nothing handed out is aliased with what is held."""

from __future__ import annotations

import threading

from ..base import checked_limit
from .base import SnapshotStore, newest_created_first, snapshot_filter
from .model import Snapshot, StoredSnapshot, check_snapshot_id, stored
from .threaded import ThreadedSnapshotStore


class InMemorySnapshotStore(SnapshotStore):
    """Snapshots in memory. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self) -> None:
        self._kept: dict[str, StoredSnapshot] = {}
        self._lock = threading.Lock()

    @property
    def aio(self) -> AsyncInMemorySnapshotStore:
        """This store for async callers."""
        return AsyncInMemorySnapshotStore(self)

    def save(self, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`."""
        kept = stored(snapshot)
        with self._lock:
            self._kept[snapshot.snapshot_id] = kept
        snapshot.updated_at = kept.told().updated_at

    def load(self, snapshot_id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        kept = self._kept.get(check_snapshot_id(snapshot_id))
        return None if kept is None else kept.whole()

    def delete(self, snapshot_id: str) -> bool:
        """See `SnapshotStore.delete`."""
        with self._lock:
            return self._kept.pop(check_snapshot_id(snapshot_id), None) is not None

    def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> list[Snapshot]:
        """See `SnapshotStore.list`."""
        with self._lock:
            kept = dict(self._kept)
        found = filter(snapshot_filter(run_id, tag, query), (one.told() for one in kept.values()))
        return [kept[one.snapshot_id].whole() for one in newest_created_first(found)[: checked_limit(limit)]]


class AsyncInMemorySnapshotStore(ThreadedSnapshotStore):
    """`InMemorySnapshotStore` for async callers; `.sync` is the store itself."""

    def __init__(self, sync: InMemorySnapshotStore | None = None) -> None:
        super().__init__(sync or InMemorySnapshotStore())
