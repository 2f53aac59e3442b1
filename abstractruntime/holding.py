"""Stopping runs and letting them go on: cancel, pause and resume, of one run or with all that it has started."""

from __future__ import annotations

from typing import Any

from .core import kernel
from .core.errors import StaleResumeError
from .core.ids import check_optional, check_text
from .core.journal import Journal
from .core.leases import Leases
from .core.models import RunState, RunStatus, WaitReason
from .core.spec import WorkflowSpec
from .engine import Engine
from .moving import MovesRuns


class HoldsRuns(MovesRuns):
    """What this adds to `AsyncRuntime`."""

    _journal: Journal
    _engine: Engine
    _leases: Leases

    async def cancel_run(
        self, run_id: str, *, reason: str | None = None, cancelled_by: str = "api", cascade: bool = True
    ) -> RunState:
        """End the run as CANCELLED, also in the middle of an effect, whose handler is told to stop.

        With it end the runs that it has started, and those below them: each is asked to in the commit that cancels its
        parent, so a crash in between loses none, and the same call again finishes what it left. `cascade=False` leaves
        them alone. A run that has ended is returned unchanged. Raises `UnknownRun`.
        """
        check_optional(reason, "reason")
        check_text(cancelled_by, "cancelled_by")
        if cascade:
            return await self._engine.cascade.cancel(run_id, reason, cancelled_by)
        state = await self._engine.change(run_id, lambda run, stamp: kernel.cancel(run, reason, cancelled_by, stamp))
        if state.status is RunStatus.CANCELLED:
            self._leases.cancel_flight(run_id)
        return state

    async def pause_run(
        self, run_id: str, *, reason: str | None = None, actor_id: str | None = None, subtree: bool = False
    ) -> RunState:
        """Hold the run: nothing moves it until `resume_run`. An effect in flight still lands its result.

        With `subtree` also all that it has started, from above to below; runs that it waits for are not held
        otherwise, and their results are taken when it goes on. Who asked and why is kept in
        `vars["_runtime"]["control"]`. No change for a run that has ended, is held, or waits for a person. Raises
        `UnknownRun`.
        """
        check_optional(reason, "reason")
        check_optional(actor_id, "actor_id")
        return await self._engine.cascade.each(
            run_id, lambda run, stamp: kernel.pause(run, reason, stamp, by=actor_id), subtree=subtree
        )

    async def resume_run(self, run_id: str, *, actor_id: str | None = None, subtree: bool = False) -> RunState:
        """Let a held run go on; it moves at its next tick. No change when it is not held.

        With `subtree` also all that it has started. Raises `UnknownRun`.
        """
        check_optional(actor_id, "actor_id")
        return await self._engine.cascade.each(
            run_id, lambda run, stamp: kernel.unpause(run, stamp, by=actor_id), subtree=subtree
        )

    async def resume_subworkflow_parent(
        self,
        *,
        child_run_id: str,
        child_output: Any,
        workflow: WorkflowSpec[Any] | None = None,
        max_steps: int = 100,
    ) -> RunState | None:
        """Give the run that waits for this child its output and move it on; returns it, or None where no run does.

        A parent takes the result of a child that has ended by itself, at its next tick. Whichever comes first counts,
        and for the other the parent is returned as it is. Of several children one alone is no answer: the parent looks
        at them. `workflow` is the parent's; by default the registry's. Raises `UnknownRun` for an unknown child, and
        ValueError where the parent waits and its workflow is not known.
        """
        child = (await self._journal.load(child_run_id)).run
        if child.parent_run_id is None:
            return None
        parent = (await self._journal.load(child.parent_run_id)).run
        wait, details = parent.waiting, (parent.waiting.details or {}) if parent.waiting is not None else {}
        if wait is None or wait.reason is not WaitReason.SUBWORKFLOW or parent.paused:
            return parent
        spec = workflow or self._engine.children.workflow(parent.workflow_id)
        if child_run_id in details.get("sub_run_ids", ()):
            return await self.tick(workflow=spec, run_id=parent.run_id, max_steps=max_steps)
        if details.get("sub_run_id") != child_run_id:
            return parent
        payload = {"sub_run_id": child_run_id, "output": child_output}
        key = wait.wait_key or details.get("wait_id")
        try:
            return await self.resume(
                workflow=spec, run_id=parent.run_id, wait_key=key, payload=payload, max_steps=max_steps
            )
        except StaleResumeError:  # it went on meanwhile
            return (await self._journal.load(parent.run_id)).run
