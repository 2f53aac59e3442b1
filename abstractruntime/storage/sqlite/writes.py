"""One write as SQL, the careful way: check the guard, store, and say exactly what a conflict found.

This is what a commit means. `batch` does the same for many at once, and comes here when it fails.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from ...core.chain import linked
from ...core.clock import micros
from ...core.codec import REFUSALS, decode, decode_records, encode, encode_records
from ...core.errors import RevisionConflict, StoreCorrupt
from ...core.models import Request, RunState, RunStatus, StepRecord
from ..base import Write
from ..listing import ASKS, asks_of, attempt_due
from ..streams import hearing_of
from . import messages
from .due import stir
from .statements import QUERIES, first

_ID_OF_RUN = QUERIES["id_of_run"]
_LAST_RUN_ID = QUERIES["last_run_id"]
_INSERT_RUNS = QUERIES["insert_runs"]
_SET_IDENTITY = QUERIES["set_identity"]
_INSERT_STATES = QUERIES["insert_states"]
_ADVANCE_STATE = QUERIES["advance_state"]
_LAND_RECORDS = QUERIES["land_records"]
_REPLACE_STATE = QUERIES["replace_state"]
_GUARDS_OF_STATE = QUERIES["guards_of_state"]
_INSERT_LEDGER = QUERIES["insert_ledger"]
_DELETE_WAITS = QUERIES["delete_waits"]
_INSERT_WAITS = QUERIES["insert_waits"]
_DELETE_REQUESTS = QUERIES["delete_requests"]
_REQUESTABLE_RUN = QUERIES["requestable_run"]
_REQUESTS_OF_RUN = QUERIES["requests_of_run"]
_INSERT_REQUEST = QUERIES["insert_request"]
_COUNT_REQUEST = QUERIES["count_request"]
_COUNT_APPENDED_RECORD = QUERIES["count_appended_record"]
_END_OF_LEDGER = QUERIES["end_of_ledger"]
_RECORDS_NEWEST_FIRST = QUERIES["records_newest_first"]
_LAST_OF_LEDGER = QUERIES["last_of_ledger"]
_DELETE_STATE = QUERIES["delete_state"]
_FORGET_IDENTITY = QUERIES["forget_identity"]
_DELETE_UNUSED_RUN = QUERIES["delete_unused_run"]
_DELETE_LEDGER = QUERIES["delete_ledger"]
_RESTART_RECORDS = QUERIES["restart_records"]


def rest_at(run: RunState) -> str | None:
    """What a run is sorted by once it rests; None while it runs, and so changes too often for an index."""
    return None if run.status is RunStatus.RUNNING else run.updated_at


def wait_row(run_pk: int, run: RunState) -> tuple[Any, ...] | None:
    """The row of `waits` that belongs to this state, if it waits."""
    wait = run.waiting
    if run.status is not RunStatus.WAITING or wait is None:
        return None
    due = micros(wait.until) if wait.until and not run.paused else None
    hearing = hearing_of(run)
    if hearing is None:
        asks = asks_of(run)  # under a stream that no event has, so that one index serves both
        return run_pk, str(wait.reason), wait.wait_key, due, asks and ASKS, asks, None
    since = None if "" in hearing.read else micros(hearing.since)
    return run_pk, str(wait.reason), wait.wait_key, due, hearing.stream, hearing.name, since


def identity_row(run: RunState) -> tuple[Any, ...]:
    """Where a run comes from, as `runs` has it."""
    return run.workflow_id, run.session_id, run.actor_id, run.parent_run_id, run.created_at, run.root_run_id


def next_run_id(connection: sqlite3.Connection) -> int:
    """The integer of the next new run; sure only inside a write transaction."""
    last = first(connection, _LAST_RUN_ID)
    return 1 if last is None else last + 1


def store(connection: sqlite3.Connection, write: Write, *, identity: bool = False) -> None:
    """Store one write, or raise RevisionConflict. `identity` also renews where the run comes from."""
    run_pk: int | None = first(connection, _ID_OF_RUN, (write.run.run_id,))
    if write.expected is None:
        run_pk, base = _insert(connection, run_pk, write)
    elif run_pk is None:
        raise RevisionConflict(write.run.run_id, write.expected, None)
    else:
        _replace(connection, run_pk, write)
        base = write.expected_records
        if identity:
            connection.execute(_SET_IDENTITY, (*identity_row(write.run), run_pk))
    if write.count:
        connection.execute(_INSERT_LEDGER, (run_pk, base + 1, write.count, write.lookup_key, write.records))
    for request in write.requests:
        stand(connection, request)
    if write.messages:
        messages.send(connection, write.messages, write.keep)
    for other in write.also:
        if not (other.if_absent and _is_stored(connection, other.run.run_id)):
            store(connection, other)


def _is_stored(connection: sqlite3.Connection, run_id: str) -> bool:
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    return run_pk is not None and connection.execute(_GUARDS_OF_STATE, (run_pk,)).fetchone() is not None


def stand(connection: sqlite3.Connection, request: Request) -> None:
    """Let a request stand at its run; one of the same kind stands once, and an ended run is not asked."""
    run_pk = first(connection, _REQUESTABLE_RUN, (request.run_id,))
    if run_pk is None or any(other.kind == request.kind for other in requests_of(connection, run_pk)):
        return
    connection.execute(_INSERT_REQUEST, (run_pk, encode(request)))
    connection.execute(_COUNT_REQUEST, (run_pk,))


def requests_of(connection: sqlite3.Connection, run_pk: int) -> tuple[Request, ...]:
    """The requests that stand at a run, oldest first."""
    rows = connection.execute(_REQUESTS_OF_RUN, (run_pk,)).fetchall()
    try:
        return tuple(msgspec.convert(decode(data), Request) for (data,) in rows)
    except REFUSALS as error:
        raise StoreCorrupt(
            f"A request that stands at a run cannot be read: {error}. Restore it from a backup."
        ) from error


def append(connection: sqlite3.Connection, record: StepRecord, *, chain: bool = False) -> StepRecord:
    """Add one record behind the last one of its run, whether that run is stored or not; the record as stored.

    It becomes a link of the chain with `chain`, and wherever there is one.
    """
    run_pk = first(connection, _ID_OF_RUN, (record.run_id,))
    if run_pk is None:
        run_pk = next_run_id(connection)
        connection.execute(_INSERT_RUNS, (run_pk, record.run_id, *[None] * 6))
    state = connection.execute(_END_OF_LEDGER, (run_pk,)).fetchone()
    last, head = state or (first(connection, _LAST_OF_LEDGER, (run_pk,)), _head_of(connection, run_pk, record.run_id))
    if chain or head is not None:
        (record,) = linked([record], head)
        head = record.record_hash
    if state is not None:
        connection.execute(_COUNT_APPENDED_RECORD, (head, run_pk))
    connection.execute(_INSERT_LEDGER, (run_pk, last + 1, 1, None, encode_records([record])))
    return record


def _head_of(connection: sqlite3.Connection, run_pk: int, run_id: str) -> str | None:
    """The hash of the last record of a ledger whose run is not stored."""
    data = first(connection, _RECORDS_NEWEST_FIRST, (run_pk,))
    return None if data is None else decode_records(data, run_id)[-1].record_hash


def delete_run(connection: sqlite3.Connection, run_id: str) -> bool:
    """Forget a run and what stands beside it; its ledger stays. Whether there was one."""
    messages.clear(connection, f"run:{run_id}")
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    if run_pk is None:
        return False
    found = connection.execute(_DELETE_STATE, (run_pk,)).rowcount == 1
    for query in (_DELETE_WAITS, _DELETE_REQUESTS, _FORGET_IDENTITY, _DELETE_UNUSED_RUN):
        connection.execute(query, (run_pk,))
    return found


def delete_ledger(connection: sqlite3.Connection, run_id: str) -> int:
    """Forget a ledger; how many records it had."""
    run_pk = first(connection, _ID_OF_RUN, (run_id,))
    if run_pk is None:
        return 0
    count: int = first(connection, _LAST_OF_LEDGER, (run_pk,))
    for query in (_DELETE_LEDGER, _RESTART_RECORDS, _DELETE_UNUSED_RUN):
        connection.execute(query, (run_pk,))
    return count


def _insert(connection: sqlite3.Connection, run_pk: int | None, write: Write) -> tuple[int, int]:
    """Insert a new run; its integer, and the number of the last record that its ledger had before."""
    run, base = write.run, 0
    if run_pk is None:
        run_pk = next_run_id(connection)
        connection.execute(_INSERT_RUNS, (run_pk, run.run_id, *identity_row(run)))
    else:
        found = connection.execute(_GUARDS_OF_STATE, (run_pk,)).fetchone()
        if found is not None:
            raise RevisionConflict(run.run_id, 0, found[0], "a run of this id exists")
        base = first(connection, _LAST_OF_LEDGER, (run_pk,))
        connection.execute(_SET_IDENTITY, (*identity_row(run), run_pk))
    head = run.chain_head if write.count else _head_of(connection, run_pk, run.run_id)
    new = (run_pk, run.revision, base + write.count, str(run.status), rest_at(run), run.owner, write.data, head)
    connection.execute(_INSERT_STATES, (*new, run.tokens, attempt_due(run)))
    _register_wait(connection, run_pk, run)
    return run_pk, base


def _replace(connection: sqlite3.Connection, run_pk: int, write: Write) -> None:
    run, records = write.run, write.expected_records + write.count
    guard = (run_pk, write.expected, write.expected_records, write.answered)
    if write.landing:
        changed = connection.execute(_LAND_RECORDS, (records, run.chain_head, *guard[:3])).rowcount
    elif write.hot:
        changed = connection.execute(
            _ADVANCE_STATE, (run.revision, records, write.data, run.chain_head, run.tokens, *guard)
        ).rowcount
    else:
        new = (run.revision, records, str(run.status), rest_at(run), run.owner, write.data, run.chain_head)
        changed = connection.execute(_REPLACE_STATE, (*new, run.tokens, attempt_due(run), *guard)).rowcount
    if changed != 1:
        raise _conflict(connection, run_pk, write)
    if write.hot or write.landing:
        return
    if write.answered:
        connection.execute(_DELETE_REQUESTS, (run_pk,))
    connection.execute(_DELETE_WAITS, (run_pk,))
    _register_wait(connection, run_pk, run)


def _register_wait(connection: sqlite3.Connection, run_pk: int, run: RunState) -> None:
    row = wait_row(run_pk, run)
    if row is not None:
        connection.execute(_INSERT_WAITS, row)
        messages.register(connection, run_pk, run)
        stir(connection, run_pk, run)


def _conflict(connection: sqlite3.Connection, run_pk: int, write: Write) -> RevisionConflict:
    expected = write.expected or 0
    found = connection.execute(_GUARDS_OF_STATE, (run_pk,)).fetchone()
    if found is None:
        return RevisionConflict(write.run.run_id, expected, None)
    revision, records, requested = found
    why = ""
    if requested != write.answered and revision == expected:
        kinds = sorted({request.kind for request in requests_of(connection, run_pk)})
        why = f"a {' and a '.join(kinds)} request stands" if kinds else "the request it answers stands no more"
    elif records != write.expected_records and revision == expected:
        why = f"its ledger has {records} records and not {write.expected_records}"
    return RevisionConflict(write.run.run_id, expected, revision, why)
