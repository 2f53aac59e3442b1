"""What would make a run unreadable or repeat its effect for ever is refused where it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from abstractruntime import (
    AbstractRuntimeError,
    Change,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    InvalidId,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    UnknownRun,
    WaitReason,
    WaitState,
)

from . import worlds
from .worlds import World, a_moment, eventually, flow, one, statuses

world = worlds.world
async_world = worlds.async_world

HOST = one("host")
QUESTION = one("ask_user", {"prompt": "?"})
EVENT = one("wait_event", {"wait_key": "k"})


def job(**fields: Any) -> EffectOutcome:
    return EffectOutcome.waiting(WaitState(WaitReason.JOB, **fields))


def asked(**fields: Any) -> EffectOutcome:
    given = {"run_id": "other", "kind": "cancel", "by": "me", "at": "2026-01-31T09:00:00Z", **fields}
    return EffectOutcome.completed(requests=(Request(**given),))


BAD_OUTCOMES: dict[str, Any] = {
    "reason": EffectOutcome.waiting(WaitState("bogus")),  # type: ignore[arg-type]
    "wait_key": job(wait_key=5),
    "prompt": job(prompt=5),
    "choices": job(choices="abc"),
    "allow_free_text": job(allow_free_text="no"),
    "result_key": job(result_key=5),
    "resume_to_node": job(resume_to_node=5),
    "details": job(details=[1]),
    "lone surrogate in a prompt": job(prompt="\ud800"),
    "lone surrogate in a key": job(wait_key="\ud800"),
    "changes": EffectOutcome.completed(changes=5),  # type: ignore[arg-type]
    "a change that is a dict": EffectOutcome.completed(changes=({"path": "a", "value": 1},)),  # type: ignore[arg-type]
    "path of a change": EffectOutcome.completed(changes=(Change(path=5, value=1),)),  # type: ignore[arg-type]
    "lone surrogate in a path": EffectOutcome.completed(changes=(Change(path="\ud800", value=1),)),
    "op of a change": EffectOutcome.completed(changes=(Change(path="a", value=1, op="explode"),)),  # type: ignore[arg-type]
    "requests": EffectOutcome.completed(requests=5),  # type: ignore[arg-type]
    "a request that is a text": EffectOutcome.completed(requests=("cancel",)),  # type: ignore[arg-type]
    "kind of a request": asked(kind="explode"),
    "run_id of a request": asked(run_id=5),
    "by of a request": asked(by=5),
    "reason of a request": asked(reason=b"x"),
    "a look-alike": SimpleNamespace(status="completed", result=1, changes=None, requests=[None]),
}


@pytest.mark.parametrize("outcome", BAD_OUTCOMES.values(), ids=BAD_OUTCOMES)
async def test_a_malformed_outcome_fails_its_effect_once_and_the_run_stays_readable(world: World, outcome: Any) -> None:
    calls: list[str] = []

    def handler(call: EffectCall) -> Any:
        calls.append(call.key)
        return outcome

    rt = world.runtime({"host": handler})
    await rt.start(workflow=QUESTION, run_id="other")
    state = await rt.run(HOST, run_id="r")
    assert state.status is RunStatus.FAILED
    assert state.error
    stored = await rt.get_state("r")
    assert (stored.status, stored.error) == (RunStatus.FAILED, state.error)
    assert statuses(await rt.get_ledger("r"), "host") == ["started", "failed"]
    assert len(calls) == 1
    assert (await rt.tick(workflow=QUESTION, run_id="other")).status is RunStatus.WAITING


@pytest.mark.parametrize("choices", [["a", 1, None], [{"label": "Yes", "value": 1}], [["nested"]], []])
async def test_choices_are_kept_word_for_word_and_the_wait_survives_a_reload(world: World, choices: Any) -> None:
    rt = world.runtime()
    work = one("ask_user", {"prompt": "?", "choices": choices})
    assert (await rt.run(work, run_id="r")).waiting.choices == choices
    assert (await world.runtime().get_state("r")).waiting.choices == choices
    assert (await rt.resume(workflow=work, run_id="r", wait_key=None, payload=1)).output == {"result": 1}


async def test_choices_that_are_objects_bind_like_any_other(world: World) -> None:
    rt = world.runtime()
    choices = [{"label": "Yes", "value": 1}, {"label": "No", "value": 2}]
    work = one("ask_user", {"prompt": "?", "choices": choices, "allow_free_text": False})
    await rt.run(work, run_id="r")
    with pytest.raises(ValueError, match="not one of the choices"):
        await rt.resume(workflow=work, run_id="r", wait_key=None, payload={"choice": {"label": "Maybe"}})
    state = await rt.resume(workflow=work, run_id="r", wait_key=None, payload={"choice": choices[1]})
    assert state.output == {"result": {"choice": choices[1]}}


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "reason of a cancel": lambda rt: rt.cancel_run("r", reason=5),
    "lone surrogate in the reason of a cancel": lambda rt: rt.cancel_run("r", reason="\ud800"),
    "who cancels": lambda rt: rt.cancel_run("r", cancelled_by=object()),
    "reason of a hold": lambda rt: rt.pause_run("r", reason=object()),
    "lone surrogate in the reason of a hold": lambda rt: rt.pause_run("r", reason="\ud800"),
    "who answers": lambda rt: rt.resume(workflow=EVENT, run_id="r", wait_key="k", payload=1, actor_id=5),
    "resume_id": lambda rt: rt.resume(workflow=EVENT, run_id="r", wait_key="k", payload=1, resume_id="\ud800"),
    "limits": lambda rt: rt.update_limits("r", {"max_tokens": float("nan")}),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
async def test_an_argument_of_a_wrong_type_is_refused_and_the_run_stays_as_it_was(world: World, call: Any) -> None:
    rt = world.runtime()
    before = await rt.run(EVENT, run_id="r")
    with pytest.raises((TypeError, ValueError)):
        await call(rt)
    assert (await rt.get_state("r")).revision == before.revision
    assert len(await rt.get_ledger("r")) == before.records
    assert (await rt.resume(workflow=EVENT, run_id="r", wait_key="k", payload=1)).status is RunStatus.COMPLETED


@pytest.mark.parametrize("name", ["session_id", "actor_id", "parent_run_id"])
@pytest.mark.parametrize("value", [5, b"x", ["s"], "\ud800"])
async def test_an_identity_of_a_wrong_type_is_refused_at_the_start(world: World, name: str, value: Any) -> None:
    rt = world.runtime()
    with pytest.raises((TypeError, ValueError), match=name):
        await rt.start(workflow=QUESTION, run_id="r", **{name: value})
    with pytest.raises(KeyError):
        await rt.get_state("r")


@pytest.mark.parametrize("key", [5, None, b"key", "\ud800"])
async def test_a_policys_key_that_is_no_text_is_told_and_the_run_stays_readable(world: World, key: Any) -> None:
    class Strange(DefaultEffectPolicy):
        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            found: str = key
            return found

    rt = world.runtime({"host": lambda call: EffectOutcome.completed(1)}, effect_policy=Strange())
    await rt.start(workflow=HOST, run_id="r")
    with pytest.raises((TypeError, ValueError)):
        await rt.tick(workflow=HOST, run_id="r")
    assert (await rt.get_state("r")).current_node == "work"
    rt.set_effect_policy(DefaultEffectPolicy())
    assert (await rt.tick(workflow=HOST, run_id="r")).status is RunStatus.COMPLETED


@pytest.mark.parametrize("pause", [float("inf"), float("nan"), 1e18, -5.0])
async def test_a_policys_pause_that_is_no_duration_does_not_repeat_the_effect_for_ever(
    world: World, pause: float
) -> None:
    class Strange(DefaultEffectPolicy):
        def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
            return pause

    calls: list[int] = []

    def fails(call: EffectCall) -> EffectOutcome:
        calls.append(call.attempt)
        return EffectOutcome.failed("no")

    rt = world.runtime({"host": fails}, effect_policy=Strange(3))
    await rt.start(workflow=HOST, run_id="r")
    for _ in range(5):
        await rt.tick(workflow=HOST, run_id="r")
    assert calls in ([1], [1, 2, 3])


@pytest.mark.parametrize("field", ["workflow_id", "current_node", "error", "waiting", "created_at", "session_id"])
async def test_a_run_that_could_not_be_read_again_is_not_saved(async_world: World, field: str) -> None:
    rt = async_world.runtime()
    before = await rt.run(QUESTION, run_id="r")
    run = await rt.run_store.load("r")
    setattr(run, field, 5)
    with pytest.raises((TypeError, ValueError)):
        await rt.run_store.save(run)
    assert (await rt.get_state("r")).revision == before.revision


async def test_a_worker_that_a_handler_left_behind_may_answer_its_wait(async_world: World) -> None:
    """The usual shape of a job: the handler submits it and waits, somebody else resumes the run with its result."""
    landed, workers = asyncio.Event(), []

    async def submit(call: EffectCall) -> EffectOutcome:
        async def work_on() -> RunState:
            await landed.wait()
            answered: RunState = await rt.resume(workflow=work, run_id="r", wait_key="job", payload="result")
            return answered

        workers.append(asyncio.create_task(work_on()))
        return job(wait_key="job", resume_to_node=call.next_node, result_key="result")

    rt = async_world.runtime({"submit": submit})
    work = one("submit")
    assert (await rt.run(work, run_id="r")).status is RunStatus.WAITING
    landed.set()
    assert (await workers[0]).output == {"result": "result"}


async def test_a_task_that_a_node_left_behind_may_move_its_run(async_world: World) -> None:
    later, tasks = asyncio.Event(), []

    async def node(run: RunState, ctx: Any) -> StepPlan:
        async def move_on() -> RunState:
            await later.wait()
            moved: RunState = await rt.tick(workflow=work, run_id="r")
            return moved

        tasks.append(asyncio.create_task(move_on()))
        return StepPlan("node", next_node="end")

    rt = async_world.runtime()
    work = flow("node", node=node)
    await rt.start(workflow=work, run_id="r")
    await rt.tick(workflow=work, run_id="r", max_steps=1)
    later.set()
    assert (await tasks[0]).status is RunStatus.COMPLETED


async def test_a_node_that_changes_its_own_run_behind_its_back_is_told_instead_of_repeated_for_ever(
    async_world: World,
) -> None:
    """Its step can never land: each time it is computed from a state that the node itself has made old."""
    calls = 0

    async def node(run: RunState, ctx: Any) -> StepPlan:
        nonlocal calls
        calls += 1
        await rt.update_limits(run.run_id, {"current_iteration": calls})
        return StepPlan("node", next_node="end")

    rt = async_world.runtime()
    work = flow("node", node=node)
    with pytest.raises(AbstractRuntimeError):
        await rt.run(work, run_id="r")
    assert calls <= 20
    assert (await rt.get_state("r")).status is RunStatus.RUNNING


async def test_a_node_may_hold_or_cancel_its_own_run(async_world: World) -> None:
    async def hold(run: RunState, ctx: Any) -> StepPlan:
        await rt.pause_run(run.run_id)
        return StepPlan("node", next_node="end")

    async def cancel(run: RunState, ctx: Any) -> StepPlan:
        await rt.cancel_run(run.run_id)
        return StepPlan("node", next_node="end")

    rt = async_world.runtime()
    assert (await rt.run(flow("node", node=hold))).paused
    assert (await rt.run(flow("node", node=cancel))).status is RunStatus.CANCELLED


async def test_a_handler_may_change_its_own_run_as_often_as_it_likes(async_world: World) -> None:
    """What a handler lands with is settled again after a conflict, so nothing is repeated and nothing is told."""
    calls = 0

    async def handler(call: EffectCall) -> EffectOutcome:
        nonlocal calls
        calls += 1
        await rt.update_limits(call.run.run_id, {"current_iteration": calls})
        return EffectOutcome.failed("again") if call.attempt == 1 else EffectOutcome.completed(calls)

    def loop(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        return StepPlan("loop", Effect("host", {}, "result"), "loop" if run.vars["n"] < 20 else "end")

    rt = async_world.runtime({"host": handler}, effect_policy=DefaultEffectPolicy(2, default_backoff_base=0.5))
    task = asyncio.create_task(rt.run(flow("loop", loop=loop)))
    while not task.done():
        if 0.5 in async_world.clock.naps:
            async_world.clock.advance(0.5)
        await a_moment()
    state = await task
    assert (state.output, calls) == ({"n": 20, "result": 40}, 40)
    assert state.vars["_limits"]["current_iteration"] == 40


async def test_a_handler_may_hold_or_cancel_its_own_run(async_world: World) -> None:
    async def hold(call: EffectCall) -> EffectOutcome:
        await rt.pause_run(call.run.run_id)
        return EffectOutcome.completed("held")

    async def cancel(call: EffectCall) -> EffectOutcome:
        await rt.cancel_run(call.run.run_id)
        await eventually(lambda: False)
        raise AssertionError("it was not cancelled")

    rt = async_world.runtime({"hold": hold, "cancel": cancel})
    held = await rt.run(one("hold"))
    assert (held.paused, held.vars["result"]) == (True, "held")
    assert (await rt.run(one("cancel"))).status is RunStatus.CANCELLED


async def test_a_handler_whose_own_task_was_cancelled_fails_its_effect_and_not_its_caller(async_world: World) -> None:
    async def handler(call: EffectCall) -> EffectOutcome:
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner
        raise AssertionError("a cancelled task has no result")

    state = await async_world.runtime({"host": handler}).run(HOST)
    assert state.status is RunStatus.FAILED
    assert "CancelledError" in state.error


@pytest.mark.parametrize("run_id", ["\ud800", "a\udfffb", "", "../r", "\x00", "x" * 5_000])
@pytest.mark.parametrize("verb", ["get_state", "tick", "cancel_run", "pause_run", "resume", "get_token_usage"])
async def test_an_id_that_no_run_can_have_is_an_unknown_run(world: World, run_id: str, verb: str) -> None:
    """On SQLite a lone surrogate was an error of the codec."""
    rt = world.runtime()
    calls: dict[str, Any] = {
        "tick": lambda: rt.tick(workflow=EVENT, run_id=run_id),
        "resume": lambda: rt.resume(workflow=EVENT, run_id=run_id, wait_key=None, payload=1),
    }
    with pytest.raises(UnknownRun):
        await calls.get(verb, lambda: getattr(rt, verb)(run_id))()


@pytest.mark.parametrize("name", ["session_id", "actor_id", "parent_run_id", "workflow_id"])
@pytest.mark.parametrize("method", ["find_runs", "find_waits"])
async def test_a_search_for_what_nothing_can_be_is_refused(world: World, method: str, name: str) -> None:
    rt = world.runtime()
    for value in ("\ud800", 5):
        with pytest.raises(InvalidId, match=name):
            await getattr(rt, method)(**{name: value})
