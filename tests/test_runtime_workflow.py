"""Which graph a run goes on with, and typed state from the start to the end of a run."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from abstractruntime import (
    Effect,
    EffectOutcome,
    RunState,
    RunStatus,
    StepPlan,
    TypedRun,
    WorkflowChanged,
    WorkflowMismatch,
    WorkflowSpec,
)

from . import worlds
from .worlds import World, ask, end, flow, go

world = worlds.world


def question(*, then: str = "end", options: dict[str, Any] | None = None, **nodes: Any) -> Any:
    """A workflow that asks at `ask` and goes on to `then`."""
    return flow("ask", ask=ask("ask", "ask_user", {"prompt": "?"}, "answer", then), options=options, **nodes)


async def unchanged(rt: Any, before: RunState) -> None:
    after = await rt.get_state(before.run_id)
    assert (after.revision, after.fingerprint, after.vars) == (before.revision, before.fingerprint, before.vars)
    assert len(await rt.get_ledger(before.run_id)) == before.records


async def test_another_workflow_is_refused_and_the_run_untouched(world: World) -> None:
    rt = world.runtime()
    before = await rt.run(question(), run_id="r")
    other = flow("ask", workflow_id="other", ask=go("ask", "end"))
    with pytest.raises(WorkflowMismatch, match="belongs to workflow 'flow', and was given 'other'"):
        await rt.tick(workflow=other, run_id="r")
    with pytest.raises(ValueError, match="'other'"):
        await rt.resume(workflow=other, run_id="r", wait_key=None, payload={})
    await unchanged(rt, before)


async def test_a_changed_graph_is_followed_while_the_places_of_the_run_exist(world: World) -> None:
    rt = world.runtime()
    old = question()
    before = await rt.run(old, run_id="r")
    assert before.fingerprint == old.fingerprint
    new = question(extra=go("extra", "end"))
    state = await rt.resume(workflow=new, run_id="r", wait_key=None, payload="yes")
    assert (state.status, state.fingerprint) == (RunStatus.COMPLETED, new.fingerprint)
    changed = [r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "workflow_changed"]
    assert [r["effect"]["payload"] for r in changed] == [{"from": old.fingerprint, "to": new.fingerprint}]


async def test_other_code_under_the_same_graph_is_no_change(world: World) -> None:
    rt = world.runtime()
    await rt.run(question(), run_id="r")
    fixed = question(options={}, end=end)
    assert (await rt.resume(workflow=fixed, run_id="r", wait_key=None, payload=1)).output == {"answer": 1}
    assert not any((r["effect"] or {}).get("type") == "workflow_changed" for r in await rt.get_ledger("r"))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (flow("other", other=go("other", "end"), next=go("next", "end")), "stands at 'ask', which is gone"),
        (question(then="end"), "resumes to 'next', which is gone"),
        (question(then="next", next=go("next", "end"), options={"version": "2"}), "version is '2', the run's is None"),
        (
            question(then="next", next=go("next", "end"), new=go("new", "end"), options={"on_change": "refuse"}),
            "on_change='refuse'",
        ),
    ],
    ids=["node gone", "target gone", "version", "refuse"],
)
async def test_a_graph_that_the_run_cannot_follow_is_refused_and_the_run_untouched(
    world: World, new: Any, words: str
) -> None:
    rt = world.runtime()
    old = question(then="next", next=go("next", "end"))
    before = await rt.run(old, run_id="r")
    for attempt in (
        lambda: rt.tick(workflow=new, run_id="r"),
        lambda: rt.resume(workflow=new, run_id="r", wait_key=None, payload={}),
    ):
        with pytest.raises(WorkflowChanged) as caught:
            await attempt()
        assert words in str(caught.value)
        assert isinstance(caught.value, ValueError)
    await unchanged(rt, before)
    assert (await rt.resume(workflow=old, run_id="r", wait_key=None, payload={})).status is RunStatus.COMPLETED


async def test_an_ended_run_may_be_shown_to_any_version_of_its_workflow(world: World) -> None:
    rt = world.runtime()
    state = await rt.run(flow("end"), run_id="r")
    new = flow("other", other=go("other", "end"), options={"version": "9", "on_change": "refuse"})
    assert (await rt.tick(workflow=new, run_id="r")).revision == state.revision


async def test_a_run_of_a_host_that_knows_no_fingerprint_goes_on(world: World) -> None:
    rt = world.runtime()
    run = RunState("r", "flow", RunStatus.RUNNING, "ask", {"x": 1})
    saved = rt.run_store.save(run)
    if saved is not None:
        await saved
    await rt.tick(workflow=question(), run_id="r")
    assert (await rt.resume(workflow=question(), run_id="r", wait_key=None, payload=1)).output == {"x": 1, "answer": 1}


class Item(msgspec.Struct):
    name: str
    count: int = 0


class Order(msgspec.Struct):
    items: list[Item] = []
    total: int = 0
    receipt: dict[str, Any] | None = None


def add(run: TypedRun[Order], ctx: Any) -> StepPlan:
    run.state.items.append(Item("pen", 2))
    run.state.total = sum(item.count for item in run.state.items)
    return StepPlan("add", Effect("pay", {"amount": run.state.total}, "receipt"), "check")


def check(run: TypedRun[Order], ctx: Any) -> StepPlan:
    assert isinstance(run.state, Order)
    assert isinstance(run.state.items[0], Item)
    return StepPlan("check", complete_output={"paid": run.state.receipt, "items": len(run.state.items)})


SHOP: WorkflowSpec[Order] = WorkflowSpec("shop", "add", {"add": add, "check": check}, state=Order)


async def test_nodes_of_a_typed_workflow_see_their_own_type_and_the_store_sees_plain_vars(world: World) -> None:
    rt = world.runtime({"pay": lambda call: EffectOutcome.completed({"paid": call.payload["amount"]})})
    state = await rt.run(SHOP, vars={"items": [{"name": "ink", "count": 1}]}, run_id="r")
    assert state.output == {"paid": {"paid": 3}, "items": 2}
    assert state.vars["items"] == [{"name": "ink", "count": 1}, {"name": "pen", "count": 2}]
    assert state.vars["total"] == 3
    assert state.vars["_runtime"]["effect_seq"] == 1


@pytest.mark.parametrize("vars", [{"items": "no list"}, {"items": [{"count": 1}]}, {"total": "3"}])
async def test_vars_that_do_not_fit_the_state_type_are_refused_at_the_start(world: World, vars: Any) -> None:
    rt = world.runtime()
    with pytest.raises(ValueError, match=r"vars\."):
        await rt.start(workflow=SHOP, vars=vars, run_id="r")
    with pytest.raises(KeyError):
        await rt.get_state("r")


async def test_a_node_that_leaves_a_state_of_another_type_is_a_node_error(world: World) -> None:
    def spoil(run: TypedRun[Order], ctx: Any) -> StepPlan:
        run.state.total = "three"  # type: ignore[assignment]
        return StepPlan("spoil", next_node="check")

    rt = world.runtime()
    work: WorkflowSpec[Order] = WorkflowSpec("shop", "spoil", {"spoil": spoil, "check": check}, state=Order)
    await rt.start(workflow=work, run_id="r")
    with pytest.raises(ValueError, match=r"vars\.total"):
        await rt.tick(workflow=work, run_id="r")
    state = await rt.get_state("r")
    assert (state.current_node, state.node_errors) == ("spoil", 1)
    assert "total" not in state.vars


async def test_a_result_that_does_not_fit_the_state_type_is_told_at_the_next_node(world: World) -> None:
    rt = world.runtime({"pay": lambda call: EffectOutcome.completed("no dict")})
    await rt.start(workflow=SHOP, run_id="r")
    with pytest.raises(ValueError, match=r"vars\.receipt"):
        await rt.tick(workflow=SHOP, run_id="r")
    assert (await rt.get_state("r")).current_node == "check"


async def test_a_typed_workflow_survives_a_wait_and_another_process(world: World) -> None:
    def wait(run: TypedRun[Order], ctx: Any) -> StepPlan:
        run.state.items.append(Item("waiting", 1))
        return StepPlan("wait", Effect("ask_user", {"prompt": "?"}, "receipt"), "check")

    work: WorkflowSpec[Order] = WorkflowSpec("shop", "wait", {"wait": wait, "check": check}, state=Order)
    await world.runtime().run(work, run_id="r")
    state = await world.runtime().resume(workflow=work, run_id="r", wait_key=None, payload={"ok": True})
    assert state.output == {"paid": {"ok": True}, "items": 1}
