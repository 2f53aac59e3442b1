"""The documented stores on one database: the async classes are the real ones, the plain names their blocking twins.

A run store and a ledger store on the same `SqliteDatabase` are a joint pair: the runtime then writes state and records
in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from msgspec.structs import replace

from ...core.clock import micros
from ...core.codec import record_dict
from ...core.errors import RevisionConflict, StoreUnclear
from ...core.ids import check_id, new_id
from ...core.journal import prepare_save
from ...core.models import RunState, RunStatus, StepRecord, WaitReason
from ...core.portal import drive, twin
from ...core.secrets import admit
from ..base import Backend, LedgerStore, Page, RunStore, checked_limit, index_row, is_own
from ..finder import AsyncFinder
from ..listing import Query
from ..metrics import metrics_of
from . import reads, writes
from .database import SqliteDatabase
from .finding import find

Records = list[dict[str, Any]]


class AsyncSqliteRunStore(AsyncFinder, RunStore):
    """Checkpoints in a SQLite database. Usable from any number of event loops at once."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.db = db

    async def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """Insert an unknown run, or replace the stored one at the same revision and raise `run.revision` in place.

        Raises `RevisionConflict` when the run moved on since it was loaded, unless `overwrite`; `UnsafeValue` for
        what JSON cannot carry; `InvalidId` for a run id that could be none.
        """
        backend = self.db.backend
        while True:
            write = prepare_save(
                await backend.load(run.run_id),
                run,
                overwrite=overwrite,
                commit_id=new_id(),
                parent=await self.load(run.parent_run_id) if run.parent_run_id else None,
            )
            try:
                await backend.save(write)
                break
            except RevisionConflict:
                if not overwrite:
                    raise
            except StoreUnclear:
                if await backend.landed(run.run_id, write.run.commit_id or ""):
                    break
                raise
        run.revision, run.commit_id = write.run.revision, write.run.commit_id

    async def create_if_absent(self, run: RunState) -> tuple[RunState, bool]:
        """Insert the run unless its id is taken; the stored run, and whether it was inserted."""
        while True:
            found = await self.load(run.run_id)
            if found is not None:
                return found, False
            try:
                await self.save(run)
                return run, True
            except RevisionConflict:  # another was faster
                continue

    async def load(self, run_id: str) -> RunState | None:
        """A fresh copy of the stored run, or None. Raises StoreCorrupt."""
        found = await self.db.backend.load(run_id)
        return found.run if found else None

    async def delete(self, run_id: str) -> bool:
        """Forget the run; whether there was one. Its ledger stays."""
        return await self.db.backend.write(partial(writes.delete_run, run_id=run_id))

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
    ) -> list[RunState]:
        """Matching runs, newest `updated_at` first."""
        return await self.db.backend.read(
            partial(
                reads.newest_runs,
                status=status,
                wait_reason=wait_reason,
                workflow_id=workflow_id,
                limit=checked_limit(limit),
            )
        )

    async def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        """Waiting runs, not paused, whose timer or deadline is at or before `now_iso`, earliest first."""
        return await self.db.backend.read(partial(reads.due_runs, now=micros(now_iso), limit=checked_limit(limit)))

    async def list_children(self, *, parent_run_id: str, status: RunStatus | None = None) -> list[RunState]:
        """Runs started by `parent_run_id`, oldest first."""
        return await self.db.backend.read(partial(reads.children, parent_run_id=parent_run_id, status=status))

    async def list_run_index(
        self,
        *,
        status: RunStatus | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        root_only: bool = False,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Narrow rows of matching runs, newest `updated_at` first: see `storage.base.index_row`."""
        runs = await self.db.backend.read(
            partial(
                reads.newest_runs,
                status=status,
                workflow_id=workflow_id,
                session_id=session_id,
                root_only=root_only,
                limit=checked_limit(limit),
                narrow=True,
            )
        )
        return [index_row(run) for run in runs]

    async def _find(self, query: Query) -> Page:
        return await self.db.backend.read(partial(find, query=query))

    def join(self, ledger_store: object) -> Backend | None:
        """The backend of this store and a ledger store on the same `SqliteDatabase`; None for any other ledger."""
        return _joint(self, AsyncSqliteRunStore, self.db, ledger_store)


class AsyncSqliteLedgerStore(LedgerStore):
    """Ledgers in a SQLite database. Records are numbered from 1. Usable from any number of event loops at once."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.db = db

    async def append(self, record: StepRecord) -> None:
        """Add a record at the end of its run's ledger, whether that run is stored or not.

        A step of the run that is in progress then meets a conflict and is computed again. Raises `InvalidId` for an
        empty run id, `UnsafeValue` for what JSON cannot carry.
        """
        await self._append(record)

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        """Add it as a link of the ledger's chain, if there is one or shall be; the record as stored."""
        check_id(record.run_id, "run_id of a record")
        clean = replace(record, effect=admit(record.effect, "effect"), result=admit(record.result, "result"))
        return await self.db.backend.append(clean, chain=chain)

    async def list(self, run_id: str) -> Records:
        """The run's records as dicts, oldest first; `[]` for an unknown run."""
        return [record_dict(record) for record in await self.db.backend.records(run_id)]

    async def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> tuple[Records, int]:
        """At most `limit` records numbered above `after`, and the number of the last of them: the next `after`."""
        after = max(0, after)
        found = await self.db.backend.records(run_id, after=after, limit=max(1, limit))
        return [record_dict(record) for record in found], after + len(found)

    async def count(self, run_id: str) -> int:
        """How many records the run has."""
        return await self.db.backend.read(partial(reads.count, run_id=run_id))

    async def count_many(self, run_ids: Iterable[str]) -> dict[str, int]:
        """How many records each of these runs has."""
        wanted = [*run_ids]
        return await self.db.backend.read(
            lambda connection: {run_id: reads.count(connection, run_id) for run_id in wanted}
        )

    async def metrics_many(self, run_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per run `steps`, `llm_calls`, `tool_calls` and `tokens_total` of its completed records."""
        wanted = [*run_ids]
        return await self.db.backend.read(
            lambda connection: {run_id: metrics_of(reads.records(connection, run_id)) for run_id in wanted}
        )

    async def delete(self, run_id: str) -> int:
        """Forget the run's records; how many there were. The run itself stays."""
        return await self.db.backend.write(partial(writes.delete_ledger, run_id=run_id))


class SqliteRunStore(RunStore):
    """Checkpoints in a SQLite database, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.aio = AsyncSqliteRunStore(db)
        self.db = db

    # The two of the interface are written out: a type checker gives an assigned name the type that its base has.
    def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """See `AsyncSqliteRunStore.save`."""
        drive(self.aio.save, run, overwrite=overwrite)

    def load(self, run_id: str) -> RunState | None:
        """See `AsyncSqliteRunStore.load`."""
        return drive(self.aio.load, run_id)

    create_if_absent = twin(AsyncSqliteRunStore.create_if_absent)
    delete = twin(AsyncSqliteRunStore.delete)
    list_runs = twin(AsyncSqliteRunStore.list_runs)
    list_due_wait_until = twin(AsyncSqliteRunStore.list_due_wait_until)
    list_children = twin(AsyncSqliteRunStore.list_children)
    list_run_index = twin(AsyncSqliteRunStore.list_run_index)
    find_runs = twin(AsyncSqliteRunStore.find_runs)
    find_waits = twin(AsyncSqliteRunStore.find_waits)

    def join(self, ledger_store: object) -> Backend | None:
        """See `AsyncSqliteRunStore.join`."""
        return _joint(self, SqliteRunStore, self.db, ledger_store)


class SqliteLedgerStore(LedgerStore):
    """Ledgers in a SQLite database, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.aio = AsyncSqliteLedgerStore(db)
        self.db = db

    def append(self, record: StepRecord) -> None:
        """See `AsyncSqliteLedgerStore.append`."""
        drive(self.aio.append, record)

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return drive(self.aio._append, record, chain=chain)

    def list(self, run_id: str) -> Records:
        """See `AsyncSqliteLedgerStore.list`."""
        return drive(self.aio.list, run_id)

    list_after = twin(AsyncSqliteLedgerStore.list_after)
    count = twin(AsyncSqliteLedgerStore.count)
    count_many = twin(AsyncSqliteLedgerStore.count_many)
    metrics_many = twin(AsyncSqliteLedgerStore.metrics_many)
    delete = twin(AsyncSqliteLedgerStore.delete)


def _joint(runs: RunStore, own: type[RunStore], db: SqliteDatabase, ledgers: object) -> Backend | None:
    joins = is_own(runs, own, "save", "load") and any(
        is_own(ledgers, kind, "append", "list") for kind in (AsyncSqliteLedgerStore, SqliteLedgerStore)
    )
    return db.backend if joins and getattr(ledgers, "db", None) is db else None
