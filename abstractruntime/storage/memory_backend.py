"""The two stores in memory as one backend, with the atomic commit of every other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from ..core.backend import Due, Loaded, Write
from ..core.codec import decode_records, fill
from ..core.errors import RevisionConflict
from ..core.models import Message, StepRecord
from ..core.streams import DEFAULT_KEPT, EVER, Listening, Unread, heard_by

if TYPE_CHECKING:  # they make it
    from .in_memory import InMemoryLedgerStore, InMemoryRunStore


class MemoryBackend:
    """A run store and a ledger store in memory, joined: see `storage.base.Backend`."""

    atomic = True
    shared = False

    def __init__(self, runs: InMemoryRunStore, ledgers: InMemoryLedgerStore) -> None:
        self._runs, self._ledgers = runs, ledgers

    async def load(self, run_id: str) -> Loaded | None:
        with self._runs._lock:
            found = self._runs._loaded(run_id)
            if found is not None:
                found.run.records = self._ledgers.count(run_id)
                found.run.chain_head = self._ledgers._heads.get(run_id)
            return found

    async def commit(self, write: Write) -> None:
        run_id = write.run.run_id
        with self._runs._lock, self._ledgers._lock:
            others = [other for other in write.also if not (other.if_absent and other.run.run_id in self._runs._rows)]
            for one in (write, *others):
                self._check(one)
            for one in (write, *others):
                self._runs._put(one)
            if write.count:
                self._ledgers._put(run_id, write.records, write.count, write.lookup_key, write.run.chain_head)
            for request in write.requests:
                self._runs._ask(request)
            self._put_messages(write.messages, write.keep)

    def _check(self, write: Write) -> None:
        run_id = write.run.run_id
        if write.expected is not None and self._ledgers.count(run_id) != write.expected_records:
            raise RevisionConflict(run_id, write.expected, write.expected, "its ledger grew")
        self._runs._check(write)

    async def send(self, messages: Iterable[Message], *, keep: int = DEFAULT_KEPT) -> None:
        with self._runs._lock:
            self._put_messages(messages, keep)

    async def next_message(self, stream: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        with self._runs._lock:
            return self._runs._streams.stream(stream).unread(stream, name, read, since)

    async def listening(self, message: Message, *, limit: int = 10_000) -> Listening:
        with self._runs._lock:
            streams = self._runs._streams
            if message.message_id in streams.stream(message.stream):
                return Listening()
            loaded = [self._runs._loaded(run_id) for run_id in streams.heard_by(message)[:limit]]
            if not loaded:
                return Listening(names=streams.names(message.stream))
        return heard_by((found.run for found in loaded if found is not None), message)

    async def nudged(self, *, stream: str | None = None, since: str = EVER, limit: int = 100) -> list[str]:
        with self._runs._lock:
            return self._runs._streams.nudged(stream, since, limit)

    async def due(
        self,
        now: str,
        *,
        limit: int,
        passing: Collection[str] = (),
        watched: Collection[str] = (),
        owner: str = "",
    ) -> list[Due]:
        with self._runs._lock:
            nudged = self._runs._streams.nudged(None, EVER, len(self._runs._rows))
            asked, passed = self._runs._asked, (*passing, *watched)
            return self._runs._standings.due(nudged, asked, now=now, limit=limit, passing=passed)

    async def next_due(self, after: str) -> str | None:
        with self._runs._lock:
            return self._runs._standings.next(after)

    def _put_messages(self, messages: Iterable[Message], keep: int) -> None:
        streams = self._runs._streams
        for key in dict.fromkeys([message.stream for message in messages if streams.add(message)]):
            streams.drop(key, keep)

    async def tree_tokens(self, root_run_id: str) -> int:
        with self._runs._lock:
            rows = self._runs._rows.items()
            return sum(row.tokens for run_id, row in rows if root_run_id in (run_id, row.root))

    async def landed(self, run_id: str, commit_id: str) -> bool:
        row = self._runs._rows.get(run_id)
        return bool(row and row.commit_id == commit_id) or any(
            record.commit_id == commit_id for record in self._ledgers._records(run_id)
        )

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        rows = tuple(self._ledgers._by_key.get((run_id, key), ()))
        found = [record for row in rows for record in decode_records(row, run_id)]
        fill(found, lambda: self._ledgers._newest_first(run_id))
        return found

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        return self._ledgers._records(run_id, after, limit)

    async def renew(self, owner: str, until: int) -> None:
        """Nothing to write: the owner lives in this process, which knows it."""

    async def release(self, owner: str) -> None:
        """Nothing to give up."""

    async def alive(self, owner: str, now: int) -> bool:
        """No other process can hold anything here."""
        return False

    async def claims(self, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
        found: dict[str, tuple[str | None, bool]] = {}
        for run_id in run_ids:
            loaded = await self.load(run_id)
            if loaded is not None:
                intent = loaded.run.intent
                cancel = any(request.kind == "cancel" for request in loaded.requests)
                found[run_id] = (intent.token if intent else None, cancel)
        return found
