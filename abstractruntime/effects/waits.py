"""The effects that make a run wait: ASK_USER, WAIT_UNTIL and WAIT_EVENT."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ..core.clock import iso, parse_instant
from ..core.event_keys import LISTENS, event_address, event_key, read_event_key
from ..core.models import WaitReason, WaitState
from ..core.outcomes import EffectCall, EffectOutcome


def ask_user(call: EffectCall) -> EffectOutcome:
    """Wait for a person.

    Payload: `prompt` (required), `choices`, `allow_free_text` (True; when False the answer must be one of the
    choices), `wait_key`, `resume_to_node`, and a time-out as `timeout_s` (seconds) or `until` (ISO instant). Result:
    the payload given to `resume()`, or `{"timed_out": True, "until"}`.
    """
    payload = call.payload
    if not payload.get("prompt"):
        return _failed("ask_user requires payload.prompt")
    try:
        until = _deadline(call)
    except ValueError as error:
        return _failed(f"ask_user invalid payload: {error}")
    choices = payload.get("choices")
    return EffectOutcome.waiting(
        WaitState(
            reason=WaitReason.USER,
            wait_key=_own_key(payload) or f"user:{call.run.run_id}:{call.node_id}:{_seq(call)}",
            until=until,
            resume_to_node=payload.get("resume_to_node") or call.next_node,
            result_key=call.effect.result_key,
            prompt=str(payload["prompt"]),
            choices=choices if isinstance(choices, list) else None,
            allow_free_text=bool(payload.get("allow_free_text", True)),
        )
    )


def wait_until(call: EffectCall) -> EffectOutcome:
    """Wait for an instant.

    Payload: `until` (ISO 8601; `Z` and offsets are understood, none means UTC), `resume_to_node`. Result:
    `{"until", "ready": True}`, at once when the instant has passed.
    """
    until = call.payload.get("until")
    if not until:
        return _failed("wait_until requires payload.until")
    try:
        due = iso(parse_instant(until))
    except ValueError as error:
        return _failed(f"wait_until invalid payload: {error}")
    if due <= call.now:
        return EffectOutcome.completed({"until": until, "ready": True})
    return EffectOutcome.waiting(
        WaitState(
            reason=WaitReason.UNTIL,
            until=due,
            resume_to_node=call.payload.get("resume_to_node") or call.next_node,
            result_key=call.effect.result_key,
        )
    )


def wait_event(call: EffectCall) -> EffectOutcome:
    """Wait for an event, or for `resume()` by a key.

    Payload: `wait_key`, or `name` (also `event_name`; `*` for all) with `scope` (session, workflow, run, global) and,
    to listen elsewhere than at the run's own, `session_id`, `workflow_id` or `run_id`; a deadline as `until` or
    `timeout_s`; `prompt`, `choices`, `allow_free_text`, `details` for whoever shows it; `resume_to_node`. Result: the
    envelope of the next event of that name that the run has not had, also one sent since its creation and before this
    wait; or what `resume()` was given; or `{"timed_out": True, "until"}`. An event that was sent by the deadline beats
    it. A `wait_key` of the form `evt:<scope>:<scope id>:<name>` listens too.
    """
    payload = call.payload
    try:
        own = _own_key(payload)
        key, listens = _event_key(call) if own is None else (own, {})
        until = _deadline(call)
    except ValueError as error:
        return _failed(f"wait_event invalid payload: {error}")
    if key is None:
        return _failed("wait_event requires payload.wait_key or payload.name")
    prompt, choices, details = payload.get("prompt"), payload.get("choices"), payload.get("details")
    free_text = payload.get("allow_free_text", payload.get("allowFreeText", True))
    return EffectOutcome.waiting(
        WaitState(
            reason=WaitReason.EVENT,
            wait_key=key,
            until=until,
            resume_to_node=payload.get("resume_to_node") or call.next_node,
            result_key=call.effect.result_key,
            prompt=prompt if isinstance(prompt, str) and prompt.strip() else None,
            choices=[c.strip() for c in choices if isinstance(c, str) and c.strip()]
            if isinstance(choices, list)
            else None,
            allow_free_text=bool(free_text),
            details={**details, **listens} if isinstance(details, dict) else listens or None,
        )
    )


def _failed(why: str) -> EffectOutcome:
    return EffectOutcome.failed(why, retryable=False)


def _own_key(payload: dict[str, Any]) -> str | None:
    key = payload.get("wait_key")
    return key if isinstance(key, str) and key else None


def _seq(call: EffectCall) -> str:
    """The number of this effect in its run, which makes the key unique."""
    return call.step_id.rpartition(":")[2].partition(".")[0]


def _event_key(call: EffectCall) -> tuple[str | None, dict[str, Any]]:
    """The key of the event, and what the details must say for it to be understood: of most, nothing."""
    payload, run = call.payload, call.run
    name = payload.get("name") or payload.get("event_name")
    if not name:
        return None, {}
    stream, text = event_address(
        scope=payload.get("scope") or "session",
        name=str(name),
        session_id=payload.get("session_id") or run.session_id or run.run_id,
        workflow_id=payload.get("workflow_id") or run.workflow_id,
        run_id=payload.get("run_id") or run.run_id,
    )
    key = event_key(stream, text)
    return key, {} if read_event_key(key) == (stream, text) else {LISTENS: [stream, text]}


def _deadline(call: EffectCall) -> str | None:
    until, seconds = call.payload.get("until"), call.payload.get("timeout_s")
    if until is not None:
        return iso(parse_instant(until))
    if seconds is None:
        return None
    try:
        return iso(parse_instant(call.now) + timedelta(seconds=float(seconds)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"timeout_s must be a number of seconds, found {seconds!r}") from error
