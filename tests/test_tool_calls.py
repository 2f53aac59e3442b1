"""TOOL_CALLS: ids, allow-lists, order, what stands for missing results, delegation, and landing call by call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    Effect,
    EffectType,
    InMemoryArtifactStore,
    InvalidAnswer,
    NoRetryPolicy,
    RunStatus,
    StepPlan,
    WaitReason,
)
from abstractruntime.integrations.abstractcore.tool_calls import make_tool_calls_handler

from . import worlds
from .checks import check_ledger
from .faults import FaultyBackend, ProcessDied
from .tool_executors import Passing, SyncTools, Tools, brief, call, calling
from .worlds import Gate, World, eventually, statuses

world = worlds.world
async_world = worlds.async_world

SUM = call("add", "c1", a=1, b=2)


def add(a: int, b: int) -> int:
    return a + b


def handlers(tools: Any, **options: Any) -> dict[str, Any]:
    return {EffectType.TOOL_CALLS: make_tool_calls_handler(tools=tools, **options)}


@pytest.mark.parametrize("kind", [Tools, SyncTools])
async def test_results_come_in_the_order_of_the_calls_under_ids_of_the_runtime(world: World, kind: Any) -> None:
    rt = world.runtime(handlers(kind(add=add)))
    state = await rt.run(calling(SUM, call("add", a=1, b="x"), call("gone", "c3")), run_id="r")
    result = state.output["result"]
    assert brief(result) == [
        ("add", True, 3),
        ("add", False, "unsupported operand type(s) for +: 'int' and 'str'"),
        ("gone", False, "Tool 'gone' not found"),
    ]
    (started,) = [record for record in await rt.get_ledger("r") if record["status"] == "started"]
    key = started["idempotency_key"]
    assert [one["runtime_call_id"] for one in result["results"]] == [f"rtcall_{key}_{n}" for n in (1, 2, 3)]
    assert [one["call_id"] for one in result["results"]] == ["c1", f"rtcall_{key}_2", "c3"]
    assert set(result["results"][0]) == {"call_id", "runtime_call_id", "name", "success", "output", "error"}
    assert "1 of 3 calls have no call_id" in state.vars["_flow_warnings"][0]


async def test_calls_that_are_not_allowed_are_answered_in_their_places(async_world: World) -> None:
    tools = Tools(add=add)
    rt = async_world.runtime(handlers(tools))
    calls = ["nonsense", call("rm", "c2"), SUM, {"arguments": {}}, call("add", "c5", a=2, b=2)]
    state = await rt.run(calling(*calls, allowed_tools=[" add ", "add", 5]), run_id="r")
    assert [one[1] for one in brief(state.output["result"])] == [False, False, True, False, True]
    errors = [one["error"] for one in state.output["result"]["results"]]
    assert errors[0] == "Invalid tool call (expected an object)"
    assert errors[1].startswith("Tool 'rm' is not allowed for this node")
    assert "without a name" in errors[3]
    assert [one["call_id"] for one in tools.batches[0]] == ["c1", "c5"]


@pytest.mark.parametrize(
    ("payload", "runtime", "allowed"),
    [
        ({"allowed_tools": []}, {}, False),
        ({"allowed_tools": "add"}, {}, False),
        ({}, {"allowed_tools": ["other"]}, False),
        ({"allowed_tools": ["add"]}, {"allowed_tools": ["add"]}, True),
        ({"allowed_tools": None}, {}, True),
    ],
)
async def test_an_empty_list_allows_nothing_and_a_run_may_allow_less_than_a_node(
    async_world: World, payload: Any, runtime: Any, allowed: bool
) -> None:
    tools = Tools(add=add)
    rt = async_world.runtime(handlers(tools))
    state = await rt.run(calling(SUM, **payload), run_id="r", vars={"_runtime": runtime})
    assert [one[1] for one in brief(state.output["result"])] == [allowed]
    assert bool(tools.batches) is allowed


@pytest.mark.parametrize("tools", [Tools(), Passing()])
async def test_with_nothing_to_perform_the_batch_ends_at_once(async_world: World, tools: Any) -> None:
    rt = async_world.runtime(handlers(tools))
    assert brief((await rt.run(calling(), run_id="r")).output["result"]) == []
    state = await rt.run(calling(SUM, allowed_tools=[]), run_id="s")
    assert state.status is RunStatus.COMPLETED


async def test_arguments_may_be_json_text_and_calls_in_the_shape_of_openai(async_world: World) -> None:
    rt = async_world.runtime(handlers(Tools(add=add)))
    openai = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    state = await rt.run(calling(openai, {"name": "add", "arguments": "{oops", "call_id": "c2"}), run_id="r")
    (first, second) = state.output["result"]["results"]
    assert (first["call_id"], first["output"]) == ("c1", 3)
    assert "expected a JSON object" in second["error"]


async def test_a_payload_without_a_list_and_a_handler_without_an_executor_fail(async_world: World) -> None:
    rt = async_world.runtime(handlers(Tools()))
    state = await async_world.runtime(handlers(None)).run(calling(SUM), run_id="r")
    assert "requires a tool executor" in state.error
    bad = worlds.flow("act", act=lambda run, ctx: StepPlan("act", Effect("tool_calls", {"tool_calls": "x"}), "end"))
    assert "requires payload.tool_calls (a list)" in (await rt.run(bad, run_id="s")).error


async def test_what_an_executor_gives_no_result_for_is_said_to_be_missing(async_world: World) -> None:
    class Lazy:
        def execute(self, *, tool_calls: Any) -> Any:
            last = tool_calls[-1]
            return {"mode": "executed", "results": [{"call_id": last["call_id"], "success": True, "output": "last"}]}

    rt = async_world.runtime(handlers(Lazy()))
    state = await rt.run(calling(call("a", "c1"), call("b", "c2")), run_id="r")
    assert brief(state.output["result"]) == [("a", False, "Missing tool result"), ("b", True, "last")]


async def test_results_without_ids_are_those_of_the_calls_in_their_order(async_world: World) -> None:
    class Nameless:
        async def execute(self, *, tool_calls: Any) -> Any:
            return {"results": [{"success": True, "output": n} for n, _ in enumerate(tool_calls)] + []}

    rt = async_world.runtime(handlers(Nameless()))
    state = await rt.run(calling(call("a", "same"), call("b", "same")), run_id="r")
    assert brief(state.output["result"]) == [("a", True, 0), ("b", True, 1)]
    assert "same is given to several calls" in state.vars["_flow_warnings"][0]


async def test_an_executor_that_raises_fails_the_effect(async_world: World) -> None:
    class Broken:
        def execute(self, *, tool_calls: Any) -> Any:
            raise ValueError("no such server")

    rt = async_world.runtime(handlers(Broken()), effect_policy=NoRetryPolicy())
    state = await rt.run(calling(SUM), run_id="r")
    assert "no such server" in state.error
    state = await async_world.runtime(handlers(object())).run(calling(SUM), run_id="s")
    assert "is no tool executor" in state.error


async def test_output_that_cannot_be_stored_is_told_as_the_result(async_world: World) -> None:
    rt = async_world.runtime(handlers(Tools(odd=lambda: {1, 2}, fine=lambda: 1)))
    state = await rt.run(calling(call("odd", "c1"), call("fine", "c2")), run_id="r")
    (odd, fine) = state.output["result"]["results"]
    assert odd["success"] is False
    assert "The tool ran, but its result cannot be stored" in odd["error"]
    assert fine["output"] == 1


@pytest.mark.parametrize(
    ("executor", "reason"),
    [
        (Passing(), WaitReason.EVENT),
        (Passing("delegated"), WaitReason.JOB),
        (Passing(wait_reason="user"), WaitReason.USER),
        (Passing(wait_reason="until"), WaitReason.EVENT),
    ],
)
async def test_a_host_that_performs_the_calls_gives_exactly_their_results(
    world: World, executor: Any, reason: WaitReason
) -> None:
    workflow = calling(call("rm", "c0"), SUM, call("add", "c2", a=3, b=4), allowed_tools=["add"])
    rt = world.runtime(handlers(executor))
    state = await rt.run(workflow, run_id="r")
    wait = state.waiting
    assert (state.status, wait.reason) == (RunStatus.WAITING, reason)
    assert wait.wait_key.startswith("tool_approval:r:act:")
    assert (wait.details["mode"], wait.details["original_call_count"]) == (executor.mode, 3)
    assert [one["call_id"] for one in wait.details["tool_calls"]] == ["c1", "c2"]
    assert wait.details["blocked_by_index"]["0"]["success"] is False
    done = [{"call_id": "c2", "success": True, "output": 7}, {"call_id": "c1", "success": False, "error": "busy"}]
    refused: list[Any] = [
        done,
        {"results": done[:1]},
        {"results": [*done, done[0]]},
        {"approved": True},
        {"text": "ok"},
    ]
    for payload in refused:
        with pytest.raises(InvalidAnswer):
            await rt.resume(workflow=workflow, run_id="r", wait_key=wait.wait_key, payload=payload)
    state = await rt.resume(
        workflow=workflow,
        run_id="r",
        wait_key=wait.wait_key,
        payload={"mode": "executed", "results": done},
        actor_id="host",
    )
    assert brief(state.output["result"])[1:] == [("add", False, "busy"), ("add", True, 7)]
    assert state.output["result"]["results"][2]["meta"] == {"executed_by": "host", "by": "host"}
    ledger = await rt.get_ledger("r")
    check_ledger(state, ledger)
    assert statuses(ledger, "tool_calls") == ["started", "waiting", "started", "completed"]


async def test_keys_and_nodes_of_the_payload_are_those_of_the_wait(async_world: World) -> None:
    rt = async_world.runtime(handlers(Passing(wait_key="mine")))
    assert (await rt.run(calling(SUM), run_id="r")).waiting.wait_key == "mine"
    state = await rt.run(calling(SUM, wait_key="yours", resume_to_node="act"), run_id="s")
    assert (state.waiting.wait_key, state.waiting.resume_to_node) == ("yours", "act")


async def test_evidence_of_what_tools_brought_back_is_kept_where_that_is_asked_for(async_world: World) -> None:
    artifacts = InMemoryArtifactStore()
    tools = Tools(web_search=lambda query: {"results": [query] * 3})
    options = {"artifact_store": artifacts, "evidence": True}
    rt = async_world.runtime(handlers(tools, **options), artifact_store=artifacts)
    state = await rt.run(calling(call("web_search", "c1", query="cats")), run_id="r")
    (evidence,) = await rt.list_evidence("r")
    assert (evidence["tool_name"], evidence["query"]) == ("web_search", "cats")
    assert state.output["result"]["results"][0]["meta"]["evidence_id"] == evidence["artifact_id"]


async def test_secrets_reach_the_tool_and_nothing_that_is_stored(async_world: World) -> None:
    seen: list[Any] = []
    secret = {"$secret": "bank"}

    def pay(token: str) -> str:
        seen.append(token)
        return f"paid with {token}"

    tools = Tools(pay=pay)
    rt = async_world.runtime(handlers(tools), secrets={"bank": "sk-very-secret"})
    state = await rt.run(calling(call("pay", "c1", token=secret)), run_id="r")
    assert seen == ["sk-very-secret"]
    assert state.output["result"]["results"][0]["output"] == "paid with [redacted]"
    assert "sk-very-secret" not in str(await rt.get_ledger("r"))


# -- landing


async def test_a_crash_repeats_only_what_had_not_landed_under_the_same_ids(async_world: World) -> None:
    tools = Tools(add=add, slow=lambda: "late")
    tools.gates = {"slow": Gate()}
    workflow = calling(SUM, call("slow", "c2"), call("add", "c3", a=5, b=5))
    rt = async_world.runtime(handlers(tools))
    await rt.start(workflow=workflow, run_id="r")
    ticking = asyncio.ensure_future(rt.tick(workflow=workflow, run_id="r"))
    await eventually(lambda: tools.gates["slow"].inside == 1)
    while len((await rt.get_state("r")).intent.landed) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await rt.aclose()
    with pytest.raises(asyncio.CancelledError):
        await ticking
    again = Tools(add=add, slow=lambda: "late")
    rt = async_world.runtime(handlers(again))
    state = await rt.tick(workflow=workflow, run_id="r")
    assert brief(state.output["result"]) == [("add", True, 3), ("slow", True, "late"), ("add", True, 10)]
    assert [one["call_id"] for one in again.batches[0]] == ["c2"]
    assert set(again.ran) == {state.output["result"]["results"][1]["runtime_call_id"]}
    assert set(tools.ran) & set(again.ran) == set(), "it had not run before"
    check_ledger(state, await rt.get_ledger("r"))


@pytest.mark.parametrize("mode", FaultyBackend.MODES)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
async def test_every_write_of_a_batch_may_fail(kind: str, mode: str, tmp_path: Path) -> None:
    workflow = calling(*(call("add", f"c{n}", a=n, b=n) for n in range(3)))
    at, fired = 0, True
    while fired:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        world, tools = World("async", kind, folder, synchronous="NORMAL"), Tools(add=add)
        rt, store = world.faulty_runtime(handlers(tools), at=at, mode=mode)
        try:
            await rt.start(workflow=workflow, run_id="r")
            await rt.tick(workflow=workflow, run_id="r")
        except ProcessDied:
            rt = world.runtime(handlers(tools))
            await rt.start(workflow=workflow, run_id="r")
            await rt.tick(workflow=workflow, run_id="r")
        state, ledger = await rt.get_state("r"), await rt.get_ledger("r")
        assert brief(state.output["result"]) == [("add", True, 0), ("add", True, 2), ("add", True, 4)], f"{mode} {at}"
        check_ledger(state, ledger)
        assert len(tools.ran) == 3, "each call has one id in all attempts"
        assert max(tools.ran.values()) <= (2 if mode.startswith("die") else 1)
        fired = store.backend is not None and store.backend.fired
        await world.close()
    assert at > 4
