"""A runtime with a registry and a scheduler in one: what most programs need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..core.errors import UnknownRun
from ..core.models import RunState, RunStatus, WaitReason
from ..core.policy import EffectPolicy
from ..core.spec import WorkflowSpec
from ..runtime import AsyncRuntime
from ..storage.in_memory import InMemoryLedgerStore, InMemoryRunStore
from ..storage.user_pair import call
from .aio import AsyncScheduler
from .quarantine import Quarantined
from .registry import WorkflowRegistry
from .stats import SchedulerStats


@dataclass
class AsyncScheduledRuntime:
    """An async runtime, what moves its runs, and the workflows it knows. In use it is a context that stops both."""

    runtime: AsyncRuntime
    scheduler: AsyncScheduler
    registry: WorkflowRegistry

    async def __aenter__(self) -> AsyncScheduledRuntime:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        await self.runtime.aclose()

    async def run(
        self,
        workflow: WorkflowSpec[Any],
        *,
        vars: dict[str, Any] | None = None,
        actor_id: str | None = None,
        session_id: str | None = None,
        max_steps: int = 100,
    ) -> tuple[str, RunState]:
        """Register the workflow if its id is new, start a run of it and tick it: its id and state."""
        if workflow.workflow_id not in self.registry:
            self.registry.register(workflow)
        run_id = await self.runtime.start(workflow=workflow, vars=vars, actor_id=actor_id, session_id=session_id)
        return run_id, await self.runtime.tick(workflow=workflow, run_id=run_id, max_steps=max_steps)

    async def start(
        self,
        *,
        workflow: WorkflowSpec[Any],
        vars: dict[str, Any] | None = None,
        actor_id: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """Create a run, see `AsyncRuntime.start`. Nothing is registered: the scheduler moves what is."""
        return await self.runtime.start(workflow=workflow, vars=vars, actor_id=actor_id, session_id=session_id)

    async def tick(self, run_id: str, *, max_steps: int = 100) -> RunState:
        """Move a run. Raises KeyError for an unknown run, and for a workflow that is not registered."""
        workflow = self.registry.get_or_raise((await self.runtime.get_state(run_id)).workflow_id)
        return await self.runtime.tick(workflow=workflow, run_id=run_id, max_steps=max_steps)

    async def respond(self, run_id: str, payload: Any) -> RunState:
        """Answer whatever the run waits for. Raises ValueError when it waits for nothing that has a key."""
        state = await self.runtime.get_state(run_id)
        if state.status is not RunStatus.WAITING or state.waiting is None:
            raise ValueError(f"Run {run_id!r} is {state.status}; expected one that waits for an answer.")
        if not state.waiting.wait_key:
            raise ValueError(f"Run {run_id!r} waits for {state.waiting.reason} and has no wait_key to answer.")
        return await self.resume_event(run_id=run_id, wait_key=state.waiting.wait_key, payload=payload)

    async def resume_event(self, *, run_id: str, wait_key: str, payload: Any) -> RunState:
        """See `AsyncScheduler.resume_event`."""
        return await self.scheduler.resume_event(run_id=run_id, wait_key=wait_key, payload=payload)

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
        """See `AsyncScheduler.emit_event`."""
        return await self.scheduler.emit_event(
            name=name,
            payload=payload,
            scope=scope,
            session_id=session_id,
            workflow_id=workflow_id,
            run_id=run_id,
            max_steps=max_steps,
            limit=limit,
        )

    async def resume_subworkflow_parent(self, *, child_run_id: str, child_output: Any) -> RunState | None:
        """See `AsyncScheduler.resume_subworkflow_parent`."""
        return await self.scheduler.resume_subworkflow_parent(child_run_id=child_run_id, child_output=child_output)

    async def cancel_run(self, run_id: str, *, reason: str | None = None) -> RunState:
        """See `AsyncRuntime.cancel_run`."""
        return await self.runtime.cancel_run(run_id, reason=reason)

    async def cancel_with_children(self, run_id: str, *, reason: str | None = None) -> list[RunState]:
        """Cancel a run and all below it; those that are cancelled now, itself first. Raises `UnknownRun`."""
        cancelled, queue, known = [], deque([run_id]), {run_id}
        while queue:
            current = queue.popleft()
            try:
                state = await self.runtime.cancel_run(current, reason=reason)
            except UnknownRun:
                if current == run_id:
                    raise
                continue  # deleted meanwhile
            if state.status is RunStatus.CANCELLED:
                cancelled.append(state)
            children = await call(self.runtime.run_store.list_children, parent_run_id=current)
            queue.extend(child.run_id for child in children if child.run_id not in known)
            known.update(child.run_id for child in children)
        return cancelled

    async def find_waiting_runs(
        self,
        *,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
        session_id: str | None = None,
    ) -> list[RunState]:
        """Runs that wait, the last changed first; of a session those that were created last come first."""
        if session_id is not None:
            page = await self.runtime.find_runs(
                status=RunStatus.WAITING,
                wait_reason=wait_reason,
                workflow_id=workflow_id,
                session_id=session_id,
                limit=limit,
            )
            return [await self.runtime.get_state(row["run_id"]) for row in page.items]
        found: list[RunState] = await call(
            self.runtime.run_store.list_runs,
            status=RunStatus.WAITING,
            wait_reason=wait_reason,
            workflow_id=workflow_id,
            limit=limit,
        )
        return found

    async def quarantined(self, *, limit: int = 100) -> list[Quarantined]:
        """See `AsyncScheduler.quarantined`."""
        return await self.scheduler.quarantined(limit=limit)

    async def requeue(self, run_id: str) -> RunState:
        """See `AsyncScheduler.requeue`."""
        return await self.scheduler.requeue(run_id)

    async def get_state(self, run_id: str) -> RunState:
        """See `AsyncRuntime.get_state`."""
        return await self.runtime.get_state(run_id)

    async def get_ledger(self, run_id: str) -> list[dict[str, Any]]:
        """See `AsyncRuntime.get_ledger`."""
        return await self.runtime.get_ledger(run_id)

    @property
    def stats(self) -> SchedulerStats:
        """What the scheduler has done so far."""
        return self.scheduler.stats

    @property
    def is_running(self) -> bool:
        """Whether the scheduler was started, and not stopped since."""
        return self.scheduler.is_running

    async def start_scheduler(self) -> None:
        """Begin to move runs. Raises RuntimeError when it does already."""
        await self.scheduler.start()

    async def stop(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - the documented name
        """Stop the scheduler, see `AsyncScheduler.stop`; stopping twice does no harm."""
        await self.scheduler.stop(timeout)


async def create_async_scheduled_runtime(
    *,
    run_store: Any = None,
    ledger_store: Any = None,
    artifact_store: Any = None,
    effect_policy: EffectPolicy | None = None,
    workflows: Iterable[WorkflowSpec[Any]] | None = None,
    effect_handlers: Mapping[str, Callable[..., Any]] | None = None,
    poll_interval_s: float = 1.0,
    auto_start: bool = True,
    on_run_resumed: Callable[[RunState], Any] | None = None,
    on_run_failed: Callable[[str, Exception], Any] | None = None,
) -> AsyncScheduledRuntime:
    """A runtime on these stores, by default in memory, and a scheduler for these workflows that is started.

    The scheduler is eager: it moves new runs at once. `run` ticks its run, too, and waits its turn for it.
    """
    registry = registry_of(workflows)
    runtime = AsyncRuntime(
        run_store=InMemoryRunStore() if run_store is None else run_store,
        ledger_store=InMemoryLedgerStore() if ledger_store is None else ledger_store,
        artifact_store=artifact_store,
        effect_policy=effect_policy,
        effect_handlers=effect_handlers,
        workflow_registry=registry,
    )
    scheduler = AsyncScheduler(
        runtime,
        registry,
        poll_interval_s=poll_interval_s,
        on_run_resumed=on_run_resumed,
        on_run_failed=on_run_failed,
    )
    if auto_start:
        await scheduler.start()
    return AsyncScheduledRuntime(runtime, scheduler, registry)


def registry_of(workflows: Iterable[WorkflowSpec[Any]] | None) -> WorkflowRegistry:
    """A registry of these."""
    registry = WorkflowRegistry()
    for workflow in workflows or ():
        registry.register(workflow)
    return registry
