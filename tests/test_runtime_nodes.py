"""Nodes: sync and async, what they may do to the run they are given, and what their errors leave behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    Effect,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InvalidPlan,
    ReentrantTick,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    UnknownNode,
    UnsafeValue,
)

from . import worlds
from .worlds import World, ask, end, flow, go

world = worlds.world
async_world = worlds.async_world


def raising(run: RunState, ctx: Any) -> StepPlan:
    run.vars["list"].append("changed before the raise")
    run.vars["new"] = 1
    raise LookupError("the node's own words")


async def untouched(rt: Any, before: RunState) -> RunState:
    """The run as stored, after checking that a failed step left it where it was."""
    state: RunState = await rt.get_state(before.run_id)
    assert (state.status, state.current_node, state.waiting) == (before.status, before.current_node, before.waiting)
    assert (state.vars, state.updated_at, state.output, state.error) == (
        before.vars,
        before.updated_at,
        before.output,
        before.error,
    )
    return state


async def test_a_node_that_raises_leaves_the_run_untouched_and_a_failed_record(world: World) -> None:
    rt = world.runtime()
    work = flow("bad", bad=raising)
    await rt.start(workflow=work, run_id="r", vars={"list": []})
    before = await rt.get_state("r")
    world.clock.advance(5)
    with pytest.raises(LookupError, match="the node's own words") as caught:
        await rt.tick(workflow=work, run_id="r")
    assert caught.value.__notes__ == ["raised at node 'bad' of run 'r'"]
    state = await untouched(rt, before)
    assert state.node_errors == 1
    (record,) = await rt.get_ledger("r")
    assert (record["status"], record["node_id"], record["effect"]) == ("failed", "bad", None)
    assert record["error"] == "LookupError: the node's own words"
    with pytest.raises(LookupError):
        await rt.tick(workflow=work, run_id="r")
    assert (await rt.get_state("r")).node_errors == 2
    assert (await rt.tick(workflow=flow("bad", bad=go("bad", "end")), run_id="r")).node_errors == 0


async def test_the_very_exception_of_the_node_reaches_the_caller(async_world: World) -> None:
    error = RuntimeError("mine")

    async def bad(run: RunState, ctx: Any) -> StepPlan:
        raise error

    with pytest.raises(RuntimeError) as caught:
        await async_world.runtime().run(flow("bad", bad=bad))
    assert caught.value is error


async def test_what_earlier_steps_of_the_same_tick_did_stays(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed(1)})
    work = flow("a", a=ask("a", "host", {}, "got", "bad"), bad=raising)
    await rt.start(workflow=work, run_id="r", vars={"list": []})
    with pytest.raises(LookupError):
        await rt.tick(workflow=work, run_id="r")
    state = await rt.get_state("r")
    assert (state.current_node, state.vars["got"], state.vars["list"]) == ("bad", 1, [])


def returns(value: Any) -> Any:
    return lambda run, ctx: value


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (StepPlan("n"), InvalidPlan, "returned no effect and no next_node"),
        (StepPlan("n", next_node=""), InvalidPlan, "returned no effect and no next_node"),
        (None, InvalidPlan, "returned a NoneType; expected a StepPlan"),
        ({"node_id": "n"}, InvalidPlan, "returned a dict; expected a StepPlan"),
        (StepPlan("n", next_node="nowhere"), UnknownNode, "'nowhere'"),
        (StepPlan("n", effect=Effect("x"), next_node="nowhere"), UnknownNode, "'nowhere'"),
        (StepPlan("n", effect={"type": "x"}), InvalidPlan, "no Effect with a dict payload"),  # type: ignore[arg-type]
        (StepPlan("n", effect=Effect("x", [1])), InvalidPlan, "no Effect with a dict payload"),  # type: ignore[arg-type]
        (StepPlan("n", effect=Effect(5)), ValueError, "type"),  # type: ignore[arg-type]
        (StepPlan("n", effect=Effect("x\ud800")), ValueError, "type"),
        (StepPlan("n", effect=Effect("x", {}, 5)), ValueError, "result_key"),  # type: ignore[arg-type]
        (StepPlan("n", effect=Effect("x", {}, "a\ud800")), ValueError, "result_key"),
        (StepPlan(5, effect=Effect("x")), ValueError, "node_id"),  # type: ignore[arg-type]
        (StepPlan("n\ud800", effect=Effect("x")), ValueError, "node_id"),
        (StepPlan("n", effect=Effect("x"), next_node=5), UnknownNode, "5"),  # type: ignore[arg-type]
        (StepPlan("n", effect=Effect("x", {"a": {1}})), UnsafeValue, ".a"),
        (StepPlan("n", complete_output={"a": float("nan")}), UnsafeValue, "complete_output"),
    ],
)
async def test_a_plan_that_cannot_be_followed_is_an_error_of_the_node(
    world: World, plan: Any, error: type[Exception], words: str
) -> None:
    rt = world.runtime()
    work = flow("n", n=returns(plan))
    await rt.start(workflow=work, run_id="r")
    before = await rt.get_state("r")
    with pytest.raises(error) as caught:
        await rt.tick(workflow=work, run_id="r")
    assert words in str(caught.value)
    assert (await untouched(rt, before)).node_errors == 1


@pytest.mark.parametrize("nothing", ["", None, 0, False])
async def test_an_empty_next_node_or_result_key_of_any_kind_means_none(world: World, nothing: Any) -> None:
    plan = StepPlan("n", Effect("host", {}, nothing), nothing)
    rt = world.runtime({"host": lambda call: EffectOutcome.completed(1)})
    state = await rt.run(flow("n", n=returns(plan)), run_id="r")
    assert state.output == {"success": True, "result": 1}
    assert (await rt.get_state("r")).output == state.output
    work = flow("n", n=returns(StepPlan("n", Effect("ask_user", {"prompt": "?"}, nothing), nothing)))
    await rt.run(work, run_id="q")
    assert (await rt.resume(workflow=work, run_id="q", wait_key=None, payload=2)).output == {
        "success": True,
        "result": 2,
    }


async def test_the_old_bases_of_plan_errors_stay(world: World) -> None:
    rt = world.runtime()
    with pytest.raises(ValueError, match="returned no effect and no next_node"):
        await rt.run(flow("n", n=returns(StepPlan("n"))))
    with pytest.raises(KeyError, match="nowhere"):
        await rt.run(flow("n", n=returns(StepPlan("n", next_node="nowhere"))))


async def test_declared_edges_bind_the_nodes(world: World) -> None:
    rt = world.runtime()
    edges = {"a": ["b"], "b": ["end"]}
    assert (await rt.run(flow("a", a=go("a", "b"), b=go("b", "end"), options={"edges": edges}))).output == {}
    with pytest.raises(InvalidPlan, match="declares no such edge"):
        await rt.run(flow("a", a=go("a", "end"), b=go("b", "end"), options={"edges": edges}))


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": b""}, {1: {2}}, "text", None])
async def test_vars_that_json_cannot_carry_are_an_error_of_the_node(world: World, bad: Any) -> None:
    def spoil(run: RunState, ctx: Any) -> StepPlan:
        run.vars = bad
        return StepPlan("spoil", next_node="end")

    rt = world.runtime()
    work = flow("spoil", spoil=spoil)
    await rt.start(workflow=work, run_id="r", vars={"list": [1]})
    before = await rt.get_state("r")
    with pytest.raises(ValueError, match="vars"):
        await rt.tick(workflow=work, run_id="r")
    await untouched(rt, before)


async def test_nodes_may_be_async_functions_lambdas_methods_and_objects(world: World) -> None:
    class Node:
        def __init__(self, then: str) -> None:
            self.then = then

        def method(self, run: RunState, ctx: Any) -> StepPlan:
            run.vars["method"] = True
            return StepPlan("m", next_node=self.then)

        async def __call__(self, run: RunState, ctx: Any) -> StepPlan:
            await asyncio.sleep(0)
            run.vars["object"] = True
            return StepPlan("o", next_node=self.then)

    async def function(run: RunState, ctx: Any) -> StepPlan:
        await asyncio.sleep(0)
        run.vars["function"] = True
        return StepPlan("f", next_node="m")

    work = flow("f", f=function, m=Node("o").method, o=Node("l"), l=lambda run, ctx: end(run, ctx))
    assert (await world.runtime().run(work)).output == {"function": True, "method": True, "object": True}


async def test_a_node_may_change_its_vars_in_place_or_bind_others(world: World) -> None:
    def in_place(run: RunState, ctx: Any) -> StepPlan:
        run.vars["list"].append(2)
        run.vars.setdefault("deep", {})["x"] = 1
        return StepPlan("in_place", next_node="other")

    def other(run: RunState, ctx: Any) -> StepPlan:
        run.vars = {"list": run.vars["list"], "bound": True}
        return StepPlan("other", next_node="end")

    state = await world.runtime().run(flow("in_place", in_place=in_place, other=other), vars={"list": [1]})
    assert state.output == {"list": [1, 2], "bound": True}


async def test_what_a_node_changed_is_part_of_the_commit_of_its_effect(world: World) -> None:
    seen: list[Any] = []

    def handler(call: Any) -> EffectOutcome:
        seen.append(call.run.vars["n"])
        return EffectOutcome.completed()

    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = 5
        return StepPlan("node", Effect("host"), "end")

    state = await world.runtime({"host": handler}).run(flow("node", node=node), vars={"n": 1})
    assert (seen, state.output) == ([5], {"n": 5})


async def test_only_vars_are_a_nodes_to_change(world: World) -> None:
    def greedy(run: RunState, ctx: Any) -> StepPlan:
        run.status, run.output, run.error, run.current_node = RunStatus.FAILED, {"x": 1}, "no", "elsewhere"
        run.revision, run.records, run.session_id = 99, 99, "other"
        return StepPlan("greedy", next_node="end")

    rt = world.runtime()
    work = flow("greedy", greedy=greedy)
    await rt.start(workflow=work, run_id="r", session_id="s")
    state = await rt.tick(workflow=work, run_id="r", max_steps=1)
    assert (state.status, state.output, state.error, state.current_node) == (RunStatus.RUNNING, None, None, "end")
    assert (state.revision, state.records, state.session_id) == (2, 0, "s")


@pytest.mark.parametrize("spoiled", [99, -1, "three", None, True, "gone", "no dict"])
async def test_the_issuance_counter_is_restored_whatever_the_node_did_to_it(world: World, spoiled: Any) -> None:
    keys: list[str] = []

    def handler(call: Any) -> EffectOutcome:
        keys.append(call.key)
        return EffectOutcome.completed()

    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        if spoiled == "gone":
            del run.vars["_runtime"]
        elif spoiled == "no dict":
            run.vars["_runtime"] = [1]
        else:
            run.vars["_runtime"]["effect_seq"] = spoiled
        return StepPlan("node", Effect("host"), "node" if run.vars["n"] < 3 else "end")

    rt = world.runtime({"host": handler})
    state = await rt.run(flow("node", node=node))
    assert state.vars["_runtime"]["effect_seq"] == 3
    assert len(set(keys)) == 3
    started = [r["step_id"] for r in await rt.get_ledger(state.run_id) if r["status"] == "started"]
    assert started == [f"{state.run_id}:{n}.1" for n in range(3)]


async def test_nodes_find_the_documented_private_attributes_on_the_run(world: World) -> None:
    seen: list[Any] = []
    artifacts = object()

    def node(run: Any, ctx: Any) -> StepPlan:
        seen.append((run._runtime_run_store, run._runtime_artifact_store))
        seen.append((run._runtime_run_id, run._runtime_session_id))
        run.unsaved = "mine"
        return StepPlan("node", next_node="end")

    rt = world.runtime(artifact_store=artifacts)
    await rt.run(flow("node", node=node), run_id="r", session_id="s")
    assert seen == [(rt.run_store, artifacts), ("r", "s")]
    assert "unsaved" not in (await rt.get_state("r")).__dict__


async def test_a_tick_from_inside_a_node_of_the_same_run_is_an_error(async_world: World) -> None:
    rt = async_world.runtime()

    async def inward(run: RunState, ctx: Any) -> StepPlan:
        await rt.tick(workflow=work, run_id=run.run_id)
        raise AssertionError("it ticked itself")

    work = flow("inward", inward=inward)
    with pytest.raises(ReentrantTick, match="ticked from inside itself"):
        await rt.run(work, run_id="r")
    assert (await rt.get_state("r")).node_errors == 1


async def test_a_tick_from_inside_a_handler_of_the_same_run_fails_the_effect(async_world: World) -> None:
    async def inward(call: Any) -> EffectOutcome:
        await rt.tick(workflow=work, run_id=call.run.run_id)
        raise AssertionError("it ticked itself")

    rt = async_world.runtime({"inward": inward})
    work = worlds.one("inward")
    state = await rt.run(work)
    assert state.status is RunStatus.FAILED
    assert "ticked from inside itself" in state.error


async def test_a_chain_of_runs_that_comes_back_to_the_first_is_an_error(async_world: World) -> None:
    async def outward(run: RunState, ctx: Any) -> StepPlan:
        await rt.tick(workflow=work, run_id={"a": "b", "b": "a"}[run.run_id])
        raise AssertionError("the circle closed")

    rt = async_world.runtime()
    work = flow("outward", outward=outward)
    await rt.start(workflow=work, run_id="a")
    await rt.start(workflow=work, run_id="b")
    with pytest.raises(ReentrantTick, match="'a'"):
        await rt.tick(workflow=work, run_id="a")


def test_a_blocking_tick_from_inside_a_node_of_the_same_run_is_an_error() -> None:
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())

    def inward(run: RunState, ctx: Any) -> StepPlan:
        rt.tick(workflow=work, run_id=run.run_id)
        raise AssertionError("it ticked itself")

    work = flow("inward", inward=inward)
    with pytest.raises(ReentrantTick, match="ticked from inside itself"):
        rt.run(work)


async def test_a_node_may_move_another_run_and_read_its_own(async_world: World) -> None:
    rt = async_world.runtime()

    async def parent(run: RunState, ctx: Any) -> StepPlan:
        child = await rt.run(flow("end", workflow_id="child"), vars={"x": 1})
        mine = await rt.get_state(run.run_id)
        return StepPlan("parent", complete_output={"child": child.output, "mine": str(mine.status)})

    state = await rt.run(flow("parent", parent=parent))
    assert state.output == {"child": {"x": 1}, "mine": "running"}


def test_a_blocking_node_may_use_the_facade_and_the_stores(tmp_path: Path) -> None:
    with SqliteDatabase(tmp_path / "runs.db") as database:
        rt = Runtime(run_store=SqliteRunStore(database), ledger_store=SqliteLedgerStore(database))

        def parent(run: Any, ctx: Any) -> StepPlan:
            child = rt.run(flow("end", workflow_id="child"), vars={"x": 1})
            stored = run._runtime_run_store.load(run.run_id)
            return StepPlan("parent", complete_output={"child": child.output, "mine": str(stored.status)})

        with rt:
            assert rt.run(flow("parent", parent=parent)).output == {"child": {"x": 1}, "mine": "running"}
