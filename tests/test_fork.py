"""A new run from where another stood."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from abstractruntime import (
    AsyncInMemorySnapshotStore,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    InvalidId,
    InvalidSnapshot,
    InvalidState,
    RunCompleted,
    RunIdentityConflict,
    RunState,
    RunStatus,
    StaleResumeError,
    StepPlan,
    UnknownRun,
    UnknownSnapshot,
    UnsafeValue,
    WorkflowChanged,
    WorkflowMismatch,
)

from . import worlds
from .checks import check_on_the_way
from .test_restore import RUN, Shop, key_of
from .worlds import Gate, World, ask, eventually, flow, go

world, async_world = worlds.world, worlds.async_world


async def test_a_fork_goes_on_without_repeating_what_had_ended(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    asked = await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="before the answer")
    done = await shop.answer(rt, "no")
    ledger = await rt.get_ledger(RUN)

    fork = await rt.fork(RUN, at=bookmark, vars={"cart": ["lamp"]}, reason="what if", actor_id="eve")
    state = await rt.get_state(fork)
    assert (state.status, state.current_node, state.waiting, state.revision) == (RunStatus.RUNNING, "ask", None, 1)
    state = await rt.tick(workflow=shop.workflow, run_id=fork)
    assert state.waiting.wait_key == f"user:{fork}:ask:0"
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=shop.workflow, run_id=fork, wait_key=key_of(asked), payload="for the original")
    end = await rt.resume(workflow=shop.workflow, run_id=fork, wait_key=None, payload="yes")
    assert end.output == {"cart": ["lamp"], "paid": "pay 1", "answer": "yes", "shipped": "ship 2"}
    assert shop.done == {"pay": 1, "ship": 2}
    assert (await rt.get_state(RUN), await rt.get_ledger(RUN)) == (done, ledger), "the original is as it was"

    first, *rest = await rt.get_ledger(fork)
    assert (first["run_id"], first["status"], first["actor_id"], first["result"]) == (
        fork,
        "completed",
        "eve",
        {"forked": True},
    )
    assert first["effect"]["payload"] == {
        "run_id": RUN,
        "snapshot_id": bookmark.snapshot_id,
        "name": "before the answer",
        "position": 4,
        "chain_head": None,
        "reason": "what if",
        "vars": ["cart"],
    }
    assert {record["run_id"] for record in rest} == {fork}
    assert [record["step_id"] for record in rest if record["status"] == "started"] == [f"{fork}:0.1", f"{fork}:1.1"]
    check_on_the_way(end, [first, *rest])


async def test_who_a_fork_works_for_is_taken_over_and_its_parent_is_not(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await rt.start(workflow=shop.workflow, run_id="parent")
    await rt.start(
        workflow=shop.workflow, run_id=RUN, actor_id="ann", session_id="s", parent_run_id="parent", vars={"a": {"b": 1}}
    )
    fork = await rt.get_state(await rt.fork(RUN))
    assert (fork.actor_id, fork.session_id, fork.parent_run_id, fork.vars["a"]) == ("ann", "s", None, {"b": 1})
    assert [row["run_id"] for row in (await rt.find_runs(parent_run_id="parent")).items] == [RUN]


async def test_children_that_had_ended_are_in_the_state_of_a_fork_and_stay(world: World):
    """What a child gave was written to vars by the step that waited for it, which the fork stands behind."""
    shop, store = Shop(), AsyncInMemorySnapshotStore()
    rt = world.runtime(shop.handlers, snapshot_store=store)
    await shop.to_the_question(rt)
    child = await rt.start(workflow=shop.workflow, parent_run_id=RUN)
    await rt.cancel_run(child)
    ended = await rt.get_state(child)
    bookmark = await rt.snapshot_run(RUN, name="x")
    fork = await rt.fork(RUN, at=bookmark.snapshot_id)
    await rt.tick(workflow=shop.workflow, run_id=fork)
    assert await rt.get_state(child) == ended
    assert (await rt.find_runs(parent_run_id=fork)).items == []
    assert shop.done == {"pay": 1}


async def test_forking_twice_under_one_id_is_forking_once(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    assert await rt.fork(RUN, new_run_id="f", vars={"cart": []}) == "f"
    await shop.answer(rt, "no")  # the original has completed, which the repeated call does not mind
    assert await rt.fork(RUN, new_run_id="f", vars={"cart": []}) == "f"
    assert await rt.fork(RUN, new_run_id="f", vars={"cart": []}, reason="other words") == "f"
    assert len(await rt.get_ledger("f")) == 1
    for other in (
        {"vars": {"cart": [1]}},
        {"vars": {}, "at": bookmark},
        {"vars": {"cart": []}, "workflow": shop.workflow},
    ):
        with pytest.raises(RunIdentityConflict, match="Run 'f' exists already"):
            await rt.fork(RUN, new_run_id="f", **other)
    with pytest.raises(RunIdentityConflict):
        await rt.fork("other", new_run_id="f", vars={"cart": []})
    with pytest.raises(RunIdentityConflict):
        await rt.fork(RUN, at=bookmark, new_run_id=RUN)
    with pytest.raises(RunIdentityConflict):
        await rt.start(workflow=shop.workflow, run_id="f")
    one, two = await asyncio.gather(*(rt.fork(RUN, at=bookmark, new_run_id="g") for _ in range(2)))
    assert one == two == "g"
    assert len(await rt.get_ledger("g")) == 1


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_run_that_broke_off_is_forked_at_the_node_where_it_ended(world: World, how: str):
    broken = [True]

    def pay(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed("no", retryable=False) if broken[0] else EffectOutcome.completed("paid")

    workflow = flow("hop", hop=go("hop", "work"), work=ask("work", "pay", {}, "result"))
    rt = world.runtime({"pay": pay})
    await rt.start(workflow=workflow, run_id=RUN)
    if how == "failed":
        assert (await rt.tick(workflow=workflow, run_id=RUN)).status is RunStatus.FAILED
    else:
        await rt.tick(workflow=workflow, run_id=RUN, max_steps=1)
        await rt.cancel_run(RUN)
    broken.clear()
    broken.append(False)
    fork = await rt.fork(RUN)
    assert (await rt.tick(workflow=workflow, run_id=fork)).output == {"result": "paid"}
    assert (await rt.get_state(RUN)).status == how


async def test_a_completed_run_is_forked_at_a_snapshot_only(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    await shop.answer(rt, "no")
    with pytest.raises(RunCompleted, match="Run 'r' has completed there"):
        await rt.fork(RUN)
    with pytest.raises(RunCompleted):
        await rt.fork(RUN, at=await rt.snapshot_run(RUN, name="the end"))
    assert len((await rt.find_runs()).items) == 1
    fork = await rt.fork(RUN, at=bookmark)
    assert (await rt.tick(workflow=shop.workflow, run_id=fork)).waiting.prompt == "Ship?"


async def test_a_held_run_is_forked_free(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await rt.start(workflow=shop.workflow, run_id=RUN)
    await rt.pause_run(RUN)
    fork = await rt.fork(RUN)
    assert (await rt.tick(workflow=shop.workflow, run_id=fork)).current_node == "ask"
    assert (await rt.get_state(RUN)).paused


async def test_a_fork_goes_on_with_another_version_or_workflow_that_has_its_node(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    newer = flow(
        "ask", options={"version": "2"}, ask=ask("ask", "ask_user", {"prompt": "Really?"}, "a"), ship=go("ship", "end")
    )
    other = flow("ask", workflow_id="other", ask=ask("ask", "ask_user", {"prompt": "Who?"}, "a"))
    for workflow, prompt in ((newer, "Really?"), (other, "Who?")):
        fork = await rt.fork(RUN, workflow=workflow)
        state = await rt.tick(workflow=workflow, run_id=fork)
        assert (state.workflow_id, state.waiting.prompt) == (workflow.workflow_id, prompt)
        assert (await rt.resume(workflow=workflow, run_id=fork, wait_key=None, payload=1)).status is RunStatus.COMPLETED
    with pytest.raises(WorkflowMismatch):
        await rt.tick(workflow=shop.workflow, run_id=fork)
    with pytest.raises(WorkflowChanged, match="stands at node 'ask', which workflow 'gone' does not have"):
        await rt.fork(RUN, workflow=flow("x", workflow_id="gone", x=go("x", "end")))
    assert len((await rt.find_runs()).items) == 3


class Cart(msgspec.Struct):
    items: list[str]


async def test_the_vars_of_a_fork_must_fit_the_workflow_that_is_given(world: World):
    workflow = flow("work", options={"state": Cart}, work=ask("work", "ask_user", {"prompt": "?"}))
    rt = world.runtime()
    await rt.start(workflow=workflow, run_id=RUN, vars={"items": ["desk"]})
    with pytest.raises(InvalidState, match=r"vars\.items"):
        await rt.fork(RUN, workflow=workflow, vars={"items": [5]})
    fork = await rt.fork(RUN, workflow=workflow, vars={"items": ["lamp"]})
    assert (await rt.get_state(fork)).vars["items"] == ["lamp"]


async def test_what_cannot_be_forked_is_refused_and_makes_nothing(world: World):
    shop = Shop()
    rt = world.runtime(shop.handlers, snapshot_store=AsyncInMemorySnapshotStore())
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    for error, run_id, options in (
        (UnknownRun, "nobody", {}),
        (UnknownSnapshot, RUN, {"at": "nothing"}),
        (InvalidSnapshot, "other", {"at": bookmark}),
        (InvalidId, RUN, {"new_run_id": "a/b"}),
        (InvalidId, RUN, {"reason": 5}),
        (TypeError, RUN, {"vars": [1]}),
        (UnsafeValue, RUN, {"vars": {"x": float("nan")}}),
        (ValueError, RUN, {"vars": {"_runtime": {}}}),
    ):
        with pytest.raises(error):
            await rt.fork(run_id, **options)
    assert len((await rt.find_runs()).items) == 1


async def test_the_arguments_are_not_aliased_with_the_fork(async_world: World):
    shop = Shop()
    rt = async_world.runtime(shop.handlers)
    await shop.to_the_question(rt)
    bookmark = await rt.snapshot_run(RUN, name="x")
    cart = ["lamp"]
    fork = await rt.fork(RUN, at=bookmark, vars={"cart": cart})
    cart.append("desk")
    bookmark.run_state["vars"]["paid"] = "changed"
    state = await rt.get_state(fork)
    assert (state.vars["cart"], state.vars["paid"]) == (["lamp"], "pay 1")


async def test_a_fork_of_a_run_in_mid_effect_asks_the_node_again_and_the_original_goes_on(async_world: World):
    gate, keys = Gate(), list[str]()

    async def pay(call: EffectCall) -> EffectOutcome:
        keys.append(call.key)
        await gate.passed()
        return EffectOutcome.completed(len(keys))

    workflow = worlds.one("pay")
    rt = async_world.runtime({"pay": pay})
    await rt.start(workflow=workflow, run_id=RUN)
    tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=RUN))
    await eventually(lambda: gate.inside)
    fork = await rt.fork(RUN)
    assert (await rt.get_state(fork)).intent is None
    other = asyncio.create_task(rt.tick(workflow=workflow, run_id=fork))
    await eventually(lambda: gate.inside == 2)
    gate.open()
    assert [(await task).status for task in (tick, other)] == [RunStatus.COMPLETED] * 2
    assert len(set(keys)) == 2


async def test_a_users_stable_key_counts_per_run(async_world: World):
    """A fork is a run of its own: what its original did under the same key it does itself."""

    class ByOrder(DefaultEffectPolicy):
        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            return f"order-1:{effect.type}"

    shop = Shop()
    rt = async_world.runtime(shop.handlers, effect_policy=ByOrder())
    await shop.to_the_question(rt)
    done = await shop.answer(rt, "yes")
    assert done.status is RunStatus.COMPLETED
    await rt.start(workflow=shop.workflow, run_id="q")
    fork = await rt.fork("q")
    await rt.tick(workflow=shop.workflow, run_id=fork)
    assert shop.done == {"pay": 2, "ship": 1}


async def test_forks_that_are_made_while_the_original_moves_are_each_whole(async_world: World, seed: int):
    """Each fork holds a state that the original really had, and comes to an end of its own."""
    rng = random.Random(seed)
    performed: Counter[str] = Counter()

    async def work(call: EffectCall) -> EffectOutcome:
        performed[call.run.run_id] += 1
        await asyncio.sleep(0)
        return EffectOutcome.completed(call.payload["n"])

    def count(run: RunState, ctx: Any) -> StepPlan:
        n = len(run.vars.setdefault("seen", []))
        if n == 12:
            return StepPlan("count", next_node="end")
        run.vars["asked"] = n
        return StepPlan("count", Effect("work", {"n": n}, "last"), "add")

    def add(run: RunState, ctx: Any) -> StepPlan:
        run.vars["seen"].append(run.vars["last"])
        return StepPlan("add", next_node="count")

    workflow = flow("count", count=count, add=add)
    rt = async_world.runtime({"work": work})
    await rt.start(workflow=workflow, run_id=RUN)

    async def forked() -> list[tuple[str, int]]:
        made = []
        for _ in range(8):
            for _ in range(rng.randint(0, 4)):
                await asyncio.sleep(0)
            try:
                fork = await rt.fork(RUN)
            except RunCompleted:
                break
            state = await rt.get_state(fork)
            made.append((fork, len(state.vars.get("seen", ())) + (state.current_node == "add")))
        return made

    state, forks = await asyncio.gather(rt.tick(workflow=workflow, run_id=RUN), forked())
    assert state.output["seen"] == list(range(12))
    assert performed[RUN] == 12
    for fork, had in forks:
        state = await rt.tick(workflow=workflow, run_id=fork)
        assert state.output == {"seen": list(range(12)), "asked": 11, "last": 11}
        assert performed[fork] == 12 - had, "only what had not ended is done"
    assert forks
