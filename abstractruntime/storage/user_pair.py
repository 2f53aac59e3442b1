"""Any two stores as one backend: what a user's own stores, or two databases, get instead of an atomic commit.

The records are appended, then the state is saved, in this order. A crash between the two is found at the next load,
because an end record with the effect's key is taken instead of performing the effect again. A lock per run orders the
writers of this process; other processes are not fenced. Requests to other runs and messages need a joint pair and say
so.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import msgspec

from ..core.backend import Due
from ..core.codec import copy_of_run, decode_records, decode_run
from ..core.errors import RevisionConflict, StoreCorrupt, StoreError
from ..core.models import TERMINAL, Message, RunState, RunStatus, StepRecord
from ..core.streams import DEFAULT_KEPT, EVER, Listening, Unread
from ..core.threads import WorkerThreads
from .base import Backend, Loaded, Write
from .standing import Standings, standing_of

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = WorkerThreads(16)

#: the fields of a run that are not documented ones; its ledger's length cannot be known here
_ENGINE = [name for name in RunState.__struct_fields__[13:] if name != "records"]


def join_stores(run_store: Any, ledger_store: Any) -> Backend:
    """The backend of a pair of stores: a joint, atomic one where the pair allows it, else a `UserPair`."""
    join = getattr(run_store, "join", None)
    backend: Backend | None = join(ledger_store) if callable(join) else None
    return backend if backend is not None else UserPair(run_store, ledger_store)


class UserPair:
    """See the module; the methods are those of `storage.base.Backend`."""

    atomic = False
    shared = False

    def __init__(self, run_store: Any, ledger_store: Any) -> None:
        for store, names in ((run_store, ("save", "load")), (ledger_store, ("append", "list"))):
            missing = [name for name in names if not callable(getattr(store, name, None))]
            if missing:
                found = f"{store!r} has no {' and no '.join(missing)}()"
                raise TypeError(f"{found}; expected a run store and a ledger store")
        self._runs, self._ledgers = run_store, ledger_store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def load(self, run_id: str) -> Loaded | None:
        run = await call(self._runs.load, run_id)
        if run is None:
            return None
        if not isinstance(run, RunState):
            raise StoreCorrupt(f"{type(self._runs).__name__}.load({run_id!r}) returned a {type(run).__name__}.")
        return Loaded(run=_unpacked(copy_of_run(run)))

    async def commit(self, write: Write) -> None:
        run_id = write.run.run_id
        if write.requests:
            raise StoreError("Requests to other runs need a run store and a ledger store that commit together.")
        if write.messages:
            raise self._no_messages()
        for other in write.also:  # first, so that a crash before its own state makes the step write them again
            await self.commit(other)
        lock = self._locks.setdefault(run_id, asyncio.Lock())
        async with lock:
            found = await self.load(run_id)
            if write.if_absent and found is not None:
                return
            revision = found.run.revision if found else None
            if revision != write.expected:
                raise RevisionConflict(run_id, write.expected or 0, revision)
            if write.count:
                for record in decode_records(write.records, run_id):
                    await call(self._ledgers.append, record)
            if not write.landing:
                await call(self._runs.save, _packed(decode_run(write.data, run_id), revision or 0))

    async def send(self, messages: Iterable[Message], *, keep: int = DEFAULT_KEPT) -> None:
        """Raises StoreError."""
        raise self._no_messages()

    async def next_message(self, stream: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        """There are none."""
        return None

    async def listening(self, message: Message, *, limit: int = 10_000) -> Listening:
        """Raises StoreError."""
        raise self._no_messages()

    async def nudged(self, *, stream: str | None = None, since: str = EVER, limit: int = 100) -> list[str]:
        """Nobody is."""
        return []

    async def due(
        self,
        now: str,
        *,
        limit: int,
        passing: Collection[str] = (),
        watched: Collection[str] = (),
        owner: str = "",
    ) -> list[Due]:
        """As far as the run store can list runs: those that run, and those whose time has come."""
        passed = {*passing, *watched}
        most = limit + len(passed)
        timers = await self._listed("list_due_wait_until", now_iso=now, limit=most)
        running = await self._listed("list_runs", status=RunStatus.RUNNING, limit=most)
        standings = Standings()
        for run in (*timers, *running):
            standings.put(run.run_id, standing_of(_unpacked(copy_of_run(run))))
        return standings.due((), (), now=now, limit=limit, passing=passed)

    async def next_due(self, after: str) -> str | None:
        """Nobody can say: whoever asks has to look again."""
        return None

    async def _listed(self, name: str, **query: Any) -> list[RunState]:
        method = getattr(self._runs, name, None)
        return [] if method is None else list(await call(method, **query))

    def _no_messages(self) -> StoreError:
        return StoreError(
            f"{self._runs!r} and {self._ledgers!r} do not commit together, so they keep no events; nothing was sent. "
            "Use a run store and a ledger store on one SqliteDatabase, in one folder of JSON files, or in memory."
        )

    async def landed(self, run_id: str, commit_id: str) -> bool:
        loaded = await self.load(run_id)
        if loaded and loaded.run.commit_id == commit_id:
            return True
        landing = bool(loaded and loaded.run.intent)  # of a landing there are records and no state
        return landing and any(record.commit_id == commit_id for record in await self.records(run_id))

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        return [record for record in await self.records(run_id) if record.idempotency_key == key]

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        found = [as_record(row, run_id) for row in await call(self._ledgers.list, run_id)]
        return found[after : None if limit is None else after + limit]

    async def renew(self, owner: str, until: int) -> None:
        """Nobody outside this process could read it."""

    async def release(self, owner: str) -> None:
        """Nothing to give up."""

    async def alive(self, owner: str, now: int) -> bool:
        """Other processes are not seen from here."""
        return False

    async def tree_tokens(self, root_run_id: str) -> int:
        """As far as the run store can list children: else of this run alone."""
        list_children = getattr(self._runs, "list_children", None)
        total, left, seen = 0, [root_run_id], {root_run_id}
        while left:
            run_id = left.pop()
            loaded = await self.load(run_id)
            total += 0 if loaded is None else loaded.run.tokens
            children = [] if list_children is None else await call(list_children, parent_run_id=run_id)
            found = {child.run_id for child in children} - seen
            left += found
            seen |= found
        return total

    async def claims(self, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
        found: dict[str, tuple[str | None, bool]] = {}
        for run_id in run_ids:
            loaded = await self.load(run_id)
            if loaded is not None and loaded.run.status in TERMINAL:
                found[run_id] = (None, True)
        return found


async def call(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a method of a user's store, be it sync or async; a sync one runs in a worker thread."""
    if inspect.iscoroutinefunction(method):
        return await method(*args, **options)
    result = await _THREADS.run(partial(method, *args, **options))
    return await result if inspect.isawaitable(result) else result


