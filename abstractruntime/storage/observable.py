"""A ledger whose appends can be heard of as they become durable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ..core.layers import LedgerCallback, Observers
from ..core.models import StepRecord
from .base import LedgerStore
from .decorating import AsyncLedgerDecorator, LedgerDecorator


@runtime_checkable
class ObservableLedgerStoreProtocol(Protocol):
    """A ledger store that can be subscribed to."""

    def subscribe(self, callback: LedgerCallback, *, run_id: str | None = None) -> Callable[[], None]:
        """Call `callback(record)` for every record; returns an unsubscribe."""


class _Observable:
    observers: Observers

    def subscribe(self, callback: LedgerCallback, *, run_id: str | None = None) -> Callable[[], None]:
        """Call `callback(record)` with every record, or those of one run, once it is durable; returns an unsubscribe.

        Told are the records that are appended through this object, be it by a runtime on it or directly, each as a dict
        of its own, as `list()` shows it. The callback is sync and short; what it raises is logged. Unsubscribing twice
        does nothing.
        """
        return self.observers.add(callback, run_id)

    def clear_subscribers(self) -> None:
        """Tell nobody any more."""
        self.observers.clear()


class ObservableLedgerStore(_Observable, LedgerDecorator, LedgerStore):
    """Tells its subscribers of each record that became durable, around any ledger store.

    Records of another process, or of another object on the same ledger, are not seen: `follow_ledger` reads those.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.observers = Observers()

    @property
    def aio(self) -> AsyncObservableLedgerStore:
        """The same for async callers, with the same subscribers."""
        twin = AsyncObservableLedgerStore(self.inner)
        twin.observers = self.observers
        return twin

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        stored = super()._append(record, chain=chain)
        self.observers.tell(stored)
        return stored


class AsyncObservableLedgerStore(_Observable, AsyncLedgerDecorator, LedgerStore):
    """`ObservableLedgerStore` for async callers, around a sync or an async store; callbacks are sync here too."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.observers = Observers()

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        stored = await super()._append(record, chain=chain)
        self.observers.tell(stored)
        return stored
