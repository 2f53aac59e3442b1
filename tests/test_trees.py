"""Trees of runs: a thousand deep, cancelled, paused and let go on, and ticked from everywhere at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    Request,
    RunState,
    RunStatus,
    StepPlan,
)
from abstractruntime.core.errors import ReentrantTick

from . import worlds
from .faults import ProcessDied
from .scale import scaled
from .test_children import APART, REGISTRY, SUB, parent, sub
from .test_children_faults import DyingRunStore
from .test_fan_out import Counter, children_of, made
from .test_ledger_chain import DictLedger, DictRuns
from .worlds import World, ask, end, eventually, flow

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

DEPTH = scaled(1000, 3000)


def nest(run: RunState, ctx: Any) -> StepPlan:
    """Go one deeper until there are enough."""
    depth = run.vars["depth"]
    if depth == 0:
        leaf = run.vars.get("leaf")
        return StepPlan("nest", None if leaf is None else Effect(leaf, {}, "result"), "end")
    return StepPlan("nest", Effect(SUB, sub("nest", {**run.vars, "depth": depth - 1}), "result"), "end")


def height(run: RunState, ctx: Any) -> StepPlan:
    below = run.vars.get("result")
    found = 0 if below is None or below is True else below["output"]["height"] + 1
    return StepPlan("end", complete_output={"height": found})


def deep(node: Any = nest, last: Any = height) -> Any:
    workflow = flow("nest", workflow_id="nest", nest=node)
    nodes: Any = {**workflow.nodes, "end": last}
    return type(workflow)("nest", "nest", nodes)


NEST = deep()


def depth_in(world: World) -> int:
    """Less deep where every level costs several flushes of a disk."""
    return DEPTH if world.kind == "memory" else DEPTH // 5


async def test_a_tree_of_a_thousand_levels_needs_no_stack(async_world: World):
    depth = depth_in(async_world)
    rt = async_world.runtime(workflow_registry={"nest": NEST})
    state = await rt.run(NEST, vars={"depth": depth})
    assert state.output == {"height": depth}


def test_nor_under_the_blocking_facade(tmp_path: Any):
    from abstractruntime import InMemoryLedgerStore, InMemoryRunStore, Runtime

    with Runtime(
        run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore(), workflow_registry={"nest": NEST}
    ) as rt:
        assert rt.run(NEST, vars={"depth": DEPTH}).output == {"height": DEPTH}


async def test_what_waits_a_thousand_levels_down_is_woken_and_cancelled_from_above(async_world: World):
    depth = depth_in(async_world)
    counter = Counter()
    rt = async_world.runtime({"gated": counter}, workflow_registry={"nest": NEST})
    await rt.start(workflow=NEST, vars={"depth": depth, "leaf": "gated"}, run_id="p")
    ticking = asyncio.create_task(rt.tick(workflow=NEST, run_id="p"))
    await eventually(lambda: counter.now == 1)
    ticking.cancel()  # the effect far below is handed back
    with pytest.raises(asyncio.CancelledError):
        await ticking
    assert counter.now == 0
    ticking = asyncio.create_task(rt.tick(workflow=NEST, run_id="p"))
    await eventually(lambda: counter.now == 1)
    await rt.cancel_run("p", reason="enough")
    assert (await ticking).error == "enough"
    assert counter.now == 0
    page = await rt.find_runs(limit=depth + 10)
    assert {row["status"] for row in page.items} == {"cancelled"}


async def test_an_error_comes_up_a_thousand_levels(async_world: World):
    depth = depth_in(async_world)

    def broken(run: RunState, ctx: Any) -> StepPlan:
        if run.vars["depth"] == 0:
            raise LookupError("deep down")
        return nest(run, ctx)

    workflow = deep(broken)
    rt = async_world.runtime(workflow_registry={"nest": workflow})
    await rt.start(workflow=workflow, vars={"depth": depth}, run_id="p")
    with pytest.raises(LookupError, match="deep down"):
        await rt.tick(workflow=workflow, run_id="p")
    assert (await rt.get_state("p")).status is RunStatus.WAITING
    rt.set_workflow_registry({"nest": NEST})
    assert (await rt.tick(workflow=NEST, run_id="p")).output == {"height": depth}


async def test_a_wide_tree(async_world: World):
    async def noop(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.completed(1)

    wide = scaled(200, 2000)
    leaf = flow("work", workflow_id="leaf", work=ask("work", "noop"))
    rt = async_world.runtime({"noop": noop}, workflow_registry={"leaf": leaf})
    state = await rt.run(parent({"children": [sub("leaf")] * wide}))
    assert len(state.output["result"]["results"]) == wide


# -- cancel


def tree(**more: Any) -> Any:
    """A parent of two middles, each with a child that waits and one that has ended."""
    children = [sub("asking"), sub("echo")]
    return parent({"children": [sub("middle"), sub("middle")], **more}), flow(
        "work", workflow_id="middle", work=ask("work", SUB, {"children": children}, "result")
    )


async def family(rt: Any) -> dict[str, list[RunState]]:
    middles = await children_of(rt)
    leaves = [leaf for middle in middles for leaf in await children_of(rt, middle.run_id)]
    return {"middles": middles, "leaves": leaves}


@pytest.mark.parametrize("cascade", [True, False])
async def test_a_cancel_goes_down_unless_it_is_told_not_to(world: World, cascade: bool):
    workflow, middle = tree()
    rt = made(world)
    rt.set_workflow_registry({**REGISTRY, "middle": middle})
    await rt.run(workflow, run_id="p")
    state = await rt.cancel_run("p", reason="enough", cancelled_by="me", cascade=cascade)
    assert (state.status, state.error) == (RunStatus.CANCELLED, "enough")
    found = await family(rt)
    middles, leaves = ("cancelled", "cancelled") if cascade else ("waiting", "waiting")
    assert [run.status for run in found["middles"]] == [middles] * 2
    assert [run.status for run in found["leaves"]] == [leaves, "completed"] * 2
    if cascade:
        assert {run.error for run in found["leaves"]} == {"The parent run was cancelled", None}
        ledger = await rt.get_ledger(found["middles"][0].run_id)
        assert ledger[-1]["result"]["by"] == "p"
    else:
        leaf = found["leaves"][0]
        await rt.resume(workflow=REGISTRY["asking"], run_id=leaf.run_id, wait_key=None, payload="yes")
        assert (await rt.tick(workflow=middle, run_id=found["middles"][0].run_id)).status is RunStatus.COMPLETED
        assert await rt.tick(workflow=workflow, run_id="p") == state, "a late result changes nothing"


async def test_children_that_nobody_waits_for_are_cancelled_too(world: World):
    rt = made(world)
    workflow = flow(
        "work",
        workflow_id="parent",
        work=ask("work", SUB, sub("asking", **APART), "result", "wait"),
        wait=ask("wait", "ask_user", {"prompt": "?"}),
    )
    await rt.run(workflow, run_id="p")
    await rt.cancel_run("p")
    assert [child.status for child in await children_of(rt)] == ["cancelled"]


async def test_a_request_to_a_parent_reaches_its_children(async_world: World):
    def stop(call: EffectCall) -> EffectOutcome:
        asked = Request(run_id="p", kind="cancel", by="x", at=call.now, reason="asked to")
        return EffectOutcome.completed(1, requests=(asked,))

    workflow, middle = tree()
    rt = made(async_world, stop=stop)
    rt.set_workflow_registry({**REGISTRY, "middle": middle})
    await rt.run(workflow, run_id="p")
    await rt.run(worlds.one("stop"))
    assert (await rt.tick(workflow=workflow, run_id="p")).error == "asked to"
    found = await family(rt)
    assert {run.status for run in found["middles"]} == {"cancelled"}
    assert {run.status for run in found["leaves"]} == {"cancelled", "completed"}


async def test_a_cancel_that_is_answered_because_of_an_event_reaches_the_children_too(async_world: World):
    def stop(call: EffectCall) -> EffectOutcome:
        asked = Request(run_id="p", kind="cancel", by="x", at=call.now, reason="asked to")
        return EffectOutcome.completed(1, requests=(asked,))

    workflow = flow(
        "work",
        workflow_id="parent",
        work=ask("work", SUB, sub("asking", **APART), "result", "wait"),
        wait=ask("wait", "wait_event", {"name": "go", "scope": "global"}),
    )
    rt = made(async_world, stop=stop)
    rt.set_workflow_registry({**REGISTRY, "parent": workflow})
    await rt.run(workflow, run_id="p")
    await rt.run(worlds.one("stop"))
    await rt.run(worlds.one("emit_event", {"name": "go", "scope": "global"}))
    assert (await rt.get_state("p")).error == "asked to"
    (child,) = await children_of(rt)
    assert (await rt.tick(workflow=REGISTRY["asking"], run_id=child.run_id)).status is RunStatus.CANCELLED


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_cancel_that_dies_half_way_stands_as_requests_below(async_world: World, at: int):
    workflow, middle = tree()
    registry = {**REGISTRY, "middle": middle}
    rt = made(async_world)
    rt.set_workflow_registry(registry)
    await rt.run(workflow, run_id="p")
    runs, ledgers = async_world.stores()
    store = DyingRunStore(runs, at, "die_after")
    broken = AsyncRuntime(run_store=store, ledger_store=ledgers, clock=async_world.clock)
    with pytest.raises(ProcessDied):
        await broken.cancel_run("p", reason="enough")
    found = await family(rt)
    for _ in range(2):
        for run in found["middles"]:
            assert (await rt.tick(workflow=middle, run_id=run.run_id)).status is RunStatus.CANCELLED
        for run in found["leaves"]:
            state = await rt.tick(workflow=registry[run.workflow_id], run_id=run.run_id)
            assert state.status in ("cancelled", "completed")


async def test_a_sync_effect_under_way_ends_in_the_ledger_of_a_cancelled_parent(async_world: World):
    counter = Counter()
    rt = made(async_world, gated=counter)
    workflow = parent(sub("gated"))
    driving = asyncio.create_task(rt.run(workflow, run_id="p"))
    await eventually(lambda: counter.now == 1)
    await rt.cancel_run("p")
    assert (await driving).status is RunStatus.CANCELLED
    ledger = await rt.get_ledger("p")
    assert [record["status"] for record in ledger] == ["started", "cancelled", "completed"]
    assert len(ledger) == (await rt.get_state("p")).records


# -- pause


async def test_a_subtree_is_held_and_let_go(world: World):
    workflow, middle = tree()
    rt = made(world)
    rt.set_workflow_registry({**REGISTRY, "middle": middle, "timer": REGISTRY["timer"]})
    await rt.run(workflow, run_id="p")
    await rt.pause_run("p", reason="lunch", actor_id="me", subtree=True)
    found = await family(rt)
    assert [run.paused for run in found["middles"]] == [True, True]
    assert not any(run.paused for run in found["leaves"]), "who waits for a person, or has ended, is not held"
    leaf = found["leaves"][0]
    await rt.resume(workflow=REGISTRY["asking"], run_id=leaf.run_id, wait_key=None, payload="yes")
    await rt.tick(workflow=workflow, run_id="p")
    assert (await rt.get_state(found["middles"][0].run_id)).status is RunStatus.WAITING
    await rt.resume_run("p", subtree=True)
    await rt.resume(workflow=REGISTRY["asking"], run_id=found["leaves"][2].run_id, wait_key=None, payload="yes")
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_a_child_that_is_held_is_waited_for(async_world: World):
    rt, workflow = made(async_world), parent(sub("asking"))
    child_id = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload="yes", max_steps=0)
    await rt.pause_run(child_id)
    state = await rt.tick(workflow=workflow, run_id="p")
    assert state.waiting.details["sub_waiting"] == {"reason": "user", "wait_key": f"pause:{child_id}"}
    await rt.resume_run(child_id)
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_a_child_whose_next_attempt_is_due_later_is_waited_for(async_world: World):
    def flaky(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed("again") if call.attempt == 1 else EffectOutcome.completed(call.attempt)

    flaky_flow = flow("work", workflow_id="flaky", work=ask("work", "flaky", {}, "done"))
    policy = DefaultEffectPolicy(default_max_attempts=2, default_backoff_base=60.0)
    options: Any = {"effect_policy": policy, "workflow_registry": {"flaky": flaky_flow}}
    rt, workflow = async_world.runtime({"flaky": flaky}, **options), parent(sub("flaky"))
    state = await rt.run(workflow, run_id="p")
    assert state.waiting.details["sub_waiting"] == {"reason": "running", "wait_key": None}
    async_world.clock.advance(60)
    assert (await rt.tick(workflow=workflow, run_id="p")).output["result"]["output"] == {"done": 2}


async def test_by_the_name_of_one_of_several_children_the_parent_looks_at_them(async_world: World):
    rt, workflow = made(async_world), parent({"children": [sub("asking"), sub("asking")]})
    rt.set_workflow_registry({**REGISTRY, "parent": workflow})
    ids = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_ids"]
    for child_id, status in zip(ids, ("waiting", "completed"), strict=True):
        await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload="yes")
        state = await rt.resume_subworkflow_parent(child_run_id=child_id, child_output="not taken")
        assert state.status == status
    assert [result["output"] for result in state.output["result"]["results"]] == [{"said": "yes"}] * 2


# -- from everywhere at once


async def test_parent_and_child_ticked_at_once_from_everywhere_end_once(async_world: World):
    calls: list[str] = []

    async def work(call: EffectCall) -> EffectOutcome:
        calls.append(call.key)
        await worlds.a_moment()
        return EffectOutcome.completed(len(calls))

    def twice(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        return StepPlan("work", Effect("work", {}, f"done{run.vars['n']}"), "work" if run.vars["n"] < 3 else "end")

    registry = {"busy": flow("work", workflow_id="busy", work=twice)}
    one, two = (async_world.runtime({"work": work}, workflow_registry=registry) for _ in range(2))
    for number in range(10):
        run_id, child_id = f"p{number}", f"c{number}"
        workflow = parent(sub("busy", run_id=child_id))
        await one.start(workflow=workflow, run_id=run_id)
        await one.tick(workflow=workflow, run_id=run_id, max_steps=0)
        ticks = [rt.tick(workflow=workflow, run_id=run_id) for rt in (one, two, one)]
        first = asyncio.gather(*ticks)
        while not await one.find_runs(parent_run_id=run_id) or child_id not in str(await one.find_runs()):
            await worlds.a_moment()
        await asyncio.gather(*(rt.tick(workflow=registry["busy"], run_id=child_id) for rt in (two, one)))
        await first
        state = await two.tick(workflow=workflow, run_id=run_id)
        while state.status is not RunStatus.COMPLETED:
            await two.tick(workflow=registry["busy"], run_id=child_id)
            state = await two.tick(workflow=workflow, run_id=run_id)
        assert state.output["result"]["output"]["n"] == 3
        assert len(await children_of(one, run_id)) == 1
    assert len(calls) == len(set(calls)) == 30


async def test_a_child_cannot_tick_the_run_that_waits_for_it(async_world: World):
    async def upward(run: RunState, ctx: Any) -> StepPlan:
        await rt.tick(workflow=workflow, run_id="p")
        return end(run, ctx)

    workflow = parent(sub("upward"))
    rt = async_world.runtime(workflow_registry={"upward": flow("up", workflow_id="upward", up=upward)})
    await rt.start(workflow=workflow, run_id="p")
    with pytest.raises(ReentrantTick):
        await rt.tick(workflow=workflow, run_id="p")


async def test_a_child_that_is_under_way_elsewhere_is_waited_for_and_ticks_never_wait_for_each_other(
    async_world: World,
):
    """The child's node ticks the parent, which finds the child busy and waits; neither blocks the other."""
    seen: list[RunState] = []

    async def upward(run: RunState, ctx: Any) -> StepPlan:
        seen.append(await rt.tick(workflow=workflow, run_id="p"))
        return end(run, ctx)

    child = flow("up", workflow_id="upward", up=upward)
    workflow = parent(sub("upward", run_id="c", **APART))
    rt = async_world.runtime(workflow_registry={"upward": child})
    await rt.run(workflow, run_id="p")
    workflow = parent(sub("upward", run_id="d"))
    await rt.start(workflow=workflow, run_id="q")
    await rt.tick(workflow=workflow, run_id="q", max_steps=0)
    assert (await rt.tick(workflow=child, run_id="c")).status is RunStatus.COMPLETED
    assert seen[0].run_id == "p"


async def test_closing_the_runtime_hands_back_what_the_children_do(async_world: World):
    counter = Counter()
    rt = made(async_world, gated=counter)
    workflow = parent({"children": [sub("gated")] * 3})
    driving = asyncio.create_task(rt.run(workflow, run_id="p"))
    await eventually(lambda: counter.now == 3)
    await rt.aclose()
    await asyncio.wait({driving})
    assert counter.now == 0
    counter.gate.open()
    rt = made(async_world, gated=counter)
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED
    assert len(await children_of(rt)) == 3


# -- stores that do not commit together


async def test_two_stores_that_do_not_commit_together_do_it_too():
    runs, ledger = DictRuns(), DictLedger()
    async with AsyncRuntime(run_store=runs, ledger_store=ledger, workflow_registry=REGISTRY) as rt:
        state = await rt.run(parent({"children": [sub("echo", {"x": 1}), sub("asking")], "join": "any"}), run_id="p")
        assert state.output["result"]["output"] == {"x": 1}
        state = await rt.run(parent(sub("asking")), run_id="q")
        assert state.waiting is not None
        child_id = (state.waiting.details or {})["sub_run_id"]
        await rt.cancel_run("q")
        assert (await rt.get_state(child_id)).status is RunStatus.CANCELLED
