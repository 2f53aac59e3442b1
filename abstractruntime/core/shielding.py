"""Work that must be done to the end: after a cancellation, and when something is closed."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

log = logging.getLogger("abstractruntime")


async def finish(work: Awaitable[object], *, within: float) -> None:
    """Carry `work` to its end, at most `within` seconds, deaf to every cancellation of the calling task.

    For use while a `CancelledError` is on its way up. What the work raises is logged, for the cancellation is what
    the caller must see.
    """
    task = asyncio.ensure_future(work)
    with anyio.move_on_after(within, shield=True) as scope:
        while not (task.done() or scope.cancel_called):
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue  # native cancellation passes through shields; the first one is raised by the caller
    if not task.done():
        log.error("Clean-up after a cancellation did not end within %s s; it goes on in the background", within)
    elif not task.cancelled() and task.exception() is not None:
        log.error("Clean-up after a cancellation failed", exc_info=task.exception())


async def call_all(functions: Iterable[Callable[[], Any]]) -> None:
    """Call each, sync or async, in order; one that raises keeps none of the others from it. Raises what the first did.

    >>> await call_all([client.aclose, pool.close])  # doctest: +SKIP
    """
    failure: Exception | None = None
    for function in functions:
        try:
            result = function()
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # a boundary: the others are to be called too
            log.error("%r raised when it was called at the close", function, exc_info=error)
            failure = failure or error
    if failure is not None:
        raise failure
