"""ANSWER_USER: a message for whoever watches the run; nothing waits."""

from __future__ import annotations

from ..core.outcomes import EffectCall, EffectOutcome

_LEVELS = {"warn": "warning", "warning": "warning", "error": "error"}


def answer_user(call: EffectCall) -> EffectOutcome:
    """Say something to the user.

    Payload: `message` (or `text`, or `content`), `level`. Result: `{"message", "level"}`, where level is message,
    warning or error. It reaches the host through the ledger.
    """
    payload = call.effect.payload
    message = payload.get("message")
    if message is None:
        message = payload.get("text")
    if message is None:
        message = payload.get("content")
    if message is None:
        return EffectOutcome.failed("answer_user requires payload.message", retryable=False)
    level = payload.get("level")
    level = _LEVELS.get(str(level).strip().lower(), "message") if level else "message"
    return EffectOutcome.completed({"message": str(message), "level": level})