async def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a worker thread."""
    result: T = await _THREADS.run(partial(fn, *args, **kwargs))
    return result


def as_record(row: Any, run_id: str) -> StepRecord:
    """What a user's ledger store lists, as a record. Raises StoreCorrupt."""
    try:
        return msgspec.convert(row, StepRecord, strict=False)
    except msgspec.ValidationError as error:
        raise StoreCorrupt(f"The ledger of run {run_id!r} holds what is no record: {error}") from error


def _packed(run: RunState, revision: int) -> RunState:
    """The run as a store is given it that may keep only the documented fields: the others travel in `_runtime`.

    `revision` is the stored one, because a store of ours raises it by one itself.
    """
    engine = {name: msgspec.to_builtins(getattr(run, name)) for name in _ENGINE}
    run.vars = {**run.vars, "_runtime": {**run.vars.get("_runtime", {}), "engine": engine}}
    run.revision = revision
    return run


def _unpacked(run: RunState) -> RunState:
    runtime = dict(run.vars.get("_runtime") or {})
    engine = runtime.pop("engine", None)
    if engine is None:
        return run
    full = msgspec.convert({**msgspec.to_builtins(run), **engine}, RunState)
    full.vars = {**run.vars, "_runtime": runtime}
    full.revision = max(run.revision, full.revision)  # above: a host has saved it since
    return full
