"""A batch of tool calls as TOOL_CALLS reads it: which may be performed, under which ids, and what stands for the rest.

Payload: `tool_calls`, a list of `{name, arguments, call_id}` (also `id`, and `{"function": {name, arguments}}`, whose
arguments may be JSON text), and `allowed_tools`, beside which nothing is performed. Every call gets a
`runtime_call_id`, which is the same in every attempt at the effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from abstractruntime.core.codec import canonical
from abstractruntime.core.outcomes import EffectCall
from abstractruntime.core.questions import Asked

Call = dict[str, Any]
Result = dict[str, Any]


class Batch(Struct, frozen=True):
    """The calls of one effect, in order. `shown` is what of them may be stored: without the secrets in them."""

    calls: tuple[Call, ...]
    shown: tuple[Call, ...]
    #: results of those that are not performed, by place
    blocked: dict[int, Result]
    warnings: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        """The `runtime_call_id` of each."""
        return [call["runtime_call_id"] for call in self.calls]

    def todo(self, done: Iterable[str]) -> list[int]:
        """The places of those that are still to be performed."""
        known = set(done)
        return [
            place for place, call in enumerate(self.calls)
            if place not in self.blocked and call["runtime_call_id"] not in known
        ]  # fmt: skip

    def digest(self, key: str, places: Iterable[int]) -> str:
        """What stands for exactly these calls of this effect: 64 hex characters."""
        calls = [{name: self.shown[place][name] for name in ("name", "arguments", "call_id")} for place in places]
        return sha256(canonical({"key": key, "calls": calls})).hexdigest()


def batch_of(call: EffectCall) -> Batch:
    """The batch that an effect asks for. Raises ValueError when its payload is none."""
    listed = call.payload.get("tool_calls")
    if not isinstance(listed, list):
        raise ValueError(f"tool_calls requires payload.tool_calls (a list), found a {type(listed).__name__}")
    allowed = _allowed(call)
    calls = tuple(_read(one, f"rtcall_{call.key}_{place}") for place, one in enumerate(listed, 1))
    stored = _stored(call).get("tool_calls")
    shown = calls
    if isinstance(stored, list) and stored != listed:
        shown = tuple(_read(one, f"rtcall_{call.key}_{place}") for place, one in enumerate(stored, 1))
    blocked = {}
    for place, (one, read) in enumerate(zip(listed, calls, strict=True)):
        why = _obstacle(one, read, allowed)
        if why is not None:
            blocked[place] = result_for(read, error=why)
    return Batch(calls, shown, blocked, tuple(_warnings(call.node_id, listed)))


def result_for(call: Call, *, output: Any = None, error: str | None = None, **meta: Any) -> Result:
    """A result of this call in the shape of all; one without an `error` is a success."""
    result = {
        "call_id": call["call_id"],
        "runtime_call_id": call["runtime_call_id"],
        "name": call["name"],
        "success": error is None,
        "output": output,
        "error": error,
    }
    return {**result, "meta": meta} if meta else result


def as_result(call: Call, given: Any, **meta: Any) -> Result:
    """What an executor or a host gave for this call, in the shape of all; whatever else it says stays."""
    if not isinstance(given, dict):
        return result_for(call, error=f"Tool execution failed: a result must be a dict, found {given!r:.80}", **meta)
    success = given.get("success") is True
    error = given.get("error")
    if not success and error is None:
        error = "Tool failed without saying why"
    result = {**given, **result_for(call, output=given.get("output")), "success": success, "error": error}
    own = given.get("meta")
    both = {**(own if isinstance(own, dict) else {}), **meta}
    return {**result, "meta": both} if both else result


def paired(calls: list[Call], results: Any) -> Iterator[tuple[int, Any]]:
    """Which result belongs to which call: by its id, else by its place in a list of the same length."""
    if not isinstance(results, list):
        return
    left = dict(enumerate(calls))
    for position, result in enumerate(results):
        named = (result.get("runtime_call_id"), result.get("call_id")) if isinstance(result, dict) else (None, None)
        own = [place for place, call in left.items() if call["runtime_call_id"] == named[0]]
        same = own or [place for place, call in left.items() if named[1] and call["call_id"] == named[1]]
        if not same and not any(named) and len(results) == len(calls) and position in left:
            same = [position]
        if same:
            del left[same[0]]
            yield same[0], result


def asked_of(calls: Iterable[Call]) -> tuple[Asked, ...]:
    """The calls as a question names them; each says whether it `needs_approval`."""
    return tuple(
        Asked(
            call_id=call["call_id"],
            runtime_call_id=call["runtime_call_id"],
            name=call["name"],
            needs=bool(call.get("needs_approval", True)),
        )
        for call in calls
    )


def _read(one: Any, runtime_call_id: str) -> Call:
    call = one if isinstance(one, dict) else {}
    nested = call.get("function")
    function: dict[str, Any] = nested if isinstance(nested, dict) else {}
    name = call.get("name") or function.get("name")
    arguments = call["arguments"] if "arguments" in call else function.get("arguments")
    given = call.get("call_id") or call.get("id")
    return {
        "name": name.strip() if isinstance(name, str) else "",
        "arguments": _arguments(arguments),
        "call_id": str(given) if given else runtime_call_id,
        "runtime_call_id": runtime_call_id,
    }


def _arguments(value: Any) -> Any:
    """A dict, from JSON text too; what is none stays as it is, and is refused later."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return value
    return value


def _obstacle(one: Any, call: Call, allowed: frozenset[str] | None) -> str | None:
    if not isinstance(one, dict):
        return "Invalid tool call (expected an object)"
    if allowed is not None and not call["name"]:
        return "Tool call without a name is not allowed for this node or run"
    if allowed is not None and call["name"] not in allowed:
        return f"Tool '{call['name']}' is not allowed for this node or run"
    if not isinstance(call["arguments"], dict):
        return f"Invalid arguments of tool '{call['name']}': expected a JSON object, found {call['arguments']!r:.80}"
    return None


def _allowed(call: EffectCall) -> frozenset[str] | None:
    """The names that both the payload and the run allow; None when neither has a list. What is no list allows none."""
    runtime = call.run.vars.get("_runtime")
    lists = [call.payload.get("allowed_tools"), runtime.get("allowed_tools") if isinstance(runtime, dict) else None]
    given = [_names(names) for names in lists if names is not None]
    return frozenset.intersection(*given) if given else None


def _names(names: Any) -> frozenset[str]:
    listed = names if isinstance(names, list) else []
    return frozenset(name.strip() for name in listed if isinstance(name, str) and name.strip())


def _stored(call: EffectCall) -> dict[str, Any]:
    """The payload as it is stored: with references where the call's own has secrets."""
    intent = call.run.intent
    for attempt in () if intent is None else intent.parts or (intent,):
        if attempt.step_id == call.step_id:
            return attempt.effect.payload
    return call.payload


def _warnings(node_id: str, listed: list[Any]) -> Iterator[str]:
    given = [one.get("call_id") or one.get("id") for one in listed if isinstance(one, dict)]
    if missing := sum(not call_id for call_id in given):
        yield f"#WARN tool_calls at node {node_id!r}: {missing} of {len(listed)} calls have no call_id"
    twice = sorted(str(call_id) for call_id, count in Counter(map(str, filter(None, given))).items() if count > 1)
    if twice:
        yield f"#WARN tool_calls at node {node_id!r}: call_id {', '.join(twice)} is given to several calls"
