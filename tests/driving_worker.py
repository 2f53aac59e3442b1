"""A process with a driver on a database: `python -m tests.driving_worker DB WORLD NAME LEASE`.

It drives until it reads a line. `WORLD` is a file with a line for each call of the handler: the run and the process.
What a process named `stuck` is at never ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectOutcome,
    RunState,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect("work", {}, "did"), "again")


def again(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("again", Effect("work", {}, "did"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"did": run.vars["did"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("driven", "act", {"act": act, "again": again, "end": end})


async def main(database: str, world: str, name: str, lease: str) -> None:
    descriptor = os.open(world, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def work(call: Any) -> EffectOutcome:
        os.write(descriptor, f"{call.key} {name}\n".encode())
        await SYSTEM_CLOCK.sleep(3600 if name == "stuck" else 0.002)
        return EffectOutcome.completed(name)

    registry = WorkflowRegistry()
    registry.register(WORKFLOW)
    async with (
        AsyncRuntime.open(
            f"sqlite:///{Path(database)}", effect_handlers={"work": work}, lease_seconds=float(lease)
        ) as rt,
        AsyncScheduler(rt, registry, poll_interval_s=0.05, concurrency=8),
    ):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
