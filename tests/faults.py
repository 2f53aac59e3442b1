"""Faults at the store: the k-th write or read kills the process, or its answer is an error, once or from then on."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from abstractruntime.core.backend import Backend, Write
from abstractruntime.core.errors import StoreBusy, StoreError, StoreUnclear


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


class Fault(NamedTuple):
    """What goes wrong with a call, whether the call lands all the same, and whether all later ones go wrong too."""

    error: type[BaseException]
    landed: bool = False
    lasting: bool = False


WRITES = frozenset({"commit", "renew", "release", "save", "append"})
READS = frozenset({"load", "find", "records", "landed", "alive", "claims"})

WRITE_FAULTS = {
    "dies before": Fault(ProcessDied),
    "dies after": Fault(ProcessDied, landed=True),
    "lost, and unclear": Fault(StoreUnclear),
    "landed, and unclear": Fault(StoreUnclear, landed=True),
    "fails": Fault(StoreError),
    "is busy": Fault(StoreBusy),
    "stays down": Fault(StoreError, lasting=True),
    "stays unclear": Fault(StoreUnclear, lasting=True),
    "stays unclear and lands": Fault(StoreUnclear, landed=True, lasting=True),
    "stays busy": Fault(StoreBusy, lasting=True),
}
READ_FAULTS = {"fails": Fault(StoreError), "stays down": Fault(StoreError, lasting=True)}


class BreakableBackend:
    """A backend that works until it is armed: then call number `at` goes wrong, until it is repaired."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.repair()

    def arm(self, calls: frozenset[str], at: int, fault: Fault) -> None:
        self._calls, self._left, self._fault = calls, at, fault

    def repair(self) -> None:
        self._calls, self._left, self._fault = frozenset[str](), 0, Fault(StoreError)
        self.fired = False

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._inner, name)
        return partial(self._faulty, name, member) if name in WRITES | READS else member

    async def _faulty(self, name: str, member: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in self._calls:
            return await member(*args, **kwargs)
        self._left -= 1
        if self._left > 0 or (self._left < 0 and not self._fault.lasting):
            return await member(*args, **kwargs)
        self.fired = True
        if self._fault.landed:
            await member(*args, **kwargs)
        raise self._fault.error(f"{name} went wrong")


class BreakableRunStore:
    """A run store of ours that joins into a backend of the test, and saves through it where it can."""

    def __init__(self, run_store: Any) -> None:
        self._run_store = run_store
        self.backend = BreakableBackend(None)

    def join(self, ledger_store: Any) -> Any:
        self.backend = BreakableBackend(self._run_store.join(ledger_store))
        if hasattr(self._run_store, "db"):
            self._run_store.db.backend = self.backend
        return self.backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run_store, name)
