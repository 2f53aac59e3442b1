"""A process with a driver, for a test that kills and stops it: `python -m tests.chaos_worker DB WORLD LEASE`.

It drives until it reads a line. Its runs come in pairs of one session: `caller` sends an event to `answerer` and waits
for one back. Either does effects in a task and in a thread, waits for a timer, and has children that act, too.
"""

from __future__ import annotations

import asyncio
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK, iso, parse_instant

from .outside import perform

#: seconds that the world takes to answer, at most
ANSWER_TAKES = 0.3

#: children of a run, and effects outside of one run and of one child
CHILDREN, EFFECTS, EFFECTS_OF_CHILD = 2, 3, 1


def step(name: str, effect_of: Any, after: str) -> Any:
    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan(name, effect_of(run), after)

    return node


def act(kind: str, number: int) -> Any:
    return lambda run: Effect(kind, {"number": number}, f"did.{number}")


def send(name: str) -> Any:
    return lambda run: Effect(EffectType.EMIT_EVENT, {"name": name, "payload": {"of": run.vars["number"]}})


def hear(name: str) -> Any:
    return lambda run: Effect(EffectType.WAIT_EVENT, {"name": name, "scope": "session"}, "heard")


def sleep(run: RunState) -> Effect:
    until = iso(parse_instant(run.updated_at) + timedelta(seconds=run.vars["sleeps"]))
    return Effect(EffectType.WAIT_UNTIL, {"until": until}, "slept")


def bear(run: RunState) -> Effect:
    children = [{"workflow_id": "child", "vars": {"number": number}} for number in range(CHILDREN)]
    return Effect(EffectType.START_SUBWORKFLOW, {"children": children, "wait": True}, "children")


def end(run: RunState, ctx: Any) -> StepPlan:
    heard = (run.vars.get("heard") or {}).get("payload")
    return StepPlan("end", complete_output={"did": run.vars["did"], "heard": heard, "number": run.vars["number"]})


def workflow_of(name: str, *steps: Any) -> WorkflowSpec[Any]:
    names = [f"n{place}" for place in range(len(steps))]
    nodes = {one: step(one, of, after) for one, of, after in zip(names, steps, [*names[1:], "end"], strict=True)}
    return WorkflowSpec(name, "n0", {**nodes, "end": end})


CHILD = workflow_of("child", act("act", 1))
CALLER = workflow_of(
    "caller", act("act", 1), send("ping"), hear("pong"), act("act_in_thread", 2), sleep, bear, act("act", 3)
)
ANSWERER = workflow_of(
    "answerer", act("act", 1), sleep, hear("ping"), act("act_in_thread", 2), send("pong"), bear, act("act", 3)
)
REGISTRY = WorkflowRegistry()
for workflow in (CHILD, CALLER, ANSWERER):
    REGISTRY.register(workflow)


async def main(database: Path, world: Path, lease: float) -> None:
    rng = random.Random()

    async def act(call: EffectCall) -> EffectOutcome:
        await asyncio.to_thread(perform, world, call)
        await SYSTEM_CLOCK.sleep(rng.uniform(0, ANSWER_TAKES))
        return EffectOutcome.completed(call.effect.payload["number"])

    def act_in_thread(call: EffectCall) -> EffectOutcome:
        perform(world, call)
        call.cancelled.wait(rng.uniform(0, ANSWER_TAKES))
        return EffectOutcome.completed(call.effect.payload["number"])

    handlers = {"act": act, "act_in_thread": act_in_thread}
    url = f"sqlite:///{database}"
    async with (
        AsyncRuntime.open(url, effect_handlers=handlers, workflow_registry=REGISTRY, lease_seconds=lease) as rt,
        AsyncScheduler(rt, poll_interval_s=0.1, concurrency=32),
    ):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
