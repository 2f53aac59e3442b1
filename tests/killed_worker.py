"""Processes that drive several runs to their ends, for a test that kills them.

`python -m tests.killed_worker` reads a line `DB WORLD RUNS` for each and forks it, which takes milliseconds where a
new interpreter takes half a second. Each goes on with whatever it finds half done, and ends with code 0 when all runs
have ended. Told are its process id, when it begins, and then the code it ended with, which is the negative signal of
one that was killed.
"""

from __future__ import annotations

import asyncio
import os
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

from .outside import perform

#: outside effects of one run: these in a loop, one in a thread, one after the answer
LOOPS = 3
OUTSIDE = LOOPS + 2

#: seconds
ANSWER_TAKES = 0.005


def say(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("say", Effect(EffectType.ANSWER_USER, {"message": "hello"}, "said"), "act")


def act(run: RunState, ctx: Any) -> StepPlan:
    """The same effect several times: each must be performed."""
    count = run.vars["count"] = run.vars.get("count", 0) + 1
    effect = Effect("act", {"of": run.vars["number"]}, f"acts.{count}")
    return StepPlan("act", effect, "act" if count < LOOPS else "hop")


def hop(run: RunState, ctx: Any) -> StepPlan:
    run.vars["hops"] = run.vars.get("hops", 0) + 1
    return StepPlan("hop", next_node="threaded")


def threaded(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("threaded", Effect("act_in_thread", {}, "acts.threaded"), "past")


def past(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("past", Effect(EffectType.WAIT_UNTIL, {"until": "2020-01-01T00:00:00Z"}, "past"), "ask")


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "last")


def last(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("last", Effect("act", {"last": True}, "acts.last"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={name: run.vars[name] for name in ("number", "hops", "answer", "acts")})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(
    "killed",
    "say",
    {"say": say, "act": act, "hop": hop, "threaded": threaded, "past": past, "ask": ask, "last": last, "end": end},
)


def expected_output(number: int) -> dict[str, Any]:
    names = [*(str(count + 1) for count in range(LOOPS)), "threaded", "last"]
    return {
        "number": number,
        "hops": 1,
        "answer": {"text": f"yes {number}"},
        "acts": {name: {"step": step} for step, name in enumerate(names, 1)},
    }


def outcome(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.completed({"step": len(call.run.vars.get("acts", {})) + 1})


def handlers(world: Path) -> dict[str, Callable[..., Any]]:
    """The outside effects, one async and one in a thread. The world acts, and its answer takes a moment."""

    async def act(call: EffectCall) -> EffectOutcome:
        await asyncio.to_thread(perform, world, call)
        await SYSTEM_CLOCK.sleep(ANSWER_TAKES)
        return outcome(call)

    def act_in_thread(call: EffectCall) -> EffectOutcome:
        perform(world, call)
        call.cancelled.wait(ANSWER_TAKES)
        return outcome(call)

    return {"act": act, "act_in_thread": act_in_thread}


async def main(database: Path, world: Path, runs: int) -> None:
    async with SqliteDatabase(database, synchronous="FULL") as db:
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores, effect_handlers=handlers(world)) as rt:
            await asyncio.gather(*(drive(rt, number) for number in range(runs)))


async def drive(rt: AsyncRuntime, number: int) -> None:
    run_id = f"run-{number}"
    await rt.start(workflow=WORKFLOW, run_id=run_id, vars={"number": number})
    state = await rt.tick(workflow=WORKFLOW, run_id=run_id)
    if state.status is RunStatus.WAITING:
        state = await answer(rt, state)
    assert state.status is RunStatus.COMPLETED, state


async def answer(rt: AsyncRuntime, state: RunState) -> RunState:
    """Answer the question; however many do, it counts once."""
    assert state.waiting is not None
    return await rt.resume(
        workflow=WORKFLOW,
        run_id=state.run_id,
        wait_key=state.waiting.wait_key,
        payload={"text": f"yes {state.vars['number']}"},
        resume_id="the-answer",
    )


def bear(database: str, world: str, runs: str) -> int:
    """Let one process live until it ends; its id, which is nobody else's before it is reaped."""
    pid = os.fork()
    if pid == 0:
        asyncio.run(main(Path(database), Path(world), int(runs)))
        os._exit(0)
    print(pid, flush=True)
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    print(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status, flush=True)
    return pid


if __name__ == "__main__":
    ended: int | None = None
    for line in sys.stdin:
        if ended is not None:
            os.waitpid(ended, 0)
        ended = bear(*line.split())
