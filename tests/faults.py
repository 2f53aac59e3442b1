"""Faults at the commit: the k-th store write kills the process, or its answer is an error."""

from __future__ import annotations

from typing import Any

from abstractruntime.core.backend import Backend, Write
from abstractruntime.core.errors import StoreUnclear


class ProcessDied(BaseException):
    """Stands for SIGKILL: nothing in the runtime may catch it."""


class FaultyBackend:
    """A backend whose k-th write goes wrong in one of four ways; k counts commits and lease renewals alike."""

    MODES = ("die_before", "die_after", "landed_but_error", "lost_with_error")

    def __init__(self, inner: Backend, at: int, mode: str) -> None:
        self._inner, self._at, self._mode = inner, at, mode
        self.writes = 0
        self.fired = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, write: Write) -> None:
        await self._faulty(self._inner.commit, write)

    async def renew(self, owner: str, until: int) -> None:
        await self._faulty(self._inner.renew, owner, until)

    async def _faulty(self, operation: Any, *args: Any) -> None:
        self.writes += 1
        if self.writes != self._at:
            await operation(*args)
            return
        self.fired = True
        if self._mode in ("die_after", "landed_but_error"):
            await operation(*args)
        if self._mode.startswith("die"):
            raise ProcessDied(f"write {self._at}, {self._mode}")
        raise StoreUnclear(f"write {self._at}, {self._mode}")


class FaultyRunStore:
    """A run store that joins into a faulty backend, so that a runtime can be built on it through its public door."""

    def __init__(self, run_store: Any, *, at: int = 0, mode: str = "die_before") -> None:
        self._run_store, self._at, self._mode = run_store, at, mode
        self.backend: FaultyBackend | None = None

    def join(self, ledger_store: Any) -> Any:
        self.backend = FaultyBackend(self._run_store.join(ledger_store), self._at, self._mode)
        return self.backend
