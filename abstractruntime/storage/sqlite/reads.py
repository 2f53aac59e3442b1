"""What is read from a database: single runs, ledgers, and the queries that `storage.base` defines."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from types import EllipsisType
from typing import Any

from ...core.codec import decode_records, decode_run, encode, fill
from ...core.errors import StoreCorrupt
from ...core.models import Request, RunState, RunStatus, StepRecord, WaitReason
from ..base import newest_first, run_filter
from .narrow import narrow_run
from .statements import QUERIES, first
from .writes import requests_of

_ID_OF_RUN = QUERIES["id_of_run"]
_LOAD_STATE = QUERIES["load_state"]
_STATES_OF_RUNS = QUERIES["states_of_runs"]
_LAST_OF_LEDGER = QUERIES["last_of_ledger"]
_RECORDS_AFTER = QUERIES["records_after"]
_RECORDS_NEWEST_FIRST = QUERIES["records_newest_first"]
_RECORDS_BEFORE = QUERIES["records_before"]
_RECORDS_BY_KEY = QUERIES["records_by_key"]
_RUNS_AT_REST = QUERIES["runs_at_rest"]
_RUNS_RUNNING = QUERIES["runs_running"]
_RUNS_OF_SESSION = QUERIES["runs_of_session"]
_RUNS_DUE = QUERIES["runs_due"]
_CHILDREN_OF_RUN = QUERIES["children_of_run"]
_TOKENS_OF_TREE = QUERIES["tokens_of_tree"]

#: revision, number of records, head of their chain and bytes of a run as stored, the requests that stand at it, and the
#: run at the top of its tree
StoredRun = tuple[int, int, str | None, bytes, tuple[Request, ...], str | None]


def stored_run(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    """A run still encoded, so that its caller pays for the decoding and not the connection's thread."""
    row = connection.execute(_LOAD_STATE, (run_id,)).fetchone()
    if row is None:
        return None
    run_pk, revision, records, head, root, requested, data = row
    return revision, records, head, data, requests_of(connection, run_pk) if requested else (), root


def run_of(run_id: str, records: int, data: bytes, head: str | EllipsisType | None = ...) -> RunState:
    """The run that these bytes hold, and the columns beside them. Raises StoreCorrupt."""
    run = decode_run(data, run_id)
    if run.run_id != run_id:
        raise StoreCorrupt(f"Under the id {run_id!r} the run {run.run_id!r} is stored. Restore it from a backup.")
    if head is not ...:
        if run.chain_head != head and run.records == records:  # which were written together
            raise StoreCorrupt(
                f"Beside the state of run {run_id!r} stands another chain head than in it. Restore it from a backup."
            )
        run.chain_head = head
    run.records = records
    return run


def tree_tokens(connection: sqlite3.Connection, root_run_id: str) -> int:
    """What the LLM calls of a run and of all below it have used."""
    return int(first(connection, _TOKENS_OF_TREE, (root_run_id, root_run_id)))


