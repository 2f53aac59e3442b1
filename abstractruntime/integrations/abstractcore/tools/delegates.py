"""What an executor inside another one answers, checked, and one result for each of its calls."""

from __future__ import annotations

from typing import Any

from ....core.outcomes import CancelSignal
from ..executing import execute, method_of
from .calls import OnResult, tool_call


async def ask(
    executor: Any,
    tool_calls: list[dict[str, Any]],
    *,
    approved: bool = False,
    on_result: OnResult | None = None,
    cancelled: CancelSignal | None = None,
) -> dict[str, Any]:
    """What the executor answers; with `approved`, past its policy if it has one. Raises TypeError for no dict.

    Of one without `aexecute`, which runs in a thread when it is sync, all results are told at the end.
    """
    answer = await execute(executor, tool_calls, approved=approved, on_result=on_result, cancelled=cancelled)
    if not isinstance(answer, dict):
        raise TypeError(f"A tool executor gives a dict, {executor!r:.80} gave a {type(answer).__name__}")
    tells = method_of(executor, approved)[1]
    if on_result is not None and not tells and answer.get("mode", "executed") == "executed":
        for place, result in enumerate(results_of(answer, tool_calls)):
            await on_result(place, result)
    return answer


def results_of(answer: dict[str, Any], tool_calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result per call; where the executor gave none, one that says so."""
    given = answer.get("results")
    listed = given if isinstance(given, list) else []
    return [
        listed[place]
        if place < len(listed) and isinstance(listed[place], dict)
        else tool_call(call).failed("Missing tool result")
        for place, call in enumerate(tool_calls)
    ]
