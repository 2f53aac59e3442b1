"""How a run comes to wait, and two of the ways it goes on: an answer, or time. The third is a message."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..codec import canonical
from ..errors import InvalidAnswer, RunPaused, StaleResumeError
from ..models import Commit, Intent, RunState, RunStatus, StepRecord, WaitReason, WaitState
from ..vars import write_path
from .outputs import tool_answer
from .state import Stamp, commit, finished, next_state, restore_seq, run_record, seq_of

#: where an answer that must be one of `choices` is looked for, in this order
ANSWER_KEYS = ("choice", "text", "response", "value")


def bind_wait(wait: WaitState, run: RunState, intent: Intent) -> WaitState:
    """The wait with an identity of its own: a unique key, or `details.wait_id` beside the key its author gave."""
    unique = f"{run.run_id}:{intent.node_id}:{intent.seq}"
    if wait.wait_key is None and wait.reason is not WaitReason.UNTIL:
        return replace(wait, wait_key=f"{wait.reason}:{unique}")
    if wait.wait_key == f"{wait.reason}:{unique}":
        return wait
    return replace(wait, details={**(wait.details or {}), "wait_id": f"{wait.reason}:{unique}"})


def wait_of(run: RunState, wait_key: str | None) -> WaitState:
    """The wait that this key answers. None answers whatever waits; raises `StaleResumeError`, `RunPaused`."""
    if run.paused:
        raise RunPaused(f"Run is paused: {run.run_id!r}. Call resume_run() first.")
    wait = run.waiting
    if run.status is not RunStatus.WAITING or wait is None:
        raise StaleResumeError(f"Run is not waiting: {run.run_id!r} is {run.status} at node {run.current_node!r}.")
    own = (wait.wait_key, (wait.details or {}).get("wait_id"))
    if wait_key is not None and wait_key not in own:
        raise StaleResumeError(
            f"wait_key mismatch: expected {own[0] or own[1]!r}, got {wait_key!r}. "
            f"Run {run.run_id!r} waits for something else now; read state.waiting and answer that."
        )
    return wait


def answer_of(payload: Any) -> Any:
    """What a payload answers: the first of the known keys, or the payload itself."""
    if not isinstance(payload, dict):
        return payload
    return next((payload[key] for key in ANSWER_KEYS if key in payload), payload)


def check_answer(wait: WaitState, payload: Any) -> None:
    """Hold an answer to the wait's choices when free text is not allowed; raises `InvalidAnswer`."""
    if wait.allow_free_text or not wait.choices or (wait.details or {}).get("kind") == "pause":
        return
    answer = answer_of(payload)
    if answer not in wait.choices:
        raise InvalidAnswer(f"{answer!r} is not one of the choices {wait.choices!r}; the run goes on waiting.")


def resume(
    run: RunState, wait_key: str | None, payload: Any, stamp: Stamp, *, actor_id: str | None, lookup_key: str | None
) -> Commit:
    """Deliver the answer: it is written at the wait's `result_key` and the run goes on behind the wait."""
    wait = wait_of(run, wait_key)
    check_answer(wait, payload)
    return conclude(run, wait, payload, stamp, {"resumed": True}, actor_id=actor_id, lookup_key=lookup_key)


def timed_out(run: RunState, stamp: Stamp) -> Commit:
    """The timer or the deadline of what a node waits for has passed."""
    wait = run.waiting
    assert wait is not None
    if wait.reason is WaitReason.UNTIL:
        payload: dict[str, Any] = {"until": wait.until, "ready": True}
    else:
        payload = {"timed_out": True, "until": wait.until}
    return conclude(run, wait, payload, stamp, {"resumed": True, "by": "timer"})


def same_answer(record: StepRecord, wait_key: str | None, payload: Any) -> bool:
    """Whether a resume record under the same `resume_id` delivered the same thing."""
    delivered = (record.effect or {}).get("payload") or {}
    return canonical(delivered.get("payload")) == canonical(payload)


def conclude(
    run: RunState,
    wait: WaitState,
    payload: Any,
    stamp: Stamp,
    result: dict[str, Any],
    *,
    vars: dict[str, Any] | None = None,
    actor_id: str | None = None,
    lookup_key: str | None = None,
) -> Commit:
    """The wait ends with this payload; `result` is what its record says, `vars` replace the run's."""
    vars, value = run.vars if vars is None else vars, tool_answer(wait, payload)
    if wait.result_key and value is not None:
        vars = restore_seq(write_path(vars, wait.result_key, value), seq_of(run.vars))
    new = next_state(run, stamp, vars)
    reason = str(wait.reason)
    delivered = {
        "wait_reason": reason,
        "wait_key": wait.wait_key,
        "resume_to_node": wait.resume_to_node,
        "result_key": wait.result_key,
        "payload": payload,
    }
    record = run_record(
        run,
        "resume",
        stamp,
        effect={"type": "resume", "payload": delivered, "result_key": None},
        result=result,
        actor_id=actor_id or run.actor_id,
        idempotency_key=lookup_key,
    )
    if wait.resume_to_node is None:
        via = {"via": "resume", "wait_reason": reason, "wait_key": wait.wait_key}
        output = {"success": True, "result": value}
        return commit(run, new, record, *finished(new, run.current_node, output, stamp, **via), lookup_key=lookup_key)
    new.status, new.waiting, new.current_node = RunStatus.RUNNING, None, wait.resume_to_node
    new.intent = None  # of runs that it has started: their end is not waited for any more
    return commit(run, new, record, lookup_key=lookup_key)
