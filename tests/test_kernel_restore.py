"""The kernel as a table: back to an earlier state, and a new run from one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime import EffectInFlight, InvalidSnapshot, RunCompleted, StepRecord, StepStatus
from abstractruntime.core import kernel
from abstractruntime.core.models import TERMINAL, Effect, Request, RunState, RunStatus, StepPlan, WaitState

from .states import (
    BEFORE,
    NOW,
    OTHERS,
    STAMP,
    brief,
    do,
    ended,
    flying,
    kernel_commit,
    question,
    running,
    seq,
    timer,
    waiting,
)

ORIGIN = {"snapshot_id": "s", "name": "here", "position": 3, "chain_head": None, "reason": "why"}


def earlier(**fields: Any) -> RunState:
    """The run some commits before: two effects less, at another node."""
    given = {"current_node": "there", "revision": 1, "records": 2, "vars": {"old": [1], "_runtime": {"effect_seq": 0}}}
    return running(**{**given, **fields})


def several(**fields: Any) -> RunState:
    """The run with two of three effects in flight."""
    plan = StepPlan("here", effects=[Effect("pay", {"n": n}) for n in range(3)], max_parallel=2)
    intent = kernel.intents_of(running(), plan, ["k0", "k1", "k2"], STAMP)
    return replace(kernel_commit(kernel.promise(running(), intent, "owner", STAMP)).run, **fields)


def restore(run: RunState, saved: RunState, **options: Any):
    return do(kernel.restore, run, saved, ORIGIN, STAMP, **options)


SAVED = {
    "running": earlier(),
    "a question": earlier(status=RunStatus.WAITING, waiting=question()),
    "a timer": earlier(status=RunStatus.WAITING, waiting=timer()),
    "held": kernel_commit(kernel.pause(earlier(), "lunch", STAMP)).run,
    "completed": earlier(status=RunStatus.COMPLETED, output={"x": 1}),
    "failed": earlier(status=RunStatus.FAILED, error="no", quarantined="often"),
}
NOW_AT = {
    "running": running(),
    "a question": waiting(question(prompt="Another?")),
    "held": kernel_commit(kernel.pause(running(), "lunch", STAMP)).run,
    "completed": replace(ended(), output={"done": True}),
    "failed": replace(ended(RunStatus.FAILED), error="broken", quarantined="often"),
    "cancelled": replace(ended(RunStatus.CANCELLED), error="Cancelled"),
    "an attempt due later": flying(token=None, due=NOW),
}


@pytest.mark.parametrize("then", SAVED)
@pytest.mark.parametrize("now", NOW_AT)
def test_a_restore_takes_the_place_from_the_snapshot_and_the_numbers_from_now(now: str, then: str):
    run, saved = NOW_AT[now], SAVED[then]
    commit = restore(run, saved, actor_id="eve")
    new = commit.run
    for name in ("status", "current_node", "output", "error", "quarantined", "fingerprint", "workflow_version"):
        assert getattr(new, name) == getattr(saved, name), name
    assert {**new.vars, "_runtime": None} == {**saved.vars, "_runtime": None}
    assert (new.paused, new.intent, new.node_errors) == (saved.paused, None, 0)
    assert (new.created_at, new.identity, new.retries) == (run.created_at, run.identity, run.retries)
    assert seq(new) == (3 if run.intent else 2)
    record = commit.records[0]
    assert (record.step_id, record.status, record.actor_id) == ("owner.7:restored", "completed", "eve")
    assert record.effect == {"type": "restore", "payload": ORIGIN, "result_key": None}
    assert record.result == {"restored": True, "status": saved.status, "node": "there"}
    assert len(commit.records) == 1 + (saved.status in TERMINAL)
    if saved.status in TERMINAL:
        assert commit.records[1].idempotency_key == f"system:terminal_status:{saved.status}"
        assert new.owner is None


@pytest.mark.parametrize("then", SAVED)
def test_a_run_that_stands_there_already_is_left_alone(then: str):
    saved = SAVED[then]
    assert kernel.restore(replace(saved, revision=9, records=30), saved, ORIGIN, STAMP) is None
    there = restore(running(), saved).run
    assert kernel.restore(there, saved, ORIGIN, STAMP) is None
    for field in ({"vars": {**there.vars, "more": 1}}, {"current_node": "x"}, {"output": 1}, {"error": "x"}):
        assert kernel.restore(replace(there, **field), saved, ORIGIN, STAMP) is not None


def test_true_is_not_one():
    saved = earlier(vars={"x": 1})
    assert kernel.restore(earlier(vars={"x": True}), saved, ORIGIN, STAMP) is not None
    assert kernel.restore(earlier(vars={"x": 1, "_runtime": {"effect_seq": 7}}), saved, ORIGIN, STAMP) is None


WAITS: dict[str, tuple[WaitState, str | None, str | None]] = {
    "a question of ours": (question(), "user:r:there:r4", None),
    "a restored one": (question(wait_key="user:r:there:r2"), "user:r:there:r4", None),
    "a key of its author": (
        question(wait_key="mine", details={"wait_id": "user:r:there:0", "kind": "x"}),
        "mine",
        "user:r:there:r4",
    ),
    "a key that a host saved": (question(wait_key="mine"), "mine", "user:r:there:r4"),
    "a host's without a key": (question(wait_key=None), "user:r:there:r4", None),
    "a timer": (timer(), None, "until:r:there:r4"),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_again_has_an_identity_of_its_own(what: str):
    wait, key, wait_id = WAITS[what]
    saved = earlier(status=RunStatus.WAITING, waiting=wait)
    new = restore(running(), saved).run
    assert new.waiting is not None
    details = new.waiting.details or {}
    assert (new.waiting.wait_key, details.get("wait_id")) == (key, wait_id)
    assert details.get("kind") == (wait.details or {}).get("kind")
    names = {"wait_key": wait.wait_key, "details": wait.details}
    assert replace(new.waiting, **names) == wait
    again = kernel.restore(replace(new, current_node="x"), saved, ORIGIN, STAMP)
    assert again is not None
    assert again.run.waiting != new.waiting


def test_the_wait_of_a_pause_stays_what_it_is_and_is_released():
    held = restore(running(), SAVED["held"]).run
    assert held.waiting == SAVED["held"].waiting
    free = kernel_commit(kernel.unpause(held, STAMP)).run
    assert (free.status, free.current_node, free.waiting) == (RunStatus.RUNNING, "there", None)


def asked_about() -> RunState:
    """The run with an effect whose outcome is unknown, waiting for somebody to decide."""
    return kernel_commit(kernel.ask_unknown(flying(), STAMP)).run


INSIDE = {
    "in flight": flying(),
    "due later": flying(token=None, due=NOW),
    "of unknown outcome": asked_about(),
    "several": several(),
    "held": flying(paused=True),
}


@pytest.mark.parametrize("then", INSIDE)
def test_a_step_that_the_snapshot_stood_inside_of_is_issued_again(then: str):
    saved = INSIDE[then]
    new = restore(running(current_node="elsewhere"), saved).run
    held = then == "held"
    assert (new.status, new.current_node) == (RunStatus.WAITING if held else RunStatus.RUNNING, "here")
    assert (new.intent, new.paused) == (None, held)
    assert (new.waiting is not None) == held
    assert kernel.next_move(new, now=NOW) == (kernel.Rest() if held else kernel.Ask())
    assert kernel.restore(new, saved, ORIGIN, STAMP) is None


@pytest.mark.parametrize("run", [flying(), flying(paused=True), several()])
def test_an_effect_that_somebody_performs_refuses_the_restore(run: RunState):
    for free in (None, "another token"):
        with pytest.raises(EffectInFlight, match=r"Run 'r' performs an effect at node 'here' \(step 'r:2\.1'\)"):
            kernel.restore(run, earlier(), ORIGIN, STAMP, free=free)


@pytest.mark.parametrize(("run", "left"), [(flying(), 1), (several(), 2)])
def test_an_effect_whose_performer_is_dead_ends_with_an_unknown_outcome(run: RunState, left: int):
    assert run.intent is not None
    commit = restore(run, earlier(), free=run.intent.token)
    lost, restored = commit.records[:left], commit.records[left]
    assert {(record.status, (record.result or {})["outcome"]) for record in lost} == {("failed", "unknown")}
    assert restored.effect is not None
    assert restored.effect["type"] == "restore"
    assert seq(commit.run) == 2 + max(1, len(run.intent.parts))


def test_numbers_of_effects_never_come_again():
    """A run that was cancelled in the middle of an effect counts it only in its ledger."""
    cancelled = kernel_commit(kernel.cancel(flying(), None, "api", STAMP)).run
    ids = ["r:0.1", "r:2.1", "r:2.2", "owner.7:status", "q:9.1", "r:x.1", "r:", "r:٣.1"]
    records = [StepRecord("r", step_id, "n", StepStatus.STARTED) for step_id in ids]
    assert kernel.next_seq("r", records) == 3
    assert kernel.next_seq("r", []) == 0
    assert seq(restore(cancelled, earlier(), next_seq=3).run) == 3


@pytest.mark.parametrize("field", [{"run_id": "other"}, {"workflow_id": "other"}])
def test_the_snapshot_of_another_run_is_refused(field: dict[str, str]):
    with pytest.raises(InvalidSnapshot, match="Only a run's own snapshot can be restored; to go on from another, fork"):
        kernel.restore(running(), earlier(**field), ORIGIN, STAMP)


def test_requests_to_others_go_with_the_restore():
    commit = restore(running(), earlier(), requests=(OTHERS,))
    assert commit.requests == (OTHERS,)
    assert isinstance(commit.requests[0], Request)


# Forks

FORKABLE = {**{name: run for name, run in SAVED.items() if name != "completed"}, **INSIDE}


@pytest.mark.parametrize("what", FORKABLE)
def test_a_fork_asks_the_node_again_and_shares_nothing(what: str):
    saved = replace(FORKABLE[what], session_id="s", parent_run_id="p")
    vars = kernel.forked_vars(saved, {"kept": "new", "more": 1})
    run = RunState.new(workflow_id="w", entry_node="x", vars=vars, run_id="f")
    commit = kernel.fork(run, saved, ORIGIN, STAMP, actor_id="eve")
    new = commit.run
    assert commit.before is None
    assert (new.run_id, new.revision, new.records, new.commit_id) == ("f", 1, 1, STAMP.id)
    assert (new.status, new.current_node, new.waiting, new.intent) == (
        RunStatus.RUNNING,
        saved.current_node,
        None,
        None,
    )
    assert (new.output, new.error, new.quarantined, new.owner, new.retries, new.node_errors) == (None,) * 4 + (0, 0)
    assert (new.parent_run_id, new.session_id, new.actor_id) == (None, "s", "ann")
    assert (new.created_at, new.updated_at) == (NOW, NOW)
    assert not new.paused
    assert "effect_seq" not in new.vars["_runtime"]
    assert (new.vars["kept"], new.vars["more"]) == ("new", 1)
    assert brief(commit) == [("owner.7:forked", "completed", None)]
    (record,) = commit.records
    assert (record.run_id, record.session_id, record.actor_id) == ("f", "s", "eve")
    assert record.effect == {"type": "fork", "payload": ORIGIN, "result_key": None}
    assert kernel.next_move(new, now=BEFORE) == kernel.Ask()


def test_a_run_that_has_completed_has_no_step_to_go_on_with():
    with pytest.raises(RunCompleted, match="Fork it at a snapshot that was taken before its end"):
        kernel.fork(running(run_id="f"), SAVED["completed"], ORIGIN, STAMP, actor_id=None)


def test_forked_vars_leave_the_original_alone_and_take_odd_ones():
    saved = earlier(vars={"a": {"b": 1}, "_runtime": {"effect_seq": 4, "model": "m", "control": {"paused": True}}})
    assert kernel.forked_vars(saved, {"a": 2}) == {"a": 2, "_runtime": {"model": "m"}}
    assert saved.vars["a"] == {"b": 1}
    assert kernel.forked_vars(earlier(vars={"_runtime": "odd"}), {}) == {"_runtime": "odd"}
    assert kernel.forked_vars(earlier(vars={}), {}) == {}
