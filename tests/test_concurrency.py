"""Many runs in flight together, callers that go away in the middle, and ticks that meet at one run."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import anyio
import pytest

from abstractruntime import (
    AsyncRuntime,
    DefaultEffectPolicy,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    WaitReason,
    WaitState,
)
from abstractruntime.runtime import MAX_HANDLER_THREADS

from . import worlds
from .scale import scaled
from .worlds import Gate, World, a_moment, ask, eventually, flow, go, one, statuses

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

HOST = one("host")


class Doors:
    """An async handler whose calls wait at a gate each time, and which counts how they end."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.calls: list[EffectCall] = []
        self.cancelled = 0

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        self.calls.append(call)
        try:
            await self.gate.passed()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return EffectOutcome.completed(len(self.calls))


async def test_a_thousand_runs_have_their_async_handlers_in_flight_together(async_world: World) -> None:
    count = scaled(1_000, 5_000)
    everybody, inside = asyncio.Event(), 0

    async def meet(call: EffectCall) -> EffectOutcome:
        nonlocal inside
        inside += 1
        if inside == count:
            everybody.set()
        await everybody.wait()
        return EffectOutcome.completed(call.run.run_id)

    rt = async_world.runtime({"host": meet})
    async with asyncio.timeout(100):
        states = await asyncio.gather(*(rt.run(HOST, run_id=f"r{n}") for n in range(count)))
    assert inside == count
    assert [state.output for state in states] == [{"result": f"r{n}"} for n in range(count)]
    assert all(state.status is RunStatus.COMPLETED for state in states)


async def test_many_sync_handlers_are_in_flight_together_and_more_wait_their_turn(async_world: World) -> None:
    lock, gate = threading.Lock(), Gate()
    most = inside = 0

    def handler(call: EffectCall) -> EffectOutcome:
        nonlocal most, inside
        with lock:
            inside += 1
            most = max(most, inside)
        gate.passed_blocking()
        with lock:
            inside -= 1
        return EffectOutcome.completed()

    rt = async_world.runtime({"host": handler})
    ticks = [asyncio.create_task(rt.run(HOST)) for _ in range(MAX_HANDLER_THREADS + 6)]
    await eventually(lambda: gate.inside == MAX_HANDLER_THREADS)
    gate.open()
    states = await asyncio.gather(*ticks)
    assert all(state.status is RunStatus.COMPLETED for state in states)
    assert most <= MAX_HANDLER_THREADS


async def cancelled_by_asyncio(rt: AsyncRuntime, doors: Doors) -> None:
    task = asyncio.create_task(rt.tick(workflow=HOST, run_id="r"))
    await eventually(lambda: doors.gate.inside)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelled_by_a_scope(rt: AsyncRuntime, doors: Doors) -> None:
    async def leave(scope: anyio.CancelScope) -> None:
        await eventually(lambda: doors.gate.inside)
        scope.cancel()

    with anyio.CancelScope() as scope:
        leaving = asyncio.create_task(leave(scope))
        await rt.tick(workflow=HOST, run_id="r")
    assert scope.cancelled_caught
    await leaving


async def cancelled_by_a_timeout(rt: AsyncRuntime, doors: Doors) -> None:
    async def expire(bound: asyncio.Timeout) -> None:
        await eventually(lambda: doors.gate.inside)
        bound.reschedule(asyncio.get_running_loop().time())

    bound = asyncio.timeout(None)
    expiring = asyncio.create_task(expire(bound))
    with pytest.raises(TimeoutError):
        async with bound:
            await rt.tick(workflow=HOST, run_id="r")
    await expiring


async def cancelled_by_a_task_group(rt: AsyncRuntime, doors: Doors) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: rt.tick(workflow=HOST, run_id="r"))
        await eventually(lambda: doors.gate.inside)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "leave", [cancelled_by_asyncio, cancelled_by_a_scope, cancelled_by_a_timeout, cancelled_by_a_task_group]
)
async def test_a_caller_cancelled_in_mid_effect_hands_the_effect_to_whoever_is_next(
    async_world: World, leave: Any
) -> None:
    doors, next_doors = Doors(), Doors()
    rt = async_world.runtime({"host": doors})
    await rt.start(workflow=HOST, run_id="r")
    await leave(rt, doors)
    assert doors.cancelled == 1
    state = await rt.get_state("r")
    assert (state.status, state.intent.token, state.intent.step_id) == (RunStatus.RUNNING, None, "r:0.2")
    next_doors.gate.open()
    state = await async_world.runtime({"host": next_doors}).tick(workflow=HOST, run_id="r")
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"result": 1})
    assert doors.calls[0].key == next_doors.calls[0].key
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "host") == ["started", "cancelled", "started", "completed"]
    assert ledger[1]["result"] == {"cancelled": True, "outcome": "unknown", "handed_back": True}


