"""Commits as the journal makes them ready for a backend."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ...core.backend import Write
from ...core.codec import encode_records, encode_run
from ...core.models import Request, RunState, StepRecord
from . import values


def write(run: RunState, before: RunState | None = None, *records: StepRecord, **fields: Any) -> Write:
    """The commit that makes `before` into `run`, with these records; `run` is given its revision and record count."""
    run.revision = 1 if before is None else before.revision + 1
    at = 0 if before is None else before.records
    run.records = at + len(records)
    given: dict[str, Any] = {
        "data": encode_run(run),
        "expected": None if before is None else before.revision,
        "expected_records": at,
        "records": encode_records(records),
        "count": len(records),
    }
    return Write(run=run, **{**given, **fields})


def landing(run: RunState, commit_id: str, *records: StepRecord) -> Write:
    """The landing of these records on `run`."""
    return Write(
        run=replace(run, commit_id=commit_id),
        data=b"",
        expected=run.revision,
        expected_records=run.records,
        records=encode_records(records),
        count=len(records),
        landing=True,
    )


def asked(run_id: str, kind: Any = "cancel", by: str = "boss") -> Request:
    """A request to a run."""
    return Request(run_id=run_id, kind=kind, by=by, at=values.instant(3))


def step(commit_id: str, number: int = 1, /, **fields: Any) -> StepRecord:
    """A record that a commit wrote."""
    return values.record("r", number, commit_id=commit_id, **fields)
