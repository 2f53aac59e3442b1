"""Workflows by their ids, and what moves their runs by itself."""

from .aio import AsyncScheduler
from .blocking import Scheduler
from .quarantine import Quarantined
from .registry import WorkflowRegistry
from .scheduled import AsyncScheduledRuntime, create_async_scheduled_runtime
from .scheduled_sync import ScheduledRuntime, create_scheduled_runtime
from .stats import SchedulerStats

__all__ = [
    "AsyncScheduledRuntime",
    "AsyncScheduler",
    "Quarantined",
    "ScheduledRuntime",
    "Scheduler",
    "SchedulerStats",
    "WorkflowRegistry",
    "create_async_scheduled_runtime",
    "create_scheduled_runtime",
]
