"""The kernel as a table: how a run waits, which answers it takes, and what time does to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime.core import kernel
from abstractruntime.core.errors import InvalidAnswer, RunPaused, StaleResumeError
from abstractruntime.core.models import (
    TERMINAL,
    RunState,
    RunStatus,
    WaitReason,
    WaitState,
)
from abstractruntime.core.outcomes import EffectOutcome

from .states import (
    AFTER,
    BEFORE,
    CHOICES,
    NOW,
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


@pytest.mark.parametrize(
    ("wait", "key", "details"),
    [
        (WaitState(WaitReason.EVENT), "event:r:here:2", None),
        (WaitState(WaitReason.USER), "user:r:here:2", None),
        (WaitState(WaitReason.USER, "user:r:here:2"), "user:r:here:2", None),
        (WaitState(WaitReason.EVENT, "door"), "door", {"wait_id": "event:r:here:2"}),
        (WaitState(WaitReason.EVENT, "door", details={"a": 1}), "door", {"a": 1, "wait_id": "event:r:here:2"}),
        (WaitState(WaitReason.UNTIL, until=NOW), None, {"wait_id": "until:r:here:2"}),
    ],
)
def test_every_wait_has_an_identity_beside_the_key_its_author_gave(
    wait: WaitState, key: str | None, details: dict[str, Any] | None
):
    was = copy.deepcopy(wait)
    run = do(kernel.settle, flying(), EffectOutcome.waiting(wait), STAMP).run
    assert run.waiting is not None
    assert (run.waiting.wait_key, run.waiting.details) == (key, details)
    assert wait == was


@pytest.mark.parametrize("key", [None, "door", "event:r:here:2"])
def test_a_wait_is_answered_by_its_key_by_its_identity_or_by_whoever_names_none(key: str | None):
    wait = WaitState(WaitReason.EVENT, "door", details={"wait_id": "event:r:here:2"})
    run = waiting(wait)
    assert kernel.wait_of(run, key) is wait


@pytest.mark.parametrize("key", [None, "until:r:here:1"])
def test_a_timer_is_resumed_early_by_none_or_by_its_own_key(key: str | None):
    run = waiting(timer(until=AFTER))
    commit = do(kernel.resume, run, key, {"early": True}, STAMP, actor_id=None, lookup_key=None)
    assert commit.run.vars["rang"] == {"early": True}
    assert (commit.run.status, commit.run.current_node) == (RunStatus.RUNNING, "next")


@pytest.mark.parametrize("run", [waiting(timer(until=AFTER)), waiting(question())])
@pytest.mark.parametrize("key", ["", "event:r:here:1", "user:r:here:0"])
def test_a_key_of_another_wait_is_stale_and_the_error_names_both(run: RunState, key: str):
    wait = run.waiting
    assert wait is not None
    own = wait.wait_key or (wait.details or {})["wait_id"]
    with pytest.raises(StaleResumeError, match="wait_key mismatch") as caught:
        kernel.wait_of(run, key)
    assert repr(own) in str(caught.value)
    assert repr(key) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("run", [running(), flying(), *(ended(status) for status in TERMINAL)])
def test_a_run_that_does_not_wait_refuses_every_answer(run: RunState):
    with pytest.raises(StaleResumeError, match="Run is not waiting: 'r'"):
        kernel.wait_of(run, None)


@pytest.mark.parametrize("run", [running(), flying(), waiting(timer())])
def test_a_paused_run_refuses_every_answer(run: RunState):
    paused = kernel_commit(kernel.pause(run, None, STAMP)).run
    for key in (None, "pause:r", "until:r:here:1"):
        with pytest.raises(RunPaused, match="Run is paused"):
            kernel.wait_of(paused, key)


def test_an_answer_is_written_and_the_run_goes_on_behind_the_wait():
    commit = do(
        kernel.resume,
        waiting(question()),
        "user:r:here:1",
        {"text": "yes"},
        STAMP,
        actor_id="bob",
        lookup_key="resume:1",
    )
    run = commit.run
    assert (run.status, run.current_node, run.waiting) == (RunStatus.RUNNING, "next", None)
    assert run.vars["answer"] == {"text": "yes"}
    assert commit.lookup_key == "resume:1"
    (record,) = commit.records
    assert brief(commit) == [("owner.7:resume", "completed", "resume:1")]
    assert record.result == {"resumed": True}
    assert (record.node_id, record.actor_id) == ("here", "bob")
    assert record.effect == {
        "type": "resume",
        "payload": {
            "wait_reason": "user",
            "wait_key": "user:r:here:1",
            "resume_to_node": "next",
            "result_key": "answer",
            "payload": {"text": "yes"},
        },
        "result_key": None,
    }


def test_an_answer_without_an_actor_is_the_runs_own():
    commit = do(kernel.resume, waiting(question()), None, 1, STAMP, actor_id=None, lookup_key=None)
    assert commit.records[0].actor_id == "ann"
    assert commit.records[0].idempotency_key is None


def test_an_answer_of_none_is_not_written():
    commit = do(kernel.resume, waiting(question()), None, None, STAMP, actor_id=None, lookup_key=None)
    assert "answer" not in commit.run.vars
    assert commit.run.status is RunStatus.RUNNING


def test_an_answer_to_a_wait_that_leads_nowhere_completes_the_run():
    run = waiting(question(resume_to_node=None))
    commit = do(kernel.resume, run, None, "yes", STAMP, actor_id=None, lookup_key="resume:1")
    assert (commit.run.status, commit.run.output) == (RunStatus.COMPLETED, {"success": True, "result": "yes"})
    assert commit.run.vars["answer"] == "yes"
    assert brief(commit) == [
        ("owner.7:resume", "completed", "resume:1"),
        ("owner.7:completed", "completed", "system:completion:here"),
        ("owner.7:status", "completed", "system:terminal_status:completed"),
    ]
    assert commit.records[1].result == {
        "completed": True,
        "via": "resume",
        "wait_reason": "user",
        "wait_key": "user:r:here:1",
        "output": {"success": True, "result": "yes"},
    }


@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        {"choice": "no"},
        {"text": "yes"},
        {"response": "no"},
        {"value": "yes"},
        {"choice": "yes", "text": "maybe"},
        {"text": "no", "value": "maybe", "other": 1},
    ],
)
def test_an_answer_that_is_a_choice_is_taken(answer: Any):
    commit = do(kernel.resume, waiting(CHOICES), None, answer, STAMP, actor_id=None, lookup_key=None)
    assert commit.run.vars["answer"] == answer


@pytest.mark.parametrize(
    "answer",
    ["maybe", "", None, 1, ["yes"], {}, {"choice": "maybe", "text": "yes"}, {"answer": "yes"}, {"choice": None}],
)
def test_an_answer_that_is_no_choice_is_refused_and_names_the_choices(answer: Any):
    with pytest.raises(InvalidAnswer, match=r"\['yes', 'no'\]"):
        kernel.resume(waiting(CHOICES), None, answer, STAMP, actor_id=None, lookup_key=None)


@pytest.mark.parametrize(
    "wait",
    [
        question(),
        question(choices=["yes"]),
        question(allow_free_text=False),
        question(choices=[], allow_free_text=False),
    ],
)
def test_without_binding_choices_any_answer_is_taken(wait: WaitState):
    kernel.check_answer(wait, {"anything": [1]})


def test_a_timer_that_rings_writes_what_an_instant_wait_would_have():
    commit = do(kernel.expire, waiting(timer(until=BEFORE)), STAMP)
    assert commit.run.vars["rang"] == {"until": BEFORE, "ready": True}
    assert (commit.run.status, commit.run.current_node, commit.run.waiting) == (RunStatus.RUNNING, "next", None)
    assert brief(commit) == [("owner.7:resume", "completed", None)]
    assert commit.records[0].result == {"resumed": True, "by": "timer"}
    assert commit.records[0].effect is not None
    assert commit.records[0].effect["payload"]["payload"] == {"until": BEFORE, "ready": True}


@pytest.mark.parametrize("reason", [reason for reason in WaitReason if reason is not WaitReason.UNTIL])
def test_a_deadline_that_passes_says_that_nobody_answered(reason: WaitReason):
    commit = do(kernel.expire, waiting(question(reason=reason, until=BEFORE)), STAMP)
    assert commit.run.vars["answer"] == {"timed_out": True, "until": BEFORE}
    assert commit.run.status is RunStatus.RUNNING


def test_a_deadline_passes_although_its_answer_would_be_none_of_the_choices():
    commit = do(kernel.expire, waiting(replace(CHOICES, until=BEFORE)), STAMP)
    assert commit.run.vars["answer"]["timed_out"] is True


def test_a_timer_that_leads_nowhere_completes_the_run():
    commit = do(kernel.expire, waiting(timer(resume_to_node=None, until=BEFORE)), STAMP)
    assert commit.run.output == {"success": True, "result": {"until": BEFORE, "ready": True}}
    assert [record.result["via"] for record in commit.records[1:2]] == ["resume"]


@pytest.mark.parametrize(
    ("payload", "same"), [({"b": 1, "a": 2}, True), ({"a": 2}, False), (None, False), ("x", False)]
)
def test_the_same_answer_is_the_same_json_in_any_order_of_keys(payload: Any, same: bool):
    run = waiting(question())
    record = do(kernel.resume, run, None, {"a": 2, "b": 1}, STAMP, actor_id=None, lookup_key="resume:1").records[0]
    assert kernel.same_answer(record, None, payload) is same
