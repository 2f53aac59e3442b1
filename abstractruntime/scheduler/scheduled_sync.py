"""`ScheduledRuntime`: the blocking twin of `AsyncScheduledRuntime`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..core.models import RunState
from ..core.policy import EffectPolicy
from ..core.portal import twin
from ..core.spec import WorkflowSpec
from ..storage.in_memory import InMemoryLedgerStore, InMemoryRunStore
from ..sync import Runtime
from .blocking import Scheduler
from .registry import WorkflowRegistry
from .scheduled import AsyncScheduledRuntime, registry_of
from .stats import SchedulerStats


@dataclass
class ScheduledRuntime:
    """A runtime, what moves its runs, and the workflows it knows. In use it is a context that stops both.

    A program that forgets to stop it still exits.

    >>> with create_scheduled_runtime(workflows=[workflow]) as sr:
    ...     run_id, state = sr.run(workflow)
    ...     state = sr.respond(run_id, {"text": "yes"})
    """

    runtime: Runtime
    scheduler: Scheduler
    registry: WorkflowRegistry

    @property
    def aio(self) -> AsyncScheduledRuntime:
        """The same for async callers; not for a loop of theirs while this one runs."""
        return AsyncScheduledRuntime(self.runtime.aio, self.scheduler.aio, self.registry)

    def __enter__(self) -> ScheduledRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.runtime.close()

    run = twin(AsyncScheduledRuntime.run)
    start = twin(AsyncScheduledRuntime.start)
    tick = twin(AsyncScheduledRuntime.tick)
    respond = twin(AsyncScheduledRuntime.respond)
    resume_event = twin(AsyncScheduledRuntime.resume_event)
    emit_event = twin(AsyncScheduledRuntime.emit_event)
    resume_subworkflow_parent = twin(AsyncScheduledRuntime.resume_subworkflow_parent)
    cancel_run = twin(AsyncScheduledRuntime.cancel_run)
    cancel_with_children = twin(AsyncScheduledRuntime.cancel_with_children)
    find_waiting_runs = twin(AsyncScheduledRuntime.find_waiting_runs)
    quarantined = twin(AsyncScheduledRuntime.quarantined)
    requeue = twin(AsyncScheduledRuntime.requeue)
    get_state = twin(AsyncScheduledRuntime.get_state)
    get_ledger = twin(AsyncScheduledRuntime.get_ledger)
    start_scheduler = twin(AsyncScheduledRuntime.start_scheduler)
    stop = twin(AsyncScheduledRuntime.stop)

    @property
    def stats(self) -> SchedulerStats:
        """What the scheduler has done so far."""
        return self.scheduler.stats

    @property
    def is_running(self) -> bool:
        """Whether the scheduler was started, and not stopped since."""
        return self.scheduler.is_running


def create_scheduled_runtime(
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
) -> ScheduledRuntime:
    """A runtime on these stores, by default in memory, and a scheduler for these workflows that is started.

    A pause between attempts that is longer than a second is left to the scheduler: `tick` returns.
    """
    registry = registry_of(workflows)
    runtime = Runtime(
        run_store=InMemoryRunStore() if run_store is None else run_store,
        ledger_store=InMemoryLedgerStore() if ledger_store is None else ledger_store,
        artifact_store=artifact_store,
        effect_policy=effect_policy,
        effect_handlers=effect_handlers,
        workflow_registry=registry,
        max_inline_backoff=1.0,
    )
    scheduler = Scheduler(
        runtime,
        registry,
        poll_interval_s=poll_interval_s,
        on_run_resumed=on_run_resumed,
        on_run_failed=on_run_failed,
    )
    if auto_start:
        scheduler.start()
    return ScheduledRuntime(runtime, scheduler, registry)
