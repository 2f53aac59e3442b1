"""Fan-out and join: a run starts a run of its own for every topic, at most two at a time, and puts together what they
found. One of them fails and is told apart; then two mirrors are asked, and the first that answers wins.
"""

from __future__ import annotations

import asyncio
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectCall,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)

TOPICS = ["durability", "unicorns", "leases", "streams"]


def look_up(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("look_up", Effect("search", {"topic": run.vars["topic"]}, "found"), "answer")


def answer(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("answer", complete_output={"answer": run.vars["found"]})


def fan_out(run: RunState, ctx: Any) -> StepPlan:
    children = [{"workflow_id": "research", "vars": {"topic": topic}} for topic in TOPICS]
    effect = Effect("start_subworkflow", {"children": children, "max_parallel": 2, "join": "collect"}, "research")
    return StepPlan("fan_out", effect, "race")


def race(run: RunState, ctx: Any) -> StepPlan:
    children = [{"workflow_id": "research", "vars": {"topic": f"mirror {name}"}} for name in ("asleep", "awake")]
    return StepPlan("race", Effect("start_subworkflow", {"children": children, "join": "any"}, "mirror"), "report")


def report(run: RunState, ctx: Any) -> StepPlan:
    found = [result["output"]["answer"] if "output" in result else None for result in run.vars["research"]["results"]]
    return StepPlan("report", complete_output={"found": found, "mirror": run.vars["mirror"]["output"]["answer"]})


RESEARCH: WorkflowSpec[Any] = WorkflowSpec("research", "look_up", {"look_up": look_up, "answer": answer})
REPORT: WorkflowSpec[Any] = WorkflowSpec("report", "fan_out", {"fan_out": fan_out, "race": race, "report": report})


class Library:
    """The world outside: it takes its time, and does not know everything."""

    def __init__(self) -> None:
        self.readers, self.most = 0, 0

    async def search(self, call: EffectCall) -> EffectOutcome:
        topic = call.payload["topic"]
        self.readers += 1
        self.most = max(self.most, self.readers)
        try:
            await asyncio.sleep(3600 if topic == "mirror asleep" else 0.01)
        finally:
            self.readers -= 1
        if topic == "unicorns":
            return EffectOutcome.failed("nothing is known about unicorns", retryable=False)
        return EffectOutcome.completed(f"all about {topic}")


async def main() -> None:
    library, registry = Library(), WorkflowRegistry()
    registry.register(RESEARCH)
    async with AsyncRuntime(
        run_store=InMemoryRunStore(),
        ledger_store=InMemoryLedgerStore(),
        effect_handlers={"search": library.search},
        workflow_registry=registry,
    ) as rt:
        state = await rt.run(REPORT, run_id="report")
        print(f"{state.status}: {state.output}")
        print(f"most at once: {library.most}")
        children = (await rt.find_runs(parent_run_id="report")).items
        for row in reversed(children):
            child = await rt.get_state(row["run_id"])
            print(f"  {child.vars['topic']:<15} {child.status:<10} {child.error or ''}".rstrip())


if __name__ == "__main__":
    asyncio.run(main())
