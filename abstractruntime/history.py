"""A run's history as one JSON value, for archives and for people, and the workflow that it was made with.

The functions take stores of any kind, sync or async. Those that begin with `a` are awaited; the documented ones block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from .core.clock import parse_instant, utc_now_iso
from .core.codec import copy_of_run, encode, record_dict
from .core.errors import InvalidId, RevisionConflict, StoreError, UnknownRun
from .core.models import RunState, wait_record
from .core.portal import drive
from .core.secrets import admit
from .memory.spans import OWNERS
from .storage.offloading import offload_large_values, shelf
from .storage.user_pair import as_record, call, in_thread

RUN_HISTORY_BUNDLE_VERSION_V1 = 1

LedgerMode = Literal["tail", "full"]

_RUN_FIELDS = (
    "run_id",
    "workflow_id",
    "current_node",
    "created_at",
    "updated_at",
    "actor_id",
    "session_id",
    "parent_run_id",
    "error",
)
_TURN_FIELDS = ("run_id", "workflow_id", "created_at", "updated_at", "output", "error")


def export_run_history_bundle(
    *,
    run_id: str,
    run_store: Any,
    ledger_store: Any,
    artifact_store: Any = None,
    include_subruns: bool = True,
    include_session: bool = False,
    session_turn_limit: int = 200,
    ledger_mode: LedgerMode = "tail",
    ledger_max_items: int = 2000,
) -> dict[str, Any]:
    """All that is stored of a run, as JSON: see `aexport_run_history_bundle`, which this one awaits."""
    return drive(
        aexport_run_history_bundle,
        run_id=run_id,
        run_store=run_store,
        ledger_store=ledger_store,
        artifact_store=artifact_store,
        include_subruns=include_subruns,
        include_session=include_session,
        session_turn_limit=session_turn_limit,
        ledger_mode=ledger_mode,
        ledger_max_items=ledger_max_items,
    )


async def aexport_run_history_bundle(
    *,
    run_id: str,
    run_store: Any,
    ledger_store: Any,
    artifact_store: Any = None,
    include_subruns: bool = True,
    include_session: bool = False,
    session_turn_limit: int = 200,
    ledger_mode: LedgerMode = "tail",
    ledger_max_items: int = 2000,
) -> dict[str, Any]:
    """All that is stored of a run, as JSON.

    The bundle has `version`, `generated_at`, `root_run_id`, `run`, `workflow_snapshot` (the reference that
    `persist_workflow_snapshot` left, or None), `input_data` (the author's vars as they are now), `ledgers` (per run its
    records, numbered from 1 as `cursor`, and what is known of its artifacts), `timeline` (what happened in all of them,
    by time; `duration_ms` is None for what has not ended) and `session` (the root runs of the run's session, oldest
    first, or None).

    `include_subruns` adds the ledgers of the runs that it started, and of those that they did. `ledger_mode="tail"`
    takes the last `ledger_max_items` records of each ledger, `"full"` all. With an `artifact_store` large values of
    `input_data` become references. Raises `InvalidId` (a ValueError) for an empty id, `UnknownRun` (a KeyError).
    """
    if not isinstance(run_id, str) or not run_id.strip():
        raise InvalidId(f"run_id must be a text that is not empty, found {run_id!r}.")
    if ledger_mode not in ("tail", "full"):
        raise ValueError(f"ledger_mode must be 'tail' or 'full', found {ledger_mode!r}.")
    run = await _loaded(run_store, run_id)
    runs = [run, *(await _descendants(run_store, run_id) if include_subruns else ())]
    most = max(1, ledger_max_items) if ledger_mode == "tail" else None
    ledgers = {one.run_id: await _ledger(one.run_id, ledger_store, artifact_store, most) for one in runs}
    session = await _session(run, run_store, artifact_store, session_turn_limit) if include_session else None
    runtime = run.vars.get("_runtime")
    return {
        "version": RUN_HISTORY_BUNDLE_VERSION_V1,
        "generated_at": utc_now_iso(),
        "root_run_id": run_id,
        "run": {
            **{name: getattr(run, name) for name in _RUN_FIELDS},
            "status": str(run.status),
            "waiting": None if run.waiting is None else wait_record(run.waiting),
        },
        "workflow_snapshot": runtime.get("workflow_snapshot") if isinstance(runtime, dict) else None,
        "input_data": await _input_of(run, artifact_store),
        "ledgers": ledgers,
        "timeline": _timeline(ledgers.values()),
        "session": session,
    }


def persist_workflow_snapshot(
    *, run_store: Any, artifact_store: Any, run_id: str, workflow_id: str, snapshot: Any, format: str
) -> dict[str, Any]:
    """Keep the workflow that a run was made with: see `apersist_workflow_snapshot`, which this one awaits."""
    return drive(
        apersist_workflow_snapshot,
        run_store=run_store,
        artifact_store=artifact_store,
        run_id=run_id,
        workflow_id=workflow_id,
        snapshot=snapshot,
        format=format,
    )


async def apersist_workflow_snapshot(
    *, run_store: Any, artifact_store: Any, run_id: str, workflow_id: str, snapshot: Any, format: str
) -> dict[str, Any]:
    """Keep the workflow that a run was made with as an artifact, and say so in the run, once: the first call wins.

    `snapshot` is JSON, a text or bytes; `format` is a word of your own for what it is. Returns the reference, with
    `workflow_id`, `format`, `sha256` (of the content as stored), `artifact_id` and `created_at`; it stands in
    `vars["_runtime"]["workflow_snapshot"]`. Raises `UnknownRun`, `UnsafeValue`.
    """
    content, content_type = _content(snapshot)
    while True:
        run = copy_of_run(await _loaded(run_store, run_id))
        found = run.vars.get("_runtime")
        runtime = found if isinstance(found, dict) else {}
        if isinstance(runtime.get("workflow_snapshot"), dict):
            earlier: dict[str, Any] = runtime["workflow_snapshot"]
            return earlier
        tags = {"kind": "workflow_snapshot", "workflow_id": workflow_id, "format": format}
        kept = await call(artifact_store.store, content, content_type=content_type, run_id=run_id, tags=tags)
        reference = {
            "workflow_id": workflow_id,
            "format": format,
            "sha256": hashlib.sha256(content).hexdigest(),
            "artifact_id": kept.artifact_id,
            "created_at": utc_now_iso(),
        }
        run.vars["_runtime"] = {**runtime, "workflow_snapshot": reference}
        try:
            await call(run_store.save, run)
        except RevisionConflict:
            continue
        return reference


def _content(snapshot: Any) -> tuple[bytes, str]:
    if isinstance(snapshot, bytes):
        return snapshot, "application/octet-stream"
    clean = admit(snapshot, "snapshot")
    return (clean.encode(), "text/plain") if isinstance(clean, str) else (encode(clean), "application/json")


async def _loaded(run_store: Any, run_id: str) -> RunState:
    run: RunState | None = await call(run_store.load, run_id)
    if run is None:
        raise UnknownRun(run_id)
    return run


async def _descendants(run_store: Any, run_id: str) -> list[RunState]:
    """The runs that this one started, and those that they did: parents first, each once."""
    list_children = getattr(run_store, "list_children", None)
    if list_children is None:
        return []
    found: list[RunState] = []
    known, waiting = {run_id}, [run_id]
    while waiting:
        for child in await call(list_children, parent_run_id=waiting.pop(0)):
            if child.run_id not in known:
                known.add(child.run_id)
                found.append(child)
                waiting.append(child.run_id)
    return found


async def _ledger(run_id: str, ledger_store: Any, artifact_store: Any, most: int | None) -> dict[str, Any]:
    rows = [record_dict(as_record(row, run_id)) for row in await call(ledger_store.list, run_id)]
    start = 0 if most is None else max(0, len(rows) - most)
    items = [{"cursor": cursor, "record": row} for cursor, row in enumerate(rows[start:], start + 1)]
    artifacts = [] if artifact_store is None else await call(artifact_store.list_by_run, run_id)
    return {
        "run_id": run_id,
        "total": len(rows),
        "cursor_start": start + 1 if items else 0,
        "cursor_end": len(rows),
        "items": items,
        "artifacts": [known.to_dict() for known in artifacts],
    }


def _timeline(ledgers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per record; the STARTED record of a step that has ended is left out."""
    entries = []
    for ledger in ledgers:
        ended = {item["record"]["step_id"] for item in ledger["items"] if item["record"]["status"] != "started"}
        entries += [
            _entry(ledger["run_id"], item["cursor"], item["record"])
            for item in ledger["items"]
            if item["record"]["status"] != "started" or item["record"]["step_id"] not in ended
        ]
    return sorted(entries, key=lambda entry: (entry["ended_at"] or entry["started_at"], entry["started_at"]))


