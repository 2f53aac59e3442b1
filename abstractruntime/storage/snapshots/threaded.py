"""A blocking store of snapshots for async callers: its methods run in worker threads."""

from __future__ import annotations

from functools import partial

from ..user_pair import in_thread
from .base import SnapshotStore
from .model import Snapshot


class ThreadedSnapshotStore(SnapshotStore):
    """The async twin of a store that is synchronous at heart, which is its `sync`."""

    def __init__(self, sync: SnapshotStore) -> None:
        self.sync = sync

    async def save(self, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`."""
        await in_thread(self.sync.save, snapshot)

    async def load(self, snapshot_id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        found: Snapshot | None = await in_thread(self.sync.load, snapshot_id)
        return found

    async def delete(self, snapshot_id: str) -> bool:
        """See `SnapshotStore.delete`."""
        found: bool = await in_thread(self.sync.delete, snapshot_id)
        return found

    async def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> list[Snapshot]:
        """See `SnapshotStore.list`."""
        found: list[Snapshot] = await in_thread(
            partial(self.sync.list, run_id=run_id, tag=tag, query=query, limit=limit)
        )
        return found
