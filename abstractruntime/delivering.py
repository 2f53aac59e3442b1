"""Messages reach the runs that wait for them: each run takes in its next one, in a commit of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from msgspec import Struct

from .core import kernel
from .core.errors import AbstractRuntimeError, RevisionConflict
from .core.event_keys import listens_to
from .core.journal import Journal
from .core.models import Commit, Message, Request, RunState
from .core.spec import WorkflowSpec
from .core.streams import Unread, since_of

log = logging.getLogger("abstractruntime")

#: listeners of a stream that are moved after something was said there, and how many at the same time
_MOST, _TOGETHER = 10_000, 64


class FollowUp(Struct, frozen=True):
    """A listener to be driven so many steps, once the tick that spoke to it is over."""

    workflow: WorkflowSpec[Any]
    run_id: str
    max_steps: int


class Later:
    """What the outermost tick of a runtime does when it is over: a list, so that a long chain needs no deep stack."""

    __slots__ = ("deliveries", "items", "over")

    def __init__(self, deliveries: Deliveries) -> None:
        self.deliveries = deliveries
        self.items: deque[FollowUp] = deque()
        #: a task that it has begun may outlive it
        self.over = False


_later: ContextVar[Later | None] = ContextVar("abstractruntime_later", default=None)


class Moved(Struct, frozen=True, kw_only=True):
    """What became of a listener: its status, or why it was left where it is; its workflow, if a registry knows it."""

    run_id: str
    status: str
    error: str | None = None
    workflow: WorkflowSpec[Any] | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """What whoever sent the event is told of it."""
        return {"run_id": self.run_id, "status": self.status, **({} if self.error is None else {"error": self.error})}


class Deliveries:
    """Hands messages to the runs of one runtime. `registry` gives its registry of workflows, or None."""

    def __init__(
        self,
        *,
        journal: Journal,
        stamp: Callable[[], kernel.Stamp],
        answer: Callable[[RunState, tuple[Request, ...], kernel.Stamp], Awaitable[Commit]],
        registry: Callable[[], Any],
    ) -> None:
        self._journal, self._stamp, self._answer, self._registry = journal, stamp, answer, registry

    async def unread(self, run: RunState) -> Unread | None:
        """The next message that the run waits for; costs nothing for one that waits for none."""
        address = listens_to(run)
        if address is None:
            return None
        stream, name = address
        return await self._journal.backend.next_message(stream, name, run.read.get(stream, {}), since_of(run))

    async def after(self, messages: Iterable[Message], max_steps: int) -> None:
        """Move who waits for what a tick has just sent; they are driven further when the tick is over."""
        later = self._around()
        for moved in await self.move(messages):
            if max_steps > 0 and moved.workflow is not None and moved.error is None and later is not None:
                later.items.append(FollowUp(moved.workflow, moved.run_id, max_steps))

    @contextmanager
    def outermost(self) -> Iterator[Later | None]:
        """What a tick must do when it is over; None inside another tick of this runtime, which does it."""
        if self._around() is not None:
            yield None
            return
        later = Later(self)
        token = _later.set(later)
        try:
            yield later
        finally:
            later.over = True
            _later.reset(token)

    def _around(self) -> Later | None:
        later = _later.get()
        return later if later is not None and later.deliveries is self and not later.over else None

    async def move(self, messages: Iterable[Message]) -> list[Moved]:
        """Let every run whose wait these messages made due take in its next one.

        The messages are stored, so what cannot be moved now is logged, and moves at its next tick.
        """
        found: list[Moved] = []
        since: dict[str, str] = {}
        for message in messages:
            since[message.stream] = min(message.at, since.get(message.stream, message.at))
        for stream, at in since.items():
            try:
                due = await self._journal.backend.nudged(stream=stream, since=at, limit=_MOST)
            except AbstractRuntimeError as error:
                log.warning("Nobody can say who waits on stream %s; they move at their next tick: %s", stream, error)
                continue
            for start in range(0, len(due), _TOGETHER):
                some = due[start : start + _TOGETHER]
                results = await asyncio.gather(*map(self._one, some), return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                    if result is not None:
                        found.append(result)
        return found

    async def _one(self, run_id: str) -> Moved | None:
        try:
            return await self._taken_in(run_id)
        except AbstractRuntimeError as error:
            log.warning("Run %s: it waits for a message that is there and moves at its next tick: %s", run_id, error)
            return Moved(run_id=run_id, status="error", error=str(error))

    async def _taken_in(self, run_id: str) -> Moved | None:
        """What became of the run; None if it has something else to do first, or others were quicker."""
        while True:
            loaded = await self._journal.load(run_id)
            run, registry, stamp = loaded.run, self._registry(), self._stamp()
            workflow = None if registry is None else registry.get(run.workflow_id)
            if registry is not None and workflow is None:
                return Moved(run_id=run_id, status="skipped", error="workflow_not_registered")
            try:
                if loaded.requests:
                    await self._journal.commit(await self._answer(run, loaded.requests, stamp))
                    continue
                match kernel.next_move(run, now=stamp.at, unread=await self.unread(run)):
                    case kernel.Deliver(found=found):
                        run = await self._journal.commit(kernel.deliver(run, found, stamp))
                        return Moved(run_id=run_id, status=str(run.status), workflow=workflow)
                    case _:  # a request that stands, a deadline: its own tick sees to that
                        return None
            except RevisionConflict:
                continue