def _entry(run_id: str, cursor: int, record: dict[str, Any]) -> dict[str, Any]:
    started, ended = record["started_at"], record["ended_at"]
    took = None if ended is None else (parse_instant(ended) - parse_instant(started)).total_seconds() * 1000
    return {
        "run_id": run_id,
        "cursor": cursor,
        "node_id": record["node_id"],
        "status": record["status"],
        "effect_type": (record["effect"] or {}).get("type"),
        "started_at": started,
        "ended_at": ended,
        "duration_ms": took,
    }


async def _input_of(run: RunState, artifact_store: Any) -> dict[str, Any]:
    own = {name: value for name, value in run.vars.items() if not name.startswith("_")}
    if artifact_store is None:
        return own
    blocking = getattr(artifact_store, "sync", artifact_store)  # values are moved out in a thread
    small: dict[str, Any] = await in_thread(
        offload_large_values,
        own,
        artifact_store=blocking,
        run_id=run.run_id,
        max_inline_bytes=shelf(blocking, None).limit,
        base_tags={"source": "history"},
        root_path="input_data",
    )
    return small


async def _session(run: RunState, run_store: Any, artifact_store: Any, limit: int) -> dict[str, Any] | None:
    if run.session_id is None:
        return None
    list_run_index = getattr(run_store, "list_run_index", None)
    if list_run_index is None:
        raise StoreError(f"{run_store!r} cannot list the runs of a session. Pass include_session=False.")
    rows = await call(list_run_index, session_id=run.session_id, root_only=True, limit=max(1, limit))
    turns = []
    for row in sorted(rows, key=lambda row: (row["created_at"], row["run_id"])):
        turn = await call(run_store.load, row["run_id"])
        if turn is not None and turn.workflow_id not in OWNERS:  # not deleted meanwhile
            told = {name: getattr(turn, name) for name in _TURN_FIELDS}
            turns.append({**told, "status": str(turn.status), "input_data": await _input_of(turn, artifact_store)})
    return {"session_id": run.session_id, "turns": turns}
