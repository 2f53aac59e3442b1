"""How effects are tried: how often, how far apart, under which idempotency key, and what to do after a death.

What a handler raises is classified by `core.classify`; a policy may know better.

A policy decides and never acts. Keys of the default policies hold the run's own counter of effects, so they never
repeat within a run and nobody has to look for an earlier use of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, Protocol, TypeAlias, cast

import msgspec

from .codec import REFUSALS, canonical, json_safe
from .models import Effect, EffectType, RunState
from .vars import effect_seq

UnknownRule: TypeAlias = Literal["again", "fail", "ask"]

#: seconds between two attempts at most: ten years
LONGEST_PAUSE = 10 * 365 * 86400.0

_TOOL_CALLS = EffectType.TOOL_CALLS  # every step asks for it, and a member of an enum is looked up far slower

_RULES = ("again", "fail", "ask")
_CALL_IDS = frozenset({"call_id", "id", "runtime_call_id", "model_call_id", "idempotency_key"})


class EffectPolicy(Protocol):
    """What a runtime asks of a policy.

    A policy may also have `on_unknown(effect)`: whether an effect whose performer died is performed `again` under the
    same key, is made to `fail`, or is put to a person (`ask`). Without the method it is `again`.

    It may have `is_retryable(effect, error)`: whether another attempt can help after the handler raised this; None
    leaves it to `core.classify.is_retryable`. And `jitter`, a number from 0 to 1: by how much of itself each wait is
    shortened at most, by a fraction that the effect's key and the attempt decide, so that many that failed together do
    not come back together, and a repeated test waits as long as it did before.
    """

    def max_attempts(self, effect: Effect) -> int:
        """How often the effect is tried at most; at least once."""

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        """How long to wait after failed attempt number `attempt`; the first is 1."""

    def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
        """The key of this effect. An effect whose key has a completed record in the run's ledger is not performed."""


@dataclass
class DefaultEffectPolicy:
    """One attempt, unless said otherwise: `effect_max_attempts={"llm_call": 3}` overrides by effect type.

    The wait after attempt n is `default_backoff_base * 2 ** (n - 1)` seconds, at most `default_backoff_max`, shortened
    by up to `jitter` of it. `unknown_rules={"tool_calls": "ask"}` overrides `on_unknown` by effect type.
    """

    default_max_attempts: int = 1
    default_backoff_base: float = 1.0
    default_backoff_max: float = 60.0
    effect_max_attempts: Mapping[str, int] | None = None
    unknown_rules: Mapping[str, UnknownRule] | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be a number from 0 to 1, found {self.jitter!r}.")
        for effect_type, rule in (self.unknown_rules or {}).items():
            _check_rule(rule, f"unknown_rules[{str(effect_type)!r}]")

    def max_attempts(self, effect: Effect) -> int:
        """The number for the effect's type, else the default; at least 1."""
        by_type = self.effect_max_attempts or {}
        return max(1, by_type.get(effect.type, self.default_max_attempts))

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        """`min(base * 2 ** (attempt - 1), max)`."""
        doublings = min(max(attempt - 1, 0), 1000)  # beyond that a float overflows
        return min(self.default_backoff_base * 2.0**doublings, self.default_backoff_max)

    def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
        """`compute_idempotency_key` with the run's counter of effects."""
        return compute_idempotency_key(
            run_id=run.run_id, node_id=node_id, effect=effect, effect_seq=effect_seq(run.vars)
        )

    def on_unknown(self, effect: Effect) -> UnknownRule:
        """The rule for the effect's type, else `again`."""
        return (self.unknown_rules or {}).get(effect.type, "again")


class RetryPolicy(DefaultEffectPolicy):
    """Tries LLM calls and tool calls several times and everything else once."""

    def __init__(
        self,
        *,
        llm_max_attempts: int = 3,
        tool_max_attempts: int = 2,
        backoff_base: float = 1.0,
        backoff_max: float = 30.0,
        unknown_rules: Mapping[str, UnknownRule] | None = None,
        jitter: float = 0.0,
    ) -> None:
        attempts = {EffectType.LLM_CALL.value: llm_max_attempts, EffectType.TOOL_CALLS.value: tool_max_attempts}
        super().__init__(1, backoff_base, backoff_max, attempts, unknown_rules, jitter)


