"""Limits and tokens of real runs: warned of, enforced, raised, counted; on every kind of store, under both facades."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectOutcome,
    RunState,
    RunStatus,
    RuntimeConfig,
    StepPlan,
    WaitReason,
)
from abstractruntime.core.clock import utc_now_iso
from abstractruntime.core.errors import InvalidAnswer, StaleResumeError, UnknownRun, UnsafeValue
from abstractruntime.core.models import Change, Elsewhere
from abstractruntime.scheduler import WorkflowRegistry
from abstractruntime.storage.sqlite.statements import QUERIES

from .dict_stores import DictLedgerStore, DictRunStore
from .faults import FaultyBackend, ProcessDied
from .worlds import PATIENCE, Gate, World, a_moment, ask, eventually, flow, one

KINDS = ("memory", "sqlite", "json")


@pytest.fixture(params=[f"{facade}-{kind}" for facade in ("async", "sync") for kind in KINDS])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Both facades on all three kinds of stores."""
    facade, kind = request.param.split("-")
    made = World(facade, kind, tmp_path, synchronous="NORMAL")
    yield made
    await made.close()


def loop_node(run: RunState, ctx: Any) -> StepPlan:
    """Counts an iteration as it ends, and goes on until there were enough of them."""
    limits = run.vars["_limits"]
    limits["current_iteration"] += 1
    run.vars["turns"] = run.vars.get("turns", 0) + 1
    done = run.vars["turns"] >= run.vars.get("enough", 12)
    return StepPlan("loop", next_node="end" if done else "loop")


LOOP = flow("loop", loop=loop_node)
CONFIG = RuntimeConfig(max_iterations=5)


async def warnings_of(rt: Any, run_id: str) -> list[tuple[str, str, int]]:
    payloads = [
        record["effect"]["payload"]
        for record in await rt.get_ledger(run_id)
        if (record["effect"] or {}).get("type") == "limit_warning"
    ]
    return [(payload["limit_type"], payload["status"], payload["current"]) for payload in payloads]


IN_A_LOOP = [("iterations", "warning", 4), ("iterations", "exceeded", 5)]


async def test_without_enforcement_a_run_goes_on_and_its_ledger_warns(world: World):
    rt = world.runtime(config=CONFIG)
    state = await rt.run(LOOP)
    assert (state.status, state.output["turns"]) == (RunStatus.COMPLETED, 12)
    assert await warnings_of(rt, state.run_id) == IN_A_LOOP
    assert [one.status for one in rt.check_limits(state)] == ["exceeded"]


async def test_a_run_at_its_limit_fails_and_can_be_retried_with_a_higher_one(world: World):
    rt = world.runtime(config=CONFIG, enforce_limits="fail")
    state = await rt.run(LOOP)
    assert (state.status, state.vars["turns"]) == (RunStatus.FAILED, 5)
    assert state.error is not None
    assert state.error.startswith("The limit of iterations is reached at node 'loop': 5, with max_iterations 5.")
    again = await rt.retry_run(state.run_id)
    again = await rt.tick(workflow=LOOP, run_id=state.run_id)
    assert (again.status, again.vars["turns"]) == (RunStatus.FAILED, 5)
    await rt.update_limits(state.run_id, {"max_iterations": 100})
    await rt.retry_run(state.run_id)
    done = await rt.tick(workflow=LOOP, run_id=state.run_id)
    assert (done.status, done.output["turns"]) == (RunStatus.COMPLETED, 12)
    assert await warnings_of(rt, state.run_id) == IN_A_LOOP


