"""Stores: the contracts, and the backends that keep them."""

from .base import DeletableLedgerStore, DeletableRunStore, LedgerStore, QueryableRunStore, RunStore
from .in_memory import AsyncInMemoryLedgerStore, AsyncInMemoryRunStore, InMemoryLedgerStore, InMemoryRunStore
from .json_files import AsyncJsonFileRunStore, AsyncJsonlLedgerStore, JsonFileRunStore, JsonlLedgerStore
from .ledger_chain import AsyncHashChainedLedgerStore, HashChainedLedgerStore, verify_ledger_chain
from .observable import AsyncObservableLedgerStore, ObservableLedgerStore, ObservableLedgerStoreProtocol
from .offloading import (
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
    offload_large_values,
)
from .snapshots import InMemorySnapshotStore, JsonSnapshotStore, Snapshot, SnapshotStore

__all__ = [
    "AsyncHashChainedLedgerStore",
    "AsyncInMemoryLedgerStore",
    "AsyncInMemoryRunStore",
    "AsyncJsonFileRunStore",
    "AsyncJsonlLedgerStore",
    "AsyncObservableLedgerStore",
    "AsyncOffloadingLedgerStore",
    "AsyncOffloadingRunStore",
    "DeletableLedgerStore",
    "DeletableRunStore",
    "HashChainedLedgerStore",
    "InMemoryLedgerStore",
    "InMemoryRunStore",
    "InMemorySnapshotStore",
    "JsonFileRunStore",
    "JsonSnapshotStore",
    "JsonlLedgerStore",
    "LedgerStore",
    "ObservableLedgerStore",
    "ObservableLedgerStoreProtocol",
    "OffloadingLedgerStore",
    "OffloadingRunStore",
    "QueryableRunStore",
    "RunStore",
    "Snapshot",
    "SnapshotStore",
    "offload_large_values",
    "verify_ledger_chain",
]
