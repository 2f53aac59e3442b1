"""Watching runs: subscribers of the ledger, and node traces folded from it."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunStatus,
    Runtime,
    StoreError,
)
from abstractruntime.core.vars import get_node_trace, get_node_traces

from . import worlds
from .faults import ProcessDied
from .worlds import World, ask, flow, one

world = worlds.world
async_world = worlds.async_world

QUESTION = one("ask_user", {"prompt": "Continue?"})


async def test_a_subscriber_hears_every_record_once_in_order_and_as_stored(world: World) -> None:
    heard: list[dict[str, Any]] = []
    rt = world.runtime({"host": lambda call: EffectOutcome.completed(1)})
    rt.subscribe_ledger(heard.append)
    work = flow("a", a=ask("a", "host", {}, "x", "b"), b=ask("b", "ask_user", {"prompt": "?"}, "y"))
    await rt.run(work, run_id="r")
    await rt.resume(workflow=work, run_id="r", wait_key=None, payload=1)
    assert heard == await rt.get_ledger("r")
    assert len(heard) == 7


async def test_a_subscriber_may_watch_one_run(world: World) -> None:
    mine: list[dict[str, Any]] = []
    rt = world.runtime()
    rt.subscribe_ledger(mine.append, run_id="mine")
    await rt.run(QUESTION, run_id="other")
    await rt.run(QUESTION, run_id="mine")
    assert [record["run_id"] for record in mine] == ["mine", "mine"]


async def test_unsubscribing_twice_is_harmless_and_leaves_the_others(world: World) -> None:
    first: list[Any] = []
    second: list[Any] = []
    rt = world.runtime()
    stop = rt.subscribe_ledger(first.append)
    rt.subscribe_ledger(second.append)
    await rt.run(QUESTION)
    stop()
    stop()
    await rt.run(QUESTION)
    assert (len(first), len(second)) == (2, 4)


async def test_the_same_callback_subscribed_twice_is_two_subscriptions(world: World) -> None:
    heard: list[Any] = []
    callback = heard.append
    rt = world.runtime()
    stop = rt.subscribe_ledger(callback)
    rt.subscribe_ledger(callback)
    stop()
    stop()
    await rt.run(QUESTION)
    assert len(heard) == 2


async def test_what_a_subscriber_raises_is_logged_and_harms_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def bad(record: dict[str, Any]) -> None:
        record.clear()
        raise RuntimeError("a reader's trouble")

    rt = world.runtime()
    rt.subscribe_ledger(bad)
    rt.subscribe_ledger(heard.append)
    with caplog.at_level(logging.ERROR):
        state = await rt.run(QUESTION, run_id="r")
    assert state.status is RunStatus.WAITING
    assert heard == await rt.get_ledger("r")
    assert "a reader's trouble" in caplog.text


async def test_what_a_subscriber_does_to_its_record_reaches_neither_the_run_nor_another_subscriber(
    world: World,
) -> None:
    heard: list[dict[str, Any]] = []

    def spoil(record: dict[str, Any]) -> None:
        if record["effect"]:
            record["effect"]["payload"]["spoiled"] = True
        if isinstance(record["result"], dict):
            record["result"]["spoiled"] = True

    rt = world.runtime({"host": lambda call: EffectOutcome.completed({"given": dict(call.payload)})})
    rt.subscribe_ledger(spoil)
    rt.subscribe_ledger(heard.append)
    state = await rt.run(one("host", {"x": 1}), run_id="r")
    assert state.output == {"result": {"given": {"x": 1}}}
    assert heard == await rt.get_ledger("r")
    assert "spoiled" not in repr(heard)


async def test_a_subscriber_may_unsubscribe_from_inside(world: World) -> None:
    heard: list[Any] = []
    rt = world.runtime()

    def once(record: dict[str, Any]) -> None:
        heard.append(record)
        stop()

    stop = rt.subscribe_ledger(once)
    await rt.run(QUESTION)
    assert len(heard) == 1


async def test_a_subscriber_never_hears_what_is_not_durable(world: World) -> None:
    heard: list[Any] = []
    for at in range(1, 5):
        for mode in ("die_before", "die_after"):
            heard.clear()
            run_id = f"r{at}{mode}"
            rt, _ = world.faulty_runtime({"host": lambda call: EffectOutcome.completed(1)}, at=at, mode=mode)
            rt.subscribe_ledger(heard.append)
            with pytest.raises(ProcessDied):
                await rt.run(one("host"), run_id=run_id)
            stored = await world.runtime().get_ledger(run_id)
            assert heard == stored[: len(heard)]


async def test_a_write_that_landed_although_the_store_said_otherwise_is_told_once(world: World) -> None:
    for at in range(1, 6):
        heard: list[Any] = []
        handlers = {"host": lambda call: EffectOutcome.completed(1)}
        rt, _ = world.faulty_runtime(handlers, at=at, mode="landed_but_error")
        rt.subscribe_ledger(heard.append)
        state = await rt.run(one("host"), run_id=f"r{at}")
        assert state.status is RunStatus.COMPLETED
        assert heard == await rt.get_ledger(f"r{at}")


async def test_a_subscriber_that_reads_the_store_finds_the_record_there(world: World) -> None:
    found: list[int] = []
    runs, ledgers = InMemoryRunStore(), InMemoryLedgerStore()
    rt = world.runtime(stores=(runs, ledgers))
    rt.subscribe_ledger(lambda record: found.append(len(ledgers.list(record["run_id"]))))
    await rt.run(QUESTION)
    assert found == [2, 2]


async def test_an_async_callback_is_refused(world: World) -> None:
    async def callback(record: dict[str, Any]) -> None:
        raise AssertionError("never called")

    with pytest.raises(TypeError, match="is async"):
        world.runtime().subscribe_ledger(callback)


def test_under_the_blocking_runtime_callbacks_run_in_the_callers_thread_before_the_call_returns() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    heard: list[tuple[int, str, str]] = []
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    rt.subscribe_ledger(lambda record: heard.append((threading.get_ident(), who.get(), record["status"])))
    who.set("the caller")
    rt.run(QUESTION, run_id="r")
    assert heard == [(threading.get_ident(), "the caller", status) for status in ("started", "waiting")]

    def elsewhere() -> None:
        rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload=1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert {ident for ident, _, _ in heard[2:]} == {thread.ident}
    assert len(heard) == 5


def test_a_blocking_callback_may_call_the_runtime_itself() -> None:
    seen: list[str] = []
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())

    def callback(record: dict[str, Any]) -> None:
        seen.append(str(rt.get_state(record["run_id"]).status))

    rt.subscribe_ledger(callback)
    rt.run(QUESTION)
    assert seen == ["waiting", "waiting"], "a callback hears of what is durable already"


async def test_callbacks_of_an_async_runtime_run_on_its_loop_before_the_call_returns(async_world: World) -> None:
    heard: list[Any] = []
    rt = async_world.runtime()
    assert isinstance(rt, AsyncRuntime)
    loop = asyncio.get_running_loop()
    rt.subscribe_ledger(lambda record: heard.append(asyncio.get_running_loop() is loop))
    await rt.run(QUESTION)
    assert heard == [True, True]


async def test_traces_show_every_effect_of_a_node_in_the_documented_shape(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed({"n": 1})})
    work = flow("a", a=ask("a", "host", {"x": 1}, "got", "b"), b=ask("b", "ask_user", {"prompt": "?"}, "y"))
    await rt.run(work, run_id="r")
    traces = await rt.get_node_traces("r")
    assert set(traces) == {"a", "b"}
    (step,) = traces["a"]["steps"]
    assert traces["a"] == {"node_id": "a", "steps": [step], "updated_at": step["ts"]}
    assert step.pop("idempotency_key")
    assert step == {
        "ts": "2026-01-31T09:00:00.000000+00:00",
        "node_id": "a",
        "status": "completed",
        "reused_prior_result": False,
        "effect": {"type": "host", "payload": {"x": 1}, "result_key": "got"},
        "duration_ms": 0.0,
        "result": {"n": 1},
    }
    (wait,) = traces["b"]["steps"]
    assert wait["status"] == "waiting"
    assert wait["wait"]["prompt"] == "?"
    assert len(wait["wait"]) == 9
    assert await rt.get_node_trace("r", "a") == (await rt.get_node_traces("r"))["a"]
    assert await rt.get_node_trace("r", "end") == {"node_id": "end", "steps": []}


async def test_traces_show_failures_and_how_long_an_attempt_took(world: World) -> None:
    def slow(call: Any) -> EffectOutcome:
        world.clock.advance(1.5)
        return EffectOutcome.failed("no")

    rt = world.runtime({"host": slow})
    await rt.run(one("host"), run_id="r")
    (step,) = (await rt.get_node_trace("r", "work"))["steps"]
    assert (step["status"], step["error"], step["duration_ms"]) == ("failed", "no", 1500.0)
    assert "result" not in step


async def test_a_node_keeps_the_newest_hundred_traces(world: World) -> None:
    def loop(run: Any, ctx: Any) -> Any:
        run.vars["n"] = run.vars.get("n", 0) + 1
        return ask("loop", "answer_user", {"message": str(run.vars["n"])}, None, "loop")(run, ctx)

    rt = world.runtime()
    work = flow("loop", loop=loop)
    run_id = await rt.start(workflow=work)
    await rt.tick(workflow=work, run_id=run_id, max_steps=103)
    steps = (await rt.get_node_trace(run_id, "loop"))["steps"]
    assert [step["result"]["message"] for step in steps] == [str(n) for n in range(4, 104)]


async def test_traces_are_not_written_into_the_state_and_those_of_old_runs_are_read(world: World) -> None:
    rt = world.runtime()
    old = {"_runtime": {"node_traces": {"n": {"node_id": "n", "steps": [{"status": "completed"}]}}}}
    state = await rt.run(QUESTION, vars=old)
    assert get_node_traces(state.vars) == old["_runtime"]["node_traces"]
    assert get_node_trace(state.vars, "n")["steps"] == [{"status": "completed"}]
    fresh = await rt.run(QUESTION)
    assert "node_traces" not in fresh.vars["_runtime"]


async def test_a_failing_store_is_told_to_the_caller_and_the_run_goes_on_later(world: World) -> None:
    rt, store = world.faulty_runtime({"host": lambda call: EffectOutcome.completed(1)}, at=10**9)
    await rt.start(workflow=one("host"), run_id="r")

    async def refuse(write: Any) -> None:
        raise StoreError("the disk is full")

    assert store.backend is not None
    commit, store.backend.commit = store.backend.commit, refuse  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="the disk is full"):
        await rt.tick(workflow=one("host"), run_id="r")
    store.backend.commit = commit  # type: ignore[method-assign]
    assert (await rt.tick(workflow=one("host"), run_id="r")).status is RunStatus.COMPLETED
    assert (await rt.get_state("r")).node_errors == 0