async def test_a_person_raises_the_limit_or_stops_the_run(world: World):
    rt = world.runtime(config=CONFIG, enforce_limits="ask")
    state = await rt.run(LOOP)
    assert (state.status, state.vars["turns"]) == (RunStatus.WAITING, 5)
    assert state.waiting.reason is WaitReason.USER
    first = state.waiting.wait_key
    assert (await rt.tick(workflow=LOOP, run_id=state.run_id)).waiting.wait_key == first
    with pytest.raises(InvalidAnswer):
        await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=first, payload="whatever")
    go_on = {"choice": "raise and go on"}
    state = await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=first, payload=go_on, resume_id="once")
    assert (state.status, state.vars["turns"]) == (RunStatus.WAITING, 7)  # by half as much again
    same = await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=first, payload=go_on, resume_id="once")
    assert same.vars["turns"] == 7
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=first, payload=go_on)
    key = state.waiting.wait_key
    state = await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=key, payload={**go_on, "maximum": 11})
    assert state.vars["turns"] == 11
    key = state.waiting.wait_key
    state = await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=key, payload={"choice": "stop"})
    assert (state.status, state.vars["turns"]) == (RunStatus.FAILED, 11)
    assert state.error == "Stopped: The limit of iterations is reached at node 'loop': 11, with max_iterations 11."


async def test_raising_the_limit_from_outside_lets_the_run_go_on(world: World):
    rt = world.runtime(config=CONFIG, enforce_limits="ask")
    state = await rt.run(LOOP)
    await rt.update_limits(state.run_id, {"warn_iterations_pct": 70})
    assert (await rt.get_state(state.run_id)).status is RunStatus.WAITING
    await rt.update_limits(state.run_id, {"max_iterations": 50})
    assert (await rt.get_state(state.run_id)).status is RunStatus.RUNNING
    assert (await rt.tick(workflow=LOOP, run_id=state.run_id)).output["turns"] == 12


async def test_a_run_that_waits_at_a_limit_can_be_restored_there_and_answered(world: World):
    rt = world.runtime(config=CONFIG, enforce_limits="ask")
    state = await rt.run(LOOP)
    old = state.waiting.wait_key
    snapshot = await rt.snapshot_run(state.run_id, name="at the limit")
    await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=old, payload={"choice": "stop"})
    restored = await rt.restore(state.run_id, snapshot)
    assert restored.status is RunStatus.WAITING
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=old, payload={"choice": "stop"})
    payload = {"choice": "raise and go on", "maximum": 50}
    done = await rt.resume(workflow=LOOP, run_id=state.run_id, wait_key=restored.waiting.wait_key, payload=payload)
    assert done.output["turns"] == 12


# -- tokens


def usage(sent: int, received: int) -> EffectOutcome:
    return EffectOutcome.completed({"content": "ok", "usage": {"input_tokens": sent, "output_tokens": received}})


def said(call: Any) -> EffectOutcome:
    return usage(call.payload["sent"], call.payload["received"])


MODEL = {"llm_call": said}


def talk(*calls: tuple[int, int]) -> Any:
    """A workflow of LLM calls, one after another."""
    nodes = {
        f"n{place}": ask(
            f"n{place}",
            "llm_call",
            {"sent": sent, "received": received},
            f"answers.{place}",
            f"n{place + 1}" if place + 1 < len(calls) else "end",
        )
        for place, (sent, received) in enumerate(calls)
    }
    return flow("n0", **nodes)


async def test_tokens_add_up_while_the_estimate_is_of_the_last_call(world: World):
    rt = world.runtime(MODEL)
    state = await rt.run(talk((100, 10), (300, 20), (200, 30)))
    assert state.vars["_limits"]["estimated_tokens_used"] == 200
    assert await rt.get_token_usage(state.run_id) == {"run": 660, "tree": 660}
    with pytest.raises(UnknownRun):
        await rt.get_token_usage("unknown")


async def test_tokens_of_a_run_under_way_are_in_its_tree(world: World):
    rt, spec = world.runtime(MODEL), talk((100, 10), (300, 20))
    run_id = await rt.start(workflow=spec)
    for expected in (110, 430):
        assert (await rt.tick(workflow=spec, run_id=run_id, max_steps=1)).status is RunStatus.RUNNING
        assert await rt.get_token_usage(run_id) == {"run": expected, "tree": expected}


