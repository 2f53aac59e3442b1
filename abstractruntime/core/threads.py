"""Worker threads for sync effect handlers: daemons, reused while idle, as many as the limit allows.

Not anyio's and not the executor's: both are joined when the interpreter exits, so a handler that blocks, or a runtime
that nobody closed, would keep the process alive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

log = logging.getLogger("abstractruntime")

#: how long an idle thread waits for more to do
IDLE_SECONDS = 30.0

_Job = tuple[Callable[[], Any], asyncio.Future[Any]]


class WorkerThreads:
    """A pool of at most `limit` daemon threads; further calls wait their turn in order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy = 0
        self._idle: deque[SimpleQueue[_Job]] = deque()
        self._waiting: deque[_Job] = deque()
        self._lock = threading.Lock()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` in a thread, in a copy of the caller's context, and return what it returns.

        A cancelled caller is let go at once; the thread, which nobody can stop, ends by itself and its result is
        dropped.
        """
        context = copy_context()
        future = asyncio.get_running_loop().create_future()
        self._submit((lambda: context.run(function, *args), future))
        return await future

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().put(job)
            elif self._busy >= self._limit:
                self._waiting.append(job)
                return
            else:
                box: SimpleQueue[_Job] = SimpleQueue()
                box.put(job)
                threading.Thread(target=self._work, args=(box,), name="abstractruntime-worker", daemon=True).start()
            self._busy += 1

    def _work(self, box: SimpleQueue[_Job]) -> None:
        while True:
            try:
                job: _Job | None = box.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if box in self._idle:  # else somebody has just put a job into it
                        self._idle.remove(box)
                        return
                continue
            while job is not None:
                function, future = job
                result, error = _attempt(function, future)
                with self._lock:  # before the answer, so that whoever gets it finds this thread idle
                    job = self._waiting.popleft() if self._waiting else None
                    if job is None:
                        self._busy -= 1
                        self._idle.append(box)
                try:
                    future.get_loop().call_soon_threadsafe(_deliver, future, result, error)
                except RuntimeError:
                    log.debug("The loop that waited for a handler was closed")
                del function, future, result, error  # an idle thread keeps nothing alive


def _attempt(function: Callable[[], Any], future: asyncio.Future[Any]) -> tuple[Any, BaseException | None]:
    if future.cancelled():
        return None, None
    try:
        return function(), None
    except BaseException as error:  # a boundary: it is raised again where it is awaited
        return None, error


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future cannot carry it
        future.set_exception(RuntimeError(f"StopIteration left a handler: {error}"))
    else:
        future.set_exception(error)
