"""What can move now, as SQL: see `core.backend.Backend.due`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection

from ...core.backend import Due
from ...core.clock import instant_text, micros
from ...core.codec import encode
from ..listing import by_turns
from .statements import QUERIES, first

_REASONS = [QUERIES[name] for name in ("due_timers", "due_messages", "due_parents", "due_requests", "due_running")]
_NEXT_ATTEMPT = QUERIES["next_attempt"]
_NEXT_TIMER = QUERIES["next_timer"]
_OWNERS_ALIVE = QUERIES["owners_alive"]


def due(
    connection: sqlite3.Connection,
    now: str,
    limit: int,
    passing: Collection[str],
    owner: str,
    is_held: Callable[[str], bool],
) -> list[Due]:
    """Runs that can move at this instant. `is_held` says whether the process of an owner lives, `owner` is who asks."""
    owners = connection.execute(_OWNERS_ALIVE, (micros(now),)).fetchall()
    alive = [other for (other,) in owners if other != owner and is_held(other)]
    wanted = {
        "now": now,
        "micros": micros(now),
        "limit": limit,
        "passing": encode(list(passing)).decode(),
        "alive": encode(alive).decode(),
    }
    found = [
        [
            Due(run_id=run_id, workflow_id=workflow_id, revision=revision, between=bool(between))
            for run_id, workflow_id, revision, between in connection.execute(query, wanted)
        ]
        for query in _REASONS
    ]
    return by_turns(found, limit)


def next_due(connection: sqlite3.Connection, after: str) -> str | None:
    """The first instant after this one at which something can move."""
    attempt = first(connection, _NEXT_ATTEMPT, (after,))
    timer = first(connection, _NEXT_TIMER, (micros(after),))
    return min((at for at in (attempt, None if timer is None else instant_text(timer)) if at), default=None)
