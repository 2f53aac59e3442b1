"""What models return, as the one shape that an LLM_CALL returns; and messages as servers want them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...core.codec import REFUSALS, decode, encode

#: what servers know of a message; the rest (times, ids, kinds) is for the runtime
_ON_THE_WIRE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")

#: what AbstractCore says about a call that is no fact about its answer, or is said elsewhere
_LEFT_OUT = {"_provider_request", "_resolved_generate_route", "reasoning", "trace_id"}

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w=.+-]+)*;base64,[A-Za-z0-9+/=_-]{64,}")


def text_result(response: Any, *, keep_raw: bool = False) -> dict[str, Any]:
    """A `GenerateResponse` of AbstractCore as the result of an LLM_CALL: JSON values, no pictures and no request.

    Calls whose arguments are no JSON object are not in `tool_calls` but in `metadata["malformed_tool_calls"]`.
    """
    found = response.metadata if isinstance(getattr(response, "metadata", None), dict) else {}
    metadata = {name: value for name, value in found.items() if name not in _LEFT_OUT}
    raw = getattr(response, "raw_response", None)
    calls, malformed = tool_calls_of(getattr(response, "tool_calls", None), raw)
    if malformed:
        metadata["malformed_tool_calls"] = malformed
    reasoning = found.get("reasoning")
    return {
        "content": without_data_urls(response.content) if isinstance(response.content, str) else None,
        "reasoning": reasoning if isinstance(reasoning, str) else None,
        "data": None,
        "raw_response": plain(raw) if keep_raw else None,
        "tool_calls": calls or None,
        "usage": usage_of(getattr(response, "usage", None)),
        "model": plain(getattr(response, "model", None)),
        "finish_reason": plain(getattr(response, "finish_reason", None)),
        "metadata": plain(metadata),
        "trace_id": plain(found.get("trace_id")),
        "gen_time": plain(getattr(response, "gen_time", None)),
    }


def tool_calls_of(calls: Any, raw: Any = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Calls in any of the known shapes as `name`, `arguments` and `call_id`, and those that cannot be read.

    `raw` is what the server said: some clients take arguments that are no JSON for `{}`.

    >>> tool_calls_of([{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}])
    ([{'name': 'add', 'arguments': {'a': 1}, 'call_id': 'c1'}], [])
    """
    read: list[dict[str, Any]] = []
    malformed: list[dict[str, Any]] = []
    said = _said(raw)
    for index, call in enumerate(calls if isinstance(calls, list | tuple) else []):
        name, arguments, call_id = _parts(call)
        original = said[index] if index < len(said) and len(said) == len(calls) else None
        if original is not None and _arguments(original) is None:
            arguments = original
        found = _arguments(arguments)
        if not name or found is None:
            malformed.append({"name": name, "call_id": call_id, "arguments": str(arguments)[:500]})
        else:
            read.append({"name": name, "arguments": found, "call_id": call_id})
    return read, malformed


def _parts(call: Any) -> tuple[str | None, Any, str | None]:
    get = call.get if isinstance(call, Mapping) else lambda name, default=None: getattr(call, name, default)
    inner = get("function")
    if isinstance(inner, Mapping):
        name, arguments = inner.get("name"), inner.get("arguments")
    else:
        name, arguments = get("name"), get("arguments")
    call_id = get("call_id") or get("id")
    return (name.strip() if isinstance(name, str) else None), arguments, call_id if isinstance(call_id, str) else None


def _arguments(value: Any) -> dict[str, Any] | None:
    """Arguments as a dict, unchanged; none at all are `{}`, and what is no JSON object is None."""
    if value is None or value == "":
        return {}
    try:
        found = decode(value if isinstance(value, str) else encode(value))
    except REFUSALS:
        return None
    return found if isinstance(found, dict) else None


def _said(raw: Any) -> list[Any]:
    """The arguments of each call as an OpenAI-compatible server sent them."""
    if not isinstance(raw, Mapping) and callable(getattr(raw, "model_dump", None)):
        raw = raw.model_dump()
    try:
        calls = raw["choices"][0]["message"]["tool_calls"]
        return [call["function"]["arguments"] for call in calls]
    except (TypeError, KeyError, IndexError):
        return []


def usage_of(usage: Any) -> dict[str, int] | None:
    """Tokens under both names that are in use, whole numbers only; None where nothing is known."""
    if not isinstance(usage, Mapping):
        return None
    found = {name: value for name, value in usage.items() if type(value) is int and value >= 0}
    sent = found.get("input_tokens", found.get("prompt_tokens"))
    received = found.get("output_tokens", found.get("completion_tokens"))
    for names, value in ((("input_tokens", "prompt_tokens"), sent), (("output_tokens", "completion_tokens"), received)):
        if value is not None:
            found |= dict.fromkeys(names, value)
    if sent is not None and received is not None:
        found.setdefault("total_tokens", sent + received)
    return found or None


def wire_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages with what servers know of them; calls of tools in our shape become those of OpenAI."""
    wired = []
    for message in messages:
        kept = {name: message[name] for name in _ON_THE_WIRE if message.get(name) is not None}
        if isinstance(kept.get("tool_calls"), list):
            kept["tool_calls"] = [_wire_call(call) for call in kept["tool_calls"]]
        wired.append({"content": "", **kept})
    return wired


def _wire_call(call: Any) -> Any:
    if not isinstance(call, Mapping) or "function" in call:
        return call
    arguments = call.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {
        "id": call.get("call_id") or call.get("id"),
        "type": "function",
        "function": {"name": call.get("name"), "arguments": text},
    }


def plain(value: Any) -> Any:
    """A JSON value: data URLs are cut, numbers that are none become None, and other objects the name of their type."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return without_data_urls(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def without_data_urls(text: str) -> str:
    """The text without the content of the data URLs in it.

    >>> without_data_urls("see data:image/png;base64," + "A" * 80)
    'see data:image/png;base64,[80 characters]'
    """
    if "base64," not in text:
        return text
    return _DATA_URL.sub(lambda found: _cut(found[0]), text)


def _cut(url: str) -> str:
    head, comma, data = url.partition(",")
    return f"{head}{comma}[{len(data)} characters]"
