"""Long work on a database beside its lanes: each chore in a daemon thread of its own, and none outlives `close`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import Any, TypeVar

from ...core.errors import StoreClosed
from ...core.shielding import finish

T = TypeVar("T")

#: seconds that a cancelled caller waits for its chore to clear up
_CLEARS_UP_WITHIN = 10.0


class Chores:
    """What goes on in threads beside the lanes of one database. Safe from any loop and thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._running: dict[Event, Future[Any]] = {}
        self._process = os.getpid()

    async def run(self, work: Callable[[Event], T]) -> T:
        """What `work(stop)` returns or raises. It is to end soon, and clear up, when `stop` is set.

        That is when the caller is cancelled, who then waits for the end, and when the database is closed.
        """
        stop: Event = Event()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._running[stop] = future
        Thread(target=self._do, args=(work, stop, future), name=f"sqlite-chore {self._path}", daemon=True).start()
        result = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            stop.set()
            await finish(_ended(result), within=_CLEARS_UP_WITHIN)
            raise

    async def close(self) -> None:
        """Stop whatever goes on, and wait for its end."""
        if self._process != os.getpid():  # the threads did not come along when this process was forked
            return
        for stop, future in list(self._running.items()):
            stop.set()
            await _ended(asyncio.wrap_future(future))

    def _do(self, work: Callable[[Event], T], stop: Event, future: Future[T]) -> None:
        try:
            result = work(stop)
        except BaseException as error:  # a boundary between threads: it is raised where the chore is awaited
            del self._running[stop]
            future.set_exception(error)
        else:
            del self._running[stop]
            future.set_result(result)


async def _ended(result: asyncio.Future[Any]) -> None:
    with suppress(StoreClosed):
        await asyncio.wait({result})
        result.exception()
