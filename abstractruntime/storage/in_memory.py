"""Runs and ledgers in memory: for tests and for work that need not outlive the process.

The same atomic commit, the same guards and the same bytes as every other backend, so what runs here runs anywhere.
What is held is encoded: nothing handed out is aliased with it. The plain classes are the real ones, and thread-safe;
the async ones stand around them.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from ..core.backend import Backend, Loaded, Write
from ..core.chain import linked
from ..core.codec import decode_records, decode_run, encode_records, fill, record_dict
from ..core.errors import RevisionConflict
from ..core.ids import check_id, new_id
from ..core.journal import prepare_save
from ..core.models import TERMINAL, Request, RunState, RunStatus, StepRecord, WaitReason
from ..core.secrets import admit
from .base import LedgerStore, Page, RunStore, checked_limit, due_first, index_row, is_own, newest_first, run_filter
from .finder import AsyncFinder, Finder
from .listing import Query, find_among
from .memory_backend import MemoryBackend
from .metrics import metrics_of
from .standing import Standings, standing_of
from .streams import Streams, hearing_of

Records = list[dict[str, Any]]
Stored = list[StepRecord]


class _Row:
    """One stored run: its number, its bytes, the revision they hold and what was asked of it."""

    __slots__ = ("commit_id", "data", "ended", "number", "parent", "requests", "revision", "root", "tokens")

    def __init__(self, number: int, data: bytes, run: RunState) -> None:
        self.number, self.data, self.revision, self.commit_id = number, data, run.revision, run.commit_id
        self.ended, self.parent = run.status in TERMINAL, run.parent_run_id
        self.root, self.tokens = run.root_run_id, run.tokens
        self.requests: tuple[Request, ...] = ()


class InMemoryRunStore(Finder, RunStore):
    """Checkpoints in memory. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}  # in the order of their numbers
        self._numbers = itertools.count(1)
        self._streams = Streams()
        self._standings, self._asked = Standings(), dict[str, None]()  # for a driver; of whom something was asked
        self._lock = threading.RLock()

    @property
    def aio(self) -> AsyncInMemoryRunStore:
        """This store for async callers."""
        return AsyncInMemoryRunStore(self)

    def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """Insert an unknown run, or replace the stored one at the same revision and raise `run.revision` in place.

        Raises `RevisionConflict` when the run moved on since it was loaded, unless `overwrite`; `UnsafeValue` for
        what JSON cannot carry.
        """
        with self._lock:
            write = prepare_save(
                self._loaded(run.run_id),
                run,
                overwrite=overwrite,
                commit_id=new_id(),
                parent=self.load(run.parent_run_id) if run.parent_run_id else None,
            )
            self._put(write)
        run.revision, run.commit_id = write.run.revision, write.run.commit_id

    def create_if_absent(self, run: RunState) -> tuple[RunState, bool]:
        """Insert the run unless its id is taken; the stored run, and whether it was inserted."""
        with self._lock:
            found = self._loaded(run.run_id)
            if found is not None:
                return found.run, False
            self.save(run)
            return run, True

    def load(self, run_id: str) -> RunState | None:
        """A fresh copy of the stored run, or None."""
        with self._lock:
            found = self._loaded(run_id)
        return found.run if found else None

    def delete(self, run_id: str) -> bool:
        """Forget the run; whether there was one."""
        with self._lock:
            self._streams.leave(run_id)
            self._streams.clear(f"run:{run_id}")
            self._standings.drop(run_id)
            self._asked.pop(run_id, None)
            return self._rows.pop(run_id, None) is not None

    def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
    ) -> list[RunState]:
        """Matching runs, newest `updated_at` first."""
        matches = run_filter(status=status, wait_reason=wait_reason, workflow_id=workflow_id)
        return newest_first(filter(matches, self._all()))[: checked_limit(limit)]

    def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        """Waiting runs, not paused, whose timer or deadline is at or before `now_iso`, earliest first."""
        return due_first(self._all(), now_iso)[: checked_limit(limit)]

    def list_children(self, *, parent_run_id: str, status: RunStatus | None = None) -> list[RunState]:
        """Runs started by `parent_run_id`, oldest first."""
        matches = run_filter(status=status)
        with self._lock:
            rows = [(run_id, row.data) for run_id, row in self._rows.items() if row.parent == parent_run_id]
        return [run for run_id, data in rows if matches(run := decode_run(data, run_id))]

    def list_run_index(
        self,
        *,
        status: RunStatus | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        root_only: bool = False,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Narrow rows of matching runs, newest `updated_at` first."""
        matches = run_filter(status=status, workflow_id=workflow_id, session_id=session_id, root_only=root_only)
        return [index_row(run) for run in newest_first(filter(matches, self._all()))[: checked_limit(limit)]]

    def _find(self, query: Query) -> Page:
        return find_among(reversed(self._snapshot()), query, "memory")

    def join(self, ledger_store: object) -> Backend | None:
        """The backend of this store and a ledger in memory; None for any other ledger."""
        ledgers = ledger_store.sync if isinstance(ledger_store, AsyncInMemoryLedgerStore) else ledger_store
        if is_own(self, InMemoryRunStore, "save", "load") and is_own(ledgers, InMemoryLedgerStore, "append", "list"):
            assert isinstance(ledgers, InMemoryLedgerStore)
            return MemoryBackend(self, ledgers)
        return None

    def _all(self) -> list[RunState]:
        return [decode_run(data, run_id) for _, run_id, data in self._snapshot()]

    def _snapshot(self) -> list[tuple[int, str, bytes]]:
        with self._lock:
            return [(row.number, run_id, row.data) for run_id, row in self._rows.items()]

    def _loaded(self, run_id: str) -> Loaded | None:
        row = self._rows.get(run_id)
        return None if row is None else Loaded(run=decode_run(row.data, run_id), requests=row.requests)

    def _put(self, write: Write) -> None:
        """Check the guard and store, or raise `RevisionConflict`; the caller holds the lock."""
        self._check(write)
        run_id, row = write.run.run_id, self._rows.get(write.run.run_id)
        if not write.landing:
            new = self._rows[run_id] = _Row(row.number if row else next(self._numbers), write.data, write.run)
            if row is not None and write.hot:
                new.requests = row.requests
            if not new.requests:
                self._asked.pop(run_id, None)
            self._standings.put(run_id, standing_of(write.run))
            if not write.hot:
                self._streams.take(run_id, hearing_of(write.run))

    def _check(self, write: Write) -> None:
        run_id, row = write.run.run_id, self._rows.get(write.run.run_id)
        if write.landing:
            if row is None or row.revision != write.expected:
                raise RevisionConflict(run_id, write.expected or 0, None if row is None else row.revision)
            return
        if write.expected is None:
            if row is not None:
                raise RevisionConflict(run_id, 0, row.revision, "a run of this id exists")
        elif row is None or row.revision != write.expected:
            raise RevisionConflict(run_id, write.expected, None if row is None else row.revision)
        elif len(row.requests) != write.answered:
            raise RevisionConflict(run_id, write.expected, row.revision, "a request stands that is not answered")

    def _ask(self, request: Request) -> None:
        row = self._rows.get(request.run_id)
        if row is not None and not row.ended and all(other.kind != request.kind for other in row.requests):
            row.requests = (*row.requests, request)
            self._asked[request.run_id] = None


class InMemoryLedgerStore(LedgerStore):
    """Ledgers in memory. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self) -> None:
        self._ledgers: dict[str, list[bytes]] = defaultdict(list)
        self._starts: dict[str, list[int]] = defaultdict(list)  # the number of the first record of each of these
        self._counts: dict[str, int] = defaultdict(int)
        self._heads: dict[str, str | None] = {}  # of the ledgers that are chained, the hash of the last record
        self._by_key: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self._lock = threading.RLock()

    @property
    def aio(self) -> AsyncInMemoryLedgerStore:
        """This store for async callers."""
        return AsyncInMemoryLedgerStore(self)

    def append(self, record: StepRecord) -> None:
        """Add a record at the end of its run's ledger."""
        self._append(record)

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        """Add it as a link of the ledger's chain, if there is one or shall be; the record as stored."""
        check_id(record.run_id, "run_id of a record")
        clean = replace(record, effect=admit(record.effect, "effect"), result=admit(record.result, "result"))
        with self._lock:
            head = self._heads.get(record.run_id)
            if chain or head is not None:
                (clean,) = linked([clean], head)
                head = clean.record_hash
            self._put(record.run_id, encode_records([clean]), 1, None, head)
        return clean

    def list(self, run_id: str) -> list[dict[str, Any]]:
        """The run's records as dicts, oldest first."""
        return [record_dict(record) for record in self._records(run_id)]

    def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> tuple[Records, int]:
        """At most `limit` records numbered above `after`, and the number of the last of them: the next `after`."""
        after = max(0, after)
        found = self._records(run_id, after, max(1, limit))
        return [record_dict(record) for record in found], after + len(found)

    def count(self, run_id: str) -> int:
        """How many records the run has."""
        return self._counts.get(run_id, 0)

    def count_many(self, run_ids: Iterable[str]) -> dict[str, int]:
        """How many records each of these runs has."""
        return {run_id: self.count(run_id) for run_id in run_ids}

    def metrics_many(self, run_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per run `steps`, `llm_calls`, `tool_calls` and `tokens_total` of its completed records."""
        return {run_id: metrics_of(self._records(run_id)) for run_id in run_ids}

    def delete(self, run_id: str) -> int:
        """Forget the run's records; how many there were."""
        with self._lock:
            self._ledgers.pop(run_id, None)
            self._starts.pop(run_id, None)
            self._heads.pop(run_id, None)
            for entry in [entry for entry in self._by_key if entry[0] == run_id]:
                del self._by_key[entry]
            return self._counts.pop(run_id, 0)

    def _put(self, run_id: str, data: bytes, count: int, lookup_key: str | None, head: str | None) -> None:
        with self._lock:
            if head is not None:
                self._heads[run_id] = head
            self._ledgers[run_id].append(data)
            self._starts[run_id].append(self.count(run_id) + 1)
            self._counts[run_id] += count
            if lookup_key is not None:
                self._by_key[run_id, lookup_key].append(data)

    def _records(self, run_id: str, after: int = 0, limit: int | None = None) -> Stored:
        """Records numbered above `after`; only what holds them is decoded."""
        with self._lock:
            starts = self._starts.get(run_id, [])
            first = max(0, bisect_right(starts, after + 1) - 1)
            rows = self._ledgers.get(run_id, [])[first : None if limit is None else first + limit + 1]
            skipped = after + 1 - starts[first] if starts else 0
        found = [record for row in rows for record in decode_records(row, run_id)]
        found = found[skipped : None if limit is None else skipped + limit]
        fill(found, lambda: self._newest_first(run_id, first + 1))
        return found

    def _newest_first(self, run_id: str, rows: int | None = None) -> Iterator[StepRecord]:
        """The records of the first so many rows, or of all."""
        with self._lock:
            some = self._ledgers.get(run_id, [])[:rows]
        for row in reversed(some):
            yield from reversed(decode_records(row, run_id))


class AsyncInMemoryRunStore(AsyncFinder):
    """`InMemoryRunStore` for async callers; `.sync` is the store itself."""

    def __init__(self, sync: InMemoryRunStore | None = None) -> None:
        self.sync = sync or InMemoryRunStore()

    async def save(self, run: RunState, *, overwrite: bool = False) -> None:
        """See `InMemoryRunStore.save`."""
        self.sync.save(run, overwrite=overwrite)

    async def create_if_absent(self, run: RunState) -> tuple[RunState, bool]:
        """See `InMemoryRunStore.create_if_absent`."""
        return self.sync.create_if_absent(run)

    async def load(self, run_id: str) -> RunState | None:
        """See `InMemoryRunStore.load`."""
        return self.sync.load(run_id)

    async def delete(self, run_id: str) -> bool:
        """See `InMemoryRunStore.delete`."""
        return self.sync.delete(run_id)

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        wait_reason: WaitReason | None = None,
        workflow_id: str | None = None,
        limit: int = 100,
    ) -> list[RunState]:
        """See `InMemoryRunStore.list_runs`."""
        return self.sync.list_runs(status=status, wait_reason=wait_reason, workflow_id=workflow_id, limit=limit)

    async def list_due_wait_until(self, *, now_iso: str, limit: int = 100) -> list[RunState]:
        """See `InMemoryRunStore.list_due_wait_until`."""
        return self.sync.list_due_wait_until(now_iso=now_iso, limit=limit)

    async def list_children(self, *, parent_run_id: str, status: RunStatus | None = None) -> list[RunState]:
        """See `InMemoryRunStore.list_children`."""
        return self.sync.list_children(parent_run_id=parent_run_id, status=status)

    async def list_run_index(
        self,
        *,
        status: RunStatus | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        root_only: bool = False,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """See `InMemoryRunStore.list_run_index`."""
        return self.sync.list_run_index(
            status=status, workflow_id=workflow_id, session_id=session_id, root_only=root_only, limit=limit
        )

    async def _find(self, query: Query) -> Page:
        return self.sync._find(query)

    def join(self, ledger_store: object) -> Backend | None:
        """See `InMemoryRunStore.join`."""
        return self.sync.join(ledger_store) if type(self) is AsyncInMemoryRunStore else None


class AsyncInMemoryLedgerStore:
    """`InMemoryLedgerStore` for async callers; `.sync` is the store itself."""

    def __init__(self, sync: InMemoryLedgerStore | None = None) -> None:
        self.sync = sync or InMemoryLedgerStore()

    async def append(self, record: StepRecord) -> None:
        """See `InMemoryLedgerStore.append`."""
        self.sync.append(record)

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return self.sync._append(record, chain=chain)

    async def count(self, run_id: str) -> int:
        """See `InMemoryLedgerStore.count`."""
        return self.sync.count(run_id)

    async def count_many(self, run_ids: Iterable[str]) -> dict[str, int]:
        """See `InMemoryLedgerStore.count_many`."""
        return self.sync.count_many(run_ids)

    async def metrics_many(self, run_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """See `InMemoryLedgerStore.metrics_many`."""
        return self.sync.metrics_many(run_ids)

    async def list_after(self, *, run_id: str, after: int, limit: int = 1000) -> tuple[Records, int]:
        """See `InMemoryLedgerStore.list_after`."""
        return self.sync.list_after(run_id=run_id, after=after, limit=limit)

    async def delete(self, run_id: str) -> int:
        """See `InMemoryLedgerStore.delete`."""
        return self.sync.delete(run_id)

    async def list(self, run_id: str) -> list[dict[str, Any]]:
        """See `InMemoryLedgerStore.list`."""
        return self.sync.list(run_id)