@pytest.mark.parametrize("mode", ["fail", "ask"])
async def test_a_run_stops_before_the_next_node_when_its_window_is_full(world: World, mode: str):
    rt = world.runtime(MODEL, config=RuntimeConfig(max_tokens=250), enforce_limits=mode)
    state = await rt.run(talk((100, 10), (300, 20), (50, 30)))
    assert state.status is (RunStatus.FAILED if mode == "fail" else RunStatus.WAITING)
    assert (state.current_node, await rt.get_token_usage(state.run_id)) == ("n2", {"run": 430, "tree": 430})
    assert await warnings_of(rt, state.run_id) == [("tokens", "exceeded", 300)]


async def test_a_history_that_is_too_long_stops_the_run(world: World):
    def chat(run: RunState, ctx: Any) -> StepPlan:
        messages = run.vars.setdefault("context", {}).setdefault(
            "messages", [{"role": "system", "content": "be brief"}]
        )
        messages.append({"role": "user", "content": "more"})
        return StepPlan("chat", next_node="chat")

    rt = world.runtime(config=RuntimeConfig(max_history_messages=3), enforce_limits="fail")
    state = await rt.run(flow("chat", chat=chat))
    assert state.status is RunStatus.FAILED
    assert state.error is not None
    assert state.error.startswith("The limit of history is reached at node 'chat': 4, with max_history_messages 3.")
    assert await warnings_of(rt, state.run_id) == []


def many(*effects: Effect, on_failure: Any = "collect") -> Any:
    def plan(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("many", effects=effects, next_node="end", on_failure=on_failure)

    return flow("many", many=plan)


def call_of(sent: int, received: int, key: str) -> Effect:
    return Effect("llm_call", {"sent": sent, "received": received}, key)


async def test_calls_in_parallel_count_when_their_step_has_ended(world: World):
    def fails(call: Any) -> EffectOutcome:
        if call.payload["sent"]:
            return said(call)
        return EffectOutcome("failed", {"usage": {"total_tokens": 7}}, error="no", retryable=False)

    rt = world.runtime({"llm_call": fails, "other": lambda call: usage(1000, 1000)})
    state = await rt.run(many(call_of(10, 1, "a"), Effect("other", {}, "b"), call_of(20, 2, "c"), call_of(0, 0, "d")))
    assert state.status is RunStatus.COMPLETED
    assert state.vars["_limits"]["estimated_tokens_used"] == 20
    assert await rt.get_token_usage(state.run_id) == {"run": 33 + 7, "tree": 33 + 7}


async def test_what_a_failed_fan_out_used_counts(world: World):
    rt = world.runtime({**MODEL, "bad": lambda call: EffectOutcome.failed("no", retryable=False)})

    def plan(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("many", effects=(call_of(10, 1, "a"), Effect("bad")), next_node="end", max_parallel=1)

    state = await rt.run(flow("many", many=plan))
    assert state.status is RunStatus.FAILED
    assert (await rt.get_token_usage(state.run_id))["run"] == 11


async def test_what_landed_of_a_cancelled_fan_out_counts_and_so_does_what_comes_late(tmp_path: Path):
    world, gate = World("async", "sqlite", tmp_path), Gate()

    async def slow(call: Any) -> EffectOutcome:
        if call.payload["sent"] == 10:
            return said(call)
        with suppress(asyncio.CancelledError):  # it cannot stop any more, and answers all the same
            await gate.passed()
        return said(call)

    rt = world.runtime({"llm_call": slow})
    spec = many(call_of(10, 1, "a"), call_of(20, 2, "b"))
    run_id = await rt.start(workflow=spec)
    task = asyncio.create_task(rt.tick(workflow=spec, run_id=run_id))
    await eventually(lambda: gate.inside)
    async with asyncio.timeout(PATIENCE):
        while sum(record["status"] == "completed" for record in await rt.get_ledger(run_id)) < 1:
            await a_moment()
    await rt.cancel_run(run_id)
    gate.open()
    await task
    state = await rt.get_state(run_id)
    late = [record for record in await rt.get_ledger(run_id) if (record["result"] or {}).get("late")]
    assert (state.status, state.tokens) == (RunStatus.CANCELLED, 11 + 22 * len(late))
    await world.close()


async def test_a_result_that_is_used_again_is_not_paid_again(world: World):
    class SameKey:
        """Names every call by what it sends."""

        def max_attempts(self, effect: Effect) -> int:
            return 1

        def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
            return 0.0

        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            return f"{effect.type}:{effect.payload.get('sent')}"

    rt = world.runtime(MODEL, effect_policy=SameKey())
    state = await rt.run(talk((100, 10), (100, 10)))
    assert (await rt.get_token_usage(state.run_id))["run"] == 110
    first = ask("first", "llm_call", {"sent": 5, "received": 1}, "x", "many")
    spec = flow("first", first=first, many=many(call_of(5, 1, "a"), call_of(6, 1, "b")).nodes["many"])
    state = await rt.run(spec)
    assert [bool(record["reused_from"]) for record in await rt.get_ledger(state.run_id)].count(True) == 1
    assert (await rt.get_token_usage(state.run_id))["run"] == 6 + 7


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"total_tokens": 10, "input_tokens": 1}, 10),
        ({"prompt_tokens": 4, "completion_tokens": 5}, 9),
        ({"input_tokens": "4", "output_tokens": 5}, 5),
        ({"input_tokens": -4, "output_tokens": True}, 0),
        ({"total_tokens": 10**30}, 2**53),
        ("many", 0),
        (None, 0),
    ],
)
async def test_nothing_that_a_model_says_of_its_usage_does_harm(tmp_path: Path, given: Any, tokens: int):
    world = World("async", "sqlite", tmp_path)
    rt = world.runtime({"llm_call": lambda call: EffectOutcome.completed({"usage": given})})
    state = await rt.run(flow("a", a=ask("a", "llm_call", {}, "x", "b"), b=ask("b", "llm_call", {}, "y")))
    assert (state.status, state.tokens) == (RunStatus.COMPLETED, min(2 * tokens, 2**53))
    assert (await rt.get_token_usage(state.run_id))["tree"] == state.tokens
    await world.close()


