"""What a ledger says in numbers."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.models import EffectType, StepRecord, StepStatus
from ..core.tokens import tokens_of


def metrics_of(records: Iterable[StepRecord]) -> dict[str, int]:
    """Of completed records: how many, LLM calls, tools called, and tokens that the LLMs reported."""
    found = {"steps": 0, "llm_calls": 0, "tool_calls": 0, "tokens_total": 0}
    for record in records:
        if record.status is not StepStatus.COMPLETED:
            continue
        found["steps"] += 1
        effect = record.effect or {}
        if effect.get("type") == EffectType.LLM_CALL:
            found["llm_calls"] += 1
            found["tokens_total"] += tokens_of(record.result)
        elif effect.get("type") == EffectType.TOOL_CALLS:
            payload = effect.get("payload")
            calls = payload.get("tool_calls") if isinstance(payload, dict) else None
            found["tool_calls"] += len(calls) if isinstance(calls, list) else 0
    return found
