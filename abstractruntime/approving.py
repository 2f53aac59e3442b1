"""Approvals across runs: the inbox of what waits for a decision, and the decisions."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from .core import kernel
from .core.codec import DEEPEST_GIVEN
from .core.errors import StaleResumeError, UnknownWorkflow
from .core.ids import check_optional, check_text
from .core.models import Commit, RunState
from .core.questions import RuleName
from .core.secrets import admit
from .core.spec import WorkflowSpec
from .engine import Engine
from .moving import MovesRuns
from .storage.base import Page
from .storage.finder import StoreFinder
from .storage.listing import WaitQuery

_APPROVAL: RuleName = "approval"


class ApprovesRuns(StoreFinder, MovesRuns):
    """What this adds to `AsyncRuntime`."""

    _engine: Engine

    async def list_approvals(
        self,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        workflow_id: str | None = None,
        actor_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """What waits for an approval, those of the newest run first: an index knows them, however many runs wait.

        Rows have `run_id`, `workflow_id`, `session_id`, `actor_id`, `node_id`, `wait_key`, `calls` (each with `name`,
        `arguments`, `call_id`, `runtime_call_id` and `needs_approval`), `digest` (of exactly these calls), `asked_at`,
        `expires_at` (None: never), `prompt`, and `answers`: examples of what `decide` takes, and whether `arguments`
        may be changed and `results` given instead. Cursors and errors are those of `find_waits`.
        """
        query = WaitQuery(
            run_id=run_id,
            session_id=session_id,
            workflow_id=workflow_id,
            actor_id=actor_id,
            limit=limit,
            cursor=cursor,
            asks=_APPROVAL,
        )
        page = await self._find(query)
        return replace(page, items=[_approval(row) for row in page.items])

    async def decide(
        self,
        run_id: str,
        wait_key: str,
        decision: dict[str, Any],
        *,
        actor_id: str | None = None,
        workflow: WorkflowSpec[Any] | None = None,
        max_steps: int = 100,
    ) -> RunState:
        """Decide about the calls that this key asks about, and move the run on; see `core.questions.approval_answer`.

        `actor_id` is who decides; it is journaled. `workflow` is the run's, by default the registry's; where it is not
        known here, and with `max_steps=0`, the decision is committed alone, and whoever drives the run goes on. One
        decision counts: of two at once the second raises `StaleResumeError`, and so does one for something that does
        not wait any more. Raises `InvalidAnswer` for what is no strict decision, is for other calls or comes too late;
        the run goes on waiting then. Raises `UnknownRun`, `RunPaused`.
        """
        check_text(wait_key, "wait_key")
        check_optional(actor_id, "actor_id")
        spec = workflow or await self._workflow_of(run_id)
        if spec is not None and max_steps > 0:
            return await self.resume(
                workflow=spec,
                run_id=run_id,
                wait_key=wait_key,
                payload=decision,
                max_steps=max_steps,
                actor_id=actor_id,
            )
        answer = admit(decision, "decision", deepest=DEEPEST_GIVEN)

        def act(run: RunState, stamp: kernel.Stamp) -> Commit:
            return kernel.answered(run, wait_key, answer, stamp, actor_id=actor_id, lookup_key=None)

        return await self._engine.change(run_id, act, spec)

    async def approve(
        self,
        run_id: str,
        wait_key: str,
        *,
        digest: str | None = None,
        arguments: dict[str, dict[str, Any]] | None = None,
        always: bool | list[str] = False,
        actor_id: str | None = None,
        workflow: WorkflowSpec[Any] | None = None,
        max_steps: int = 100,
    ) -> RunState:
        """Approve all calls that this key asks about, as `decide` does.

        Give the `digest` of what was shown: then nothing else is approved. `arguments` replaces those of some calls, by
        call id. With `always` these tools (True: all of these calls) need no more approval in this run.
        """
        decision: dict[str, Any] = {"approved": True, "always": always}
        decision |= {} if digest is None else {"digest": digest}
        decision |= {} if arguments is None else {"arguments": arguments}
        return await self.decide(run_id, wait_key, decision, actor_id=actor_id, workflow=workflow, max_steps=max_steps)

    async def deny(
        self,
        run_id: str,
        wait_key: str,
        *,
        reason: str | None = None,
        actor_id: str | None = None,
        workflow: WorkflowSpec[Any] | None = None,
        max_steps: int = 100,
    ) -> RunState:
        """Deny all calls that this key asks about, as `decide` does: they come back as results that say so."""
        decision: dict[str, Any] = {"approved": False} | ({} if reason is None else {"reason": reason})
        return await self.decide(run_id, wait_key, decision, actor_id=actor_id, workflow=workflow, max_steps=max_steps)

    async def _workflow_of(self, run_id: str) -> WorkflowSpec[Any] | None:
        run = await self._engine.change(run_id, lambda run, stamp: None)
        if not kernel.is_asking(run) and not run.paused:
            raise StaleResumeError(f"Run {run_id!r} waits for no decision: it is {run.status}.")
        try:
            return self._engine.children.workflow(run.workflow_id)
        except (UnknownWorkflow, ValueError):
            return None


def _approval(row: dict[str, Any]) -> dict[str, Any]:
    details = row["details"] or {}
    calls, digest = details.get("tool_calls") or [], details.get("digest")
    named = {} if digest is None else {"digest": digest}
    asked = [call["call_id"] for call in calls if isinstance(call, dict) and call.get("needs_approval")]
    kept = ("run_id", "workflow_id", "session_id", "actor_id", "parent_run_id", "node_id", "wait_key", "prompt")
    return {
        **{key: row[key] for key in kept},
        "calls": calls,
        "digest": digest,
        "asked_at": details.get("asked_at") or row["waiting_since"],
        "expires_at": row["until"],
        "answers": {
            "approve": {"approved": True, **named},
            "deny": {"approved": False, "reason": "why", **named},
            "per_call": {"decisions": dict.fromkeys(asked, True), **named},
            "arguments": bool(details.get("edits")),
            "results": bool(details.get("host_results")),
        },
    }
