"""What others do to a run: start, cancel, pause, resume, limits, a changed graph, and what they asked of it."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..errors import RunNotFailed
from ..models import (
    TERMINAL,
    Commit,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepStatus,
    WaitReason,
    WaitState,
)
from .attempts import OUTCOME_UNKNOWN, close, in_flight, is_open, lose, span
from .limits import freed
from .state import (
    Stamp,
    commit,
    is_pause_wait,
    next_state,
    run_record,
    status_record,
    unpaused_vars,
    with_runtime,
)
from .waits import answer_of

UNKNOWN_OUTCOME = "unknown_outcome"
_AGAIN, _FAIL = "perform again", "fail the run"


def create(run: RunState, stamp: Stamp) -> Commit:
    """The first commit of a run. Writes no record."""
    new = replace(run, revision=1, commit_id=stamp.id, created_at=stamp.at, updated_at=stamp.at)
    return Commit(run=new)


def cancel(
    run: RunState, reason: str | None, by: str, stamp: Stamp, *, answers: tuple[Request, ...] = ()
) -> Commit | None:
    """End the run as CANCELLED; an effect in flight is closed with it. None when the run has ended already."""
    if run.status in TERMINAL:
        return None
    new = next_state(run, stamp, unpaused_vars(run) if run.paused else None)
    new.status, new.error, new.waiting, new.intent = RunStatus.CANCELLED, reason or "Cancelled", None, None
    ended = status_record(new, stamp, by=by, reason=reason)
    if run.intent is None or not is_open(run):  # or the next attempt has not begun
        return commit(run, new, ended, answers=answers)
    result: dict[str, Any] = {"cancelled": True} if run.intent.children else {"cancelled": True, "outcome": "unknown"}
    closed = close(run, run.intent, StepStatus.CANCELLED, stamp, result=result)
    return commit(run, new, *closed, ended, answers=answers)


def pause(
    run: RunState,
    reason: str | None,
    stamp: Stamp,
    *,
    by: str | None = None,
    answers: tuple[Request, ...] = (),
) -> Commit | None:
    """Hold the run where it is. None where there is nothing to hold: ended, held already, or waiting for a person."""
    waits_for_user = run.status is RunStatus.WAITING and run.waiting and run.waiting.reason is WaitReason.USER
    if run.status in TERMINAL or run.paused or waits_for_user:
        return commit(run, next_state(run, stamp), answers=answers) if answers else None
    control: dict[str, Any] = {"paused": True, "paused_at": stamp.at}
    if reason is not None:
        control["pause_reason"] = reason
    if by is not None:
        control["paused_by"] = by
    new = next_state(run, stamp, with_runtime(run.vars, control=control))
    if run.status is RunStatus.RUNNING:
        new.status = RunStatus.WAITING
        new.waiting = WaitState(
            reason=WaitReason.USER,
            wait_key=f"pause:{run.run_id}",
            resume_to_node=run.current_node,
            prompt="Paused",
            allow_free_text=False,
            details={"kind": "pause"},
        )
    return commit(run, new, answers=answers)


def unpause(run: RunState, stamp: Stamp, *, by: str | None = None) -> Commit | None:
    """Let a held run go on. None when it is not held."""
    if run.status in TERMINAL or not run.paused:
        return None
    new = next_state(run, stamp, unpaused_vars(run, resumed_at=stamp.at, **({} if by is None else {"resumed_by": by})))
    if is_pause_wait(run):
        new.status, new.waiting = RunStatus.RUNNING, None
    return commit(run, new)


def retry_failed(run: RunState, reason: str | None, actor_id: str | None, stamp: Stamp) -> Commit | None:
    """Let a failed run go on at the node where it stands, which is asked again. None when it runs or waits."""
    if run.status not in TERMINAL:
        return None
    if run.status is not RunStatus.FAILED:
        raise RunNotFailed(f"Run {run.run_id!r} is {run.status}; only a failed run can be retried.")
    new = next_state(run, stamp)
    new.status, new.error, new.quarantined = RunStatus.RUNNING, None, None
    new.node_errors, new.retries = 0, run.retries + 1
    payload = {"error": run.error, "reason": reason, "quarantined": run.quarantined}
    record = run_record(
        run,
        "retry",
        stamp,
        effect={"type": "retry", "payload": payload, "result_key": None},
        result={"retried": True, "retries": new.retries},
        actor_id=actor_id or run.actor_id,
    )
    return commit(run, new, record)


def quarantine(run: RunState, reason: str, stamp: Stamp) -> Commit | None:
    """Set a failed run apart. None when it is already, or has not failed."""
    if run.status is not RunStatus.FAILED or run.quarantined is not None:
        return None
    new = next_state(run, stamp)
    new.quarantined = reason
    return commit(run, new)


def answer(run: RunState, requests: tuple[Request, ...], stamp: Stamp) -> Commit:
    """Do what was asked of the run; a cancel beats a pause."""
    asked = next((request for request in requests if request.kind == "cancel"), requests[0])
    act = cancel(run, asked.reason, asked.by, stamp, answers=requests) if asked.kind == "cancel" else None
    act = act or pause(run, asked.reason, stamp, by=asked.by, answers=requests)
    assert act is not None  # with answers, pause always commits
    return act


def set_limits(run: RunState, limits: dict[str, Any], stamp: Stamp) -> Commit:
    """Replace `_limits`; writes no record and leaves `updated_at`, as documented.

    A run that waited at a limit which is not reached any more goes on, and a record says so.
    """
    went_on = freed(run, limits, stamp)
    if went_on is not None:
        return went_on
    new = next_state(run, stamp, {**run.vars, "_limits": limits})
    new.updated_at = run.updated_at
    return commit(run, new, warns=False)


def adopt(run: RunState, fingerprint: str, version: str | None, stamp: Stamp) -> Commit:
    """The graph changed and the run can follow: a record keeps both fingerprints."""
    new = next_state(run, stamp)
    new.fingerprint, new.workflow_version = fingerprint, version
    changed = {"from": run.fingerprint, "to": fingerprint}
    effect = {"type": "workflow_changed", "payload": changed, "result_key": None}
    return commit(run, new, run_record(run, "workflow_changed", stamp, effect=effect, result={"followed": True}))


def ask_unknown(run: RunState, stamp: Stamp) -> Commit:
    """The performer of an effect died and the policy wants a person to say whether it may be performed again."""
    intent = run.intent
    assert intent is not None
    new = next_state(run, stamp)
    new.status = RunStatus.WAITING
    new.waiting = WaitState(
        reason=WaitReason.USER,
        wait_key=f"unknown:{intent.step_id}",
        prompt=f"{OUTCOME_UNKNOWN}: {_names(intent)} at node {intent.node_id!r}. What now?",
        choices=[_AGAIN, _FAIL],
        allow_free_text=False,
        details={"kind": UNKNOWN_OUTCOME, "idempotency_key": intent.key, "step_id": intent.step_id},
    )
    if intent.parts:
        keys = [part.key for part in in_flight(intent)]
        new.waiting.details = {"kind": UNKNOWN_OUTCOME, "idempotency_keys": keys, "step_id": intent.step_id}
    lost, ended = lose(run, intent, stamp)
    new.intent = replace(lost, token=None)
    return commit(run, new, *ended)


def _names(intent: Intent) -> str:
    return ", ".join(attempt.effect.type for attempt in in_flight(intent))


def decide_unknown(
    run: RunState, payload: Any, stamp: Stamp, *, actor_id: str | None, lookup_key: str | None = None
) -> Commit:
    """A person decided about an effect whose outcome is unknown."""
    assert run.intent is not None
    choice = answer_of(payload)
    resumed = run_record(
        run,
        "resume",
        stamp,
        effect={"type": "resume", "payload": {"wait_reason": "user", "payload": payload}, "result_key": None},
        result={"resumed": True, "decision": choice},
        actor_id=actor_id or run.actor_id,
        idempotency_key=lookup_key,
    )
    if choice == _AGAIN:
        new = next_state(run, stamp)
        new.status, new.waiting = RunStatus.RUNNING, None
        return commit(run, new, resumed, lookup_key=lookup_key)
    new = next_state(run, stamp, with_runtime(run.vars, effect_seq=run.intent.seq + span(run.intent)))
    new.status, new.error, new.waiting, new.intent = RunStatus.FAILED, OUTCOME_UNKNOWN, None, None
    return commit(run, new, resumed, status_record(new, stamp), lookup_key=lookup_key)
