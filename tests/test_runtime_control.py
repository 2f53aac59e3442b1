"""Holding, releasing and cancelling runs from outside, in every state that a run can be in."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from abstractruntime import (
    DefaultEffectPolicy,
    EffectOutcome,
    Request,
    RunStatus,
    StaleResumeError,
    WaitReason,
    WaitState,
)

from . import worlds
from .worlds import World, ask, flow, go, one, statuses

world = worlds.world

QUESTION = one("ask_user", {"prompt": "Continue?"})
EVENT = one("wait_event", {"wait_key": "door"})
TIMER = one("wait_until", {"until": "2026-01-31T10:00:00Z"})


def job(call: Any) -> EffectOutcome:
    wait = WaitState(WaitReason.JOB, "job", resume_to_node=call.next_node, result_key="result")
    return EffectOutcome.waiting(wait)


async def test_a_running_run_that_is_held_waits_for_its_release(world: World) -> None:
    rt = world.runtime()
    work = flow("a", a=go("a", "end"))
    await rt.start(workflow=work, run_id="r")
    state = await rt.pause_run("r", reason="lunch")
    assert state.paused
    assert state.vars["_runtime"]["control"] == {
        "paused": True,
        "paused_at": "2026-01-31T09:00:00.000000+00:00",
        "pause_reason": "lunch",
    }
    wait = state.waiting
    assert (state.status, wait.reason, wait.wait_key) == (RunStatus.WAITING, WaitReason.USER, "pause:r")
    assert (wait.resume_to_node, wait.prompt, wait.allow_free_text) == ("a", "Paused", False)
    assert wait.details == {"kind": "pause"}
    assert (await rt.tick(workflow=work, run_id="r")).revision == state.revision, "nothing moves a held run"
    world.clock.advance(5)
    state = await rt.resume_run("r")
    assert (state.status, state.waiting, state.current_node) == (RunStatus.RUNNING, None, "a"), "and it does not tick"
    assert state.vars["_runtime"]["control"] == {
        "paused_at": "2026-01-31T09:00:00.000000+00:00",
        "resumed_at": "2026-01-31T09:00:05.000000+00:00",
    }
    assert await rt.get_ledger("r") == [], "holding and releasing write no record"
    assert (await rt.tick(workflow=work, run_id="r")).status is RunStatus.COMPLETED


@pytest.mark.parametrize("work", [EVENT, TIMER, one("job")], ids=["event", "until", "job"])
async def test_a_wait_that_is_held_is_kept_and_only_flagged(world: World, work: Any) -> None:
    rt = world.runtime({"job": job})
    before = await rt.run(work, run_id="r")
    state = await rt.pause_run("r")
    assert state.paused
    assert "pause_reason" not in state.vars["_runtime"]["control"]
    assert (state.status, state.waiting) == (before.status, before.waiting)
    world.clock.advance(7200)
    assert (await rt.tick(workflow=work, run_id="r")).revision == state.revision, "not even a due timer moves it"
    state = await rt.resume_run("r")
    assert not state.paused
    assert (state.status, state.waiting) == (RunStatus.WAITING, before.waiting)


async def test_a_timer_that_came_due_while_held_fires_after_the_release(world: World) -> None:
    rt = world.runtime()
    await rt.run(TIMER, run_id="r")
    await rt.pause_run("r")
    world.clock.advance(7200)
    await rt.resume_run("r")
    assert (await rt.tick(workflow=TIMER, run_id="r")).status is RunStatus.COMPLETED


async def test_a_run_that_waits_for_a_person_is_not_held(world: World) -> None:
    rt = world.runtime()
    before = await rt.run(QUESTION, run_id="r")
    state = await rt.pause_run("r")
    assert not state.paused
    assert state.revision == before.revision


async def test_holding_twice_or_releasing_what_is_not_held_changes_nothing(world: World) -> None:
    rt = world.runtime()
    await rt.run(EVENT, run_id="r")
    assert (await rt.resume_run("r")).revision == (await rt.get_state("r")).revision
    first = await rt.pause_run("r", reason="one")
    second = await rt.pause_run("r", reason="two")
    assert first.revision == second.revision
    assert second.vars["_runtime"]["control"]["pause_reason"] == "one"


@pytest.mark.parametrize("way", ["complete", "fail", "cancel"])
async def test_an_ended_run_is_neither_held_nor_released_nor_cancelled(world: World, way: str) -> None:
    rt = world.runtime({"bad": lambda call: EffectOutcome.failed("no")})
    state = await rt.run({"complete": flow("end"), "fail": one("bad"), "cancel": EVENT}[way], run_id="r")
    if way == "cancel":
        state = await rt.cancel_run("r")
    for act in (rt.pause_run, rt.resume_run, rt.cancel_run):
        after = await act("r")
        assert (after.status, after.revision, after.error) == (state.status, state.revision, state.error)


@pytest.mark.parametrize("work", [flow("a", a=go("a", "end")), QUESTION, EVENT, TIMER], ids=["run", "ask", "ev", "t"])
async def test_cancel_ends_a_run_wherever_it_rests(world: World, work: Any) -> None:
    rt = world.runtime()
    await rt.start(workflow=work, run_id="r")
    if work.entry_node == "work":
        await rt.tick(workflow=work, run_id="r")
    state = await rt.cancel_run("r")
    assert (state.status, state.error, state.waiting, state.output) == (RunStatus.CANCELLED, "Cancelled", None, None)
    last = (await rt.get_ledger("r"))[-1]
    assert last["idempotency_key"] == "system:terminal_status:cancelled"
    assert last["effect"]["payload"]["payload"] == {"text": "cancelled"}
    assert (await rt.tick(workflow=work, run_id="r")).revision == state.revision
    with pytest.raises(StaleResumeError, match="Run is not waiting"):
        await rt.resume(workflow=work, run_id="r", wait_key=None, payload={})


async def test_cancel_keeps_the_reason_and_who_asked(world: World) -> None:
    rt = world.runtime()
    await rt.run(EVENT, run_id="r")
    state = await rt.cancel_run("r", reason="no longer needed", cancelled_by="ada")
    assert state.error == "no longer needed"
    last = (await rt.get_ledger("r"))[-1]
    assert (last["result"]["by"], last["result"]["reason"]) == ("ada", "no longer needed")


async def test_cancel_clears_the_hold(world: World) -> None:
    rt = world.runtime()
    await rt.run(EVENT, run_id="r")
    await rt.pause_run("r")
    state = await rt.cancel_run("r")
    assert state.status is RunStatus.CANCELLED
    assert not state.paused


async def test_cancel_ends_a_run_whose_next_attempt_was_due_later(world: World) -> None:
    policy = DefaultEffectPolicy(5, default_backoff_base=600.0, default_backoff_max=600.0)
    rt = world.runtime({"flaky": lambda call: EffectOutcome.failed("no")}, effect_policy=policy)
    assert (await rt.run(one("flaky"), run_id="r")).intent is not None
    state = await rt.cancel_run("r")
    assert (state.status, state.intent) == (RunStatus.CANCELLED, None)
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "flaky") == ["started", "failed"]  # an attempt that never began is not closed either
    assert "retry_at" in ledger[-2]["result"]


async def test_a_cancelled_outcome_of_a_handler_fails_a_run_that_nobody_cancelled(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.cancelled({"why": "gave up"})})
    state = await rt.run(one("host"))
    assert (state.status, state.error) == (RunStatus.FAILED, "Effect cancelled")


@pytest.mark.parametrize("kind", ["cancel", "pause"])
async def test_what_one_run_asks_of_another_is_answered_before_that_one_moves(
    world: World, kind: Literal["cancel", "pause"]
) -> None:
    def ask_other(call: Any) -> EffectOutcome:
        asked = Request(run_id="other", kind=kind, by=call.run.run_id, at=call.now, reason="told to")
        return EffectOutcome.completed("asked", requests=(asked,))

    rt = world.runtime({"ask_other": ask_other})
    work = flow("a", workflow_id="other", a=go("a", "end"))
    await rt.start(workflow=work, run_id="other")
    assert (await rt.run(one("ask_other"), run_id="asker")).output == {"result": "asked"}
    assert (await rt.get_state("other")).status is RunStatus.RUNNING, "only a run's own commits change its state"
    state = await rt.tick(workflow=work, run_id="other")
    if kind == "cancel":
        assert (state.status, state.error) == (RunStatus.CANCELLED, "told to")
        assert (await rt.get_ledger("other"))[-1]["result"]["by"] == "asker"
    else:
        assert state.paused
        assert state.vars["_runtime"]["control"]["pause_reason"] == "told to"
        await rt.resume_run("other")
        assert (await rt.tick(workflow=work, run_id="other")).status is RunStatus.COMPLETED


async def test_a_request_is_answered_by_whatever_commits_next(world: World) -> None:
    def cancel_other(call: Any) -> EffectOutcome:
        asked = Request(run_id="other", kind="cancel", by="asker", at=call.now)
        return EffectOutcome.completed(requests=(asked, asked))

    rt = world.runtime({"cancel_other": cancel_other})
    await rt.run(EVENT, run_id="other")
    await rt.run(one("cancel_other"), run_id="asker")
    with pytest.raises(StaleResumeError, match="Run is not waiting"):
        await rt.resume(workflow=EVENT, run_id="other", wait_key="door", payload="too late")
    assert (await rt.get_state("other")).status is RunStatus.CANCELLED


async def test_a_request_to_an_unknown_or_ended_run_is_passed_over(world: World) -> None:
    def cancel_both(call: Any) -> EffectOutcome:
        asked = [Request(run_id=name, kind="cancel", by="asker", at=call.now) for name in ("nobody", "ended")]
        return EffectOutcome.completed("ok", requests=tuple(asked))

    rt = world.runtime({"cancel_both": cancel_both})
    ended = await rt.run(flow("end"), run_id="ended")
    assert (await rt.run(one("cancel_both"))).status is RunStatus.COMPLETED
    assert (await rt.tick(workflow=flow("end"), run_id="ended")).revision == ended.revision


async def test_a_held_run_keeps_the_counter_of_its_effects(world: World) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed(call.key)})
    work = flow("a", a=ask("a", "host", {}, "first", "b"), b=ask("b", "host", {}, "second"))
    await rt.start(workflow=work, run_id="r")
    await rt.tick(workflow=work, run_id="r", max_steps=1)
    await rt.pause_run("r")
    await rt.resume_run("r")
    state = await rt.tick(workflow=work, run_id="r")
    assert state.vars["_runtime"]["effect_seq"] == 2
    assert state.output["first"] != state.output["second"]


async def test_who_held_a_run_and_who_let_it_go_is_kept(world: World) -> None:
    rt = world.runtime()
    await rt.start(workflow=one("answer_user", {"message": "hello"}), run_id="r")
    held = await rt.pause_run("r", reason="lunch", actor_id="ann")
    assert held.vars["_runtime"]["control"]["paused_by"] == "ann"
    control = (await rt.resume_run("r", actor_id="bob")).vars["_runtime"]["control"]
    assert (control["resumed_by"], "paused_by" in control) == ("bob", False)
