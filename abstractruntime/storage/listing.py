"""What `find_runs` and `find_waits` mean: their filters, their order, their rows and their cursors.

Both go through runs in an order that never changes while runs change: a number that a store gives a run when it first
hears of it, highest first. A cursor names the last number of a page, so what others write meanwhile can neither hide a
run nor show one twice. With `due_before` waits come by when they are due, and a cursor names that and the run's number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice, zip_longest
from typing import Any, get_args

from msgspec import Struct
from msgspec.structs import force_setattr

from ..core.backend import Due
from ..core.clock import iso, micros, parse_instant
from ..core.codec import decode_run
from ..core.errors import InvalidCursor
from ..core.ids import check_optional
from ..core.kernel.state import is_pause_wait
from ..core.models import RunState, RunStatus, WaitReason
from ..core.questions import RuleName
from .base import Page, RunFilter, checked_limit, index_row, run_filter

#: where something stands in the order of a query: the number of its run, behind its due time where that counts
Place = tuple[int, ...]

#: the filters that say where a run comes from
ORIGINS = ("parent_run_id", "session_id", "actor_id", "workflow_id")

#: what stands in an index where a wait for an event has its stream; none has this one
ASKS = "asks"

_CURSOR = re.compile(r"(\w+)\.(\w+)\.(-?\d{1,19}(?:\.-?\d{1,19})?)", re.ASCII)
_MOST = 2**63 - 1


class RunQuery(Struct, frozen=True, kw_only=True):
    """The arguments of `find_runs`, checked. Raises ValueError for what is no status or reason."""

    status: RunStatus | Collection[RunStatus] | None = None
    wait_reason: WaitReason | None = None
    workflow_id: str | None = None
    session_id: str | None = None
    actor_id: str | None = None
    parent_run_id: str | None = None
    root_only: bool = False
    limit: int = 100
    cursor: str | None = None

    def __post_init__(self) -> None:
        if self.status is not None:
            some = (self.status,) if isinstance(self.status, str) else self.status
            force_setattr(self, "status", frozenset(RunStatus(one) for one in some))
        if self.wait_reason is not None:
            force_setattr(self, "wait_reason", WaitReason(self.wait_reason))
        for name in ORIGINS:
            check_optional(getattr(self, name), name)
        force_setattr(self, "limit", checked_limit(self.limit))

    @property
    def statuses(self) -> frozenset[RunStatus] | None:
        """The statuses asked for; None means any."""
        assert self.status is None or isinstance(self.status, frozenset)
        return self.status

    @property
    def order(self) -> str:
        """What its cursors begin with."""
        return "runs"

    def place(self, number: int, run: RunState) -> Place:
        """Where a run that it finds stands."""
        return (number,)

    def filter(self) -> RunFilter:
        """What it looks for."""
        return run_filter(
            status=self.status,
            wait_reason=self.wait_reason,
            root_only=self.root_only,
            **{name: getattr(self, name) for name in ORIGINS},
        )

    def row(self, run: RunState) -> dict[str, Any]:
        """A run that it finds, as it shows it."""
        return index_row(run)


class WaitQuery(Struct, frozen=True, kw_only=True):
    """The arguments of `find_waits`, checked. Raises ValueError for what is no reason or no instant."""

    reason: WaitReason | None = None
    wait_key: str | None = None
    workflow_id: str | None = None
    session_id: str | None = None
    actor_id: str | None = None
    parent_run_id: str | None = None
    run_id: str | None = None
    due_before: str | datetime | None = None
    include_paused: bool = False
    limit: int = 100
    cursor: str | None = None
    asks: RuleName | None = None

    def __post_init__(self) -> None:
        if self.asks is not None and self.asks not in get_args(RuleName):
            raise ValueError(f"asks must be one of {', '.join(get_args(RuleName))}, found {self.asks!r:.80}")
        if self.reason is not None:
            force_setattr(self, "reason", WaitReason(self.reason))
        due = self.due_before
        if isinstance(due, datetime):
            force_setattr(self, "due_before", iso(due if due.tzinfo else due.replace(tzinfo=UTC)))
        elif due is not None:
            force_setattr(self, "due_before", iso(parse_instant(due)))
        for name in ("run_id", "wait_key", *ORIGINS):
            check_optional(getattr(self, name), name)
        force_setattr(self, "limit", checked_limit(self.limit))

    @property
    def due(self) -> int | None:
        """`due_before` in microseconds since 1970."""
        return None if self.due_before is None else micros(str(self.due_before))

    @property
    def order(self) -> str:
        """What its cursors begin with."""
        return "waits" if self.due_before is None else "due"

    def place(self, number: int, run: RunState) -> Place:
        """Where the wait of a run that it finds stands."""
        return (number,) if self.due_before is None else (due_of(run) or 0, number)

    def filter(self) -> RunFilter:
        """What it looks for: runs whose wait somebody can answer, or all that wait, with `include_paused`."""
        due = self.due

        def matches(run: RunState) -> bool:
            wait, at = run.waiting, due_of(run)
            return (
                run.status == RunStatus.WAITING
                and wait is not None
                and (self.include_paused or not (run.paused or is_pause_wait(run)))
                and (self.reason is None or wait.reason == self.reason)
                and (self.wait_key is None or wait.wait_key == self.wait_key)
                and all(getattr(self, name) in (None, getattr(run, name)) for name in ORIGINS)
                and (self.run_id is None or run.run_id == self.run_id)
                and (self.asks is None or asks_of(run) == self.asks)
                and (due is None or (at is not None and at <= due))
            )

        return matches

    def row(self, run: RunState) -> dict[str, Any]:
        """The wait of a run that it finds, as it shows it."""
        return wait_item(run)


Query = RunQuery | WaitQuery


def attempt_due(run: RunState) -> str | None:
    """Of a run that runs, when it may be moved: the instant of its next attempt, `""` for at once. Else None."""
    if run.status is not RunStatus.RUNNING:
        return None
    intent = run.intent
    return "" if intent is None or intent.token is not None or intent.due is None else intent.due


def awaited(run: RunState) -> tuple[str, ...]:
    """The runs that a run waits for, but for those of which it knows that they have ended."""
    if run.waiting is None or run.waiting.reason is not WaitReason.SUBWORKFLOW or run.intent is None:
        return ()
    noted = (run.waiting.details or {}).get("sub_waiting")  # of several, it says who had not ended by then
    known = {one.get("sub_run_id") for one in noted if isinstance(one, dict)} if isinstance(noted, list) else None
    children = (child.run_id for child in run.intent.children if not child.ended)
    return tuple(run_id for run_id in children if known is None or run_id in known)


def by_turns(found: Iterable[Iterable[Due]], limit: int) -> list[Due]:
    """Some of each, each run once, so that what there is much of does not hide what there is little of."""
    chosen: dict[str, Due] = {}
    for one in chain.from_iterable(zip_longest(*found)):
        if one is not None:
            chosen.setdefault(one.run_id, one)
    return list(chosen.values())[:limit]


def due_of(run: RunState) -> int | None:
    """When the wait is due, in microseconds since 1970. Time does not count for a run that is paused."""
    return micros(run.waiting.until) if run.waiting and run.waiting.until and not run.paused else None


def asks_of(run: RunState) -> RuleName | None:
    """What kind of answer the run's effect waits for; None where none does."""
    asking = run.intent is not None and run.intent.question is not None and run.status == RunStatus.WAITING
    return run.intent.question.kind if asking and run.intent and run.intent.question else None


