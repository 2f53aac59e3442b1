"""`create_scheduled_runtime` and `Scheduler` as documented, and their async twins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduledRuntime,
    Effect,
    EffectOutcome,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    RunStatus,
    Runtime,
    ScheduledRuntime,
    Scheduler,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    UnknownRun,
    UnknownWorkflow,
    WaitReason,
    WorkflowRegistry,
    WorkflowSpec,
    create_async_scheduled_runtime,
    create_scheduled_runtime,
)
from abstractruntime.core.clock import SYSTEM_CLOCK, iso

from .dict_stores import DictLedgerStore, DictRunStore

#: seconds after which something that must happen has not
BOUND = 20


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect(run.vars["effect"], dict(run.vars.get("payload") or {}), "did"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"did": run.vars.get("did")})


def broken(run: RunState, ctx: Any) -> StepPlan:
    raise ArithmeticError("broken")


ACT: WorkflowSpec[Any] = WorkflowSpec("act", "act", {"act": act, "end": end})
LATE_BREAK: WorkflowSpec[Any] = WorkflowSpec("late", "act", {"act": act, "end": broken})
OTHER: WorkflowSpec[Any] = WorkflowSpec("other", "act", {"act": act, "end": end})

ASK = {"effect": EffectType.ASK_USER, "payload": {"prompt": "Go on?"}}
LISTEN = {"effect": EffectType.WAIT_EVENT, "payload": {"name": "paid", "scope": "session"}}


def soon(seconds: float = 1.0) -> dict[str, Any]:
    until = iso(SYSTEM_CLOCK.now() + timedelta(seconds=seconds))
    return {"effect": EffectType.WAIT_UNTIL, "payload": {"until": until}}


@pytest.fixture
def sr() -> Iterator[ScheduledRuntime]:
    with create_scheduled_runtime(workflows=[ACT], auto_start=False) as made:
        yield made


def test_its_parts_fit_together():
    with create_scheduled_runtime() as sr:
        assert sr.is_running
        assert sr.runtime.workflow_registry is sr.registry
        assert isinstance(sr.runtime.run_store, InMemoryRunStore)
        assert isinstance(sr.scheduler, Scheduler)
        assert (sr.stats.runs_resumed, sr.stats.runs_failed, sr.stats.errors) == (0, 0, [])
    assert not sr.is_running


def test_run_registers_starts_and_ticks(sr):
    run_id, state = sr.run(OTHER, vars=ASK, actor_id="me", session_id="s")
    assert "other" in sr.registry
    assert (state.run_id, state.status, state.actor_id, state.session_id) == (run_id, RunStatus.WAITING, "me", "s")
    assert sr.run(OTHER, vars=ASK)[1].status is RunStatus.WAITING
    run_id, state = sr.run(ACT, vars=ASK, max_steps=0)
    assert state.status is RunStatus.RUNNING
    assert sr.tick(run_id).status is RunStatus.WAITING


def test_start_and_tick_by_id(sr):
    run_id = sr.start(workflow=ACT, vars=ASK, actor_id="me", session_id="s")
    assert sr.get_state(run_id).status is RunStatus.RUNNING
    assert sr.tick(run_id).status is RunStatus.WAITING
    foreign = sr.start(workflow=OTHER, vars=ASK)
    with pytest.raises(UnknownWorkflow):
        sr.tick(foreign)
    with pytest.raises(KeyError):
        sr.tick("nobody")


def test_respond_finds_the_key(sr):
    run_id, _ = sr.run(ACT, vars=ASK)
    state = sr.respond(run_id, {"text": "yes"})
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"did": {"text": "yes"}})
    assert [record["status"] for record in sr.get_ledger(run_id)][:2] == ["started", "waiting"]


def test_respond_refuses_what_waits_for_no_answer(sr):
    run_id, _ = sr.run(ACT, vars=ASK)
    sr.respond(run_id, {"text": "yes"})
    with pytest.raises(ValueError, match="completed"):
        sr.respond(run_id, {})
    timed, _ = sr.run(ACT, vars=soon(600))
    with pytest.raises(ValueError, match="no wait_key"):
        sr.respond(timed, {})


def test_resume_event(sr):
    run_id, state = sr.run(ACT, vars=ASK)
    key = state.waiting.wait_key
    assert sr.resume_event(run_id=run_id, wait_key=key, payload={"text": "x"}).status is RunStatus.COMPLETED
    with pytest.raises(ValueError, match="completed"):
        sr.resume_event(run_id=run_id, wait_key=key, payload={})
    other, state = sr.run(OTHER, vars=ASK)
    sr.registry.unregister("other")
    with pytest.raises(KeyError):
        sr.resume_event(run_id=other, wait_key=state.waiting.wait_key, payload={})


def test_emit_event_moves_its_listeners(sr):
    run_ids = [sr.run(ACT, vars=LISTEN, session_id="s")[0] for _ in range(3)]
    away, _ = sr.run(ACT, vars=LISTEN, session_id="elsewhere")
    states = sr.emit_event(name="paid", payload={"euro": 3}, session_id="s")
    assert {state.run_id for state in states} == set(run_ids)
    assert {state.status for state in states} == {RunStatus.COMPLETED}
    assert states[0].output["did"]["emitter"] == {"source": "external"}
    assert sr.get_state(away).status is RunStatus.WAITING
    assert sr.emit_event(name="paid", payload={}, session_id="nobody") == []


def test_emit_event_refuses_what_is_no_address(sr):
    for wrong in ({"name": "", "session_id": "s"}, {"name": "paid"}, {"name": "paid", "scope": "run"}):
        with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
            sr.emit_event(payload={}, **wrong)


def test_an_unregistered_listener_is_an_error(sr):
    sr.run(OTHER, vars=LISTEN, session_id="s")
    sr.registry.unregister("other")
    with pytest.raises(KeyError):
        sr.emit_event(name="paid", payload={}, session_id="s")


def child_of(sr: ScheduledRuntime, run_id: str) -> str:
    (child,) = sr.runtime.run_store.list_children(parent_run_id=run_id)
    return str(child.run_id)


def with_child(sr: ScheduledRuntime) -> tuple[str, str]:
    payload = {"workflow_id": "act", "vars": ASK}
    run_id, state = sr.run(ACT, vars={"effect": EffectType.START_SUBWORKFLOW, "payload": payload})
    assert state.status is RunStatus.WAITING
    return run_id, child_of(sr, run_id)


def test_resume_subworkflow_parent(sr):
    run_id, child = with_child(sr)
    state = sr.resume_subworkflow_parent(child_run_id=child, child_output={"x": 1})
    assert (state.run_id, state.status) == (run_id, RunStatus.COMPLETED)
    assert state.output["did"]["output"] == {"x": 1}
    assert sr.resume_subworkflow_parent(child_run_id=run_id, child_output={}) is None
    assert sr.resume_subworkflow_parent(child_run_id="nobody", child_output={}) is None


def test_a_child_that_ends_moves_its_parent(sr):
    run_id, child = with_child(sr)
    sr.respond(child, {"text": "yes"})
    assert sr.scheduler.poll_once() == 1
    assert sr.get_state(run_id).status is RunStatus.COMPLETED


def test_cancel_with_children(sr):
    run_id, child = with_child(sr)
    states = sr.cancel_with_children(run_id, reason="enough")
    assert [(state.run_id, state.status) for state in states] == [
        (run_id, RunStatus.CANCELLED),
        (child, RunStatus.CANCELLED),
    ]
    assert states[0].error == "enough"
    with pytest.raises(UnknownRun):
        sr.cancel_with_children("nobody")
    done, _ = sr.run(ACT, vars=ASK)
    sr.respond(done, {})
    assert sr.cancel_with_children(done) == []
    assert sr.cancel_run(sr.run(ACT, vars=ASK)[0]).status is RunStatus.CANCELLED


def test_find_waiting_runs(sr):
    asked, _ = sr.run(ACT, vars=ASK)
    timed, _ = sr.run(OTHER, vars=soon(600))

    def ids(**filters: Any) -> set[str]:
        return {run.run_id for run in sr.find_waiting_runs(**filters)}

    assert ids() == {asked, timed}
    assert ids(wait_reason=WaitReason.USER) == {asked}
    assert ids(workflow_id="other") == {timed}
    assert len(ids(limit=1)) == 1
    mine, _ = sr.run(ACT, vars=ASK, session_id="mine")
    assert ids(session_id="mine") == {mine}
    assert ids(session_id="mine", workflow_id="other") == set()


def test_poll_once_moves_what_is_due_and_counts(sr):
    told: list[RunState] = []
    sr.scheduler.aio._driver.telling._on_resumed = told.append
    due, _ = sr.run(ACT, vars=soon())
    sr.run(ACT, vars=soon(600))
    held, _ = sr.run(ACT, vars=soon())
    sr.runtime.pause_run(held)
    while iso(SYSTEM_CLOCK.now()) < sr.get_state(due).waiting.until:
        pass
    assert sr.scheduler.poll_once() == 1
    assert sr.get_state(due).status is RunStatus.COMPLETED
    assert [state.run_id for state in told] == [due]
    assert (sr.stats.runs_resumed, sr.stats.poll_cycles) == (1, 1)
    assert sr.stats.last_poll_at is not None
    assert sr.scheduler.poll_once() == 0


def test_timers_fire_in_the_background_and_callbacks_may_use_the_runtime(tmp_path):
    seen: Future[Any] = Future()

    def resumed(state: RunState) -> None:
        seen.set_result((made.get_state(state.run_id).status, threading.current_thread()))

    with SqliteDatabase(tmp_path / "runs.db") as db:
        stores = SqliteRunStore(db), SqliteLedgerStore(db)
        with create_scheduled_runtime(
            run_store=stores[0], ledger_store=stores[1], workflows=[ACT], on_run_resumed=resumed
        ) as made:
            for seconds in (0.05, 0.5, 5):  # one that is due after its caller has left it, however slow the disk is
                if made.run(ACT, vars=soon(seconds))[1].status is RunStatus.WAITING:
                    break
            status, thread = seen.result(BOUND)
    assert status is RunStatus.COMPLETED
    assert thread is not threading.current_thread()


def test_nodes_that_the_scheduler_runs_may_block_and_use_the_runtime():
    found: Future[RunStatus] = Future()

    def curious(run: RunState, ctx: Any) -> StepPlan:
        found.set_result(made.get_state(run.run_id).status)
        return StepPlan("end", complete_output={})

    workflow: WorkflowSpec[Any] = WorkflowSpec("curious", "act", {"act": act, "end": curious})
    with create_scheduled_runtime(poll_interval_s=0.05) as made:
        made.run(workflow, vars=soon())
        assert found.result(BOUND) is RunStatus.RUNNING


def test_what_fails_in_the_background_is_told_and_counted():
    told: Future[tuple[str, Exception]] = Future()
    with create_scheduled_runtime(on_run_failed=lambda *failure: told.set_result(failure)) as sr:
        run_id, _ = sr.run(LATE_BREAK, vars=soon())
        failed, error = told.result(BOUND)
        assert (failed, str(error)) == (run_id, "broken")
        assert sr.stats.runs_failed == 1
        assert f": Run {run_id}: broken" in sr.stats.errors[0]


def test_a_run_that_its_caller_leaves_is_taken_up_after_a_while():
    done: Future[RunState] = Future()
    with create_scheduled_runtime(workflows=[ACT], poll_interval_s=0.02, on_run_resumed=done.set_result) as sr:
        run_id = sr.start(workflow=ACT, vars=ASK)
        assert done.result(BOUND).run_id == run_id


def test_starting_twice_is_an_error_and_stopping_twice_is_not(sr):
    sr.start_scheduler()
    with pytest.raises(RuntimeError, match="running already"):
        sr.start_scheduler()
    sr.stop()
    sr.stop(timeout=0)
    assert not sr.is_running
    sr.start_scheduler()
    assert sr.is_running


def test_stopping_cancels_what_takes_too_long_and_its_effect_is_handed_back():
    inside = threading.Event()

    async def hangs(call: Any) -> EffectOutcome:
        inside.set()
        await asyncio.Event().wait()
        raise AssertionError

    with create_scheduled_runtime(workflows=[ACT], effect_handlers={"hangs": hangs}, poll_interval_s=0.02) as sr:
        run_id = sr.start(workflow=ACT, vars={"effect": "hangs"})
        assert inside.wait(BOUND)
        sr.stop(timeout=0)
        state = sr.get_state(run_id)
        assert state.status is RunStatus.RUNNING
        assert state.intent is not None
        assert state.intent.token is None


def test_a_scheduler_of_a_store_that_cannot_be_asked_is_refused():
    runtime = Runtime(run_store=DictRunStore(), ledger_store=DictLedgerStore())
    with pytest.raises(TypeError, match="list_due_wait_until"):
        Scheduler(runtime=runtime, registry=WorkflowRegistry())


def test_a_scheduler_by_itself_is_a_context():
    runtime = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    with Scheduler(runtime=runtime, registry=WorkflowRegistry(), poll_interval_s=1.0, max_errors_kept=5) as scheduler:
        assert scheduler.is_running
    assert not scheduler.is_running


async def reached(sr: AsyncScheduledRuntime, run_id: str, status: RunStatus) -> RunState:
    while (state := await sr.get_state(run_id)).status is not status:  # noqa: ASYNC110 - the stored state
        await asyncio.sleep(0.001)
    return state


async def test_the_async_one_does_the_same():
    async with await create_async_scheduled_runtime(workflows=[ACT]) as sr:
        assert isinstance(sr.runtime, AsyncRuntime)
        run_id, _ = await sr.run(ACT, vars=ASK, session_id="s")
        await reached(sr, run_id, RunStatus.WAITING)
        assert [run.run_id for run in await sr.find_waiting_runs()] == [run_id]
        assert (await sr.respond(run_id, {"text": "yes"})).output == {"did": {"text": "yes"}}
        listens, _ = await sr.run(ACT, vars=LISTEN, session_id="s")
        await reached(sr, listens, RunStatus.WAITING)
        (heard,) = await sr.emit_event(name="paid", payload={}, session_id="s")
        assert heard.status is RunStatus.COMPLETED
        timed, _ = await sr.run(ACT, vars=soon())
        await reached(sr, timed, RunStatus.COMPLETED)
        assert sr.is_running
    assert not sr.is_running
