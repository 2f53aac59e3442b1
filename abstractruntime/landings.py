"""Landings of one step with several effects: what arrives while a commit is on its way shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from .core.errors import StoreTooLarge
from .core.kernel import Stamp
from .core.models import Elsewhere, Message, Request, RunState, StepRecord
from .core.shielding import finish

#: seconds that a landing on its way may take after the step was cancelled
_WITHIN = 60.0


class Landing(Struct, frozen=True, gc=False):
    """Something to journal: `record(run, stamp)` makes it when its commit is made."""

    record: Callable[[RunState, Stamp], StepRecord]
    requests: tuple[Request, ...] = ()
    lookup_key: str | None = None
    elsewhere: tuple[Elsewhere, ...] = ()
    messages: tuple[Message, ...] = ()


class Landings:
    """A queue of landings and the task that commits them; `commit` gets one or more and makes them durable.

    A landing on its way is carried through whatever becomes of the effect that waits for it.
    """

    def __init__(self, commit: Callable[[list[Landing]], Awaitable[None]]) -> None:
        self._commit = commit
        self._queue: list[tuple[Landing, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._singly = False

    def add(self, landing: Landing) -> asyncio.Future[None]:
        """Queue it; the future is done when it is durable, or has the error of its commit."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((landing, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="abstractruntime-landings")
        return future

    async def close(self) -> None:
        """Wait for what is on its way, deaf to cancellation."""
        if self._task is not None and not self._task.done():
            await finish(self._task, within=_WITHIN)

    async def _drain(self) -> None:
        while self._queue:
            alone = self._singly or _goes_alone(self._queue[0][0])
            some = self._queue[:1] if alone else [pair for pair in self._queue if not _goes_alone(pair[0])]
            self._queue = [pair for pair in self._queue if pair not in some]
            error: BaseException | None = None
            try:
                await self._commit([landing for landing, _ in some])
            except StoreTooLarge as failed:
                if len(some) > 1:  # one by one, so that only the culprit fails
                    self._singly, self._queue = True, some + self._queue
                    continue
                error = failed
            except BaseException as failed:  # a boundary between tasks: raised where the landings are awaited
                error = failed
            for _, future in some:
                if not future.done():
                    future.set_result(None) if error is None else future.set_exception(error)


def _goes_alone(landing: Landing) -> bool:
    """A commit has one key to be found by, and writes another run once."""
    return landing.lookup_key is not None or bool(landing.elsewhere)
