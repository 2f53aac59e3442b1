"""One database as the backend that the runtime commits to: see `storage.base.Backend`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from ...core.backend import Due
from ...core.clock import micros
from ...core.errors import StoreCorrupt
from ...core.models import Message, StepRecord
from ...core.streams import DEFAULT_KEPT, EVER, Listening, Unread
from ..base import Loaded, Write
from . import due as moves
from . import messages as streams
from . import reads, writes
from .lane import Lane
from .locks import OwnerLocks
from .reads import run_of, stored_run
from .statements import QUERIES, first

T = TypeVar("T")

_RENEW_LEASE = QUERIES["renew_lease"]
_LEASE_OF_OWNER = QUERIES["lease_of_owner"]
_DELETE_LEASE = QUERIES["delete_lease"]


class SqliteBackend:
    """Runs and ledgers of one SQLite file. Usable from any number of event loops and threads at once."""

    atomic = True
    shared = True

    def __init__(self, writer: Lane, readers: tuple[Lane, ...], locks: OwnerLocks | None) -> None:
        self._writer, self._readers, self._locks = writer, readers, locks
        self._turn = 0

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run a reading function of a connection; it sees everything that was acknowledged before."""
        self._turn = (self._turn + 1) % len(self._readers)
        found: T = await self._readers[self._turn].run(operation)
        return found

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run a writing function of a connection, whole and durable, even if the caller is cancelled meanwhile."""
        found: T = await self._writer.run(operation, carry=True)
        return found

    async def load(self, run_id: str) -> Loaded | None:
        stored = await self.read(partial(stored_run, run_id=run_id))
        if stored is None:
            return None
        revision, records, head, data, requests, root = stored
        run = run_of(run_id, records, data, head)
        run.root_run_id = run.root_run_id or root  # which a migration has found for a run of an older version
        if run.revision != revision:
            raise StoreCorrupt(
                f"Run {run_id!r} is at revision {revision}, but its data is of revision {run.revision}. "
                "Restore it from a backup."
            )
        return Loaded(run=run, requests=requests)

    def commit(self, write: Write) -> Coroutine[Any, Any, None]:
        return self._writer.run(write, carry=True)

    async def save(self, write: Write) -> None:
        """A commit that may also change where the run comes from: a host's `save()`."""
        await self.write(partial(writes.store, write=write, identity=True))

    async def append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        """Add one record behind the last one of its run, as a link of its chain if there is one or shall be."""
        return await self.write(partial(writes.append, record=record, chain=chain))

    async def send(self, messages: Iterable[Message], *, keep: int = DEFAULT_KEPT) -> None:
        await self.write(partial(streams.send, messages=tuple(messages), keep=keep))

    async def next_message(self, stream: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        return await self.read(lambda connection: streams.next_message(connection, stream, name, read, since))

    async def listening(self, message: Message, *, limit: int = 10_000) -> Listening:
        return await self.read(partial(streams.listening, message=message, limit=limit))

    async def nudged(self, *, stream: str | None = None, since: str = EVER, limit: int = 100) -> list[str]:
        return await self.read(partial(streams.nudged, stream=stream, since=micros(since), limit=limit))

    async def due(
        self,
        now: str,
        *,
        limit: int,
        passing: Collection[str] = (),
        watched: Collection[str] = (),
        owner: str = "",
    ) -> list[Due]:
        held = (lambda other: True) if self._locks is None else self._locks.is_held
        asked = moves.Asked(now=now, limit=limit, passing=[*passing], watched=[*watched], owner=owner)
        return await self.read(lambda connection: moves.due(connection, asked, held))

    async def next_due(self, after: str) -> str | None:
        return await self.read(partial(moves.next_due, after=after))

    async def landed(self, run_id: str, commit_id: str) -> bool:
        return await self.read(partial(reads.landed, run_id=run_id, commit_id=commit_id))

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        return await self.read(partial(reads.records_by_key, run_id=run_id, key=key))

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        return await self.read(partial(reads.records, run_id=run_id, after=after, limit=limit))

    async def renew(self, owner: str, until: int) -> None:
        def renew(connection: sqlite3.Connection) -> None:
            if self._locks is not None:  # before the lease: whoever sees the lease may ask for the lock
                self._locks.take(owner)
            connection.execute(_RENEW_LEASE, (owner, until))

        await self.write(renew)

    async def release(self, owner: str) -> None:
        def release(connection: sqlite3.Connection) -> None:
            if self._locks is not None:  # first, for without it the lease is void, should there be no room to delete it
                self._locks.release(owner)
            connection.execute(_DELETE_LEASE, (owner,))

        await self.write(release)

    async def alive(self, owner: str, now: int) -> bool:
        def look(connection: sqlite3.Connection) -> tuple[bool, bool]:
            until = first(connection, _LEASE_OF_OWNER, (owner,))
            if until is None:
                return False, False
            held = self._locks is None or self._locks.is_held(owner)
            return held and until > now, not held

        alive, orphaned = await self.read(look)
        if orphaned:
            await self.write(lambda connection: connection.execute(_DELETE_LEASE, (owner,)).rowcount)
        return alive

    async def tree_tokens(self, root_run_id: str) -> int:
        return await self.read(partial(reads.tree_tokens, root_run_id=root_run_id))

    async def claims(self, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
        return await self.read(partial(reads.claims, run_ids=list(run_ids)))

    def __del__(self) -> None:
        for lane in {self._writer, *self._readers}:  # nobody can use them any more
            lane.abandon()
