"""What a step, a wait and a resume cost, counted and never timed."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
)

from . import worlds
from .scale import scaled
from .spies import WatchedRunStore
from .worlds import World, ask, flow, go, one

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

QUESTION = one("ask_user", {"prompt": "?"})


def watched(world: World, handlers: dict[str, Any] | None = None) -> tuple[Any, WatchedRunStore]:
    runs, ledgers = world.stores()
    store = WatchedRunStore(runs)
    return world.runtime(handlers, stores=(store, ledgers)), store


def loop(kind: str, payload: dict[str, Any]) -> Any:
    """A workflow that asks for this effect for ever."""
    return flow("loop", loop=ask("loop", kind, payload, "got", "loop"))


async def test_a_tick_reads_the_run_once_and_its_history_never(world: World) -> None:
    rt, store = watched(world, {"host": lambda call: EffectOutcome.completed(1)})
    work = flow("a", a=ask("a", "host", {}, "x", "b"), b=go("b", "c"), c=ask("c", "answer_user", {"message": "m"}, "y"))
    run_id = await rt.start(workflow=work)
    store.calls.clear()
    state = await rt.tick(workflow=work, run_id=run_id)
    assert state.status is RunStatus.COMPLETED
    assert store.calls == {"load": 1, "renew": 1, "commit": 5}, "an outside effect is two commits, anything else one"


async def test_a_resume_costs_the_same_however_long_the_history(world: World) -> None:
    rt, store = watched(world)

    def many(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        then = "many" if run.vars["n"] % 50 else "ask"
        return StepPlan("many", Effect("answer_user", {"message": "m"}), then)

    work = flow("many", many=many, ask=ask("ask", "ask_user", {"prompt": "?"}, "answer", "many"))
    costs = []
    state = await rt.run(work, run_id="r")
    for _ in range(3):
        store.calls.clear()
        await rt.resume(workflow=work, run_id="r", wait_key=state.waiting.wait_key, payload=1, max_steps=0)
        costs.append(dict(store.calls))
        state = await rt.tick(workflow=work, run_id="r")
    assert costs == [{"load": 1, "commit": 1}] * 3


async def test_a_run_that_rests_costs_a_tick_one_read_and_no_write(world: World) -> None:
    rt, store = watched(world)
    await rt.run(QUESTION, run_id="r")
    store.calls.clear()
    await rt.tick(workflow=QUESTION, run_id="r")
    assert store.calls == {"load": 1}


async def test_the_effects_of_one_process_share_one_lease(world: World) -> None:
    rt, store = watched(world, {"host": lambda call: EffectOutcome.completed(1)})
    await asyncio.gather(*(rt.run(one("host")) for _ in range(20)))
    assert store.calls["renew"] == 1


async def test_the_state_does_not_grow_with_the_history(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed("x" * 100)})
    work = loop("host", {"text": "y" * 100})
    run_id = await rt.start(workflow=work)
    sizes = []
    for _ in range(3):
        state = await rt.tick(workflow=work, run_id=run_id, max_steps=10)
        sizes.append(len(repr(state.vars)))
    assert max(sizes) - min(sizes) <= 2, "the counter's digits"


async def test_waiters_hold_no_threads(world: World) -> None:
    rt = world.runtime()
    await rt.run(QUESTION)
    threads = set(threading.enumerate())
    for _ in range(scaled(64, 500)):
        await rt.run(QUESTION)
    held = {thread for thread in threading.enumerate() if thread not in threads}
    assert {thread.name for thread in held if "abstractruntime" in thread.name or "sqlite" in thread.name} == set()


async def test_ten_thousand_waiting_runs_cost_nothing(async_world: World) -> None:
    rt = async_world.runtime()
    works = (
        QUESTION,
        one("wait_until", {"until": "2026-02-01"}),
        one("wait_event", {"wait_key": "k", "timeout_s": 60}),
    )
    for work in works:
        await rt.run(work)
    gc.collect()
    tasks, threads, runs = len(asyncio.all_tasks()), threading.active_count(), living_runs()
    count = scaled(300, 10_000)
    ids = [await rt.start(workflow=works[n % 3]) for n in range(count)]
    await asyncio.gather(*(rt.tick(workflow=works[n % 3], run_id=run_id) for n, run_id in enumerate(ids)))
    await asyncio.sleep(0)  # until the loop lets go of what gather() returned
    await rt.run(QUESTION)  # and the store of its last batch
    assert (await rt.get_state(ids[0])).status is RunStatus.WAITING
    gc.collect()
    assert len(asyncio.all_tasks()) <= tasks
    assert threading.active_count() <= threads
    assert living_runs() <= runs + 2
    assert rt._engine._turns == {}
    assert async_world.clock.naps == [], "no timer sleeps for a run that waits"


def living_runs() -> int:
    return sum(isinstance(thing, RunState) for thing in gc.get_objects())


async def test_lone_commit_never_waits_for_a_batch_and_queued_ones_share_a_flush(sqlite_world: World) -> None:
    """Counted: batches that reach the disk. Nothing but a commit of its own stands between a step and its flush."""
    runs, ledgers = sqlite_world.stores()
    rt = sqlite_world.runtime(stores=(runs, ledgers))
    batches = count_batches(sqlite_world._databases[-1])
    state = await rt.run(flow("a", a=go("a", "b"), b=go("b", "end")), run_id="r")
    assert batches == [1] * state.revision

    batches.clear()
    ids = [await rt.start(workflow=QUESTION) for _ in range(50)]
    batches.clear()
    release = threading.Event()
    blocked = asyncio.create_task(sqlite_world._databases[-1].backend.write(lambda _: release.wait(worlds.PATIENCE)))
    await worlds.eventually(lambda: batches == [1])
    ticks = [asyncio.create_task(rt.tick(workflow=QUESTION, run_id=run_id)) for run_id in ids]
    writer = sqlite_world._databases[-1].backend._writer
    await worlds.eventually(lambda: writer._queue.qsize() == 50)
    release.set()
    await asyncio.gather(blocked, *ticks)
    assert batches == [1, 50]


def count_batches(database: SqliteDatabase) -> list[int]:
    """The sizes of the writer's batches from now on."""
    sizes: list[int] = []
    lane = database.backend._writer
    run_batch = lane._run_batch

    def counted(connection: Any, operations: Any) -> list[Any]:
        sizes.append(len(operations))
        return run_batch(connection, operations)

    lane._run_batch = counted
    return sizes


async def test_a_pause_between_attempts_blocks_nobody_else(async_world: World) -> None:
    def flaky(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed("no") if call.attempt == 1 else EffectOutcome.completed("yes")

    policy = DefaultEffectPolicy(2, default_backoff_base=0.5)
    rt = async_world.runtime({"host": flaky}, effect_policy=policy)
    pausing = asyncio.create_task(rt.run(one("host")))
    await worlds.eventually(lambda: 0.5 in async_world.clock.naps)
    assert (await rt.run(flow("end"))).status is RunStatus.COMPLETED
    assert not pausing.done()
    async_world.clock.advance(0.5)
    assert (await pausing).output == {"result": "yes"}
