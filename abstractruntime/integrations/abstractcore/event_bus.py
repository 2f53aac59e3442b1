"""Steps of runs on AbstractCore's global event bus, beside its own events of generation and tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .extra import needed

#: the bus has no event of its own for a cancelled step; its `status` tells it from one that failed
_EVENTS = {
    "started": "WORKFLOW_STEP_STARTED",
    "completed": "WORKFLOW_STEP_COMPLETED",
    "waiting": "WORKFLOW_STEP_WAITING",
    "failed": "WORKFLOW_STEP_FAILED",
    "cancelled": "WORKFLOW_STEP_FAILED",
}
_FACTS = (
    "run_id", "step_id", "node_id", "status", "attempt", "error", "started_at", "ended_at", "actor_id", "session_id",
    "idempotency_key",
)  # fmt: skip


def attach_global_event_bus_bridge(
    *, runtime: Any, run_id: str | None = None, source: str = "abstractruntime"
) -> Callable[[], None]:
    """Emit every record that `runtime` makes durable from now on, of one run or of all. Returns an unsubscribe.

    `runtime` is a Runtime or an AsyncRuntime. Listeners run where the record is made, before the call that made it goes
    on, so they must be quick; AbstractCore prints what they raise. Its async listeners (`on_async`) hear nothing of
    steps. Raises ImportError without AbstractCore.

    >>> from abstractcore.events import EventType, GlobalEventBus  # doctest: +SKIP
    >>> GlobalEventBus.on(EventType.WORKFLOW_STEP_FAILED, lambda event: print(event.data["error"]))  # doctest: +SKIP
    >>> unsubscribe = attach_global_event_bus_bridge(runtime=runtime)  # doctest: +SKIP
    """
    needed("abstractcore.events")  # so that it is missed here and not in a callback

    def emit(record: Any) -> None:
        emit_step_record(record, source=source)

    unsubscribe: Callable[[], None] = runtime.subscribe_ledger(emit, run_id=run_id)
    return unsubscribe


def emit_step_record(record: Any, *, source: str = "abstractruntime") -> None:
    """Emit one step record (a StepRecord or its dict) as the workflow event of its status.

    The event's data has `run_id`, `step_id`, `node_id`, `status`, `effect_type`, `attempt`, `error`, `started_at`,
    `ended_at`, `actor_id`, `session_id`, `idempotency_key` and the whole `record`; of a wait also `wait`. A record of
    another status is not emitted.
    """
    facts = dict(record) if isinstance(record, Mapping) else {name: getattr(record, name) for name in _names(record)}
    status = facts.get("status")
    facts["status"] = getattr(status, "value", status)
    name = _EVENTS.get(str(facts["status"]))
    if name is None:
        return
    effect, result = facts.get("effect"), facts.get("result")
    data = {key: facts.get(key) for key in _FACTS}
    data["effect_type"] = effect.get("type") if isinstance(effect, Mapping) else None
    if facts["status"] == "waiting" and isinstance(result, Mapping):
        data["wait"] = result.get("wait")
    events = needed("abstractcore.events")
    events.GlobalEventBus.emit(getattr(events.EventType, name), {**data, "record": facts}, source=source)


def _names(record: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = record.__struct_fields__
    return names
