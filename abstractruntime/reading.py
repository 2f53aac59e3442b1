"""Looking at runs: state, ledger, traces, limits. What it gives is fresh, and changing it changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .core.chain import verify_ledger_chain
from .core.codec import record_dict
from .core.errors import UnknownRun
from .core.journal import Journal
from .core.layers import LedgerCallback
from .core.models import RunState
from .core.traces import node_traces
from .evidence import evidence_spans, load_evidence


class ReadsRuns:
    """What looking at runs adds to `AsyncRuntime`."""

    _journal: Journal
    #: what nodes find on their run, by name
    _attach: dict[str, Any]

    async def get_state(self, run_id: str, *, resolve: bool = False) -> RunState:
        """A fresh copy of the run as stored. Raises `UnknownRun` (a KeyError).

        Large values that an `OffloadingRunStore` moved out are references; with `resolve` they are values again.
        """
        return (await self._journal.load(run_id, resolve=resolve)).run

    async def get_ledger(self, run_id: str, *, resolve: bool = False) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first; `[]` for an unknown run.

        Large values that an `OffloadingLedgerStore` moved out are references; with `resolve` they are values again.
        """
        backend = self._journal.backend if resolve else self._journal.stored
        return [record_dict(record) for record in await backend.records(run_id)]

    async def verify_ledger(self, run_id: str) -> dict[str, Any]:
        """Check the hash chain of a run's ledger against the run's checkpoint; the report of `verify_ledger_chain`.

        Found are records that were changed, taken out, put in, moved, or cut off at the end. Raises `UnknownRun`, and
        `StoreCorrupt` for what is no record at all.
        """
        stored = self._journal.stored
        while True:
            run = await self._loaded(run_id)
            ledger = [record_dict(record) for record in await stored.records(run_id)]
            again = await self._loaded(run_id)
            if (run.records, run.chain_head) == (again.records, again.chain_head):  # nothing was added meanwhile
                return verify_ledger_chain(ledger, head=run.chain_head, count=run.records)

    async def _loaded(self, run_id: str) -> RunState:
        loaded = await self._journal.stored.load(run_id)
        if loaded is None:
            raise UnknownRun(run_id)
        return loaded.run

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

    async def list_evidence(self, run_id: str) -> list[dict[str, Any]]:
        """What tools of the run brought back, oldest first: an entry for each evidence, named by `artifact_id`.

        Entries have `kind`, `created_at`, `tool_name`, `call_id`, `success`, and what it is about (`url`, `query` or
        `command_preview`). Raises `UnknownRun`.
        """
        return evidence_spans((await self.get_state(run_id, resolve=True)).vars)

    async def load_evidence(self, evidence_id: str) -> dict[str, Any] | None:
        """The evidence with this `artifact_id`; None when the artifact store has none of it.

        It tells the tool, its arguments, what came back in short, and in `artifacts` the references to the rest.
        Raises RuntimeError without an artifact store, `InvalidId`, and StoreCorrupt when it is damaged.
        """
        store = self._attach["_runtime_artifact_store"]
        if store is None:
            raise RuntimeError("Evidence is kept in an artifact store; give the runtime artifact_store=.")
        return await load_evidence(store, evidence_id)
