"""The driver: whatever can move moves without anybody ticking it, at its time, and nobody is starved."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    StepPlan,
    StoreError,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK, iso
from abstractruntime.core.policy import DefaultEffectPolicy

from .clocks import StillClock
from .dict_stores import DictLedgerStore, DictRunStore
from .scale import scaled


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"did": run.vars.get("did")})


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect(run.vars.get("effect", "work"), dict(run.vars.get("payload") or {}), "did"), "end")


def poison(run: RunState, ctx: Any) -> StepPlan:
    raise ArithmeticError("poison")


def spin(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("spin", next_node="spin")


ACT: WorkflowSpec[Any] = WorkflowSpec("act", "act", {"act": act, "end": end})
POISON: WorkflowSpec[Any] = WorkflowSpec("poison", "poison", {"poison": poison})
SPIN: WorkflowSpec[Any] = WorkflowSpec("spin", "spin", {"spin": spin})
PARENT: WorkflowSpec[Any] = WorkflowSpec("parent", "act", {"act": act, "end": end})


def registry_of(*workflows: WorkflowSpec[Any]) -> WorkflowRegistry:
    registry = WorkflowRegistry()
    for workflow in workflows or (ACT, POISON, SPIN, PARENT):
        registry.register(workflow)
    return registry


@pytest.fixture(params=["memory", "sqlite", "files"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/runs.db", "files": f"files:{tmp_path}/data"}[
        request.param
    ]


async def worked(call: Any) -> EffectOutcome:
    return EffectOutcome.completed("work")


async def until(condition: Callable[[], Any]) -> Any:
    """Give others their turn until it holds."""
    while not (found := condition()):  # noqa: ASYNC110 - it may be anything
        await asyncio.sleep(0.001)
    return found


async def reached(rt: AsyncRuntime, run_id: str, status: RunStatus) -> RunState:
    while (state := await rt.get_state(run_id)).status is not status:  # noqa: ASYNC110 - the stored state
        await asyncio.sleep(0.001)
    return state


@asynccontextmanager
async def driven(url: str = "memory:", **options: Any) -> AsyncIterator[tuple[AsyncRuntime, AsyncScheduler]]:
    registry = options.pop("registry", None) or registry_of()
    ours = {
        name: options.pop(name)
        for name in ("poll_interval_s", "concurrency", "give_up_after", "on_run_resumed", "on_run_failed", "max_steps")
        if name in options
    }
    options.setdefault("effect_handlers", {"work": worked})
    rt = AsyncRuntime.open(url, workflow_registry=registry, **options)
    async with rt, AsyncScheduler(rt, **ours) as scheduler:
        yield rt, scheduler


async def moved_by(clock: StillClock, seconds: float, condition: Callable[[], Any]) -> None:
    """Wait until the driver sleeps, let time pass, and wait for what is to come of it."""
    await until(lambda: clock.naps)
    clock.advance(seconds)
    await until(condition)


async def test_a_new_run_moves_by_itself(url):
    async with driven(url) as (rt, _):
        run_id = await rt.start(workflow=ACT)
        assert (await reached(rt, run_id, RunStatus.COMPLETED)).output == {"did": "work"}


async def test_what_was_there_before_moves_too(url, tmp_path):
    clock = StillClock()
    async with AsyncRuntime.open(url, clock=clock, effect_handlers={"work": worked}) as rt:
        run_id = await rt.start(workflow=ACT)
        async with AsyncScheduler(rt, registry_of()):
            task = asyncio.create_task(reached(rt, run_id, RunStatus.COMPLETED))
            while not task.done():  # where others may write, only when it has not moved for a while
                clock.advance(0.1)
                await asyncio.sleep(0.002)


async def test_a_timer_moves_its_run_at_its_time_and_not_a_poll_later(url):
    clock = StillClock()
    at = clock.now() + timedelta(seconds=0.2)
    vars = {"effect": EffectType.WAIT_UNTIL, "payload": {"until": iso(at)}}
    async with driven(url, clock=clock, poll_interval_s=60.0) as (rt, _):
        run_id = await rt.start(workflow=ACT, vars=vars)
        await reached(rt, run_id, RunStatus.WAITING)
        await until(lambda: clock.naps == [pytest.approx(0.2)])  # neither a poll nor anything else is waited for
        clock.advance(0.1)
        await asyncio.sleep(0.01)
        assert (await rt.get_state(run_id)).status is RunStatus.WAITING
        clock.advance(0.1)
        await reached(rt, run_id, RunStatus.COMPLETED)


async def test_a_timer_moves_its_run_by_the_machines_clock_too():
    at = iso(SYSTEM_CLOCK.now() + timedelta(seconds=0.05))
    async with driven(poll_interval_s=60.0) as (rt, _):
        run_id = await rt.start(workflow=ACT, vars={"effect": EffectType.WAIT_UNTIL, "payload": {"until": at}})
        await reached(rt, run_id, RunStatus.COMPLETED)
        assert iso(SYSTEM_CLOCK.now()) >= at


class Jumping(StillClock):
    """A still clock whose hands can be moved without time passing."""

    def set_forward(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@pytest.mark.parametrize("jump", [600, -600])
async def test_clock_jumps_back(url, jump):
    """Nor forward: each timer fires once, when the hands of the clock show its time."""
    clock, woken = Jumping(), Counter[str]()
    until_ = iso(clock.now() + timedelta(seconds=60))

    def resumed(state: RunState) -> None:
        woken.update([state.run_id] if state.status is RunStatus.COMPLETED else [])

    async with driven(url, clock=clock, on_run_resumed=resumed) as (rt, _):
        run_id = await rt.start(workflow=ACT, vars={"effect": EffectType.WAIT_UNTIL, "payload": {"until": until_}})
        await reached(rt, run_id, RunStatus.WAITING)
        clock.set_forward(jump)
        while not woken:
            clock.advance(5)
            await asyncio.sleep(0.002)
        assert iso(clock.now()) >= until_
        clock.set_forward(-jump)
        for _ in range(10):
            clock.advance(10)
            await asyncio.sleep(0.001)
        assert woken == {run_id: 1}


async def test_a_deadline_ends_a_wait(url):
    clock = StillClock()
    payload = {"wait_key": "k", "until": iso(clock.now() + timedelta(seconds=5))}
    async with driven(url, clock=clock, poll_interval_s=60.0) as (rt, _):
        run_id = await rt.start(workflow=ACT, vars={"effect": EffectType.WAIT_EVENT, "payload": payload})
        await reached(rt, run_id, RunStatus.WAITING)
        await until(lambda: clock.naps == [pytest.approx(5)])
        clock.advance(5)
        await reached(rt, run_id, RunStatus.COMPLETED)


async def test_the_next_attempt_comes_after_its_backoff(url):
    clock, tries = StillClock(), 0

    async def flaky(call: Any) -> EffectOutcome:
        nonlocal tries
        tries += 1
        return EffectOutcome.failed("not yet") if tries == 1 else EffectOutcome.completed("at last")

    policy = DefaultEffectPolicy(2, 30.0, 30.0)
    async with driven(
        url, clock=clock, effect_handlers={"work": flaky}, effect_policy=policy, poll_interval_s=600.0
    ) as (rt, _):
        run_id = await rt.start(workflow=ACT)
        await until(lambda: tries == 1 and 30.0 in clock.naps)
        clock.advance(29.9)
        await asyncio.sleep(0.01)
        assert tries == 1
        clock.advance(0.1)
        assert (await reached(rt, run_id, RunStatus.COMPLETED)).output == {"did": "at last"}


async def test_an_event_moves_who_waits_for_it(url):
    async with driven(url) as (rt, _):
        payload = {"name": "paid", "scope": "session"}
        run_id = await rt.start(
            workflow=ACT, session_id="s", vars={"effect": EffectType.WAIT_EVENT, "payload": payload}
        )
        await reached(rt, run_id, RunStatus.WAITING)
        await rt.emit_event(name="paid", session_id="s", payload={"euro": 3})
        assert (await reached(rt, run_id, RunStatus.COMPLETED)).output["did"]["payload"] == {"euro": 3}


@pytest.mark.parametrize("wait", [True, False])
async def test_a_child_and_the_run_that_waits_for_it_move(url, wait):
    payload: dict[str, Any] = {
        "workflow_id": "act",
        "vars": {"effect": EffectType.WAIT_EVENT, "payload": {"wait_key": "go"}},
    }
    async with driven(url, poll_interval_s=60.0) as (rt, _):
        payload |= {"wait": True} if wait else {"async": True, "wait": True}
        run_id = await rt.start(workflow=PARENT, vars={"effect": EffectType.START_SUBWORKFLOW, "payload": payload})
        await reached(rt, run_id, RunStatus.WAITING)
        while not (found := (await rt.find_waits(wait_key="go")).items):  # noqa: ASYNC110 - the stored state
            await asyncio.sleep(0.001)
        await rt.resume(workflow=ACT, run_id=found[0]["run_id"], wait_key="go", payload={"x": 1}, max_steps=0)
        await reached(rt, run_id, RunStatus.COMPLETED)


async def test_stores_of_a_user_are_driven_by_what_they_can_list():
    clock = StillClock()
    at = iso(clock.now() + timedelta(seconds=3))
    registry = registry_of()
    runs = QueryableDicts()
    async with AsyncRuntime(
        run_store=runs, ledger_store=DictLedgerStore(), clock=clock, workflow_registry=registry
    ) as rt:
        before = await rt.start(workflow=ACT, vars={"effect": EffectType.WAIT_UNTIL, "payload": {"until": at}})
        async with AsyncScheduler(rt, poll_interval_s=1.0):
            await reached(rt, before, RunStatus.WAITING)
            for _ in range(5):
                await until(lambda: clock.naps)
                clock.advance(1)
            await reached(rt, before, RunStatus.COMPLETED)


class QueryableDicts(DictRunStore):
    """The documented queries over the dict."""

    def _all(self) -> list[RunState]:
        return [run for run_id in list(self.rows) if (run := self.load(run_id)) is not None]

    def list_runs(self, *, status: Any = None, wait_reason: Any = None, workflow_id: Any = None, limit: int = 100):
        return [run for run in self._all() if status is None or run.status == status][:limit]

    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        return [run for run in self._all() if run.waiting and run.waiting.until and run.waiting.until <= now_iso]


async def test_a_store_without_queries_is_refused():
    async with AsyncRuntime(run_store=DictRunStore(), ledger_store=DictLedgerStore()) as rt:
        with pytest.raises(TypeError, match="list_due_wait_until"):
            AsyncScheduler(rt, registry_of())
        with pytest.raises(ValueError, match="registry"):
            AsyncScheduler(rt)


async def test_waiting_runs_cost_neither_task_nor_memory_of_the_driver(url):
    count = scaled(300, 20_000)
    async with driven(url) as (rt, scheduler):
        vars = {"effect": EffectType.ASK_USER, "payload": {"prompt": "?"}}
        await asyncio.gather(*(rt.start(workflow=ACT, vars=vars) for _ in range(count)))
        await until(lambda: scheduler.stats.runs_resumed == count)
        driver = scheduler._driver
        await until(lambda: not driver._running)
        assert len(asyncio.all_tasks()) < 10
        assert not driver._ready
        assert len(driver._asides) == 0


async def test_poison_run_does_not_starve_others(url, caplog):
    """One failing run is retried for ever at the head of the queue; ours is backed off and left alone in the end."""
    caplog.set_level(logging.CRITICAL, "abstractruntime.scheduler")
    clock, failed = StillClock(), Counter[str]()
    async with driven(
        url,
        clock=clock,
        concurrency=1,
        give_up_after=3,
        on_run_failed=lambda run_id, error: failed.update([run_id]),
    ) as (rt, scheduler):
        bad = [await rt.start(workflow=POISON) for _ in range(3)]
        good = [await rt.start(workflow=ACT) for _ in range(20)]
        for run_id in good:
            await reached(rt, run_id, RunStatus.COMPLETED)  # without a moment passing
        assert failed == dict.fromkeys(bad, 1)
        for _ in range(60):
            clock.advance(10)
            await asyncio.sleep(0.002)
        await until(lambda: failed == dict.fromkeys(bad, 3))
        assert scheduler.stats.runs_failed == 9
        assert "poison" in scheduler.stats.errors[0]
        late = await rt.start(workflow=ACT)
        await reached(rt, late, RunStatus.COMPLETED)


async def test_a_run_that_never_rests_leaves_room_for_others():
    async with driven(concurrency=1) as (rt, _):
        await rt.start(workflow=SPIN)
        for _ in range(5):
            await reached(rt, await rt.start(workflow=ACT), RunStatus.COMPLETED)


async def test_slow_and_paused_runs_hold_nobody_up():
    gate = asyncio.Event()

    async def slow(call: Any) -> EffectOutcome:
        await gate.wait()
        return EffectOutcome.completed("slow")

    async with driven(effect_handlers={"work": worked, "slow": slow}) as (rt, _):
        slows = [await rt.start(workflow=ACT, vars={"effect": "slow"}) for _ in range(10)]
        asks = await rt.start(workflow=ACT, vars={"effect": EffectType.WAIT_EVENT, "payload": {"wait_key": "k"}})
        await reached(rt, asks, RunStatus.WAITING)
        await rt.pause_run(asks)
        await reached(rt, await rt.start(workflow=ACT), RunStatus.COMPLETED)
        gate.set()
        for run_id in slows:
            await reached(rt, run_id, RunStatus.COMPLETED)
        assert (await rt.get_state(asks)).paused


async def test_never_more_ticks_at_once_than_allowed():
    now, most = 0, 0

    async def busy(call: Any) -> EffectOutcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return EffectOutcome.completed("work")

    async with driven(concurrency=3, effect_handlers={"work": busy}) as (rt, scheduler):
        for _ in range(30):
            await rt.start(workflow=ACT)
        await until(lambda: scheduler.stats.runs_resumed == 30)
    assert most == 3


async def test_a_run_of_an_unknown_workflow_is_told_once_and_left(url):
    told: list[str] = []
    clock = StillClock()
    async with driven(
        url, clock=clock, registry=registry_of(POISON), on_run_failed=lambda run_id, error: told.append(run_id)
    ) as (rt, scheduler):
        run_id = await rt.start(workflow=ACT)
        for _ in range(100):
            clock.advance(1)
            await asyncio.sleep(0.001)
        assert told == [run_id]
        scheduler._driver.registry.register(ACT)
        task = asyncio.create_task(reached(rt, run_id, RunStatus.COMPLETED))
        while not task.done():
            clock.advance(1)
            await asyncio.sleep(0.001)


async def test_stopping_lets_effects_finish(url):
    inside, gate = asyncio.Event(), asyncio.Event()

    async def slow(call: Any) -> EffectOutcome:
        inside.set()
        await gate.wait()
        return EffectOutcome.completed("slow")

    async with driven(url, effect_handlers={"work": slow}) as (rt, scheduler):
        run_id = await rt.start(workflow=ACT)
        await inside.wait()
        stopping = asyncio.create_task(scheduler.stop(60))
        later = await rt.start(workflow=ACT)
        gate.set()
        await stopping
        state = await rt.get_state(run_id)
        assert (state.status, state.current_node, state.vars["did"]) == (RunStatus.RUNNING, "end", "slow")
        assert (await rt.get_state(later)).current_node == "act"
        assert await rt.get_ledger(later) == []
        assert not scheduler.is_running


def several(run: RunState, ctx: Any) -> StepPlan:
    run.vars["count"] = run.vars.get("count", 0) + 1
    return StepPlan("several", Effect("work", {}, "did"), "several" if run.vars["count"] < 50 else "end")


@pytest.mark.parametrize("nested", [False, True])
async def test_stopping_claims_nothing_more(url, nested):
    """Neither in a run of many steps, nor in its children, nor for those who stand in line for a place."""
    inside, gate, calls = asyncio.Event(), asyncio.Event(), 0

    async def slow(call: Any) -> EffectOutcome:
        nonlocal calls
        calls += 1
        inside.set()
        await gate.wait()
        return EffectOutcome.completed("slow")

    many: WorkflowSpec[Any] = WorkflowSpec("many", "several", {"several": several, "end": end})
    children = {"children": [{"workflow_id": "many"}, {"workflow_id": "many"}], "wait": True}
    vars = {"effect": EffectType.START_SUBWORKFLOW, "payload": children}
    registry = registry_of(many, PARENT)
    async with driven(url, effect_handlers={"work": slow}, effect_limits={"work": 1}, registry=registry) as (rt, one):
        if nested:
            run_ids = [await rt.start(workflow=PARENT, vars=vars)]
        else:
            run_ids = [await rt.start(workflow=many) for _ in range(3)]
        await inside.wait()
        await until(lambda: one._driver._in_line == len(run_ids) - 1 + nested)
        stopping = asyncio.create_task(one.stop(3600))
        await asyncio.sleep(0)
        gate.set()
        await stopping
        assert calls == 1
        assert rt._attempts.capacity._places == {}
        async with AsyncScheduler(rt, poll_interval_s=0.01):
            for run_id in run_ids:
                await reached(rt, run_id, RunStatus.COMPLETED)


async def test_what_a_handler_began_ticks_on_after_the_scheduler_has_stopped():
    """It has the context of a tick that was called off, and is none of it."""
    stopped, begun = asyncio.Event(), list[asyncio.Task[RunState]]()

    async def begins(call: Any) -> EffectOutcome:
        async def later() -> RunState:
            await stopped.wait()
            states = await asyncio.gather(*(rt.run(ACT, vars={"effect": "other"}) for _ in range(3)))
            return states[-1]

        begun.append(asyncio.create_task(later()))
        return EffectOutcome.completed("begun")

    async def other(call: Any) -> EffectOutcome:
        await asyncio.sleep(0.001)  # the others stand in line meanwhile
        return EffectOutcome.completed("other")

    async with driven(effect_handlers={"work": begins, "other": other}, effect_limits={"other": 1}) as (rt, scheduler):
        await reached(rt, await rt.start(workflow=ACT), RunStatus.COMPLETED)
        await scheduler.stop()
        stopped.set()
        assert (await begun[0]).status is RunStatus.COMPLETED


async def test_stopping_in_the_middle_hands_back_and_the_next_one_goes_on(url):
    inside, calls = asyncio.Event(), 0

    async def first_hangs(call: Any) -> EffectOutcome:
        nonlocal calls
        calls += 1
        if calls == 1:
            inside.set()
            await asyncio.Event().wait()
        return EffectOutcome.completed("work")

    async with driven(url, effect_handlers={"work": first_hangs}, poll_interval_s=0.01) as (rt, scheduler):
        run_id = await rt.start(workflow=ACT)
        await inside.wait()
        await scheduler.stop(0)
        await scheduler.stop(0)
        state = await rt.get_state(run_id)
        assert state.status is RunStatus.RUNNING
        assert state.intent is not None
        assert state.intent.token is None
        async with AsyncScheduler(rt, poll_interval_s=0.01):
            await reached(rt, run_id, RunStatus.COMPLETED)
        records = [(record["status"], record["attempt"]) for record in await rt.get_ledger(run_id) if record["effect"]]
        assert ("cancelled", 1) in records
        assert calls == 2


async def test_it_starts_once():
    async with driven() as (_, scheduler):
        assert scheduler.is_running
        with pytest.raises(RuntimeError, match="running already"):
            await scheduler.start()


async def test_a_host_that_ticks_the_same_run_is_in_nobodys_way(url):
    performed = Counter[str]()

    async def once(call: Any) -> EffectOutcome:
        performed[call.run.run_id] += 1
        return EffectOutcome.completed("work")

    async with driven(url, effect_handlers={"work": once}) as (rt, _):
        states = await asyncio.gather(*(rt.run(ACT) for _ in range(30)))
        for state in states:
            await reached(rt, state.run_id, RunStatus.COMPLETED)
    assert set(performed.values()) == {1}
    assert len(performed) == 30


async def test_a_store_that_fails_is_asked_again(url, monkeypatch, caplog):
    clock = StillClock()
    async with AsyncRuntime.open(url, clock=clock, effect_handlers={"work": worked}) as rt:
        run_id = await rt.start(workflow=ACT)
        backend, real, fails = rt._journal.stored, rt._journal.stored.due, 2

        async def due(*args: Any, **options: Any) -> Any:
            nonlocal fails
            fails -= 1
            if fails >= 0:
                raise StoreError("the disk is gone for a moment")
            return await real(*args, **options)

        monkeypatch.setattr(backend, "due", due)
        async with AsyncScheduler(rt, registry_of()):
            task = asyncio.create_task(reached(rt, run_id, RunStatus.COMPLETED))
            while not task.done():
                clock.advance(0.1)
                await asyncio.sleep(0.001)
    assert "the disk is gone for a moment" in caplog.text


async def test_a_callback_that_fails_stops_nobody(caplog):
    def bad(state: RunState) -> None:
        raise ValueError("a host's mistake")

    async with driven(on_run_resumed=bad) as (rt, scheduler):
        await reached(rt, await rt.start(workflow=ACT), RunStatus.COMPLETED)
        await until(lambda: "a host's mistake" in caplog.text)
        assert scheduler.is_running


@pytest.mark.parametrize("option", [{"concurrency": 0}, {"max_steps": 0}, {"poll_interval_s": 0}, {"give_up_after": 0}])
async def test_options_that_make_no_sense_are_refused(option):
    async with AsyncRuntime.open("memory:") as rt:
        with pytest.raises(ValueError, match=next(iter(option))):
            AsyncScheduler(rt, registry_of(), **option)
