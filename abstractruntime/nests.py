"""The children that ticks drive, each in a task of its own. A tick waits for a change and never for a task, so that
neither driving nor cancelling a deep tree goes deep into any stack.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from .core.errors import StoreError
from .core.kernel import Order
from .core.models import RunState
from .core.shielding import finish

log = logging.getLogger("abstractruntime")

#: seconds that the children of a cancelled tick may take to hand their effects back
_WITHIN = 30.0


class Family:
    """All that one tick from outside drives below the run it was asked for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[RunState]] = set()

    def add(self, work: Coroutine[Any, Any, RunState]) -> asyncio.Task[RunState]:
        """Begin to drive."""
        task = asyncio.create_task(work, name="abstractruntime-child")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop what is still under way; every effect is handed back."""
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await finish(asyncio.wait(set(self._tasks)), within=_WITHIN)


class Nest:
    """The children of one effect, as one tick sees them: those it drives, and how the others stand."""

    def __init__(self, family: Family, step_id: str, order: Order) -> None:
        self.family = family
        self.step_id, self.order = step_id, order
        self.driving: set[str] = set()
        #: as they were when they came to rest; None for those that are gone
        self.seen: dict[str, RunState | None] = {}
        #: children to be looked at again, because a node of theirs raised
        self.disturbed: set[str] = set()
        #: what the first of those nodes raised
        self.error: Exception | None = None
        #: how often a child has come to rest
        self.changes = 0
        self._grave: BaseException | None = None
        self._changed: asyncio.Future[None] | None = None

    def drive(self, run_id: str, work: Coroutine[Any, Any, RunState]) -> None:
        """Begin to drive a child."""
        self.driving.add(run_id)
        self.family.add(work).add_done_callback(lambda task: self._rested(run_id, task))

    async def change(self) -> None:
        """Wait until a child that is driven has come to rest.

        Raises what no child may be left behind for: an error of the store, a cancellation, the end of the process.
        """
        if self._grave is None:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if self._grave is not None:
            raise self._grave

    def _rested(self, run_id: str, task: asyncio.Task[RunState]) -> None:
        self.driving.discard(run_id)
        self.changes += 1
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.seen[run_id] = task.result()
        elif isinstance(error, Exception) and not isinstance(error, StoreError):
            self.disturbed.add(run_id)
            if self.error is not None:  # one of them reaches the caller
                log.warning("Run %s raised, as another child of the same run has", run_id, exc_info=error)
            self.error = self.error or error
        else:
            self._grave = self._grave or error
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