# -- trees


async def saved(world: World, run: RunState) -> None:
    made: Any = world.stores()[0].save(run)
    if made is not None:
        await made


def state_of(run_id: str, parent: str | None = None) -> RunState:
    return RunState(run_id, "w", RunStatus.COMPLETED, "end", parent_run_id=parent, created_at=utc_now_iso())


async def test_a_tree_is_summed_from_any_of_its_runs(world: World):
    rt = world.runtime(MODEL)
    await saved(world, state_of("root"))
    await saved(world, state_of("a", "root"))
    await saved(world, state_of("b", "a"))
    ids = [
        await rt.start(workflow=talk((sent, 1)), parent_run_id=parent)
        for sent, parent in ((10, "root"), (20, "b"), (40, "b"))
    ]
    ids.append(await rt.start(workflow=talk((80, 1)), parent_run_id=ids[-1]))
    apart = await rt.start(workflow=talk((1000, 1)), parent_run_id="unknown")
    for run_id, sent in zip((*ids, apart), (10, 20, 40, 80, 1000), strict=True):
        await rt.tick(workflow=talk((sent, 1)), run_id=run_id)
    total = 150 + 4
    assert [(await rt.get_token_usage(run_id))["tree"] for run_id in ("root", "a", "b", *ids)] == [total] * 7
    assert [(await rt.get_token_usage(run_id))["run"] for run_id in ("root", "b", *ids)] == [0, 0, 11, 21, 41, 81]
    assert await rt.get_token_usage(apart) == {"run": 1001, "tree": 1001}
    roots = [(await rt.get_state(run_id)).root_run_id for run_id in ("root", "a", "b", *ids, apart)]
    assert roots == [None, *["root"] * 6, "unknown"]
    again = world.runtime()  # as another process opens the same runs
    assert (await again.get_token_usage("b"))["tree"] == total


