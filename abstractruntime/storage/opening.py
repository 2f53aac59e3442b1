"""From a URL to all the stores of a runtime.

`"memory:"`, `"sqlite:///runs.db"` (three slashes and a path; a fourth makes it absolute) and `"files:./data"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from .artifacts import FileArtifactStore, InMemoryArtifactStore
from .in_memory import InMemoryLedgerStore, InMemoryRunStore
from .json_files import JsonFileRunStore, JsonlLedgerStore
from .snapshots import InMemorySnapshotStore, JsonSnapshotStore, SqliteSnapshotStore
from .sqlite import SqliteDatabase, SqliteLedgerStore, SqliteRunStore

_EXPECTED = 'expected "memory:", "sqlite:///runs.db" or "files:./data"'


class OpenedStores(Struct, frozen=True, kw_only=True):
    """The stores that a URL stands for, and the database that is to be closed after them, if there is one."""

    run_store: Any
    ledger_store: Any
    artifact_store: Any
    snapshot_store: Any
    database: SqliteDatabase | None = None

    def given(self) -> dict[str, Any]:
        """The stores as arguments of a runtime."""
        return {
            "run_store": self.run_store,
            "ledger_store": self.ledger_store,
            "artifact_store": self.artifact_store,
            "snapshot_store": self.snapshot_store,
        }

    async def aclose(self) -> None:
        """Close what was opened."""
        if self.database is not None:
            await self.database.aclose()

    def as_async(self) -> OpenedStores:
        """The same, with the async ones of stores that come in pairs."""
        pairs = {name: getattr(store, "aio", store) for name, store in self.given().items()}
        return OpenedStores(**{**pairs, "artifact_store": self.artifact_store}, database=self.database)


def open_stores(url: str) -> OpenedStores:
    """The stores that a URL stands for. Nothing is read or written before they are used. Raises ValueError."""
    if not isinstance(url, str):
        raise TypeError(f"a URL of stores is text ({_EXPECTED}), found {type(url).__name__}")
    kind, colon, rest = url.partition(":")
    if url == "memory:":
        return _in_memory()
    if kind == "sqlite" and rest.startswith("///") and len(rest) > 3:
        return _on_sqlite(rest[3:])
    path = rest.removeprefix("//")
    if kind == "files" and colon and path:
        return _in_files(path)
    raise ValueError(f"{url!r} names no stores; {_EXPECTED}.")


def _in_memory() -> OpenedStores:
    return OpenedStores(
        run_store=InMemoryRunStore(),
        ledger_store=InMemoryLedgerStore(),
        artifact_store=InMemoryArtifactStore(),
        snapshot_store=InMemorySnapshotStore(),
    )


def _on_sqlite(path: str) -> OpenedStores:
    database = SqliteDatabase(path)
    beside = Path(f"{path}.artifacts")
    return OpenedStores(
        run_store=SqliteRunStore(database),
        ledger_store=SqliteLedgerStore(database),
        artifact_store=InMemoryArtifactStore() if path == ":memory:" else FileArtifactStore(beside),
        snapshot_store=SqliteSnapshotStore(database),
        database=database,
    )


def _in_files(path: str) -> OpenedStores:
    return OpenedStores(
        run_store=JsonFileRunStore(path),
        ledger_store=JsonlLedgerStore(path),
        artifact_store=FileArtifactStore(path),
        snapshot_store=JsonSnapshotStore(Path(path) / "snapshots"),
    )
