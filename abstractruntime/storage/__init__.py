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
    "JsonFileRunStore",
    "JsonlLedgerStore",
    "LedgerStore",
    "ObservableLedgerStore",
    "ObservableLedgerStoreProtocol",
    "OffloadingLedgerStore",
    "OffloadingRunStore",
    "QueryableRunStore",
    "RunStore",
    "offload_large_values",
    "verify_ledger_chain",
]
