"""The kernel on effects that ask: what each verb does to a run that waits for a decision about its effect."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime import EffectOutcome, InvalidAnswer, StaleResumeError, WaitReason, WaitState
from abstractruntime.core import kernel
from abstractruntime.core.models import Commit, RunState, RunStatus
from abstractruntime.core.questions import Asked, Decision, Question, answer_to

from .states import AFTER, BEFORE, CANCEL, NOW, PAUSE, STAMP, brief, do, flying, seq

READ = Asked(call_id="c1", runtime_call_id="rt1", name="read_file", needs=False)
WRITE = Asked(call_id="c2", runtime_call_id="rt2", name="write_file")
QUESTION = Question(kind="approval", digest="d", calls=(READ, WRITE))


def asking(question: Question = QUESTION, *, until: str | None = None, **fields: Any) -> RunState:
    wait = WaitState(WaitReason.USER, "tool_approval:r:here:1", until, prompt="May I?", details={"mode": "ask"})
    return do(kernel.settle, flying(**fields), EffectOutcome.asking(wait, question), STAMP).run


def answered(run: RunState, payload: Any, key: str | None = "tool_approval:r:here:1", **options: Any) -> Commit:
    options = {"actor_id": None, "lookup_key": None, **options}
    return do(kernel.answered, run, key, payload, STAMP, **options)


def test_an_effect_that_asks_waits_with_its_intent_which_nobody_holds():
    commit = do(
        kernel.settle, flying(), EffectOutcome.asking(WaitState(WaitReason.USER, "k1", prompt="?"), QUESTION), STAMP
    )
    run = commit.run
    assert (run.status, run.owner, seq(run)) == (RunStatus.WAITING, None, 2)
    assert run.intent is not None
    assert (run.intent.token, run.intent.question, run.intent.key) == (None, QUESTION, "k")
    assert run.waiting is not None
    assert (run.waiting.resume_to_node, run.waiting.result_key) == ("next", "paid.amount")
    assert (run.waiting.details or {})["wait_id"] == "user:r:here:2.1"
    assert brief(commit) == [("r:2.1", "waiting", "k")]
    assert kernel.is_asking(run)
    assert not kernel.is_open(run)
    assert kernel.next_move(run, now=NOW) == kernel.Rest()


def test_a_decision_is_journaled_and_puts_the_same_intent_back_unheld():
    run = asking()
    commit = answered(run, {"approved": True}, actor_id="ann")
    new = commit.run
    assert (new.status, new.waiting, new.current_node, seq(new)) == (RunStatus.RUNNING, None, "here", 2)
    assert new.intent is not None
    assert (new.intent.key, new.intent.step_id, new.intent.token, new.intent.question) == ("k", "r:2.2", None, None)
    calls = {"rt1": {"approved": True}, "rt2": {"approved": True}}
    decision = Decision(payload={"calls": calls, "always": []}, at=NOW, by="ann", digest="d")
    assert new.intent.answer == decision
    (record,) = commit.records
    assert (record.actor_id, record.ended_at) == ("ann", NOW)
    assert record.result == {
        "resumed": True,
        "decision": decision.payload,
        "about": {"kind": "approval", "step_id": "r:2.1", "idempotency_key": "k", "digest": "d"},
    }
    assert record.effect is not None
    assert record.effect["payload"]["payload"] == {"approved": True}
    assert kernel.next_move(new, now=NOW) == kernel.Perform(new.intent, lost=False)
    claimed = do(kernel.claim, new, "me", STAMP)
    assert brief(claimed) == [("r:2.2", "started", "k")]
    assert claimed.run.intent is not None
    assert claimed.run.intent.answer == decision


def test_the_decision_stays_with_the_effect_until_it_ends():
    decided = answered(asking(), {"approved": True}).run
    claimed = do(kernel.claim, decided, "me", STAMP).run
    for verb in (
        lambda: do(kernel.hand_back, claimed, STAMP),
        lambda: do(kernel.retry, claimed, EffectOutcome.failed("busy"), AFTER, STAMP),
        lambda: do(kernel.claim, claimed, "heir", STAMP),
    ):
        intent = verb().run.intent
        assert intent is not None
        assert intent.answer == decided.intent.answer  # type: ignore[union-attr]
        assert intent.key == "k"
    assert do(kernel.settle, claimed, EffectOutcome.completed(5), STAMP).run.intent is None


def test_an_effect_may_ask_again_under_another_identity():
    first = asking()
    claimed = do(kernel.claim, answered(first, {"approved": True}).run, "me", STAMP).run
    again = EffectOutcome.asking(WaitState(WaitReason.USER), QUESTION)
    second = do(kernel.settle, claimed, again, STAMP).run
    assert second.waiting is not None
    assert second.waiting.wait_key == "user:r:here:2.2"
    assert second.intent is not None
    assert second.intent.answer is None
    with pytest.raises(StaleResumeError, match="wait_key mismatch"):
        answered(second, {"approved": True})


def test_without_a_next_node_the_effect_ends_the_run_as_it_would_have():
    run = asking(next_node=None)
    claimed = do(kernel.claim, answered(run, {"approved": True}).run, "me", STAMP).run
    ended = do(kernel.settle, claimed, EffectOutcome.completed(5), STAMP).run
    assert (ended.status, ended.output) == (RunStatus.COMPLETED, {"success": True, "result": 5})


def test_a_wait_that_names_a_node_to_resume_to_goes_there():
    wait = WaitState(WaitReason.JOB, "job", resume_to_node="elsewhere")
    run = do(kernel.settle, flying(), EffectOutcome.asking(wait), STAMP).run
    claimed = do(kernel.claim, answered(run, "done", "job").run, "me", STAMP).run
    assert do(kernel.settle, claimed, EffectOutcome.completed(5), STAMP).run.current_node == "elsewhere"


def test_a_deadline_that_passes_is_a_decision_too():
    run = asking(until=NOW)
    assert kernel.next_move(run, now=NOW) == kernel.Wake()
    commit = do(kernel.expire, run, STAMP)
    assert commit.run.intent is not None
    assert commit.run.intent.answer == Decision(
        payload={"timed_out": True, "until": NOW}, at=NOW, by="timer", expired=True
    )
    assert commit.records[0].result["expired"] is True
    assert commit.records[0].actor_id == "ann"


def test_approve_expired_a_decision_behind_the_deadline_is_refused_though_nobody_has_looked_yet():
    with pytest.raises(InvalidAnswer, match="expired at"):
        answered(asking(until=NOW), {"approved": True})
    assert answered(asking(until=AFTER), {"approved": True}).run.status is RunStatus.RUNNING


def test_a_cancel_ends_it_and_a_pause_of_what_waits_for_a_person_holds_nothing():
    run = asking()
    commit = do(kernel.cancel, run, "enough", "boss", STAMP)
    assert (commit.run.status, commit.run.intent) == (RunStatus.CANCELLED, None)
    assert [record.step_id for record in commit.records] == ["owner.7:status"], "its attempt has ended already"
    assert kernel.pause(run, "lunch", STAMP) is None
    assert do(kernel.answer, run, (CANCEL, PAUSE), STAMP).run.status is RunStatus.CANCELLED


def test_a_question_that_comes_while_the_run_is_paused_waits_behind_the_pause():
    paused = flying(paused=True)
    outcome = EffectOutcome.asking(WaitState(WaitReason.USER, "k1"), QUESTION)
    run = kernel.settle(paused, outcome, STAMP).run
    assert run.paused
    with pytest.raises(ValueError, match="paused"):
        answered(run, {"approved": True}, "k1")
    went_on = kernel.unpause(run, STAMP)
    assert went_on is not None
    assert went_on.run.status is RunStatus.WAITING
    assert answered(went_on.run, {"approved": True}, "k1").run.status is RunStatus.RUNNING


def test_raised_limits_do_not_answer_it():
    forged = WaitState(
        WaitReason.USER,
        "k1",
        choices=["raise and go on", "stop"],
        allow_free_text=False,
        details={"kind": "limit", "limit": "iterations"},
    )
    run = do(kernel.settle, flying(), EffectOutcome.asking(forged), STAMP).run
    assert kernel.set_limits(run, {}, STAMP).run.status is RunStatus.WAITING


def test_a_restore_drops_the_question_and_issues_the_step_again():
    saved = asking()
    later = do(kernel.cancel, saved, None, "boss", STAMP).run
    back = kernel.restore(later, saved, {}, STAMP, next_seq=3)
    assert back is not None
    assert (back.run.status, back.run.waiting, back.run.intent, seq(back.run)) == (RunStatus.RUNNING, None, None, 3)
    forward = kernel.restore(saved, replace(flying(), intent=None), {}, STAMP)
    assert forward is not None
    assert (forward.run.intent, seq(forward.run)) == (None, 3)


REFUSED: list[tuple[Any, str]] = [
    ("yes", "a decision is a dict"),
    ({}, "a decision is a dict"),
    ({"text": "ok"}, "a decision is a dict"),
    (True, "a decision is a dict"),
    ({"approved": "false"}, "must be true or false, found 'false'"),
    ({"approved": 1}, "must be true or false"),
    ({"approved": None}, "must be true or false"),
    ({"approved": True, "edit": {}}, "it has 'edit'"),
    ({"approved": True, "decisions": {}}, "not both"),
    ({"approved": True, "digest": "other"}, "its digest is not"),
    ({"approved": True, "reason": 5}, "must be a text"),
    ({"approved": False, "arguments": {"c2": {}}}, "denies the calls and changes"),
    ({"approved": True, "arguments": {"c3": {}}}, "names the call 'c3'"),
    ({"approved": True, "arguments": {"c2": "x"}}, "must be a dict"),
    ({"approved": True, "arguments": {"c2": {"key": {"$secret": "prod"}}}}, "hold no secrets"),
    ({"approved": True, "always": ["rm"]}, "names 'rm'"),
    ({"approved": False, "always": ["write_file"]}, "which it does not approve"),
    ({"approved": True, "always": "write_file"}, "must be true or a list"),
    ({"decisions": {}}, "says nothing about 'c2'"),
    ({"decisions": {"c1": True}}, "says nothing about 'c2'"),
    ({"decisions": {"c2": "yes"}}, "a decision is true, false or a dict"),
    ({"decisions": {"c2": {"approved": "no"}}}, "must be true or false"),
    ({"decisions": {"c2": True, "rt2": False}}, "decides twice"),
    ({"decisions": {"c2": {"approved": False, "arguments": {}}}}, "denies a call and changes"),
    ({"decisions": [True, True]}, "must be a dict"),
    ({"results": [{"call_id": "c1", "success": True}]}, "result of 'c2' is missing"),
    ({"results": [{"call_id": "c1", "success": True}] * 2}, "about each once"),
    ({"results": [{"call_id": "x", "success": True}]}, "names the call 'x'"),
    ({"results": [{"call_id": "c1", "success": "yes"}]}, '"success" \\(true or false\\)'),
    ({"results": "ok"}, "a list"),
    ({"mode": "delegated", "results": []}, "results come as"),
]


@pytest.mark.parametrize(("payload", "why"), REFUSED, ids=[str(payload) for payload, _ in REFUSED])
def test_what_is_no_strict_decision_decides_nothing(payload: Any, why: str):
    run = asking()
    with pytest.raises(InvalidAnswer, match=why):
        answered(run, payload)
    assert kernel.is_asking(run)


@pytest.mark.parametrize(
    ("payload", "calls", "always"),
    [
        ({"approved": False, "reason": "no"}, {"rt1": (False, "no"), "rt2": (False, "no")}, []),
        ({"approved": True, "digest": "d"}, {"rt1": (True, None), "rt2": (True, None)}, []),
        ({"decisions": {"c2": False}}, {"rt1": (True, None), "rt2": (False, None)}, []),
        ({"decisions": {"c2": False}, "always": True}, {"rt1": (True, None), "rt2": (False, None)}, ["read_file"]),
        ({"decisions": {"rt1": False, "rt2": True}}, {"rt1": (False, None), "rt2": (True, None)}, []),
        ({"approved": True, "always": ["write_file"]}, {"rt1": (True, None), "rt2": (True, None)}, ["write_file"]),
    ],
)
def test_a_strict_decision_says_something_about_every_call(payload: Any, calls: Any, always: list[str]):
    found = answer_to(QUESTION, payload)
    assert {key: (one["approved"], one.get("reason")) for key, one in found["calls"].items()} == calls
    assert found["always"] == always


def test_arguments_may_be_edited_where_that_is_allowed():
    edited = {"path": "other"}
    for payload in (
        {"approved": True, "arguments": {"c2": edited}},
        {"decisions": {"c2": {"approved": True, "arguments": edited}}},
    ):
        assert answer_to(QUESTION, payload)["calls"]["rt2"] == {"approved": True, "arguments": edited}
        with pytest.raises(ValueError, match="may not be changed"):
            answer_to(replace(QUESTION, edits=False), payload)


def test_calls_that_share_an_id_are_told_apart_by_the_runtime_s_own():
    twice = Question(kind="approval", calls=(replace(WRITE, runtime_call_id="a"), replace(WRITE, runtime_call_id="b")))
    with pytest.raises(ValueError, match="several calls have the id"):
        answer_to(twice, {"decisions": {"c2": True}})
    found = answer_to(twice, {"decisions": {"a": True, "b": False}})["calls"]
    assert (found["a"]["approved"], found["b"]["approved"]) == (True, False)
    results = [{"call_id": "c2", "success": True, "output": n} for n in (1, 2)]
    found = answer_to(replace(twice, kind="results"), {"results": results})["results"]
    assert (found["a"]["output"], found["b"]["output"]) == (1, 2)


def test_results_of_a_host_are_taken_unless_they_are_forbidden():
    results = [{"call_id": "c2", "success": True}, {"call_id": "c1", "success": False, "error": "x"}]
    assert set(answer_to(QUESTION, {"mode": "executed", "results": results})["results"]) == {"rt1", "rt2"}
    with pytest.raises(ValueError, match="not taken here"):
        answer_to(replace(QUESTION, host_results=False), {"results": results})
    with pytest.raises(ValueError, match="expected a dict"):
        answer_to(replace(QUESTION, kind="results"), {"approved": True})


def test_an_open_question_takes_what_its_choices_allow():
    wait = WaitState(WaitReason.USER, "k1", choices=["a", "b"], allow_free_text=False)
    run = do(kernel.settle, flying(), EffectOutcome.asking(wait), STAMP).run
    with pytest.raises(InvalidAnswer):
        answered(run, "c", "k1")
    intent = answered(run, {"choice": "a"}, "k1").run.intent
    assert intent is not None
    assert intent.answer == Decision(payload={"choice": "a"}, at=NOW)


def test_parts_that_land_are_known_to_the_next_attempt_of_their_effect_alone():
    run = flying(known=5)
    assert run.intent is not None
    one = kernel.landed_record(run, run.intent, "one", {"x": 1}, STAMP)
    two = kernel.landed_record(run, run.intent, "two", None, STAMP)
    commit = kernel.landing(run, (one, two), (), STAMP)
    assert commit.run.intent is not None
    assert commit.run.intent.landed == {"one": {"x": 1}, "two": None}
    assert (commit.run.revision, commit.run.records) == (run.revision, run.records + 2)
    assert [record.idempotency_key for record in commit.records] == [None, None], "no key finds a part"
    after = do(kernel.claim, commit.run, "heir", STAMP).run.intent
    assert after is not None
    assert (after.landed, after.attempt) == ({"one": {"x": 1}, "two": None}, 2)
    other = replace(run.intent, seq=3)
    assert kernel.known_by(run, other, (one, two)).landed == {}
    assert kernel.known_by(run, run.intent, (one, replace(one, result=2))).landed == {"one": 2}
    forged = replace(one, effect={"type": "landed", "payload": "x"})
    assert kernel.known_by(run, run.intent, (forged,)).landed == {}
    assert BEFORE < NOW
