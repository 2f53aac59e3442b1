"""A run store and a ledger store, decorated or not, as what a runtime works with."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..core.backend import Backend
from ..core.errors import StoreError
from ..core.layers import Layers
from .base import is_own
from .ledger_chain import AsyncHashChainedLedgerStore, HashChainedLedgerStore
from .observable import AsyncObservableLedgerStore, ObservableLedgerStore
from .offloading import (
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    Offloading,
    OffloadingLedgerStore,
    OffloadingRunStore,
    ResolvingBackend,
)
from .user_pair import join_stores

_CHAINED = (HashChainedLedgerStore, AsyncHashChainedLedgerStore)
_OBSERVABLE = (ObservableLedgerStore, AsyncObservableLedgerStore)
_LEDGERS = (*_CHAINED, *_OBSERVABLE, OffloadingLedgerStore, AsyncOffloadingLedgerStore)
_RUNS = (OffloadingRunStore, AsyncOffloadingRunStore)
_OFFLOADING = (*_RUNS, OffloadingLedgerStore, AsyncOffloadingLedgerStore)


class Joined(Struct, frozen=True, kw_only=True):
    """The backend of a pair, the layers its decorators ask for, and the backend that reads what was moved out."""

    stored: Backend
    layers: Layers
    resolving: Backend | None = None


def join(run_store: Any, ledger_store: Any) -> Joined:
    """Take the decorators off and join what they were around; each asks for the same wherever it stood.

    A decorator of ours whose methods a user has overridden is a store of the user's. Raises StoreError for a hash chain
    around stores that do not commit together, TypeError for what are no stores.
    """
    runs, run_decorators = _taken_apart(run_store, _RUNS, ("save", "load"))
    ledgers, ledger_decorators = _taken_apart(ledger_store, _LEDGERS, ("append", "list"))
    stored = join_stores(runs, ledgers)
    chain = any(isinstance(decorator, _CHAINED) for decorator in ledger_decorators)
    if chain and not stored.atomic:
        raise StoreError(
            f"{ledger_store!r} is hash-chained, but {runs!r} and {ledgers!r} do not commit together, so a crash between"
            " the two could break the chain. Use a run store and a ledger store on the same database, folder or memory."
        )
    shelves = [
        next((decorator.shelf for decorator in decorators if isinstance(decorator, _OFFLOADING)), None)
        for decorators in (run_decorators, ledger_decorators)
    ]
    offload = Offloading(runs=shelves[0], ledgers=shelves[1]) if any(shelves) else None
    observers = tuple(decorator.observers for decorator in ledger_decorators if isinstance(decorator, _OBSERVABLE))
    return Joined(
        stored=stored,
        layers=Layers(chain=chain, offload=offload, observers=observers),
        resolving=None if offload is None else ResolvingBackend(stored, offload.stores),
    )


def _taken_apart(store: Any, ours: tuple[type, ...], methods: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """What the decorators are around, and the decorators, the outermost first."""
    found: list[Any] = []
    while any(is_own(store, kind, *methods) for kind in ours):
        found.append(store)
        store = store.inner
    return store, found
