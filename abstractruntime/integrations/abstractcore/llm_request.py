"""The payload of an LLM_CALL as the request that it means, read once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ...core.outcomes import EffectCall
from ...memory.active_context import ActiveContextPolicy
from .protocols import LLMError
from .structured import Schema, schema_of
from .trimming import estimated_tokens, trimmed

#: how often a call whose answer was cut off is made at most
DEFAULT_TRUNCATION_ATTEMPTS = 3

#: tokens that an answer may be given at most, where nothing else says
MOST_OUTPUT_TOKENS = 1_000_000

_ALLOW = ("allow_truncation", "allow_truncated")
_RETRY = ("retry_on_truncation", "no_truncation")
_ATTEMPTS = ("max_truncation_attempts", "truncation_max_attempts")
_CAPS = ("max_output_tokens_cap", "max_truncation_max_output_tokens")
_BUDGETS = ("max_output_tokens", "max_out_tokens", "max_tokens")


class LLMRequest(Struct, frozen=True, kw_only=True):
    """What a client is asked, and how its answer is judged."""

    prompt: str
    messages: list[dict[str, Any]] | None
    system_prompt: str | None
    tools: list[Any] | None
    media: list[Any]
    params: dict[str, Any]
    schema: Schema | None = None
    schema_may_fail: bool = False
    include_context: bool = False
    #: of media that lay ready in the run and go with this call
    took_pending: bool = False
    messages_left_out: int = 0
    retry_truncated: bool = True
    allow_truncated: bool = False
    truncation_attempts: int = DEFAULT_TRUNCATION_ATTEMPTS
    output_cap: int = MOST_OUTPUT_TOKENS

    @property
    def output_tokens(self) -> int | None:
        """Tokens that the answer may have; None: the model's own maximum."""
        return _positive(self.params.get("max_output_tokens"))


def request_of(call: EffectCall) -> LLMRequest:
    """Read the payload. Raises `LLMError` of kind `invalid_request` for one that cannot be sent."""
    payload, runtime, limits = call.payload, _dict(call.run.vars.get("_runtime")), _dict(call.run.vars.get("_limits"))
    params = _params(payload, call)
    budget = next((found for name in _BUDGETS if (found := _positive(payload.get(name))) is not None), None)
    if all(params.get(name) is None for name in _BUDGETS):
        budget = budget if budget is not None else _positive(limits.get("max_output_tokens"))
        if budget is not None:
            params["max_output_tokens"] = budget
    elif params.get("max_output_tokens") is None:
        params["max_output_tokens"] = next(params.pop(name) for name in _BUDGETS[1:] if params.get(name) is not None)
    prompt = _text(payload.get("prompt")) or _text(payload.get("text")) or ""
    system = _text(payload.get("system_prompt"))
    messages = _messages(payload, call)
    media = [*_listed(payload.get("media")), *_listed(runtime.get("pending_media"))]
    if not (prompt or messages or (media and params.get("output") is not None)):
        raise _refused("llm_call requires payload.prompt or payload.messages")
    limit = _positive(payload.get("max_input_tokens")) or _positive(limits.get("max_input_tokens"))
    before = len(messages)
    if limit is not None and messages and not runtime.get("disable_input_trimming"):
        messages = trimmed(messages, limit, beside=estimated_tokens(prompt, system))
    tools = payload.get("tools")
    return LLMRequest(
        prompt=prompt,
        messages=messages or None,
        system_prompt=system,
        tools=tools if isinstance(tools, list) and tools else None,
        media=media,
        params=params,
        schema=_schema(payload, params),
        schema_may_fail=bool(payload.get("structured_output_fallback")),
        include_context=_wants_context(payload),
        took_pending=bool(_listed(runtime.get("pending_media"))),
        messages_left_out=before - len(messages),
        retry_truncated=all(payload.get(name) is not False for name in _RETRY),
        allow_truncated=any(payload.get(name) is True for name in _ALLOW),
        truncation_attempts=next(
            (found for name in _ATTEMPTS if (found := _positive(payload.get(name))) is not None),
            DEFAULT_TRUNCATION_ATTEMPTS,
        ),
        output_cap=next(
            (found for name in _CAPS if (found := _positive(payload.get(name))) is not None),
            _positive(limits.get("max_output_tokens")) or MOST_OUTPUT_TOKENS,
        ),
    )


def _params(payload: Mapping[str, Any], call: EffectCall) -> dict[str, Any]:
    params = payload.get("params")
    if params is not None and not isinstance(params, dict):
        raise _refused(f"llm_call: params must be an object, found {params!r:.80}")
    params = dict(params or {})
    for name in ("provider", "model"):
        if _text(payload.get(name)):
            params[f"_{name}"] = payload[name]
    output = payload.get("output") or payload.get("outputs")
    if output is not None:
        params["output"] = output
    run = call.run
    trace = {
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "node_id": call.node_id,
        "actor_id": run.actor_id,
        "session_id": run.session_id,
        "parent_run_id": run.parent_run_id,
        "step_id": call.step_id,
        "effect_idempotency_key": call.key,
        "attempt": call.attempt,
    }
    known = {name: value for name, value in trace.items() if value is not None}
    params["trace_metadata"] = {**_dict(params.get("trace_metadata")), **known}
    return params


def _messages(payload: Mapping[str, Any], call: EffectCall) -> list[dict[str, Any]]:
    given = payload.get("messages")
    if given is None and _wants_context(payload):
        return list(ActiveContextPolicy.select_active_messages_for_llm_from_run(call.run))
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise _refused("llm_call: messages must be a list of objects with role and content")
    return list(given)


def _schema(payload: Mapping[str, Any], params: dict[str, Any]) -> Schema | None:
    given = payload.get("response_schema")
    if given is None:
        given = params.pop("response_schema", None)
    if given is None:
        return None
    try:
        schema = schema_of(given, payload.get("response_schema_name") or params.get("response_schema_name"))
    except ValueError as error:
        raise _refused(f"llm_call: {error}") from None
    params["response_schema"], params["response_schema_name"] = schema.schema, schema.name
    return schema


def _wants_context(payload: Mapping[str, Any]) -> bool:
    return bool(payload.get("include_context") or payload.get("use_context"))


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _refused(why: str) -> LLMError:
    return LLMError(why, kind="invalid_request", retryable=False)
