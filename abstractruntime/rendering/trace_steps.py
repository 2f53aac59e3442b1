"""One step of a trace as Markdown blocks, by the type of its effect."""

from __future__ import annotations

from typing import Any

from ..core.models import EffectType
from .markdown import code, fenced


def step_blocks(number: int, node_id: Any, step: Any, max_chars: int | None) -> list[str]:
    """Heading, facts and values of a step; one without an effect is shown as it is."""
    effect = _dict(_dict(step).get("effect"))
    if not effect:
        return [_heading(number, "step", node_id, None), fenced(step, max_chars)]
    kind = effect.get("type")
    blocks = [_heading(number, kind or "step", step.get("node_id", node_id), step.get("status"))]
    facts = _facts(step)
    if facts:
        blocks.append(", ".join(facts))
    show = _llm_call if kind == EffectType.LLM_CALL else _tool_calls if kind == EffectType.TOOL_CALLS else _other
    for label, value in [*show(effect.get("payload"), step.get("result")), *_ends(step)]:
        blocks += [f"**{label}**", fenced(value, max_chars)] if value is not None else [f"**{label}**"]
    return blocks


#: a label and what stands below it; None is nothing
Shown = list[tuple[str, Any]]


def _heading(number: int, kind: Any, node_id: Any, status: Any) -> str:
    at = "" if node_id in (None, "") else f" at {code(node_id)}"
    return f"### {number}. {code(kind)}{at}{'' if status in (None, '') else f': {code(status)}'}"


def _facts(step: dict[str, Any]) -> list[str]:
    took, facts = step.get("duration_ms"), []
    if step.get("ts"):
        facts.append(code(step["ts"]))
    if isinstance(took, int | float) and not isinstance(took, bool):
        facts.append(f"{took:,.0f} ms")
    if step.get("reused_prior_result"):
        facts.append("an earlier result was taken again")
    return facts


def _llm_call(payload: Any, result: Any) -> Shown:
    answer = _dict(result)
    shown: Shown = [
        (label, answer[key])
        for key, label in (("reasoning", "Reasoning"), ("content", "Answer"))
        if answer.get(key) not in (None, "")
    ]
    calls = answer.get("tool_calls")
    if isinstance(calls, list) and calls:
        shown += [(f"Requested tool {_tool(call)}", _arguments(call)) for call in calls]
    asked = _dict(payload)
    model = [code(asked[key]) for key in ("provider", "model") if asked.get(key)]
    if not shown and result is not None:
        shown = [("Result", result)]
    return [(f"Model {' '.join(model)}", None), *shown] if model else shown


def _tool_calls(payload: Any, result: Any) -> Shown:
    calls, results = _dict(payload).get("tool_calls"), _dict(result).get("results")
    if not isinstance(calls, list):
        return _other(payload, result)
    left = list(results) if isinstance(results, list) else []
    shown: Shown = []
    for index, call in enumerate(calls):
        shown.append((f"Tool {_tool(call)}", _arguments(call)))
        place = _place_of_answer(call, index, left)
        if place is not None:
            shown.append(_result(left[place]))
            left[place] = None
    shown += [(f"Result of {_tool(answer)}", answer) for answer in left if answer is not None]
    return shown if isinstance(results, list) or result is None else [*shown, ("Result", result)]


def _other(payload: Any, result: Any) -> Shown:
    return [(label, value) for label, value in (("Payload", payload), ("Result", result)) if value not in (None, {})]


def _ends(step: dict[str, Any]) -> Shown:
    shown: Shown = [("Error", step["error"])] if step.get("error") not in (None, "") else []
    wait = step.get("wait")
    if wait is not None:
        known = {key: value for key, value in wait.items() if value is not None} if isinstance(wait, dict) else wait
        shown.append(("Waits for", known))
    return shown


def _place_of_answer(call: Any, index: int, results: list[Any]) -> int | None:
    """Where the result of a call is: the one with its id, or the one at its place where one of the two has no id."""
    call_id = _call_id(call)
    for place, answer in enumerate(results):
        if call_id is not None and _call_id(answer) == call_id:
            return place
    if index >= len(results) or results[index] is None:
        return None
    return index if call_id is None or _call_id(results[index]) is None else None


def _result(answer: Any) -> tuple[str, Any]:
    if not isinstance(answer, dict):
        return "Result", answer
    error, output = answer.get("error"), answer.get("output")
    if answer.get("success") is False or error not in (None, ""):
        return "Failed", error if error and output is None else answer
    return "Result", "(no output)" if output is None else output


def _tool(call: Any) -> str:
    about = _dict(call)
    name = about.get("name") or _dict(about.get("function")).get("name") or "without a name"
    call_id = _call_id(call)
    return code(name) if call_id is None else f"{code(name)} (call {code(call_id)})"


def _arguments(call: Any) -> Any:
    about = _dict(call)
    found = about.get("arguments", _dict(about.get("function")).get("arguments"))
    return found if about else call


def _call_id(value: Any) -> Any:
    about = _dict(value)
    return about.get("call_id") or about.get("id") or None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
