"""The limits of a run: their defaults from a `RuntimeConfig`, and what they say about a run.

Unless a runtime is told to enforce them, the engine only tells: nodes ask and decide. They count too:
`current_iteration` is theirs, `estimated_tokens_used` is the input of the last LLM call, and history is what
`context.messages` holds beside system messages. A stored `_limits` may have been written by anybody, so what is no
number in it counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from .streams import DEFAULT_KEPT
from .vars import DEFAULT_MAX_ITERATIONS, DEFAULT_MAX_TOKENS, default_limits

__all__ = [
    "DEFAULT_MAX_ITERATIONS",
    "DEFAULT_MAX_TOKENS",
    "MAXIMUM_OF",
    "UPDATABLE",
    "EnforceLimits",
    "LimitWarning",
    "RuntimeConfig",
    "apply_limit_updates",
    "check_ceiling",
    "checked_mode",
    "is_far_from_limits",
    "limit_status",
    "limit_warnings",
    "limits_reached",
]

#: what a runtime does when a limit is reached: nothing, end the run as FAILED, or ask a person
EnforceLimits = Literal["fail", "ask"] | None

#: the key of `_limits` that holds the maximum of each limit
MAXIMUM_OF = {"iterations": "max_iterations", "tokens": "max_tokens", "history": "max_history_messages"}

#: the keys of `_limits` that `update_limits` writes
UPDATABLE = frozenset(default_limits())

#: a percentage is no higher, and no lower, so that it is a number whatever is divided
_MOST = 1e15

#: tokens of the window that are kept free of input, beside the output's
_RESERVE = 256


class RuntimeConfig(Struct, frozen=True):
    """The defaults that a runtime gives to the runs it starts.

    `max_stream_messages` is how many events a stream keeps that this runtime writes to; the oldest go, some at a time.
    `model_capabilities` may hold `max_tokens`, `max_output_tokens` and `tool_support` of the model.

    >>> RuntimeConfig(max_iterations=3).to_limits_dict()["max_iterations"]
    3
    """

    max_iterations: int = DEFAULT_MAX_ITERATIONS
    warn_iterations_pct: int = 80
    max_tokens: int | None = None
    max_output_tokens: int | None = None
    max_input_tokens: int | None = None
    warn_tokens_pct: int = 80
    max_history_messages: int = -1
    provider: str | None = None
    model: str | None = None
    model_capabilities: dict[str, Any] = {}
    max_stream_messages: int = DEFAULT_KEPT

    def to_limits_dict(self) -> dict[str, Any]:
        """What `_limits` of a new run holds.

        `max_tokens` and `max_output_tokens` fall back to the model's, then to 32768 and None. A given
        `max_input_tokens` is cut to what the window leaves beside the output and a small reserve.
        """
        capabilities = self.model_capabilities
        window = _first(self.max_tokens, capabilities.get("max_tokens"), DEFAULT_MAX_TOKENS)
        output = _first(self.max_output_tokens, capabilities.get("max_output_tokens"))
        entry = self.max_input_tokens
        if entry is not None and window is not None and output is not None:
            entry = max(0, min(entry, window - output - _RESERVE))
        return {
            **default_limits(),
            "max_iterations": self.max_iterations,
            "max_tokens": window,
            "max_output_tokens": output,
            "max_input_tokens": entry,
            "max_history_messages": self.max_history_messages,
            "warn_iterations_pct": self.warn_iterations_pct,
            "warn_tokens_pct": self.warn_tokens_pct,
        }

    def with_capabilities(self, capabilities: Mapping[str, Any]) -> RuntimeConfig:
        """The same config for another model: its capabilities replace the ones held."""
        return replace(self, model_capabilities=dict(capabilities))


class LimitWarning(Struct):
    """A limit that is near (`status="warning"`) or reached (`"exceeded"`); `pct` is computed from the numbers."""

    limit_type: str
    status: str
    current: int
    maximum: int
    pct: float = 0.0

    def __post_init__(self) -> None:
        if self.maximum > 0:
            self.pct = _pct(self.current, self.maximum)


def limit_status(limits: Any) -> dict[str, Any]:
    """How far a run's `_limits` are used: `iterations`, `tokens` and `history`, as `get_limit_status` returns it."""
    known = _read(limits)
    steps, most = known["current_iteration"], known["max_iterations"]
    used, window = known["estimated_tokens_used"], known["max_tokens"]
    steps_pct, used_pct = _pct(steps, most), _pct(used, window)
    return {
        "iterations": {
            "current": steps,
            "max": most,
            "pct": steps_pct,
            "warning": steps_pct >= known["warn_iterations_pct"],
        },
        "tokens": {
            "estimated_used": used,
            "max": window,
            "max_input_tokens": known["max_input_tokens"],
            "max_output_tokens": known["max_output_tokens"],
            "pct": used_pct,
            "warning": used_pct >= known["warn_tokens_pct"],
        },
        "history": {"max_messages": known["max_history_messages"]},
    }


