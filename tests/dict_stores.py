"""Stores as a user might write them, from the documentation: two dicts, and no more than what is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from abstractruntime.core.models import RunState, StepRecord


class DictRunStore:
    """Runs in a dict, the documented fields alone."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    def save(self, run: RunState) -> None:
        fields = msgspec.structs.asdict(run)
        documented = {name: fields[name] for name in RunState.__struct_fields__[:13]}
        self.rows[run.run_id] = json.dumps(documented, default=as_dict)

    def load(self, run_id: str) -> RunState | None:
        row = self.rows.get(run_id)
        return None if row is None else msgspec.convert(json.loads(row), RunState)


class DictLedgerStore:
    """Ledgers in a dict of lists."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}

    def append(self, record: StepRecord) -> None:
        self.rows.setdefault(record.run_id, []).append(json.dumps(record, default=as_dict))

    def list(self, run_id: str) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.rows.get(run_id, [])]


def as_dict(value: Any) -> dict[str, Any]:
    """A model as what `json` knows; TypeError for what is no JSON."""
    if not isinstance(value, msgspec.Struct):
        raise TypeError(f"{value!r} is no JSON")
    return msgspec.structs.asdict(value)
