"""`Scheduler`: the documented one, for programs without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.models import RunState
from ..core.portal import drive, twin
from ..core.shielding import finish
from ..core.spec import WorkflowSpec
from ..core.threads import WorkerThreads
from ..runtime import AsyncRuntime
from ..sync import Runtime
from .aio import AsyncScheduler
from .driver import HANDING_BACK, Driver
from .registry import WorkflowRegistry
from .stats import SchedulerStats


class Scheduler:
    """Moves the runs of a `Runtime` by itself: see `AsyncScheduler`, which this one keeps as `aio`.

    Nodes and callbacks run in worker threads, `concurrency` at most, so they may block and use the runtime. By default
    it is not eager: a run that was just started is its caller's to tick, and taken when it has not moved for a while.
    A program that forgets to stop it still exits.
    """

    def __init__(
        self,
        runtime: Runtime,
        registry: WorkflowRegistry | None = None,
        *,
        poll_interval_s: float = 1.0,
        concurrency: int = 16,
        max_steps: int = 100,
        give_up_after: int = 8,
        eager: bool = False,
        max_errors_kept: int = 100,
        on_run_resumed: Callable[[RunState], Any] | None = None,
        on_run_failed: Callable[[str, Exception], Any] | None = None,
    ) -> None:
        self.aio = _ThreadedScheduler(
            runtime.aio,
            registry,
            poll_interval_s=poll_interval_s,
            concurrency=concurrency,
            max_steps=max_steps,
            give_up_after=give_up_after,
            eager=eager,
            max_errors_kept=max_errors_kept,
            on_run_resumed=on_run_resumed,
            on_run_failed=on_run_failed,
        )

    def __enter__(self) -> Scheduler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    start = twin(AsyncScheduler.start)
    stop = twin(AsyncScheduler.stop)
    poll_once = twin(AsyncScheduler.poll_once)
    resume_event = twin(AsyncScheduler.resume_event)
    emit_event = twin(AsyncScheduler.emit_event)
    resume_subworkflow_parent = twin(AsyncScheduler.resume_subworkflow_parent)
    quarantined = twin(AsyncScheduler.quarantined)
    requeue = twin(AsyncScheduler.requeue)

    @property
    def stats(self) -> SchedulerStats:
        """What it has done so far."""
        return self.aio.stats

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self.aio.is_running


class _ThreadedScheduler(AsyncScheduler):
    def _make(self, runtime: AsyncRuntime, registry: Any, **options: Any) -> Driver:
        return _ThreadDriver(runtime, registry, **options)


class _ThreadDriver(Driver):
    """Ticks on the loop, while nodes, policies and callbacks run in a worker thread that waits for the tick."""

    line = 3  # each has a thread

    def __init__(self, runtime: AsyncRuntime, registry: Any, *, concurrency: int, **options: Any) -> None:
        super().__init__(runtime, registry, concurrency=concurrency, **options)
        self._threads, self._tellers = WorkerThreads(concurrency * (1 + self.line)), WorkerThreads(concurrency)

    async def tick(self, workflow: WorkflowSpec[Any], run_id: str) -> RunState:
        begun: list[asyncio.Task[Any] | None] = []

        async def move() -> RunState:
            begun.append(asyncio.current_task())
            return await self.runtime.tick(workflow=workflow, run_id=run_id, max_steps=self._max_steps)

        ended: asyncio.Future[RunState] = asyncio.ensure_future(self._threads.run(drive, move))
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not begun:
                ended.cancel()
            for task in begun:
                if task is not None:
                    task.cancel()
            await finish(asyncio.wait([ended]), within=HANDING_BACK)
            if ended.done() and not ended.cancelled():
                ended.exception()  # a tick that was cancelled has nothing to tell
            raise

    async def tell(self, callback: Callable[..., Any], *args: Any) -> None:
        await self._tellers.run(callback, *args)
