"""How often an effect is tried and when, which recorded results are taken again, and what follows a death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    NoRetryPolicy,
    RetryPolicy,
    RunState,
    RunStatus,
    StepPlan,
)

from . import worlds
from .faults import ProcessDied
from .worlds import World, ask, eventually, flow, one, statuses

world = worlds.world


class Flaky:
    """A handler that fails a number of times and remembers its calls."""

    def __init__(self, failures: int, **failure: Any) -> None:
        self.failures, self.failure = failures, failure
        self.calls: list[EffectCall] = []

    def __call__(self, call: EffectCall) -> EffectOutcome:
        self.calls.append(call)
        if len(self.calls) <= self.failures:
            return EffectOutcome.failed(f"failure {len(self.calls)}", **self.failure)
        return EffectOutcome.completed(f"attempt {call.attempt}")


def at_once(attempts: int) -> DefaultEffectPolicy:
    return DefaultEffectPolicy(attempts, default_backoff_base=0.0)


async def test_a_failed_attempt_is_followed_by_the_next_with_the_same_key(world: World) -> None:
    flaky = Flaky(2)
    rt = world.runtime({"host": flaky}, effect_policy=at_once(3))
    state = await rt.run(one("host"), run_id="r")
    assert state.output == {"result": "attempt 3"}
    assert [call.attempt for call in flaky.calls] == [1, 2, 3]
    assert [call.step_id for call in flaky.calls] == ["r:0.1", "r:0.2", "r:0.3"]
    assert len({call.key for call in flaky.calls}) == 1
    records = [r for r in await rt.get_ledger("r") if r["effect"] and r["effect"]["type"] == "host"]
    assert [(r["status"], r["attempt"], r["step_id"]) for r in records] == [
        ("started", 1, "r:0.1"),
        ("failed", 1, "r:0.1"),
        ("started", 2, "r:0.2"),
        ("failed", 2, "r:0.2"),
        ("started", 3, "r:0.3"),
        ("completed", 3, "r:0.3"),
    ]
    assert {r["idempotency_key"] for r in records} == {flaky.calls[0].key}
    assert [r["error"] for r in records] == [None, "failure 1", None, "failure 2", None, None]


async def test_after_the_last_attempt_the_run_fails_once_with_one_clear_text(world: World) -> None:
    flaky = Flaky(9)
    rt = world.runtime({"host": flaky}, effect_policy=at_once(2))
    state = await rt.run(one("host"))
    assert (state.status, state.error) == (RunStatus.FAILED, "Effect failed after 2 attempts: failure 2")
    assert len(flaky.calls) == 2


async def test_a_failure_that_no_attempt_can_mend_is_not_tried_again(world: World) -> None:
    flaky = Flaky(9, retryable=False)
    rt = world.runtime({"host": flaky}, effect_policy=at_once(5))
    state = await rt.run(one("host"))
    assert (state.status, state.error, len(flaky.calls)) == (RunStatus.FAILED, "failure 1", 1)


async def test_a_handler_that_raises_is_tried_again(world: World) -> None:
    calls: list[int] = []

    def bad(call: EffectCall) -> EffectOutcome:
        calls.append(call.attempt)
        raise ConnectionError("no line")

    rt = world.runtime({"host": bad}, effect_policy=at_once(2))
    assert "after 2 attempts: Effect handler raised exception: no line" in (await rt.run(one("host"))).error
    assert calls == [1, 2]


async def test_an_outcome_that_cannot_be_kept_is_not_tried_again(world: World) -> None:
    calls: list[int] = []

    def bad(call: EffectCall) -> Any:
        calls.append(call.attempt)
        return EffectOutcome.completed({1, 2})

    assert (await world.runtime({"host": bad}, effect_policy=at_once(5)).run(one("host"))).status is RunStatus.FAILED
    assert calls == [1]


async def test_the_retry_policy_tries_model_calls_and_tools_again_and_nothing_else(world: World) -> None:
    policy = RetryPolicy(backoff_base=0.0)
    for kind, attempts in ((EffectType.LLM_CALL, 3), (EffectType.TOOL_CALLS, 2), ("host", 1)):
        flaky = Flaky(9)
        await world.runtime({kind: flaky}, effect_policy=policy).run(one(kind))
        assert len(flaky.calls) == attempts
    flaky = Flaky(9)
    await world.runtime({EffectType.LLM_CALL: flaky}, effect_policy=NoRetryPolicy()).run(one("llm_call"))
    assert len(flaky.calls) == 1


async def test_tick_waits_out_a_short_pause_between_attempts(world: World) -> None:
    flaky = Flaky(2)
    policy = DefaultEffectPolicy(3, default_backoff_base=0.25, default_backoff_max=0.5)
    rt = world.runtime({"host": flaky}, effect_policy=policy, max_inline_backoff=0.5)
    task = asyncio.create_task(rt.run(one("host")))
    await eventually(lambda: 0.25 in world.clock.naps)
    assert len(flaky.calls) == 1
    world.clock.advance(0.25)
    await eventually(lambda: 0.5 in world.clock.naps)
    assert len(flaky.calls) == 2
    world.clock.advance(0.5)
    assert (await task).output == {"result": "attempt 3"}


async def test_tick_returns_when_the_pause_is_longer_and_a_later_tick_goes_on(world: World) -> None:
    flaky = Flaky(1)
    policy = DefaultEffectPolicy(3, default_backoff_base=100.0, default_backoff_max=100.0)
    rt = world.runtime({"host": flaky}, effect_policy=policy, max_inline_backoff=1.0)
    work = one("host")
    state = await rt.run(work, run_id="r")
    assert (state.status, state.intent.due) == (RunStatus.RUNNING, "2026-01-31T09:01:40.000000+00:00")
    world.clock.advance(98)
    assert (await rt.tick(workflow=work, run_id="r")).revision == state.revision
    world.clock.advance(2)
    other = world.runtime({"host": flaky}, effect_policy=policy)
    state = await other.tick(workflow=work, run_id="r")
    assert state.output == {"result": "attempt 2"}, "the pause is in the store, not in the process"
    assert flaky.calls[0].key == flaky.calls[1].key


async def test_a_run_held_during_the_pause_is_not_tried_again_before_its_release(world: World) -> None:
    flaky = Flaky(1)
    policy = DefaultEffectPolicy(3, default_backoff_base=100.0, default_backoff_max=100.0)
    rt = world.runtime({"host": flaky}, effect_policy=policy)
    work = one("host")
    await rt.run(work, run_id="r")
    await rt.pause_run("r")
    world.clock.advance(200)
    await rt.tick(workflow=work, run_id="r")
    assert len(flaky.calls) == 1
    await rt.resume_run("r")
    assert (await rt.tick(workflow=work, run_id="r")).output == {"result": "attempt 2"}


class ConstantKeys(DefaultEffectPolicy):
    """Keys by payload alone, as a user may want them."""

    def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
        return f"mine:{effect.payload.get('id')}"


async def test_an_effect_whose_own_key_was_settled_before_takes_the_recorded_result(world: World) -> None:
    flaky = Flaky(0)
    work = flow(
        "a",
        a=ask("a", "host", {"id": 1}, "first", "b"),
        b=ask("b", "host", {"id": 1}, "second", "c"),
        c=ask("c", "host", {"id": 2}, "third"),
    )
    rt = world.runtime({"host": flaky}, effect_policy=ConstantKeys())
    state = await rt.run(work, run_id="r")
    assert state.output == {"first": "attempt 1", "second": "attempt 1", "third": "attempt 1"}
    assert [call.key for call in flaky.calls] == ["mine:1", "mine:2"]
    traces = await rt.get_node_traces("r")
    assert [traces[node]["steps"][0]["reused_prior_result"] for node in "abc"] == [False, True, False]
    reused = next(r for r in await rt.get_ledger("r") if r["node_id"] == "b")
    assert (reused["status"], reused["reused_from"], reused["step_id"]) == ("completed", "r:0.1", "r:1.1")


async def test_a_recorded_result_is_not_taken_from_another_run_nor_from_a_failure(world: World) -> None:
    flaky = Flaky(1)
    rt = world.runtime({"host": flaky}, effect_policy=ConstantKeys())
    assert (await rt.run(one("host", {"id": 1}))).status is RunStatus.FAILED
    assert (await rt.run(one("host", {"id": 1}))).status is RunStatus.COMPLETED
    assert len(flaky.calls) == 2


async def test_a_policy_that_raises_is_told_to_the_caller_and_leaves_the_run(world: World) -> None:
    class Broken(DefaultEffectPolicy):
        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            raise ZeroDivisionError("no key")

    rt = world.runtime({"host": Flaky(0)}, effect_policy=Broken())
    await rt.start(workflow=one("host"), run_id="r")
    with pytest.raises(ZeroDivisionError):
        await rt.tick(workflow=one("host"), run_id="r")
    assert (await rt.get_state("r")).current_node == "work"
    rt.set_effect_policy(NoRetryPolicy())
    assert (await rt.tick(workflow=one("host"), run_id="r")).status is RunStatus.COMPLETED


class Mortal:
    """A handler whose process dies in its first call."""

    def __init__(self) -> None:
        self.calls: list[EffectCall] = []

    def __call__(self, call: EffectCall) -> EffectOutcome:
        self.calls.append(call)
        if len(self.calls) == 1:
            raise ProcessDied
        return EffectOutcome.completed(f"attempt {call.attempt}")


async def killed_in_effect(world: World, mortal: Mortal, policy: Any) -> Any:
    """A run `r` whose process died in its effect, and the runtime of the next process."""
    with pytest.raises(ProcessDied):
        await world.runtime({"host": mortal}, effect_policy=policy).run(one("host"), run_id="r")
    rt = world.runtime({"host": mortal}, effect_policy=policy)
    state = await rt.get_state("r")
    assert (state.status, state.intent.step_id) == (RunStatus.RUNNING, "r:0.1")
    return rt


def rule(name: Any) -> Callable[..., Any]:
    return lambda: DefaultEffectPolicy(unknown_rules={"host": name})


class NoRule:
    """A policy as documented before there were rules."""

    def max_attempts(self, effect: Effect) -> int:
        return 1

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        return 0.0

    def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
        return f"{run.run_id}:{node_id}"


@pytest.mark.parametrize("policy", [DefaultEffectPolicy, rule("again"), NoRule])
async def test_an_effect_whose_performer_died_is_performed_again_with_the_same_key(world: World, policy: Any) -> None:
    mortal = Mortal()
    rt = await killed_in_effect(world, mortal, policy())
    state = await rt.tick(workflow=one("host"), run_id="r")
    assert state.output == {"result": "attempt 2"}
    first, second = mortal.calls
    assert first.key == second.key
    assert (first.step_id, second.step_id) == ("r:0.1", "r:0.2")
    ledger = await rt.get_ledger("r")
    assert statuses(ledger, "host") == ["started", "failed", "started", "completed"]
    assert ledger[1]["result"] == {"outcome": "unknown"}
    assert "Outcome unknown" in ledger[1]["error"]


async def test_an_effect_whose_performer_died_fails_when_the_policy_says_so(world: World) -> None:
    mortal = Mortal()
    rt = await killed_in_effect(world, mortal, rule("fail")())
    state = await rt.tick(workflow=one("host"), run_id="r")
    assert state.status is RunStatus.FAILED
    assert "Outcome unknown" in state.error
    assert len(mortal.calls) == 1
    assert statuses(await rt.get_ledger("r"), "host") == ["started", "failed"]


@pytest.mark.parametrize("decision", ["perform again", {"choice": "perform again"}])
async def test_a_person_may_decide_to_perform_an_effect_again_whose_performer_died(world: World, decision: Any) -> None:
    mortal = Mortal()
    rt = await killed_in_effect(world, mortal, rule("ask")())
    state = await rt.tick(workflow=one("host"), run_id="r")
    wait = state.waiting
    assert (state.status, wait.reason, wait.choices) == (RunStatus.WAITING, "user", ["perform again", "fail the run"])
    assert wait.details["idempotency_key"] == mortal.calls[0].key
    assert len(mortal.calls) == 1
    with pytest.raises(ValueError, match="not one of the choices"):
        await rt.resume(workflow=one("host"), run_id="r", wait_key=wait.wait_key, payload="maybe")
    state = await rt.resume(workflow=one("host"), run_id="r", wait_key=wait.wait_key, payload=decision, max_steps=0)
    assert (state.status, len(mortal.calls)) == (RunStatus.RUNNING, 1), "only the decision is committed"
    state = await rt.tick(workflow=one("host"), run_id="r")
    assert state.output == {"result": "attempt 2"}
    assert mortal.calls[0].key == mortal.calls[1].key


async def test_the_same_decision_given_twice_under_one_resume_id_counts_once(world: World) -> None:
    for decision, status in (("perform again", RunStatus.COMPLETED), ("fail the run", RunStatus.FAILED)):
        run_id, mortal = decision.replace(" ", "-"), Mortal()
        with pytest.raises(ProcessDied):
            await world.runtime({"host": mortal}, effect_policy=rule("ask")()).run(one("host"), run_id=run_id)
        rt = world.runtime({"host": mortal}, effect_policy=rule("ask")())
        wait = (await rt.tick(workflow=one("host"), run_id=run_id)).waiting
        answer = {"run_id": run_id, "wait_key": wait.wait_key, "payload": decision, "resume_id": "d1"}
        assert (await rt.resume(workflow=one("host"), **answer)).status is status
        assert (await rt.resume(workflow=one("host"), **answer)).status is status
        assert statuses(await rt.get_ledger(run_id), "resume") == ["completed"]


async def test_a_person_may_decide_to_fail_a_run_whose_performer_died(world: World) -> None:
    mortal = Mortal()
    rt = await killed_in_effect(world, mortal, rule("ask")())
    wait = (await rt.tick(workflow=one("host"), run_id="r")).waiting
    state = await rt.resume(workflow=one("host"), run_id="r", wait_key=wait.wait_key, payload="fail the run")
    assert state.status is RunStatus.FAILED
    assert len(mortal.calls) == 1
    ledger = await rt.get_ledger("r")
    started = [r["step_id"] for r in ledger if r["status"] == "started"]
    ended = [r["step_id"] for r in ledger if r["effect"] and r["effect"]["type"] == "host" and r["ended_at"]]
    assert started == ended, "every attempt that began ends once, and none ends that never began"


async def test_a_cancel_answers_the_question_about_a_lost_effect(world: World) -> None:
    rt = await killed_in_effect(world, Mortal(), rule("ask")())
    await rt.tick(workflow=one("host"), run_id="r")
    state = await rt.cancel_run("r")
    assert (state.status, state.intent, state.waiting) == (RunStatus.CANCELLED, None, None)


async def test_the_question_about_a_lost_effect_keeps_what_the_node_changed(world: World) -> None:
    mortal = Mortal()

    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["asked"] = run.vars.get("asked", 0) + 1
        return StepPlan("node", Effect("host", {}, "result"), "end")

    work = flow("node", node=node)
    policy = rule("ask")()
    with pytest.raises(ProcessDied):
        await world.runtime({"host": mortal}, effect_policy=policy).run(work, run_id="r")
    rt = world.runtime({"host": mortal}, effect_policy=policy)
    await rt.tick(workflow=work, run_id="r")
    state = await rt.resume(workflow=work, run_id="r", wait_key=None, payload="perform again")
    assert state.output == {"asked": 1, "result": "attempt 2"}


async def test_a_policy_that_raises_after_the_effect_does_not_make_it_be_performed_again(world: World) -> None:
    class Broken(DefaultEffectPolicy):
        def max_attempts(self, effect: Effect) -> int:
            raise LookupError("no such limit")

    calls: list[int] = []

    def fails(call: EffectCall) -> EffectOutcome:
        calls.append(call.attempt)
        return EffectOutcome.failed("no")

    rt = world.runtime({"host": fails}, effect_policy=Broken())
    state = await rt.run(one("host"))
    assert (state.status, state.error, calls) == (RunStatus.FAILED, "no", [1])
