"""Stores: the contracts, and the backends that keep them."""

from .base import DeletableLedgerStore, DeletableRunStore, LedgerStore, QueryableRunStore, RunStore
from .in_memory import AsyncInMemoryLedgerStore, AsyncInMemoryRunStore, InMemoryLedgerStore, InMemoryRunStore

__all__ = [
    "AsyncInMemoryLedgerStore",
    "AsyncInMemoryRunStore",
    "DeletableLedgerStore",
    "DeletableRunStore",
    "InMemoryLedgerStore",
    "InMemoryRunStore",
    "LedgerStore",
    "QueryableRunStore",
    "RunStore",
]