async def test_what_another_run_writes_into_a_run_leaves_its_count(world: World):
    def note(call: Any) -> EffectOutcome:
        change = Elsewhere(run_id=call.payload["run"], changes=(Change(path="noted", value=1),))
        return EffectOutcome.completed("noted", elsewhere=(change,))

    rt = world.runtime({**MODEL, "note": note})
    first = await rt.run(talk((10, 1)))
    await rt.run(one("note", {"run": first.run_id}))
    found = await rt.get_state(first.run_id)
    assert (found.vars["noted"], found.tokens) == (1, 11)
    assert await rt.get_token_usage(first.run_id) == {"run": 11, "tree": 11}


async def test_children_of_a_run_belong_to_its_tree(world: World):
    registry = WorkflowRegistry()
    child = talk((50, 5))
    registry.register(flow("n0", workflow_id="child", n0=child.nodes["n0"]))
    rt = world.runtime(MODEL, workflow_registry=registry)
    state = await rt.run(one("start_subworkflow", {"children": [{"workflow_id": "child"}] * 3}))
    assert state.status is RunStatus.COMPLETED, state.error
    assert await rt.get_token_usage(state.run_id) == {"run": 0, "tree": 165}


async def test_a_child_at_its_limit_lets_its_parent_wait(world: World):
    registry = WorkflowRegistry()
    registry.register(flow("loop", workflow_id="child", loop=loop_node))
    rt = world.runtime(config=CONFIG, workflow_registry=registry, enforce_limits="ask")
    spec = one("start_subworkflow", {"workflow_id": "child", "run_id": "the-child"})
    state = await rt.run(spec)
    assert (state.status, state.waiting.reason) == (RunStatus.WAITING, WaitReason.SUBWORKFLOW)
    await rt.update_limits("the-child", {"max_iterations": 100})
    done = await rt.tick(workflow=spec, run_id=state.run_id)
    assert done.status is RunStatus.COMPLETED
    assert done.output["result"]["output"]["turns"] == 12


async def test_a_save_keeps_what_the_engine_counts(world: World):
    rt = world.runtime(MODEL)
    await saved(world, state_of("top"))
    run_id = await rt.start(workflow=talk((10, 1)), parent_run_id="top")
    state = await rt.tick(workflow=talk((10, 1)), run_id=run_id)
    state.tokens, state.root_run_id = 999, "elsewhere"
    await saved(world, state)
    found = await rt.get_state(run_id)
    assert (found.tokens, found.root_run_id) == (11, "top")
    found.parent_run_id = None
    await saved(world, found)
    assert await rt.get_token_usage(run_id) == {"run": 11, "tree": 11}
    assert (await rt.get_token_usage("top"))["tree"] == 0


@pytest.mark.parametrize("tokens", [-1, "many", 2**70])
async def test_a_count_that_is_none_is_not_saved(world: World, tokens: Any):
    run = state_of("r")
    run.tokens = tokens
    with pytest.raises(UnsafeValue, match="tokens"):
        await saved(world, run)


async def test_stores_of_a_users_own_count_too():
    runs: Any = DictRunStore()
    async with AsyncRuntime(
        run_store=runs, ledger_store=DictLedgerStore(), effect_handlers=MODEL, enforce_limits="fail", config=CONFIG
    ) as rt:
        state = await rt.run(talk((10, 1), (20, 2)))
        child = await rt.start(workflow=talk((100, 1)), parent_run_id=state.run_id)
        await rt.tick(workflow=talk((100, 1)), run_id=child)
        assert (await rt.get_token_usage(state.run_id))["run"] == 33
        assert (await rt.get_state(child)).root_run_id == state.run_id
        assert (await rt.run(LOOP)).status is RunStatus.FAILED
        runs.list_children = lambda *, parent_run_id: [runs.load(child)] if parent_run_id == state.run_id else []
        assert (await rt.get_token_usage(child))["tree"] == 33 + 101


# -- what is refused


