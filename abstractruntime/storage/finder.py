"""`find_runs` and `find_waits` as stores and runtimes have them, async and blocking; they differ in `_find` alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from datetime import datetime
from typing import Any

from msgspec.structs import asdict

from ..core.errors import StoreError
from ..core.models import RunStatus, WaitReason
from ..core.questions import RuleName
from .base import Page
from .listing import Query, RunQuery, WaitQuery
from .user_pair import call


class AsyncFinder:
    """Finds runs and waits, page by page."""

    @abstractmethod
    async def _find(self, query: Query) -> Page:
        """The page that this query asks for."""

    async def find_runs(
        self,
        *,
        status: RunStatus | Collection[RunStatus] | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        actor_id: str | None = None,
        parent_run_id: str | None = None,
        root_only: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Runs that match every filter, newest first, as rows of `list_run_index`; `status` takes one or several.

        `page.cursor` given back with the same filters goes on behind the last row; None is the end. It never skips or
        repeats a run while others write; runs that are created meanwhile are newer than all pages. A run whose ledger
        was stored before it may stand where the ledger was begun. Raises `InvalidCursor` for a cursor that is not from
        here, ValueError for what is no status or reason.
        """
        return await self._find(
            RunQuery(
                status=status,
                wait_reason=wait_reason,
                workflow_id=workflow_id,
                session_id=session_id,
                actor_id=actor_id,
                parent_run_id=parent_run_id,
                root_only=root_only,
                limit=limit,
                cursor=cursor,
            )
        )

    async def find_waits(
        self,
        *,
        reason: WaitReason | None = None,
        wait_key: str | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        actor_id: str | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
        due_before: str | datetime | None = None,
        include_paused: bool = False,
        limit: int = 100,
        cursor: str | None = None,
        asks: RuleName | None = None,
    ) -> Page:
        """What runs wait for, as rows that say all that is needed to ask and to `resume`: the inbox of an application.

        Those of the newest run first. With `due_before` (ISO text or datetime; without offset UTC) only waits that are
        due then or before, the earliest first. What a paused run waits for nobody can answer: it is left out, and with
        `include_paused` listed with `paused: True`; it is never due. `asks` finds the waits of effects that ask for an
        answer of this kind, as in `"approval"`. Cursors and errors are those of `find_runs`.
        """
        return await self._find(
            WaitQuery(
                reason=reason,
                wait_key=wait_key,
                workflow_id=workflow_id,
                session_id=session_id,
                actor_id=actor_id,
                parent_run_id=parent_run_id,
                run_id=run_id,
                due_before=due_before,
                include_paused=include_paused,
                limit=limit,
                cursor=cursor,
                asks=asks,
            )
        )


class Finder:
    """Finds runs and waits, page by page; blocking."""

    @abstractmethod
    def _find(self, query: Query) -> Page:
        """The page that this query asks for."""

    def find_runs(
        self,
        *,
        status: RunStatus | Collection[RunStatus] | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        actor_id: str | None = None,
        parent_run_id: str | None = None,
        root_only: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """See `AsyncFinder.find_runs`."""
        return self._find(
            RunQuery(
                status=status,
                wait_reason=wait_reason,
                workflow_id=workflow_id,
                session_id=session_id,
                actor_id=actor_id,
                parent_run_id=parent_run_id,
                root_only=root_only,
                limit=limit,
                cursor=cursor,
            )
        )

    def find_waits(
        self,
        *,
        reason: WaitReason | None = None,
        wait_key: str | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        actor_id: str | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
        due_before: str | datetime | None = None,
        include_paused: bool = False,
        limit: int = 100,
        cursor: str | None = None,
        asks: RuleName | None = None,
    ) -> Page:
        """See `AsyncFinder.find_waits`."""
        return self._find(
            WaitQuery(
                reason=reason,
                wait_key=wait_key,
                workflow_id=workflow_id,
                session_id=session_id,
                actor_id=actor_id,
                parent_run_id=parent_run_id,
                run_id=run_id,
                due_before=due_before,
                include_paused=include_paused,
                limit=limit,
                cursor=cursor,
                asks=asks,
            )
        )


class StoreFinder(AsyncFinder):
    """Finds in a run store of any kind, sync or async."""

    _run_store: Any

    async def _find(self, query: Query) -> Page:
        """Ask the store. Raises StoreError where it cannot be asked."""
        method = getattr(self._run_store, "find_runs" if isinstance(query, RunQuery) else "find_waits", None)
        if not callable(method):
            raise StoreError(
                f"{self._run_store!r} cannot be searched. Give the runtime a run store that has find_runs() and "
                "find_waits(), with the arguments of those of AsyncRuntime, sync or async; both return a Page."
            )
        wanted = asdict(query)
        if wanted.get("asks") is None:  # a store of a host may not know it
            wanted.pop("asks", None)
        page: Page = await call(method, **wanted)
        return page
