"""Parts of an effect that its handler lands while it is under way: records of their own, known to the next attempt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ..models import Intent, RunState, StepRecord
from .state import Stamp, run_record

LANDED = "landed"


def landed_record(run: RunState, intent: Intent, part: str, value: Any, stamp: Stamp) -> StepRecord:
    """The record that a part of this effect, or of this one of several, has landed."""
    payload = {"step_id": intent.step_id, "seq": intent.seq, "part": part}
    return run_record(
        run,
        f"{LANDED}-{intent.seq}-{part}",
        stamp,
        node_id=intent.node_id,
        attempt=intent.attempt,
        effect={"type": LANDED, "payload": payload, "result_key": None},
        result=value,
    )


def landing_of(record: StepRecord) -> tuple[int, str] | None:
    """The number of the effect and the part that a record says has landed; None for another kind of record."""
    effect = record.effect
    if effect is None or effect.get("type") != LANDED or record.idempotency_key is not None:
        return None
    payload = effect.get("payload")
    if not isinstance(payload, dict) or type(payload.get("seq")) is not int:  # a host may append what it likes
        return None
    return payload["seq"], str(payload.get("part"))


def with_landed(intent: Intent, records: Iterable[StepRecord]) -> Intent:
    """One effect with the parts that these records say have landed; of a part that landed twice the later one."""
    found = {}
    for record in records:
        landing = landing_of(record)
        if landing is not None and landing[0] == intent.seq:
            found[landing[1]] = record.result
    return replace(intent, landed={**intent.landed, **found}) if found else intent