def claims(connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
    """Per stored run: the token of its intent, and whether a cancel request stands."""
    found: dict[str, tuple[str | None, bool]] = {}
    for run_id, run_pk, requested, data in connection.execute(
        _STATES_OF_RUNS, (encode(list(run_ids)).decode(),)
    ).fetchall():
        intent = decode_run(data, run_id).intent
        cancel = bool(requested) and any(request.kind == "cancel" for request in requests_of(connection, run_pk))
        found[run_id] = (intent.token if intent else None, cancel)
    return found


def count(connection: sqlite3.Connection, run_id: str) -> int:
    """The number of the last record."""
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    return 0 if run_pk is None else int(first(connection, _LAST_OF_LEDGER, (run_pk,)))


def records(connection: sqlite3.Connection, run_id: str, after: int = 0, limit: int | None = None) -> list[StepRecord]:
    """Records numbered above `after`, oldest first."""
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    if run_pk is None or limit == 0:
        return []
    after = max(0, after)
    wanted = {"run": run_pk, "after": after, "limit": -1 if limit is None else limit + 1}
    found: list[StepRecord] = []
    for seq, data in connection.execute(_RECORDS_AFTER, wanted).fetchall():
        some = decode_records(data, run_id)
        found += some[max(0, after + 1 - seq) :]
    found = found if limit is None else found[:limit]
    fill(found, lambda: _newest_first(connection, run_id, _RECORDS_BEFORE, run_pk, after))
    return found


def records_by_key(connection: sqlite3.Connection, run_id: str, key: str) -> list[StepRecord]:
    """Records that were written under this lookup key, oldest first."""
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    rows = connection.execute(_RECORDS_BY_KEY, (run_pk, key)).fetchall()
    found = [record for (data,) in rows for record in decode_records(data, run_id)]
    fill(found, lambda: _newest_first(connection, run_id, _RECORDS_NEWEST_FIRST, run_pk))
    return found


def _newest_first(connection: sqlite3.Connection, run_id: str, query: str, *parameters: Any) -> Iterator[StepRecord]:
    for (data,) in connection.execute(query, parameters):
        yield from reversed(decode_records(data, run_id))


def landed(connection: sqlite3.Connection, run_id: str, commit_id: str) -> bool:
    """Whether the run's state or one of its records was written by this commit."""
    state = stored_run(connection, run_id)
    if state is not None and decode_run(state[3], run_id).commit_id == commit_id:
        return True
    rows = connection.execute(_RECORDS_NEWEST_FIRST, (first(connection, _ID_OF_RUN, (run_id,)),))
    return any(record.commit_id == commit_id for (data,) in rows for record in decode_records(data, run_id))


def newest_runs(
    connection: sqlite3.Connection,
    *,
    status: RunStatus | None,
    limit: int,
    wait_reason: WaitReason | None = None,
    workflow_id: str | None = None,
    session_id: str | None = None,
    root_only: bool = False,
    narrow: bool = False,
) -> list[RunState]:
    """Matching runs, newest first: see `base.run_filter` and `base.newest_first` for what that means.

    `narrow` reads only what `narrow_run` does.
    """
    decoded: Callable[[sqlite3.Cursor], list[RunState]] = _narrow if narrow else _decoded
    if session_id is not None:
        matches = run_filter(status=status, wait_reason=wait_reason, workflow_id=workflow_id, root_only=root_only)
        return newest_first(filter(matches, decoded(connection.execute(_RUNS_OF_SESSION, (session_id,)))))[:limit]
    filters: dict[str, Any] = {
        "workflow_id": workflow_id,
        "wait_reason": None if wait_reason is None else str(wait_reason),
        "root_only": root_only,
        "limit": limit,
    }
    found: list[RunState] = []
    for one in RunStatus if status is None else (RunStatus(status),):
        if one is not RunStatus.RUNNING:
            found += decoded(connection.execute(_RUNS_AT_REST, {**filters, "status": str(one)}))
        elif wait_reason is None:
            found += decoded(connection.execute(_RUNS_RUNNING, filters))
    return newest_first(found)[:limit]


def due_runs(connection: sqlite3.Connection, now: int, limit: int) -> list[RunState]:
    """Runs whose wait is due at `now` (microseconds since 1970), earliest first."""
    return _decoded(connection.execute(_RUNS_DUE, (now, limit)))


def children(connection: sqlite3.Connection, parent_run_id: str, status: RunStatus | None) -> list[RunState]:
    """Runs that this run started, oldest first."""
    wanted = {"parent": parent_run_id, "status": None if status is None else str(RunStatus(status))}
    return _decoded(connection.execute(_CHILDREN_OF_RUN, wanted))


def _decoded(rows: sqlite3.Cursor) -> list[RunState]:
    return [run_of(run_id, count, data) for run_id, count, data in rows.fetchall()]


def _narrow(rows: sqlite3.Cursor) -> list[RunState]:
    return [narrow_run(data, run_id) for run_id, _, data in rows]
