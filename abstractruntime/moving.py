"""What parts of `AsyncRuntime` that act on runs need of it: to move one, and to answer what it waits for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from .core.models import RunState
from .core.spec import WorkflowSpec


class MovesRuns:
    """The two verbs; `AsyncRuntime` has them."""

    @abstractmethod
    async def tick(self, *, workflow: WorkflowSpec[Any], run_id: str, max_steps: int = 100) -> RunState:
        """See `AsyncRuntime.tick`."""

    @abstractmethod
    async def resume(
        self,
        *,
        workflow: WorkflowSpec[Any],
        run_id: str,
        wait_key: str | None,
        payload: Any,
        max_steps: int = 100,
        resume_id: str | None = None,
        actor_id: str | None = None,
    ) -> RunState:
        """See `AsyncRuntime.resume`."""
