"""The driver: asks the store what can move, starts ticks, and sleeps until the next thing is due.

A run that waits is nothing here, neither a task nor an entry: the store knows when it is due. What happens in this
process is heard of through the journal, at its commit; for what others write the store is asked again from time to
time. Two drivers on one store need no agreement: the guard of each commit says who was first, and a run that may be in
the hands of another is touched only when it has not moved for a while.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from asyncio import FIRST_COMPLETED
from collections.abc import Callable
from contextlib import suppress
from math import inf
from threading import get_ident
from typing import Any

import anyio

from ..core.backend import Due
from ..core.capacity import LINE, Line
from ..core.clock import iso, parse_instant
from ..core.errors import RuntimeClosed, StoreClosed, StoreError, UnknownRun
from ..core.models import TERMINAL, RunState, RunStatus
from ..core.shielding import finish
from ..core.spec import WorkflowSpec
from ..effects.memory import OWN
from ..runtime import AsyncRuntime
from ..storage.listing import attempt_due
from .asides import Asides
from .quarantine import Quarantined, set_apart
from .telling import Telling

log = logging.getLogger("abstractruntime.scheduler")

#: rows that the store is asked for at once
PAGE = 500

#: seconds between two looks at whether those that are to finish only stand in line
_GLANCE = 0.05

#: seconds that cancelled ticks may take to hand their effects back
HANDING_BACK = 30.0


class Driver:
    """Moves the runs of one runtime. Everything but `_saw` happens on the loop that it was started on."""

    #: how many ticks there may be beside those of `concurrency`, for each of these, that stand in line for a place
    line = 20

    def __init__(
        self,
        runtime: AsyncRuntime,
        registry: Any,
        *,
        poll_interval_s: float,
        concurrency: int,
        max_steps: int,
        give_up_after: int,
        eager: bool,
        max_errors_kept: int,
        on_run_resumed: Callable[[RunState], Any] | None,
        on_run_failed: Callable[[str, Exception], Any] | None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("max_steps", max_steps), ("give_up_after", give_up_after)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value!r}.")
        if not 0 < poll_interval_s < inf:
            raise ValueError(f"poll_interval_s must be above 0, found {poll_interval_s!r}.")
        self.runtime, self.registry = runtime, registry
        self._journal, self._engine, self._leases = runtime._journal, runtime._engine, runtime._leases
        self._clock = runtime._clock
        self._poll, self._concurrency, self._max_steps = poll_interval_s, concurrency, max_steps
        self._eager = eager
        self.telling = Telling(
            self.tell, on_run_resumed=on_run_resumed, on_run_failed=on_run_failed, max_errors_kept=max_errors_kept
        )
        self.stats = self.telling.stats
        self._asides = Asides(pause=poll_interval_s, give_up_after=give_up_after)
        #: what is to be ticked next, in order, and what is being ticked
        self._ready: dict[str, Due] = {}
        self._running: dict[str, asyncio.Task[bool]] = {}
        #: ticks that stand in line for a place of their effect, and so take none of ours
        self._in_line = 0
        #: by runs that are being ticked, what is to be ticked after them: children that they may drive themselves, or
        #: they again, because somebody did something to them when their tick was over
        self._after: dict[str, dict[str, Due]] = {}
        #: when the store is to be asked again, by the monotonic clock
        self._look_at = 0.0
        self._stopping = False
        self._main: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident = 0
        self._nap: anyio.CancelScope | None = None
        self._rung = False

    @abstractmethod
    async def tick(self, workflow: WorkflowSpec[Any], run_id: str) -> RunState:
        """Move a run."""

    @abstractmethod
    async def tell(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call what the host gave us."""

    # -- beginning and end

    def begin(self) -> None:
        """Start to drive, in a task of the running loop. Raises RuntimeError when it drives already."""
        if self.drives:
            raise RuntimeError("This scheduler is running already. Stop it first, or make another one.")
        self._loop, self._ident = asyncio.get_running_loop(), get_ident()
        self._stopping, self._look_at = False, 0.0
        self._journal.overseers.add(self._saw)
        self._main = self._loop.create_task(self._drive_on(), name="abstractruntime-scheduler")

    @property
    def drives(self) -> bool:
        """Whether it is at work."""
        return self._main is not None and not self._main.done()

    async def end(self, within: float) -> None:
        """Start nothing more, wait so long for what is under way, then cancel it: its effects are handed back.

        Ticks go on to the end of the effect that they are at.
        """
        self._stopping = True
        self._journal.overseers.discard(self._saw)
        self._ready.clear()
        self._after.clear()
        main, self._main = self._main, None
        if main is not None:
            main.cancel()
            await asyncio.wait([main])
        tasks = set(self._running.values()) - {asyncio.current_task()}
        if within > 0:
            await self._finished(tasks, within)
        for task in tasks:
            task.cancel()
        if tasks:
            await finish(asyncio.wait(tasks), within=HANDING_BACK)

    async def _finished(self, tasks: set[asyncio.Task[bool]], within: float) -> None:
        """Wait so long for what is under way, and not for what only stands in line."""
        loop, left = asyncio.get_running_loop(), tasks
        bound = loop.time() + within
        while left and (seconds := bound - loop.time()) > 0:
            if len(left) <= self._in_line and not self._leases.performs:
                return
            _, left = await asyncio.wait(left, timeout=min(seconds, _GLANCE), return_when=FIRST_COMPLETED)

    # -- hearing

    def _saw(self, run: RunState) -> None:
        """A commit of this process is durable. Called from any thread."""
        loop = self._loop
        if get_ident() == self._ident:
            self._hear(run)
        elif loop is not None:
            with suppress(RuntimeError):  # it was closed: nobody drives any more
                loop.call_soon_threadsafe(self._hear, run)

    def _hear(self, run: RunState) -> None:
        """See what follows from a commit; what is missed here is found by the next look."""
        if self._stopping:
            return
        if run.status in TERMINAL:
            self._asides.forget(run.run_id)
            self._is_at_it(run)
            if run.parent_run_id and run.parent_run_id not in self._running:
                self._asides.forget(run.parent_run_id)
                self._look_by(0.0)
            return
        waits = run.status is RunStatus.WAITING
        at = (run.waiting.until if run.waiting else None) if waits else attempt_due(run)
        if at:
            self._look_by(self._when(at))
        if run.run_id not in self._running:
            self._asides.forget(run.run_id)
        if self._is_ticked(run.run_id):
            self._is_at_it(run)
            return
        held = run.intent is not None and run.intent.token is not None
        if at == "" and not held and self._eager:
            before = next((one for one in (run.run_id, run.parent_run_id) if one in self._running), None)
            if before is not None:
                self._after.setdefault(before, {})[run.run_id] = _row(run)
                return
            self._ready[run.run_id] = _row(run)
            self._ring()

    def _is_at_it(self, run: RunState) -> None:
        """Somebody moves it, or it has ended: it is not to be ticked after anything."""
        for before in (run.run_id, run.parent_run_id or ""):
            self._after.get(before, {}).pop(run.run_id, None)

    def _when(self, at: str) -> float:
        """An instant by the monotonic clock."""
        return self._clock.monotonic() + (parse_instant(at) - self._clock.now()).total_seconds()

    def _is_ticked(self, run_id: str | None) -> bool:
        return run_id is not None and self._engine.is_ticked(run_id)

    def _look_by(self, at: float) -> None:
        if at < self._look_at:
            self._look_at = at
            self._ring()

    def _ring(self) -> None:
        self._rung = True  # first this and then the look at the nap; `_sleep` does it the other way around
        scope, loop = self._nap, self._loop
        if scope is not None and loop is not None:
            with suppress(RuntimeError):  # that loop was closed: nobody sleeps there any more
                loop.call_soon_threadsafe(scope.cancel)

    # -- driving

    async def _drive_on(self) -> None:
        while not self._stopping:
            self._rung = False
            try:
                if len(self._ready) < self._concurrency and self._clock.monotonic() >= self._look_at:
                    await self.look()
                await self._launch()
            except StoreClosed:
                log.error("The store was closed under a scheduler that runs; it ends. Stop it first.")
                return
            except StoreError as error:
                log.warning("The store cannot say what is due, it is asked again in %g s: %s", self._poll, error)
            except Exception:  # a boundary: nobody awaits this task, and the other runs are to go on
                log.exception("A scheduler failed and goes on in %g s", self._poll)
            await self._sleep()

    async def _sleep(self) -> None:
        with anyio.CancelScope() as scope:
            self._nap = scope
            try:
                if not self._rung:
                    full = len(self._ready) >= self._concurrency
                    seconds = self._poll if full else self._look_at - self._clock.monotonic()
                    await self._clock.sleep(max(0.0, min(self._poll, seconds)))
            finally:
                self._nap = None

    async def look(self) -> None:
        """Ask the store what can move now, and when something next will."""
        start, now = self._clock.monotonic(), iso(self._clock.now())
        self._look_at = start + self._poll
        self.stats.poll_cycles, self.stats.last_poll_at = self.stats.poll_cycles + 1, now
        self._asides.sweep(start)
        backend = self._journal.stored
        passing = {*self._running, *self._ready, *self._engine.ticked(), *self._asides.resting(start)}
        watched = self._asides.watched(start)
        rows = await backend.due(now, limit=PAGE, passing=passing, watched=watched, owner=self._leases.owner)
        wary = backend.shared or not self._eager
        for row in rows:
            if row.run_id not in self._running and self._asides.admits(row, start, wary=wary):
                self._ready.setdefault(row.run_id, row)
        at = await backend.next_due(now)
        if at is not None:
            self._look_by(self._when(at))
        self._look_by(start if len(rows) == PAGE else self._asides.next_end(start))

    async def _launch(self) -> None:
        """Start ticks of what is ready, as far as there is room."""
        while self._ready and self._has_room() and not self._stopping:
            await self._begin_tick(self._ready.pop(next(iter(self._ready))))

    def _has_room(self) -> bool:
        ticks = len(self._running)
        return ticks - self._in_line < self._concurrency and ticks < self._concurrency * (1 + self.line)

    def _stands_in_line(self, change: int) -> None:
        self._in_line += change
        self._ring()

    async def _begin_tick(self, row: Due) -> asyncio.Task[bool] | None:
        if row.run_id in self._running or self._is_ticked(row.run_id):
            return None  # whoever is at it moves it; else it is found again
        workflow = self.registry.get(row.workflow_id) or OWN.get(row.workflow_id)
        if workflow is None:
            await self._unknown(row)
            return None
        task = asyncio.get_running_loop().create_task(self._move(workflow, row), name="abstractruntime-tick")
        self._running[row.run_id] = task
        return task

    async def poll(self) -> int:
        """Tick what can move now, each run once, and wait for it; how many moved."""
        self._stopping = self._stopping and self.drives
        await self.look()
        rows, tasks = list(self._ready.values()), []
        self._ready.clear()
        for row in rows:
            while not self._has_room():
                await asyncio.wait(set(self._running.values()), timeout=self._poll, return_when=FIRST_COMPLETED)
            tasks.append(await self._begin_tick(row))
        return sum(await asyncio.gather(*(task for task in tasks if task is not None)))

    async def _move(self, workflow: WorkflowSpec[Any], row: Due) -> bool:
        run_id = row.run_id
        LINE.set(Line(run_id, self._stands_in_line, lambda: self._stopping))  # this task is the tick's own
        try:
            if self._asides.is_given_up(run_id):
                state = await self.runtime.get_state(run_id)
                if self._asides.stands(state, self._clock.monotonic()):
                    return False
            state = await self.tick(workflow, run_id)
        except Exception as error:  # a boundary: a run that raises is tried again later, the others go on
            await self._failed(run_id, error)
            return False
        else:
            return await self._moved(row, state)
        finally:
            del self._running[run_id]
            for later in self._after.pop(run_id, {}).values():
                self._ready.setdefault(later.run_id, later)
            self._ring()

    async def _moved(self, row: Due, state: RunState) -> bool:
        if state.revision == row.revision:  # somebody else is at it, or it is paused
            if state.status not in TERMINAL:
                self._asides.unmoved(row.run_id, state.revision, self._clock.monotonic())
            return False
        self._asides.forget(row.run_id)
        await self.telling.moved(state)
        if attempt_due(state) == "" and not self._stopping:  # behind the others
            self._ready[row.run_id] = _row(state)
        return True

    async def _failed(self, run_id: str, error: Exception) -> None:
        goes_on = await self._goes_on(run_id, error)
        log.warning("Run %s: %s", run_id, "tried again later" if goes_on else "left alone", exc_info=error)
        self.stats.runs_failed += 1
        await self.telling.failed(run_id, error, iso(self._clock.now()))

    async def _goes_on(self, run_id: str, error: Exception) -> bool:
        """Whether a run that raised is to be tried again, later."""
        now = self._clock.monotonic()
        if not isinstance(error, StoreError | RuntimeClosed):  # those are none of its own doing
            try:
                state = await self.runtime.get_state(run_id)
            except UnknownRun:
                self._asides.forget(run_id)
                return False
            except StoreError as trouble:
                log.warning("Run %s: how it stands cannot be read: %s", run_id, trouble)
            else:
                if state.status in TERMINAL:
                    self._asides.forget(run_id)
                    return False
                return self._asides.raised(state, error, now, iso(self._clock.now()))
        self._asides.failed(run_id, now)
        return True

    async def quarantined(self, limit: int) -> list[Quarantined]:
        """What is left alone, by this driver or by the rule of the runtime."""
        ours = self._asides.given_up()
        return [*ours, *await set_apart(self.runtime, limit - len(ours))][:limit]

    async def requeue(self, run_id: str) -> RunState:
        """Let a run be moved again that was set apart."""
        state = await self.runtime.get_state(run_id)
        if state.status in TERMINAL:
            state = await self.runtime.retry_run(run_id, force=True)
        self._asides.requeue(state, self._clock.monotonic())
        if self.drives and attempt_due(state) == "" and run_id not in self._running:
            self._ready[run_id] = _row(state)
            self._ring()
        return state

    async def _unknown(self, row: Due) -> None:
        if self._asides.unknown(row.run_id, self._clock.monotonic()):
            error = KeyError(f"Workflow {row.workflow_id!r} is not registered, so the run is left where it is.")
            log.warning("Run %s: %s", row.run_id, error.args[0])
            await self.telling.failed(row.run_id, error, iso(self._clock.now()))


def _row(run: RunState) -> Due:
    return Due(run_id=run.run_id, workflow_id=run.workflow_id, revision=run.revision, between=False)
