"""`resume`: which answer reaches which wait, what it writes, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime import (
    EffectOutcome,
    InvalidAnswer,
    RunPaused,
    RunStatus,
    StaleResumeError,
    UnsafeValue,
    WaitReason,
    WaitState,
)

from . import worlds
from .worlds import World, ask, flow, one, statuses

world = worlds.world

QUESTION = one("ask_user", {"prompt": "Continue?"})
CHOICE = one("ask_user", {"prompt": "Go on?", "choices": ["yes", "no"], "allow_free_text": False})
EVENT = one("wait_event", {"wait_key": "door"})
TIMER = one("wait_until", {"until": "2026-02-01T00:00:00Z"})
TWO_QUESTIONS = flow(
    "first",
    first=ask("first", "ask_user", {"prompt": "One?"}, "one", "second"),
    second=ask("second", "ask_user", {"prompt": "Two?"}, "two"),
)


async def waiting(rt: Any, work: Any, run_id: str = "r") -> str:
    """Drive a run to its wait; returns the wait's key."""
    state = await rt.run(work, run_id=run_id)
    assert state.status is RunStatus.WAITING
    key: str = state.waiting.wait_key
    return key


async def test_an_answer_is_written_at_the_result_key_and_the_run_goes_on_behind_the_wait(world: World) -> None:
    asked = []

    def work_node(run: Any, ctx: Any) -> Any:
        asked.append(run.run_id)
        return ask("work", "ask_user", {"prompt": "?"}, "deep.answer")(run, ctx)

    rt = world.runtime()
    work = flow("work", work=work_node)
    key = await waiting(rt, work)
    state = await rt.resume(workflow=work, run_id="r", wait_key=key, payload={"text": "yes"})
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"deep": {"answer": {"text": "yes"}}})
    assert asked == ["r"], "the waiting node is not run again"


@pytest.mark.parametrize("payload", ["yes", 7, 1.5, True, [1, {"a": None}], {}, {"text": "ä€😀"}])
async def test_any_json_value_is_an_answer(world: World, payload: Any) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    state = await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload=payload)
    assert state.output == {"result": payload}


async def test_an_answer_of_none_writes_nothing(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    assert (await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload=None)).output == {}


async def test_resume_without_steps_only_commits_the_answer(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    state = await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload="yes", max_steps=0)
    assert (state.status, state.current_node, state.vars["result"]) == (RunStatus.RUNNING, "end", "yes")
    assert (await rt.get_state("r")).revision == state.revision
    assert (await rt.tick(workflow=QUESTION, run_id="r")).status is RunStatus.COMPLETED


async def test_resume_goes_on_for_as_many_steps_as_it_is_given(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, TWO_QUESTIONS)
    state = await rt.resume(workflow=TWO_QUESTIONS, run_id="r", wait_key=key, payload=1, max_steps=1)
    assert state.waiting.prompt == "Two?"


@pytest.mark.parametrize("work", [QUESTION, EVENT, TIMER], ids=["user", "event", "timer"])
async def test_no_key_answers_whatever_waits(world: World, work: Any) -> None:
    rt = world.runtime()
    await waiting(rt, work)
    state = await rt.resume(workflow=work, run_id="r", wait_key=None, payload={"x": 1})
    assert state.output == {"result": {"x": 1}}


async def test_a_timer_resumes_early_with_its_own_key_and_with_no_other(world: World) -> None:
    rt = world.runtime()
    state = await rt.run(TIMER, run_id="r")
    with pytest.raises(StaleResumeError, match=r"wait_key mismatch: expected .*, got 'other'"):
        await rt.resume(workflow=TIMER, run_id="r", wait_key="other", payload={})
    own = state.waiting.details["wait_id"]
    state = await rt.resume(workflow=TIMER, run_id="r", wait_key=own, payload={"early": True})
    assert state.output == {"result": {"early": True}}


async def test_a_key_that_is_not_the_waits_is_stale_and_changes_nothing(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    before = await rt.get_state("r")
    with pytest.raises(StaleResumeError, match="wait_key mismatch") as caught:
        await rt.resume(workflow=QUESTION, run_id="r", wait_key="wrong", payload="yes")
    assert isinstance(caught.value, ValueError)
    assert key in str(caught.value)
    assert "'wrong'" in str(caught.value)
    assert (await rt.get_state("r")).revision == before.revision


async def test_a_run_that_does_not_wait_takes_no_answer(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload="yes")
    with pytest.raises(ValueError, match="Run is not waiting") as caught:
        await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload="again")
    assert isinstance(caught.value, StaleResumeError)
    await rt.start(workflow=QUESTION, run_id="fresh")
    with pytest.raises(StaleResumeError, match="Run is not waiting"):
        await rt.resume(workflow=QUESTION, run_id="fresh", wait_key=None, payload="yes")


async def test_a_paused_run_takes_no_answer(world: World) -> None:
    rt = world.runtime()
    await waiting(rt, EVENT)
    await rt.pause_run("r")
    with pytest.raises(ValueError, match="Run is paused") as caught:
        await rt.resume(workflow=EVENT, run_id="r", wait_key="door", payload={})
    assert isinstance(caught.value, RunPaused)
    await rt.resume_run("r")
    assert (await rt.resume(workflow=EVENT, run_id="r", wait_key="door", payload=1)).output == {"result": 1}


async def test_a_held_running_run_is_not_answered_by_its_stand_in_wait(world: World) -> None:
    rt = world.runtime()
    await rt.start(workflow=QUESTION, run_id="r")
    state = await rt.pause_run("r")
    with pytest.raises(RunPaused, match="Run is paused"):
        await rt.resume(workflow=QUESTION, run_id="r", wait_key=state.waiting.wait_key, payload={})


