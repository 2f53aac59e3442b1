"""What a call of the blocking `Runtime` costs beside the same call awaited on `AsyncRuntime`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from abstractruntime import AsyncRuntime, InMemoryLedgerStore, InMemoryRunStore, Runtime

from .table import Row, row
from .workload import Stopwatch, workflow

_CALLS = 2000

#: per call: (tick of one step, get_state), in microseconds
Costs = tuple[float, float]


def rows(*, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of the façade."""
    calls = max(10, round(_CALLS * scale))
    found = [(_blocking(calls), asyncio.run(_awaited(calls))) for _ in range(rounds)]
    for index, what in enumerate(("Runtime.tick of one step", "Runtime.get_state")):
        pairs = [(blocking[index], awaited[index]) for blocking, awaited in found]
        yield row(f"{what}, in memory", "us", pairs, "the same call awaited")


def _blocking(calls: int) -> Costs:
    spec = workflow("inside")
    with Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore()) as runtime:
        run_id = runtime.start(workflow=spec)
        runtime.tick(workflow=spec, run_id=run_id, max_steps=1)
        with Stopwatch() as ticks:
            for _ in range(calls):
                runtime.tick(workflow=spec, run_id=run_id, max_steps=1)
        with Stopwatch() as reads:
            for _ in range(calls):
                runtime.get_state(run_id)
    return ticks.seconds / calls * 1e6, reads.seconds / calls * 1e6


async def _awaited(calls: int) -> Costs:
    spec = workflow("inside")
    async with AsyncRuntime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore()) as runtime:
        run_id = await runtime.start(workflow=spec)
        await runtime.tick(workflow=spec, run_id=run_id, max_steps=1)
        with Stopwatch() as ticks:
            for _ in range(calls):
                await runtime.tick(workflow=spec, run_id=run_id, max_steps=1)
        with Stopwatch() as reads:
            for _ in range(calls):
                await runtime.get_state(run_id)
    return ticks.seconds / calls * 1e6, reads.seconds / calls * 1e6
