"""The documented stores on a folder: the async classes are the real ones, the plain names their blocking twins.

A run store and a ledger store on one folder are a joint pair: the runtime then commits state and records together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ...core.codec import decode_run, record_dict
from ...core.errors import RevisionConflict, StoreUnclear
from ...core.ids import check_id, new_id
from ...core.journal import prepare_save
from ...core.models import RunState, RunStatus, StepRecord, WaitReason
from ...core.portal import drive, twin
from ...core.secrets import admit
from ..base import (
    Backend,
    LedgerStore,
    Page,
    RunFilter,
    RunStore,
    checked_limit,
    due_first,
    index_row,
    is_own,
    newest_first,
    run_filter,
)
from ..finder import AsyncFinder
from ..listing import Query, find_among
from ..metrics import metrics_of
from .backend import Durability, JsonBackend
from .folder import Folder

Records = list[dict[str, Any]]


class AsyncJsonFileRunStore(AsyncFinder, RunStore):
    """Checkpoints as `run_<id>.json` in a folder, for people to read: for development, and for one process.

    One process writes: the first write takes a lock, and a second process gets a StoreError that names the first; it
    may read. With `durability="full"` a write has reached the disk when it returns; with `"none"` it survives the
    death of the process, but not that of the machine. `~` is expanded, and the folder is made by the first write.

    Each file ends in a checksum. A file that is damaged raises StoreCorrupt where it is loaded, and where runs are
    listed; other runs work on. Delete its last member, `crc`, to accept what was edited by hand.
    """

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full") -> None:
        self.base_dir = Path(base_dir).expanduser()
        self._backend = JsonBackend(self.base_dir.absolute(), durability)

    async def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """Insert an unknown run, or replace the stored one at the same revision and raise `run.revision` in place.

        Raises `RevisionConflict` when the run moved on since it was loaded, unless `overwrite`; `UnsafeValue` for
        what JSON cannot carry; `InvalidId` for a run id that could be none.
        """
        backend = self._backend
        while True:
            write = prepare_save(
                await backend.load(run.run_id),
                run,
                overwrite=overwrite,
                commit_id=new_id(),
                parent=await self.load(run.parent_run_id) if run.parent_run_id else None,
            )
            try:
                await backend.commit(write)
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
        found = await self._backend.load(run_id)
        return found.run if found else None

    async def delete(self, run_id: str) -> bool:
        """Forget the run; whether there was one. Its ledger stays."""
        return await self._backend.write(lambda folder: folder.delete_run(run_id))

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
    ) -> list[RunState]:
        """Matching runs, newest `updated_at` first. Raises StoreCorrupt naming a file that cannot be read."""
        matches = run_filter(status=status, wait_reason=wait_reason, workflow_id=workflow_id)
        most = checked_limit(limit)
        return await self._backend.read(
            lambda folder: _whole(folder, newest_first(filter(matches, _narrow(folder))), matches, most)
        )

    async def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        """Waiting runs, not paused, whose timer or deadline is at or before `now_iso`, earliest first."""
        most = checked_limit(limit)

        def is_due(run: RunState) -> bool:
            return bool(due_first([run], now_iso))

        return await self._backend.read(
            lambda folder: _whole(folder, due_first(_narrow(folder), now_iso), is_due, most)
        )

    async def list_children(self, *, parent_run_id: str, status: RunStatus | None = None) -> list[RunState]:
        """Runs started by `parent_run_id`, oldest first."""
        matches = run_filter(status=status, parent_run_id=parent_run_id)
        return await self._backend.read(
            lambda folder: _whole(folder, filter(matches, reversed(_narrow(folder))), matches, None)
        )

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
        matches = run_filter(status=status, workflow_id=workflow_id, session_id=session_id, root_only=root_only)
        runs = await self._backend.read(lambda folder: newest_first(filter(matches, _narrow(folder))))
        return [index_row(run) for run in runs[: checked_limit(limit)]]

    async def _find(self, query: Query) -> Page:
        return await self._backend.read(lambda folder: find_among(folder.index().in_order(), query, "json"))

    def join(self, ledger_store: object) -> Backend | None:
        """The backend of this store and a ledger store on the same folder; None for any other ledger."""
        return _joint(self, AsyncJsonFileRunStore, self._backend, ledger_store)


class AsyncJsonlLedgerStore(LedgerStore):
    """Ledgers as `ledger_<id>.jsonl` in a folder, one record per line. Records are numbered from 1.

    What `AsyncJsonFileRunStore` says of processes, durability and damage holds here too. A line that a crash cut off
    is no record: it is left out, with a warning in the log, and cut off before the next one is written.
    """

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full") -> None:
        self.base_dir = Path(base_dir).expanduser()
        self._backend = JsonBackend(self.base_dir.absolute(), durability)

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
        return await self._backend.append(clean, chain=chain)

    async def list(self, run_id: str) -> Records:
        """The run's records as dicts, oldest first; `[]` for an unknown run. Raises StoreCorrupt."""
        return [record_dict(record) for record in await self._backend.records(run_id)]

    async def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> tuple[Records, int]:
        """At most `limit` records numbered above `after`, and the number of the last of them: the next `after`."""
        after = max(0, after)
        found = await self._backend.records(run_id, after=after, limit=max(1, limit))
        return [record_dict(record) for record in found], after + len(found)

    async def count(self, run_id: str) -> int:
        """How many records the run has."""
        return await self._backend.read(lambda folder: folder.ledger(run_id).count)

    async def count_many(self, run_ids: Iterable[str]) -> dict[str, int]:
        """How many records each of these runs has."""
        wanted = [*run_ids]
        return await self._backend.read(lambda folder: {run_id: folder.ledger(run_id).count for run_id in wanted})

    async def metrics_many(self, run_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per run `steps`, `llm_calls`, `tool_calls` and `tokens_total` of its completed records."""
        wanted = [*run_ids]
        return await self._backend.read(
            lambda folder: {run_id: metrics_of(folder.ledger(run_id).records()) for run_id in wanted}
        )

    async def delete(self, run_id: str) -> int:
        """Forget the run's records; how many there were. The run itself stays."""
        return await self._backend.write(lambda folder: folder.delete_ledger(run_id))


class JsonFileRunStore(RunStore):
    """Checkpoints as `run_<id>.json` in a folder, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full") -> None:
        self.aio = AsyncJsonFileRunStore(base_dir, durability=durability)
        self.base_dir = self.aio.base_dir

    # The two of the interface are written out: a type checker gives an assigned name the type that its base has.
    def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """See `AsyncJsonFileRunStore.save`."""
        drive(self.aio.save, run, overwrite=overwrite)

    def load(self, run_id: str) -> RunState | None:
        """See `AsyncJsonFileRunStore.load`."""
        return drive(self.aio.load, run_id)

    create_if_absent = twin(AsyncJsonFileRunStore.create_if_absent)
    delete = twin(AsyncJsonFileRunStore.delete)
    list_runs = twin(AsyncJsonFileRunStore.list_runs)
    list_due_wait_until = twin(AsyncJsonFileRunStore.list_due_wait_until)
    list_children = twin(AsyncJsonFileRunStore.list_children)
    list_run_index = twin(AsyncJsonFileRunStore.list_run_index)
    find_runs = twin(AsyncJsonFileRunStore.find_runs)
    find_waits = twin(AsyncJsonFileRunStore.find_waits)

    def join(self, ledger_store: object) -> Backend | None:
        """See `AsyncJsonFileRunStore.join`."""
        return _joint(self, JsonFileRunStore, self.aio._backend, ledger_store)


class JsonlLedgerStore(LedgerStore):
    """Ledgers as `ledger_<id>.jsonl` in a folder, for blocking callers; `.aio` is the async store behind it."""

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full") -> None:
        self.aio = AsyncJsonlLedgerStore(base_dir, durability=durability)
        self.base_dir = self.aio.base_dir

    def append(self, record: StepRecord) -> None:
        """See `AsyncJsonlLedgerStore.append`."""
        drive(self.aio.append, record)

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return drive(self.aio._append, record, chain=chain)

    def list(self, run_id: str) -> Records:
        """See `AsyncJsonlLedgerStore.list`."""
        return drive(self.aio.list, run_id)

    list_after = twin(AsyncJsonlLedgerStore.list_after)
    count = twin(AsyncJsonlLedgerStore.count)
    count_many = twin(AsyncJsonlLedgerStore.count_many)
    metrics_many = twin(AsyncJsonlLedgerStore.metrics_many)
    delete = twin(AsyncJsonlLedgerStore.delete)


def _joint(runs: RunStore, own: type[RunStore], backend: JsonBackend, ledgers: object) -> Backend | None:
    if not is_own(runs, own, "save", "load"):
        return None
    if is_own(ledgers, JsonlLedgerStore, "append", "list"):
        ledgers = ledgers.aio  # type: ignore[attr-defined]  # of a class that was just looked at
    if not is_own(ledgers, AsyncJsonlLedgerStore, "append", "list"):
        return None
    assert isinstance(ledgers, AsyncJsonlLedgerStore)
    return backend if backend.is_on(ledgers._backend) else None


def _narrow(folder: Folder) -> list[RunState]:
    """The narrow part of every run, the newest first."""
    return [decode_run(data, run_id) for _, run_id, data in folder.index().in_order()]


def _whole(folder: Folder, runs: Iterable[RunState], matches: RunFilter, most: int | None) -> list[RunState]:
    """The runs themselves, as long as they still match: where another process writes, they may have moved on."""
    found: list[RunState] = []
    for narrow in runs:
        if most is not None and len(found) >= most:
            break
        run = folder.state(narrow.run_id)
        if run is not None and matches(run):
            found.append(run)
    return found
