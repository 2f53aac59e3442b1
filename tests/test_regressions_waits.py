"""Answers, timers and deadlines that went astray elsewhere: each wait is answered once, by what was meant for it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectOutcome,
    RunState,
    RunStatus,
    StaleResumeError,
    StepPlan,
    WaitReason,
)

from . import worlds
from .scale import scaled
from .spies import WatchedRunStore
from .worlds import World, ask, flow, one, statuses

world = worlds.world
async_world = worlds.async_world


def ask_three_times(run: RunState, ctx: Any) -> StepPlan:
    """The same question at the same node, again and again."""
    run.vars["n"] = run.vars.get("n", 0) + 1
    key = f"answer{run.vars['n']}"
    return StepPlan("ask", Effect("ask_user", {"prompt": "More?"}, key), "ask" if run.vars["n"] < 3 else "end")


def wait_twice(run: RunState, ctx: Any) -> StepPlan:
    """The same event with the same deadline rule, twice."""
    run.vars["n"] = run.vars.get("n", 0) + 1
    effect = Effect("wait_event", {"wait_key": "door", "timeout_s": 60}, f"event{run.vars['n']}")
    return StepPlan("wait", effect, "wait" if run.vars["n"] < 2 else "end")


async def test_a_double_answer_to_question_one_never_answers_question_two(world: World) -> None:
    rt = world.runtime()
    work = flow("ask", ask=ask_three_times)
    first = (await rt.run(work, run_id="r")).waiting.wait_key
    second = (await rt.resume(workflow=work, run_id="r", wait_key=first, payload="one")).waiting.wait_key
    assert first != second
    assert first.startswith("user:r:ask:")
    with pytest.raises(StaleResumeError, match="wait_key mismatch"):
        await rt.resume(workflow=work, run_id="r", wait_key=first, payload="one, clicked again")
    state = await rt.resume(workflow=work, run_id="r", wait_key=second, payload="two")
    state = await rt.resume(workflow=work, run_id="r", wait_key=state.waiting.wait_key, payload="three")
    assert state.output == {"n": 3, "answer1": "one", "answer2": "two", "answer3": "three"}


async def test_resume_of_many_threads_at_once_delivers_once(world: World) -> None:
    rt = world.runtime()
    work = flow("ask", ask=ask_three_times)
    key = (await rt.run(work, run_id="r")).waiting.wait_key
    answers = [rt.resume(workflow=work, run_id="r", wait_key=key, payload=n) for n in range(24)]
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    delivered = [outcome for outcome in outcomes if isinstance(outcome, RunState)]
    assert len(delivered) == 1
    assert all(isinstance(o, StaleResumeError) for o in outcomes if not isinstance(o, RunState))
    assert delivered[0].waiting is not None
    assert delivered[0].waiting.result_key == "answer2"
    assert statuses(await rt.get_ledger("r"), "resume") == ["completed"]


async def test_resume_of_many_processes_at_once_with_one_resume_id_delivers_once(world: World) -> None:
    work = flow("ask", ask=ask_three_times)
    key = (await world.runtime().run(work, run_id="r")).waiting.wait_key
    answer = {"workflow": work, "run_id": "r", "wait_key": key, "payload": "yes", "resume_id": "m1"}
    states = await asyncio.gather(*(world.runtime().resume(**answer) for _ in range(8)))
    assert {state.waiting.result_key for state in states} == {"answer2"}
    assert statuses(await world.runtime().get_ledger("r"), "resume") == ["completed"]


async def test_event_and_timeout_race_exactly_one_wins(world: World, seed: int) -> None:
    rng = random.Random(seed)
    work = flow("wait", wait=wait_twice)
    rt, other = world.runtime(), world.runtime()
    for run_id in (f"r{n}" for n in range(scaled(12, 200))):
        wait = (await rt.run(work, run_id=run_id)).waiting
        world.clock.advance(60)
        event = {"workflow": work, "run_id": run_id, "wait_key": wait.details["wait_id"], "payload": "came"}
        race = [rt.tick(workflow=work, run_id=run_id), other.resume(**event)]
        if rng.random() < 0.5:
            race.reverse()
        outcomes = await asyncio.gather(*race, return_exceptions=True)
        state = await rt.get_state(run_id)
        lost = [outcome for outcome in outcomes if isinstance(outcome, StaleResumeError)]
        assert state.vars["event1"] == ({"timed_out": True, "until": wait.until} if lost else "came")
        assert statuses(await rt.get_ledger(run_id), "resume") == ["completed"]
        assert (state.status, state.waiting.result_key) == (RunStatus.WAITING, "event2")
        assert all(isinstance(outcome, RunState) for outcome in outcomes if outcome not in lost)


async def test_a_deadline_that_passed_beats_an_answer_by_the_identity_of_the_wait(world: World) -> None:
    rt = world.runtime()
    work = flow("wait", wait=wait_twice)
    first = (await rt.run(work, run_id="r")).waiting.details["wait_id"]
    world.clock.advance(60)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.vars["event1"] == {"timed_out": True, "until": "2026-01-31T09:01:00.000000+00:00"}
    with pytest.raises(StaleResumeError):
        await rt.resume(workflow=work, run_id="r", wait_key=first, payload="meant for the first")
    assert "event2" not in (await rt.get_state("r")).vars


async def test_timeout_then_rewait_same_name_has_an_identity_and_a_deadline_of_its_own(world: World) -> None:
    rt = world.runtime()
    work = flow("wait", wait=wait_twice)
    first = (await rt.run(work, run_id="r")).waiting
    world.clock.advance(61)
    second = (await rt.tick(workflow=work, run_id="r")).waiting
    assert first.wait_key == second.wait_key == "door", "the author's key stays as documented"
    assert first.details["wait_id"] != second.details["wait_id"]
    assert second.until == "2026-01-31T09:02:01.000000+00:00"
    assert (await rt.tick(workflow=work, run_id="r")).waiting == second, "the first deadline does not end the second"
    state = await rt.resume(workflow=work, run_id="r", wait_key=second.details["wait_id"], payload="came")
    assert state.output["event2"] == "came"


async def test_each_timer_fires_once_although_the_clock_jumps_back(world: World) -> None:
    rt = world.runtime()
    work = flow(
        "a",
        a=ask("a", "wait_until", {"until": "2026-01-31T10:00:00Z"}, "first", "b"),
        b=ask("b", "wait_until", {"until": "2026-01-31T11:00:00Z"}, "second", "c"),
        c=ask("c", "ask_user", {"prompt": "?"}, "third"),
    )
    await rt.run(work, run_id="r")
    for jump in (3600, -1800, 1799, -3600):
        world.clock.advance(jump)
        state = await rt.tick(workflow=work, run_id="r")
        assert state.current_node == "b"
    for jump in (7201, -86_400, 86_400, 86_400):
        world.clock.advance(jump)
        state = await rt.tick(workflow=work, run_id="r")
        assert state.current_node == "c"
    fired = [r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "resume"]
    assert [r["effect"]["payload"]["result_key"] for r in fired] == ["first", "second"]


async def test_a_retry_that_is_due_happens_once_although_the_clock_jumps_back(world: World) -> None:
    calls: list[int] = []

    def flaky(call: Any) -> EffectOutcome:
        calls.append(call.attempt)
        return EffectOutcome.failed("no") if call.attempt == 1 else EffectOutcome.completed("yes")

    policy = DefaultEffectPolicy(3, default_backoff_base=600.0, default_backoff_max=600.0)
    rt = world.runtime({"host": flaky}, effect_policy=policy, max_inline_backoff=0.0)
    work = one("host")
    await rt.run(work, run_id="r")
    for jump in (-3600, 3600, 598):
        world.clock.advance(jump)
        await rt.tick(workflow=work, run_id="r")
    assert calls == [1]
    world.clock.advance(2)
    assert (await rt.tick(workflow=work, run_id="r")).output == {"result": "yes"}
    world.clock.advance(-7200)
    await rt.tick(workflow=work, run_id="r")
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("until", "stored"),
    [
        ("2026-01-31T10:00:00Z", "2026-01-31T10:00:00.000000+00:00"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000000+00:00"),
        ("2026-01-31T04:30:00-05:30", "2026-01-31T10:00:00.000000+00:00"),
        ("2026-01-31T10:00:00", "2026-01-31T10:00:00.000000+00:00"),
        ("2026-01-31 10:00", "2026-01-31T10:00:00.000000+00:00"),
        ("2026-01-31T10:00:00.25+00:00", "2026-01-31T10:00:00.250000+00:00"),
        ("2026-02-01", "2026-02-01T00:00:00.000000+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
async def test_an_instant_with_any_offset_is_stored_as_utc(world: World, until: str, stored: str) -> None:
    for work in (one("wait_until", {"until": until}), one("wait_event", {"wait_key": "k", "until": until})):
        state = await world.runtime().run(work)
        assert (state.status, state.waiting.until) == (RunStatus.WAITING, stored)


@pytest.mark.parametrize(
    "until", ["2026-01-31T10:59:59+02:00", "2026-01-31T09:00:00Z", "0001-01-01T00:00:00", "1970-01-01"]
)
async def test_an_instant_that_has_passed_somewhere_else_has_passed(world: World, until: str) -> None:
    assert (await world.runtime().run(one("wait_until", {"until": until}))).status is RunStatus.COMPLETED


@pytest.mark.parametrize(
    "until", ["tomorrow", "", "2026-13-01", "1769850000", 1769850000, None, [], "2026-01-31T25:00:00Z", "10:00", "\x00"]
)
async def test_garbage_for_an_instant_fails_the_effect_and_never_waits(world: World, until: Any) -> None:
    state = await world.runtime().run(one("wait_until", {"until": until}))
    assert state.status is RunStatus.FAILED
    assert "until" in state.error


@pytest.mark.parametrize("seconds", ["soon", [], 1e30, float("1e308"), {}])
async def test_garbage_for_a_time_out_fails_the_effect_and_never_waits(world: World, seconds: Any) -> None:
    for work in (
        one("ask_user", {"prompt": "?", "timeout_s": seconds}),
        one("wait_event", {"wait_key": "k", "timeout_s": seconds}),
    ):
        state = await world.runtime().run(work)
        assert state.status is RunStatus.FAILED
        assert "timeout_s" in state.error


async def test_a_timer_of_another_offset_around_a_change_of_the_clocks_fires_once_at_its_instant(world: World) -> None:
    """01:30 exists twice in the night when summer time ends; the offset says which one is meant."""
    work = flow(
        "a",
        a=ask("a", "wait_until", {"until": "2026-10-25T02:30:00+02:00"}, "summer", "b"),
        b=ask("b", "wait_until", {"until": "2026-10-25T02:30:00+01:00"}, "winter"),
    )
    rt = world.runtime()
    await rt.run(work, run_id="r")
    world.clock.advance((24 * 267 - 9 + 0.5) * 3600)  # to 00:30 UTC of that night
    state = await rt.tick(workflow=work, run_id="r")
    assert (state.current_node, state.waiting.until) == ("b", "2026-10-25T01:30:00.000000+00:00")
    world.clock.advance(3600)
    assert (await rt.tick(workflow=work, run_id="r")).status is RunStatus.COMPLETED


async def test_a_timers_wake_and_an_immediate_pass_have_the_same_result_and_both_leave_a_record(world: World) -> None:
    rt = world.runtime()
    early = await rt.run(one("wait_until", {"until": "2026-01-31T10:00:00+00:00"}), run_id="waits")
    world.clock.advance(3600)
    late = await rt.tick(workflow=one("wait_until", {"until": "2026-01-31T10:00:00+00:00"}), run_id="waits")
    passed = await rt.run(one("wait_until", {"until": "2026-01-31T10:00:00+00:00"}), run_id="passes")
    assert early.waiting.reason is WaitReason.UNTIL
    assert late.output["result"].keys() == passed.output["result"].keys() == {"until", "ready"}
    assert statuses(await rt.get_ledger("waits"), "wait_until") == ["started", "waiting"]
    assert statuses(await rt.get_ledger("passes"), "wait_until") == ["started", "completed"]
    assert statuses(await rt.get_ledger("waits"), "resume") == ["completed"]


async def test_a_deadline_in_the_past_times_out_at_the_next_step(world: World) -> None:
    rt = world.runtime()
    state = await rt.run(one("wait_event", {"wait_key": "k", "until": "2026-01-31T08:00:00Z"}))
    assert state.output == {"result": {"timed_out": True, "until": "2026-01-31T08:00:00.000000+00:00"}}


async def test_what_waits_is_found_by_its_due_time(async_world: World) -> None:
    runs, ledgers = async_world.stores()
    rt = async_world.runtime(stores=(WatchedRunStore(runs), ledgers))
    for name, until in (("later", "2026-01-31T12:00:00Z"), ("sooner", "2026-01-31T12:00:00+02:00")):
        await rt.run(one("wait_until", {"until": until}), run_id=name)
    await rt.run(one("ask_user", {"prompt": "?", "timeout_s": 7200}), run_id="person")
    await rt.run(one("wait_until", {"until": "2026-01-31T10:30:00Z"}), run_id="held")
    await rt.pause_run("held")
    due = await runs.list_due_wait_until(now_iso="2026-01-31T13:00:00.000000+00:00")
    assert [run.run_id for run in due] == ["sooner", "person", "later"]
