"""`tick`: what happens in which order, how runs end, where results go, and what the ledger then says."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime import Effect, EffectOutcome, EffectType, RunState, RunStatus, StepPlan, WaitReason
from abstractruntime.core.vars import get_temp

from . import worlds
from .worlds import World, ask, end, flow, go, one, statuses

world = worlds.world

WAIT_FIELDS = {
    "reason",
    "wait_key",
    "until",
    "resume_to_node",
    "result_key",
    "prompt",
    "choices",
    "allow_free_text",
    "details",
}


def outcome(result: Any) -> Any:
    """A handler that completes with this result."""
    return lambda call: EffectOutcome.completed(result)


def ends(output: dict[str, Any], effect: Effect | None = None) -> Any:
    return lambda run, ctx: StepPlan("e", effect=effect, complete_output=output)


async def test_ask_answer_end_writes_the_five_documented_records(world: World) -> None:
    def done(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("done", complete_output={"answer": run.vars["answer"]["text"]})

    work = flow("ask", ask=ask("ask", "ask_user", {"prompt": "Continue?"}, "answer", "done"), done=done)
    rt = world.runtime()
    run_id = await rt.start(workflow=work)
    state = await rt.tick(workflow=work, run_id=run_id)
    assert state.status is RunStatus.WAITING
    state = await rt.resume(workflow=work, run_id=run_id, wait_key=state.waiting.wait_key, payload={"text": "yes"})
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"answer": "yes"})
    ledger = await rt.get_ledger(run_id)
    assert [(r["status"], (r["effect"] or {}).get("type"), r["node_id"]) for r in ledger] == [
        ("started", "ask_user", "ask"),
        ("waiting", "ask_user", "ask"),
        ("completed", "resume", "ask"),
        ("completed", None, "done"),
        ("completed", "emit_event", "done"),
    ]
    started, waiting, resumed, completed, status = ledger
    assert started["step_id"] == waiting["step_id"] == f"{run_id}:0.1"
    assert started["ended_at"] is None
    assert started["effect"] == {"type": "ask_user", "payload": {"prompt": "Continue?"}, "result_key": "answer"}
    assert set(waiting["result"]["wait"]) == WAIT_FIELDS
    assert resumed["effect"]["payload"] == {
        "wait_reason": "user",
        "wait_key": waiting["result"]["wait"]["wait_key"],
        "resume_to_node": "done",
        "result_key": "answer",
        "payload": {"text": "yes"},
    }
    assert resumed["result"] == {"resumed": True}
    assert resumed["idempotency_key"] is None
    assert completed["result"] == {"completed": True, "output": {"answer": "yes"}}
    assert completed["idempotency_key"] == "system:completion:done"
    assert status["effect"]["payload"] == {
        "name": "abstract.status",
        "scope": "session",
        "payload": {"text": "completed"},
    }
    assert status["idempotency_key"] == "system:terminal_status:completed"
    assert {key: status["result"][key] for key in ("emitted", "name")} == {"emitted": True, "name": "abstract.status"}


async def test_an_empty_complete_output_ends_the_run(world: World) -> None:
    state = await world.runtime().run(flow("e", e=ends({})))
    assert (state.status, state.output) == (RunStatus.COMPLETED, {})


async def test_complete_output_beats_the_effect_beside_it(world: World) -> None:
    rt = world.runtime()  # without a handler, performing the effect would fail
    state = await rt.run(flow("e", e=ends({"x": 1}, Effect("never"))))
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"x": 1})
    assert statuses(await rt.get_ledger(state.run_id), "never") == []


async def test_an_effect_without_a_next_node_ends_the_run_with_its_result(world: World) -> None:
    rt = world.runtime({"host": outcome([1, 2])})
    state = await rt.run(one("host", key="deep.result", then=None))
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"success": True, "result": [1, 2]})
    assert state.vars["deep"] == {"result": [1, 2]}
    ledger = await rt.get_ledger(state.run_id)
    assert [r["idempotency_key"] for r in ledger[-2:]] == [
        "system:completion:work",
        "system:terminal_status:completed",
    ]


async def test_a_plan_without_an_effect_moves_the_run_and_writes_no_record(world: World) -> None:
    rt = world.runtime()
    work = flow("a", a=go("a", "b"), b=go("b", "end"))
    run_id = await rt.start(workflow=work)
    state = await rt.tick(workflow=work, run_id=run_id, max_steps=2)
    assert (state.status, state.current_node) == (RunStatus.RUNNING, "end")
    assert get_temp(state.vars) == {"prev_node_id": "b", "prev_next_node": "end"}
    assert await rt.get_ledger(run_id) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
async def test_max_steps_bounds_the_nodes_that_run_and_what_ran_is_saved(world: World, steps: int) -> None:
    ran: list[str] = []

    def node(name: str, then: str) -> Any:
        def plan(run: RunState, ctx: Any) -> StepPlan:
            ran.append(name)
            return StepPlan(name, Effect("host", {}, name), then)

        return plan

    work = flow("a", a=node("a", "b"), b=node("b", "c"), c=node("c", "d"), d=node("d", "end"))
    rt = world.runtime({"host": outcome("x")})
    run_id = await rt.start(workflow=work)
    state = await rt.tick(workflow=work, run_id=run_id, max_steps=steps)
    assert ran == ["a", "b", "c", "d"][:steps]
    assert state.status is RunStatus.RUNNING
    stored = await rt.get_state(run_id)
    assert (stored.current_node, stored.revision) == (state.current_node, state.revision)
    assert (await rt.tick(workflow=work, run_id=run_id)).status is RunStatus.COMPLETED
    assert ran == ["a", "b", "c", "d"]


@pytest.mark.parametrize("steps", [0, -1])
async def test_a_tick_of_no_steps_does_nothing(world: World, steps: int) -> None:
    rt = world.runtime()
    work = flow("a", a=go("a", "end"))
    run_id = await rt.start(workflow=work)
    state = await rt.tick(workflow=work, run_id=run_id, max_steps=steps)
    assert (state.status, state.current_node) == (RunStatus.RUNNING, "a")
    assert (await rt.get_state(run_id)).revision == 1


async def test_an_ended_or_waiting_run_is_returned_as_it_is(world: World) -> None:
    rt = world.runtime({"bad": lambda call: EffectOutcome.failed("no")})
    for work in (flow("end"), one("bad"), one("ask_user", {"prompt": "?"}), one("wait_event", {"wait_key": "k"})):
        state = await rt.run(work)
        again = await rt.tick(workflow=work, run_id=state.run_id)
        assert (again.status, again.revision) == (state.status, state.revision)
        assert state.status is not RunStatus.RUNNING


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("result", {}, {"result": 7}),
        ("a.b.c", {}, {"a": {"b": {"c": 7}}}),
        ("a.b", {"a": {"x": 1}}, {"a": {"x": 1, "b": 7}}),
        ("a.b", {"a": [1, 2]}, {"a": {"b": 7}}),
        ("a.0", {"a": [1, 2]}, {"a": {"0": 7}}),
        ("a", {"a": {"x": 1}}, {"a": 7}),
        ("", {"a": 1}, {"a": 1}),
        (None, {"a": 1}, {"a": 1}),
    ],
)
async def test_a_result_goes_to_its_dotted_key(world: World, key: str | None, before: Any, after: Any) -> None:
    state = await world.runtime({"host": outcome(7)}).run(one("host", key=key), vars=before)
    assert state.output == after


async def test_a_result_of_none_is_not_written_and_other_empty_ones_are(world: World) -> None:
    rt = world.runtime({"nothing": outcome(None), "empty": outcome({}), "zero": outcome(0)})
    assert (await rt.run(one("nothing"), vars={"result": "old"})).output == {"result": "old"}
    assert (await rt.run(one("empty"), vars={"result": "old"})).output == {"result": {}}
    assert (await rt.run(one("zero"), vars={"result": "old"})).output == {"result": 0}


async def test_the_plans_node_id_names_the_record_and_the_run_keeps_its_own_place(world: World) -> None:
    def other_name(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("label", Effect("ask_user", {"prompt": "?"}), "end")

    rt = world.runtime()
    state = await rt.run(flow("work", work=other_name))
    assert state.current_node == "work"
    assert {record["node_id"] for record in await rt.get_ledger(state.run_id)} == {"label"}


async def test_steps_are_numbered_and_the_counter_is_raised_by_what_lands(world: World) -> None:
    rt = world.runtime({"host": outcome(1)})
    work = flow("a", a=ask("a", "host", {}, None, "b"), b=go("b", "c"), c=ask("c", "answer_user", {"message": "hi"}))
    state = await rt.run(work, run_id="r")
    ledger = await rt.get_ledger("r")
    assert [r["step_id"] for r in ledger[:4]] == ["r:0.1", "r:0.1", "r:1.1", "r:1.1"]
    assert state.vars["_runtime"]["effect_seq"] == 2
    assert len({r["idempotency_key"] for r in ledger[:4]}) == 2


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        ({"input_tokens": 5, "prompt_tokens": 6, "total_tokens": 7}, 5),
        ({"prompt_tokens": 6, "total_tokens": 7}, 6),
        ({"total_tokens": 7}, 7),
        ({"total_tokens": "many"}, 0),
        (None, 0),
    ],
)
async def test_a_model_call_notes_the_tokens_it_used(world: World, usage: Any, used: int) -> None:
    rt = world.runtime({EffectType.LLM_CALL: outcome({"content": "hi", "usage": usage})})
    state = await rt.run(one("llm_call"))
    assert state.vars["_limits"]["estimated_tokens_used"] == used


async def test_a_failing_effect_fails_the_run_and_says_why(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.failed("the door is shut")})
    state = await rt.run(one("host"))
    assert (state.status, state.current_node, state.waiting) == (RunStatus.FAILED, "work", None)
    assert "the door is shut" in state.error
    ledger = await rt.get_ledger(state.run_id)
    assert statuses(ledger, "host") == ["started", "failed"]
    assert ledger[0]["step_id"] == ledger[1]["step_id"]
    assert ledger[1]["error"] == "the door is shut"
    assert ledger[-1]["idempotency_key"] == "system:terminal_status:failed"
    assert ledger[-1]["effect"]["payload"]["payload"] == {"text": "failed"}


async def test_a_past_instant_is_no_wait(world: World) -> None:
    state = await world.runtime().run(one("wait_until", {"until": "2026-01-31T08:59:59Z"}))
    assert state.output == {"result": {"until": "2026-01-31T08:59:59Z", "ready": True}}


async def test_a_timer_wakes_at_its_instant_and_writes_its_result_and_a_record(world: World) -> None:
    rt = world.runtime()
    work = one("wait_until", {"until": "2026-01-31T10:00:00Z"})
    state = await rt.run(work, run_id="r")
    assert (state.status, state.waiting.reason) == (RunStatus.WAITING, WaitReason.UNTIL)
    assert state.waiting.wait_key is None
    assert state.waiting.until == "2026-01-31T10:00:00.000000+00:00"
    world.clock.advance(3599)
    assert (await rt.tick(workflow=work, run_id="r")).revision == state.revision
    world.clock.advance(1)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.output == {"result": {"until": "2026-01-31T10:00:00.000000+00:00", "ready": True}}
    wake = next(r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "resume")
    assert wake["result"] == {"resumed": True, "by": "timer"}


async def test_a_node_may_use_the_context_given_to_the_runtime(world: World) -> None:
    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("a", complete_output={"ctx": ctx if isinstance(ctx, str) else ctx.now_iso()})

    assert (await world.runtime(context="mine").run(flow("a", a=node))).output == {"ctx": "mine"}
    assert (await world.runtime().run(flow("a", a=node))).output == {"ctx": "2026-01-31T09:00:00.000000+00:00"}


async def test_a_state_handed_out_is_not_aliased_with_what_is_stored(world: World) -> None:
    rt = world.runtime()
    state = await rt.run(one("ask_user", {"prompt": "?"}), run_id="r", vars={"list": [1]})
    state.vars["list"].append(2)
    state.waiting.prompt = "changed"
    one_copy, another = await rt.get_state("r"), await rt.get_state("r")
    one_copy.vars["list"].append(3)
    assert another.vars["list"] == [1]
    assert another.waiting.prompt == "?"


async def test_the_ledger_agrees_with_the_state_about_its_length(world: World) -> None:
    rt = world.runtime({"host": outcome(1)})
    state = await rt.run(flow("a", a=ask("a", "host", {}, "x", "b"), b=ask("b", "host", {}, "y"), c=end))
    assert state.records == len(await rt.get_ledger(state.run_id)) == 6
