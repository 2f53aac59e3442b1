"""The children that ticks drive, each in a task of its own. A tick waits for a change and never for a task, so that
neither driving nor cancelling a deep tree goes deep into any stack.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from .children import Children
from .core import kernel
from .core.errors import StoreError
from .core.models import RunState, RunStatus
from .core.shielding import finish
from .core.spec import WorkflowSpec

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

    def __init__(self, family: Family, step_id: str, order: kernel.Order) -> None:
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


class Gathering:
    """Drives and collects the children of the runs of one engine.

    `drive` ticks a child to its rest, `busy` says whether another tick of this process is at it, and `spare` cancels
    those that their parent does not wait for any more.
    """

    def __init__(
        self,
        *,
        children: Children,
        spare: Callable[[Iterable[str], str], Awaitable[None]],
        drive: Callable[[WorkflowSpec[Any], str, Family], Coroutine[Any, Any, RunState]],
        busy: Callable[[str], bool],
        stamp: Callable[[], kernel.Stamp],
    ) -> None:
        self._children, self._spare, self._drive, self._busy, self._stamp = children, spare, drive, busy, stamp

    def nest(self, run: RunState, before: Nest | None, family: Family) -> Nest:
        """The nest of the run's effect: the one before, if it is that."""
        assert run.intent is not None
        if before is not None and before.step_id == run.intent.step_id:
            return before
        return Nest(family, run.intent.step_id, kernel.order_of(run.intent.effect.payload))

    async def collect(self, run: RunState, nest: Nest) -> tuple[RunState, bool]:
        """Drive the children until something is decided: the run then. True where nothing is, and so it waits."""
        while True:
            await self._look(run, nest)
            known = nest.changes
            moved, spare = await self._children.collect(run, nest.order, nest.seen, self._stamp())
            await self._spare(spare, run.run_id)
            if moved is not None:
                return moved, False
            if nest.changes != known:  # one has come to rest meanwhile
                continue
            if nest.driving:
                await nest.change()
            elif nest.changes < 2 or not await self._woken(nest):
                return await self._children.rest(run, nest.order, nest.seen, self._stamp()), True

    async def _look(self, run: RunState, nest: Nest) -> None:
        """Begin to drive the children that may move, and see how the others stand."""
        assert run.intent is not None
        for child in run.intent.children:
            run_id, known = child.run_id, child.run_id in nest.seen or child.run_id in nest.driving
            if child.ended or not child.begun or known:
                continue
            if nest.order.drives and run_id not in nest.disturbed and not self._busy(run_id):
                try:
                    workflow = self._children.workflow(child.workflow_id)
                except ValueError as error:  # nobody can drive it here; it stays where it is
                    log.warning("Run %s: its child %s is left alone: %s", run.run_id, run_id, error)
                else:
                    nest.drive(run_id, self._drive(workflow, run_id, nest.family))
                    continue
            nest.seen[run_id] = await self._children.state(run_id)

    async def _woken(self, nest: Nest) -> bool:
        """Whether a child that came to rest has been woken since, by what another one said."""
        before = len(nest.seen)
        for run_id, state in tuple(nest.seen.items()):
            if state is not None and state.status is RunStatus.WAITING and run_id not in nest.disturbed:
                now = await self._children.state(run_id)
                if now is None or now.revision != state.revision:
                    del nest.seen[run_id]
        return len(nest.seen) < before