@pytest.mark.parametrize("mode", ["pause", True, "", 3])
async def test_a_mode_that_there_is_not_is_refused(tmp_path: Path, mode: Any):
    world = World("async", "memory", tmp_path)
    with pytest.raises(ValueError, match="enforce_limits must be None"):
        world.runtime(enforce_limits=mode)


async def test_more_iterations_than_the_ceiling_are_refused_at_the_start(world: World):
    rt = world.runtime(config=RuntimeConfig(max_iterations=50))
    with pytest.raises(ValueError, match="max_iterations is 50, above the run's max_iterations_ceiling of 20"):
        await rt.start(workflow=LOOP, vars={"_limits": {"max_iterations_ceiling": 20}})
    run_id = await rt.start(workflow=LOOP, vars={"_limits": {"max_iterations_ceiling": 20, "max_iterations": 20}})
    assert (await rt.get_limit_status(run_id))["iterations"]["max"] == 20


# -- faults


class Fallible:
    """A run store that joins into a backend whose write number `at` goes wrong."""

    def __init__(self, inner: Any, at: int, mode: str) -> None:
        self._inner, self._at, self._mode = inner, at, mode
        self.backend: FaultyBackend | None = None

    def join(self, ledger_store: Any) -> Any:
        self.backend = FaultyBackend(self._inner.join(ledger_store), self._at, self._mode)
        return self.backend


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_a_crash_at_any_write_neither_loses_nor_repeats_a_warning_or_a_token(
    tmp_path: Path, kind: str, mode: str
):
    """The writes of a run that crosses both limits and is stopped by a third: each of them goes wrong once."""

    def work(run: RunState, ctx: Any) -> StepPlan:
        run.vars["_limits"]["current_iteration"] += 1
        return StepPlan("work", Effect("llm_call", {"sent": 90, "received": 1}, "x"), next_node="work")

    spec = flow("work", work=work)
    config = RuntimeConfig(max_iterations=3, max_tokens=100)
    expected = [("iterations", "exceeded", 3), ("tokens", "warning", 90)]
    at, fired = 0, True
    while fired:
        at += 1
        world = World("async", kind, tmp_path / f"{mode}-{at}", synchronous="NORMAL")
        world.path.parent.mkdir()
        runs, ledgers = world.stores()
        store = Fallible(runs, at, mode)
        rt = AsyncRuntime(
            run_store=store, ledger_store=ledgers, effect_handlers=MODEL, config=config, enforce_limits="fail",
            clock=world.clock,
        )  # fmt: skip
        try:
            await rt.start(workflow=spec, run_id="r")
            await rt.tick(workflow=spec, run_id="r")
        except ProcessDied:
            pass
        finally:
            assert store.backend is not None
            fired, store.backend._at = store.backend.fired, 0
        world.clock.advance(60)
        after = world.runtime(MODEL, config=config, enforce_limits="fail")
        await after.start(workflow=spec, run_id="r")
        state = await after.tick(workflow=spec, run_id="r")
        assert state.status is RunStatus.FAILED
        assert state.error is not None
        assert "limit of iterations" in state.error
        found = await warnings_of(after, "r")
        assert sorted(found) == sorted(expected), (at, mode)
        assert (await after.get_token_usage("r"))["run"] == 3 * 91
        await world.close()
    assert at > 6


async def test_the_tokens_of_a_tree_are_summed_by_an_index(tmp_path: Path):
    world = World("async", "sqlite", tmp_path)
    rt = world.runtime(MODEL)
    await rt.run(talk((1, 1)))
    runs: Any = world.stores()[0]
    plan = await runs.db.backend.read(
        lambda connection: connection.execute(f"EXPLAIN QUERY PLAN {QUERIES['tokens_of_tree']}", ("x", "x")).fetchall()
    )
    text = " ".join(row[-1] for row in plan)
    assert "runs_by_root" in text
    assert "SCAN" not in text
    await asyncio.to_thread(runs.db.check, full=True)
    await world.close()
