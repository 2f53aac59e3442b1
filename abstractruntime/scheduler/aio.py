"""`AsyncScheduler`: what moves the runs of an `AsyncRuntime` by itself, on its loop."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.errors import UnknownRun
from ..core.models import RunState, RunStatus
from ..core.spec import WorkflowSpec
from ..runtime import AsyncRuntime
from .driver import Driver
from .quarantine import Quarantined
from .registry import WorkflowRegistry
from .stats import SchedulerStats
from .telling import told_here


class AsyncScheduler:
    """Moves every run of the runtime's stores whose workflow is registered, as soon as it can move.

    New runs, timers and deadlines at their time, the next attempt after a backoff, runs whose message or child's end
    has come, and those whose process died. What happens in this process moves at once; what other processes write is
    found within `poll_interval_s`, and a run that may be in the hands of another process is taken over when it has not
    moved for so long. Any number of processes may drive one SQLite file: an effect is performed by one of them.

    Args:
        runtime: whose runs are moved. It is not closed by the scheduler.
        registry: the workflows; by default the runtime's `workflow_registry`. Runs of others are left where they are.
        poll_interval_s: seconds between two looks at the store.
        concurrency: ticks at the same time. Runs that wait need none.
        max_steps: how far a tick goes before others have their turn.
        give_up_after: a run whose ticks raise is tried again after a pause that doubles, and left alone after so many
            errors in a row until it is requeued or somebody else moves it. After a restart it gets one more try. With
            the runtime's `quarantine_after` it fails for every process and for good; see `quarantined`.
        eager: whether runs that others start in this process are moved at once, or only when they have not moved
            for `poll_interval_s`, so that whoever started them may tick them.
        max_errors_kept: how many of the last errors `stats.errors` keeps.
        on_run_resumed: told the state of a run that was moved, whatever its status.
        on_run_failed: told id and error of a run whose tick raised or whose workflow is unknown.

    >>> async with AsyncScheduler(rt, registry):
    ...     run_id = await rt.start(workflow=workflow)
    """

    def __init__(
        self,
        runtime: AsyncRuntime,
        registry: WorkflowRegistry | None = None,
        *,
        poll_interval_s: float = 0.5,
        concurrency: int = 100,
        max_steps: int = 100,
        give_up_after: int = 8,
        eager: bool = True,
        max_errors_kept: int = 100,
        on_run_resumed: Callable[[RunState], Any] | None = None,
        on_run_failed: Callable[[str, Exception], Any] | None = None,
    ) -> None:
        known = registry if registry is not None else runtime.workflow_registry
        if known is None:
            raise ValueError("A scheduler needs to know workflows: give it a registry, or its runtime one.")
        if not callable(getattr(runtime.run_store, "list_due_wait_until", None)):
            raise TypeError(f"{runtime.run_store!r} has no list_due_wait_until(); expected a QueryableRunStore")
        self._driver = self._make(
            runtime,
            known,
            poll_interval_s=poll_interval_s,
            concurrency=concurrency,
            max_steps=max_steps,
            give_up_after=give_up_after,
            eager=eager,
            max_errors_kept=max_errors_kept,
            on_run_resumed=on_run_resumed,
            on_run_failed=on_run_failed,
        )

    def _make(self, runtime: AsyncRuntime, registry: Any, **options: Any) -> Driver:
        return _LoopDriver(runtime, registry, **options)

    async def __aenter__(self) -> AsyncScheduler:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to move runs. Raises RuntimeError when it does already."""
        self._driver.begin()

    async def stop(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - the documented name
        """Begin nothing more, let the effects under way go on for so many seconds, then cancel them.

        Effects that are cancelled are handed back; the next driver performs them. Stopping twice does no harm.
        """
        await self._driver.end(timeout)

    async def poll_once(self) -> int:
        """Move all runs that can move now, and wait until they rest; how many moved. It need not be started."""
        return await self._driver.poll()

    async def quarantined(self, *, limit: int = 100) -> list[Quarantined]:
        """Runs that are set apart, and why: first those that this scheduler gave up, then those that failed for it.

        The latter are looked for among all failed runs, the last created first.
        """
        return await self._driver.quarantined(limit)

    async def requeue(self, run_id: str) -> RunState:
        """Let a run move again that was set apart, as often as if it had never raised; how it stands.

        One that failed goes on at the node where it stands, as `AsyncRuntime.retry_run` says; its parent was told of
        the failure and is not told of what follows. Raises `UnknownRun`, and `RunNotFailed` for one that ended well.
        """
        return await self._driver.requeue(run_id)

    @property
    def stats(self) -> SchedulerStats:
        """What it has done so far."""
        return self._driver.stats

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._driver.drives

    async def resume_event(self, *, run_id: str, wait_key: str, payload: Any, max_steps: int = 100) -> RunState:
        """Answer a waiting run and move it. Raises ValueError when it does not wait, KeyError for unknown ones."""
        runtime = self._driver.runtime
        state = await runtime.get_state(run_id)
        if state.status is not RunStatus.WAITING:
            raise ValueError(f"Run {run_id!r} is {state.status}; expected one that waits.")
        workflow = self._driver.registry.get_or_raise(state.workflow_id)
        return await runtime.resume(
            workflow=workflow, run_id=run_id, wait_key=wait_key, payload=payload, max_steps=max_steps
        )

    async def emit_event(
        self,
        *,
        name: str,
        payload: Any,
        scope: str = "session",
        session_id: str | None = None,
        workflow_id: str | None = None,
        run_id: str | None = None,
        max_steps: int = 100,
        limit: int = 10000,
    ) -> list[RunState]:
        """Send an event, as `AsyncRuntime.emit_event` does, and move up to `limit` of the runs that waited for it.

        Returns how they stand then. Raises ValueError for an address that is none, and KeyError for a listener whose
        workflow is not registered: the event is sent then, and later listeners move by themselves.
        """
        runtime = self._driver.runtime
        told = await runtime.emit_event(
            name=name, payload=payload, scope=scope, session_id=session_id, workflow_id=workflow_id, run_id=run_id
        )
        found = []
        for entry in told["resumed"][:limit]:
            state = await runtime.get_state(entry["run_id"])
            workflow: WorkflowSpec[Any] = self._driver.registry.get_or_raise(state.workflow_id)
            if max_steps > 0:
                state = await runtime.tick(workflow=workflow, run_id=state.run_id, max_steps=max_steps)
            found.append(state)
        return found

    async def resume_subworkflow_parent(self, *, child_run_id: str, child_output: Any) -> RunState | None:
        """See `AsyncRuntime.resume_subworkflow_parent`; None also for a child that is not stored."""
        runtime = self._driver.runtime
        try:
            child = await runtime.get_state(child_run_id)
            parent = None if child.parent_run_id is None else await runtime.get_state(child.parent_run_id)
        except UnknownRun:
            return None
        if parent is None:
            return None
        workflow = self._driver.registry.get_or_raise(parent.workflow_id)
        return await runtime.resume_subworkflow_parent(
            child_run_id=child_run_id, child_output=child_output, workflow=workflow
        )


class _LoopDriver(Driver):
    """Ticks in tasks of its loop, where nodes run inline."""

    async def tick(self, workflow: WorkflowSpec[Any], run_id: str) -> RunState:
        return await self.runtime.tick(workflow=workflow, run_id=run_id, max_steps=self._max_steps)

    async def tell(self, callback: Callable[..., Any], *args: Any) -> None:
        await told_here(callback, *args)