class NoRetryPolicy(DefaultEffectPolicy):
    """Tries every effect once."""

    def __init__(self, *, unknown_rules: Mapping[str, UnknownRule] | None = None) -> None:
        super().__init__(unknown_rules=unknown_rules)


class _Keyed(msgspec.Struct, frozen=True, gc=False):
    """What a key is the hash of. A struct, with its fields in order, is canonical without being sorted."""

    effect_payload: Any
    effect_seq: int
    effect_type: str
    node_id: str
    run_id: str


def compute_idempotency_key(*, run_id: str, node_id: str, effect: Effect, effect_seq: int = 0) -> str:
    """32 hex characters: equal for the same effect of the same step, different for any other.

    Ids and spelling that a model makes up anew each time it writes a tool call do not count. Raises `UnsafeValue`
    naming the path when the payload cannot be written as JSON.
    """
    payload = _tool_calls(effect.payload) if effect.type == _TOOL_CALLS else effect.payload
    try:
        text = canonical(_Keyed(payload, effect_seq, effect.type, node_id, run_id))
    except REFUSALS:  # either it becomes JSON as documented, or the error names the path
        safe = json_safe(payload, f"payload of {effect.type}")
        text = canonical(_Keyed(safe, effect_seq, effect.type, node_id, run_id))
    return sha256(text).hexdigest()[:32]


def unknown_rule(policy: EffectPolicy, effect: Effect) -> UnknownRule:
    """What the policy says of an effect whose performer died; `again` if it has no `on_unknown`.

    Raises `ValueError` when it answers something else than `again`, `fail` or `ask`.
    """
    decide = getattr(policy, "on_unknown", None)
    return "again" if decide is None else _check_rule(decide(effect), f"{type(policy).__name__}.on_unknown")


def pause_before_retry(
    policy: EffectPolicy, *, effect: Effect, key: str, failures: int, retry_after: float | None = None
) -> float | None:
    """Seconds from failed attempt number `failures` to the next one, or None when there is none.

    It is what the policy says, less its jitter, and at least `retry_after`.
    """
    if failures >= policy.max_attempts(effect):
        return None
    seconds = float(policy.backoff_seconds(effect=effect, attempt=failures))
    jitter = float(getattr(policy, "jitter", 0.0))
    if jitter:
        chance = int.from_bytes(sha256(f"{key}:{failures}".encode()).digest()[:8]) / 2**64
        seconds *= 1 - jitter * chance
    seconds = max(seconds, retry_after or 0.0) if seconds == seconds else 0.0  # NaN is no number of seconds
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else 0.0


def has_default_keys(policy: EffectPolicy) -> bool:
    """Whether the policy's keys are ours, which never repeat: then nobody needs to look for an earlier use."""
    own = getattr(policy, "__dict__", {})
    return (
        "idempotency_key" not in own
        and getattr(type(policy), "idempotency_key", None) is DefaultEffectPolicy.idempotency_key
    )


def _check_rule(rule: Any, where: str) -> UnknownRule:
    if rule not in _RULES:
        raise ValueError(f"{where} says {rule!r}; expected one of {', '.join(_RULES)}.")
    return cast(UnknownRule, rule)


def _tool_calls(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of TOOL_CALLS without what changes from one spelling of the same calls to the next."""
    normal = dict(payload)
    calls, allowed = normal.get("tool_calls"), normal.get("allowed_tools")
    if isinstance(calls, list):
        normal["tool_calls"] = [_tool_call(call) if isinstance(call, dict) else call for call in calls]
    if isinstance(allowed, list):
        normal["allowed_tools"] = sorted({name.strip() for name in allowed if isinstance(name, str) and name.strip()})
    return normal


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    normal = {key: value for key, value in call.items() if key not in _CALL_IDS}
    if isinstance(normal.get("name"), str):
        normal["name"] = normal["name"].strip()
    if "arguments" in normal:
        normal["arguments"] = _arguments(normal["arguments"])
    if isinstance(normal.get("function"), dict):
        normal["function"] = _tool_call(normal["function"])
    return normal


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
