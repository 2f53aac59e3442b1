"""Performs the calls of a batch: those that may run beside others together, everything else alone and in order."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from msgspec.structs import replace

from ....core import portal
from ....core.outcomes import CancelSignal
from .calls import OnResult, Result, ToolCall, executed, tool_call
from .running import GRACE
from .workspace import Refused, confined_here

#: how many calls of sync tools of one batch are in threads at once; async ones are all in flight together
MOST_THREADS = 32

#: how deep tools may call an executor that calls tools that call an executor
DEEPEST = 16

_DEPTH: ContextVar[int] = ContextVar("abstractruntime_tool_depth", default=0)


class BatchExecutor(ABC):
    """What executors that perform calls have in common; a subclass says how one call is performed."""

    def __init__(self, *, timeout_s: float | None = None) -> None:
        self.set_timeout_s(timeout_s)

    def set_timeout_s(self, timeout_s: float | None) -> None:
        """Let every call of a tool that names no limit of its own take so many seconds; None or 0: without limit."""
        self._timeout_s = limit_of(timeout_s)

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Perform the calls and block until all have a result; see `aexecute`, which async code awaits instead."""
        return portal.call(self.aexecute, tool_calls=tool_calls)

    async def aexecute(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> dict[str, Any]:
        """Perform the calls: `{"mode": "executed", "results": [...]}`, one result per call and in their order.

        Consecutive calls of tools that may run beside others are in flight together; every other call is alone, in
        order. `on_result(index, result)` is awaited as soon as a call has a result. Once `cancelled` is set nothing
        further is started: those calls get the error `cancelled`, of which `on_result` is not told. Each call runs in
        a copy of the caller's context variables. Whatever a tool raises is its result; what `on_result` raises ends
        the batch and is raised here.
        """
        depth = _DEPTH.get()
        calls = [tool_call(given) for given in tool_calls]
        if depth >= DEEPEST:
            return executed([call.failed(f"RecursionError: tools call tools {DEEPEST} deep") for call in calls])
        token = _DEPTH.set(depth + 1)
        try:
            return executed(await self._perform_all(calls, on_result, cancelled))
        finally:
            _DEPTH.reset(token)

    async def _perform_all(
        self, calls: list[ToolCall], on_result: OnResult | None, cancelled: CancelSignal | None
    ) -> list[Result]:
        results: dict[int, Result] = {}
        begun: set[int] = set()
        threads = asyncio.Semaphore(MOST_THREADS)

        async def one(place: int) -> None:
            call = calls[place]
            if call.problem is not None:
                result = call.failed(call.problem)
            else:
                result = await self._checked_and_performed(call, threads)
            results[place] = result
            if on_result is not None:
                await on_result(place, result)

        for group in _groups(calls, self._runs_beside_others):
            if cancelled is not None and cancelled.is_set():
                break
            begun.update(group)
            await together(one(place) for place in group)
        for place in begun - results.keys():  # its tool cancelled the task that it runs in
            results[place] = calls[place].failed("cancelled by the tool itself", outcome="unknown")
        return [results.get(place) or call.not_started() for place, call in enumerate(calls)]

    async def _checked_and_performed(self, call: ToolCall, threads: asyncio.Semaphore) -> Result:
        arguments = await confined_here(call.name, call.arguments)
        if isinstance(arguments, Refused):
            return call.failed(str(arguments))
        if arguments is not call.arguments:
            call = replace(call, arguments=arguments)
        return await self._perform(call, threads)

    @abstractmethod
    def _runs_beside_others(self, name: str) -> bool:
        """Whether calls of this tool may be in flight together with others."""

    @abstractmethod
    async def _perform(self, call: ToolCall, threads: asyncio.Semaphore) -> Result:
        """Perform one call."""


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all at once, each in a task of its own; the first to raise ends the others and is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=2 * GRACE)
    for error in [task.exception() for task in tasks if task.done() and not task.cancelled()]:
        if error is not None:
            raise error


def limit_of(timeout_s: float | None) -> float | None:
    """A time limit in seconds, or None for what means none."""
    return float(timeout_s) if timeout_s is not None and timeout_s > 0 else None


def _groups(calls: Sequence[ToolCall], beside: Callable[[str], bool]) -> Iterator[list[int]]:
    group: list[int] = []
    for place, call in enumerate(calls):
        if call.problem is None and beside(call.name):
            group.append(place)
            continue
        if group:
            yield group
        yield [place]
        group = []
    if group:
        yield group
