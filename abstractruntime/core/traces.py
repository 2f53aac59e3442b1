"""Node traces in their documented shape, folded from the ledger when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .clock import parse_instant
from .models import StepRecord, StepStatus

#: per node, the oldest dropped
MAX_STEPS = 100

_ENGINE_EFFECTS = ("resume", "retry", "restore", "fork", "workflow_changed", "landed")


def node_traces(records: Iterable[StepRecord]) -> dict[str, Any]:
    """`{node_id: {"node_id", "steps": [...], "updated_at"}}` of every effect that ended, oldest step first."""
    traces: dict[str, Any] = {}
    for record in records:
        if record.effect is None or record.status is StepStatus.STARTED or _is_engine_record(record):
            continue
        trace = traces.setdefault(record.node_id, {"node_id": record.node_id, "steps": [], "updated_at": None})
        trace["steps"] = [*trace["steps"][-(MAX_STEPS - 1) :], _step(record)]
        trace["updated_at"] = record.ended_at
    return traces


def _is_engine_record(record: StepRecord) -> bool:
    effect_type = (record.effect or {}).get("type")
    return effect_type in _ENGINE_EFFECTS or (record.idempotency_key or "").startswith("system:")


def _step(record: StepRecord) -> dict[str, Any]:
    ended = record.ended_at or record.started_at
    took = parse_instant(ended) - parse_instant(record.started_at)
    step: dict[str, Any] = {
        "ts": ended,
        "node_id": record.node_id,
        "status": str(record.status),
        "idempotency_key": record.idempotency_key,
        "reused_prior_result": record.reused_from is not None,
        "effect": record.effect,
        "duration_ms": took.total_seconds() * 1000,
    }
    if record.status is StepStatus.WAITING:
        step["wait"] = (record.result or {}).get("wait")
    elif record.error is not None:
        step["error"] = record.error
    else:
        step["result"] = record.result
    return step
