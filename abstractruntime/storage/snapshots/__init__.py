"""Snapshots: bookmarks of runs, to go back to or to fork from, and the stores that keep them."""

from .base import SnapshotStore
from .difference import diff_snapshots
from .in_memory import AsyncInMemorySnapshotStore, InMemorySnapshotStore
from .json_files import AsyncJsonSnapshotStore, JsonSnapshotStore
from .model import Snapshot
from .sqlite import AsyncSqliteSnapshotStore, SqliteSnapshotStore

__all__ = [
    "AsyncInMemorySnapshotStore",
    "AsyncJsonSnapshotStore",
    "AsyncSqliteSnapshotStore",
    "InMemorySnapshotStore",
    "JsonSnapshotStore",
    "Snapshot",
    "SnapshotStore",
    "SqliteSnapshotStore",
    "diff_snapshots",
]
