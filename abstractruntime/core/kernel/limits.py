"""Limits that a runtime enforces: a run that has reached one ends, or waits until a person says how it goes on."""

from __future__ import annotations

from typing import Any

from ..config import MAXIMUM_OF, EnforceLimits, LimitWarning, apply_limit_updates, limits_reached
from ..errors import InvalidAnswer
from ..models import Commit, RunState, RunStatus, StepStatus, WaitReason, WaitState, wait_record
from .state import Stamp, commit, next_state, run_record, status_record
from .waits import answer_of, conclude

LIMIT = "limit"
_GO_ON, _STOP = "raise and go on", "stop"


def at_limit(run: RunState, mode: EnforceLimits, stamp: Stamp) -> Commit | None:
    """What becomes of a run whose node is to be asked. None while it may be: no limit is reached, or none is enforced.

    With `"fail"` the run ends as FAILED. With `"ask"` it waits for a person, about one limit at a time.
    """
    if mode is None:
        return None
    reached = limits_reached(run.vars)
    if not reached:
        return None
    return _fail(run, reached[0], stamp) if mode == "fail" else _ask(run, reached[0], stamp)


def is_limit_wait(run: RunState) -> bool:
    """Whether the run waits because it has reached a limit."""
    wait = run.waiting
    if run.status is not RunStatus.WAITING or wait is None or wait.reason is not WaitReason.USER or run.intent:
        return False
    details = wait.details or {}
    return details.get("kind") == LIMIT and details.get(LIMIT) in list(MAXIMUM_OF) and wait.choices == [_GO_ON, _STOP]


def decide_limit(
    run: RunState, payload: Any, stamp: Stamp, *, actor_id: str | None, lookup_key: str | None = None
) -> Commit:
    """A person decided: the run goes on under a higher maximum, which `payload` may name, or it fails.

    Raises `InvalidAnswer` for a maximum that would not let the run go on.
    """
    wait = run.waiting
    assert wait is not None
    assert wait.details is not None
    name = wait.details[LIMIT]
    if answer_of(payload) == _STOP:
        delivered = {"wait_reason": "user", "wait_key": wait.wait_key, "payload": payload}
        resumed = run_record(
            run,
            "resume",
            stamp,
            effect={"type": "resume", "payload": delivered, "result_key": None},
            result={"resumed": True, "decision": _STOP},
            actor_id=actor_id or run.actor_id,
            idempotency_key=lookup_key,
        )
        new = next_state(run, stamp)
        new.status, new.waiting, new.error = RunStatus.FAILED, None, f"Stopped: {wait.details.get('error')}"
        return commit(run, new, resumed, status_record(new, stamp), lookup_key=lookup_key)
    named = isinstance(payload, dict) and "maximum" in payload
    maximum = payload["maximum"] if named else wait.details.get("raised")
    raised = _with_maximum(run, name, maximum)
    result = {"resumed": True, "decision": _GO_ON, "maximum": maximum}
    return conclude(run, wait, payload, stamp, result, vars=raised, actor_id=actor_id, lookup_key=lookup_key)


def freed(run: RunState, limits: dict[str, Any], stamp: Stamp) -> Commit | None:
    """With these limits the run goes on that waited at one. None where it did not, or has still reached that one."""
    wait = run.waiting
    if not is_limit_wait(run) or wait is None or wait.details is None:
        return None
    given = {**run.vars, "_limits": limits}
    if any(warning.limit_type == wait.details[LIMIT] for warning in limits_reached(given)):
        return None
    return conclude(run, wait, None, stamp, {"resumed": True, "by": "update_limits"}, vars=given)


def _fail(run: RunState, reached: LimitWarning, stamp: Stamp) -> Commit:
    key = MAXIMUM_OF[reached.limit_type]
    new = next_state(run, stamp)
    new.status = RunStatus.FAILED
    new.error = f"{_error(run, reached)} Raise {key} with update_limits(), then call retry_run()."
    record = run_record(run, "limit", stamp, status=StepStatus.FAILED, effect=_effect(reached), error=new.error)
    return commit(run, new, record, status_record(new, stamp))


def _ask(run: RunState, reached: LimitWarning, stamp: Stamp) -> Commit:
    name, value, most = reached.limit_type, reached.current, reached.maximum
    error, raised = _error(run, reached), value + max(1, most // 2)
    new = next_state(run, stamp)
    new.status = RunStatus.WAITING
    new.waiting = WaitState(
        reason=WaitReason.USER,
        wait_key=f"user:{run.run_id}:limit:{name}:r{new.revision}",
        resume_to_node=run.current_node,
        prompt=f"{error} Go on with a maximum of {raised}?",
        choices=[_GO_ON, _STOP],
        allow_free_text=False,
        details={"kind": LIMIT, LIMIT: name, "value": value, "maximum": most, "raised": raised, "error": error},
    )
    waits = run_record(
        run,
        "limit",
        stamp,
        status=StepStatus.WAITING,
        effect=_effect(reached),
        result={"wait": wait_record(new.waiting)},
    )
    return commit(run, new, waits)


def _with_maximum(run: RunState, name: str, maximum: Any) -> dict[str, Any]:
    """The run's vars with another maximum of this limit. Raises `InvalidAnswer`."""
    if type(maximum) is int:
        limits = apply_limit_updates(run.vars.get("_limits"), {MAXIMUM_OF[name]: maximum})
        raised = {**run.vars, "_limits": limits}
        if all(warning.limit_type != name for warning in limits_reached(raised)):
            return raised
    raise InvalidAnswer(
        f"Run {run.run_id!r} cannot go on with a maximum of {maximum!r:.80}: its limit of {name} is reached there too. "
        "Give a higher number as `maximum`; the run goes on waiting."
    )


def _error(run: RunState, reached: LimitWarning) -> str:
    return (
        f"The limit of {reached.limit_type} is reached at node {run.current_node!r}: "
        f"{reached.current}, with {MAXIMUM_OF[reached.limit_type]} {reached.maximum}."
    )


def _effect(reached: LimitWarning) -> dict[str, Any]:
    payload = {"limit_type": reached.limit_type, "current": reached.current, "maximum": reached.maximum}
    return {"type": LIMIT, "payload": payload, "result_key": None}
