"""Runs that an effect of ours needs to do its work: below the run whose effect it is, and driven beside it.

Unlike the children of START_SUBWORKFLOW they are not part of the kernel's bookkeeping: the effect is promised, and
performed again after a crash, and the id of its run comes from the effect's key. So there is one, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .core.capacity import LINE
from .core.clock import Clock, parse_instant
from .core.kernel import Stamp
from .core.models import TERMINAL, RunState, RunStatus
from .core.spec import WorkflowSpec
from .engine import Engine

#: seconds between two looks at a run that somebody else moves, or that is paused
_LOOK_EVERY = 0.5

#: nodes of one of its ticks; these workflows have a few
_STEPS = 100


class Subruns:
    """Starts and drives such runs."""

    def __init__(self, *, engine: Engine, stamp: Callable[[], Stamp], clock: Clock) -> None:
        self._engine, self._stamp, self._clock = engine, stamp, clock

    async def __call__(
        self, parent: RunState, workflow: WorkflowSpec[Any], vars: dict[str, Any], run_id: str
    ) -> RunState:
        """The run of this id as it ended. It is created unless it is there, and cancelled where it comes to wait."""
        line = LINE.set(None)  # an effect under way ends, with all that it needs
        try:
            return await self._ended(parent, workflow, vars, run_id)
        finally:
            LINE.reset(line)

    async def _ended(
        self, parent: RunState, workflow: WorkflowSpec[Any], vars: dict[str, Any], run_id: str
    ) -> RunState:
        state = await self._engine.children.state(run_id)
        if state is None:
            await self._engine.children.begin(parent, workflow, vars, run_id, self._stamp())
        while state is None or state.status not in TERMINAL:
            state = await self._engine.tick(workflow, run_id, _STEPS)
            if state.status is RunStatus.WAITING and not state.paused:
                reason = "It is part of an effect and must not wait"
                state = await self._engine.cascade.cancel(run_id, reason, parent.run_id)
            elif state.status not in TERMINAL:
                await self._clock.sleep(self._pause(state))
        return state

    def _pause(self, state: RunState) -> float:
        """How long to leave it alone: until its next attempt is due, or for a moment."""
        due = state.intent.due if state.intent is not None and not state.paused else None
        if due is None:
            return _LOOK_EVERY
        return max(0.0, (parse_instant(due) - self._clock.now()).total_seconds())
