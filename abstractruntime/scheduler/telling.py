"""What a driver tells its host: counts, errors and callbacks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.models import RunState
from .stats import SchedulerStats

log = logging.getLogger("abstractruntime.scheduler")


class Telling:
    """Keeps the stats and calls what the host gave; what that raises is logged and stops nobody.

    `tell(callback, *args)` is how it is called.
    """

    def __init__(
        self,
        tell: Callable[..., Awaitable[None]],
        *,
        on_run_resumed: Callable[[RunState], Any] | None,
        on_run_failed: Callable[[str, Exception], Any] | None,
        max_errors_kept: int,
    ) -> None:
        self.stats = SchedulerStats()
        self._tell, self._on_resumed, self._on_failed = tell, on_run_resumed, on_run_failed
        self._errors_kept = max_errors_kept

    async def moved(self, state: RunState) -> None:
        """A run moved."""
        self.stats.runs_resumed += 1
        await self._told(self._on_resumed, state)

    async def failed(self, run_id: str, error: Exception, now: str) -> None:
        """A run could not be moved."""
        errors = self.stats.errors
        errors.append(f"{now}: Run {run_id}: {error}")
        del errors[: max(0, len(errors) - self._errors_kept)]
        await self._told(self._on_failed, run_id, error)

    async def _told(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is None:
            return
        try:
            await self._tell(callback, *args)
        except Exception:  # a boundary: what a host does with the news does not stop the others
            log.exception("A callback of a scheduler failed")


async def told_here(callback: Callable[..., Any], *args: Any) -> None:
    """Call it here; await what it returns, where that is to be awaited."""
    result = callback(*args)
    if inspect.isawaitable(result):
        await result