async def test_a_wait_without_a_way_on_ends_the_run_with_the_answer(world: World) -> None:
    rt = world.runtime()
    work = one("ask_user", {"prompt": "?"}, then=None)
    key = await waiting(rt, work)
    state = await rt.resume(workflow=work, run_id="r", wait_key=key, payload={"text": "yes"})
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"success": True, "result": {"text": "yes"}})
    assert state.vars["result"] == {"text": "yes"}
    completed, status = (await rt.get_ledger("r"))[-2:]
    assert completed["result"] == {
        "completed": True,
        "via": "resume",
        "wait_reason": "user",
        "wait_key": key,
        "output": {"success": True, "result": {"text": "yes"}},
    }
    assert status["idempotency_key"] == "system:terminal_status:completed"


async def test_resume_to_node_of_the_payload_beats_the_plans_next_node(world: World) -> None:
    work = flow(
        "work",
        work=ask("work", "wait_event", {"wait_key": "k", "resume_to_node": "other"}, "result", "end"),
        other=ask("other", "answer_user", {"message": "other"}, "said"),
    )
    rt = world.runtime()
    await waiting(rt, work)
    state = await rt.resume(workflow=work, run_id="r", wait_key="k", payload=1)
    assert state.output["said"]["message"] == "other"


@pytest.mark.parametrize(
    "answer", ["yes", {"choice": "yes"}, {"text": "yes"}, {"response": "yes"}, {"value": "yes", "note": "really"}]
)
async def test_choices_bind_when_free_text_is_not_allowed(world: World, answer: Any) -> None:
    rt = world.runtime()
    key = await waiting(rt, CHOICE)
    state = await rt.resume(workflow=CHOICE, run_id="r", wait_key=key, payload=answer)
    assert state.output == {"result": answer}


@pytest.mark.parametrize("answer", ["maybe", {"choice": "maybe"}, {"choice": "maybe", "text": "yes"}, {}, None, 1])
async def test_an_answer_that_is_no_choice_is_refused_and_the_wait_stays(world: World, answer: Any) -> None:
    rt = world.runtime()
    key = await waiting(rt, CHOICE)
    with pytest.raises(InvalidAnswer, match=r"not one of the choices \['yes', 'no'\]"):
        await rt.resume(workflow=CHOICE, run_id="r", wait_key=key, payload=answer)
    state = await rt.get_state("r")
    assert (state.status, state.waiting.wait_key) == (RunStatus.WAITING, key)
    assert (await rt.resume(workflow=CHOICE, run_id="r", wait_key=key, payload="no")).output == {"result": "no"}


async def test_choices_are_a_suggestion_when_free_text_is_allowed(world: World) -> None:
    rt = world.runtime()
    work = one("ask_user", {"prompt": "?", "choices": ["a"]})
    key = await waiting(rt, work)
    assert (await rt.resume(workflow=work, run_id="r", wait_key=key, payload="b")).output == {"result": "b"}


async def test_an_answer_that_json_cannot_carry_is_refused_and_the_wait_stays(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    with pytest.raises(UnsafeValue, match=r"payload\.x\[1\]"):
        await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload={"x": [1, float("inf")]})
    assert (await rt.get_state("r")).status is RunStatus.WAITING


async def test_the_same_resume_id_delivers_once(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, TWO_QUESTIONS)
    answer = {"workflow": TWO_QUESTIONS, "run_id": "r", "wait_key": key, "payload": "a", "resume_id": "m1"}
    first = await rt.resume(**answer)
    again = await rt.resume(**answer)
    assert first.waiting.prompt == again.waiting.prompt == "Two?"
    assert "two" not in again.vars
    assert statuses(await rt.get_ledger("r"), "resume") == ["completed"]
    with pytest.raises(StaleResumeError, match="has delivered another answer"):
        await rt.resume(**{**answer, "payload": "b"})


async def test_the_same_resume_id_is_quiet_about_a_run_that_has_ended_meanwhile(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    answer = {"workflow": QUESTION, "run_id": "r", "wait_key": key, "payload": "a", "resume_id": "m1"}
    await rt.resume(**answer)
    assert (await world.runtime().resume(**answer)).status is RunStatus.COMPLETED


async def test_who_answered_is_kept_in_the_record(world: World) -> None:
    rt = world.runtime()
    key = await waiting(rt, QUESTION)
    await rt.resume(workflow=QUESTION, run_id="r", wait_key=key, payload="yes", actor_id="ada")
    record = next(r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "resume")
    assert record["actor_id"] == "ada"


async def test_a_handlers_job_wait_is_answered_by_its_key(world: World) -> None:
    def submit(call: Any) -> EffectOutcome:
        wait = WaitState(WaitReason.JOB, f"job:{call.key}", resume_to_node=call.next_node, result_key="result")
        return EffectOutcome.waiting(wait)

    rt = world.runtime({"submit": submit})
    work = one("submit")
    key = await waiting(rt, work)
    assert key.startswith("job:")
    assert (await rt.resume(workflow=work, run_id="r", wait_key=key, payload={"done": 1})).output == {
        "result": {"done": 1}
    }


async def test_a_deadline_answers_for_a_person_who_stays_silent(world: World) -> None:
    rt = world.runtime()
    work = one("ask_user", {"prompt": "Anyone?", "timeout_s": 60})
    key = await waiting(rt, work)
    world.clock.advance(60)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.output == {"result": {"timed_out": True, "until": "2026-01-31T09:01:00.000000+00:00"}}
    with pytest.raises(StaleResumeError, match="Run is not waiting"):
        await rt.resume(workflow=work, run_id="r", wait_key=key, payload="too late")
