"""Events from end to end: who hears what, in what order, how often, and what the sender is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectOutcome,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    RunStatus,
    RuntimeConfig,
    StepPlan,
    StoreError,
    UnsafeValue,
    WorkflowSpec,
)
from abstractruntime.core.clock import iso
from abstractruntime.core.errors import InvalidId
from abstractruntime.core.models import Message

from . import worlds
from .worlds import World, ask, flow, one

world = worlds.world

ENVELOPE = {"event_id", "name", "scope", "session_id", "payload", "emitted_at", "emitter"}


@pytest.fixture(params=["memory", "sqlite", "json"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """`AsyncRuntime` on every kind of stores that keeps events."""
    made = World("async", request.param, tmp_path, synchronous="NORMAL")
    yield made
    await made.close()


def waiting_for(name: str, key: str = "got", **payload: Any) -> Any:
    return one("wait_event", {"name": name, **payload}, key)


def reader(times: int, name: str = "*", **payload: Any) -> Any:
    """A workflow that waits so many times, and keeps what it got."""

    def keep(run: RunState, ctx: Any) -> StepPlan:
        run.vars["heard"] = [*run.vars.get("heard", []), run.vars.pop("got")]
        if len(run.vars["heard"]) == times:
            return StepPlan("keep", next_node="end")
        return StepPlan("keep", Effect("wait_event", {"name": name, **payload}, "got"), "keep")

    return flow("wait", wait=ask("wait", "wait_event", {"name": name, **payload}, "got", "keep"), keep=keep)


def registry(*workflows: WorkflowSpec[Any]) -> dict[str, WorkflowSpec[Any]]:
    return {workflow.workflow_id: workflow for workflow in workflows}


async def test_an_event_reaches_a_run_that_waits_for_it_under_both_facades(world: World) -> None:
    rt = world.runtime()
    work = waiting_for("paid")
    state = await rt.run(work, run_id="r", session_id="s")
    assert state.waiting.wait_key == "evt:session:s:paid"
    told = await rt.emit_event(name="paid", session_id="s", payload={"sum": 3}, event_id="e1")
    assert told == {
        "wait_key": "evt:session:s:paid",
        "name": "paid",
        "scope": "session",
        "delivered": 1,
        "delivered_to": ["r"],
        "resumed": [{"run_id": "r", "status": "running"}],
    }
    state = await rt.get_state("r")
    assert (state.status, state.current_node) == (RunStatus.RUNNING, "end")
    envelope = state.vars["got"]
    assert envelope.keys() == ENVELOPE
    assert envelope["payload"] == {"sum": 3}
    assert (envelope["event_id"], envelope["name"], envelope["scope"]) == ("e1", "paid", "session")
    assert (envelope["session_id"], envelope["emitter"]) == ("s", {"source": "external"})
    record = (await rt.get_ledger("r"))[-1]
    assert record["result"] == {"resumed": True, "by": "event"}
    assert record["effect"]["payload"]["payload"] == envelope


async def test_an_event_that_was_sent_before_the_wait_is_not_lost(place: World) -> None:
    rt = place.runtime()
    work = reader(3, "paid")
    await rt.start(workflow=work, run_id="r", session_id="s")
    for number in range(3):
        told = await rt.emit_event(name="paid", session_id="s", payload={"n": number})
        assert told["delivered"] == 0
    state = await rt.tick(workflow=work, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert [event["payload"]["n"] for event in state.vars["heard"]] == [0, 1, 2]
    assert state.read == {"session:s": {"": 3}}


async def test_an_event_from_before_the_run_is_none_of_its_business(place: World) -> None:
    rt = place.runtime()
    await rt.emit_event(name="paid", session_id="s")
    place.clock.advance(1)
    state = await rt.run(waiting_for("paid"), run_id="r", session_id="s")
    assert state.status is RunStatus.WAITING
    told = await rt.emit_event(name="paid", session_id="s", payload=5)
    assert told["delivered_to"] == ["r"]
    assert (await rt.get_state("r")).vars["got"]["payload"] == {"value": 5}


async def test_each_name_has_an_order_of_its_own_and_the_wildcard_takes_what_is_left(place: World) -> None:
    rt = place.runtime()

    def listen(node: str, name: str, key: str, then: str) -> Any:
        return ask(node, "wait_event", {"name": name, "scope": "global"}, key, then)

    work = flow(
        "a",
        a=listen("a", "blue", "first", "b"),
        b=listen("b", "*", "second", "c"),
        c=listen("c", "blue", "third", "d"),
        d=listen("d", "*", "fourth", "end"),
    )
    await rt.start(workflow=work, run_id="r")
    for number, name in enumerate(["red", "blue", "green", "blue", "red"]):
        await rt.emit_event(name=name, scope="global", payload={"n": number})
    state = await rt.tick(workflow=work, run_id="r")
    order = [state.output[key]["payload"]["n"] for key in ("first", "second", "third", "fourth")]
    assert order == [1, 0, 3, 2]
    assert state.read == {"global:global": {"": 4}}


async def test_the_same_id_is_the_same_event(place: World) -> None:
    rt = place.runtime()
    work = reader(2, "paid")
    await rt.run(work, run_id="r", session_id="s")
    first = await rt.emit_event(name="paid", session_id="s", event_id="e1")
    again = await rt.emit_event(name="paid", session_id="s", event_id="e1")
    assert (first["delivered"], again["delivered"]) == (1, 0)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.status is RunStatus.WAITING, "the second wait got the first event again"
    assert (await rt.emit_event(name="paid", session_id="s", event_id="e1"))["delivered"] == 0
    assert (await rt.get_state("r")).status is RunStatus.WAITING
    elsewhere = await rt.emit_event(name="paid", session_id="s2", event_id="e1")
    assert elsewhere["wait_key"] == "evt:session:s2:paid"


@pytest.mark.parametrize(
    ("scope", "wait", "address"),
    [
        ("session", {}, {"session_id": "s"}),
        ("session", {"session_id": "other"}, {"session_id": "other"}),
        ("workflow", {}, {"workflow_id": "flow"}),
        ("run", {}, {"run_id": "r"}),
        ("global", {}, {}),
    ],
)
async def test_every_scope_reaches_its_listeners_and_no_others(
    place: World, scope: str, wait: dict[str, Any], address: dict[str, Any]
) -> None:
    rt = place.runtime()
    await rt.run(waiting_for("go", scope=scope, **wait), run_id="r", session_id="s")
    for other, ids in {
        "session": {"session_id": "x"},
        "workflow": {"workflow_id": "x"},
        "run": {"run_id": "x"},
    }.items():
        assert (await rt.emit_event(name="go", scope=other, **ids))["delivered"] == 0
    assert (await rt.emit_event(name="go", scope=scope, **address))["delivered_to"] == ["r"]


async def test_a_name_and_an_id_with_colons_are_told_apart(place: World) -> None:
    rt = place.runtime()
    state = await rt.run(waiting_for("order:paid"), run_id="r", session_id="tenant:7")
    assert state.waiting.wait_key == "evt:session:tenant:7:order:paid"
    assert (await rt.emit_event(name="7:order:paid", session_id="tenant"))["delivered"] == 0
    assert (await rt.emit_event(name="paid", session_id="tenant:7:order"))["delivered"] == 0
    assert (await rt.emit_event(name="order:paid", session_id="tenant:7"))["delivered"] == 1


async def test_a_plain_wait_key_listens_only_if_it_has_the_form_of_an_event(place: World) -> None:
    rt = place.runtime()
    plain, formed = one("wait_event", {"wait_key": "door"}), one("wait_event", {"wait_key": "evt:global:global:door"})
    await rt.run(plain, run_id="plain")
    await rt.run(formed, run_id="formed")
    assert (await rt.emit_event(name="door", scope="global"))["delivered_to"] == ["formed"]
    state = await rt.resume(workflow=plain, run_id="plain", wait_key="door", payload=1)
    assert state.output == {"result": 1}


async def test_an_answer_by_hand_leaves_the_event_to_the_next_wait(place: World) -> None:
    rt = place.runtime()
    work = reader(2, "paid")
    state = await rt.run(work, run_id="r", session_id="s")
    await rt.resume(workflow=work, run_id="r", wait_key=state.waiting.wait_key, payload={"by": "hand"})
    await rt.emit_event(name="paid", session_id="s", payload={"by": "event"})
    state = await rt.tick(workflow=work, run_id="r")
    assert [event.get("by") or event["payload"]["by"] for event in state.vars["heard"]] == ["hand", "event"]


async def test_an_event_sent_by_the_deadline_beats_it_however_late_anybody_looks(place: World) -> None:
    rt = place.runtime()
    work = waiting_for("paid", timeout_s=60)
    await rt.run(work, run_id="in-time", session_id="s")
    await rt.run(work, run_id="too-late", session_id="t")
    place.clock.advance(60)
    await rt._journal.send([sent_at(place, "session:s", "paid")])
    place.clock.advance(1)
    await rt._journal.send([sent_at(place, "session:t", "paid")])
    in_time = await rt.tick(workflow=work, run_id="in-time")
    late = await rt.tick(workflow=work, run_id="too-late")
    assert in_time.output["got"]["name"] == "paid"
    assert late.output["got"]["timed_out"] is True
    assert late.read == {}, "the event is there for the next wait"


def sent_at(place: World, stream: str, name: str) -> Message:
    at = iso(place.clock.now())
    data = {"name": name, "payload": {}}
    return Message(stream=stream, name=name, message_id=f"{name} at {at}", at=at, data=data)


async def test_a_paused_run_hears_when_it_goes_on(place: World) -> None:
    rt = place.runtime()
    work = waiting_for("paid")
    await rt.run(work, run_id="r", session_id="s")
    await rt.pause_run("r")
    assert (await rt.emit_event(name="paid", session_id="s"))["delivered"] == 0
    state = await rt.tick(workflow=work, run_id="r")
    assert (state.status, state.paused) == (RunStatus.WAITING, True)
    assert await rt._journal.backend.nudged() == []
    await rt.resume_run("r")
    assert await rt._journal.backend.nudged() == ["r"]
    assert (await rt.tick(workflow=work, run_id="r")).status is RunStatus.COMPLETED
    assert await rt._journal.backend.nudged() == []


async def test_timers_and_events_are_due_apart(place: World) -> None:
    rt = place.runtime()
    work = waiting_for("paid", timeout_s=3600)
    await rt.run(work, run_id="r", session_id="s")
    await rt._journal.send([sent_at(place, "session:s", "paid")])
    now = place.clock.now().isoformat()
    runs = rt.run_store
    assert await runs.list_due_wait_until(now_iso=now) == []
    assert (await rt.find_waits(due_before=now)).items == []
    assert await rt._journal.backend.nudged(stream="session:s") == ["r"]
    assert await rt._journal.backend.nudged(stream="session:t") == []


# -- the effect


def sender(payload: dict[str, Any]) -> Any:
    return flow("emit", workflow_id="sender", emit=ask("emit", EffectType.EMIT_EVENT, payload, "told"))


async def test_a_run_that_emits_is_told_whom_it_reached(place: World) -> None:
    listener = waiting_for("paid")
    send = sender({"name": "paid", "payload": {"sum": 3}})
    rt = place.runtime(workflow_registry=registry(listener))
    await rt.run(listener, run_id="r", session_id="s")
    state = await rt.run(send, run_id="e", session_id="s")
    assert state.output["told"] == {
        "wait_key": "evt:session:s:paid",
        "name": "paid",
        "scope": "session",
        "delivered": 1,
        "delivered_to": ["r"],
        "resumed": [{"run_id": "r", "status": "running"}],
    }
    heard = await rt.get_state("r")
    assert (heard.status, heard.current_node) == (RunStatus.RUNNING, "end")
    assert heard.vars["got"]["emitter"] == {"run_id": "e", "workflow_id": "sender", "node_id": "emit"}
    assert heard.vars["got"]["event_id"] == "e:0"


async def test_nobody_there_works_without_a_registry_and_names_who_listens_otherwise(place: World) -> None:
    rt = place.runtime()
    await rt.run(waiting_for("billed"), run_id="r", session_id="s")
    state = await rt.run(sender({"event_name": "paid"}), run_id="e", session_id="s")
    assert state.output["told"]["delivered"] == 0
    assert state.output["told"]["available_listeners_in_session"] == ["billed"]
    assert state.output["told"]["resumed"] == state.output["told"]["delivered_to"] == []


async def test_somebody_there_and_no_registry_fails_the_effect_and_sends_nothing(place: World) -> None:
    rt = place.runtime()
    await rt.run(waiting_for("paid"), run_id="r", session_id="s")
    state = await rt.run(sender({"name": "paid"}), run_id="e", session_id="s")
    assert state.status is RunStatus.FAILED
    assert "workflow_registry" in state.error
    assert (await rt.get_state("r")).status is RunStatus.WAITING
    with pytest.raises(ValueError, match="workflow_registry"):
        await rt.emit_event(name="paid", session_id="s", max_steps=5)
    assert await rt._journal.backend.nudged() == []


async def test_a_workflow_that_is_not_registered_is_skipped_and_hears_it_at_its_next_tick(place: World) -> None:
    listener = waiting_for("paid")
    rt = place.runtime(workflow_registry=registry())
    await rt.run(listener, run_id="r", session_id="s")
    state = await rt.run(sender({"name": "paid"}), run_id="e", session_id="s")
    skipped = {"run_id": "r", "status": "skipped", "error": "workflow_not_registered"}
    assert state.output["told"]["resumed"] == [skipped]
    assert state.output["told"]["delivered"] == 0
    assert (await rt.get_state("r")).status is RunStatus.WAITING
    assert (await rt.tick(workflow=listener, run_id="r")).status is RunStatus.COMPLETED


async def test_listeners_are_driven_as_far_as_max_steps_says(place: World) -> None:
    listener = waiting_for("paid")
    rt = place.runtime(workflow_registry=registry(listener))
    for run_id in ("a", "b"):
        await rt.run(listener, run_id=run_id, session_id="s")
    await rt.run(sender({"name": "paid", "max_steps": 1}), run_id="e", session_id="s")
    assert {(await rt.get_state(run_id)).status for run_id in ("a", "b")} == {RunStatus.COMPLETED}
    place.clock.advance(1)
    await rt.run(listener, run_id="c", session_id="s")
    told = await rt.emit_event(name="paid", session_id="s", max_steps=5)
    assert told["resumed"] == [{"run_id": "c", "status": "completed"}]


async def test_a_listener_whose_node_raises_is_its_own_affair(place: World) -> None:
    def broken(run: RunState, ctx: Any) -> StepPlan:
        raise RuntimeError("broken")

    listener = flow("wait", wait=ask("wait", "wait_event", {"name": "paid"}, "got", "broken"), broken=broken)
    rt = place.runtime(workflow_registry=registry(listener))
    await rt.run(listener, run_id="r", session_id="s")
    state = await rt.run(sender({"name": "paid", "max_steps": 5}), run_id="e", session_id="s")
    assert state.status is RunStatus.COMPLETED
    assert (await rt.get_ledger("r"))[-1]["error"] == "RuntimeError: broken"
    place.clock.advance(1)
    await rt.run(listener, run_id="r2", session_id="s")
    told = await rt.emit_event(name="paid", session_id="s", max_steps=5)
    assert told["resumed"] == [{"run_id": "r2", "status": "error", "error": "RuntimeError: broken"}]
    assert told["delivered"] == 0


async def test_a_long_chain_of_runs_that_wake_each_other_needs_no_deep_stack(tmp_path: Path) -> None:
    place = World("async", "memory", tmp_path)

    def emit(run: RunState, ctx: Any) -> StepPlan:
        payload = {"name": "next", "scope": "run", "run_id": f"r{run.vars['n'] + 1}", "max_steps": 5}
        return StepPlan("emit", Effect("emit_event", payload, "told"), "end")

    link = flow("wait", wait=ask("wait", "wait_event", {"name": "next", "scope": "run"}, "got", "emit"), emit=emit)
    rt = place.runtime(workflow_registry=registry(link))
    for number in range(300):
        await rt.run(link, run_id=f"r{number}", vars={"n": number})
    await rt.emit_event(name="next", scope="run", run_id="r0", max_steps=5)
    for number in range(300):
        assert (await rt.get_state(f"r{number}")).status is RunStatus.COMPLETED, number
    await place.close()


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"name": ""},
        {"name": "*"},
        {"name": "x", "scope": "galaxy"},
        {"name": "x", "max_steps": "many"},
        {"name": "x", "max_steps": 1e400},
    ],
)
async def test_an_emission_that_is_none_fails_the_effect(place: World, payload: dict[str, Any]) -> None:
    if payload.get("max_steps") == 1e400:
        payload["max_steps"] = [1]
    state = await place.runtime().run(sender(payload), run_id="e")
    assert state.status is RunStatus.FAILED
    assert state.error.startswith("emit_event ")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": 3}, InvalidId),
        ({"name": "*", "scope": "global"}, ValueError),
        ({"name": "x"}, ValueError),
        ({"name": "x", "scope": "galaxy"}, ValueError),
        ({"name": "x", "scope": "run"}, ValueError),
        ({"name": "\ud800", "scope": "global"}, InvalidId),
        ({"name": "x", "scope": "global", "payload": {"n": float("nan")}}, UnsafeValue),
        ({"name": "x", "scope": "global", "event_id": "\ud800"}, InvalidId),
        ({"name": "x", "session_id": 7}, InvalidId),
    ],
)
async def test_a_host_that_sends_nonsense_is_told_and_nothing_is_sent(
    place: World, options: dict[str, Any], error: type[Exception]
) -> None:
    rt = place.runtime()
    await rt.run(waiting_for("*", scope="global"), run_id="r")
    with pytest.raises(error):
        await rt.emit_event(**options)
    assert (await rt.get_state("r")).status is RunStatus.WAITING


@pytest.mark.parametrize("name", ["a/../b", "null\0byte", "ünïcode ☂", "a" * 5000, "line\nbreak", " padded "])
async def test_names_and_ids_are_no_paths(place: World, name: str) -> None:
    rt = place.runtime()
    await rt.run(waiting_for(name), run_id="r", session_id=name)
    assert (await rt.emit_event(name=name, session_id=name))["delivered_to"] == ["r"]


async def test_secrets_do_not_reach_the_stream(place: World) -> None:
    listener = waiting_for("paid")
    rt = place.runtime(workflow_registry=registry(listener), secrets={"bank": "sk-123"})
    await rt.run(listener, run_id="r", session_id="s")
    await rt.run(sender({"name": "paid", "payload": {"api_key": "sk-1", "n": 1}}), run_id="e", session_id="s")
    await rt.emit_event(name="paid", session_id="s", payload={"api_key": "sk-2"})
    assert (await rt.get_state("r")).vars["got"]["payload"] == {"api_key": {"$redacted": "api_key"}, "n": 1}


async def test_several_effects_of_one_step_may_emit(place: World) -> None:
    work = flow(
        "all",
        all=lambda run, ctx: StepPlan(
            "all",
            effects=[
                Effect("emit_event", {"name": "n", "scope": "global", "payload": {"n": n}}, f"t{n}") for n in (1, 2)
            ],
            next_node="end",
        ),
    )
    listener = reader(2, "n", scope="global")
    rt = place.runtime(workflow_registry=registry(listener))
    await rt.run(listener, run_id="r")
    state = await rt.run(work, run_id="e")
    assert state.status is RunStatus.COMPLETED
    state = await rt.tick(workflow=listener, run_id="r")
    assert sorted(event["payload"]["n"] for event in state.output["heard"]) == [1, 2]


async def test_a_stream_keeps_only_so_much_and_says_what_was_missed(place: World) -> None:
    rt = place.runtime(config=RuntimeConfig(max_stream_messages=10))
    work = reader(2, "n")
    await rt.start(workflow=work, run_id="late", session_id="s")
    await rt.run(work, run_id="r", session_id="s")
    for number in range(30):
        await rt.emit_event(name="n", session_id="s", payload={"n": number})
    state = await rt.tick(workflow=work, run_id="r")
    first, second = state.output["heard"]
    assert (first["payload"]["n"], "missed" in first) == (0, False)
    kept = second["payload"]["n"]
    assert 19 <= kept <= 20
    assert second["missed"] == kept - 1
    state = await rt.tick(workflow=work, run_id="late")
    assert state.output["heard"][0]["missed"] == 1, "one or more"
    assert "missed" not in state.output["heard"][1]


async def test_a_deleted_run_takes_its_own_stream_along(place: World) -> None:
    rt = place.runtime()
    work = waiting_for("go", scope="run")
    await rt.start(workflow=work, run_id="r")
    await rt.emit_event(name="go", scope="run", run_id="r")
    await rt.delete_run("r", force=True)
    state = await rt.run(work, run_id="r")
    assert state.status is RunStatus.WAITING


async def test_stores_that_do_not_commit_together_keep_no_events_and_say_so(tmp_path: Path) -> None:
    class Runs(InMemoryRunStore):
        def load(self, run_id: str) -> RunState | None:
            return super().load(run_id)

    said = sent_at(World("async", "memory", tmp_path), "global:global", "paid")
    handlers = {"host": lambda call: EffectOutcome.completed(1, messages=(said,))}
    async with AsyncRuntime(run_store=Runs(), ledger_store=InMemoryLedgerStore(), effect_handlers=handlers) as rt:
        state = await rt.run(one("host"))
        assert state.error == "Messages need stores that commit together"
        work = waiting_for("paid")
        state = await rt.run(work, run_id="r", session_id="s")
        with pytest.raises(StoreError, match="in memory"):
            await rt.emit_event(name="paid", session_id="s")
        emitted = await rt.run(sender({"name": "paid"}), run_id="e", session_id="s")
        assert emitted.status is RunStatus.FAILED
        assert "commit together" in (emitted.error or "")
        assert state.waiting is not None
        state = await rt.resume(workflow=work, run_id="r", wait_key=state.waiting.wait_key, payload=1)
        assert state.status is RunStatus.COMPLETED


async def test_a_fork_and_a_restore_hear_what_they_should(place: World) -> None:
    rt = place.runtime()
    work = reader(2, "n")
    await rt.run(work, run_id="r", session_id="s")
    bookmark = await rt.snapshot_run("r", name="before")
    await rt.emit_event(name="n", session_id="s", payload={"n": 1})
    await rt.tick(workflow=work, run_id="r")
    place.clock.advance(1)
    await rt.restore("r", bookmark)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.status is RunStatus.WAITING, "what it has read it does not read again"
    fork = await rt.fork("r", at=bookmark)
    await rt.emit_event(name="n", session_id="s", payload={"n": 2})
    for run_id in ("r", fork):
        state = await rt.tick(workflow=work, run_id=run_id)
        assert [event["payload"]["n"] for event in state.vars["heard"]] == [2]
