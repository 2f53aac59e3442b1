"""Looking at runs: state, ledger, traces, limits. What it gives is fresh, and changing it changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .core.codec import record_dict
from .core.config import LimitWarning, limit_status, limit_warnings
from .core.journal import Journal, LedgerCallback
from .core.models import RunState
from .core.traces import node_traces


class ReadsRuns:
    """What looking at runs adds to `AsyncRuntime`."""

    _journal: Journal

    async def get_state(self, run_id: str) -> RunState:
        """A fresh copy of the run as stored. Raises `UnknownRun` (a KeyError)."""
        return (await self._journal.load(run_id)).run

    async def get_ledger(self, run_id: str) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""
        return [record_dict(record) for record in await self._journal.backend.records(run_id)]

    def subscribe_ledger(self, callback: LedgerCallback, *, run_id: str | None = None) -> Callable[[], None]:
        """Call `callback(record)` for every record this runtime makes durable; returns an idempotent unsubscribe.

        The callback is sync and short; what it raises is logged. Raises TypeError for an async one.
        """
        if inspect.iscoroutinefunction(callback):
            raise TypeError(f"{callback!r} is async; give a sync callback that hands the record to your own queue")
        return self._journal.subscribe(callback, run_id)

    async def get_node_traces(self, run_id: str) -> dict[str, Any]:
        """The run's effects per node, `{node_id: {"node_id", "steps", "updated_at"}}`; `{}` for an unknown run."""
        return node_traces(await self._journal.backend.records(run_id))

    async def get_node_trace(self, run_id: str, node_id: str) -> dict[str, Any]:
        """The trace of one node; `{"node_id", "steps": []}` where there is none."""
        traces = await self.get_node_traces(run_id)
        trace: dict[str, Any] = traces.get(node_id, {"node_id": node_id, "steps": []})
        return trace

    async def get_limit_status(self, run_id: str) -> dict[str, Any]:
        """Iterations, tokens and history beside their limits. Raises `UnknownRun`."""
        return limit_status((await self.get_state(run_id)).vars.get("_limits"))

    def check_limits(self, run_state: RunState) -> list[LimitWarning]:
        """The limits that this state has come near to or exceeded."""
        return limit_warnings(run_state.vars.get("_limits"))
