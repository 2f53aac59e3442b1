"""The hash chain of a ledger: each record holds the hash of the one before it, so that no past can be changed unseen.

The hash of a record is SHA-256 over its dict as ledgers list it, without `record_hash` and `signature`, as JSON with
sorted keys, no spaces and UTF-8 (what `json.dumps(..., sort_keys=True, separators=(",", ":"), ensure_ascii=False)` of
the standard library writes). Anybody can check it without this package. Fields of ours that came later than the first
layout of the chain are left out while they are None, so that chains of that layout verify as they are.

What the chain alone cannot show is that its end is missing. The run's checkpoint therefore holds the hash of the last
record and their number, in the same commit that wrote them. Whoever may write both can make a new chain: keep heads
outside (they are in every report) where that matters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from .codec import record_dict
from .models import StepRecord

#: fields of a record that the first layout of the chain did not have
_LATER = ("commit_id", "reused_from")

#: fields that do not enter the hash
_OUTSIDE = frozenset({"record_hash", "signature"})


def record_hash(record: Mapping[str, Any]) -> str:
    """The hash of a record as a ledger lists it, in hex. Raises ValueError or TypeError for what is no JSON."""
    hashed = {key: value for key, value in record.items() if key not in _OUTSIDE}
    for name in _LATER:
        if hashed.get(name, "") is None:
            del hashed[name]
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def linked(records: Iterable[StepRecord], head: str | None) -> list[StepRecord]:
    """The records as members of the chain that ends in `head`: each of its own, whole, with both hashes filled in."""
    chain: list[StepRecord] = []
    for stored in records:
        for record in stored.unfolded():
            link = replace(record, prev_hash=head, record_hash=None)
            link.record_hash = head = record_hash(record_dict(link))
            chain.append(link)
    return chain


def verify_ledger_chain(
    records: Sequence[Mapping[str, Any]], *, head: str | None = None, count: int | None = None
) -> dict[str, Any]:
    """Check a ledger as `list()` gave it; the report tells what is wrong and where.

    `head` and `count` are what the run's checkpoint, or a report that was kept elsewhere, says of the last record: with
    them a ledger is found out whose end was cut off or replaced. `AsyncRuntime.verify_ledger(run_id)` gives them.

    The report has `ok`, `count` (of the records given), `errors`, `first_bad_index` (from 0, or None), `head_hash` (of
    the last record as stored) and `computed_head_hash`. Errors are dicts with `index` and `type`:
    `prev_hash_mismatch` (`expected_prev_hash`, `actual_prev_hash`), `record_hash_mismatch` (`stored`, `computed`),
    `missing_record_hash` and `not_a_record` (nothing behind such a record can be checked), and with an anchor
    `count_mismatch` and `head_mismatch` (`expected`, `actual`; `index` is the first that is missing or too many, or the
    last).

    >>> verify_ledger_chain([])["ok"]
    True
    """
    errors: list[dict[str, Any]] = []
    before: str | None = None
    computed: str | None = None
    for index, record in enumerate(records):
        stored = record.get("record_hash") if isinstance(record, Mapping) else None
        if not isinstance(record, Mapping):
            errors.append({"index": index, "type": "not_a_record"})
            break
        if record.get("prev_hash") != before:
            errors.append(
                {
                    "index": index,
                    "type": "prev_hash_mismatch",
                    "expected_prev_hash": before,
                    "actual_prev_hash": record.get("prev_hash"),
                }
            )
        if not stored:
            errors.append({"index": index, "type": "missing_record_hash"})
            break
        computed = _computed(record, before)
        if computed != stored:
            errors.append({"index": index, "type": "record_hash_mismatch", "stored": stored, "computed": computed})
        before = stored
    last = records[-1].get("record_hash") if records and isinstance(records[-1], Mapping) else None
    if count is not None and count != len(records):
        index = min(count, len(records))
        errors.append({"index": index, "type": "count_mismatch", "expected": count, "actual": len(records)})
    if (head is not None or count is not None) and head != last:
        index = max(0, len(records) - 1)
        errors.append({"index": index, "type": "head_mismatch", "expected": head, "actual": last})
    return {
        "ok": not errors,
        "count": len(records),
        "errors": errors,
        "first_bad_index": min((error["index"] for error in errors), default=None),
        "head_hash": last,
        "computed_head_hash": computed,
    }


def _computed(record: Mapping[str, Any], before: str | None) -> str | None:
    """The hash that the record should have behind this one; None where it holds what no ledger can."""
    try:
        return record_hash({**record, "prev_hash": before})
    except (TypeError, ValueError):
        return None
