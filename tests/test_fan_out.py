"""Several children of one effect: how many at a time, how their ends are joined, and what becomes of the others."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import Effect, EffectCall, EffectOutcome, RunState, RunStatus, StepPlan
from abstractruntime.core.models import TERMINAL

from . import worlds
from .scale import scaled
from .test_children import REGISTRY, failing, parent, sub
from .worlds import Gate, World, ask, eventually, flow, statuses

world = worlds.world
async_world = worlds.async_world

CHILDREN: dict[str, Any] = {
    **REGISTRY,
    "gated": flow("work", workflow_id="gated", work=ask("work", "gated", {}, "passed")),
}


class Counter:
    """A handler that counts who is inside at once."""

    def __init__(self) -> None:
        self.gate, self.now, self.most = Gate(), 0, 0

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.passed()
        finally:
            self.now -= 1
        return EffectOutcome.completed(True)


def many(*children: dict[str, Any], **more: Any) -> Any:
    return parent({"children": list(children), **more})


def made(world: World, **handlers: Any) -> Any:
    return world.runtime({"fail": failing, **handlers}, workflow_registry=CHILDREN)


async def children_of(rt: Any, run_id: str = "p") -> list[RunState]:
    """Oldest first."""
    page = await rt.find_runs(parent_run_id=run_id, limit=1000)
    return [await rt.get_state(row["run_id"]) for row in reversed(page.items)]


async def test_results_come_in_declared_order_whoever_ends_first(world: World):
    rt = made(world)
    state = await rt.run(many(*(sub("count", {"to": to, "me": to}) for to in (9, 1, 5))), run_id="p")
    results = state.output["result"]["results"]
    assert [result["output"]["me"] for result in results] == [9, 1, 5]
    assert [result["sub_run_id"] for result in results] == [child.run_id for child in await children_of(rt)]
    assert statuses(await rt.get_ledger("p"), "start_subworkflow") == ["started", "completed"]


@pytest.mark.parametrize("width", [1, 3, 50])
async def test_at_most_so_many_are_under_way_at_once(async_world: World, width: int):
    counter = Counter()
    rt = made(async_world, gated=counter)
    workflow = many(*(sub("gated", {"me": n}) for n in range(10)), max_parallel=width)
    driving = asyncio.create_task(rt.run(workflow, run_id="p"))
    await eventually(lambda: counter.now == min(width, 10))
    assert len(await children_of(rt)) == min(width, 10), "the others are created when there is room"
    counter.gate.open()
    state = await driving
    assert counter.most == min(width, 10)
    assert [result["output"]["me"] for result in state.output["result"]["results"]] == list(range(10))


async def test_all_fails_with_the_first_failure_and_cancels_the_others(async_world: World):
    gate = Counter()
    rt = made(async_world, gated=gate)
    workflow = many(sub("gated"), sub("failing"), sub("gated"), sub("gated"), max_parallel=3)
    state = await rt.run(workflow, run_id="p")
    assert (state.status, state.error) == (
        RunStatus.FAILED,
        "Child 2 of 4: Subworkflow 'failing' failed: no luck",
    )
    first, second, third = await children_of(rt)
    assert [child.status for child in (first, second, third)] == ["cancelled", "failed", "cancelled"]
    assert first.error == "The parent run does not wait for it any more"
    assert gate.now == 0, "nobody is left inside"


async def test_collect_takes_every_end(async_world: World):
    rt = made(async_world)
    workflow = many(sub("echo", {"x": 1}), sub("failing"), sub("asking"), join="collect")
    state = await rt.run(workflow, run_id="p")
    wait = state.waiting
    (open_child,) = wait.details["sub_waiting"]
    assert open_child["reason"] == "user"
    assert wait.details["sub_run_ids"] == [child.run_id for child in await children_of(rt)]
    await rt.cancel_run(open_child["sub_run_id"], reason="enough")
    state = await rt.tick(workflow=workflow, run_id="p")
    ids = wait.details["sub_run_ids"]
    assert state.output["result"]["results"] == [
        {"sub_run_id": ids[0], "output": {"x": 1}},
        {"ok": False, "error": "Subworkflow 'failing' failed: no luck", "sub_run_id": ids[1]},
        {"ok": False, "error": "enough", "sub_run_id": ids[2], "cancelled": True},
    ]


async def test_any_takes_the_first_success_and_cancels_the_others(async_world: World):
    counter = Counter()
    rt = made(async_world, gated=counter)
    state = await rt.run(many(sub("failing"), sub("gated"), sub("echo", {"x": 1}), join="any"), run_id="p")
    _, loser, winner = await children_of(rt)
    assert state.output["result"] == {"sub_run_id": winner.run_id, "output": {"x": 1}, "index": 2}
    assert loser.status is RunStatus.CANCELLED
    assert counter.now == 0
    state = await rt.run(many(sub("failing"), sub("failing"), join="any"))
    assert state.error.startswith("None of 2 subworkflows completed. child 1: Subworkflow 'failing' failed")


async def test_first_takes_the_first_end_whatever_it_is(async_world: World):
    rt = made(async_world, gated=Counter())
    state = await rt.run(many(sub("gated"), sub("failing"), join="first"), run_id="p")
    assert state.error == "Child 2 of 2: Subworkflow 'failing' failed: no luck"
    state = await rt.run(many(sub("gated"), sub("echo"), join="first"))
    assert state.output["result"]["index"] == 1


async def test_async_children_are_all_started_and_may_be_waited_for(world: World):
    rt = made(world)
    state = await rt.run(many(sub("echo"), sub("echo"), **{"async": True, "max_parallel": 1}), run_id="p")
    ids = [child.run_id for child in await children_of(rt)]
    assert state.output["result"] == {"sub_run_ids": ids, "async": True}

    workflow = many(*(sub("echo", {"me": n}) for n in range(3)), **{"async": True, "wait": True, "max_parallel": 2})
    state = await rt.run(workflow, run_id="q")
    assert state.waiting.details["async"] is True
    for made_so_far in (2, 3, 3):
        found = await children_of(rt, "q")
        assert len(found) == made_so_far
        open_child = next(child for child in found if child.status is RunStatus.RUNNING)
        await rt.tick(workflow=REGISTRY["echo"], run_id=open_child.run_id)
        state = await rt.tick(workflow=workflow, run_id="q")
    assert [result["output"]["me"] for result in state.output["result"]["results"]] == [0, 1, 2]


@pytest.mark.parametrize("join", ["all", "collect"])
async def test_each_result_in_the_shape_of_a_tools(async_world: World, join: str):
    rt = made(async_world)
    children = sub("echo", {"answer": "1"}, tool_name="a"), sub("failing", call_id="mine"), sub("gated")
    workflow = many(*children[: 2 if join == "collect" else 3], join=join, wrap_as_tool_result=True, call_id="c")
    rt = made(async_world, gated=Counter())
    state = await rt.run(workflow)
    results = state.output["result"]["results"]
    assert [(r["call_id"], r["name"], r["success"]) for r in results[:2]] == [
        ("c:0", "a", True),
        ("mine", "start_subworkflow", False),
    ]
    assert [r["error"] for r in results[2:]] == ["Not waited for: another subworkflow failed"] * (join == "all")


async def test_of_a_workflow_that_is_gone_no_more_are_begun(async_world: World):
    rt = made(async_world)
    workflow = many(sub("asking"), sub("echo"), max_parallel=1)
    state = await rt.run(workflow, run_id="p")
    rt.set_workflow_registry({"asking": REGISTRY["asking"]})
    await rt.resume(
        workflow=REGISTRY["asking"], run_id=state.waiting.details["sub_run_ids"][0], wait_key=None, payload=1
    )
    state = await rt.tick(workflow=workflow, run_id="p")
    assert "'echo' is not known here" in state.error
    assert len(await children_of(rt)) == 1


async def test_a_node_of_one_child_that_raises_leaves_the_others_to_their_end(async_world: World):
    rt, workflow = made(async_world), many(sub("boom"), sub("count", {"to": 5}), sub("boom"))
    await rt.start(workflow=workflow, run_id="p")
    with pytest.raises(RuntimeError, match="boom"):
        await rt.tick(workflow=workflow, run_id="p")
    assert [child.status for child in await children_of(rt)] == ["running", "completed", "running"]
    assert (await rt.get_state("p")).status is RunStatus.WAITING


async def test_results_of_a_fan_out_lie_in_the_children_until_the_end(async_world: World):
    """The state that is written at each end must not grow with the results."""
    rt = made(async_world)
    big = "x" * 10_000
    workflow = many(*(sub("echo", {"big": big}) for _ in range(20)), sub("asking"), max_parallel=2)
    state = await rt.run(workflow, run_id="p")
    assert sum(child.ended for child in state.intent.children) >= 18
    open_child = state.waiting.details["sub_run_ids"][-1]
    await rt.resume(workflow=REGISTRY["asking"], run_id=open_child, wait_key=None, payload="yes")
    state = await rt.tick(workflow=workflow, run_id="p")
    results = state.output["result"]["results"]
    assert [len(result["output"].get("big", "")) for result in results] == [10_000] * 20 + [0]


async def test_a_child_that_is_retried_after_its_end_was_noted_is_waited_for_again(async_world: World):
    rt = made(async_world)
    workflow = many(sub("failing"), sub("asking"), sub("asking"), join="collect", max_parallel=2)
    state = await rt.run(workflow, run_id="p")
    failed, *open_children = state.waiting.details["sub_run_ids"]
    assert [child.ended for child in state.intent.children] == [True, False, False]
    await rt.retry_run(failed)
    for open_child in open_children:
        await rt.resume(workflow=REGISTRY["asking"], run_id=open_child, wait_key=None, payload="yes")
    state = await rt.tick(workflow=workflow, run_id="p")
    assert state.status is RunStatus.COMPLETED
    assert state.output["result"]["results"][0]["ok"] is False


async def test_places_are_free_again_in_later_ticks(async_world: World):
    rt, workflow = made(async_world), many(*(sub("asking") for _ in range(7)), max_parallel=2)
    state = await rt.run(workflow, run_id="p")
    for _ in range(7):
        child_id = next(child.run_id for child in await children_of(rt) if child.status is RunStatus.WAITING)
        await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload="yes")
        state = await rt.tick(workflow=workflow, run_id="p")
    assert state.output["result"]["results"][6]["output"] == {"said": "yes"}


async def test_children_that_speak_to_each_other_go_on_in_the_same_tick(world: World):
    def relay(number: int) -> Any:
        """Wait for what the one behind says, and say it to the one before."""
        heard = {"name": f"word-{number}", "scope": "session"}
        said = {"name": f"word-{number - 1}", "scope": "session"}
        return flow(
            "hear",
            workflow_id=f"relay-{number}",
            hear=ask("hear", "wait_event", heard, None, "say"),
            say=ask("say", "emit_event", said, None),
        )

    last = flow("say", workflow_id="last", say=ask("say", "emit_event", {"name": "word-3", "scope": "session"}))
    rt = world.runtime(workflow_registry={"last": last, **{f"relay-{n}": relay(n) for n in range(1, 4)}})
    workflow = many(*(sub(f"relay-{n}") for n in range(1, 4)), sub("last"))
    assert (await rt.run(workflow, session_id="s")).status is RunStatus.COMPLETED


# -- whatever is done to the children, in whatever order


KINDS = ["echo", "failing", "asking", "timer", "count", "node"]


def random_tree(rng: random.Random, depth: int) -> dict[str, Any]:
    """What a node asks for: children of every kind, those of kind `node` with an order of their own."""
    children = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(KINDS if depth else KINDS[:-1])
        children.append(sub(kind, {"order": random_tree(rng, depth - 1)} if kind == "node" else {}))
    way = rng.choice([{}, {}, {"async": True, "wait": True}])
    return {
        "children": children,
        "join": rng.choice(["all", "collect", "collect", "any", "first"]),
        "max_parallel": rng.randint(1, 4),
        **way,
    }


def follow_order(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("work", Effect("start_subworkflow", run.vars["order"], "result"), "end")


NODE = flow("work", workflow_id="node", work=follow_order)


async def check_parent(rt: Any, state: RunState) -> None:
    """The result agrees with where the children stand, and nobody is open whom nobody waits for."""
    order, children = state.vars["order"], {child.run_id: child for child in await children_of(rt, state.run_id)}
    statuses = [str(child.status) for child in children.values()]
    if state.status is RunStatus.WAITING:
        open_ones = [child for child in children.values() if child.status in ("running", "waiting")]
        assert len(open_ones) <= order["max_parallel"], "more are open than there are places"
    if state.status is RunStatus.FAILED:
        assert "failed" in statuses or order["join"] == "any"
        assert order["join"] != "any" or "completed" not in statuses
    if state.status is RunStatus.COMPLETED and order["join"] in ("all", "collect"):
        results = state.vars["result"]["results"]
        assert len(results) == len(order["children"]) == len(children)
        for result in results:
            child = children[result["sub_run_id"]]
            assert result.get("ok", True) == (order["join"] == "all" or child.status is RunStatus.COMPLETED)
            assert order["join"] == "collect" or child.status is not RunStatus.FAILED
    if state.status is RunStatus.COMPLETED and order["join"] in ("any", "first"):
        winner = children[state.vars["result"]["sub_run_id"]]
        assert winner.status is RunStatus.COMPLETED or (order["join"], winner.status) == ("first", RunStatus.CANCELLED)
    if state.status in TERMINAL:
        assert not {"running", "waiting"} & set(statuses), "one is left open"


async def test_random_trees_are_joined_as_their_children_ended(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    specs: dict[str, Any] = {**CHILDREN, "node": NODE}
    for round_ in range(scaled(60, 3000)):
        world = World("async", "memory", tmp_path)
        one, two = (world.runtime({"fail": failing}, workflow_registry=specs) for _ in range(2))
        await one.start(workflow=NODE, run_id="p", vars={"order": random_tree(rng, 2)})
        for _ in range(400):
            rt = rng.choice([one, two])
            rows = [row for row in (await rt.find_runs(limit=1000)).items if row["status"] in ("running", "waiting")]
            if not rows:
                break
            row = rng.choice([*rows, *(row for row in rows if row["run_id"] == "p")])
            run = await rt.get_state(row["run_id"])
            match rng.randint(0, 9):
                case 0 if run.run_id != "p":
                    await rt.cancel_run(run.run_id, reason="at random")
                case 1:
                    world.clock.advance(300 * 24 * 3600)
                case 2 | 3 | 4 if run.workflow_id == "asking" and run.waiting is not None:
                    await rt.resume(workflow=specs["asking"], run_id=run.run_id, wait_key=None, payload="yes")
                case 5:
                    await asyncio.gather(*(one.tick(workflow=NODE, run_id="p") for one in (one, two)))
                case _:
                    await rt.tick(workflow=specs[run.workflow_id], run_id=run.run_id)
        else:
            raise AssertionError(f"round {round_} never ended")
        for row in (await one.find_runs(workflow_id="node", limit=1000)).items:
            await check_parent(one, await one.get_state(row["run_id"]))
        await world.close()
