"""What stores say can move: the same on each, at its time, and led by indexes."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectOutcome,
    EffectType,
    RunState,
    StepPlan,
    WaitReason,
    WorkflowSpec,
)
from abstractruntime.core.backend import Backend, Write
from abstractruntime.core.clock import iso
from abstractruntime.core.codec import encode_run
from abstractruntime.core.models import Message, Request
from abstractruntime.core.policy import DefaultEffectPolicy
from abstractruntime.storage.sqlite import SqliteDatabase
from abstractruntime.storage.sqlite.statements import QUERIES

from .clocks import StillClock


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect(run.vars["effect"], dict(run.vars.get("payload") or {}), "did"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={})


WF: WorkflowSpec[Any] = WorkflowSpec("wf", "act", {"act": act, "end": end})


class World:
    """A runtime whose runs are named, and what its store says of them."""

    def __init__(self, rt: AsyncRuntime, clock: StillClock) -> None:
        self.rt, self.clock = rt, clock
        self.backend: Backend = rt._journal.stored

    async def start(self, run_id: str, effect: str = "work", /, *, tick: bool = True, **payload: Any) -> None:
        await self.rt.start(workflow=WF, run_id=run_id, session_id="s", vars={"effect": effect, "payload": payload})
        if tick:
            await self.tick(run_id)

    async def tick(self, name: str) -> RunState:
        return await self.rt.tick(workflow=WF, run_id=name)

    async def due(self, **options: Any) -> list[str]:
        rows = await self.backend.due(iso(self.clock.now()), **{"limit": 100, **options})
        for row in rows:
            state = await self.rt.get_state(row.run_id)
            assert (row.workflow_id, row.revision) == (state.workflow_id, state.revision)
        return [row.run_id for row in rows]

    async def next(self) -> float | None:
        """Seconds until then."""
        at = await self.backend.next_due(iso(self.clock.now()))
        return None if at is None else (iso_seconds(at) - iso_seconds(iso(self.clock.now())))

    def later(self, seconds: float) -> str:
        return iso(self.clock.now() + timedelta(seconds=seconds))


def iso_seconds(text: str) -> float:
    from_hour = text.partition("T")[2].partition("+")[0].split(":")
    return int(from_hour[0]) * 3600 + int(from_hour[1]) * 60 + float(from_hour[2])


@pytest.fixture(params=["memory", "sqlite", "files"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kinds = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/runs.db", "files": f"files:{tmp_path}/data"}
    clock = StillClock()

    async def work(call: Any) -> EffectOutcome:
        return EffectOutcome.failed("not yet") if call.attempt == 1 else EffectOutcome.completed("done")

    async with AsyncRuntime.open(
        kinds[request.param],
        clock=clock,
        effect_handlers={"work": work},
        effect_policy=DefaultEffectPolicy(2, 60.0),
        workflow_registry={"wf": WF},
    ) as rt:
        yield World(rt, clock)


async def test_nothing_is_due_where_nothing_is(world):
    assert (await world.due(), await world.next()) == ([], None)


async def test_a_new_run_is_due_at_once_until_it_rests(world):
    await world.start("new", EffectType.ASK_USER, tick=False, prompt="?")
    assert await world.due() == ["new"]
    await world.tick("new")
    assert (await world.due(), await world.next()) == ([], None)


async def test_timers_and_deadlines_are_due_at_their_instants_earliest_first(world):
    await world.start("late", EffectType.WAIT_UNTIL, until=world.later(20))
    await world.start("soon", EffectType.WAIT_EVENT, wait_key="k", until=world.later(10))
    assert (await world.due(), await world.next()) == ([], 10)
    world.clock.advance(10)
    assert (await world.due(), await world.next()) == (["soon"], 10)
    world.clock.advance(10)
    assert (await world.due(), await world.next()) == (["soon", "late"], None)


async def test_time_does_not_count_while_a_run_is_paused(world):
    await world.start("held", EffectType.WAIT_UNTIL, until=world.later(10))
    await world.rt.pause_run("held")
    assert await world.next() is None
    world.clock.advance(11)
    assert await world.due() == []
    await world.rt.resume_run("held")
    assert await world.due() == ["held"]


async def test_a_paused_run_that_ran_is_not_due(world):
    await world.start("held", tick=False)
    await world.rt.pause_run("held")
    assert await world.due() == []
    await world.rt.resume_run("held")
    assert await world.due() == ["held"]


async def test_the_next_attempt_is_due_after_its_pause(world):
    await world.start("again")
    assert (await world.due(), await world.next()) == ([], 60)
    world.clock.advance(60)
    assert (await world.due(), await world.next()) == (["again"], None)
    await world.tick("again")
    assert await world.due() == []


async def test_a_message_that_lies_there_makes_its_reader_due(world):
    await world.start("reads", EffectType.WAIT_EVENT, name="paid")
    await world.rt._journal.backend.send([message(world)])
    assert await world.due() == ["reads"]
    await world.tick("reads")
    assert await world.due() == []


def message(world: World) -> Any:
    from_host = {"event_id": "e", "name": "paid", "scope": "session", "session_id": "s", "payload": {}}
    envelope = {**from_host, "emitted_at": iso(world.clock.now()), "emitter": {"source": "external"}}
    return Message(stream="session:s", name="paid", message_id="e", at=iso(world.clock.now()), data=envelope)


async def test_the_end_of_a_child_makes_its_parent_due(world):
    world.rt.set_workflow_registry(Registry())
    asks = {"effect": EffectType.ASK_USER, "payload": {"prompt": "?"}}
    await world.start("parent", EffectType.START_SUBWORKFLOW, workflow_id="wf", vars=asks)
    assert await world.due() == []
    (child,) = (await world.rt.find_runs(parent_run_id="parent")).items
    state = await world.rt.get_state(child["run_id"])
    await world.rt.resume(workflow=WF, run_id=state.run_id, wait_key=state.waiting.wait_key, payload={"text": "yes"})
    assert await world.due() == ["parent"]
    await world.tick("parent")
    assert await world.due() == []


class Registry:
    """Knows the one workflow."""

    def get(self, workflow_id: str) -> WorkflowSpec[Any] | None:
        return WF if workflow_id == "wf" else None


async def test_a_request_that_stands_makes_its_run_due(world):
    await world.start("asked", EffectType.ASK_USER, prompt="?")
    await world.start("asks", tick=False)
    loaded = await world.backend.load("asks")
    commit = await request_of(world, loaded.run)
    await world.backend.commit(commit)
    assert set(await world.due()) == {"asked", "asks"}
    await world.tick("asked")
    assert await world.due() == ["asks"]


async def request_of(world: World, run: RunState) -> Write:
    run.revision += 1
    return Write(
        run=run,
        data=encode_run(run),
        expected=run.revision - 1,
        expected_records=run.records,
        requests=(Request(run_id="asked", kind="cancel", reason="enough", by="asks", at=iso(world.clock.now())),),
    )


async def test_some_of_each_kind_within_the_limit_and_none_that_is_passed_over(world):
    for number in range(5):
        await world.start(f"new-{number}", tick=False)
    await world.start("timer", EffectType.WAIT_UNTIL, until=world.later(1))
    world.clock.advance(2)
    found = await world.due(limit=2)
    assert "timer" in found
    assert len(found) == 2
    assert await world.due(passing=["timer", "new-0", "new-1", "new-2", "new-3"]) == ["new-4"]


async def test_of_what_may_be_in_other_hands_a_store_says_so(world):
    await world.start("new", tick=False)
    await world.start("timer", EffectType.WAIT_UNTIL, until=world.later(1))
    world.clock.advance(2)
    rows = await world.backend.due(iso(world.clock.now()), limit=10)
    assert {row.run_id: row.between for row in rows} == {"new": True, "timer": False}


def bear(run: RunState, ctx: Any) -> StepPlan:
    """One child that ends at once, then two of which one waits."""
    waits = {"effect": EffectType.WAIT_EVENT, "payload": {"wait_key": "go"}}
    acts = {"effect": EffectType.ANSWER_USER, "payload": {"message": "hello"}}
    first = "first" not in run.vars
    children = [{"workflow_id": "wf", "vars": vars} for vars in ([acts] if first else [acts, waits])]
    effect = Effect(EffectType.START_SUBWORKFLOW, {"children": children, "wait": True}, "first" if first else "then")
    return StepPlan("bear", effect, "bear" if first else "end")


async def test_a_run_that_knows_of_the_ends_of_its_children_is_not_looked_at_for_them(world):
    parent: WorkflowSpec[Any] = WorkflowSpec("parent", "bear", {"bear": bear, "end": end})
    state = await world.rt.run(parent, run_id="parent")
    assert state.waiting is not None
    assert state.waiting.reason is WaitReason.SUBWORKFLOW
    assert await world.due() == []
    (wait,) = (await world.rt.find_waits(wait_key="go")).items
    await world.rt.resume(workflow=WF, run_id=wait["run_id"], wait_key="go", payload={}, max_steps=0)
    assert await world.due() == [wait["run_id"]]
    await world.tick(wait["run_id"])
    assert await world.due() == ["parent"]
    await asyncio.gather(world.rt.pause_run("parent"), world.start("beside"))
    await asyncio.gather(world.rt.resume_run("parent"), world.start("another"))
    assert "parent" in await world.due(), "it is stored anew and still does not know"


@pytest.mark.parametrize("name", [name for name in QUERIES if name.startswith("due_") or name.startswith("next_")])
def test_every_question_is_led_by_an_index_of_its_own(name, tmp_path):
    indexes = {
        "due_running": "states_due",
        "due_timers": "waits_by_due",
        "due_messages": "waits_heard",
        "due_parents": "waits_stirred",
        "due_requests": "states_requested",
        "next_attempt": "states_due",
        "next_timer": "waits_by_due",
    }
    values: Any = dict.fromkeys(("passing", "watched", "resting", "alive", "others"), "[]")
    values |= {"now": "2026", "micros": 1, "limit": 1}
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        connection = database.connection()
        parameters = (1,) if "?" in QUERIES[name] else values
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", parameters)]
        connection.close()
    assert f"INDEX {indexes[name]}" in plan[0], plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_a_watched_run_comes_when_its_owner_has_died(tmp_path):
    clock = StillClock()
    async with (
        AsyncRuntime.open(f"sqlite:///{tmp_path}/runs.db", clock=clock) as rt,
        AsyncRuntime.open(f"sqlite:///{tmp_path}/runs.db", clock=clock) as other,
    ):
        world = World(rt, clock)
        await world.start("held", tick=False)
        assert await world.due(watched=["held"]) == []
        await other._leases.ensure()
        with sqlite3.connect(tmp_path / "runs.db") as connection:
            connection.execute("UPDATE states SET owner = ?", (other._leases.owner,))
        connection.close()
        (row,) = await world.backend.due(iso(clock.now()), limit=10)
        assert row.between
        assert await world.due(watched=["held"]) == []
        await other._leases.close()
        (row,) = await world.backend.due(iso(clock.now()), limit=10, watched=["held"])
        assert not row.between
        assert await world.due(watched=["held"], owner=other._leases.owner) == []
        assert await world.due(passing=["held"]) == []
