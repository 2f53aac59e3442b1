"""The runs, records, ids and values that the suites try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...core.models import Effect, Intent, RunState, RunStatus, StepRecord, StepStatus, WaitReason, WaitState

#: the documented fields, which every store keeps
RUN_FIELDS = RunState.__struct_fields__[:13]
RECORD_FIELDS = StepRecord.__struct_fields__[:16]
#: those of a record that a chained ledger fills in itself
CHAINED_FIELDS = ("prev_hash", "record_hash")
#: those that a store with revisions sets itself
SET_BY_SAVE = ("revision", "commit_id", "records", "chain_head")

#: ids that are text, and no file name or SQL to be trusted
ODD_IDS = ("ä", "a:b", "A", "a", "CON", ".a", "a.json", "a b", "%41", "a'b\"--", "*", "日本", "🙂", "x" * 200)
#: what must never become a path
PATHS = ("../up", "a/b", "/etc/x", "..", ".", "a\\b", "")

#: JSON that must come back as it was
GOOD_VALUES: dict[str, Any] = {
    "empty": {"": "", "list": [], "dict": {}},
    "kinds": [None, True, False, 0, -1, 1.5, -0.25, 1e-9, "text"],
    "bounds": [2**53, -(2**53), 2**63 - 1, -(2**63)],
    "text": "quotes \" \\ / \n\t\r \u2028 ä 日本 🙂 </script> ' -- %s {0}",
    "large": "x" * 100_000,
    "deep": {"a": {"b": {"c": [[[{"d": [1, {"e": None}]}]]]}}},
}
#: what a store may refuse or keep, and must not change
BAD_VALUES: dict[str, Any] = {
    "nan": float("nan"),
    "infinity": float("-inf"),
    "huge_int": 2**70,
    "lone_surrogate": "a\ud800b",
    "null_byte": "a\x00b",
}


def instant(minute: int) -> str:
    """A time of day as the runtime writes it; later minutes are later texts."""
    return f"2026-01-31T09:{minute:02d}:00.000000+00:00"


def run(run_id: str = "r", /, **fields: Any) -> RunState:
    """A run in the middle of its life."""
    given = {
        "workflow_id": "w",
        "status": RunStatus.RUNNING,
        "current_node": "here",
        "vars": {"kept": [1, {"deep": None}]},
        "created_at": instant(0),
        "updated_at": instant(1),
    }
    return RunState(run_id, **{**given, **fields})


def waiting(run_id: str, until: str | None = None, /, **fields: Any) -> RunState:
    """A run that waits: for a time, else for an answer."""
    wait = WaitState(WaitReason.USER, f"user:{run_id}", None, "next", "answer", "Well?", ["yes", "no"], False)
    if until is not None:
        wait = WaitState(WaitReason.UNTIL, None, until, "next", "rang")
    return run(run_id, status=RunStatus.WAITING, waiting=wait, **fields)


def full_run(run_id: str = "full") -> RunState:
    """A run with something in every field."""
    wait = WaitState(
        WaitReason.EVENT, "evt:1", instant(9), "next", "got.it", "Well?", ["yes", 1], False, {"wait_id": "w1"}
    )
    return run(
        run_id,
        status=RunStatus.WAITING,
        vars={**GOOD_VALUES, "_runtime": {"effect_seq": 3, "node_traces": {"here": []}}, "_temp": {"mine": 1}},
        waiting=wait,
        output={"answer": [42]},
        error="it was not easy",
        actor_id="ann",
        session_id="s",
        parent_run_id="p",
        intent=Intent(
            step_id=f"{run_id}:3.1",
            seq=3,
            node_id="here",
            effect=Effect("pay", {"amount": 5}, "paid"),
            key="k",
            started_at=instant(1),
            token="t",  # noqa: S106 - of a claim
        ),
        owner="owner",
        node_errors=2,
        fingerprint="f",
        workflow_version="7",
        identity="i",
        retries=1,
        quarantined="too often",
        tokens=7,
        root_run_id="p",
        warned={"tokens": "warning"},
    )


def record(run_id: str = "r", number: int = 1, /, **fields: Any) -> StepRecord:
    """A ledger record that can be told from others by its number."""
    given = {"status": StepStatus.COMPLETED, "result": {"n": number}, "started_at": instant(number % 60)}
    return StepRecord(run_id, f"{run_id}:{number}", "here", **{**given, **fields})


def full_record(run_id: str = "full") -> StepRecord:
    """A record with something in every documented field."""
    return record(
        run_id,
        1,
        status=StepStatus.FAILED,
        effect={"type": "pay", "payload": GOOD_VALUES, "result_key": "a.b"},
        result=GOOD_VALUES,
        error="no money",
        ended_at=instant(2),
        actor_id="ann",
        session_id="s",
        attempt=3,
        idempotency_key="k",
        signature="signed",
    )


def plain(value: Any) -> Any:
    """A model as JSON-like data, enums as their text; NaN and odd text stay as they are."""
    return msgspec.to_builtins(value)


def fields_of(value: RunState | StepRecord | Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Some fields of a run, of a record or of a record as listed, as plain data."""
    found = value if isinstance(value, Mapping) else {name: getattr(value, name) for name in names}
    return {name: plain(found.get(name)) for name in names}


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """By which numbers `record` can tell the listed records."""
    return [row["result"]["n"] for row in rows]
