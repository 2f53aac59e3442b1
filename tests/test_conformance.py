"""Every backend of ours passes the suites that are shipped for those of users. A backend is one line at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
)
from abstractruntime.storage import (
    AsyncHashChainedLedgerStore,
    AsyncObservableLedgerStore,
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    HashChainedLedgerStore,
    ObservableLedgerStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
)
from abstractruntime.storage.artifacts import (
    AsyncFileArtifactStore,
    AsyncInMemoryArtifactStore,
    FileArtifactStore,
    InMemoryArtifactStore,
)
from abstractruntime.storage.snapshots import (
    AsyncInMemorySnapshotStore,
    AsyncJsonSnapshotStore,
    AsyncSqliteSnapshotStore,
    InMemorySnapshotStore,
    JsonSnapshotStore,
    SqliteSnapshotStore,
)
from abstractruntime.testing.conformance import (
    ArtifactStoreConformance,
    Capability,
    LedgerStoreConformance,
    PairConformance,
    RunStoreConformance,
    SnapshotStoreConformance,
)
from abstractruntime.testing.conformance.suite import Suite

from .dict_stores import DictLedgerStore, DictRunStore

#: what every store of ours has
OURS = frozenset(Capability) - {
    Capability.CHAIN,
    Capability.PERSISTENT,
}

Made = tuple[Any, Any]


def add_suite(
    name: str, suite: type[Suite], make: Callable[[Path], Any], capabilities: Collection[Capability] = ()
) -> None:
    """A test class of this suite for what `make(folder)` gives."""
    members = {
        "capabilities": frozenset(capabilities) & frozenset(suite.known),
        "make": lambda self, folder: make(folder),
        "close": lambda self, store: close(store),
        "__module__": __name__,
    }
    globals()[f"Test{name}"] = type(f"Test{name}", (suite,), members)


def add_suites(name: str, make: Callable[[Path], Made], *capabilities: Capability) -> None:
    """The suites of runs, ledgers and pairs for what `make(folder)` gives: a run store and a ledger store."""
    add_suite(f"RunsOf{name}", RunStoreConformance, lambda folder: make(folder)[0], capabilities)
    add_suite(f"LedgersOf{name}", LedgerStoreConformance, ledgers_of(make), capabilities)
    add_suite(f"PairOf{name}", PairConformance, make, capabilities)


def ledgers_of(make: Callable[[Path], Made]) -> Callable[[Path], Any]:
    """The ledger store alone of what `make(folder)` gives."""
    return lambda folder: make(folder)[1]


async def close(store: Any) -> None:
    """Close the databases behind a store, or behind a pair."""
    for one in store if isinstance(store, tuple) else (store,):
        while not hasattr(one, "db") and "inner" in vars(one):
            one = one.inner
        if isinstance(getattr(one, "db", None), SqliteDatabase):
            await one.db.aclose()


def in_memory(folder: Path) -> Made:
    return InMemoryRunStore(), InMemoryLedgerStore()


def in_memory_awaited(folder: Path) -> Made:
    return AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore()


def on_sqlite(folder: Path, path: str | None = None) -> Made:
    db = SqliteDatabase(path or folder / "runs.db", synchronous="NORMAL")
    return SqliteRunStore(db), SqliteLedgerStore(db)


def on_sqlite_awaited(folder: Path, path: str | None = None) -> Made:
    db = SqliteDatabase(path or folder / "runs.db", synchronous="NORMAL")
    return AsyncSqliteRunStore(db), AsyncSqliteLedgerStore(db)


def on_two_databases(folder: Path) -> Made:
    runs, ledgers = (SqliteDatabase(folder / f"{name}.db", synchronous="NORMAL") for name in ("runs", "ledgers"))
    return AsyncSqliteRunStore(runs), SqliteLedgerStore(ledgers)


def decorated(make: Callable[[Path], Made], order: tuple[str, ...]) -> Callable[[Path], Made]:
    """The same with decorators around it, the innermost first."""

    def made(folder: Path) -> Made:
        runs, ledgers = make(folder)
        awaited = isinstance(runs, AsyncInMemoryRunStore | AsyncJsonFileRunStore | AsyncSqliteRunStore)
        shelf: dict[str, Any] = {"artifact_store": InMemoryArtifactStore(), "max_inline_bytes": 200_000}
        around: dict[str, Callable[[Any], Any]] = {
            "Chain": AsyncHashChainedLedgerStore if awaited else HashChainedLedgerStore,
            "Observe": AsyncObservableLedgerStore if awaited else ObservableLedgerStore,
            "Offload": lambda inner: (AsyncOffloadingLedgerStore if awaited else OffloadingLedgerStore)(inner, **shelf),
        }
        for decorator in order:
            ledgers = around[decorator](ledgers)
        if "Offload" in order:
            runs = (AsyncOffloadingRunStore if awaited else OffloadingRunStore)(runs, **shelf)
        return runs, ledgers

    return made


def on_database(kind: type, folder: Path) -> Any:
    return kind(SqliteDatabase(folder / "runs.db", synchronous="NORMAL"))


def on_files(folder: Path) -> Made:
    return JsonFileRunStore(folder, durability="none"), JsonlLedgerStore(folder, durability="none")


def on_files_awaited(folder: Path) -> Made:
    return AsyncJsonFileRunStore(folder, durability="none"), AsyncJsonlLedgerStore(folder, durability="none")


PERSISTENT = Capability.PERSISTENT
CHAIN = Capability.CHAIN

add_suites("Memory", in_memory, *OURS)
add_suites("MemoryAwaited", in_memory_awaited, *OURS)
add_suites("Sqlite", on_sqlite, *OURS, PERSISTENT)
add_suites("SqliteAwaited", on_sqlite_awaited, *OURS, PERSISTENT)
add_suites("SqliteInMemory", lambda folder: on_sqlite_awaited(folder, ":memory:"), *OURS)
add_suite("PairOfTwoDatabases", PairConformance, on_two_databases, [PERSISTENT])
add_suites("Files", on_files, *OURS, PERSISTENT)
add_suites("FilesAwaited", on_files_awaited, *OURS, PERSISTENT)
add_suites("Dicts", lambda folder: (DictRunStore(), DictLedgerStore()))
add_suites("OffloadAwaited", decorated(in_memory_awaited, ("Offload",)), *OURS)

STACK = ("Chain", "Observe", "Offload")
ON_SQLITE = decorated(on_sqlite_awaited, STACK)
CHAINED = [*OURS, CHAIN]
add_suite("PairOfStack", PairConformance, ON_SQLITE, [*CHAINED, PERSISTENT])
add_suite("LedgersOfStack", LedgerStoreConformance, ledgers_of(ON_SQLITE), [*CHAINED, PERSISTENT])
ON_FILES = decorated(on_files_awaited, STACK)
add_suite("PairOfStackOnFiles", PairConformance, ON_FILES, [*CHAINED, PERSISTENT])
for order in permutations(STACK):
    stacked = ledgers_of(decorated(in_memory, order))
    add_suite("LedgersOf" + "".join(order), LedgerStoreConformance, stacked, CHAINED)

ARTIFACTS = [Capability.UPDATE, Capability.ACCESS, Capability.COLLECT]
add_suite("ArtifactsInMemory", ArtifactStoreConformance, lambda folder: InMemoryArtifactStore(), ARTIFACTS)
add_suite("ArtifactsInMemoryAwaited", ArtifactStoreConformance, lambda folder: AsyncInMemoryArtifactStore(), ARTIFACTS)
for files in (FileArtifactStore, AsyncFileArtifactStore):
    on_disk = partial(files, durability="none")
    add_suite(f"ArtifactsOf{files.__name__}", ArtifactStoreConformance, on_disk, [*ARTIFACTS, PERSISTENT])

add_suite("SnapshotsInMemory", SnapshotStoreConformance, lambda folder: InMemorySnapshotStore())
add_suite("SnapshotsInMemoryAwaited", SnapshotStoreConformance, lambda folder: AsyncInMemorySnapshotStore())
for kind in (JsonSnapshotStore, AsyncJsonSnapshotStore):
    add_suite(f"SnapshotsOf{kind.__name__}", SnapshotStoreConformance, kind, [PERSISTENT])
for on_db in (SqliteSnapshotStore, AsyncSqliteSnapshotStore):
    add_suite(f"SnapshotsOf{on_db.__name__}", SnapshotStoreConformance, partial(on_database, on_db), [PERSISTENT])
