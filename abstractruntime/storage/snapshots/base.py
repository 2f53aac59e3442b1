"""What a store of snapshots promises, and what its list means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from .model import Snapshot


class SnapshotStore(ABC):
    """Keeps snapshots. Implement these four to bring a store of your own; they may be `async def`."""

    @abstractmethod
    def save(self, snapshot: Snapshot) -> Any:
        """Store the snapshot under its id, over what is there, and set its `updated_at` to now.

        Raises `InvalidId` and `UnsafeValue` for what cannot be kept.
        """

    @abstractmethod
    def load(self, snapshot_id: str) -> Any:
        """A fresh copy of the snapshot, or None. Raises `StoreCorrupt` for one that cannot be read."""

    @abstractmethod
    def delete(self, snapshot_id: str) -> Any:
        """Forget the snapshot; whether there was one."""

    @abstractmethod
    def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> Any:
        """Snapshots that match every filter, the newest `created_at` first.

        `tag` is one of its tags, `query` a part of its name or description; upper and lower case are the same.
        """


def snapshot_filter(run_id: str | None, tag: str | None, query: str | None) -> Callable[[Snapshot], bool]:
    """What the filters of `list` mean; an empty tag or query asks for nothing."""
    wanted_tag, wanted_text = (tag or "").lower(), (query or "").lower()

    def matches(snapshot: Snapshot) -> bool:
        return (
            (run_id is None or snapshot.run_id == run_id)
            and (not wanted_tag or any(own.lower() == wanted_tag for own in snapshot.tags))
            and (wanted_text in snapshot.name.lower() or wanted_text in (snapshot.description or "").lower())
        )

    return matches


def newest_created_first(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The order of `list`: `created_at` descending, then snapshot id."""
    by_id = sorted(snapshots, key=lambda snapshot: snapshot.snapshot_id)
    return sorted(by_id, key=lambda snapshot: snapshot.created_at, reverse=True)
