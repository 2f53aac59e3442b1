"""The kernel as a table: a state and a fact in, a commit out. Here: the next move, and the life of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime.core import kernel
from abstractruntime.core.kernel import Stamp
from abstractruntime.core.models import (
    Commit,
    Effect,
    EffectType,
    Intent,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from abstractruntime.core.outcomes import Change, EffectOutcome

from .states import (
    AFTER,
    BEFORE,
    CANCEL,
    NOW,
    OTHERS,
    PAUSE,
    STAMP,
    brief,
    do,
    ended,
    flying,
    intent,
    kernel_commit,
    question,
    running,
    seq,
    timer,
    unfolded,
    waiting,
)

# -- what a run needs next

MOVES: dict[str, tuple[RunState, dict[str, Any], kernel.Move]] = {
    "a completed run rests": (ended(), {}, kernel.Rest()),
    "a failed run rests": (ended(RunStatus.FAILED), {}, kernel.Rest()),
    "a cancelled run rests": (ended(RunStatus.CANCELLED), {}, kernel.Rest()),
    "an ended run rests whatever is asked of it": (ended(), {"requests": (CANCEL,)}, kernel.Rest()),
    "a request comes before the node": (running(), {"requests": (PAUSE,)}, kernel.Answer((PAUSE,))),
    "a request comes before a wait": (waiting(question()), {"requests": (CANCEL,)}, kernel.Answer((CANCEL,))),
    "a request comes before a due timer": (waiting(timer()), {"requests": (CANCEL,)}, kernel.Answer((CANCEL,))),
    "a request comes before an effect": (
        flying(),
        {"requests": (CANCEL, PAUSE), "held": True},
        kernel.Answer((CANCEL, PAUSE)),
    ),
    "a request reaches a paused run": (flying(paused=True), {"requests": (CANCEL,)}, kernel.Answer((CANCEL,))),
    "a paused run rests": (kernel_commit(kernel.pause(running(), None, STAMP)).run, {}, kernel.Rest()),
    "a paused run rests with a lost effect": (flying(paused=True), {}, kernel.Rest()),
    "a paused run rests although its timer is due": (
        kernel_commit(kernel.pause(waiting(timer(until=BEFORE)), None, STAMP)).run,
        {},
        kernel.Rest(),
    ),
    "a run that waits for a person rests": (waiting(question()), {}, kernel.Rest()),
    "a timer in the future rests": (waiting(timer(until=AFTER)), {}, kernel.Rest()),
    "a timer is due at its instant": (waiting(timer()), {}, kernel.Wake()),
    "a timer is due after its instant": (waiting(timer(until=BEFORE)), {}, kernel.Wake()),
    "a deadline wakes as a timer does": (waiting(question(until=BEFORE)), {}, kernel.Wake()),
    "a running run asks its node": (running(), {}, kernel.Ask()),
    "a held intent is busy": (flying(), {"held": True}, kernel.Busy()),
    "an intent whose holder is gone was lost": (flying(), {}, kernel.Perform(flying().intent, lost=True)),  # type: ignore[arg-type]
    "an intent that nobody claimed is performed": (
        flying(token=None),
        {},
        kernel.Perform(flying(token=None).intent, lost=False),  # type: ignore[arg-type]
    ),
    "a retry is due later": (flying(token=None, due=AFTER), {}, kernel.Later(AFTER)),
    "a retry is due now": (
        flying(token=None, due=NOW),
        {},
        kernel.Perform(flying(token=None, due=NOW).intent, lost=False),  # type: ignore[arg-type]
    ),
    "a question about a lost effect rests": (
        kernel_commit(kernel.ask_unknown(flying(), STAMP)).run,
        {},
        kernel.Rest(),
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_the_next_move_follows_from_the_state_alone(case: str):
    run, facts, expected = MOVES[case]
    was = copy.deepcopy(run)
    assert kernel.next_move(run, now=NOW, **facts) == expected
    assert run == was


# -- steps without an effect


def test_the_first_commit_of_a_run_is_revision_one_and_writes_no_record():
    run = RunState.new(workflow_id="w", entry_node="here", vars={"a": 1}, run_id="r")
    commit = kernel.create(run, STAMP)
    assert commit.before is None
    assert commit.records == ()
    assert (commit.run.revision, commit.run.commit_id, commit.run.records) == (1, STAMP.id, 0)
    assert commit.run.created_at == commit.run.updated_at == NOW
    assert run.revision == 0


def test_a_plan_without_an_effect_moves_on_and_writes_no_record():
    commit = do(kernel.move, running(), StepPlan("here", next_node="next"), STAMP)
    assert commit.records == ()
    run = commit.run
    assert (run.status, run.current_node, run.updated_at, run.node_errors) == (RunStatus.RUNNING, "next", NOW, 0)
    assert run.vars["_temp"] == {"mine": 1, "prev_node_id": "here", "prev_next_node": "next"}
    assert seq(run) == 2
    assert run.owner == "owner"


@pytest.mark.parametrize("output", [{}, {"answer": None}, {"answer": [1]}])
def test_an_output_ends_the_run_with_a_completion_record_and_then_its_status(output: dict[str, Any]):
    commit = do(kernel.complete, running(), StepPlan("last", complete_output=output), STAMP)
    run = commit.run
    assert (run.status, run.output, run.waiting, run.error, run.owner) == (
        RunStatus.COMPLETED,
        output,
        None,
        None,
        None,
    )
    assert brief(commit) == [
        ("owner.7:completed", "completed", "system:completion:last"),
        ("owner.7:status", "completed", "system:terminal_status:completed"),
    ]
    completion, status = commit.records
    assert completion.effect is None
    assert completion.node_id == "last"
    assert completion.result == {"completed": True, "output": output}
    assert status.effect == {
        "type": "emit_event",
        "payload": {"name": "abstract.status", "scope": "session", "payload": {"text": "completed"}},
        "result_key": None,
    }
    assert status.result == {"emitted": True, "name": "abstract.status", "payload": {"text": "completed"}}
    assert seq(run) == 2


def test_a_node_that_raised_leaves_the_run_where_it_was_beside_a_failed_record():
    commit = do(kernel.node_failed, running(), "here", "ValueError: no", STAMP)
    assert commit.run == running(revision=4, commit_id=STAMP.id, records=6, node_errors=3)
    (record,) = commit.records
    assert brief(commit) == [("owner.7:node_failed", "failed", None)]
    assert (record.node_id, record.effect, record.error) == ("here", None, "ValueError: no")


@pytest.mark.parametrize(
    "left", [{}, {"_runtime": {}}, {"_runtime": 5}, {"_runtime": {"effect_seq": 99}}, {"_runtime": {"effect_seq": -1}}]
)
def test_whatever_a_node_did_to_the_counter_is_undone(left: dict[str, Any]):
    was = copy.deepcopy(left)
    assert kernel.seq_of(kernel.restore_seq({**left, "a": 1}, 2)) == 2
    assert left == was


def test_a_counter_that_the_node_left_alone_costs_no_copy():
    vars = running().vars
    assert kernel.restore_seq(vars, 2) is vars


@pytest.mark.parametrize(
    "vars", [{}, {"_runtime": None}, {"_runtime": {"effect_seq": "2"}}, {"_runtime": {"effect_seq": True}}]
)
def test_a_counter_that_is_none_counts_as_zero(vars: dict[str, Any]):
    assert kernel.seq_of(vars) == 0


# -- the life of an effect


def test_an_intent_holds_all_that_recovery_needs():
    assert intent() == Intent(
        step_id="r:2.1",
        seq=2,
        node_id="here",
        effect=Effect("pay", {"amount": 5}, "paid.amount"),
        key="k",
        started_at=NOW,
        next_node="next",
    )


def test_a_promise_is_claimed_by_the_commit_that_writes_it():
    commit = do(kernel.promise, running(owner=None), intent(), "me", STAMP)
    assert commit.run.intent == replace(intent(), token=STAMP.id, known=commit.run.records)
    assert (commit.run.owner, commit.run.status, commit.run.current_node) == ("me", RunStatus.RUNNING, "here")
    assert seq(commit.run) == 2
    (record,) = commit.records
    assert brief(commit) == [("r:2.1", "started", "k")]
    assert record.effect == {"type": "pay", "payload": {"amount": 5}, "result_key": "paid.amount"}
    assert (record.attempt, record.ended_at, record.node_id, record.actor_id) == (1, None, "here", "ann")


def test_an_inside_effect_is_promised_and_landed_in_one_commit():
    commit = do(kernel.inside, running(), intent(), EffectOutcome.completed(5), STAMP)
    assert brief(commit) == [("r:2.1", "started", "k"), ("r:2.1", "completed", "k")]
    assert commit.run.intent is None
    assert commit.run.vars["paid"] == {"amount": 5}
    assert seq(commit.run) == 3


def test_a_settled_effect_writes_its_result_and_the_run_goes_on():
    commit = do(kernel.settle, flying(), EffectOutcome.completed({"ok": True}), STAMP)
    run = commit.run
    assert brief(commit) == [("r:2.1", "completed", "k")]
    assert commit.records[0].result == {"ok": True}
    assert (commit.records[0].started_at, commit.records[0].ended_at) == (BEFORE, NOW)
    assert (run.status, run.current_node, run.intent, run.node_errors) == (RunStatus.RUNNING, "next", None, 0)
    assert run.vars["paid"] == {"amount": {"ok": True}}
    assert run.vars["kept"] == running().vars["kept"]
    assert run.vars["_temp"] == {"mine": 1, "prev_node_id": "here", "prev_next_node": "next"}
    assert run.vars["_runtime"] == {"effect_seq": 3, "model": "m"}


@pytest.mark.parametrize(
    ("result_key", "result", "expected"),
    [
        (None, 5, {}),
        ("", 5, {}),
        ("a", None, {}),
        ("a", 0, {"a": 0}),
        ("a", {}, {"a": {}}),
        ("a.b.c", 5, {"a": {"b": {"c": 5}}}),
        ("kept.deep.x", 5, {"kept": {"deep": {"x": 5}}}),
    ],
)
def test_a_result_is_written_at_its_dotted_key_unless_it_is_none(
    result_key: str | None, result: Any, expected: dict[str, Any]
):
    before = running(intent=replace(intent(result_key), token="t"))
    after = do(kernel.settle, before, EffectOutcome.completed(result), STAMP).run
    own = {"_runtime", "_temp"}
    assert {k: v for k, v in after.vars.items() if k not in own} == {"kept": before.vars["kept"], **expected}


@pytest.mark.parametrize("result_key", ["_runtime", "_runtime.effect_seq"])
@pytest.mark.parametrize("by", ["a result", "a change", "an answer"])
def test_no_result_can_move_the_counter_of_effects(result_key: str, by: str):
    if by == "a result":
        run = running(intent=replace(intent(result_key), token="t"))
        commit = do(kernel.settle, run, EffectOutcome.completed({"x": 1}), STAMP)
    elif by == "a change":
        changes = (Change(path=result_key, value={"x": 1}),)
        commit = do(kernel.settle, flying(), EffectOutcome.completed(1, changes=changes), STAMP)
    else:
        run = waiting(question(result_key=result_key))
        commit = do(kernel.resume, run, None, {"x": 1}, STAMP, actor_id=None, lookup_key=None)
    assert seq(commit.run) == (2 if by == "an answer" else 3)


def test_changes_land_in_order_before_the_result():
    changes = (
        Change(path="log", value="first", op="append"),
        Change(path="log", value="second", op="append"),
        Change(path="kept.deep", value=[1, {"x": 2}, 3]),
        Change(path="paid.amount", value="overwritten"),
        Change(path="paid.at", value=NOW),
    )
    run = do(kernel.settle, flying(), EffectOutcome.completed(5, changes=changes), STAMP).run
    assert run.vars["log"] == ["first", "second"]
    assert run.vars["kept"] == {"deep": [1, {"x": 2}, 3]}
    assert run.vars["paid"] == {"amount": 5, "at": NOW}


def test_an_append_behind_a_list_leaves_the_list_that_was_there_alone():
    before = flying()
    outcome = EffectOutcome.completed(None, changes=(Change(path="kept.deep", value=3, op="append"),))
    assert do(kernel.settle, before, outcome, STAMP).run.vars["kept"]["deep"] == [1, {"x": 2}, 3]
    assert before.vars["kept"]["deep"] == [1, {"x": 2}]


def test_an_effect_without_a_next_node_ends_the_run_with_its_result():
    run = running(intent=replace(intent("paid", None), token="t"))
    commit = do(kernel.settle, run, EffectOutcome.completed(5), STAMP)
    assert commit.run.status is RunStatus.COMPLETED
    assert commit.run.output == {"success": True, "result": 5}
    assert (commit.run.intent, commit.run.owner) == (None, None)
    assert commit.run.vars["paid"] == 5
    assert brief(commit) == [
        ("r:2.1", "completed", "k"),
        ("owner.7:completed", "completed", "system:completion:here"),
        ("owner.7:status", "completed", "system:terminal_status:completed"),
    ]
    assert seq(commit.run) == 3


def test_requests_and_lookup_keys_travel_with_the_commit_that_lands_the_effect():
    outcome = EffectOutcome.completed(1, requests=(OTHERS,))
    settled = do(kernel.settle, flying(), outcome, STAMP, lookup_key="k")
    assert (settled.requests, settled.lookup_key, settled.answers) == ((OTHERS,), "k", ())
    inside = do(kernel.inside, running(), intent(), outcome, STAMP, lookup_key="k")
    assert (inside.requests, inside.lookup_key, inside.answers) == ((OTHERS,), "k", ())


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"input_tokens": 7, "prompt_tokens": 8, "total_tokens": 9}, 7),
        ({"prompt_tokens": 8, "total_tokens": 9}, 8),
        ({"total_tokens": 9}, 9),
        ({"input_tokens": "7"}, None),
        (None, None),
    ],
)
def test_a_completed_model_call_notes_the_tokens_it_used(usage: Any, counted: int | None):
    run = running(intent=replace(intent(kind=EffectType.LLM_CALL), token="t"))
    after = do(kernel.settle, run, EffectOutcome.completed({"usage": usage}), STAMP).run
    assert after.vars.get("_limits", {}).get("estimated_tokens_used") == counted


def test_a_reused_result_lands_without_a_promise_and_names_the_step_it_came_from():
    found = StepRecord("r", "r:0.1", "here", StepStatus.COMPLETED, result={"old": 1}, idempotency_key="k")
    commit = do(kernel.reused, running(), intent(), found, STAMP)
    assert brief(commit) == [("r:2.1", "completed", "k")]
    assert commit.records[0].reused_from == "r:0.1"
    assert commit.run.vars["paid"] == {"amount": {"old": 1}}
    assert seq(commit.run) == 3


def test_an_outcome_that_waits_makes_the_run_wait_under_an_identity_of_its_own():
    wait = WaitState(WaitReason.JOB, None, None, "after", "job", details={"id": 7})
    commit = do(kernel.settle, flying(), EffectOutcome.waiting(wait), STAMP)
    run = commit.run
    assert (run.status, run.current_node, run.intent, run.owner) == (RunStatus.WAITING, "here", None, None)
    assert run.waiting == replace(wait, wait_key="job:r:here:2")
    assert seq(run) == 3
    assert run.vars["_temp"]["prev_node_id"] == "here"
    assert brief(commit) == [("r:2.1", "waiting", "k")]
    assert commit.records[0].result == {
        "wait": {
            "reason": "job",
            "wait_key": "job:r:here:2",
            "until": None,
            "resume_to_node": "after",
            "result_key": "job",
            "prompt": None,
            "choices": None,
            "allow_free_text": True,
            "details": {"id": 7},
        }
    }


def test_a_failed_effect_fails_the_run_with_its_own_text():
    commit = do(kernel.settle, flying(), EffectOutcome.failed("card refused"), STAMP)
    run = commit.run
    assert (run.status, run.error, run.intent, run.waiting, run.owner) == (
        RunStatus.FAILED,
        "card refused",
        None,
        None,
        None,
    )
    assert brief(commit) == [("r:2.1", "failed", "k"), ("owner.7:status", "completed", "system:terminal_status:failed")]
    assert commit.records[0].error == "card refused"
    assert "paid" not in run.vars
    assert seq(run) == 3


@pytest.mark.parametrize(
    ("failures", "error"),
    [(0, "no"), (1, "Effect failed after 2 attempts: no"), (4, "Effect failed after 5 attempts: no")],
)
def test_the_error_of_a_run_counts_the_attempts_once_there_were_several(failures: int, error: str):
    commit = do(kernel.settle, flying(failures=failures, attempt=failures + 1), EffectOutcome.failed("no"), STAMP)
    assert commit.run.error == error
    assert commit.records[0].error == "no"


def test_attempts_that_were_handed_back_do_not_count_as_failures():
    commit = do(kernel.settle, flying(attempt=3), EffectOutcome.failed("no"), STAMP)
    assert commit.run.error == "no"


@pytest.mark.parametrize("error", ["", None])
def test_a_failure_without_a_text_still_says_something(error: Any):
    commit = do(kernel.settle, flying(), EffectOutcome("failed", error=error), STAMP)
    assert commit.run.error == "Effect failed without saying why"


def test_a_handler_that_gave_up_fails_the_run():
    commit = do(kernel.settle, flying(), EffectOutcome.cancelled({"why": "told to"}), STAMP)
    assert (commit.run.status, commit.run.error) == (RunStatus.FAILED, "Effect cancelled")
    assert commit.records[0].result == {"cancelled": True, "why": "told to"}


def test_a_retry_puts_the_next_attempt_back_unclaimed_and_due_later():
    commit = do(kernel.retry, flying(), EffectOutcome.failed("busy"), AFTER, STAMP)
    assert commit.run.intent == replace(
        flying().intent,
        step_id="r:2.2",
        attempt=2,
        failures=1,
        token=None,
        due=AFTER,  # type: ignore[type-var]
        known=commit.run.records,
    )
    assert brief(commit) == [("r:2.1", "failed", "k")]
    assert commit.records[0].error == "busy"
    assert commit.run.status is RunStatus.RUNNING
    assert seq(commit.run) == 2


def test_an_effect_handed_back_may_be_performed_at_once_under_the_same_key():
    commit = do(kernel.hand_back, flying(), STAMP)
    assert commit.run.intent == replace(  # type: ignore[type-var]
        flying().intent, step_id="r:2.2", attempt=2, token=None, known=commit.run.records
    )
    assert brief(commit) == [("r:2.1", "cancelled", "k")]
    assert commit.records[0].result == {"cancelled": True, "outcome": "unknown", "handed_back": True}
    assert seq(commit.run) == 2


def test_a_claim_on_an_effect_that_nobody_performs_starts_the_attempt_it_stands_at():
    run = flying(token=None, step_id="r:2.2", attempt=2, due=BEFORE)
    commit = do(kernel.claim, run, "me", STAMP)
    assert commit.run.intent == replace(  # type: ignore[type-var]
        run.intent, token=STAMP.id, started_at=NOW, due=None, known=commit.run.records
    )
    assert commit.run.owner == "me"
    assert brief(commit) == [("r:2.2", "started", "k")]
    assert (commit.records[0].attempt, commit.records[0].started_at) == (2, NOW)


def test_a_claim_on_a_lost_effect_first_ends_the_attempt_that_was_lost():
    commit = do(kernel.claim, flying(), "me", STAMP)
    assert brief(commit) == [("r:2.1", "failed", "k"), ("r:2.2", "started", "k")]
    assert commit.records[0].result == {"outcome": "unknown"}
    assert "Outcome unknown" in (commit.records[0].error or "")
    assert commit.run.intent is not None
    assert (commit.run.intent.attempt, commit.run.intent.token, commit.run.intent.key) == (2, STAMP.id, "k")
    assert commit.run.intent.failures == 0
    assert seq(commit.run) == 2


def test_a_lost_effect_that_nobody_may_repeat_fails_the_run():
    commit = do(kernel.lost, flying(), STAMP)
    assert commit.run.status is RunStatus.FAILED
    assert "Outcome unknown" in (commit.run.error or "")
    assert brief(commit) == [("r:2.1", "failed", "k"), ("owner.7:status", "completed", "system:terminal_status:failed")]
    assert seq(commit.run) == 3


def test_an_outcome_that_came_late_is_journaled_and_changes_nothing_else():
    cancelled = kernel_commit(kernel.cancel(flying(), None, "api", Stamp(BEFORE, "owner.6"))).run
    commit = do(kernel.late, cancelled, flying().intent, EffectOutcome.completed({"paid": 5}), STAMP)
    assert commit.run == replace(
        cancelled, revision=cancelled.revision + 1, commit_id=STAMP.id, records=cancelled.records + 1
    )
    assert brief(commit) == [("r:2.1", "cancelled", "k")]
    assert commit.records[0].result == {"late": True, "status": "completed", "result": {"paid": 5}}


VERBS: dict[str, tuple[Callable[[], Commit], int]] = {
    "move": (lambda: do(kernel.move, running(), StepPlan("here", next_node="next"), STAMP), 2),
    "complete": (lambda: do(kernel.complete, running(), StepPlan("here", complete_output={}), STAMP), 2),
    "node_failed": (lambda: do(kernel.node_failed, running(), "here", "no", STAMP), 2),
    "promise": (lambda: do(kernel.promise, running(), intent(), "me", STAMP), 2),
    "claim": (lambda: do(kernel.claim, flying(), "me", STAMP), 2),
    "retry": (lambda: do(kernel.retry, flying(), EffectOutcome.failed("no"), AFTER, STAMP), 2),
    "hand_back": (lambda: do(kernel.hand_back, flying(), STAMP), 2),
    "ask_unknown": (lambda: do(kernel.ask_unknown, flying(), STAMP), 2),
    "cancel": (lambda: do(kernel.cancel, flying(), None, "api", STAMP), 2),
    "pause": (lambda: do(kernel.pause, flying(), None, STAMP), 2),
    "unpause": (lambda: do(kernel.unpause, flying(paused=True), STAMP), 2),
    "set_limits": (lambda: do(kernel.set_limits, running(), {"max_tokens": 1}, STAMP), 2),
    "adopt": (lambda: do(kernel.adopt, running(), "new", "2", STAMP), 2),
    "expire": (lambda: do(kernel.expire, waiting(timer()), STAMP), 2),
    "resume": (
        lambda: do(kernel.resume, waiting(question()), None, 1, STAMP, actor_id=None, lookup_key=None),
        2,
    ),
    "settle completed": (lambda: do(kernel.settle, flying(), EffectOutcome.completed(1), STAMP), 3),
    "settle failed": (lambda: do(kernel.settle, flying(), EffectOutcome.failed("no"), STAMP), 3),
    "settle waiting": (lambda: do(kernel.settle, flying(), EffectOutcome.waiting(question()), STAMP), 3),
    "inside": (lambda: do(kernel.inside, running(), intent(), EffectOutcome.completed(1), STAMP), 3),
    "lost": (lambda: do(kernel.lost, flying(), STAMP), 3),
}


@pytest.mark.parametrize("verb", VERBS)
def test_only_a_landing_raises_the_counter_of_effects(verb: str):
    commit, expected = VERBS[verb]
    assert seq(commit().run) == expected


# -- a pause that meets an effect


def test_a_settle_under_a_pause_lands_and_resume_run_goes_on_behind_the_effect():
    paused = flying(paused=True)
    settled = do(kernel.settle, paused, EffectOutcome.completed(5), STAMP).run
    assert settled.paused
    assert (settled.status, settled.intent, settled.current_node) == (RunStatus.WAITING, None, "next")
    assert settled.waiting == replace(paused.waiting, resume_to_node="next")  # type: ignore[type-var]
    assert settled.vars["paid"] == {"amount": 5}
    assert kernel.next_move(settled, now=AFTER) == kernel.Rest()
    going = do(kernel.unpause, settled, STAMP).run
    assert (going.status, going.waiting, going.current_node) == (RunStatus.RUNNING, None, "next")
    assert kernel.next_move(going, now=AFTER) == kernel.Ask()


def test_a_wait_that_settles_under_a_pause_waits_on_after_it():
    settled = do(kernel.settle, flying(paused=True), EffectOutcome.waiting(question()), STAMP).run
    assert settled.paused
    assert settled.status is RunStatus.WAITING
    assert settled.waiting is not None
    assert settled.waiting.wait_key == "user:r:here:1"
    going = do(kernel.unpause, settled, STAMP).run
    assert (going.status, going.waiting) == (RunStatus.WAITING, settled.waiting)


def test_a_failure_under_a_pause_fails_the_run():
    settled = do(kernel.settle, flying(paused=True), EffectOutcome.failed("no"), STAMP).run
    assert (settled.status, settled.waiting, settled.error) == (RunStatus.FAILED, None, "no")


def test_the_last_effect_under_a_pause_completes_the_run():
    paused = kernel_commit(kernel.pause(running(intent=replace(intent(None, None), token="t")), None, STAMP)).run
    settled = do(kernel.settle, paused, EffectOutcome.completed(5), STAMP).run
    assert (settled.status, settled.waiting, settled.output) == (
        RunStatus.COMPLETED,
        None,
        {"success": True, "result": 5},
    )


def test_a_retry_under_a_pause_is_due_when_the_run_goes_on():
    retried = do(kernel.retry, flying(paused=True), EffectOutcome.failed("no"), BEFORE, STAMP).run
    assert kernel.next_move(retried, now=NOW) == kernel.Rest()
    going = do(kernel.unpause, retried, STAMP).run
    assert going.intent is not None
    assert kernel.next_move(going, now=NOW) == kernel.Perform(going.intent, lost=False)


# -- a whole life


def test_the_introductory_example_writes_five_records():
    run = kernel.create(RunState.new(workflow_id="demo", entry_node="ask", run_id="r"), Stamp(NOW, "a")).run
    ask = StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Continue?"}, "answer"), "done")
    assert ask.effect is not None
    promised = kernel.intent_of(run, ask, ask.effect, "k", Stamp(NOW, "b"))
    wait = WaitState(WaitReason.USER, "user:r:ask:0", None, "done", "answer", "Continue?")
    asked = kernel.inside(run, promised, EffectOutcome.waiting(wait), Stamp(NOW, "b"))
    answered = kernel.resume(
        asked.run, "user:r:ask:0", {"text": "yes"}, Stamp(NOW, "c"), actor_id=None, lookup_key=None
    )
    done = kernel.complete(answered.run, StepPlan("done", complete_output={"answer": "yes"}), Stamp(NOW, "d"))
    told = [
        (record.node_id, str(record.status), (record.effect or {}).get("type"), record.step_id)
        for commit in (asked, answered, done)
        for record in unfolded(commit).records
    ]
    assert told == [
        ("ask", "started", "ask_user", "r:0.1"),
        ("ask", "waiting", "ask_user", "r:0.1"),
        ("ask", "completed", "resume", "c:resume"),
        ("done", "completed", None, "d:completed"),
        ("done", "completed", "emit_event", "d:status"),
    ]
    assert (done.run.records, done.run.revision, done.run.output) == (5, 4, {"answer": "yes"})
