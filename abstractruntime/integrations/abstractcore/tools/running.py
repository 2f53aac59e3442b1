"""Runs one function, sync or async, for no longer than it may, and says how that ended.

An async function that takes too long is cancelled. A sync one runs in a thread, which nobody can stop: the caller goes
on without it and is told that the outcome is unknown. Both learn of it if they take a `CancelSignal`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from msgspec import Struct

from ....core.outcomes import CancelSignal
from ....core.threads import WorkerThreads
from .outputs import error_text

log = logging.getLogger("abstractruntime.tools")

#: seconds that a cancelled async tool has to end
GRACE = 2.0

# Not bounded here: a thread whose tool hangs must not take the place of another. How many run at once is bounded by
# the batch, see `batches`.
_THREADS = WorkerThreads(sys.maxsize)


class Ended(Struct, frozen=True):
    """How a function ended: with a value, or with an error. `outcome` is set where it did not end by itself."""

    value: Any = None
    error: str | None = None
    outcome: str | None = None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function gives something to await at once."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def run_async(work: Callable[[], Awaitable[Any]], limit: float | None, signal: CancelSignal) -> Ended:
    """Await what `work()` gives, for at most `limit` seconds."""
    if limit is None:
        try:
            return await _guarded(work)
        except asyncio.CancelledError:
            signal.set()
            raise
    task = asyncio.create_task(_guarded(work))
    try:
        await asyncio.wait({task}, timeout=limit)
        if not task.done():
            signal.set()
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE)
    except asyncio.CancelledError:
        signal.set()
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE)
        raise
    if not task.done():
        log.warning("An async tool ignores its cancellation and goes on in the background")
        return Ended(error=f"{_too_long(limit)}; it was cancelled and goes on all the same", outcome="unknown")
    if task.cancelled():
        return Ended(error=f"{_too_long(limit)} and was cancelled", outcome="cancelled")
    return task.result()


async def run_sync(work: Callable[[], Any], limit: float | None, signal: CancelSignal) -> Ended:
    """Call `work()` in a thread and wait for it for at most `limit` seconds; what it gives to await is awaited."""
    turn = _Turn()
    try:
        async with asyncio.timeout(limit):
            ended: Ended = await _THREADS.run(_attempt, work, turn)
    except TimeoutError:
        signal.set()
        if turn.withdraw():
            return Ended(error=f"{_too_long(limit)} before it could begin; it was not started", outcome="not_started")
        log.warning("A tool did not end within %s s; its thread goes on in the background", limit)
        return Ended(error=f"{_too_long(limit)}; it goes on in the background, outcome unknown", outcome="unknown")
    except asyncio.CancelledError:
        signal.set()
        turn.withdraw()
        raise
    if inspect.isawaitable(ended.value):
        value = ended.value
        return await run_async(lambda: value, limit, signal)
    return ended


class _Turn:
    """Settles between a thread and its caller whether the thread has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False

    def begin(self) -> bool:
        return self._take()

    def withdraw(self) -> bool:
        """Whether it has not begun; then it never will."""
        return self._take()

    def _take(self) -> bool:
        with self._lock:
            first, self._taken = not self._taken, True
        return first


def _attempt(work: Callable[[], Any], turn: _Turn) -> Ended:
    if not turn.begin():
        return Ended(error="withdrawn")
    try:
        return Ended(work())
    except BaseException as error:  # a boundary: whatever a tool raises, also SystemExit, is its result
        return Ended(error=error_text(error))


async def _guarded(work: Callable[[], Awaitable[Any]]) -> Ended:
    try:
        return Ended(await work())
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return Ended(error=error_text(error))  # the tool's own, from something inside it
    except GeneratorExit:
        raise
    except BaseException as error:  # a boundary: whatever a tool raises, also SystemExit, is its result
        return Ended(error=error_text(error))


def _too_long(limit: float | None) -> str:
    return f"Tool execution timed out after {limit:g}s"
