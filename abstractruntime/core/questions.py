"""What an effect asks before it is performed, the answer that it gets, and which answers count: rules as plain data.

A handler that needs a decision returns `EffectOutcome.asking(wait, question)`. The question stays with the run's
intent; an answer that its rule takes is kept there as a `Decision`, and the handler is called again with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

#: the rules there are
RuleName = Literal["any", "approval", "results"]


class Asked(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A tool call that a question is about. `needs` says whether it would need an approval if it stood alone."""

    call_id: str
    runtime_call_id: str
    name: str
    needs: bool = True


class Question(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Which answers count.

    * `any`: every JSON value that the wait's `choices` allow. The handler sees for itself what it makes of it.
    * `approval`: strict decisions about `calls`, as `approval_answer` takes them. With `host_results` a host may give
      results instead of a decision, with `edits` it may change arguments.
    * `results`: the results of exactly these `calls`, which somebody else has performed.
    """

    kind: RuleName = "any"
    #: of the exact calls; an answer that names another one is refused
    digest: str | None = None
    calls: tuple[Asked, ...] = ()
    edits: bool = True
    host_results: bool = True


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The answer that counts, as the handler gets it in `EffectCall.answer`.

    `payload` is what the rule made of the answer; of a question that nobody answered in time, which is `expired`, it is
    `{"timed_out": True, "until"}`. `by` is the `actor_id` of who answered, if it was told, and `at` says when.
    """

    payload: Any
    at: str
    by: str | None = None
    expired: bool = False
    #: that of the question
    digest: str | None = None


_APPROVAL_KEYS = frozenset({"approved", "reason", "arguments", "always", "digest", "decisions"})
_DECISION_KEYS = frozenset({"approved", "reason", "arguments"})


def answer_to(question: Question, payload: Any) -> Any:
    """What the rule makes of an answer. Raises ValueError, saying what is wrong with it.

    Of an `approval` it is `{"calls": {runtime_call_id: {"approved", "reason"?, "arguments"?}}, "always": [names]}`, or
    what it is of `results`: `{"results": {runtime_call_id: result}}`.
    """
    if question.kind == "any":
        return payload
    if isinstance(payload, dict) and payload.get("digest", question.digest) != question.digest:
        raise ValueError("it was given for other calls: its digest is not that of the calls which are asked about")
    if question.kind == "results" or (isinstance(payload, dict) and "results" in payload):
        return _results(question, payload)
    return approval_answer(question, payload)


def approval_answer(question: Question, payload: Any) -> dict[str, Any]:
    """An answer to an approval, as its rule reads it. Raises ValueError for all that is not a strict decision.

    Either `{"approved": True or False}` for all calls, with `reason` (a text) and `arguments` (`{call id: new
    arguments}`); or `{"decisions": {call id: True, False or a dict of these three}}`, where calls that would need no
    approval by themselves may be left out and are approved then. Both may have `always` (True, or a list of tool names:
    these need no more approval in this run) and `digest`.
    """
    if not isinstance(payload, dict) or not payload.keys() & {"approved", "decisions"}:
        raise ValueError('a decision is a dict with "approved" (true or false) or "decisions"')
    if payload.keys() - _APPROVAL_KEYS:
        raise ValueError(f"it has {_names(payload.keys() - _APPROVAL_KEYS)}; known are {_names(_APPROVAL_KEYS)}")
    if "decisions" in payload:
        if payload.keys() & _DECISION_KEYS:
            raise ValueError('give "decisions", or one decision for all calls, not both')
        calls = _each(question, payload["decisions"])
    else:
        calls = _all(question, payload)
    return {"calls": calls, "always": _always(question, payload.get("always"), calls)}


def _all(question: Question, payload: dict[str, Any]) -> dict[str, Any]:
    arguments = payload.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError('"arguments" must be a dict of call ids to the new arguments of that call')
    one = _decision({key: payload[key] for key in ("approved", "reason") if key in payload}, question)
    edited = {_find(question, call_id): _edited(question, new) for call_id, new in arguments.items()}
    if edited and not one["approved"]:
        raise ValueError("it denies the calls and changes their arguments")
    return {
        asked.runtime_call_id: {**one, "arguments": edited[asked.runtime_call_id]}
        if asked.runtime_call_id in edited
        else one
        for asked in question.calls
    }


def _each(question: Question, decisions: Any) -> dict[str, Any]:
    if not isinstance(decisions, dict):
        raise ValueError('"decisions" must be a dict of call ids to decisions')
    found: dict[str, Any] = {}
    for call_id, decision in decisions.items():
        runtime_call_id = _find(question, call_id)
        if runtime_call_id in found:
            raise ValueError(f"it decides twice about call {call_id!r:.80}")
        found[runtime_call_id] = _decision(decision, question)
    missing = [asked.call_id for asked in question.calls if asked.needs and asked.runtime_call_id not in found]
    if missing:
        raise ValueError(f"it says nothing about {_names(missing)}")
    return {asked.runtime_call_id: found.get(asked.runtime_call_id, {"approved": True}) for asked in question.calls}


def _decision(decision: Any, question: Question) -> dict[str, Any]:
    if type(decision) is bool:
        return {"approved": decision}
    if not isinstance(decision, dict) or decision.keys() - _DECISION_KEYS:
        raise ValueError(f"a decision is true, false or a dict of {_names(_DECISION_KEYS)}; found {decision!r:.80}")
    if type(decision.get("approved")) is not bool:
        raise ValueError(f'"approved" must be true or false, found {decision.get("approved")!r:.80}')
    if not isinstance(decision.get("reason", ""), str | None):
        raise ValueError(f'"reason" must be a text, found {decision["reason"]!r:.80}')
    checked = {key: value for key, value in decision.items() if value is not None}
    if "arguments" in checked:
        if not checked["approved"]:
            raise ValueError("it denies a call and changes its arguments")
        _edited(question, checked["arguments"])
    return checked


def _edited(question: Question, arguments: Any) -> dict[str, Any]:
    if not question.edits:
        raise ValueError("arguments may not be changed here")
    if not isinstance(arguments, dict):
        raise ValueError(f"new arguments must be a dict, found {arguments!r:.80}")
    if _has_reference(arguments):
        raise ValueError("new arguments may hold no secrets, and name none")
    return arguments


def _has_reference(value: Any) -> bool:
    if isinstance(value, dict):
        named = len(value) == 1 and bool(value.keys() & {"$secret", "$redacted"})
        return named or any(map(_has_reference, value.values()))
    return isinstance(value, list) and any(map(_has_reference, value))


def _always(question: Question, always: Any, calls: dict[str, Any]) -> list[str]:
    if always is None or always is False:
        return []
    approved = {asked.name for asked in question.calls if calls[asked.runtime_call_id]["approved"]}
    denied = {asked.name for asked in question.calls if not calls[asked.runtime_call_id]["approved"]}
    if always is True:
        return sorted(approved - denied)
    if not isinstance(always, list) or not all(isinstance(name, str) for name in always):
        raise ValueError(f'"always" must be true or a list of tool names, found {always!r:.80}')
    if set(always) - (approved - denied):
        raise ValueError(f'"always" names {_names(set(always) - (approved - denied))}, which it does not approve')
    return sorted(set(always))


def _results(question: Question, payload: Any) -> dict[str, Any]:
    if question.kind == "approval" and not question.host_results:
        raise ValueError("results of the host are not taken here; approve or deny the calls")
    if not isinstance(payload, dict) or not isinstance(payload.get("results"), list):
        raise ValueError('expected a dict with "results", a list')
    if payload.keys() - {"mode", "results", "digest"} or payload.get("mode", "executed") != "executed":
        raise ValueError('results come as {"mode": "executed", "results": [...]}')
    find = _finder(question, spend=True)
    found: dict[str, Any] = {}
    for result in payload["results"]:
        if not isinstance(result, dict) or type(result.get("success")) is not bool:
            raise ValueError(f'a result is a dict with "call_id" and "success" (true or false), found {result!r:.80}')
        found[find(result.get("runtime_call_id") or result.get("call_id"))] = result
    missing = [asked.call_id for asked in question.calls if asked.runtime_call_id not in found]
    if missing:
        raise ValueError(f"the result of {_names(missing)} is missing")
    return {"results": found}


def _find(question: Question, call_id: Any) -> str:
    return _finder(question)(call_id)


def _finder(question: Question, *, spend: bool = False) -> Callable[[Any], str]:
    """Finds the call that an id names. One id of several calls names none, or with `spend` each of them once."""
    left = list(question.calls)

    def find(call_id: Any) -> str:
        named = [asked for asked in left if call_id in (asked.runtime_call_id, asked.call_id)]
        exact = [asked for asked in named if asked.runtime_call_id == call_id] or named
        if not exact:
            asked_ids = _names(asked.call_id for asked in question.calls)
            raise ValueError(f"it names the call {call_id!r:.80}, and asked is about {asked_ids}, about each once")
        if len(exact) > 1 and not spend:
            raise ValueError(f"several calls have the id {call_id!r:.80}; name them by their runtime_call_id")
        if spend:
            left.remove(exact[0])
        return exact[0].runtime_call_id

    return find


def _names(names: Any) -> str:
    shown = [f"{name!r:.80}" for name in (names if isinstance(names, list) else sorted(names, key=str))]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