async def test_a_caller_cancelled_in_mid_effect_does_not_wait_for_a_sync_handler(async_world: World) -> None:
    gate, calls = Gate(), []

    def handler(call: EffectCall) -> EffectOutcome:
        calls.append(call)
        if len(calls) == 1:
            gate.passed_blocking()
            return EffectOutcome.completed("late")
        return EffectOutcome.completed("done")

    rt = async_world.runtime({"host": handler})
    task = asyncio.create_task(rt.run(HOST, run_id="r"))
    await eventually(lambda: gate.inside)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls[0].cancelled.is_set(), "the thread, which nobody can stop, is told"
    assert (await rt.tick(workflow=HOST, run_id="r")).output == {"result": "done"}
    gate.open()
    assert calls[0].key == calls[1].key
    assert (await rt.get_state("r")).output == {"result": "done"}


async def test_a_caller_cancelled_while_an_async_node_thinks_leaves_the_run_as_it_was(async_world: World) -> None:
    gate = Gate()

    async def think(run: RunState, ctx: Any) -> Any:
        run.vars["thought"] = True
        await gate.passed()
        return go("think", "end")(run, ctx)

    rt = async_world.runtime()
    work = flow("think", think=think)
    await rt.start(workflow=work, run_id="r")
    task = asyncio.create_task(rt.tick(workflow=work, run_id="r"))
    await eventually(lambda: gate.inside)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    state = await rt.get_state("r")
    assert (state.revision, state.node_errors, "thought" in state.vars) == (1, 0, False)
    gate.open()
    assert (await rt.tick(workflow=work, run_id="r")).output == {"thought": True}


async def test_a_caller_cancelled_between_attempts_leaves_the_next_one_to_others(async_world: World) -> None:
    def flaky(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed("no") if call.attempt == 1 else EffectOutcome.completed("yes")

    rt = async_world.runtime({"host": flaky}, effect_policy=DefaultEffectPolicy(2, default_backoff_base=0.5))
    task = asyncio.create_task(rt.run(HOST, run_id="r"))
    await eventually(lambda: 0.5 in async_world.clock.naps)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async_world.clock.advance(0.5)
    assert (await rt.tick(workflow=HOST, run_id="r")).output == {"result": "yes"}


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_caller_cancelled_during_a_commit_loses_nothing(sqlite_world: World, at: int) -> None:
    """The commit is on its way in the writer's thread when the caller goes."""
    performed: Counter[str] = Counter()

    def handler(call: EffectCall) -> EffectOutcome:
        performed[call.key] += 1
        return EffectOutcome.completed(call.payload["n"])

    work = flow(
        "a",
        a=ask("a", "host", {"n": 1}, "first", "b"),
        b=go("b", "c"),
        c=ask("c", "answer_user", {"message": "hi"}, "said", "d"),
        d=ask("d", "host", {"n": 2}, "second"),
    )
    stores = sqlite_world.stores()
    rt = sqlite_world.runtime({"host": handler}, stores=stores)
    held = HeldWriter(sqlite_world._databases[-1].backend._writer, at)
    task = asyncio.create_task(rt.run(work, run_id="r"))
    await eventually(lambda: held.reached.is_set() or task.done())
    if held.reached.is_set():
        task.cancel()
        await asyncio.sleep(0)
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await rt.get_state("r")).revision >= at - held.renewals, "the commit that was on its way has landed"
    state = await sqlite_world.runtime({"host": handler}).run(work, run_id="r")
    assert (state.output["first"], state.output["second"]) == (1, 2)
    assert list(performed.values()) == [1, 1]
    assert state.records == len(await rt.get_ledger("r"))


