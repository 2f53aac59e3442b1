"""A run store that counts what the runtime asks of its backend, and lets a test act just before a commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from abstractruntime.core.backend import Backend, Loaded, Write
from abstractruntime.core.models import StepRecord


class WatchedBackend:
    """A backend that counts its calls by name."""

    def __init__(self, inner: Backend, before_commit: Callable[[Write], Awaitable[None]] | None) -> None:
        self._inner, self._before_commit = inner, before_commit
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, run_id: str) -> Loaded | None:
        self.calls["load"] += 1
        return await self._inner.load(run_id)

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        self.calls["find"] += 1
        return await self._inner.find(run_id, key)

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        self.calls["records"] += 1
        return await self._inner.records(run_id, after=after, limit=limit)

    async def renew(self, owner: str, until: int) -> None:
        self.calls["renew"] += 1
        await self._inner.renew(owner, until)

    async def commit(self, write: Write) -> None:
        self.calls["commit"] += 1
        if self._before_commit is not None:
            await self._before_commit(write)
        await self._inner.commit(write)


class WatchedRunStore:
    """A run store that joins into a watched backend, so that a runtime can be built on it through its public door."""

    def __init__(self, run_store: Any, before_commit: Callable[[Write], Awaitable[None]] | None = None) -> None:
        self._run_store, self._before_commit = run_store, before_commit
        self.backend: WatchedBackend | None = None

    def join(self, ledger_store: Any) -> Any:
        self.backend = WatchedBackend(self._run_store.join(ledger_store), self._before_commit)
        return self.backend

    @property
    def calls(self) -> Counter[str]:
        """How often each call was made since the last `clear()` of this counter."""
        assert self.backend is not None
        return self.backend.calls
