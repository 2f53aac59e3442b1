"""An effect that asks before it is performed: it waits with its intent, and goes on with the decision.

The intent is held by nobody meanwhile. The decision is journaled and puts the same intent back, under the same key, in
its next attempt; whoever performs it then gets the decision. So a crash in between costs nothing but time.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..errors import InvalidAnswer
from ..models import Commit, Intent, RunState, RunStatus, StepStatus, WaitState, wait_record
from ..outcomes import EffectOutcome
from ..questions import Decision, answer_to
from .attempts import next_attempt
from .state import Stamp, commit, next_state, run_record, set_previous, step_record


def is_asking(run: RunState) -> bool:
    """Whether the run waits for a decision about its effect."""
    return run.status is RunStatus.WAITING and run.intent is not None and run.intent.question is not None


def ask(run: RunState, outcome: EffectOutcome, stamp: Stamp) -> Commit:
    """The effect in flight asks: its attempt ends, and its intent waits with the run."""
    intent, wait = run.intent, outcome.wait
    assert intent is not None
    assert wait is not None
    wait = replace(_named(wait, run, intent), result_key=intent.effect.result_key)
    if wait.resume_to_node is None:
        wait.resume_to_node = intent.next_node
    new = next_state(run, stamp, run.vars.copy())
    new.status, new.waiting, new.owner = RunStatus.WAITING, wait, None
    new.intent = replace(intent, token=None, next_node=wait.resume_to_node, question=outcome.question, answer=None)
    set_previous(new.vars, intent.node_id, wait.resume_to_node)
    waits = step_record(run, intent, StepStatus.WAITING, stamp, result={"wait": wait_record(wait)})
    return commit(run, new, waits)


def decide(
    run: RunState, wait: WaitState, payload: Any, stamp: Stamp, *, actor_id: str | None, lookup_key: str | None
) -> Commit:
    """Somebody decided: the effect is to be performed, by whoever moves the run next.

    Raises `InvalidAnswer` for what its rule does not take, and for a decision that comes too late.
    """
    assert run.intent is not None
    assert run.intent.question is not None
    if wait.until is not None and wait.until <= stamp.at:
        raise InvalidAnswer(
            f"The question of run {run.run_id!r} expired at {wait.until}; it counts as not approved, and the run goes "
            "on with that at its next tick."
        )
    try:
        answer = answer_to(run.intent.question, payload)
    except ValueError as error:
        raise InvalidAnswer(
            f"The answer to {wait.wait_key!r} of run {run.run_id!r} is no decision: {error}. Nothing was decided; the "
            "run goes on waiting."
        ) from error
    decision = Decision(payload=answer, at=stamp.at, by=actor_id, digest=run.intent.question.digest)
    return _decided(run, wait, payload, decision, stamp, {"decision": answer}, lookup_key=lookup_key)


def lapse(run: RunState, wait: WaitState, stamp: Stamp) -> Commit:
    """Nobody decided in time: the effect goes on with that."""
    payload = {"timed_out": True, "until": wait.until}
    decision = Decision(payload=payload, at=stamp.at, by="timer", expired=True)
    return _decided(run, wait, payload, decision, stamp, {"by": "timer", "expired": True})


def _decided(
    run: RunState,
    wait: WaitState,
    payload: Any,
    decision: Decision,
    stamp: Stamp,
    result: dict[str, Any],
    *,
    lookup_key: str | None = None,
) -> Commit:
    intent = run.intent
    assert intent is not None
    assert intent.question is not None
    delivered = {
        "wait_reason": str(wait.reason),
        "wait_key": wait.wait_key,
        "resume_to_node": wait.resume_to_node,
        "result_key": None,  # the result of the effect is written there, not this
        "payload": payload,
    }
    asked = {"kind": intent.question.kind, "step_id": intent.step_id, "idempotency_key": intent.key}
    if intent.question.digest is not None:
        asked["digest"] = intent.question.digest
    record = run_record(
        run,
        "resume",
        stamp,
        node_id=intent.node_id,
        effect={"type": "resume", "payload": delivered, "result_key": None},
        result={"resumed": True, **result, "about": asked},
        actor_id=(None if decision.expired else decision.by) or run.actor_id,
        idempotency_key=lookup_key,
    )
    new = next_state(run, stamp)
    new.status, new.waiting = RunStatus.RUNNING, None
    new.intent = replace(next_attempt(run, intent), question=None, answer=decision)
    return commit(run, new, record, lookup_key=lookup_key)


def _named(wait: WaitState, run: RunState, intent: Intent) -> WaitState:
    """The wait with an identity of its own; one effect may ask again, so its attempt is part of it."""
    unique = f"{wait.reason}:{run.run_id}:{intent.node_id}:{intent.seq}.{intent.attempt}"
    if wait.wait_key is None:
        return replace(wait, wait_key=unique)
    return replace(wait, details={**(wait.details or {}), "wait_id": unique})
