"""Runs that runs start: every mode and every end, what they inherit, and what their parent's ledger says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from abstractruntime import (
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    StepPlan,
    WaitReason,
)
from abstractruntime.core.errors import StaleResumeError
from abstractruntime.storage.artifacts import InMemoryArtifactStore

from . import worlds
from .worlds import World, ask, end, flow, one, statuses

world = worlds.world
async_world = worlds.async_world

SUB = EffectType.START_SUBWORKFLOW


def boom(run: RunState, ctx: Any) -> StepPlan:
    if not run.vars.get("mended"):
        raise RuntimeError("boom")
    return end(run, ctx)


def failing(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.failed("no luck", retryable=False)


def count(run: RunState, ctx: Any) -> StepPlan:
    run.vars["n"] = run.vars.get("n", 0) + 1
    return StepPlan("count", next_node="count" if run.vars["n"] < run.vars.get("to", 3) else "end")


REGISTRY: dict[str, Any] = {
    "echo": flow("end", workflow_id="echo"),
    "asking": flow("ask", workflow_id="asking", ask=ask("ask", "ask_user", {"prompt": "Yes?"}, "said")),
    "failing": flow("work", workflow_id="failing", work=ask("work", "fail")),
    "boom": flow("boom", workflow_id="boom", boom=boom),
    "count": flow("count", workflow_id="count", count=count),
    "timer": flow("wait", workflow_id="timer", wait=ask("wait", "wait_until", {"until": "2027-01-01T00:00:00Z"})),
}


#: not waited for, and waited for but not driven
APART: dict[str, Any] = {"async": True}
AWAITED: dict[str, Any] = {"async": True, "wait": True}


def runtime(world: World, **options: Any) -> Any:
    return world.runtime({"fail": failing, **options.pop("handlers", {})}, workflow_registry=REGISTRY, **options)


def parent(payload: dict[str, Any], then: str | None = "end", key: str | None = "result") -> Any:
    return flow("work", workflow_id="parent", work=ask("work", SUB, payload, key, then))


def sub(workflow_id: str, vars: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"workflow_id": workflow_id, "vars": vars or {}, **more}


async def test_a_sync_child_runs_inside_its_parents_step(world: World):
    rt = runtime(world)
    state = await rt.run(parent(sub("echo", {"x": 1})), run_id="p", actor_id="me", session_id="s")
    child_id = state.output["result"]["sub_run_id"]
    assert state.output == {"result": {"sub_run_id": child_id, "output": {"x": 1}}}
    child = await rt.get_state(child_id)
    assert (child.parent_run_id, child.actor_id, child.session_id) == ("p", "me", "s")
    assert statuses(await rt.get_ledger("p"), SUB) == ["started", "completed"]
    assert state.vars["_runtime"]["effect_seq"] == 1


async def test_its_steps_do_not_count_against_the_callers(world: World):
    rt, workflow = runtime(world), parent(sub("count", {"to": 1000}))
    await rt.start(workflow=workflow, run_id="p")
    state = await rt.tick(workflow=workflow, run_id="p", max_steps=1)
    assert (state.status, state.current_node) == (RunStatus.RUNNING, "end")
    assert state.vars["result"]["output"]["n"] == 1000


async def test_no_step_is_taken_where_none_is_allowed(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("asking"))
    state = await rt.run(workflow, run_id="p")
    child = await rt.get_state(state.waiting.details["sub_run_id"])
    await rt.resume(workflow=REGISTRY["asking"], run_id=child.run_id, wait_key=None, payload="yes", max_steps=0)
    assert (await rt.tick(workflow=workflow, run_id="p", max_steps=0)).status is RunStatus.WAITING
    assert (await rt.get_state(child.run_id)).status is RunStatus.RUNNING
    assert (await rt.tick(workflow=workflow, run_id="p", max_steps=1)).output["result"]["output"] == {"said": "yes"}


async def test_a_child_that_waits_lets_its_parent_wait_until_it_goes_on(world: World):
    rt, workflow = runtime(world), parent(sub("asking"))
    state = await rt.run(workflow, run_id="p")
    wait = state.waiting
    child_id = wait.details["sub_run_id"]
    child = await rt.get_state(child_id)
    assert (state.status, wait.reason, wait.wait_key) == (
        RunStatus.WAITING,
        WaitReason.SUBWORKFLOW,
        f"subworkflow:{child_id}",
    )
    assert wait.details["sub_workflow_id"] == "asking"
    assert wait.details["include_traces"] is False
    assert wait.details["sub_waiting"] == {"reason": "user", "wait_key": child.waiting.wait_key}
    again = await rt.tick(workflow=workflow, run_id="p")
    assert again.revision == state.revision, "a look that finds nothing writes nothing"
    await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=child.waiting.wait_key, payload="yes")
    state = await rt.tick(workflow=workflow, run_id="p")
    assert state.output == {"result": {"sub_run_id": child_id, "output": {"said": "yes"}}}
    ledger = await rt.get_ledger("p")
    assert statuses(ledger, SUB) == ["started", "waiting"]
    resumed = next(r for r in ledger if r["effect"]["type"] == "resume")
    assert resumed["result"] == {"resumed": True, "by": "child"}


async def test_a_waiting_parents_tick_drives_its_sync_child_on(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("timer"))
    state = await rt.run(workflow, run_id="p")
    assert state.waiting.details["sub_waiting"]["reason"] == "until"
    async_world.clock.advance(400 * 24 * 3600)
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_what_the_child_waits_for_now_is_told(async_world: World):
    twice = flow(
        "one",
        workflow_id="twice",
        one=ask("one", "ask_user", {"prompt": "1?"}, "one", "two"),
        two=ask("two", "ask_user", {"prompt": "2?"}, "two", "end"),
    )
    rt, workflow = runtime(async_world), parent(sub("twice"))
    rt.set_workflow_registry({"twice": twice})
    state = await rt.run(workflow, run_id="p")
    first = state.waiting
    await rt.resume(workflow=twice, run_id=first.details["sub_run_id"], wait_key=None, payload=1)
    second = (await rt.tick(workflow=workflow, run_id="p")).waiting
    assert second.wait_key == first.wait_key
    child = await rt.get_state(first.details["sub_run_id"])
    assert second.details["sub_waiting"] == {"reason": "user", "wait_key": child.waiting.wait_key}
    assert second.details["sub_waiting"] != first.details["sub_waiting"]
    assert second.details["wait_id"] == first.details["wait_id"]


async def test_an_async_child_is_started_and_left_alone(world: World):
    rt = runtime(world)
    state = await rt.run(parent(sub("echo", {"x": 1}, **APART)), run_id="p")
    child_id = state.output["result"]["sub_run_id"]
    assert state.output["result"] == {"sub_run_id": child_id, "async": True}
    child = await rt.get_state(child_id)
    assert (child.status, child.revision, child.parent_run_id) == (RunStatus.RUNNING, 1, "p")
    assert (await rt.tick(workflow=REGISTRY["echo"], run_id=child_id)).output == {"x": 1}
    assert statuses(await rt.get_ledger("p"), SUB) == ["started", "completed"]


async def test_an_async_child_that_is_waited_for_is_collected_but_not_driven(world: World):
    rt, workflow = runtime(world), parent(sub("echo", {"x": 1}, **AWAITED))
    state = await rt.run(workflow, run_id="p")
    details = state.waiting.details
    assert details["async"] is True
    assert "sub_waiting" not in details
    child_id = details["sub_run_id"]
    assert (await rt.tick(workflow=workflow, run_id="p")).revision == state.revision
    assert (await rt.get_state(child_id)).revision == 1
    await rt.tick(workflow=REGISTRY["echo"], run_id=child_id)
    state = await rt.tick(workflow=workflow, run_id="p")
    assert state.output == {"result": {"sub_run_id": child_id, "output": {"x": 1}}}


@pytest.mark.parametrize("way", [{}, AWAITED])
async def test_a_child_that_fails_fails_its_parent(world: World, way: dict[str, Any]):
    rt, workflow = runtime(world), parent(sub("failing", **way))
    state = await rt.run(workflow, run_id="p")
    if way:
        await rt.tick(workflow=REGISTRY["failing"], run_id=state.waiting.details["sub_run_id"])
        state = await rt.tick(workflow=workflow, run_id="p")
    assert (state.status, state.error) == (RunStatus.FAILED, "Subworkflow 'failing' failed: no luck")
    assert state.intent is None
    ledger = await rt.get_ledger("p")
    assert [record["status"] for record in ledger] == (
        ["started", "waiting", "failed", "completed"] if way else ["started", "failed", "completed"]
    )
    assert len(ledger) == state.records


async def test_a_child_that_was_cancelled_is_a_result(world: World):
    rt, workflow = runtime(world), parent(sub("asking"))
    state = await rt.run(workflow, run_id="p")
    child_id = state.waiting.details["sub_run_id"]
    await rt.cancel_run(child_id, reason="too slow")
    state = await rt.tick(workflow=workflow, run_id="p")
    output = {"success": False, "cancelled": True, "error": "too slow"}
    assert state.output == {"result": {"sub_run_id": child_id, "output": output}}


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({}, "requires payload.workflow_id"),
        (sub("nobody"), "has no such workflow"),
        ({"workflow_id": "echo", "vars": 7}, "vars must be a dict, found a int"),
        ({"workflow_id": "echo", "run_id": "../x"}, "run_id must be printable and no path"),
        ({"workflow_id": "echo", "run_id": "p"}, "exists already"),
        ({"workflow_id": "echo", "session_id": 7}, "session_id must be a text"),
        ({"workflow_id": "echo", "resume_to_node": "nowhere"}, "is no node"),
        ({"children": []}, "at least one"),
        ({"children": [{"vars": {}}]}, r"requires payload.children\[0\].workflow_id"),
        ({"children": [sub("echo")], "join": "some"}, "join must be one of all, collect, any, first"),
        ({"children": [sub("echo")], "max_parallel": True}, "max_parallel must be a number"),
        ({"children": [sub("echo", run_id="a"), sub("echo", run_id="a")]}, "the same run_id"),
    ],
)
async def test_an_order_that_cannot_be_followed_fails_clearly(
    async_world: World, payload: dict[str, Any], error: str, wrap: bool
):
    rt = runtime(async_world)
    state = await rt.run(parent({**payload, "wrap_as_tool_result": wrap, "call_id": "c7"}), run_id="p")
    found = state.output["result"]["results"][0]["error"] if wrap else state.error
    assert pytest.raises(AssertionError, match=error).matches(AssertionError(found)), found
    assert state.status is (RunStatus.COMPLETED if wrap else RunStatus.FAILED)
    if wrap:
        assert state.output["result"]["mode"] == "executed"
        assert state.output["result"]["results"][0]["call_id"] == "c7"
    assert [row["run_id"] for row in (await rt.find_runs()).items] == ["p"], "and no child was made"


async def test_without_a_registry_nothing_is_started(async_world: World):
    rt = async_world.runtime()
    assert "no workflow_registry" in (await rt.run(parent(sub("echo")))).error


async def test_among_several_effects_it_is_refused(async_world: World):
    rt = runtime(async_world)
    several = flow("work", work=lambda run, ctx: StepPlan("work", effects=[Effect(SUB, sub("echo"))], next_node="end"))
    assert "payload.children" in (await rt.run(several)).error


async def test_a_handler_of_the_host_goes_before_ours(async_world: World):
    rt = runtime(async_world, handlers={SUB: lambda call: EffectOutcome.completed("mine")})
    assert (await rt.run(parent(sub("echo")))).output == {"result": "mine"}


async def test_it_inherits_the_workspace_and_no_more(async_world: World):
    def work(run: RunState, ctx: Any) -> StepPlan:
        run.vars |= {
            "workspace_root": "/w",
            "workspace_access_mode": "rw",
            "workspace_allowed_paths": ["a"],
            "workspace_ignored_paths": None,
            "context": {"task": "secret"},
        }
        order = sub("echo", {"workspace_access_mode": "ro", "workspace_root": "  "}, session_id="other")
        return StepPlan("work", Effect(SUB, order, "result"), "end")

    rt = runtime(async_world)
    state = await rt.run(flow("work", workflow_id="parent", work=work), session_id="mine")
    assert state.output["result"]["output"] == {
        "workspace_root": "/w",
        "workspace_access_mode": "ro",
        "workspace_allowed_paths": ["a"],
    }
    child = await rt.get_state(state.output["result"]["sub_run_id"])
    assert child.session_id == "other"
    assert "_limits" in child.vars


async def test_a_named_child_is_created_once_and_its_result_taken_again(async_world: World):
    def work(run: RunState, ctx: Any) -> StepPlan:
        run.vars["times"] = run.vars.get("times", 0) + 1
        follow = "work" if run.vars["times"] < 2 else "end"
        order = sub("echo", {"x": run.vars["times"]}, run_id="named")
        return StepPlan("work", Effect(SUB, order, f"result{run.vars['times']}"), follow)

    state = await runtime(async_world).run(flow("work", workflow_id="parent", work=work))
    assert state.output["result1"] == state.output["result2"] == {"sub_run_id": "named", "output": {"x": 1}}


async def test_each_effect_of_a_loop_has_a_child_of_its_own(async_world: World):
    def work(run: RunState, ctx: Any) -> StepPlan:
        run.vars["times"] = run.vars.get("times", 0) + 1
        follow = "work" if run.vars["times"] < 3 else "end"
        return StepPlan("work", Effect(SUB, sub("echo"), f"ids.n{run.vars['times']}"), follow)

    state = await runtime(async_world).run(flow("work", workflow_id="parent", work=work))
    assert len({result["sub_run_id"] for result in state.output["ids"].values()}) == 3


async def test_traces_come_along_when_asked_for(async_world: World):
    rt = runtime(async_world)
    traced = flow("say", workflow_id="traced", say=ask("say", "answer_user", {"message": "hello"}))
    rt.set_workflow_registry({"traced": traced})
    state = await rt.run(parent(sub("traced", include_traces=True)))
    result = state.output["result"]
    assert result["node_traces"] == await rt.get_node_traces(result["sub_run_id"])
    assert result["node_traces"]["say"]["steps"][0]["status"] == "completed"


# -- as a tool's result


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ({"answer": "42"}, {"rendered": "42", "answer": "42"}),
        ({"answer": " ", "n": 1}, {"rendered": '{"answer": " ", "n": 1}', "answer": '{"answer": " ", "n": 1}'}),
        ({"answer": "a", "report": "r"}, {"rendered": "a", "answer": "a", "report": "r"}),
        ({"answer": "a", "report": "r" * 4001}, {"rendered": "a", "answer": "a"}),
    ],
)
@pytest.mark.parametrize("way", [{}, AWAITED])
async def test_a_result_in_the_shape_of_a_tools(async_world: World, output: Any, shown: Any, way: dict[str, Any]):
    rt = runtime(async_world)
    workflow = parent(sub("echo", output, wrap_as_tool_result=True, toolName="ask", callId="c1", **way))
    state = await rt.run(workflow, run_id="p")
    if way:
        child_id = state.waiting.details["sub_run_id"]
        await rt.tick(workflow=REGISTRY["echo"], run_id=child_id)
        state = await rt.tick(workflow=workflow, run_id="p")
    (result,) = state.output["result"]["results"]
    child_id = result["output"].pop("sub_run_id")
    assert (await rt.get_state(child_id)).parent_run_id == "p"
    assert result == {"call_id": "c1", "name": "ask", "success": True, "output": shown, "error": None}


@pytest.mark.parametrize("child", ["failing", "cancelled"])
async def test_a_failure_in_the_shape_of_a_tools_completes_the_effect(async_world: World, child: str):
    rt = runtime(async_world)
    workflow = parent(sub("failing" if child == "failing" else "asking", wrap_as_tool_result=True))
    state = await rt.run(workflow, run_id="p")
    if child == "cancelled":
        await rt.cancel_run(state.waiting.details["sub_run_id"], reason="no luck")
        state = await rt.tick(workflow=workflow, run_id="p")
    (result,) = state.output["result"]["results"]
    assert (result["success"], result["output"]) == (False, None)
    assert "no luck" in result["error"]


@pytest.mark.parametrize(
    ("answer", "success"),
    [({"output": {"answer": "yes"}}, True), ({"output": {"success": False, "error": "no"}}, False)],
)
async def test_an_answer_by_hand_is_wrapped_too(async_world: World, answer: dict[str, Any], success: bool):
    rt, workflow = runtime(async_world), parent(sub("asking", wrap_as_tool_result=True, call_id="c1"))
    wait = (await rt.run(workflow, run_id="p")).waiting
    payload = {"sub_run_id": wait.details["sub_run_id"], **answer}
    for _ in range(2):
        state = await rt.resume(
            workflow=workflow, run_id="p", wait_key=wait.wait_key, payload=payload, resume_id="once"
        )
    (result,) = state.output["result"]["results"]
    assert (result["call_id"], result["success"], result["error"]) == ("c1", success, None if success else "no")


# -- by hand, and who is first


async def test_a_host_may_give_the_result_by_hand(world: World):
    rt, workflow = runtime(world), parent(sub("asking"))
    wait = (await rt.run(workflow, run_id="p")).waiting
    payload = {"sub_run_id": wait.details["sub_run_id"], "output": "by hand"}
    state = await rt.resume(workflow=workflow, run_id="p", wait_key=wait.wait_key, payload=payload)
    assert state.output == {"result": payload}
    assert state.intent is None


async def test_who_comes_second_gets_the_parent_and_no_error(world: World):
    rt, workflow = runtime(world), parent(sub("asking"))
    rt.set_workflow_registry({**REGISTRY, "parent": workflow})
    wait = (await rt.run(workflow, run_id="p")).waiting
    child_id = wait.details["sub_run_id"]
    await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload="yes")
    first = await rt.tick(workflow=workflow, run_id="p")
    payload = {"sub_run_id": child_id, "output": "late"}
    assert (await rt.resume(workflow=workflow, run_id="p", wait_key=wait.wait_key, payload=payload)) == first
    assert (await rt.resume_subworkflow_parent(child_run_id=child_id, child_output="late")) == first
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=workflow, run_id="p", wait_key="subworkflow:another", payload=payload)


async def test_a_parent_is_resumed_by_the_name_of_its_child(world: World):
    rt, workflow = runtime(world), parent(sub("asking"))
    rt.set_workflow_registry({**REGISTRY, "parent": workflow})
    child_id = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    state = await rt.resume_subworkflow_parent(child_run_id=child_id, child_output={"by": "hand"})
    assert state.output == {"result": {"sub_run_id": child_id, "output": {"by": "hand"}}}
    assert await rt.resume_subworkflow_parent(child_run_id="p", child_output=1) is None


async def test_by_hand_and_by_itself_at_once_there_is_one_winner(async_world: World):
    rt, other = runtime(async_world), runtime(async_world)
    for number in range(20):
        run_id, workflow = f"p{number}", parent(sub("asking"))
        wait = (await rt.run(workflow, run_id=run_id)).waiting
        child_id = wait.details["sub_run_id"]
        await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload="yes")
        payload = {"sub_run_id": child_id, "output": "by hand"}
        await asyncio.gather(
            *(runtime.tick(workflow=workflow, run_id=run_id) for runtime in (rt, other)),
            *(
                runtime.resume(workflow=workflow, run_id=run_id, wait_key=wait.wait_key, payload=payload)
                for runtime in (other, rt)
            ),
        )
        state = await rt.get_state(run_id)
        assert state.output["result"]["output"] in ("by hand", {"said": "yes"})
        ledger = await rt.get_ledger(run_id)
        assert [record["effect"]["type"] for record in ledger if record["effect"]].count("resume") == 1


async def test_a_key_of_the_hosts_own_makes_one_child_of_two_steps(async_world: World):
    class Fixed(DefaultEffectPolicy):
        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            return f"{run.run_id}:fixed"

    rt = runtime(async_world, effect_policy=Fixed())
    workflow = flow(
        "one",
        workflow_id="parent",
        one=ask("one", SUB, sub("echo", {"x": 1}), "one", "two"),
        two=ask("two", SUB, sub("echo", {"x": 2}), "two", "end"),
    )
    state = await rt.run(workflow, run_id="p")
    assert state.output["one"] == state.output["two"]
    assert len((await rt.find_runs(parent_run_id="p")).items) == 1


async def test_large_values_of_children_are_moved_out_and_still_collected(async_world: World):
    runs, ledgers = async_world.stores()
    options: Any = {"artifact_store": InMemoryArtifactStore(), "max_inline_bytes": 100}
    stores = AsyncOffloadingRunStore(runs, **options), AsyncOffloadingLedgerStore(ledgers, **options)
    rt = runtime(async_world, stores=stores)
    order = {"children": [sub("echo", {"big": "x" * 5000})] * 3, "max_parallel": 1}
    await rt.run(parent(order), run_id="p")
    assert "$artifact" in str((await rt.get_state("p")).output)
    state = await rt.get_state("p", resolve=True)
    assert [len(result["output"]["big"]) for result in state.output["result"]["results"]] == [5000] * 3


async def test_raw_secrets_are_stored_nowhere_and_named_ones_reach_the_child(async_world: World):
    rt = runtime(async_world)
    state = await rt.run(parent(sub("echo", {"api_key": "sk-raw", "password": {"$secret": "name"}})), run_id="p")
    assert state.output["result"]["output"] == {
        "api_key": {"$redacted": "api_key"},
        "password": {"$secret": "name"},
    }
    child = await rt.get_state(state.output["result"]["sub_run_id"])
    assert "sk-raw" not in str([await rt.get_ledger("p"), child.vars])


# -- what goes wrong


async def test_a_childs_node_that_raises_reaches_the_caller_and_the_parent_waits(world: World):
    rt, workflow = runtime(world), parent(sub("boom"))
    await rt.start(workflow=workflow, run_id="p")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="boom"):
            await rt.tick(workflow=workflow, run_id="p")
    state = await rt.get_state("p")
    child = await rt.get_state(state.waiting.details["sub_run_id"])
    assert (state.status, child.status, child.node_errors) == (RunStatus.WAITING, RunStatus.RUNNING, 2)
    rt.set_workflow_registry({"boom": flow("boom", workflow_id="boom", boom=end)})
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_a_childs_node_that_fails_its_run_fails_the_parent(async_world: World):
    rt = runtime(async_world, on_node_error="fail")
    state = await rt.run(parent(sub("boom")))
    assert state.error == "Subworkflow 'boom' failed: RuntimeError: boom"


async def test_a_child_that_was_deleted_fails_the_effect(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("asking"))
    child_id = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    await rt.delete_run(child_id, force=True)
    state = await rt.tick(workflow=workflow, run_id="p")
    assert "was deleted" in state.error


async def test_a_child_that_cannot_be_driven_here_is_waited_for(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("asking"))
    child_id = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    await rt.resume(workflow=REGISTRY["asking"], run_id=child_id, wait_key=None, payload=1, max_steps=0)
    rt.set_workflow_registry(None)
    state = await rt.tick(workflow=workflow, run_id="p")
    assert state.waiting.details["sub_waiting"] == {"reason": "running", "wait_key": None}
    rt.set_workflow_registry(REGISTRY)
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_a_restored_parent_starts_anew_and_its_open_child_is_cancelled(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("asking"))
    first = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    snapshot = await rt.snapshot_run("p", name="waiting")
    await rt.restore("p", snapshot)
    state = await rt.tick(workflow=workflow, run_id="p")
    second = state.waiting.details["sub_run_id"]
    assert first != second
    assert (await rt.tick(workflow=REGISTRY["asking"], run_id=first)).status is RunStatus.CANCELLED
    fork = await rt.tick(workflow=workflow, run_id=await rt.fork("p"))
    assert fork.waiting.details["sub_run_id"] not in (first, second)


async def test_without_a_next_node_the_result_is_the_end(world: World):
    rt = runtime(world)
    state = await rt.run(parent(sub("echo", {"x": 1}), then=None, key=None))
    assert state.output["result"]["output"] == {"x": 1}
    waiting = await rt.run(parent(sub("asking"), then=None), run_id="p")
    await rt.cancel_run(waiting.waiting.details["sub_run_id"])
    state = await rt.tick(workflow=parent(sub("asking"), then=None), run_id="p")
    assert state.output["result"]["output"]["cancelled"] is True


async def test_a_paused_parent_takes_the_result_when_it_goes_on(async_world: World):
    rt, workflow = runtime(async_world), parent(sub("echo", **AWAITED))
    child_id = (await rt.run(workflow, run_id="p")).waiting.details["sub_run_id"]
    await rt.pause_run("p")
    await rt.tick(workflow=REGISTRY["echo"], run_id=child_id)
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.WAITING
    await rt.resume_run("p")
    assert (await rt.tick(workflow=workflow, run_id="p")).status is RunStatus.COMPLETED


async def test_one_is_not_mistaken_for_the_child(async_world: World):
    """A run under the child's id that is none of the parent's."""
    rt = runtime(async_world)
    await rt.start(workflow=REGISTRY["echo"], run_id="taken")
    state = await rt.run(parent(sub("echo", run_id="taken")))
    assert "exists already" in state.error
    assert await rt.run(one("answer_user", {"message": "x"}))


async def test_of_two_parents_that_name_one_child_at_once_one_gets_it(async_world: World):
    rt = runtime(async_world)
    for number in range(10):
        workflow = parent(sub("echo", run_id=f"child-{number}"))
        states = await asyncio.gather(*(rt.run(workflow, run_id=f"p{number}-{one}") for one in range(3)))
        assert sorted(state.status for state in states) == ["completed", "failed", "failed"]
        assert all("exists already" in state.error for state in states if state.error)
