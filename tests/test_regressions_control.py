"""Cancels, holds and saves that meet an effect in flight: nothing is lost, overwritten, or done twice."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from abstractruntime import (
    EffectCall,
    EffectOutcome,
    Request,
    RevisionConflict,
    RunState,
    RunStatus,
    WaitReason,
    WaitState,
    WorkflowRegistry,
)

from . import worlds
from .worlds import Gate, World, a_moment, ask, eventually, flow, one, statuses

world = worlds.world
async_world = worlds.async_world

HOST = one("host")
EVENT = one("wait_event", {"wait_key": "k"})
NO_RESULT_KEY = one("host", key=None)


class Slow:
    """A handler that waits at a gate, async or in a worker thread, and remembers how it ended."""

    def __init__(self, result: Any = "done") -> None:
        self.gate, self.result = Gate(), result
        self.calls: list[EffectCall] = []
        self.cancelled = 0
        self.ended = 0

    async def asynchronous(self, call: EffectCall) -> EffectOutcome:
        self.calls.append(call)
        try:
            await self.gate.passed()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        return EffectOutcome.completed(self.result)

    def blocking(self, call: EffectCall) -> EffectOutcome:
        self.calls.append(call)
        self.gate.passed_blocking()
        self.ended += 1
        return EffectOutcome.completed(self.result)


async def in_flight(rt: Any, slow: Slow, work: Any = HOST) -> asyncio.Task[RunState]:
    """The tick of run `r`, now inside its handler."""
    task = asyncio.create_task(rt.run(work, run_id="r", vars={"mine": 1}))
    await eventually(lambda: slow.gate.inside)
    return task


async def test_cancel_while_waiting_leaves_nothing_that_could_wake(world: World) -> None:
    rt = world.runtime()
    for kind, payload in (("wait_until", {"until": "2026-02-01"}), ("wait_event", {"wait_key": "k", "timeout_s": 5})):
        work = one(kind, payload)
        await rt.run(work, run_id=kind)
        cancelled = await rt.cancel_run(kind)
        world.clock.advance(10 * 86_400)
        assert (await rt.tick(workflow=work, run_id=kind)).revision == cancelled.revision
        with pytest.raises(ValueError, match="Run is not waiting"):
            await rt.resume(workflow=work, run_id=kind, wait_key=None, payload={})


async def test_cancel_while_in_effect_reaches_an_async_handler(world: World) -> None:
    slow = Slow()
    rt = world.runtime({"host": slow.asynchronous})
    task = await in_flight(rt, slow)
    state = await rt.cancel_run("r", reason="enough")
    assert (state.status, state.error, state.intent) == (RunStatus.CANCELLED, "enough", None)
    returned = await task
    assert (returned.status, returned.vars.get("result")) == (RunStatus.CANCELLED, None)
    assert (slow.cancelled, slow.ended) == (1, 0)
    assert slow.calls[0].cancelled.is_set()
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "host") == ["started", "cancelled"]
    assert ledger[1]["result"] == {"cancelled": True, "outcome": "unknown"}
    assert ledger[-1]["idempotency_key"] == "system:terminal_status:cancelled"
    assert returned.records == len(ledger)


async def test_cancel_while_in_effect_is_seen_by_a_sync_handler_that_looks(world: World) -> None:
    seen = threading.Event()
    entered = threading.Event()

    def polite(call: EffectCall) -> EffectOutcome:
        entered.set()
        if call.cancelled.wait(worlds.PATIENCE):
            seen.set()
        return EffectOutcome.cancelled({"stopped": "half way"})

    rt = world.runtime({"host": polite})
    task = asyncio.create_task(rt.run(HOST, run_id="r"))
    await eventually(entered.is_set)
    await rt.cancel_run("r")
    assert (await task).status is RunStatus.CANCELLED
    await eventually(seen.is_set)
    state = await rt.get_state("r")
    assert (state.status, state.error) == (RunStatus.CANCELLED, "Cancelled")


async def test_an_outcome_that_comes_after_the_cancel_is_journaled_and_changes_nothing_else(world: World) -> None:
    """A handler that shields itself cannot be stopped; what it did must be known."""
    slow = Slow({"paid": 5})

    async def stubborn(call: EffectCall) -> EffectOutcome:
        try:
            return await slow.asynchronous(call)
        except asyncio.CancelledError:
            return EffectOutcome.completed({"paid": 5})

    rt = world.runtime({"host": stubborn})
    task = await in_flight(rt, slow)
    before = await rt.cancel_run("r")
    returned = await task
    assert (returned.status, returned.error, returned.output) == (RunStatus.CANCELLED, "Cancelled", None)
    assert "result" not in returned.vars
    assert returned.updated_at == before.updated_at
    late = (await rt.get_ledger("r"))[-1]
    assert late["status"] == "cancelled"
    assert late["result"] == {"late": True, "status": "completed", "result": {"paid": 5}}
    assert late["step_id"] == "r:0.1"


async def test_cancel_from_another_runtime_of_the_process_reaches_the_handler(world: World) -> None:
    slow = Slow()
    task = await in_flight(world.runtime({"host": slow.asynchronous}), slow)
    await world.runtime().cancel_run("r")
    assert (await task).status is RunStatus.CANCELLED
    assert slow.cancelled == 1


async def test_a_cancel_that_one_run_asks_of_another_reaches_its_handler_at_the_next_beat(world: World) -> None:
    slow = Slow()

    def cancel_other(call: EffectCall) -> EffectOutcome:
        asked = Request(run_id="r", kind="cancel", by=call.run.run_id, at=call.now, reason="asked")
        return EffectOutcome.completed(requests=(asked,))

    rt = world.runtime({"host": slow.asynchronous, "cancel_other": cancel_other})
    task = await in_flight(rt, slow)
    await rt.run(one("cancel_other"))
    assert slow.cancelled == 0
    while not task.done():
        world.clock.advance(1)
        await a_moment()
    assert ((await task).status, (await task).error, slow.cancelled) == (RunStatus.CANCELLED, "asked", 1)


async def test_a_hold_during_an_effect_lands_its_result_and_the_run_goes_on_behind_it(world: World) -> None:
    for work in (HOST, NO_RESULT_KEY):
        slow = Slow("landed")
        rt = world.runtime({"host": slow.blocking})
        run_id = f"r{work is HOST}"
        task = asyncio.create_task(rt.run(work, run_id=run_id))
        await eventually(lambda: len(slow.calls))  # noqa: B023 - it is called in this turn of the loop
        held = await rt.pause_run(run_id, reason="lunch")
        assert (held.status, held.waiting.details) == (RunStatus.WAITING, {"kind": "pause"})
        assert held.intent is not None, "the effect is still on its way"
        slow.gate.open()
        state = await task
        assert (state.status, state.paused) == (RunStatus.WAITING, True)
        assert state.vars.get("result") == ("landed" if work is HOST else None)
        assert state.intent is None
        state = await rt.resume_run(run_id)
        assert (state.status, state.current_node) == (RunStatus.RUNNING, "end")
        assert (await rt.tick(workflow=work, run_id=run_id)).status is RunStatus.COMPLETED
        assert len(slow.calls) == 1


async def test_a_hold_that_ends_before_the_effect_does_no_harm(world: World) -> None:
    slow = Slow()
    rt = world.runtime({"host": slow.blocking})
    task = await in_flight(rt, slow)
    await rt.pause_run("r")
    await rt.resume_run("r")
    slow.gate.open()
    state = await task
    if state.status is RunStatus.RUNNING:
        state = await rt.tick(workflow=HOST, run_id="r")
    assert state.output == {"mine": 1, "result": "done"}
    assert len(slow.calls) == 1


@pytest.mark.parametrize("outcome", ["failed", "waiting", "ended"])
async def test_a_hold_during_an_effect_meets_every_kind_of_outcome(world: World, outcome: str) -> None:
    slow = Slow()

    async def handler(call: EffectCall) -> EffectOutcome:
        await slow.asynchronous(call)
        if outcome == "failed":
            return EffectOutcome.failed("no")
        if outcome == "waiting":
            return EffectOutcome.waiting(WaitState(WaitReason.JOB, "job", None, call.next_node, "result"))
        return EffectOutcome.completed("done")

    rt = world.runtime({"host": handler})
    work = one("host", then=None) if outcome == "ended" else HOST
    task = await in_flight(rt, slow, work)
    await rt.pause_run("r")
    slow.gate.open()
    state: Any = await task
    if outcome == "failed":
        assert (state.status, state.error, state.waiting) == (RunStatus.FAILED, "no", None)
    elif outcome == "ended":
        assert (state.status, state.waiting) == (RunStatus.COMPLETED, None)
    else:
        assert (state.status, state.waiting.wait_key, state.paused) == (RunStatus.WAITING, "job", True)
        await rt.resume_run("r")
        answered = await rt.resume(workflow=work, run_id="r", wait_key="job", payload="at last")
        assert answered.output == {"mine": 1, "result": "at last"}


async def test_what_a_host_changes_during_an_effect_is_not_overwritten(async_world: World) -> None:
    slow = Slow()
    rt = async_world.runtime({"host": slow.asynchronous})
    task = await in_flight(rt, slow)
    await rt.update_limits("r", {"max_iterations": 7})
    run = await rt.run_store.load("r")
    run.vars["theirs"] = 2
    await rt.run_store.save(run)
    slow.gate.open()
    state = await task
    assert state.output == {"mine": 1, "theirs": 2, "result": "done"}
    assert state.vars["_limits"]["max_iterations"] == 7
    assert len(slow.calls) == 1


async def test_a_host_that_builds_the_run_anew_during_an_effect_leaves_the_effect_alone(async_world: World) -> None:
    slow = Slow()
    rt = async_world.runtime({"host": slow.asynchronous})
    task = await in_flight(rt, slow)
    stale = RunState("r", "flow", RunStatus.RUNNING, "work", {"anew": True})
    with pytest.raises(RevisionConflict, match="overwrite=True"):
        await rt.run_store.save(stale)
    await rt.run_store.save(stale, overwrite=True)
    slow.gate.open()
    state = await task
    assert state.output == {"anew": True, "result": "done"}
    assert len(slow.calls) == 1


async def test_a_save_of_what_moved_on_is_refused_and_names_the_way_out(async_world: World) -> None:
    rt = async_world.runtime()
    await rt.run(one("ask_user", {"prompt": "?"}), run_id="r")
    mine = await rt.run_store.load("r")
    theirs = await rt.run_store.load("r")
    theirs.vars["x"] = 1
    await rt.run_store.save(theirs)
    mine.vars["y"] = 1
    with pytest.raises(RevisionConflict) as caught:
        await rt.run_store.save(mine)
    assert (caught.value.expected, caught.value.found) == (mine.revision, theirs.revision)
    fresh = await rt.run_store.load("r")
    fresh.vars["y"] = 1
    await rt.run_store.save(fresh)
    vars = (await rt.get_state("r")).vars
    assert (vars["x"], vars["y"]) == (1, 1)


async def test_many_updates_of_one_run_at_once_are_all_there(world: World) -> None:
    rt, other = world.runtime(), world.runtime()
    await rt.run(one("wait_event", {"wait_key": "k"}), run_id="r")
    names = ["max_iterations", "max_tokens", "max_output_tokens", "max_input_tokens", "warn_tokens_pct"]
    updates = [(rt if n % 2 else other).update_limits("r", {name: n}) for n, name in enumerate(names)]
    await asyncio.gather(*updates, rt.pause_run("r"))
    state = await rt.get_state("r")
    assert [state.vars["_limits"][name] for name in names] == list(range(5))
    assert state.paused


async def test_cancel_while_children_run(world: World) -> None:
    """The cancel reaches the runs below, and nothing of them overwrites it."""
    gate, acted = Gate(), list[str]()

    async def act(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        acted.append(call.run.run_id)
        return EffectOutcome.completed({})

    registry = WorkflowRegistry()
    child = one("act", {})
    registry.register(child)
    payload = {"children": [{"workflow_id": child.workflow_id}] * 3}
    parent = flow("start", workflow_id="parent", start=ask("start", "start_subworkflow", payload, "got"))
    rt = world.runtime({"act": act}, workflow_registry=registry)
    await rt.start(workflow=parent, run_id="parent")
    tick = asyncio.create_task(rt.tick(workflow=parent, run_id="parent"))
    await eventually(lambda: gate.inside == 3)
    state = await rt.cancel_run("parent", reason="enough")
    gate.open()
    await tick
    assert state.status is RunStatus.CANCELLED
    below = [await rt.get_state(row["run_id"]) for row in (await rt.find_runs(parent_run_id="parent")).items]
    assert [run.status for run in below] == [RunStatus.CANCELLED] * 3
    assert acted == []
