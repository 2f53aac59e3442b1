"""How a run stands, as far as a driver asks: what stores without SQL keep of each, and what can move among them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from itertools import chain, islice

from msgspec import Struct

from ..core.backend import Due
from ..core.models import TERMINAL, RunState, RunStatus
from .listing import attempt_due, awaited, by_turns

#: entries of the heap that may be out of date before it is made anew
_SPARE = 1_000


class Standing(Struct, frozen=True, gc=False):
    """When a run moves by itself (`""` is at once, None never), whether it runs, and who waits for whom."""

    workflow_id: str
    revision: int
    moves: str | None
    runs: bool
    ended: bool
    parent: str | None
    awaits: tuple[str, ...]


def standing_of(run: RunState) -> Standing:
    """How this run stands; time does not count while it is paused."""
    waits = run.status is RunStatus.WAITING and run.waiting is not None
    until = run.waiting.until if waits and run.waiting is not None and not run.paused else None
    return Standing(
        workflow_id=run.workflow_id,
        revision=run.revision,
        moves=until if waits else attempt_due(run),
        runs=run.status is RunStatus.RUNNING,
        ended=run.status in TERMINAL,
        parent=run.parent_run_id,
        awaits=awaited(run) if waits else (),
    )


class Standings:
    """How all runs of a store stand, kept so that a look costs as much as can move, however many wait."""

    def __init__(self) -> None:
        self._rows: dict[str, Standing] = {}
        #: runs that move at once, and when others move; those whose time had come when somebody looked are in `_come`
        self._now: dict[str, None] = {}
        self._later: dict[str, str] = {}
        self._come: dict[str, str] = {}
        #: `_later` by time; what is not there any more is left in until it comes up, or there is too much of it
        self._heap: list[tuple[str, str]] = []
        #: runs of which one that they wait for has ended
        self._stirred: dict[str, None] = {}

    def put(self, run_id: str, new: Standing) -> None:
        """Take in how a run stands now."""
        old = self._rows.get(run_id)
        same = old is not None and (old.moves, old.awaits, old.ended) == (new.moves, new.awaits, new.ended)
        if not same:
            self.drop(run_id)
        self._rows[run_id] = new
        if same:
            return
        if new.moves:
            self._later[run_id] = new.moves
            heappush(self._heap, (new.moves, run_id))
            if len(self._heap) > 2 * len(self._later) + _SPARE:
                self._heap = sorted((at, other) for other, at in self._later.items())
        elif new.moves is not None:
            self._now[run_id] = None
        if any((child := self._rows.get(other)) is not None and child.ended for other in new.awaits):
            self._stirred[run_id] = None
        parent = self._rows.get(new.parent) if new.ended and new.parent else None
        if parent is not None and run_id in parent.awaits:
            self._stirred[new.parent or ""] = None

    def drop(self, run_id: str) -> None:
        """Forget a run."""
        self._rows.pop(run_id, None)
        for kept in (self._now, self._later, self._come, self._stirred):
            kept.pop(run_id, None)

    def due(
        self, nudged: Iterable[str], asked: Iterable[str], *, now: str, limit: int, passing: Collection[str]
    ) -> list[Due]:
        """See `core.backend.Backend.due`; `nudged` are runs that a message waits for, `asked` those with a request."""
        self._let_come(now)
        passed = set(passing)
        come = [run_id for at, run_id in sorted((at, run_id) for run_id, at in self._come.items()) if at <= now]
        kinds = (
            (run_id for run_id in come if not self._rows[run_id].runs),
            (run_id for run_id in nudged if run_id in self._rows),
            self._stirred,
            (run_id for run_id in asked if run_id in self._rows),
            chain(self._now, (run_id for run_id in come if self._rows[run_id].runs)),
        )
        found = (islice((_due(one, self._rows[one]) for one in kind if one not in passed), limit) for kind in kinds)
        return by_turns(found, limit)

    def next(self, after: str) -> str | None:
        """See `core.backend.Backend.next_due`."""
        self._let_come(after)
        heap = self._heap
        while heap and self._later.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        come = (at for at in self._come.values() if at > after)  # the clock was set back
        return min((*come, *(at for at, _ in heap[:1])), default=None)

    def _let_come(self, now: str) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, run_id = heappop(heap)
            if self._later.get(run_id) == at:
                self._come[run_id] = at


def _due(run_id: str, row: Standing) -> Due:
    return Due(run_id=run_id, workflow_id=row.workflow_id, revision=row.revision, between=row.runs)
