"""A process for tests of several on one database: `python -m tests.process_worker drive|hold DB WORLD ...`.

`drive SEED RUNS` moves many runs in an order of its own, until all have ended; others do the same.
`hold LEASE HOW` moves one run, says `inside` in its effect and stays there until it reads a line.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK
from abstractruntime.core.models import TERMINAL

from .killed_worker import WORKFLOW, outcome
from .outside import perform

#: seconds between two looks at a run that is busy elsewhere
GLANCE = 0.02


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect("act", {}, "by"), "ask" if run.vars.get("ask") else "end")


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"by": run.vars["by"]})


HELD: WorkflowSpec[Any] = WorkflowSpec("held", "act", {"act": act, "ask": ask, "end": end})
RUN = "the-run"


async def drive(database: Path, world: Path, seed: str, runs: str) -> None:
    """Move all runs to their ends, together with whoever else does."""

    async def act(call: EffectCall) -> EffectOutcome:
        await asyncio.to_thread(perform, world, call)
        return outcome(call)

    def act_in_thread(call: EffectCall) -> EffectOutcome:
        perform(world, call)
        return outcome(call)

    numbers = list(range(int(runs)))
    random.Random(seed).shuffle(numbers)
    say("ready")
    await listen()
    async with SqliteDatabase(database) as db:
        stores = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores, effect_handlers={"act": act, "act_in_thread": act_in_thread}) as rt:
            await asyncio.gather(*(to_the_end(rt, number) for number in numbers))


async def to_the_end(rt: AsyncRuntime, number: int) -> None:
    run_id = await rt.start(workflow=WORKFLOW, run_id=f"run-{number}", vars={"number": number})
    state = await rt.tick(workflow=WORKFLOW, run_id=run_id, max_steps=3)
    while state.status not in TERMINAL:
        if state.status is RunStatus.WAITING:
            assert state.waiting is not None
            state = await rt.resume(
                workflow=WORKFLOW,
                run_id=run_id,
                wait_key=state.waiting.wait_key,
                payload={"text": f"yes {number}"},
                resume_id=f"answer-{number}",
            )
        else:
            if state.intent is not None:
                await SYSTEM_CLOCK.sleep(GLANCE)
            state = await rt.tick(workflow=WORKFLOW, run_id=run_id, max_steps=3)


async def hold(database: Path, world: Path, lease: str, how: str) -> None:
    """Perform the effect of one run and stay in its handler until told to go on."""

    async def act(call: EffectCall) -> EffectOutcome:
        perform(world, call)
        say("inside")
        try:
            await WAYS[how]()
        except asyncio.CancelledError:
            say("cancelled")
            raise
        return EffectOutcome.completed("the owner")

    def act_in_thread(call: EffectCall) -> EffectOutcome:
        perform(world, call)
        say("inside")
        while not call.cancelled.wait(GLANCE):
            continue
        say("cancelled")
        return EffectOutcome.cancelled()

    async with SqliteDatabase(database) as db:
        stores = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        handler: Callable[..., Any] = act_in_thread if how == "thread" else act
        async with AsyncRuntime(**stores, effect_handlers={"act": handler}, lease_seconds=float(lease)) as rt:
            state = await rt.tick(workflow=HELD, run_id=RUN)
            say(f"{state.status} {state.paused} {state.vars.get('by')}")


async def listen() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def listen_deaf() -> None:
    """As a process that is paused: nothing else in it moves, its lease is not renewed and it hears nothing."""
    sys.stdin.readline()


WAYS = {"listening": listen, "deaf": listen_deaf}


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    mode, database, world, *rest = sys.argv[1:]
    asyncio.run({"drive": drive, "hold": hold}[mode](Path(database), Path(world), *rest))
