"""Approvals of tool calls: the policy, what counts as a decision, what happens to what is decided, and the inbox."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime import (
    AsyncScheduler,
    DefaultEffectPolicy,
    Effect,
    EffectType,
    InvalidAnswer,
    InvalidCursor,
    RunStatus,
    StaleResumeError,
    StepPlan,
    WaitReason,
    WorkflowRegistry,
)
from abstractruntime.core.clock import SYSTEM_CLOCK
from abstractruntime.integrations.abstractcore.approvals import ApprovalToolExecutor, ToolApprovalPolicy
from abstractruntime.integrations.abstractcore.tool_calls import make_tool_calls_handler

from . import worlds
from .checks import check_ledger
from .faults import FaultyBackend, ProcessDied
from .scale import scaled
from .tool_executors import Passing, SyncTools, Tools, brief, call, calling
from .worlds import World, statuses

world = worlds.world
async_world = worlds.async_world
sqlite_world = worlds.sqlite_world

ROOT = Path(__file__).parent.parent
READ, WRITE, RUN = (
    call("read_file", "c1", path="a"),
    call("write_file", "c2", path="b", text="x"),
    call("execute_command", "c3", command="make"),
)
BATCH = calling(READ, WRITE, RUN)


def tools() -> Tools:
    return Tools(
        read_file=lambda path: f"content of {path}",
        write_file=lambda path, text: f"wrote {text} to {path}",
        execute_command=lambda command: f"ran {command}",
    )


def handlers(executor: Any) -> dict[str, Any]:
    return {EffectType.TOOL_CALLS: make_tool_calls_handler(tools=executor)}


def asking(delegate: Any, **options: Any) -> dict[str, Any]:
    return handlers(ApprovalToolExecutor(delegate=delegate, **options))


# -- the policy


@pytest.mark.parametrize(
    ("calls", "needed"),
    [
        ([], False),
        ([{"name": "read_file"}, {"name": " list_files "}], False),
        ([{"name": "read_file"}, {"name": "write_file"}], True),
        ([{"name": "fetch_url"}], True),
        ([{"name": "send_telegram_message"}], True),
        ([{"name": "never_heard_of"}], True),
        ([{"name": ""}], True),
        ([{}], True),
        (["read_file"], True),
        ([{"name": 5}], True),
    ],
)
def test_unknown_means_ask(calls: list[Any], needed: bool) -> None:
    assert ToolApprovalPolicy().requires_approval(calls) is needed


def test_given_lists_replace_the_defaults_and_an_empty_one_is_empty() -> None:
    policy = ToolApprovalPolicy(auto_approve_tools={"mine", "both"}, require_approval_tools=["both"])
    assert [policy.requires_approval([{"name": name}]) for name in ("mine", "both", "read_file")] == [False, True, True]
    assert policy.describe() == {"auto_approve_tools": ["both", "mine"], "require_approval_tools": ["both"]}
    assert ToolApprovalPolicy(auto_approve_tools=set()).requires_approval([{"name": "read_file"}])
    with pytest.raises(TypeError, match="must be a list of tool names"):
        ToolApprovalPolicy(auto_approve_tools="read_file")


@pytest.mark.parametrize(
    ("override", "read", "write"),
    [
        (None, False, True),
        ({}, False, True),
        ({"auto_approve_tools": ["write_file"]}, True, True),
        ({"auto_approve_tools": ["write_file"], "require_approval_tools": []}, True, False),
        ({"require_approval_tools": ["read_file"]}, True, True),
        ({"approved_tools": [{"tool": "write_file", "by": "ann"}]}, False, False),
        ("never ask", True, True),
        ({"auto_approve_tools": "read_file"}, True, True),
        ({"auto_approve_tools": [1]}, True, True),
        ({"approved_tools": ["write_file"]}, True, True),
    ],
)
def test_an_override_of_a_run_fails_toward_asking(override: Any, read: bool, write: bool) -> None:
    policy = ToolApprovalPolicy().for_run(override)
    assert (policy.requires_approval([READ]), policy.requires_approval([WRITE])) == (read, write)


def test_the_executor_by_itself_has_the_documented_shapes() -> None:
    inner = tools()
    executor = ApprovalToolExecutor(delegate=inner, wait_key_factory=lambda: "key")
    asked = executor.execute(tool_calls=[WRITE])
    assert {"mode": "approval_required", "wait_reason": "user", "wait_key": "key"}.items() <= asked.items()
    assert asked["details"] == {"kind": "tool_approval", "policy": executor.policy.describe()}
    assert not inner.ran
    named = {**READ, "runtime_call_id": "x"}
    assert executor.execute(tool_calls=[named])["mode"] == "executed"
    assert executor.execute_approved(tool_calls=[{**WRITE, "runtime_call_id": "y"}])["results"][0]["success"]
    with pytest.raises(ValueError, match="expires_after_s"):
        ApprovalToolExecutor(delegate=inner, expires_after_s=-1)


# -- decisions


async def test_one_call_that_asks_lets_the_whole_batch_wait(world: World) -> None:
    inner = tools()
    rt = world.runtime(asking(inner))
    state = await rt.run(BATCH, run_id="r")
    wait = state.waiting
    assert (wait.reason, wait.result_key, inner.ran) == (WaitReason.USER, "result", {})
    assert wait.wait_key.startswith("tool_approval:r:act:")
    assert wait.prompt == "Approve execute_command, read_file, write_file?"
    details = wait.details
    assert details["mode"] == "approval_required"
    assert details["executor"] == {"kind": "tool_approval", "policy": ToolApprovalPolicy().describe()}
    assert [one["needs_approval"] for one in details["tool_calls"]] == [False, True, True]
    assert [one["arguments"] for one in details["tool_calls"]] == [one["arguments"] for one in (READ, WRITE, RUN)]
    state = await rt.resume(
        workflow=BATCH, run_id="r", wait_key=wait.wait_key, payload={"approved": True}, actor_id="ann"
    )
    assert brief(state.output["result"]) == [
        ("read_file", True, "content of a"),
        ("write_file", True, "wrote x to b"),
        ("execute_command", True, "ran make"),
    ]
    ledger = await rt.get_ledger("r")
    check_ledger(state, ledger)
    (decided,) = [record for record in ledger if record["effect"] and record["effect"]["type"] == "resume"]
    assert (decided["actor_id"], decided["result"]["about"]["digest"]) == ("ann", details["digest"])
    assert statuses(ledger, "tool_calls") == ["started", "waiting", "started", "completed"]


async def test_without_a_result_key_what_is_approved_is_performed_all_the_same(async_world: World) -> None:
    inner = tools()
    workflow = calling(WRITE, result_key=None)
    rt = async_world.runtime(asking(inner))
    await rt.run(workflow, run_id="r")
    state = await rt.resume(workflow=workflow, run_id="r", wait_key=None, payload={"approved": True})
    assert (state.status, len(inner.ran)) == (RunStatus.COMPLETED, 1)


async def test_denied_calls_come_back_as_results(world: World) -> None:
    inner = tools()
    rt = world.runtime(asking(inner), workflow_registry=registry(BATCH))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    state = await rt.deny("r", key, reason="not today", actor_id="bob")
    assert brief(state.output["result"]) == [
        (name, False, "not today") for name in ("read_file", "write_file", "execute_command")
    ]
    assert state.output["result"]["results"][0]["meta"] == {"denied": True, "by": "bob"}
    assert not inner.ran


async def test_each_call_may_be_decided_and_edited_by_itself(async_world: World) -> None:
    inner = tools()
    rt = async_world.runtime(asking(inner))
    state = await rt.run(BATCH, run_id="r")
    edited = {"approved": True, "arguments": {"path": "safe", "text": "y"}}
    decision = {
        "decisions": {"c2": edited, "c3": {"approved": False, "reason": "no make"}},
        "digest": state.waiting.details["digest"],
    }
    state = await rt.decide("r", state.waiting.wait_key, decision, workflow=BATCH, actor_id="ann")
    results = state.output["result"]["results"]
    assert brief(state.output["result"]) == [
        ("read_file", True, "content of a"),
        ("write_file", True, "wrote y to safe"),
        ("execute_command", False, "no make"),
    ]
    assert results[1]["meta"]["arguments_edited"] is True
    assert results[1]["meta"]["by"] == "ann"


async def test_approve_with_changed_args_is_refused_by_the_digest(async_world: World) -> None:
    """A node that asks again with other arguments is not approved by what was given for the first."""
    inner = tools()

    def act(run: Any, ctx: Any) -> StepPlan:
        run.vars["round"] = run.vars.get("round", 0) + 1
        calls = [call("write_file", "c1", path=f"file{run.vars['round']}", text="x")]
        return StepPlan("act", Effect(EffectType.TOOL_CALLS, {"tool_calls": calls}, "result"), "act")

    workflow = worlds.flow("act", act=act)
    rt = async_world.runtime(asking(inner))
    await rt.run(workflow, run_id="r")
    (first,) = (await rt.list_approvals()).items
    await rt.approve("r", first["wait_key"], digest=first["digest"], workflow=workflow)
    (second,) = (await rt.list_approvals()).items
    assert second["calls"][0]["arguments"]["path"] == "file2"
    assert second["digest"] != first["digest"]
    with pytest.raises(StaleResumeError):
        await rt.approve("r", first["wait_key"], digest=first["digest"], workflow=workflow)
    with pytest.raises(InvalidAnswer, match="other calls"):
        await rt.approve("r", second["wait_key"], digest=first["digest"], workflow=workflow)
    assert len(inner.ran) == 1


async def test_calls_that_somebody_changed_behind_the_approval_are_not_performed(async_world: World) -> None:
    inner = tools()
    runs, ledgers = async_world.stores()
    rt = async_world.runtime(asking(inner), stores=(runs, ledgers))
    state = await rt.run(BATCH, run_id="r")
    await rt.approve("r", state.waiting.wait_key, workflow=BATCH, max_steps=0)
    forged = await rt.get_state("r")
    evil = {**forged.intent.effect.payload, "tool_calls": [READ, {**WRITE, "arguments": {"path": "evil"}}, RUN]}
    forged.intent = replace(forged.intent, effect=replace(forged.intent.effect, payload=evil))
    await runs.save(forged)
    state = await rt.tick(workflow=BATCH, run_id="r")
    assert [one["error"] for one in state.output["result"]["results"]] == [
        "The calls are not those that were decided about"
    ] * 3
    assert not inner.ran


async def test_approve_expired_counts_as_denied(async_world: World) -> None:
    inner = tools()
    rt = async_world.runtime(asking(inner, expires_after_s=3600))
    await rt.run(BATCH, run_id="r")
    (item,) = (await rt.list_approvals()).items
    assert item["expires_at"] == "2026-01-31T10:00:00.000000+00:00"
    async_world.clock.advance(3600)
    with pytest.raises(InvalidAnswer, match="expired"):
        await rt.approve("r", item["wait_key"], workflow=BATCH)
    state = await rt.tick(workflow=BATCH, run_id="r")
    assert {one["error"] for one in state.output["result"]["results"]} == {"expired"}
    assert not inner.ran
    with pytest.raises(StaleResumeError):
        await rt.approve("r", item["wait_key"], workflow=BATCH)


async def test_double_approve_two_hosts_at_once_one_wins_and_the_other_is_told(world: World) -> None:
    inner = tools()
    hosts = [world.runtime(asking(inner), workflow_registry=registry(BATCH)) for _ in range(2)]
    key = (await hosts[0].run(BATCH, run_id="r")).waiting.wait_key
    found = await asyncio.gather(
        hosts[0].approve("r", key, actor_id="ann"), hosts[1].approve("r", key, actor_id="bob"), return_exceptions=True
    )
    assert sum(isinstance(one, StaleResumeError) for one in found) == 1, found
    assert set(inner.ran.values()) == {1}
    assert len(inner.ran) == 3


async def test_host_results_are_taken_when_they_name_exactly_the_asked_calls(async_world: World) -> None:
    inner = tools()
    rt = async_world.runtime(asking(inner))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    results = [{"call_id": f"c{n}", "success": True, "output": n} for n in (3, 1, 2)]
    for payload in ({"results": results[:2]}, {"mode": "executed", "results": [*results, results[0]]}):
        with pytest.raises(InvalidAnswer):
            await rt.decide("r", key, payload, workflow=BATCH)
    state = await rt.decide("r", key, {"results": results}, workflow=BATCH, actor_id="host")
    assert [one["output"] for one in state.output["result"]["results"]] == [1, 2, 3]
    assert state.output["result"]["results"][0]["meta"] == {"executed_by": "host", "by": "host"}
    assert not inner.ran


async def test_an_executor_may_forbid_host_results_and_edits(async_world: World) -> None:
    rt = async_world.runtime(asking(tools(), allow_host_results=False, allow_edits=False))
    key = (await rt.run(calling(WRITE), run_id="r")).waiting.wait_key
    (item,) = (await rt.list_approvals()).items
    assert (item["answers"]["results"], item["answers"]["arguments"]) == (False, False)
    with pytest.raises(InvalidAnswer, match="results of the host are not taken"):
        await rt.decide("r", key, {"results": [{"call_id": "c2", "success": True}]}, workflow=calling(WRITE))
    with pytest.raises(InvalidAnswer, match="may not be changed"):
        await rt.approve("r", key, arguments={"c2": {}}, workflow=calling(WRITE))


async def test_blocked_calls_are_merged_with_what_was_decided(async_world: World) -> None:
    workflow = calling(call("rm", "c0"), WRITE, RUN, allowed_tools=["write_file", "execute_command"])
    rt = async_world.runtime(asking(tools()))
    state = await rt.run(workflow, run_id="r")
    assert [one["call_id"] for one in state.waiting.details["tool_calls"]] == ["c2", "c3"]
    decision = {"decisions": {"c2": True, "c3": False}}
    state = await rt.decide("r", state.waiting.wait_key, decision, workflow=workflow)
    assert [one[:2] for one in brief(state.output["result"])] == [
        ("rm", False),
        ("write_file", True),
        ("execute_command", False),
    ]


async def test_what_is_approved_for_the_run_asks_no_more_there(async_world: World) -> None:
    inner = tools()

    def act(run: Any, ctx: Any) -> StepPlan:
        run.vars["round"] = run.vars.get("round", 0) + 1
        done = run.vars["round"] > 2
        return StepPlan(
            "act", Effect(EffectType.TOOL_CALLS, {"tool_calls": [WRITE]}, "result"), "end" if done else "act"
        )

    workflow = worlds.flow("act", act=act)
    rt = async_world.runtime(asking(inner))
    for run_id in ("r", "other"):
        state = await rt.run(workflow, run_id=run_id)
        assert state.status is RunStatus.WAITING, "another run asks for itself"
    state = await rt.approve(
        "r", (await rt.get_state("r")).waiting.wait_key, always=True, workflow=workflow, actor_id="ann"
    )
    assert (state.status, len(inner.ran)) == (RunStatus.COMPLETED, 3)
    (entry,) = state.vars["_runtime"]["tool_policy"]["approved_tools"]
    assert (entry["tool"], entry["by"]) == ("write_file", "ann")


async def test_an_override_that_cannot_be_read_goes_on_asking_whatever_was_approved(async_world: World) -> None:
    rt = async_world.runtime(asking(tools()))
    workflow = calling(READ)
    state = await rt.run(workflow, run_id="r", vars={"_runtime": {"tool_policy": "none"}})
    state = await rt.approve("r", state.waiting.wait_key, always=True, workflow=workflow)
    assert state.vars["_runtime"]["tool_policy"] == "none"


async def test_an_approved_batch_that_somebody_else_performs_waits_again_and_forgets_nothing(
    async_world: World,
) -> None:
    rt = async_world.runtime(asking(Passing("delegated")))
    first = await rt.run(BATCH, run_id="r")
    decision = {
        "decisions": {"c2": {"approved": True, "arguments": {"path": "z"}}, "c3": False},
        "always": ["write_file"],
    }
    state = await rt.decide("r", first.waiting.wait_key, decision, workflow=BATCH)
    wait = state.waiting
    assert (wait.reason, wait.details["mode"]) == (WaitReason.JOB, "delegated")
    assert wait.wait_key != first.waiting.wait_key
    assert [one["call_id"] for one in wait.details["tool_calls"]] == ["c1", "c2"]
    assert wait.details["tool_calls"][1]["arguments"] == {"path": "z"}
    assert (await rt.list_approvals()).items == [], "nobody is asked to approve any more"
    results = [{"call_id": f"c{n}", "success": True, "output": n} for n in (1, 2)]
    state = await rt.resume(workflow=BATCH, run_id="r", wait_key=wait.wait_key, payload={"results": results})
    assert brief(state.output["result"]) == [
        ("read_file", True, 1),
        ("write_file", True, 2),
        ("execute_command", False, "Denied by user"),
    ]
    assert state.vars["_runtime"]["tool_policy"]["approved_tools"][0]["tool"] == "write_file"
    check_ledger(state, await rt.get_ledger("r"))


async def test_a_process_without_an_executor_says_so_for_each_call(async_world: World) -> None:
    rt = async_world.runtime(asking(tools()))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    other = async_world.runtime(handlers(None))
    state = await other.approve("r", key, workflow=BATCH)
    assert {one["error"] for one in state.output["result"]["results"]} == {
        "ToolExecutor is not configured for approval resumes"
    }


async def test_the_executor_for_resume_performs_what_is_approved(world: World) -> None:
    asks, performs = tools(), tools()
    rt = world.runtime(asking(asks))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    rt.set_tool_executor_for_resume(ApprovalToolExecutor(delegate=performs))
    await rt.resume(workflow=BATCH, run_id="r", wait_key=key, payload={"approved": True})
    assert (len(asks.ran), len(performs.ran)) == (0, 3)
    with pytest.raises(TypeError, match="make_tool_calls_handler"):
        world.runtime({}).set_tool_executor_for_resume(performs)


async def test_executors_of_a_user_ask_and_are_approved_too(async_world: World) -> None:
    class Own:
        def __init__(self) -> None:
            self.inner = SyncTools(write_file=lambda path, text: "done")

        def execute(self, *, tool_calls: Any) -> Any:
            return {"mode": "approval_required", "wait_reason": "user", "wait_key": "own", "tool_calls": tool_calls}

        def execute_approved(self, *, tool_calls: Any) -> Any:
            return self.inner.execute(tool_calls=tool_calls)

    workflow = calling(WRITE)
    rt = async_world.runtime(handlers(Own()))
    assert (await rt.run(workflow, run_id="r")).waiting.wait_key == "own"
    state = await rt.approve("r", "own", workflow=workflow)
    assert brief(state.output["result"]) == [("write_file", True, "done")]


async def test_what_an_approved_tool_executor_raises_is_told_call_by_call(async_world: World) -> None:
    class Broken:
        def execute(self, *, tool_calls: Any) -> Any:
            raise ValueError("server gone")

    rt = async_world.runtime(asking(Broken()))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    state = await rt.approve("r", key, workflow=BATCH)
    assert {one["error"] for one in state.output["result"]["results"]} == {"Tool execution failed: server gone"}


async def test_secrets_in_arguments_are_not_shown_to_whoever_decides(async_world: World) -> None:
    seen: list[str] = []

    def pay(token: str) -> str:
        seen.append(token)
        return "paid"

    workflow = calling(call("pay", "c1", token={"$secret": "bank"}))
    rt = async_world.runtime(asking(Tools(pay=pay)), secrets={"bank": "sk-very-secret"})
    await rt.run(workflow, run_id="r")
    (item,) = (await rt.list_approvals()).items
    assert item["calls"][0]["arguments"] == {"token": {"$secret": "bank"}}
    state = await rt.approve("r", item["wait_key"], digest=item["digest"], workflow=workflow)
    assert (brief(state.output["result"]), seen) == ([("pay", True, "paid")], ["sk-very-secret"])
    assert "sk-very-secret" not in str(await rt.get_ledger("r"))


async def test_a_raw_secret_outlives_the_question_in_its_process_alone(async_world: World) -> None:
    seen: list[str] = []

    def pay(api_key: str) -> str:
        seen.append(api_key)
        return "paid"

    workflow = calling(call("pay", "c1", api_key="sk-very-secret"))
    rt = async_world.runtime(asking(Tools(pay=pay)))
    for run_id in ("here", "there"):
        await rt.run(workflow, run_id=run_id)
    keys = {item["run_id"]: item["wait_key"] for item in (await rt.list_approvals()).items}
    assert "sk-very-secret" not in str(await rt.get_state("here"))
    await rt.approve("here", keys["here"], workflow=workflow)
    assert seen == ["sk-very-secret"]
    state = await async_world.runtime(asking(Tools(pay=pay))).approve("there", keys["there"], workflow=workflow)
    assert (state.status, len(seen)) == (RunStatus.FAILED, 1)
    assert "was never stored" in state.error


async def test_an_approval_is_void_for_what_a_restore_asks_again(async_world: World) -> None:
    inner = tools()
    rt = async_world.runtime(asking(inner))
    state = await rt.run(BATCH, run_id="r")
    saved = await rt.snapshot_run("r", name="asked")
    await rt.approve("r", state.waiting.wait_key, workflow=BATCH, max_steps=0)
    await rt.restore("r", saved)
    again = await rt.tick(workflow=BATCH, run_id="r")
    assert again.status is RunStatus.WAITING
    assert again.waiting.wait_key != state.waiting.wait_key
    assert again.waiting.details["digest"] != state.waiting.details["digest"]
    with pytest.raises(StaleResumeError):
        await rt.approve("r", state.waiting.wait_key, workflow=BATCH)
    fork = await rt.fork("r")
    forked = await rt.tick(workflow=BATCH, run_id=fork)
    with pytest.raises(StaleResumeError):
        await rt.approve(fork, again.waiting.wait_key, workflow=BATCH)
    assert not inner.ran
    assert (await rt.approve(fork, forked.waiting.wait_key, workflow=BATCH)).status is RunStatus.COMPLETED


async def test_a_policy_that_asks_about_unknown_outcomes_keeps_the_decision(async_world: World) -> None:
    inner = tools()
    inner.gates = {"write_file": worlds.Gate()}
    policy = DefaultEffectPolicy(unknown_rules={"tool_calls": "ask"})
    rt = async_world.runtime(asking(inner), effect_policy=policy)
    state = await rt.run(BATCH, run_id="r")
    await rt.approve("r", state.waiting.wait_key, workflow=BATCH, max_steps=0)
    runs, ledgers = async_world.stores()
    ticking = asyncio.ensure_future(rt.tick(workflow=BATCH, run_id="r"))
    await worlds.eventually(lambda: inner.gates["write_file"].inside == 1)
    claimed = await rt.get_state("r")
    claimed.owner = "somebody who died"
    await runs.save(claimed)
    other = async_world.runtime(asking(tools()), effect_policy=policy, stores=(runs, ledgers))
    state = await other.tick(workflow=BATCH, run_id="r")
    assert state.waiting.choices == ["perform again", "fail the run"]
    with pytest.raises(InvalidAnswer):
        await other.approve("r", state.waiting.wait_key, workflow=BATCH)
    again = await other.resume(workflow=BATCH, run_id="r", wait_key=None, payload="perform again")
    assert again.status is RunStatus.COMPLETED
    inner.gates["write_file"].open()
    await ticking


async def test_an_executor_may_be_one_for_each_run(async_world: World) -> None:
    class Confined:
        def __init__(self, root: str = "") -> None:
            self.root = root

        def for_run(self, run: Any) -> Any:
            return Confined(run.vars["workspace_root"])

        def execute(self, *, tool_calls: Any) -> Any:
            return {
                "results": [{"call_id": one["call_id"], "success": True, "output": self.root} for one in tool_calls]
            }

    rt = async_world.runtime(asking(Confined()))
    await rt.run(calling(WRITE), run_id="r", vars={"workspace_root": "/here"})
    state = await rt.approve("r", (await rt.get_state("r")).waiting.wait_key, workflow=calling(WRITE))
    assert brief(state.output["result"]) == [("write_file", True, "/here")]
    state = await rt.run(calling(READ), run_id="s", vars={"workspace_root": "/there"})
    assert brief(state.output["result"]) == [("read_file", True, "/there")]


@pytest.mark.parametrize("mode", FaultyBackend.MODES)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "json"])
async def test_every_write_of_an_approval_may_fail(kind: str, mode: str, tmp_path: Path) -> None:
    edited = {"approved": True, "arguments": {"path": "z", "text": "y"}}
    decision = {"decisions": {"c2": edited, "c3": {"approved": False}}, "always": ["write_file"]}

    async def live(rt: Any) -> None:
        await rt.start(workflow=BATCH, run_id="r")
        while (state := await rt.tick(workflow=BATCH, run_id="r")).status is not RunStatus.COMPLETED:
            await rt.decide("r", state.waiting.wait_key, decision, workflow=BATCH, actor_id="ann", max_steps=0)

    at, fired = 0, True
    while fired:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        stores, inner = World("async", kind, folder, synchronous="NORMAL"), tools()
        rt, store = stores.faulty_runtime(asking(inner), at=at, mode=mode)
        try:
            await live(rt)
        except ProcessDied:
            rt = stores.runtime(asking(inner))
            await live(rt)
        state, ledger = await rt.get_state("r"), await rt.get_ledger("r")
        where = f"{mode} at write {at}"
        assert [one[1:] for one in brief(state.output["result"])] == [
            (True, "content of a"),
            (True, "wrote y to z"),
            (False, "Denied by user"),
        ], where
        check_ledger(state, ledger)
        assert [entry["by"] for entry in state.vars["_runtime"]["tool_policy"]["approved_tools"]] == ["ann"]
        assert len(inner.ran) == 2, f"{where}: each call has one id"
        assert max(inner.ran.values()) <= (2 if mode.startswith("die") else 1), where
        decided = [record for record in ledger if (record["effect"] or {}).get("type") == "resume"]
        assert len(decided) == 1, where
        fired = store.backend is not None and store.backend.fired
        await stores.close()
    assert at > 8


# -- the inbox


def registry(*workflows: Any) -> WorkflowRegistry:
    made = WorkflowRegistry()
    for workflow in workflows:
        made.register(workflow)
    return made


async def test_the_inbox_says_all_that_is_needed_to_decide(world: World) -> None:
    rt = world.runtime(asking(tools()), workflow_registry=registry(BATCH))
    await rt.run(BATCH, run_id="a", session_id="s1", actor_id="agent")
    await rt.run(BATCH, run_id="b", session_id="s2")
    await rt.run(worlds.one("ask_user", {"prompt": "?"}), run_id="question")
    page = await rt.list_approvals()
    assert [item["run_id"] for item in page.items] == ["b", "a"]
    item = page.items[1]
    assert {name: item[name] for name in ("session_id", "actor_id", "node_id", "expires_at", "asked_at")} == {
        "session_id": "s1",
        "actor_id": "agent",
        "node_id": "act",
        "expires_at": None,
        "asked_at": "2026-01-31T09:00:00.000000+00:00",
    }
    assert [one["name"] for one in item["calls"]] == ["read_file", "write_file", "execute_command"]
    assert item["answers"]["per_call"] == {"decisions": {"c2": True, "c3": True}, "digest": item["digest"]}
    assert [one["run_id"] for one in (await rt.list_approvals(session_id="s2")).items] == ["b"]
    assert [one["run_id"] for one in (await rt.list_approvals(run_id="a")).items] == ["a"]
    first = await rt.list_approvals(limit=1)
    assert [one["run_id"] for one in (await rt.list_approvals(limit=1, cursor=first.cursor)).items] == ["a"]
    with pytest.raises(InvalidCursor):
        await rt.list_approvals(cursor="x")
    for item, answer in zip(page.items, ("approve", "per_call"), strict=True):
        await rt.decide(item["run_id"], item["wait_key"], item["answers"][answer])
    assert (await rt.list_approvals()).items == []


async def test_the_inbox_of_a_folder_of_json_files_is_the_same(tmp_path: Path) -> None:
    files = World("async", "json", tmp_path, synchronous="NORMAL")
    rt = files.runtime(asking(tools()))
    await rt.run(BATCH, run_id="a")
    await rt.run(worlds.one("ask_user", {"prompt": "?"}), run_id="question")
    other = files.runtime()
    (item,) = (await other.list_approvals()).items
    assert (item["run_id"], len(item["calls"])) == ("a", 3)
    await other.deny("a", item["wait_key"])
    assert (await rt.list_approvals()).items == []
    await files.close()


async def test_whoever_knows_no_workflow_decides_and_somebody_else_goes_on(async_world: World) -> None:
    rt = async_world.runtime(asking(tools()))
    key = (await rt.run(BATCH, run_id="r")).waiting.wait_key
    front = async_world.runtime()
    state = await front.approve("r", key, actor_id="ann")
    assert (state.status, state.current_node) == (RunStatus.RUNNING, "act")
    with pytest.raises(StaleResumeError, match="waits for no decision"):
        await front.approve("r", key)
    assert (await rt.tick(workflow=BATCH, run_id="r")).status is RunStatus.COMPLETED


async def test_a_driver_goes_on_with_what_somebody_decided(async_world: World) -> None:
    rt = async_world.runtime(asking(tools()), workflow_registry=registry(BATCH), clock=SYSTEM_CLOCK)
    async with AsyncScheduler(rt, poll_interval_s=0.05):
        await rt.start(workflow=BATCH, run_id="r")
        while not (found := (await rt.list_approvals()).items):  # noqa: ASYNC110 - what is awaited stands in the store
            await asyncio.sleep(0.001)
        front = async_world.runtime(clock=SYSTEM_CLOCK)
        await front.approve("r", found[0]["wait_key"], digest=found[0]["digest"], actor_id="ann")
        while (await rt.get_state("r")).status is not RunStatus.COMPLETED:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_paused_approval_is_not_listed_and_a_job_is_none(async_world: World) -> None:
    rt = async_world.runtime(handlers(Passing("delegated")))
    await rt.run(BATCH, run_id="job")
    assert (await rt.list_approvals()).items == []
    assert [row["run_id"] for row in (await rt.find_waits(asks="results")).items] == ["job"]
    await rt.pause_run("job")
    assert (await rt.find_waits(asks="results")).items == []
    assert len((await rt.find_waits(asks="results", include_paused=True)).items) == 1
    with pytest.raises(ValueError, match="asks must be one of"):
        await rt.find_waits(asks="all")


async def test_a_run_that_waits_for_days_costs_nothing(sqlite_world: World) -> None:
    rt = sqlite_world.runtime(asking(tools()))
    await rt.run(BATCH, run_id="warm")
    gc.collect()
    before = len(asyncio.all_tasks())
    for number in range(scaled(30, 1000)):
        await rt.run(BATCH, run_id=f"r{number}")
    await sqlite_world.close()
    assert len(asyncio.all_tasks()) <= before
    sqlite_world.clock.advance(86_400 * 5)
    again = sqlite_world.runtime(asking(tools()))
    for item in (await again.list_approvals(limit=5)).items:
        state = await again.approve(item["run_id"], item["wait_key"], digest=item["digest"], workflow=BATCH)
        assert state.status is RunStatus.COMPLETED


# -- killed processes


def worker(folder: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tool_worker", str(folder), mode]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed_when(process: subprocess.Popen[str], said: set[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.discard(line.strip())
        if not said:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


def done(folder: Path) -> list[str]:
    notes = folder / "done"
    return [line.split()[0] for line in notes.read_text().splitlines()] if notes.exists() else []


def test_approve_then_crash_before_effect_result_and_in_the_middle_of_the_batch(tmp_path: Path) -> None:
    killed_when(worker(tmp_path, "ask"), {"waiting"})
    killed_when(worker(tmp_path, "decide"), {"decided"})
    assert done(tmp_path) == [], "the decision is durable, and nothing was performed"
    killed_when(worker(tmp_path, "stall"), {"slow", "landed c1", "landed c3"})
    first = done(tmp_path)
    assert sorted(name.rpartition("_")[2] for name in first) == ["1", "3"]
    last = worker(tmp_path, "go")
    out, _ = last.communicate(timeout=60)
    assert (last.returncode, out.splitlines()) == (0, ["slow", "landed c2", "completed"])
    second = done(tmp_path)[2:]
    assert [name.rpartition("_")[2] for name in second] == ["2"], "only what had not landed"
    assert {name.rpartition("_")[0] for name in first + second} == {first[0].rpartition("_")[0]}, "under the same key"
