"""EMIT_EVENT: a message on a stream, in the commit of the step that sends it. Hosts send by the same path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from ..core.event_keys import ANY, event_address, event_key
from ..core.models import Message
from ..core.outcomes import EffectCall, EffectOutcome
from ..core.streams import Listening

Listen = Callable[[Message], Awaitable[Listening]]


class Emission(Struct, frozen=True, kw_only=True):
    """An event on its way."""

    message: Message
    scope: str

    @property
    def wait_key(self) -> str:
        """The key of the waits that it ends, beside those for `*`."""
        return event_key(self.message.stream, self.message.name)


def emission(
    *,
    name: Any,
    payload: Any,
    scope: Any,
    session_id: Any,
    workflow_id: Any,
    run_id: Any,
    event_id: str,
    at: str,
    emitter: dict[str, Any],
) -> Emission:
    """An event with its envelope; the payload is JSON, and what is no dict is wrapped as `{"value": x}`.

    Raises `ValueError` as `build_event_wait_key` does, and for the name `*`.
    """
    stream, text = event_address(scope=scope, name=name, session_id=session_id, workflow_id=workflow_id, run_id=run_id)
    if text == ANY:
        raise ValueError(f"An event cannot be named {ANY!r}: that is how one listens to all names.")
    where = stream.partition(":")[0]
    data = {
        "event_id": event_id,
        "name": text,
        "scope": where,
        "session_id": None if session_id is None else str(session_id),
        "payload": payload if isinstance(payload, dict) else {"value": payload} if payload else {},
        "emitted_at": at,
        "emitter": emitter,
    }
    return Emission(message=Message(stream=stream, name=text, message_id=event_id, at=at, data=data), scope=where)


def told(sent: Emission, heard: Listening, registry: Any) -> dict[str, Any]:
    """What whoever sends an event is told: the runs that hear it, and what becomes of them."""
    resumed: list[dict[str, Any]] = []
    delivered_to: list[str] = []
    for listener in heard.listeners:
        if registry is not None and registry.get(listener.workflow_id) is None:
            skipped = {"run_id": listener.run_id, "status": "skipped", "error": "workflow_not_registered"}
            resumed.append(skipped)
        else:
            delivered_to.append(listener.run_id)
            resumed.append({"run_id": listener.run_id, "status": "completed" if listener.ends else "running"})
    result: dict[str, Any] = {
        "wait_key": sent.wait_key,
        "name": sent.message.name,
        "scope": sent.scope,
        "delivered": len(delivered_to),
        "delivered_to": delivered_to,
        "resumed": resumed,
    }
    if not heard.listeners and heard.names and sent.scope == "session":
        result["available_listeners_in_session"] = list(heard.names)
    return result


def steps_of(payload: dict[str, Any]) -> int:
    """How many steps the listeners are driven, from the payload's `max_steps`. Raises `ValueError`."""
    given = payload.get("max_steps")
    if given is None:
        return 0
    try:
        return max(0, int(given))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"max_steps must be a whole number, found {given!r:.80}") from error


class EmitEvent:
    """The handler, with what it needs of the host: who listens, and the registry of workflows (None: there is none)."""

    def __init__(self, listening: Listen | None, registry: Callable[[], Any]) -> None:
        self._listening, self._registry = listening, registry

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        """Say something to whoever listens now or will.

        Payload: `name` (also `event_name`); `scope` (session, workflow, run, global) with `session_id`, `workflow_id`
        or `run_id` to address another's than the run's own; `payload`; `event_id`, under which the stream has it once;
        `max_steps` (0), how far each listener is driven afterwards. Result: `wait_key`, `name`, `scope`, `delivered`,
        `delivered_to` (run ids), `resumed` (run id and status of each), and where nobody listened some names that
        others do, as `available_listeners_in_session`.

        The event is stored by the commit of this very step, so a run that comes to wait for it later gets it too.
        """
        payload, run = call.payload, call.run
        if self._listening is None:
            return _failed("emit_event needs a run store and a ledger store that commit together")
        event_id = payload.get("event_id")
        try:
            steps_of(payload)
            sent = emission(
                name=payload.get("name") or payload.get("event_name"),
                payload=payload.get("payload"),
                scope=payload.get("scope"),
                session_id=payload.get("session_id") or run.session_id or run.run_id,
                workflow_id=payload.get("workflow_id") or run.workflow_id,
                run_id=payload.get("run_id") or run.run_id,
                # of the step and not of its attempt, so that no attempt makes a second event
                event_id=str(event_id) if event_id else call.step_id.rpartition(".")[0],
                at=call.now,
                emitter={"run_id": run.run_id, "workflow_id": run.workflow_id, "node_id": call.node_id},
            )
        except ValueError as error:
            return _failed(f"emit_event invalid payload: {error}")
        heard, registry = await self._listening(sent.message), self._registry()
        if heard.listeners and registry is None:
            return _failed("emit_event has listeners and needs a workflow_registry to resume them; nothing was sent")
        return EffectOutcome.completed(told(sent, heard, registry), messages=(sent.message,))


def _failed(why: str) -> EffectOutcome:
    return EffectOutcome.failed(why, retryable=False)
