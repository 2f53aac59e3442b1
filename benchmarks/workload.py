"""The workload: runs whose state is a counter and one result, so that the engine is what is measured.

A run goes round one node for ever. Its effect is either an inside one (ANSWER_USER: one commit per step) or an outside
one (a host handler that returns at once: promise and settlement, two commits per step).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    StepPlan,
    WorkflowSpec,
)

#: steps of every run before the clock starts: they open connections, take the lease and fill caches
WARM_UP = 2

KINDS = {"inside": EffectType.ANSWER_USER.value, "outside": "host"}


class Spent(msgspec.Struct, frozen=True):
    """What a number of steps cost."""

    steps: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds

    @property
    def cpu(self) -> float:
        """Microseconds of processor time per step, of all threads."""
        return self.cpu_seconds / self.steps * 1e6


class Stopwatch:
    """Takes the time of a `with` block, after the garbage of others was collected."""

    def __enter__(self) -> Stopwatch:
        gc.collect()
        self._cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu

    def spent(self, steps: int) -> Spent:
        """What it took, for so many steps."""
        return Spent(steps, self.seconds, self.cpu_seconds)


def workflow(kind: str) -> WorkflowSpec[Any]:
    """One node that goes round for ever; `kind` is a key of `KINDS`."""
    effect = Effect(KINDS[kind], {"message": "The next step is done."}, "result")
    plan = StepPlan("work", effect=effect, next_node="work")

    def work(run: RunState, ctx: object) -> StepPlan:
        run.vars["counter"] = run.vars.get("counter", 0) + 1
        return plan

    return WorkflowSpec(workflow_id=f"benchmark-{kind}", entry_node="work", nodes={"work": work})


async def handle(call: EffectCall) -> EffectOutcome:
    """The host's handler: done at once."""
    return EffectOutcome.completed({"message": "done", "level": "message"})


async def warm(runtime: AsyncRuntime, spec: WorkflowSpec[Any], runs: int) -> list[str]:
    """Start so many runs and warm them up; their ids."""
    ids = await asyncio.gather(*(runtime.start(workflow=spec) for _ in range(runs)))
    await asyncio.gather(*(runtime.tick(workflow=spec, run_id=run_id, max_steps=WARM_UP) for run_id in ids))
    return list(ids)


async def drive(runtime: AsyncRuntime, spec: WorkflowSpec[Any], ids: Sequence[str], steps: int) -> Spent:
    """Move every run by so many steps, all at the same time."""
    with Stopwatch() as watch:
        await asyncio.gather(*(runtime.tick(workflow=spec, run_id=run_id, max_steps=steps) for run_id in ids))
    return watch.spent(steps * len(ids))
