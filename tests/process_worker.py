"""A process for tests of several on one database: `python -m tests.process_worker drive|hold|answer DB WORLD ...`.

`drive SEED RUNS LEASE` moves many runs in an order of its own, until all have ended; others do the same.
`hold LEASE HOW` moves one run, says `inside` in its effect and stays there until it reads a line. With `promised` it
also says so, and stays there, when the effect is promised and nobody performs it yet.
`answer NAME` answers what the run waits for as soon as it reads a line, and says whether its answer was the one.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine
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
    StaleResumeError,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.core.backend import Write
from abstractruntime.core.clock import SYSTEM_CLOCK
from abstractruntime.core.models import TERMINAL

from .killed_worker import WORKFLOW, answer, handlers
from .outside import perform

#: runs that one process moves at once
HANDS = 5

#: seconds to wait before looking again
GLANCE = 0.005


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect("act", {}, "by"), "ask" if run.vars.get("ask") else "end")


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"by": run.vars["by"]})


HELD: WorkflowSpec[Any] = WorkflowSpec("held", "act", {"act": act, "ask": ask, "end": end})
RUN = "the-run"


async def drive(database: Path, world: Path, seed: str, runs: str, lease: str = "30") -> None:
    """Move all runs to their ends, a few steps at a time, together with whoever else does."""
    rng = random.Random(seed)
    pending = {f"run-{number}" for number in range(int(runs))}
    async with SqliteDatabase(database) as db:
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores, effect_handlers=handlers(world), lease_seconds=float(lease)) as rt:
            for run_id in sorted(pending):
                await rt.start(workflow=WORKFLOW, run_id=run_id, vars={"number": int(run_id[4:])})
            say("ready")
            await listen()
            await asyncio.gather(*(hand(rt, rng, pending) for _ in range(HANDS)))


async def hand(rt: AsyncRuntime, rng: random.Random, pending: set[str]) -> None:
    """Take any run and move it a little, until none is left. Hands of one process and of others may meet at a run."""
    while pending:
        run_id = rng.choice(sorted(pending))
        state = await rt.tick(workflow=WORKFLOW, run_id=run_id, max_steps=rng.randint(1, 3))
        if state.status is RunStatus.WAITING:
            state = await answer(rt, state)
        if state.status in TERMINAL:
            pending.discard(run_id)
        elif state.intent is not None:
            await SYSTEM_CLOCK.sleep(GLANCE)  # it is busy elsewhere


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
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        if how == "promised":
            stores["run_store"] = StopsAtPromises(stores["run_store"])
        handler: Callable[..., Any] = act_in_thread if how == "thread" else act
        async with AsyncRuntime(**stores, effect_handlers={"act": handler}, lease_seconds=float(lease)) as rt:
            state = await rt.tick(workflow=HELD, run_id=RUN)
            say(f"{state.status} {state.paused} {state.vars.get('by')}")


async def reply(database: Path, world: Path, name: str) -> None:
    """Answer the question that stands, at the same time as others do."""
    async with SqliteDatabase(database) as db:
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores) as rt:
            wait = (await rt.get_state(RUN)).waiting
            assert wait is not None
            say("ready")
            await listen()
            answer: dict[str, Any] = {
                "workflow": HELD,
                "run_id": RUN,
                "wait_key": wait.wait_key,
                "payload": os.getpid(),
            }
            try:
                await rt.resume(**answer, max_steps=0)
                say("delivered")
            except StaleResumeError:
                say("stale")


async def listen() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def listen_deaf() -> None:
    """As a process that is paused: nothing else in it moves, its lease is not renewed and it hears nothing."""
    sys.stdin.readline()


class StopsAtPromises:
    """A run store whose process stands still as soon as a promise is durable."""

    def __init__(self, run_store: Any) -> None:
        self._run_store = run_store

    def join(self, ledger_store: Any) -> Any:
        backend: Any = self._run_store.join(ledger_store)
        commit = backend.commit

        async def commit_and_stop(write: Write) -> None:
            await commit(write)
            if write.run.intent is not None and write.run.intent.token is not None:
                say("promised")
                await listen_deaf()

        backend.commit = commit_and_stop
        return backend


WAYS: dict[str, Callable[[], Awaitable[None]]] = {"listening": listen, "deaf": listen_deaf, "promised": listen_deaf}


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    mode, database, world, *rest = sys.argv[1:]
    work: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"drive": drive, "hold": hold, "answer": reply}
    asyncio.run(work[mode](Path(database), Path(world), *rest))