class HeldWriter:
    """Stops the writer of a database inside its batch number `at`, until told to go on."""

    def __init__(self, lane: Any, at: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.renewals = 1
        self._at, self._seen, self._run_batch = at, 0, lane._run_batch
        lane._run_batch = self

    def __call__(self, connection: Any, operations: Any) -> Any:
        self._seen += 1
        if self._seen == self._at:
            self.reached.set()
            assert self.go_on.wait(worlds.PATIENCE)
        return self._run_batch(connection, operations)


async def test_a_second_tick_of_one_run_waits_for_the_first_and_then_goes_on(world: World) -> None:
    doors = Doors()
    rt = world.runtime({"host": doors})
    work = flow("a", a=ask("a", "host", {}, "first", "b"), b=ask("b", "host", {}, "second"))
    await rt.start(workflow=work, run_id="r")
    first = asyncio.create_task(rt.tick(workflow=work, run_id="r", max_steps=1))
    await eventually(lambda: doors.gate.inside)
    second = asyncio.create_task(rt.tick(workflow=work, run_id="r"))
    third = asyncio.create_task(rt.tick(workflow=work, run_id="r"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.done()
    assert doors.gate.inside == 1
    doors.gate.open()
    assert (await first).current_node == "b"
    assert (await second).output == (await third).output == {"first": 1, "second": 2}
    assert len(doors.calls) == 2


async def test_a_cancelled_second_tick_does_not_disturb_the_first(async_world: World) -> None:
    doors = Doors()
    rt = async_world.runtime({"host": doors})
    first = asyncio.create_task(rt.run(HOST, run_id="r"))
    await eventually(lambda: doors.gate.inside)
    second = asyncio.create_task(rt.tick(workflow=HOST, run_id="r"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    doors.gate.open()
    assert (await first).status is RunStatus.COMPLETED
    assert doors.cancelled == 0


async def test_outside_actions_do_not_wait_for_a_tick(world: World) -> None:
    doors = Doors()
    rt = world.runtime({"host": doors})
    task = asyncio.create_task(rt.run(HOST, run_id="r"))
    await eventually(lambda: doors.gate.inside)
    await rt.update_limits("r", {"max_tokens": 5})
    assert (await rt.get_state("r")).vars["_limits"]["max_tokens"] == 5
    assert (await rt.get_limit_status("r"))["tokens"]["max"] == 5
    assert statuses(await rt.get_ledger("r")) == ["started"]
    await rt.cancel_run("r")
    assert (await task).status is RunStatus.CANCELLED


async def test_two_runtimes_on_one_store_in_one_process_perform_no_effect_twice(world: World) -> None:
    performed: Counter[str] = Counter()
    lock = threading.Lock()

    async def handler(call: EffectCall) -> EffectOutcome:
        with lock:
            performed[call.key] += 1
        await asyncio.sleep(0)
        return EffectOutcome.completed(call.payload["n"])

    nodes = {f"n{n}": ask(f"n{n}", "host", {"n": n}, f"got{n}", f"n{n + 1}" if n < 4 else "end") for n in range(5)}
    work = flow("n0", **nodes)
    runtimes = [world.runtime({"host": handler}) for _ in range(3)]
    ids = [await runtimes[0].start(workflow=work) for _ in range(scaled(10, 100))]

    async def drive(rt: Any, run_id: str) -> RunState:
        while True:
            state: RunState = await rt.tick(workflow=work, run_id=run_id)
            if state.status is not RunStatus.RUNNING:
                return state
            await a_moment()  # busy elsewhere

    states = await asyncio.gather(*(drive(rt, run_id) for rt in runtimes for run_id in ids))
    assert all(state.output == {f"got{n}": n for n in range(5)} for state in states)
    assert len(performed) == 5 * len(ids)
    assert set(performed.values()) == {1}
    for run_id in ids:
        ledger = await runtimes[0].get_ledger(run_id)
        assert statuses(ledger, "host") == ["started", "completed"] * 5


async def test_a_tick_that_finds_the_effect_in_other_hands_returns_the_run(world: World) -> None:
    doors = Doors()
    first, second = world.runtime({"host": doors}), world.runtime({"host": doors})
    task = asyncio.create_task(first.run(HOST, run_id="r"))
    await eventually(lambda: doors.gate.inside)
    state = await second.tick(workflow=HOST, run_id="r")
    assert (state.status, state.intent is not None, len(doors.calls)) == (RunStatus.RUNNING, True, 1)
    doors.gate.open()
    assert (await task).status is RunStatus.COMPLETED


async def test_closing_a_runtime_hands_back_what_it_has_in_flight(async_world: World) -> None:
    doors, next_doors = Doors(), Doors()
    rt = async_world.runtime({"host": doors})
    ticks = [asyncio.create_task(rt.run(HOST, run_id=f"r{n}")) for n in range(10)]
    await eventually(lambda: doors.gate.inside == 10)
    await rt.aclose()
    outcomes = await asyncio.gather(*ticks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert doors.cancelled == 10
    next_doors.gate.open()
    other = async_world.runtime({"host": next_doors})
    states = [await other.tick(workflow=HOST, run_id=f"r{n}") for n in range(10)]
    assert {state.status for state in states} == {RunStatus.COMPLETED}
    assert {call.key for call in doors.calls} == {call.key for call in next_doors.calls}


async def test_leaving_the_context_of_a_runtime_closes_it_and_not_its_stores(async_world: World) -> None:
    runs, ledgers = async_world.stores()
    async with AsyncRuntime(run_store=runs, ledger_store=ledgers) as rt:
        await rt.run(flow("end"), run_id="r")
    assert (await runs.load("r")).status is RunStatus.COMPLETED
    await rt.aclose()


async def test_a_wait_that_a_handler_returns_in_many_runs_is_answered_in_any_order(world: World) -> None:
    async def job(call: EffectCall) -> EffectOutcome:
        wait = WaitState(WaitReason.JOB, f"job:{call.run.run_id}", None, call.next_node, "result")
        return EffectOutcome.waiting(wait)

    rt = world.runtime({"job": job})
    work = one("job")
    ids = [f"r{n}" for n in range(8)]
    await asyncio.gather(*(rt.run(work, run_id=run_id) for run_id in ids))
    answers = [rt.resume(workflow=work, run_id=i, wait_key=f"job:{i}", payload=i) for i in reversed(ids)]
    assert [state.output["result"] for state in await asyncio.gather(*answers)] == ids[::-1]