def limit_warnings(limits: Any) -> list[LimitWarning]:
    """The limits that are near or reached, as `check_limits` returns them.

    Tokens count once some are used. A negative maximum is no limit.
    """
    known = _read(limits)
    measured = [("iterations", known["current_iteration"], known["max_iterations"], known["warn_iterations_pct"])]
    if known["estimated_tokens_used"] > 0:
        measured.append(("tokens", known["estimated_tokens_used"], known["max_tokens"], known["warn_tokens_pct"]))
    warnings = []
    for name, current, most, threshold in measured:
        if 0 <= most <= current:
            warnings.append(LimitWarning(name, "exceeded", current, most))
        elif most > 0 and _pct(current, most) >= threshold:
            warnings.append(LimitWarning(name, "warning", current, most))
    return warnings


def is_far_from_limits(limits: Any) -> bool:
    """Whether `limit_warnings` has nothing to say, for sure. Every step asks, so it is quick, and says no in doubt."""
    try:
        # a percentage is rounded before it is compared, so what is one below the threshold may be there
        used, most, threshold = limits["current_iteration"], limits["max_iterations"], limits["warn_iterations_pct"]
        if used == 0 and limits["estimated_tokens_used"] == 0:  # a run that counts nothing
            return bool(most > 0 and threshold > 0)
        far = type(used) is type(most) is type(threshold) is int and used * 100 < most * (threshold - 1) and used < most
        used = limits["estimated_tokens_used"]
        if not far or used == 0:
            return far
        most, threshold = limits["max_tokens"], limits["warn_tokens_pct"]
        return (
            type(used) is type(most) is type(threshold) is int and used * 100 < most * (threshold - 1) and used < most
        )
    except (KeyError, TypeError):  # what is missing has a default, and what is no dict counts as empty
        return False


def limits_reached(vars: Mapping[str, Any]) -> list[LimitWarning]:
    """The limits that stop a run whose runtime enforces them.

    Iterations and tokens that `limit_warnings` calls exceeded, and a history with more messages than
    `max_history_messages`; a negative maximum is none, and system messages do not count.
    """
    limits = vars.get("_limits")
    reached = (
        []
        if is_far_from_limits(limits)
        else [warning for warning in limit_warnings(limits) if warning.status == "exceeded"]
    )
    most = _first(limits.get("max_history_messages")) if isinstance(limits, dict) else None
    if most is not None and most >= 0:
        count = _messages(vars.get("context"))
        if count > most:
            reached.append(LimitWarning("history", "exceeded", count, most))
    return reached


def checked_mode(enforce_limits: Any) -> EnforceLimits:
    """The mode as given. Raises ValueError."""
    if enforce_limits is None or enforce_limits in ("fail", "ask"):
        mode: EnforceLimits = enforce_limits
        return mode
    raise ValueError(f'enforce_limits must be None, "fail" or "ask", found {enforce_limits!r:.80}')


def check_ceiling(limits: Mapping[str, Any]) -> None:
    """Hold `max_iterations` to `max_iterations_ceiling`, where `_limits` has one. Raises ValueError."""
    most, ceiling = _first(limits.get("max_iterations")), _first(limits.get("max_iterations_ceiling"))
    if most is not None and ceiling is not None and most > ceiling:
        raise ValueError(
            f"_limits.max_iterations is {most}, above the run's max_iterations_ceiling of {ceiling}. "
            "Start it with fewer iterations, or with a higher ceiling."
        )


def apply_limit_updates(limits: Any, updates: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `limits` with the known keys of `updates` written; others are ignored. Nothing given is changed."""
    kept = limits if isinstance(limits, dict) else {}
    return {**kept, **{key: value for key, value in updates.items() if key in UPDATABLE}}


def _read(limits: Any) -> dict[str, Any]:
    found = limits if isinstance(limits, dict) else {}
    return {key: _first(found.get(key), default) for key, default in default_limits().items()}


def _messages(context: Any) -> int:
    messages = context.get("messages") if isinstance(context, dict) else None
    if not isinstance(messages, list):
        return 0
    return sum(1 for message in messages if not (isinstance(message, dict) and message.get("role") == "system"))


def _first(*candidates: Any) -> int | None:
    for value in candidates:
        if type(value) is int:
            return value
        if type(value) is float and math.isfinite(value):
            return int(value)
    return None


def _pct(current: int, maximum: int) -> float:
    return round(max(-_MOST, min(current / maximum * 100, _MOST)), 1) if maximum > 0 else 0.0
