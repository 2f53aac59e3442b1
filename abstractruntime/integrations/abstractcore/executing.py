"""Calls a tool executor of any make: async or sync, ours or a user's with the documented `execute(*, tool_calls)`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from abstractruntime.core.models import RunState
from abstractruntime.core.outcomes import CancelSignal
from abstractruntime.core.threads import WorkerThreads

#: told the place of a call in the list and its result, as soon as there is one
OnResult: TypeAlias = Callable[[int, dict[str, Any]], Awaitable[None]]

#: as many as there are batches: one that hangs takes no place from another
_THREADS = WorkerThreads(sys.maxsize)


async def execute(
    executor: Any,
    tool_calls: list[dict[str, Any]],
    *,
    approved: bool = False,
    on_result: OnResult | None = None,
    cancelled: CancelSignal | None = None,
) -> Any:
    """What the executor makes of the calls; with `approved` past its policy, if it has one.

    Only an executor with `aexecute` tells results one by one. A sync one runs in a worker thread.
    """
    method, tells = method_of(executor, approved)
    if tells:
        return await method(tool_calls=tool_calls, on_result=on_result, cancelled=cancelled)
    if inspect.iscoroutinefunction(method):
        return await method(tool_calls=tool_calls)
    result = await in_thread(method, tool_calls=tool_calls)
    return await result if inspect.isawaitable(result) else result


def method_of(executor: Any, approved: bool) -> tuple[Callable[..., Any], bool]:
    """What performs calls, and whether it tells results one by one. Raises TypeError where nothing does."""
    for name in ("execute_approved", "execute") if approved else ("execute",):
        for method, tells in ((getattr(executor, f"a{name}", None), True), (getattr(executor, name, None), False)):
            if callable(method):
                return method, tells
    raise TypeError(f"{executor!r:.80} is no tool executor: it has no execute(*, tool_calls)")


def executor_for(executor: Any, run: RunState) -> Any:
    """The executor for this run: what its `for_run(run)` gives, if it has one, else itself."""
    made = getattr(executor, "for_run", None)
    return made(run) if callable(made) else executor


async def in_thread(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Run a blocking function in a worker thread, which keeps no process alive."""
    return await _THREADS.run(partial(function, *args, **options))
