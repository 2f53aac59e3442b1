"""Work that must end although the task that asked for it was cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

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
