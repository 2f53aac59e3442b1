"""The kernel as a table: what others do to a run."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime.core import kernel
from abstractruntime.core.kernel import Stamp
from abstractruntime.core.models import (
    TERMINAL,
    Request,
    RunState,
    RunStatus,
    WaitReason,
    WaitState,
)

from .states import (
    BEFORE,
    CANCEL,
    NOW,
    PAUSE,
    STAMP,
    brief,
    do,
    ended,
    flying,
    kernel_commit,
    question,
    running,
    timer,
    waiting,
)


@pytest.mark.parametrize("run", [running(), waiting(question()), waiting(timer())])
@pytest.mark.parametrize(("reason", "error"), [(None, "Cancelled"), ("", "Cancelled"), ("enough", "enough")])
def test_a_cancel_ends_the_run_and_says_by_whom(run: RunState, reason: str | None, error: str):
    commit = do(kernel.cancel, run, reason, "boss", STAMP)
    new = commit.run
    assert (new.status, new.error, new.waiting, new.intent, new.owner) == (RunStatus.CANCELLED, error, None, None, None)
    assert new.current_node == "here"
    assert brief(commit) == [("owner.7:status", "completed", "system:terminal_status:cancelled")]
    assert commit.records[0].result == {
        "emitted": True,
        "name": "abstract.status",
        "payload": {"text": "cancelled"},
        "by": "boss",
        "reason": reason,
    }


def test_a_cancel_of_an_effect_whose_next_attempt_has_not_begun_has_nothing_to_close():
    commit = do(kernel.cancel, flying(token=None), None, "api", STAMP)
    assert commit.run.intent is None
    assert brief(commit) == [("owner.7:status", "completed", "system:terminal_status:cancelled")]


def test_a_cancel_closes_the_effect_in_flight_and_says_what_is_known_of_it():
    commit = do(kernel.cancel, flying(token="t"), None, "api", STAMP)
    assert commit.run.intent is None
    assert brief(commit) == [
        ("r:2.1", "cancelled", "k"),
        ("owner.7:status", "completed", "system:terminal_status:cancelled"),
    ]
    assert commit.records[0].result == {"cancelled": True, "outcome": "unknown"}


def test_a_cancel_lifts_the_pause():
    commit = do(kernel.cancel, flying(paused=True), None, "api", STAMP)
    assert not commit.run.paused
    assert commit.run.vars["_runtime"]["control"] == {"paused_at": NOW}


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_nothing_is_done_to_a_run_that_has_ended(status: RunStatus):
    run = ended(status)
    assert kernel.cancel(run, None, "api", STAMP) is None
    assert kernel.pause(run, None, STAMP) is None
    assert kernel.unpause(run, STAMP) is None


@pytest.mark.parametrize(("reason", "noted"), [(None, {}), ("lunch", {"pause_reason": "lunch"})])
def test_a_pause_of_a_running_run_makes_it_wait_for_resume_run(reason: str | None, noted: dict[str, str]):
    commit = do(kernel.pause, running(), reason, STAMP)
    run = commit.run
    assert run.paused
    assert commit.records == ()
    assert run.vars["_runtime"] == {
        "effect_seq": 2,
        "model": "m",
        "control": {"paused": True, "paused_at": NOW, **noted},
    }
    assert run.status is RunStatus.WAITING
    assert run.waiting == WaitState(
        WaitReason.USER,
        "pause:r",
        resume_to_node="here",
        prompt="Paused",
        allow_free_text=False,
        details={"kind": "pause"},
    )


@pytest.mark.parametrize("wait", [timer(), question(reason=WaitReason.EVENT), question(reason=WaitReason.JOB)])
def test_a_pause_of_a_waiting_run_keeps_its_wait(wait: WaitState):
    run = do(kernel.pause, waiting(wait), None, STAMP).run
    assert (run.paused, run.status, run.waiting) == (True, RunStatus.WAITING, wait)
    going = do(kernel.unpause, run, STAMP).run
    assert (going.paused, going.status, going.waiting) == (False, RunStatus.WAITING, wait)


def test_a_run_that_waits_for_a_person_cannot_be_paused():
    assert kernel.pause(waiting(question()), None, STAMP) is None


def test_a_second_pause_changes_nothing():
    assert kernel.pause(flying(paused=True), "again", STAMP) is None


def test_resume_run_lifts_the_pause_and_keeps_when_it_was():
    commit = do(kernel.unpause, kernel_commit(kernel.pause(running(), "lunch", Stamp(BEFORE, "x"))).run, STAMP)
    run = commit.run
    assert commit.records == ()
    assert (run.status, run.waiting, run.current_node) == (RunStatus.RUNNING, None, "here")
    assert run.vars["_runtime"]["control"] == {"paused_at": BEFORE, "resumed_at": NOW}


@pytest.mark.parametrize("run", [running(), waiting(question()), flying()])
def test_resume_run_of_a_run_that_is_not_paused_changes_nothing(run: RunState):
    assert kernel.unpause(run, STAMP) is None


def test_a_wait_that_only_looks_like_a_pause_survives_one():
    wait = WaitState(WaitReason.EVENT, "door", None, "next", details={"kind": "pause"})
    paused = do(kernel.pause, waiting(wait), None, STAMP).run
    going = do(kernel.unpause, paused, STAMP).run
    assert (going.status, going.waiting) == (RunStatus.WAITING, wait)


@pytest.mark.parametrize("requests", [(CANCEL,), (PAUSE, CANCEL), (CANCEL, PAUSE)])
def test_a_requested_cancel_beats_a_pause_and_all_requests_are_answered(requests: tuple[Request, ...]):
    commit = do(kernel.answer, flying(), requests, STAMP)
    assert (commit.run.status, commit.run.error) == (RunStatus.CANCELLED, "enough")
    assert commit.answers == requests
    assert commit.records[-1].result["by"] == "boss"


def test_a_requested_pause_holds_the_run():
    commit = do(kernel.answer, running(), (PAUSE,), STAMP)
    assert commit.run.paused
    assert commit.answers == (PAUSE,)


@pytest.mark.parametrize(
    ("run", "request_"), [(waiting(question()), PAUSE), (flying(paused=True), PAUSE), (ended(), CANCEL)]
)
def test_a_request_that_can_change_nothing_is_answered_all_the_same(run: RunState, request_: Request):
    commit = do(kernel.answer, run, (request_,), STAMP)
    assert commit.answers == (request_,)
    assert commit.records == ()
    assert (commit.run.status, commit.run.waiting) == (run.status, run.waiting)


def test_new_limits_replace_the_old_and_nothing_else_moves():
    run = running(vars={**running().vars, "_limits": {"max_tokens": 9}})
    commit = do(kernel.set_limits, run, {"max_tokens": 1}, STAMP)
    assert commit.run.vars == {**run.vars, "_limits": {"max_tokens": 1}}
    assert commit.run.updated_at == BEFORE
    assert commit.records == ()


@pytest.mark.parametrize("run", [running(), flying(), waiting(question())])
def test_a_changed_graph_is_followed_and_a_record_keeps_both_fingerprints(run: RunState):
    commit = do(kernel.adopt, run, "new", "2", STAMP)
    assert (commit.run.fingerprint, commit.run.workflow_version) == ("new", "2")
    assert (commit.run.status, commit.run.current_node, commit.run.waiting) == (run.status, "here", run.waiting)
    assert commit.run.intent == (run.intent and replace(run.intent, known=commit.run.records))
    (record,) = commit.records
    assert brief(commit) == [("owner.7:workflow_changed", "completed", None)]
    assert record.effect == {
        "type": "workflow_changed",
        "payload": {"from": "old", "to": "new"},
        "result_key": None,
    }


def test_a_person_is_asked_about_a_lost_effect():
    commit = do(kernel.ask_unknown, flying(), STAMP)
    run = commit.run
    assert run.status is RunStatus.WAITING
    assert run.waiting is not None
    assert (run.waiting.reason, run.waiting.wait_key) == (WaitReason.USER, "unknown:r:2.1")
    assert run.waiting.choices == ["perform again", "fail the run"]
    assert not run.waiting.allow_free_text
    assert run.waiting.details == {"kind": kernel.UNKNOWN_OUTCOME, "idempotency_key": "k", "step_id": "r:2.1"}
    assert run.intent is not None
    assert (run.intent.step_id, run.intent.token, run.intent.key) == ("r:2.2", None, "k")
    assert brief(commit) == [("r:2.1", "failed", "k")]
    assert commit.records[0].result == {"outcome": "unknown"}


@pytest.mark.parametrize("answer", ["perform again", {"choice": "perform again"}, {"text": "perform again"}])
def test_a_lost_effect_is_performed_again_when_the_person_says_so(answer: Any):
    asked = kernel_commit(kernel.ask_unknown(flying(), STAMP)).run
    commit = do(kernel.decide_unknown, asked, answer, STAMP, actor_id="bob")
    run = commit.run
    assert (run.status, run.waiting, run.current_node) == (RunStatus.RUNNING, None, "here")
    assert brief(commit) == [("owner.7:resume", "completed", None)]
    assert commit.records[0].actor_id == "bob"
    assert commit.records[0].result == {"resumed": True, "decision": "perform again"}
    assert run.intent is not None
    assert kernel.next_move(run, now=NOW) == kernel.Perform(run.intent, lost=False)


@pytest.mark.parametrize("answer", ["fail the run", {"value": "fail the run"}])
def test_a_lost_effect_fails_the_run_when_the_person_says_so(answer: Any):
    asked = kernel_commit(kernel.ask_unknown(flying(), STAMP)).run
    commit = do(kernel.decide_unknown, asked, answer, STAMP, actor_id=None)
    assert (commit.run.status, commit.run.waiting, commit.run.intent) == (RunStatus.FAILED, None, None)
    assert "Outcome unknown" in (commit.run.error or "")
    assert commit.records[0].actor_id == "ann"
    assert brief(commit)[0] == ("owner.7:resume", "completed", None)
    assert brief(commit)[-1] == ("owner.7:status", "completed", "system:terminal_status:failed")
