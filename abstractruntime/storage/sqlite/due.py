"""What can move now, as SQL: see `core.backend.Backend.due`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from msgspec import Struct

from ...core.backend import Due
from ...core.clock import instant_text, micros
from ...core.codec import encode
from ...core.models import RunState
from ..listing import awaited, by_turns
from .statements import QUERIES, first

_REASONS = [QUERIES[name] for name in ("due_timers", "due_messages", "due_parents", "due_requests", "due_running")]
_STIR_WAITS = QUERIES["stir_waits"]
_NEXT_ATTEMPT = QUERIES["next_attempt"]
_NEXT_TIMER = QUERIES["next_timer"]
_OWNERS_ALIVE = QUERIES["owners_alive"]


class Asked(Struct, frozen=True, kw_only=True):
    """The arguments of `Backend.due`."""

    now: str
    limit: int
    passing: list[str]
    watched: list[str]
    owner: str


def due(connection: sqlite3.Connection, asked: Asked, is_held: Callable[[str], bool]) -> list[Due]:
    """Runs that can move. `is_held` says whether the process of an owner lives."""
    at = micros(asked.now)
    alive = [other for (other,) in connection.execute(_OWNERS_ALIVE, (at,)).fetchall() if is_held(other)]
    wanted = {
        "now": asked.now,
        "micros": at,
        "limit": asked.limit,
        "passing": encode(asked.passing).decode(),
        "resting": encode([*asked.passing, *asked.watched]).decode(),
        "watched": encode(asked.watched).decode(),
        "alive": encode([*alive, asked.owner]).decode(),
        "others": encode([other for other in alive if other != asked.owner]).decode(),
    }
    found = [
        [
            Due(run_id=run_id, workflow_id=workflow_id, revision=revision, between=bool(between))
            for run_id, workflow_id, revision, between in connection.execute(query, wanted)
        ]
        for query in _REASONS
    ]
    return by_turns(found, asked.limit)


def stir(connection: sqlite3.Connection, run_pk: int, run: RunState) -> None:
    """Let a run that was just stored look at those it waits for, if one of them has ended meanwhile."""
    awaits = awaited(run)
    if awaits:
        connection.execute(_STIR_WAITS, (run_pk, encode(awaits).decode()))


def next_due(connection: sqlite3.Connection, after: str) -> str | None:
    """The first instant after this one at which something can move."""
    attempt = first(connection, _NEXT_ATTEMPT, (after,))
    timer = first(connection, _NEXT_TIMER, (micros(after),))
    return min((at for at in (attempt, None if timer is None else instant_text(timer)) if at), default=None)
