"""A fleet: a thousand agents on one event loop and one SQLite file, and a driver that moves them.

    python examples/fleet.py [agents]

Each agent thinks, sleeps, has a helper look something up (a run of its own, which sleeps, too), waits until the lead of
its team says go, and tells the lead when it is done. At the end everything is read back from the file and counted.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    Page,
    RunState,
    RunStatus,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)

TEAM = 50


def sleep(node_id: str, seconds: float, ctx: Any, next_node: str) -> StepPlan:
    until = datetime.fromisoformat(ctx.now_iso()) + timedelta(seconds=seconds)
    return StepPlan(node_id, Effect(EffectType.WAIT_UNTIL, {"until": until.isoformat()}), next_node)


# -- an agent


def think(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("think", Effect("think", {"agent": run.vars["agent"]}, "topic"), "nap")


def nap(run: RunState, ctx: Any) -> StepPlan:
    return sleep("nap", 0.1 * (run.vars["agent"] % 10), ctx, "delegate")


def delegate(run: RunState, ctx: Any) -> StepPlan:
    child = {"workflow_id": "helper", "vars": {"topic": run.vars["topic"]}}
    return StepPlan("delegate", Effect(EffectType.START_SUBWORKFLOW, child, "help"), "listen")


def listen(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("listen", Effect(EffectType.WAIT_EVENT, {"name": "go"}, "go"), "tell")


def tell(run: RunState, ctx: Any) -> StepPlan:
    done = {"name": "done", "payload": {"agent": run.vars["agent"]}}
    return StepPlan("tell", Effect(EffectType.EMIT_EVENT, done, "told"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    found, word = run.vars["help"]["output"]["found"], run.vars["go"]["payload"]
    return StepPlan("end", complete_output={"agent": run.vars["agent"], "found": found, "lead": word["lead"]})


# -- its helper


def rest(run: RunState, ctx: Any) -> StepPlan:
    return sleep("rest", 0.2, ctx, "look_up")


def look_up(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("look_up", Effect("look_up", {"topic": run.vars["topic"]}, "found"), "report")


def report(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("report", complete_output={"found": run.vars["found"]})


# -- the lead of a team


def begin(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("begin", Effect(EffectType.WAIT_EVENT, {"name": "begin", "scope": "global"}), "go")


def go(run: RunState, ctx: Any) -> StepPlan:
    word = {"name": "go", "payload": {"lead": run.run_id}}
    return StepPlan("go", Effect(EffectType.EMIT_EVENT, word), "hear")


def hear(run: RunState, ctx: Any) -> StepPlan:
    heard, got = run.vars.setdefault("heard", []), run.vars.pop("got", {})
    if "payload" in got:
        heard.append(got["payload"]["agent"])
    if len(heard) == run.vars["team"] or "timed_out" in got:
        return StepPlan("hear", complete_output={"heard": heard})
    return StepPlan("hear", Effect(EffectType.WAIT_EVENT, {"name": "done", "timeout_s": 300}, "got"), "hear")


AGENT_NODES = {"think": think, "nap": nap, "delegate": delegate, "listen": listen, "tell": tell, "end": end}
AGENT: WorkflowSpec[Any] = WorkflowSpec("agent", "think", AGENT_NODES)
HELPER: WorkflowSpec[Any] = WorkflowSpec("helper", "rest", {"rest": rest, "look_up": look_up, "report": report})
LEAD: WorkflowSpec[Any] = WorkflowSpec("lead", "begin", {"begin": begin, "go": go, "hear": hear})


class World:
    """What the handlers reach, with a count of calls by idempotency key."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def think(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        await asyncio.sleep(0.05)  # a model
        return EffectOutcome.completed(f"topic {call.payload['agent']}")

    async def look_up(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        await asyncio.sleep(0.02)  # a search
        return EffectOutcome.completed(f"all about {call.payload['topic']}")


class Progress:
    """How far agents and leads are, as the driver tells: a line that is rewritten on a terminal, else one a second."""

    def __init__(self, runs: int) -> None:
        self._runs, self._begun, self._terminal = runs, monotonic(), sys.stdout.isatty()
        self._waiting: set[str] = set()
        self._ended: set[str] = set()
        self.records = 0
        self.all_ended = asyncio.Event()

    @property
    def seconds(self) -> float:
        return monotonic() - self._begun

    def record(self, record: dict[str, Any]) -> None:
        self.records += 1

    def moved(self, run: RunState) -> None:
        if run.parent_run_id is None:
            self._waiting.discard(run.run_id)
            if run.status is RunStatus.WAITING:
                self._waiting.add(run.run_id)
            elif run.status is not RunStatus.RUNNING:
                self._ended.add(run.run_id)
            if len(self._ended) == self._runs:
                self.all_ended.set()

    def say(self) -> None:
        numbers = f"{len(self._waiting):5} waiting  {len(self._ended):5} ended  {self.records:7} records"
        line = f"{self.seconds:5.1f} s  {numbers}"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", flush=True)

    async def show(self) -> None:
        try:
            while True:
                self.say()
                await asyncio.sleep(0.1 if self._terminal else 1)
        finally:
            self.say()
            print(end="\n" if self._terminal else "")


async def live(url: str, agents: int, world: World) -> None:
    """Start them all, give the sign, and wait until the last has ended."""
    registry = WorkflowRegistry()
    for workflow in (AGENT, HELPER, LEAD):
        registry.register(workflow)
    teams = range(0, agents, TEAM)
    progress = Progress(agents + len(teams))
    handlers = {"think": world.think, "look_up": world.look_up}
    async with (
        AsyncRuntime.open(url, workflow_registry=registry, effect_handlers=handlers, on_node_error="fail") as rt,
        AsyncScheduler(rt, concurrency=200, on_run_resumed=progress.moved),
        asyncio.TaskGroup() as group,
    ):
        rt.subscribe_ledger(progress.record)
        showing = group.create_task(progress.show())
        for first in teams:
            size = min(TEAM, agents - first)
            await rt.start(workflow=LEAD, run_id=lead_of(first), session_id=f"team-{first}", vars={"team": size})
        sessions = [(agent, f"team-{agent - agent % TEAM}") for agent in range(agents)]
        starts = [rt.start(workflow=AGENT, session_id=team, vars={"agent": agent}) for agent, team in sessions]
        await asyncio.gather(*starts)  # together, they share the flushes of the disk
        await rt.emit_event(name="begin", scope="global")
        await progress.all_ended.wait()
        seconds = progress.seconds
        showing.cancel()
    runs = 2 * agents + len(teams)
    print(f"{agents} agents, {agents} helpers and {len(teams)} leads in {seconds:.1f} s:", end=" ")
    print(f"{runs / seconds:.0f} runs/s, {progress.records / seconds:.0f} records/s")


def lead_of(agent: int) -> str:
    return f"lead-{agent - agent % TEAM}"


async def read_back(url: str) -> AsyncIterator[tuple[RunState, list[dict[str, Any]]]]:
    """Every run of the file, with its ledger."""
    async with AsyncRuntime.open(url) as rt:
        page = await rt.find_runs(limit=500)
        while page.items:
            for row in page.items:
                yield await rt.get_state(row["run_id"]), await rt.get_ledger(row["run_id"])
            page = await rt.find_runs(limit=500, cursor=page.cursor) if page.cursor else Page(items=[])


async def check(url: str, agents: int, world: World) -> dict[str, bool]:
    """What the file says, and whether it is as it should be."""
    outputs: dict[str, list[Any]] = {"agent": [], "helper": [], "lead": []}
    promised, ended = Counter[str](), Counter[str]()
    runs = records = counted = 0
    async for run, ledger in read_back(url):
        runs, records, counted = runs + 1, records + len(ledger), counted + run.records
        if run.status is RunStatus.COMPLETED:
            outputs[run.workflow_id].append(run.output)
        for record in ledger:
            if (record["effect"] or {}).get("type") in ("think", "look_up"):
                (promised if record["status"] == "started" else ended)[record["idempotency_key"]] += 1
    completed, everyone = sum(map(len, outputs.values())), range(agents)
    answers = {output["agent"]: output["found"] for output in outputs["agent"]}
    words = {output["agent"]: output["lead"] for output in outputs["agent"]}
    heard = sorted(agent for output in outputs["lead"] for agent in output["heard"])
    own = {agent: f"all about topic {agent}" for agent in everyone}
    return {
        f"{completed} of {runs} runs completed": completed == runs == 2 * agents + len(range(0, agents, TEAM)),
        f"{len(answers)} agents have what their own helper found": answers == own,
        f"{len(words)} agents heard their lead": words == {agent: lead_of(agent) for agent in everyone},
        f"{len(heard)} agents were heard by their lead, each once": heard == list(everyone),
        f"{world.calls.total()} calls of handlers, each key once": set(world.calls.values()) == {1},
        f"{promised.total()} promises and {ended.total()} ends of these effects": promised == ended == world.calls,
        f"{records} records, and the states count {counted}": records == counted,
    }


async def main(agents: int) -> bool:
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'fleet.db'}"
        await live(url, agents, world)
        checks = await check(url, agents, world)
    for what, holds in checks.items():
        print("ok  " if holds else "FAIL", what)
    return all(checks.values())


if __name__ == "__main__":
    sys.exit(not asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)))
