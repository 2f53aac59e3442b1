"""The contracts of storage: what a store promises, and what its queries mean.

`RunStore` and `LedgerStore` are the documented interfaces, which users implement, call and wrap. What the runtime
needs below a pair of ours, one atomic commit of a whole step, is `core.backend.Backend`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from ..core.backend import Backend, Loaded, Write
from ..core.clock import iso, parse_instant
from ..core.models import RunState, RunStatus, StepRecord, WaitReason

__all__ = [
    "Backend",
    "DeletableLedgerStore",
    "DeletableRunStore",
    "LedgerStore",
    "Loaded",
    "Page",
    "QueryableRunStore",
    "RunStore",
    "Write",
    "checked_limit",
    "due_first",
    "index_row",
    "is_own",
    "newest_first",
    "run_filter",
]

#: a limit that no query reaches, and that SQLite can count to
_MOST = 2**62


class RunStore(ABC):
    """Keeps the checkpoint of each run. Implement these two to bring a store of your own; they may be `async def`."""

    @abstractmethod
    def save(self, run: RunState) -> Any:
        """Store the run under its id."""

    @abstractmethod
    def load(self, run_id: str) -> Any:
        """The stored run, or None."""


class LedgerStore(ABC):
    """Keeps the records of each run, in the order they were appended. The methods may be `async def`."""

    @abstractmethod
    def append(self, record: StepRecord) -> Any:
        """Add a record at the end of its run's ledger."""

    @abstractmethod
    def list(self, run_id: str) -> Any:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""


@runtime_checkable
class QueryableRunStore(Protocol):
    """A run store that can be searched."""

    def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
    ) -> list[RunState]:
        """Matching runs, newest `updated_at` first."""

    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        """Waiting runs whose timer or deadline is at or before `now_iso`, earliest first."""

    def list_children(self, *, parent_run_id: str, status: RunStatus | None = None) -> list[RunState]:
        """Runs started by `parent_run_id`, oldest first."""


@runtime_checkable
class DeletableRunStore(Protocol):
    """A run store that can forget."""

    def delete(self, run_id: str) -> bool:
        """Forget the run; whether there was one."""


@runtime_checkable
class DeletableLedgerStore(Protocol):
    """A ledger store that can forget."""

    def delete(self, run_id: str) -> int:
        """Forget the run's records; how many there were."""


class Page(Struct, frozen=True, kw_only=True):
    """Some of what a query finds. `cursor` asks the same query for what follows; None means that this is the end."""

    items: list[dict[str, Any]]
    cursor: str | None = None


RunFilter = Callable[[RunState], bool]


def run_filter(
    *,
    status: RunStatus | Collection[RunStatus] | None = None,
    wait_reason: WaitReason | None = None,
    workflow_id: str | None = None,
    session_id: str | None = None,
    actor_id: str | None = None,
    parent_run_id: str | None = None,
    root_only: bool = False,
) -> RunFilter:
    """What the filters of `list_runs`, `list_run_index` and `find_runs` mean; SQL backends are held to it.

    `status` is one, or several of which one must hold. `wait_reason` matches only runs that wait for that reason now.
    """
    statuses = (status,) if isinstance(status, str) else status

    def matches(run: RunState) -> bool:
        return (
            (statuses is None or run.status in statuses)
            and (wait_reason is None or _waits_for(run) == wait_reason)
            and (workflow_id is None or run.workflow_id == workflow_id)
            and (session_id is None or run.session_id == session_id)
            and (actor_id is None or run.actor_id == actor_id)
            and (parent_run_id is None or run.parent_run_id == parent_run_id)
            and not (root_only and run.parent_run_id)
        )

    return matches


def _waits_for(run: RunState) -> WaitReason | None:
    return run.waiting.reason if run.status == RunStatus.WAITING and run.waiting else None


def newest_first(runs: Iterable[RunState]) -> list[RunState]:
    """The order of `list_runs`: `updated_at` descending, then run id."""
    return sorted(sorted(runs, key=lambda run: run.run_id), key=lambda run: run.updated_at, reverse=True)


def due_first(runs: Iterable[RunState], now_iso: str) -> list[RunState]:
    """What `list_due_wait_until` means: waiting, `until` at or before now, not paused; earliest first, then run id."""
    now_iso = iso(parse_instant(now_iso))
    due = (
        run
        for run in runs
        if run.status == RunStatus.WAITING
        and run.waiting
        and run.waiting.until
        and run.waiting.until <= now_iso
        and not run.paused
    )
    return sorted(due, key=lambda run: (run.waiting.until if run.waiting else "", run.run_id))


def index_row(run: RunState) -> dict[str, Any]:
    """A run as a row of `list_run_index`."""
    return {
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "status": str(run.status),
        "wait_reason": str(run.waiting.reason) if run.waiting else None,
        "wait_until": run.waiting.until if run.waiting else None,
        "parent_run_id": run.parent_run_id,
        "actor_id": run.actor_id,
        "session_id": run.session_id,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "run_lifecycle": run.vars.get("_run_lifecycle"),
    }


def checked_limit(limit: int) -> int:
    """The documented rule of limits: nothing or less than one means 100 or 1. None is above `_MOST`."""
    return min(max(1, int(limit)), _MOST) if limit else 100


def is_own(store: object, cls: type, *methods: str) -> bool:
    """Whether `store` is a `cls` whose documented methods no user has overridden, so that it may be joined."""
    return isinstance(store, cls) and all(getattr(type(store), name) is getattr(cls, name) for name in methods)
