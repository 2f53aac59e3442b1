"""How a run stands, as far as a driver asks: what stores without SQL keep of each, and what can move among them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from ..core.backend import Due
from ..core.models import TERMINAL, RunState, RunStatus, WaitReason
from .listing import attempt_due, by_turns


class Standing(Struct, frozen=True, gc=False):
    """When a run moves by itself (`""` is at once, None never), whether it runs, and who waits for whom."""

    workflow_id: str
    revision: int
    moves: str | None
    runs: bool
    ended: bool
    parent: str | None
    gathers: bool


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
        gathers=waits and run.waiting is not None and run.waiting.reason is WaitReason.SUBWORKFLOW,
    )


def due_among(
    rows: dict[str, Standing],
    nudged: Iterable[str],
    asked: Iterable[str],
    *,
    now: str,
    limit: int,
    passing: Collection[str],
) -> list[Due]:
    """See `core.backend.Backend.due`; `nudged` are runs that a message waits for, `asked` those with a request."""
    passed = set(passing)
    stirred = {row.parent for row in rows.values() if row.ended and row.parent}
    moving = sorted((row.moves, run_id) for run_id, row in rows.items() if row.moves is not None and row.moves <= now)
    kinds = (
        (run_id for _, run_id in moving if not rows[run_id].runs),
        (run_id for run_id in nudged if run_id in rows),
        (run_id for run_id, row in rows.items() if row.gathers and run_id in stirred),
        (run_id for run_id in asked if run_id in rows),
        (run_id for _, run_id in moving if rows[run_id].runs),
    )
    found = ([_due(run_id, rows[run_id]) for run_id in kind if run_id not in passed] for kind in kinds)
    return by_turns(found, limit)


def next_among(rows: Iterable[Standing], after: str) -> str | None:
    """See `core.backend.Backend.next_due`."""
    return min((row.moves for row in rows if row.moves and row.moves > after), default=None)


def _due(run_id: str, row: Standing) -> Due:
    return Due(run_id=run_id, workflow_id=row.workflow_id, revision=row.revision, between=row.runs)
