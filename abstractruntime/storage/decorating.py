"""What decorators of stores have in common: the rest of the store shows through, and a runtime sees what is inside.

A runtime takes decorators apart: it commits to the innermost stores, and its journal does what the decorators ask for,
in one order however they were nested. Their own `append`, `save` and reads do the same for whoever calls them directly.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ..core.chain import linked
from ..core.ids import check_id
from ..core.models import StepRecord
from .user_pair import as_record, call

_NOT_SHOWN = frozenset({"inner", "aio", "sync", "join"})

_GUARD = Lock()
_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_ASYNC_LOCKS: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()


class Decorator:
    """A store around another one, which is its `inner`; what it does not change is the inner store's own."""

    inner: Any

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        # From Python 3.12 on `isinstance(store, QueryableRunStore)` asks no `__getattr__`, so these must be there.
        for name in dir(inner):
            shown = not name.startswith("_") and name not in _NOT_SHOWN and not hasattr(type(self), name)
            if shown and inspect.isroutine(inspect.getattr_static(inner, name)):
                self.__dict__[name] = getattr(inner, name)

    def __getattr__(self, name: str) -> Any:
        # Twins and joined backends of the inner store know nothing of this one; copying asks before `inner` is there.
        if name in _NOT_SHOWN or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


class LedgerDecorator(Decorator):
    """A ledger store around another one, blocking."""

    def append(self, record: StepRecord) -> None:
        """Add a record at the end of its run's ledger."""
        self._append(record)

    def list(self, run_id: str) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""
        found: list[dict[str, Any]] = self.inner.list(run_id)
        return found

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return append_to(self.inner, record, chain=chain)


class AsyncLedgerDecorator(Decorator):
    """A ledger store around another one, for async callers; the inner one may be sync or async."""

    async def append(self, record: StepRecord) -> None:
        """Add a record at the end of its run's ledger."""
        await self._append(record)

    async def list(self, run_id: str) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""
        found: list[dict[str, Any]] = await call(self.inner.list, run_id)
        return found

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return await append_to_async(self.inner, record, chain=chain)


def append_to(inner: Any, record: StepRecord, *, chain: bool) -> StepRecord:
    """Append to a ledger store, as a link of the ledger's chain if asked for; the record as it was stored.

    A store of ours links it inside its own write. For a user's store the last record is read first, under a lock of
    this process.
    """
    ours: Callable[..., StepRecord] | None = getattr(inner, "_append", None)
    if ours is not None:
        return ours(record, chain=chain)
    if not chain:
        inner.append(record)
        return record
    check_id(record.run_id, "run_id of a record")
    with _GUARD:
        lock = _LOCKS.setdefault(inner, Lock())
    with lock:
        (link,) = linked([record], _head(inner.list(record.run_id), record.run_id))
        inner.append(link)
    return link


async def append_to_async(inner: Any, record: StepRecord, *, chain: bool) -> StepRecord:
    """The same for a store that is sync or async."""
    ours = getattr(inner, "_append", None)
    if ours is not None:
        stored: StepRecord = await call(ours, record, chain=chain)
        return stored
    if not chain:
        await call(inner.append, record)
        return record
    check_id(record.run_id, "run_id of a record")
    async with _ASYNC_LOCKS.setdefault(inner, asyncio.Lock()):
        (link,) = linked([record], _head(await call(inner.list, record.run_id), record.run_id))
        await call(inner.append, link)
    return link


def _head(rows: list[Any], run_id: str) -> str | None:
    return as_record(rows[-1], run_id).record_hash if rows else None
