"""Every backend of ours passes the suites that are shipped for those of users. A backend is one line at the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
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
from abstractruntime.testing.conformance import (
    Capability,
    LedgerStoreConformance,
    PairConformance,
    RunStoreConformance,
)

from .dict_stores import DictLedgerStore, DictRunStore

#: what every store of ours has
OURS = frozenset(Capability) - {
    Capability.CHAIN,
    Capability.PERSISTENT,
}

Made = tuple[Any, Any]


def add_suites(
    name: str, make: Callable[[Path], Made], *capabilities: Capability, of: tuple[str, ...] = ("Runs", "Ledgers", "Pair")
) -> None:
    """The suites of runs, ledgers and pairs for what `make(folder)` gives: a run store and a ledger store."""
    kinds: list[tuple[str, type, Callable[[Made], Any]]] = [
        ("Runs", RunStoreConformance, lambda made: made[0]),
        ("Ledgers", LedgerStoreConformance, lambda made: made[1]),
        ("Pair", PairConformance, lambda made: made),
    ]
    for kind, suite, part in (some for some in kinds if some[0] in of):
        members = {
            "capabilities": frozenset(capabilities) & suite.known,  # type: ignore[attr-defined]
            "make": lambda self, folder, part=part: part(make(folder)),
            "close": lambda self, store: close(store),
            "__module__": __name__,
        }
        globals()[f"Test{kind}{name}"] = type(f"Test{kind}{name}", (suite,), members)


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
        awaited = isinstance(runs, AsyncInMemoryRunStore | AsyncSqliteRunStore)
        shelf = {"artifact_store": InMemoryArtifactStore(), "max_inline_bytes": 200_000}
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


add_suites("Memory", in_memory, *OURS)
add_suites("MemoryAwaited", in_memory_awaited, *OURS)
add_suites("Sqlite", on_sqlite, *OURS, Capability.PERSISTENT)
add_suites("SqliteAwaited", on_sqlite_awaited, *OURS, Capability.PERSISTENT)
add_suites("SqliteInMemory", lambda folder: on_sqlite_awaited(folder, ":memory:"), *OURS)
add_suites("TwoDatabases", on_two_databases, *(OURS - {Capability.JOINT}), Capability.PERSISTENT)
add_suites("Dicts", lambda folder: (DictRunStore(), DictLedgerStore()))
for some in permutations(("Chain", "Observe", "Offload")):
    add_suites("".join(some) + "InMemory", decorated(in_memory, some), *OURS, Capability.CHAIN, of=("Ledgers",))
add_suites("OffloadAwaited", decorated(in_memory_awaited, ("Offload",)), *OURS)
add_suites(
    "ChainObserveOffloadOnSqlite",
    decorated(on_sqlite_awaited, ("Chain", "Observe", "Offload")),
    *OURS,
    Capability.CHAIN,
    Capability.PERSISTENT,
)
