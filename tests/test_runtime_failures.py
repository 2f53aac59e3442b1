"""Runs that fail, are retried, or are set apart when nothing helps; and effects that wait for a place."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    RunNotFailed,
    RunQuarantined,
    RunState,
    RunStatus,
    RuntimeClosed,
    StepPlan,
    StoreTooLarge,
    UnknownRun,
)

from . import worlds
from .checks import check_on_the_way
from .worlds import Gate, World, eventually, flow, go, one, statuses

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world


class Broken:
    """A node that raises until it is mended."""

    def __init__(self) -> None:
        self.broken, self.asked = True, 0

    def __call__(self, run: RunState, ctx: Any) -> StepPlan:
        self.asked += 1
        if self.broken:
            raise ValueError("no such order")
        return StepPlan("work", next_node="end")


async def test_a_run_may_fail_for_a_node_that_raises(world: World) -> None:
    rt = world.runtime(on_node_error="fail")
    state = await rt.run(flow("work", work=Broken()), run_id="r")
    assert (state.status, state.error) == (RunStatus.FAILED, "ValueError: no such order")
    ledger = await rt.get_ledger("r")
    assert statuses(ledger) == ["failed", "completed"]
    assert ledger[-1]["idempotency_key"] == "system:terminal_status:failed"
    assert state.quarantined is None


async def test_a_function_decides_per_run_and_error(world: World) -> None:
    seen: list[tuple[str, str]] = []

    def decide(run: RunState, error: Exception) -> str:
        seen.append((run.run_id, str(error)))
        return "fail" if run.run_id == "fatal" else "raise"

    rt = world.runtime(on_node_error=decide)
    workflow = flow("work", work=Broken())
    assert (await rt.run(workflow, run_id="fatal")).status is RunStatus.FAILED
    with pytest.raises(ValueError, match="no such order"):
        await rt.run(workflow, run_id="patient")
    assert (await rt.get_state("patient")).status is RunStatus.RUNNING
    assert seen == [("fatal", "no such order"), ("patient", "no such order")]


@pytest.mark.parametrize("answer", ["perhaps", None, ZeroDivisionError])
async def test_a_function_that_cannot_decide_leaves_the_error_to_the_caller(async_world: World, answer: Any) -> None:
    def decide(run: RunState, error: Exception) -> Any:
        if answer is ZeroDivisionError:
            raise ZeroDivisionError
        return answer

    rt = async_world.runtime(on_node_error=decide)
    with pytest.raises(ValueError, match="no such order"):
        await rt.run(flow("work", work=Broken()), run_id="r")
    assert (await rt.get_state("r")).status is RunStatus.RUNNING


async def test_rules_that_are_none_are_refused(async_world: World) -> None:
    with pytest.raises(ValueError, match="on_node_error must be 'raise', 'fail' or a function, found 'ignore'"):
        async_world.runtime(on_node_error="ignore")
    with pytest.raises(ValueError, match="quarantine_after must be a whole number of at least 1, found 0"):
        async_world.runtime(quarantine_after=0)


async def test_a_node_that_raises_again_and_again_sets_its_run_apart(world: World) -> None:
    rt = world.runtime(quarantine_after=3)
    node = Broken()
    workflow = flow("work", work=node)
    await rt.start(workflow=workflow, run_id="r")
    for _ in range(3):
        with pytest.raises(ValueError, match="no such order"):
            await rt.tick(workflow=workflow, run_id="r")
    state = await rt.tick(workflow=workflow, run_id="r")  # nothing is asked any more
    assert (state.status, node.asked) == (RunStatus.FAILED, 3)
    assert state.quarantined == "node 'work' raised 3 times in a row"
    node.broken = False
    with pytest.raises(RunQuarantined, match=r"raised 3 times in a row.*force=True"):
        await rt.retry_run("r")
    assert (await rt.retry_run("r", force=True)).quarantined is None
    state = await rt.tick(workflow=workflow, run_id="r")
    assert state.status is RunStatus.COMPLETED
    check_on_the_way(state, await rt.get_ledger("r"))


async def test_errors_with_steps_between_them_are_not_in_a_row(async_world: World) -> None:
    rt = async_world.runtime(quarantine_after=2)
    raised = 0

    def work(run: RunState, ctx: Any) -> StepPlan:
        nonlocal raised
        if raised <= run.vars.get("round", 0):
            raised += 1
            raise ValueError(f"error {raised}")
        run.vars["round"] = run.vars.get("round", 0) + 1
        return StepPlan("work", next_node="hop" if raised < 4 else "end")

    workflow = flow("work", work=work, hop=go("hop", "work"))
    await rt.start(workflow=workflow, run_id="r")
    for number in range(1, 5):
        with pytest.raises(ValueError, match=f"error {number}"):
            await rt.tick(workflow=workflow, run_id="r")
    assert (await rt.tick(workflow=workflow, run_id="r")).status is RunStatus.COMPLETED


async def test_a_failed_run_is_retried_at_the_node_where_it_stands(world: World) -> None:
    calls: list[EffectCall] = []

    def pay(call: EffectCall) -> EffectOutcome:
        calls.append(call)
        return EffectOutcome.failed("card refused") if len(calls) == 1 else EffectOutcome.completed("paid")

    rt = world.runtime({"pay": pay})
    workflow = flow("hop", hop=go("hop", "work"), work=one("pay").nodes["work"])
    assert (await rt.run(workflow, run_id="r")).status is RunStatus.FAILED
    state = await rt.retry_run("r", reason="new card", actor_id="ann")
    assert (state.status, state.error, state.current_node, state.retries) == (RunStatus.RUNNING, None, "work", 1)
    state = await rt.tick(workflow=workflow, run_id="r")
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"result": "paid"})
    assert calls[0].key != calls[1].key, "what is asked for anew is another effect"
    (record,) = [r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "retry"]
    assert record["actor_id"] == "ann"
    assert record["effect"]["payload"] == {"error": "card refused", "reason": "new card", "quarantined": None}
    assert "retry" not in str((await rt.get_node_traces("r")).keys())


async def test_only_a_failed_run_can_be_retried(world: World) -> None:
    rt = world.runtime()
    done = flow("end")
    await rt.run(done, run_id="done")
    with pytest.raises(RunNotFailed, match="'done' is completed; only a failed run"):
        await rt.retry_run("done")
    with pytest.raises(UnknownRun):
        await rt.retry_run("unknown")
    await rt.start(workflow=done, run_id="running")
    before = await rt.get_state("running")
    assert (await rt.retry_run("running")).revision == before.revision


async def test_a_run_that_fails_however_often_it_is_retried_is_set_apart(world: World) -> None:
    rt = world.runtime({"pay": lambda call: EffectOutcome.failed("card refused")}, quarantine_after=3)
    workflow = one("pay")
    await rt.run(workflow, run_id="r")
    for _ in range(2):
        await rt.retry_run("r")
        assert (await rt.tick(workflow=workflow, run_id="r")).status is RunStatus.FAILED
    with pytest.raises(RunQuarantined, match=r"failed again after 2 retries.*card refused"):
        await rt.retry_run("r")
    assert (await rt.get_state("r")).quarantined == "it failed again after 2 retries"
    with pytest.raises(RunQuarantined):
        await rt.retry_run("r")


async def test_a_closed_runtime_claims_nothing(async_world: World) -> None:
    def handler(call: EffectCall) -> EffectOutcome:
        raise AssertionError("it was performed")

    rt = async_world.runtime({"host": handler})
    await rt.aclose()
    with pytest.raises(RuntimeClosed, match="claims no effect any more"):
        await rt.run(one("host"), run_id="r")
    assert await rt.get_ledger("r") == []


# -- what is too large for the store


async def limited(world: World, handlers: dict[str, Any]) -> Any:
    """A runtime on a SQLite database that takes no value above 100,000 bytes."""
    stores = world.stores()
    rt = world.runtime(handlers, stores=stores)
    await rt.start(workflow=one("host"), run_id="other")
    stores[0].db.backend._writer._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    return rt


async def test_an_outcome_too_large_for_the_store_fails_its_effect_once(sqlite_world: World) -> None:
    performed: list[str] = []

    async def handler(call: EffectCall) -> EffectOutcome:
        performed.append(call.key)
        return EffectOutcome.completed("x" * 200_000)

    rt = await limited(sqlite_world, {"host": handler})
    state = await rt.run(one("host"), run_id="r")
    assert (state.status, len(performed)) == (RunStatus.FAILED, 1)
    assert "The result cannot be stored" in state.error
    assert "larger than SQLite can store" in state.error


async def test_among_several_only_the_one_too_large_fails(sqlite_world: World) -> None:
    performed: list[int] = []

    async def handler(call: EffectCall) -> EffectOutcome:
        performed.append(call.payload["size"])
        return EffectOutcome.completed("x" * call.payload["size"])

    rt = await limited(sqlite_world, {"host": handler})
    effects = [Effect("host", {"size": size}, f"r{size}") for size in (10, 200_000, 20)]
    workflow = flow(
        "work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end", on_failure="collect")
    )
    state = await rt.run(workflow, run_id="r")
    assert sorted(performed) == [10, 20, 200_000]
    assert (state.output["r10"], state.output["r20"]) == ("x" * 10, "x" * 20)
    assert "cannot be stored" in state.output["r200000"]["error"]


async def test_results_that_are_too_large_together_fail_their_step(sqlite_world: World) -> None:
    performed: list[str] = []

    async def handler(call: EffectCall) -> EffectOutcome:
        performed.append(call.key)
        return EffectOutcome.completed("x" * 40_000)

    rt = await limited(sqlite_world, {"host": handler})
    effects = [Effect("host", {"n": n}, f"r{n}") for n in range(3)]
    workflow = flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end"))
    state = await rt.run(workflow, run_id="r")
    assert (state.status, len(performed)) == (RunStatus.FAILED, 3)
    assert "The results together cannot be stored" in state.error


async def test_vars_too_large_for_the_store_are_told_and_lose_nothing(sqlite_world: World) -> None:
    def work(run: RunState, ctx: Any) -> StepPlan:
        run.vars["text"] = "x" * 200_000
        return StepPlan("work", next_node="end")

    rt = await limited(sqlite_world, {})
    workflow = flow("work", work=work)
    with pytest.raises(StoreTooLarge, match="Keep it outside"):
        await rt.run(workflow, run_id="r")
    state = await rt.get_state("r")
    assert (state.status, "text" in state.vars) == (RunStatus.RUNNING, False)


# -- places


async def test_no_more_effects_of_a_type_are_performed_than_there_are_places(world: World) -> None:
    gate, most = Gate(), 0
    inside = 0

    async def call_llm(call: EffectCall) -> EffectOutcome:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await gate.passed()
        inside -= 1
        return EffectOutcome.completed()

    rt = world.runtime({"llm": call_llm, "other": lambda call: EffectOutcome.completed()}, effect_limits={"llm": 2})
    running = [asyncio.ensure_future(rt.run(one("llm"), run_id=f"r{n}")) for n in range(5)]
    await eventually(lambda: inside == 2)
    assert (await rt.run(one("other"))).status is RunStatus.COMPLETED, "other types do not wait"
    ledgers = [await rt.get_ledger(f"r{n}") for n in range(5)]
    assert sum(map(len, ledgers)) == 2, "who waits for a place has promised nothing"
    gate.open()
    assert {state.status for state in await asyncio.gather(*running)} == {RunStatus.COMPLETED}
    assert most == 2


async def test_who_waits_for_a_place_can_be_cancelled_and_leaves_nothing_behind(async_world: World) -> None:
    gate = Gate()

    async def slow(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return EffectOutcome.completed()

    rt = async_world.runtime({"slow": slow}, effect_limits={"slow": 1})
    workflow = one("slow")
    first = asyncio.ensure_future(rt.run(workflow, run_id="first"))
    await eventually(lambda: gate.inside == 1)
    await rt.start(workflow=workflow, run_id="second")
    waiting = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="second"))
    third = asyncio.ensure_future(rt.run(workflow, run_id="third"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await rt.get_ledger("second") == []
    gate.open()
    assert (await first).status is RunStatus.COMPLETED
    assert (await third).status is RunStatus.COMPLETED
    assert (await rt.tick(workflow=workflow, run_id="second")).status is RunStatus.COMPLETED


async def test_a_run_that_was_cancelled_while_it_waited_for_a_place_is_not_performed(async_world: World) -> None:
    gate = Gate()

    async def slow(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return EffectOutcome.completed()

    rt = async_world.runtime({"slow": slow}, effect_limits={"slow": 1})
    workflow = one("slow")
    first = asyncio.ensure_future(rt.run(workflow, run_id="first"))
    await eventually(lambda: gate.inside == 1)
    second = asyncio.ensure_future(rt.run(workflow, run_id="second"))
    await asyncio.sleep(0.01)
    await rt.cancel_run("second")
    gate.open()
    await first
    assert (await second).status is RunStatus.CANCELLED
    assert gate.inside == 1


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
async def test_a_limit_that_is_no_number_is_refused(async_world: World, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"effect_limits\['llm'\] must be a whole number"):
        async_world.runtime(effect_limits={"llm": limit})


# -- what handlers raise


async def test_a_defect_of_a_handler_is_not_tried_again_and_a_policy_may_know_better(world: World) -> None:
    calls = 0

    def broken(call: EffectCall) -> EffectOutcome:
        nonlocal calls
        calls += 1
        raise TypeError("no such argument")

    class Stubborn(DefaultEffectPolicy):
        def is_retryable(self, effect: Any, error: Exception) -> bool | None:
            return True if isinstance(error, TypeError) else None

    rt = world.runtime({"host": broken}, effect_policy=DefaultEffectPolicy(3, default_backoff_base=0.0))
    state = await rt.run(one("host"))
    assert (calls, state.error) == (1, "Effect handler raised exception: no such argument")
    rt = world.runtime({"host": broken}, effect_policy=Stubborn(3, default_backoff_base=0.0))
    state = await rt.run(one("host"))
    assert (calls, state.status) == (4, RunStatus.FAILED)
    assert state.error == "Effect failed after 3 attempts: Effect handler raised exception: no such argument"


async def test_a_handler_may_say_how_long_the_next_attempt_must_wait(world: World) -> None:
    rt = world.runtime(
        {"host": lambda call: EffectOutcome.failed("busy", retry_after=3600.0)},
        effect_policy=DefaultEffectPolicy(2, default_backoff_base=0.0),
    )
    state = await rt.run(one("host"), run_id="r")
    assert state.due == "2026-01-31T10:00:00.000000+00:00"
    assert state.status is RunStatus.RUNNING


async def test_a_retry_after_that_is_no_number_fails_the_effect(world: World) -> None:
    outcome = EffectOutcome("failed", error="busy", retry_after="soon")  # type: ignore[arg-type]  # what the test is about
    rt = world.runtime({"host": lambda call: outcome}, effect_policy=DefaultEffectPolicy(2))
    state = await rt.run(one("host"))
    assert "retry_after must be a number of seconds, found 'soon'" in state.error