def wait_item(run: RunState) -> dict[str, Any]:
    """The wait of a run as a row of `find_waits`. `wait_id`, like `wait_key`, is what `resume` takes as `wait_key`."""
    wait = run.waiting
    assert wait is not None
    return {
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "session_id": run.session_id,
        "actor_id": run.actor_id,
        "parent_run_id": run.parent_run_id,
        "node_id": run.current_node,
        "reason": str(wait.reason),
        "wait_key": wait.wait_key,
        "wait_id": (wait.details or {}).get("wait_id") or wait.wait_key,
        "until": wait.until,
        "resume_to_node": wait.resume_to_node,
        "prompt": wait.prompt,
        "choices": wait.choices,
        "allow_free_text": wait.allow_free_text,
        "details": wait.details,
        "paused": run.paused,
        "waiting_since": run.updated_at,
    }


def start_of(query: Query, store: str) -> Place | None:
    """The place behind which the page begins; None at the first. Raises `InvalidCursor`.

    `store` is the kind of store: the numbers of one mean nothing to another.
    """
    if query.cursor is None:
        return None
    found = _CURSOR.fullmatch(query.cursor) if isinstance(query.cursor, str) else None
    place = tuple(map(int, found[3].split("."))) if found else ()
    fits = len(place) == (2 if query.order == "due" else 1) and all(abs(number) <= _MOST for number in place)
    if found is None or (found[1], found[2]) != (store, query.order) or not fits:
        method = "find_runs" if isinstance(query, RunQuery) else "find_waits"
        by = " with due_before" if query.order == "due" else ""
        raise InvalidCursor(query.cursor, f"those that {method}(){by} gives on a store of this kind ({store})")
    return place


def page_of(found: Iterable[tuple[Place, dict[str, Any]]], query: Query, store: str) -> Page:
    """The next page of what was found behind the cursor, in order; not more is taken than tells whether it ends."""
    taken = list(islice(found, query.limit + 1))
    kept = taken[: query.limit]
    last = ".".join(map(str, kept[-1][0])) if len(taken) > len(kept) else ""
    return Page(items=[row for _, row in kept], cursor=f"{store}.{query.order}.{last}" if last else None)


def find_among(rows: Iterable[tuple[int, str, bytes]], query: Query, store: str) -> Page:
    """A page of stored runs (number, id and bytes, highest number first): the reference that SQL is held to."""
    return page_of(_found(rows, query, start_of(query, store)), query, store)


def _found(
    rows: Iterable[tuple[int, str, bytes]], query: Query, start: Place | None
) -> Iterator[tuple[Place, dict[str, Any]]]:
    matches = query.filter()
    if query.order != "due":
        for number, run_id, data in rows:
            if start is None or number < start[0]:
                run = decode_run(data, run_id)
                if matches(run):
                    yield query.place(number, run), query.row(run)
        return
    runs = ((number, decode_run(data, run_id)) for number, run_id, data in rows)
    due = sorted(((query.place(number, run), run) for number, run in runs if matches(run)), key=lambda one: one[0])
    yield from ((place, query.row(run)) for place, run in due if start is None or place > start)
