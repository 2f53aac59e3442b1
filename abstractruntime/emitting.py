"""Events from a host: the same path as EMIT_EVENT, with a small atomic write of its own."""

from __future__ import annotations

from typing import Any

from .core.codec import DEEPEST_GIVEN
from .core.ids import check_optional, check_text, new_id
from .core.journal import Journal
from .core.secrets import admit
from .delivering import Deliveries, FollowUp, Moved
from .effects.events import emission, told
from .engine import Engine
from .performer import Performer


class EmitsEvents:
    """What sending events adds to `AsyncRuntime`."""

    _journal: Journal
    _performer: Performer
    _engine: Engine
    _deliveries: Deliveries
    _workflow_registry: Any

    async def emit_event(
        self,
        *,
        name: str,
        payload: Any = None,
        scope: str = "session",
        session_id: str | None = None,
        workflow_id: str | None = None,
        run_id: str | None = None,
        event_id: str | None = None,
        max_steps: int = 0,
    ) -> dict[str, Any]:
        """Say something to the runs that wait for it, now or later; returns when it is durable and they have moved.

        The scope needs its id: `session_id`, `workflow_id` or `run_id`; `global` needs none. Every run of the scope
        that was created before gets the event once, in the order in which events of that name were sent, whether it
        waits now or comes to wait later. It finds at its `result_key` the envelope `{"event_id", "name", "scope",
        "session_id", "payload", "emitted_at", "emitter"}`; a payload that is no dict is wrapped as `{"value": x}`.
        With an `event_id` of yours, calling again is the same event, also after `StoreUnclear`. With `max_steps` each
        listener whose workflow the registry knows is also driven so far.

        Returns `wait_key`, `name`, `scope`, `delivered`, `delivered_to` (run ids) and `resumed` (each with its status,
        or with an error and status `error`, or `skipped` where there is a registry that does not know its workflow);
        where nobody listened, `available_listeners_in_session` names what others listen for. Raises ValueError for an
        address that is none, and for `max_steps` without a registry when somebody listens; `UnsafeValue`; StoreError
        for stores that do not commit together, which keep no events.
        """
        for value, what in ((session_id, "session_id"), (workflow_id, "workflow_id"), (run_id, "run_id")):
            check_optional(value, what)
        sent = emission(
            name=check_text(name, "name"),
            payload=admit(payload, "payload", deepest=DEEPEST_GIVEN),
            scope=check_text(scope, "scope"),
            session_id=session_id,
            workflow_id=workflow_id,
            run_id=run_id,
            event_id=check_text(event_id, "event_id") if event_id else new_id(),
            at=self._performer.stamp().at,
            emitter={"source": "external"},
        )
        registry = self._workflow_registry
        heard = await self._journal.backend.listening(sent.message)
        if heard.listeners and max_steps > 0 and registry is None:
            raise ValueError(
                f"Runs wait for event {name!r}, and to drive them max_steps={max_steps} the runtime needs a "
                "workflow_registry. Nothing was sent. Give it one, or leave max_steps out and tick the runs yourself."
            )
        await self._journal.send((sent.message,))
        moved = {one.run_id: await self._driven(one, max_steps) for one in await self._deliveries.move((sent.message,))}
        result = told(sent, heard, registry)
        result["resumed"] = [moved.get(entry["run_id"], entry) for entry in result["resumed"]]
        failed = {entry["run_id"] for entry in result["resumed"] if entry["status"] in ("skipped", "error")}
        result["delivered_to"] = [found for found in result["delivered_to"] if found not in failed]
        result["delivered"] = len(result["delivered_to"])
        return result

    async def _driven(self, moved: Moved, max_steps: int) -> dict[str, Any]:
        """What a listener that took the event in is told of, driven so many steps."""
        if max_steps <= 0 or moved.workflow is None or moved.error is not None:
            return moved.entry
        status, error = await self._engine.drive(FollowUp(moved.workflow, moved.run_id, max_steps))
        return Moved(run_id=moved.run_id, status=status, error=error).entry
