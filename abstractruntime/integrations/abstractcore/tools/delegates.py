"""Calls an executor of any make: ours, or a user's with the documented `execute(*, tool_calls)`."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from ....core.outcomes import CancelSignal
from ....core.threads import WorkerThreads
from .calls import OnResult, tool_call

_THREADS = WorkerThreads(sys.maxsize)


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
    for name in ("execute_approved", "execute") if approved else ("execute",):
        later = getattr(executor, f"a{name}", None)
        if callable(later):
            return _checked(executor, await later(tool_calls=tool_calls, on_result=on_result, cancelled=cancelled))
        method = getattr(executor, name, None)
        if callable(method):
            answer = await _called(method, tool_calls)
            if on_result is not None and answer.get("mode", "executed") == "executed":
                for place, result in enumerate(results_of(answer, tool_calls)):
                    await on_result(place, result)
            return answer
    raise TypeError(f"{executor!r:.80} is no tool executor: it has no execute(*, tool_calls)")


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


async def _called(method: Any, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
    if inspect.iscoroutinefunction(method):
        return _checked(method, await method(tool_calls=tool_calls))
    answer = await _THREADS.run(lambda: method(tool_calls=tool_calls))
    return _checked(method, await answer if inspect.isawaitable(answer) else answer)


def _checked(executor: Any, answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise TypeError(f"A tool executor gives a dict, {executor!r:.80} gave a {type(answer).__name__}")
    return answer
