"""Runs that are set apart, because they failed again and again: which, why, and since when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from msgspec import Struct

from ..core.errors import UnknownRun
from ..core.models import RunState, RunStatus
from ..runtime import AsyncRuntime
from ..storage.user_pair import call

#: failed runs that are looked through in a store that cannot be searched page by page
_MOST_LISTED = 10_000


class Quarantined(Struct, frozen=True, kw_only=True):
    """A run that nobody moves until it is requeued.

    `by` says who set it apart. `"runtime"`: it is FAILED, by the rule `quarantine_after`, for every process and for
    good. `"scheduler"`: it is as it was, and this scheduler alone leaves it alone, because its ticks raised
    `give_up_after` times in a row. `error` is what was raised last.
    """

    run_id: str
    workflow_id: str
    reason: str
    error: str | None
    since: str
    by: Literal["runtime", "scheduler"]


def given_up(run: RunState, errors: int, error: Exception, now: str) -> Quarantined:
    """A run that a scheduler leaves alone."""
    return Quarantined(
        run_id=run.run_id,
        workflow_id=run.workflow_id,
        reason=f"its ticks raised {errors} times in a row, last at node {run.current_node!r}",
        error=f"{type(error).__name__}: {error}",
        since=now,
        by="scheduler",
    )


async def set_apart(runtime: AsyncRuntime, limit: int) -> list[Quarantined]:
    """The runs that the runtime's rule has set apart, of the latest created first. Goes through all failed runs."""
    found: list[Quarantined] = []
    async for run_id in _failed(runtime):
        if len(found) >= limit:
            break
        try:
            run = await runtime.get_state(run_id)
        except UnknownRun:
            continue  # deleted meanwhile
        if run.quarantined is not None and run.status is RunStatus.FAILED:
            found.append(
                Quarantined(
                    run_id=run_id,
                    workflow_id=run.workflow_id,
                    reason=run.quarantined,
                    error=run.error,
                    since=run.updated_at,
                    by="runtime",
                )
            )
    return found


async def _failed(runtime: AsyncRuntime) -> AsyncIterator[str]:
    store = runtime.run_store
    if not callable(getattr(store, "find_runs", None)):
        for run in await call(store.list_runs, status=RunStatus.FAILED, limit=_MOST_LISTED):
            yield run.run_id
        return
    cursor: str | None = None
    while True:
        page = await runtime.find_runs(status=RunStatus.FAILED, limit=500, cursor=cursor)
        for row in page.items:
            yield row["run_id"]
        cursor = page.cursor
        if cursor is None:
            return
