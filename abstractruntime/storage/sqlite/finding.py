"""`find_runs` and `find_waits` on a database: see `storage.listing` for what they mean.

Several filters may each have an index, and only one can lead. Each is asked how many rows it has, up to a bound; the
one with the fewest goes first, in the order of the page, and the others check what it finds.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from heapq import merge
from operator import itemgetter
from typing import Any

from ...core.codec import encode
from ...core.models import RunState, RunStatus
from ..base import Page
from ..listing import ORIGINS, Place, Query, RunQuery, WaitQuery, page_of, start_of
from .narrow import narrow_run
from .statements import QUERIES

#: up to where the rows of an index are counted
MOST_COUNTED = 1_000

#: a term of a query that is left out where its parameter is not given
_TERM = re.compile(r" AND [^:]*?:(\w+)\)*")
_HIGHEST = 2**63 - 1

#: of filters that may lead, the statement that counts their rows; where two have as many, the first one leads
_RUN_LEADS = {
    "parent_run_id": "some_runs",
    "session_id": "some_runs",
    "wait_reason": "some_waits",
    "actor_id": "some_runs",
    "status": "some_states",
    "workflow_id": "some_runs",
}
_WAIT_LEADS = {
    "run_id": "some_runs",
    "due": "some_waits",
    "wait_key": "some_waits",
    "asks": "some_waits",
    "parent_run_id": "some_runs",
    "session_id": "some_runs",
    "reason": "some_waits",
    "actor_id": "some_runs",
    "workflow_id": "some_runs",
}

Filters = dict[str, Any]


def find(connection: sqlite3.Connection, query: Query) -> Page:
    """The page that the query asks for. Raises InvalidCursor, StoreCorrupt."""
    start = start_of(query, "sqlite")
    source = _Source(connection)
    found = _runs(source, query, start) if isinstance(query, RunQuery) else _waits(source, query, start)
    return page_of(((place, query.row(run)) for place, run in found), query, "sqlite")


class _Source:
    """A connection that is asked for runs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lead(self, filters: Filters, leads: Mapping[str, str]) -> str | None:
        """The filter whose index has the fewest rows."""
        names = [name for name in leads if name in filters]
        if len(names) < 2:
            return names[0] if names else None
        counts = {name: self._count(leads[name], name, filters[name]) for name in names}
        return min(names, key=counts.__getitem__)

    def _count(self, name: str, of: str, value: Any) -> int:
        parameter = "by_reason" if of == "wait_reason" else f"by_{of}"
        text = with_terms(name, frozenset({parameter, "most"}))
        each = value if isinstance(value, frozenset) else (value,)
        bound = [{parameter: one, "most": MOST_COUNTED} for one in each]
        return sum(self._connection.execute(text, values).fetchone()[0] for values in bound)

    def rows(self, name: str, filters: Filters) -> sqlite3.Cursor:
        """Integer, id and bytes of what a query finds with these filters alone."""
        return self._connection.execute(with_terms(name, frozenset(filters)), filters)


@lru_cache(maxsize=256)
def with_terms(name: str, given: frozenset[str]) -> str:
    """The query of this name with those terms alone whose parameters are given."""
    return _TERM.sub(lambda term: term[0] if term[1] in given else "", QUERIES[name])


def _runs(source: _Source, query: RunQuery, start: Place | None) -> Iterator[tuple[Place, RunState]]:
    filters = _given(query, *ORIGINS, "wait_reason")
    if query.wait_reason is not None:
        if query.statuses is not None and RunStatus.WAITING not in query.statuses:
            return iter(())
    elif query.statuses is not None:
        filters["status"] = frozenset(map(str, query.statuses))
    lead = source.lead(filters, _RUN_LEADS)
    value: Any = filters.pop(lead) if lead else None
    filters |= {"before": start[0] if start else _HIGHEST, "limit": query.limit + 1}
    if query.root_only:
        filters["root_only"] = 1
    if "status" in filters:
        filters["statuses"] = encode(sorted(filters.pop("status"))).decode()
    rows: Iterable[tuple[int, str, bytes]]
    if lead == "status":
        each = [source.rows("find_runs_of_status", {**filters, "by_status": status}) for status in value]
        rows = merge(*each, key=itemgetter(0), reverse=True)
    elif lead == "wait_reason":
        rows = source.rows("find_waits", {**filters, "by_reason": value})
    else:
        rows = source.rows("find_runs", {**filters, f"by_{lead}": value} if lead else filters)
    return _placed(rows, query)


def _waits(source: _Source, query: WaitQuery, start: Place | None) -> Iterator[tuple[Place, RunState]]:
    filters = _given(query, "run_id", "reason", "wait_key", "asks", "due", *ORIGINS)
    lead = "run_id" if query.run_id is not None else source.lead(filters, _WAIT_LEADS)
    value: Any = filters.pop(lead) if lead else None
    filters["limit"] = -1  # rows come one by one, and nobody asks for more than the page needs
    matches = query.filter()  # whether a run is paused stands in its bytes alone
    if lead == "due":
        after = start or (-_HIGHEST, 0)
        filters |= {"by_due": value, "after_due": after[0], "after_run": after[1]}
        return (found for found in _placed(source.rows("find_waits_due", filters), query) if matches(found[1]))
    filters["before"] = start[0] if start and query.order == "waits" else _HIGHEST
    if lead:
        filters[f"by_{lead}"] = value
    name = "find_waits" if lead in (None, "reason", "wait_key", "asks") else "find_waits_of_runs"
    found = (found for found in _placed(source.rows(name, filters), query) if matches(found[1]))
    if query.order == "waits":
        return found
    return iter(sorted((one for one in found if start is None or one[0] > start), key=itemgetter(0)))


def _placed(rows: Iterable[tuple[int, str, bytes]], query: Query) -> Iterator[tuple[Place, RunState]]:
    for number, run_id, data in rows:
        run = narrow_run(data, run_id)
        yield query.place(number, run), run


def _given(query: Query, *names: str) -> Filters:
    values = ((name, getattr(query, name)) for name in names)
    return {name: str(value) if isinstance(value, str) else value for name, value in values if value is not None}
