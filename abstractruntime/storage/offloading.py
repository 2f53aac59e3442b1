"""Stores that move large values to artifacts: checkpoints of ended runs and ledgers stay small.

The engine always reads values. Readers of the stores get references (`{"$artifact": id}`), and values with
`resolve=True`. Artifacts are stored before the commit that refers to them; when that never lands they are left over,
and go with the run's other artifacts.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..core.backend import Backend, Loaded, Write
from ..core.codec import REFUSALS, copy_of_run, decode_run, encode, encode_records, encode_run, json_safe
from ..core.models import TERMINAL, Commit, RunState, StepRecord
from .base import LedgerStore, RunStore
from .decorating import AsyncLedgerDecorator, Decorator, LedgerDecorator
from .large_values import DEFAULT_MAX_INLINE_BYTES, has_moved_values, loaded_value, offload_large_values, put_back
from .user_pair import call, in_thread

__all__ = [
    "AsyncOffloadingLedgerStore",
    "AsyncOffloadingRunStore",
    "OffloadingLedgerStore",
    "OffloadingRunStore",
    "offload_large_values",
]

Records = list[dict[str, Any]]


class Shelf(Struct, frozen=True, kw_only=True):
    """Where large values go, and what is large: bytes of compact JSON."""

    store: Any
    limit: int

    def run(self, run: RunState) -> RunState:
        """An ended run without its large values; the run itself if it has none or has not ended.

        Moved out are values inside `output` and inside what vars hold under names that begin with `_`; the author's own
        vars stay.
        """
        if run.status not in TERMINAL or self.limit <= 0:
            return run
        inner = {key: value for key, value in run.vars.items() if key.startswith("_")}
        if _size({"vars": inner, "output": run.output}) <= self.limit:
            return run
        moved = {key: self._moved(value, run.run_id, f"vars.{key}", "checkpoint") for key, value in inner.items()}
        output = self._moved(run.output, run.run_id, "output", "checkpoint")
        return replace(run, vars={**run.vars, **moved}, output=output)

    def record(self, record: StepRecord) -> StepRecord:
        """A record without its large values; the record itself if it has none."""
        if self.limit <= 0 or _size({"effect": record.effect, "result": record.result}) <= self.limit:
            return record
        effect = self._moved(record.effect, record.run_id, "effect", "ledger")
        result = self._moved(
            record.result, record.run_id, "result", "ledger", replace=not isinstance(record.result, dict)
        )
        return replace(record, effect=effect, result=result)

    def _moved(self, value: Any, run_id: str, path: str, source: str, *, replace: bool = False) -> Any:
        return offload_large_values(
            value,
            artifact_store=self.store,
            run_id=run_id,
            max_inline_bytes=self.limit,
            base_tags={"source": source},
            root_path=path,
            allow_root_replace=replace,
        )


def _size(fields: dict[str, Any]) -> int:
    """Bytes of compact JSON. Raises `UnsafeValue`, naming the place, for what is none."""
    try:
        return len(encode(fields))
    except REFUSALS:
        for name, value in fields.items():
            json_safe(value, name)
        raise


def shelf(artifact_store: Any, max_inline_bytes: int | None) -> Shelf:
    """Where a decorator puts large values; without a number the environment's, or 256 KiB.

    Raises TypeError for what is no artifact store with blocking methods (or our async twin of one), ValueError.
    """
    store: Any = getattr(artifact_store, "sync", artifact_store)  # it is asked in a worker thread
    if not callable(getattr(store, "load", None)) or inspect.iscoroutinefunction(getattr(store, "store", None)):
        raise TypeError(f"artifact_store must be an ArtifactStore, with blocking store() and load(); found {store!r}.")
    given: Any = max_inline_bytes
    if given is None:
        given = os.environ.get("ABSTRACTRUNTIME_MAX_INLINE_BYTES") or DEFAULT_MAX_INLINE_BYTES
    try:
        return Shelf(store=store, limit=int(given))
    except (TypeError, ValueError):
        raise ValueError(f"max_inline_bytes must be a whole number of bytes, found {given!r}.") from None


class Offloading(Struct, frozen=True, kw_only=True):
    """The layer of a runtime: see `core.layers.Offload`."""

    runs: Shelf | None = None
    ledgers: Shelf | None = None

    async def commit(self, commit: Commit) -> Commit:
        """The commit as it is stored; only one with something large crosses to a thread."""
        changes: dict[str, Any] = {}
        if self.runs is not None and commit.run.status in TERMINAL:
            run = await in_thread(self.runs.run, commit.run)
            if run is not commit.run:
                changes["run"] = run
        if self.ledgers is not None and commit.records and len(encode_records(commit.records)) > self.ledgers.limit:
            shelf = self.ledgers
            changes["records"] = await in_thread(lambda: tuple(shelf.record(record) for record in commit.records))
        return replace(commit, **changes) if changes else commit

    @property
    def stores(self) -> list[Any]:
        """The artifact stores that hold what was moved out."""
        return [shelf.store for shelf in (self.runs, self.ledgers) if shelf is not None]


class ResolvingBackend:
    """A backend as the engine sees it: what was moved out is read in its place. See `storage.base.Backend`."""

    def __init__(self, inner: Backend, artifact_stores: Sequence[Any]) -> None:
        self._inner, self._load = inner, partial(loaded_value, artifact_stores=artifact_stores)
        self.atomic = inner.atomic
        self.renew, self.release, self.alive = inner.renew, inner.release, inner.alive
        self.landed, self.claims = inner.landed, inner.claims
        self.send, self.next_message = inner.send, inner.next_message
        self.shared, self.due, self.next_due = inner.shared, inner.due, inner.next_due
        self.listening, self.nudged, self.tree_tokens = inner.listening, inner.nudged, inner.tree_tokens

    async def load(self, run_id: str) -> Loaded | None:
        loaded = await self._inner.load(run_id)
        if loaded is not None and loaded.run.status in TERMINAL and has_moved_values(encode_run(loaded.run)):
            loaded.run = await in_thread(resolved_run, loaded.run, self._load)
        return loaded

    async def commit(self, write: Write) -> None:
        await self._inner.commit(write)

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        return await self._resolved(await self._inner.find(run_id, key))

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        return await self._resolved(await self._inner.records(run_id, after=after, limit=limit))

    async def _resolved(self, records: list[StepRecord]) -> list[StepRecord]:
        moved = [record for record in records if has_moved_values(encode([record.effect, record.result]))]
        if moved:
            await in_thread(_resolve_records, moved, self._load)
        return records


def resolved_run(run: RunState, load: Any) -> RunState:
    """The run with all its values; the run itself if none was moved out."""
    data = encode_run(run)
    if not has_moved_values(data):
        return run
    full = decode_run(data, run.run_id)
    full.vars, full.output = put_back(full.vars, load), put_back(full.output, load)
    return full


def _resolve_records(records: list[StepRecord], load: Any) -> None:
    for record in records:
        record.effect, record.result = put_back(record.effect, load), put_back(record.result, load)


def _resolved_rows(rows: Records, load: Any) -> Records:
    return [put_back(row, load) if has_moved_values(msgspec.json.encode(row)) else row for row in rows]


class OffloadingRunStore(Decorator, RunStore):
    """Moves what is large out of the checkpoints of ended runs, around any run store.

    Large is what has more than `max_inline_bytes` bytes of compact JSON (256 KiB, or what the environment variable
    ABSTRACTRUNTIME_MAX_INLINE_BYTES says; 0 or less moves nothing) inside `output` or inside vars whose names begin
    with `_`. The author's own vars stay as they are. A run that goes on gets its values back.
    """

    def __init__(self, inner: Any, *, artifact_store: Any, max_inline_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.shelf = shelf(artifact_store, max_inline_bytes)

    @property
    def aio(self) -> AsyncOffloadingRunStore:
        """The same for async callers."""
        store, limit = self.shelf.store, self.shelf.limit
        return AsyncOffloadingRunStore(self.inner, artifact_store=store, max_inline_bytes=limit)

    def save(self, run: RunState, **options: Any) -> None:
        """Save the run as the inner store does, without its large values if it has ended."""
        kept = self.shelf.run(run)
        self.inner.save(kept, **options)
        run.revision, run.commit_id = kept.revision, kept.commit_id

    def load(self, run_id: str, *, resolve: bool = False) -> RunState | None:
        """The stored run, or None; what was moved out are references, and with `resolve` values again."""
        run: RunState | None = self.inner.load(run_id)
        load = partial(loaded_value, artifact_stores=[self.shelf.store])
        return run if run is None or not resolve else resolved_run(copy_of_run(run), load)


class AsyncOffloadingRunStore(Decorator, RunStore):
    """`OffloadingRunStore` for async callers, around a sync or an async store."""

    def __init__(self, inner: Any, *, artifact_store: Any, max_inline_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.shelf = shelf(artifact_store, max_inline_bytes)

    async def save(self, run: RunState, **options: Any) -> None:
        """See `OffloadingRunStore.save`."""
        kept = await in_thread(self.shelf.run, run)
        await call(self.inner.save, kept, **options)
        run.revision, run.commit_id = kept.revision, kept.commit_id

    async def load(self, run_id: str, *, resolve: bool = False) -> RunState | None:
        """See `OffloadingRunStore.load`."""
        run: RunState | None = await call(self.inner.load, run_id)
        load = partial(loaded_value, artifact_stores=[self.shelf.store])
        return run if run is None or not resolve else await in_thread(resolved_run, copy_of_run(run), load)


class OffloadingLedgerStore(LedgerDecorator, LedgerStore):
    """Moves what is large inside `effect` and `result` out of ledger records, around any ledger store.

    `max_inline_bytes` is that of `OffloadingRunStore`. Reads give references, and values with `resolve=True`.
    """

    def __init__(self, inner: Any, *, artifact_store: Any, max_inline_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.shelf = shelf(artifact_store, max_inline_bytes)

    @property
    def aio(self) -> AsyncOffloadingLedgerStore:
        """The same for async callers."""
        store, limit = self.shelf.store, self.shelf.limit
        return AsyncOffloadingLedgerStore(self.inner, artifact_store=store, max_inline_bytes=limit)

    def list(self, run_id: str, *, resolve: bool = False) -> Records:
        """The run's records as dicts, oldest first."""
        return self._shown(super().list(run_id), resolve)

    def list_after(self, *, run_id: str, after: int, limit: int = 1000, resolve: bool = False) -> tuple[Records, int]:
        """At most `limit` records numbered above `after`, and the number of the last of them: the next `after`."""
        rows, cursor = self.inner.list_after(run_id=run_id, after=after, limit=limit)
        return self._shown(rows, resolve), cursor

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return super()._append(self.shelf.record(record), chain=chain)

    def _shown(self, rows: Records, resolve: bool) -> Records:
        return _resolved_rows(rows, partial(loaded_value, artifact_stores=[self.shelf.store])) if resolve else rows


class AsyncOffloadingLedgerStore(AsyncLedgerDecorator, LedgerStore):
    """`OffloadingLedgerStore` for async callers, around a sync or an async store."""

    def __init__(self, inner: Any, *, artifact_store: Any, max_inline_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.shelf = shelf(artifact_store, max_inline_bytes)

    async def list(self, run_id: str, *, resolve: bool = False) -> Records:
        """The run's records as dicts, oldest first."""
        return await self._shown(await super().list(run_id), resolve)

    async def list_after(
        self, *, run_id: str, after: int, limit: int = 1000, resolve: bool = False
    ) -> tuple[Records, int]:
        """At most `limit` records numbered above `after`, and the number of the last of them: the next `after`."""
        rows, cursor = await call(self.inner.list_after, run_id=run_id, after=after, limit=limit)
        return await self._shown(rows, resolve), cursor

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return await super()._append(await in_thread(self.shelf.record, record), chain=chain)

    async def _shown(self, rows: Records, resolve: bool) -> Records:
        load = partial(loaded_value, artifact_stores=[self.shelf.store])
        return await in_thread(_resolved_rows, rows, load) if resolve else rows
