"""Following a ledger: first what is stored, then what comes, until the run has ended.

A follower reads by offset from the store and keeps one page, so a slow one holds up no writer, grows no memory and
misses no record. A commit of its own runtime wakes it at once; those of other processes it finds by looking again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from functools import cached_property
from typing import Any

import anyio
from msgspec import Struct

from .core.clock import Clock
from .core.codec import record_dict
from .core.journal import Journal
from .core.models import TERMINAL, RunState
from .core.portal import drive

#: records that are read at once
PAGE = 200

#: no ledger has so many records; stores count in 64 bits
_MOST = 2**62


class LedgerEntry(Struct, frozen=True, kw_only=True):
    """A record and its number, counted from 1: `follow_ledger(after=entry.offset)` goes on behind it."""

    offset: int
    record: dict[str, Any]


class Following:
    """Who follows ledgers through one runtime, so that its end is theirs."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal, self.clock = journal, clock
        #: how often the runtime was closed: a follower of before ends, one of later lives
        self.closings = 0
        #: whether nobody is to follow any more
        self.stopped = False
        self._followers: set[Follower] = set()

    def close(self) -> None:
        """End every follower there is."""
        self.closings += 1
        for follower in tuple(self._followers):
            follower.ring()

    def stop(self) -> None:
        """The same, and of those that are still to come."""
        self.stopped = True
        self.close()

    def add(self, follower: Follower) -> None:
        """Let commits of its run, and the end of the runtime, ring at this one."""
        self._followers.add(follower)
        self.journal.watchers.setdefault(follower.run_id, set()).add(follower.ring)

    def drop(self, follower: Follower) -> None:
        """Ring no more."""
        self._followers.discard(follower)
        watchers = self.journal.watchers.get(follower.run_id, set())
        watchers.discard(follower.ring)
        if not watchers:
            self.journal.watchers.pop(follower.run_id, None)


class Follower:
    """One reader's way through one ledger. In use it is a context; `ring` is called from any thread."""

    def __init__(self, following: Following, run_id: str, *, after: int, follow: bool, poll_seconds: float) -> None:
        if not poll_seconds > 0:
            raise ValueError(f"poll_seconds must be above 0, found {poll_seconds!r}.")
        self.run_id = run_id
        self._following, self._follow, self._poll_seconds = following, follow, poll_seconds
        self._offset = min(max(0, after), _MOST)
        self._closings = following.closings
        #: whether the state may say that the run has ended; decoding it for every commit would be dear
        self._look = True
        self._rung = False
        self._nap: tuple[asyncio.AbstractEventLoop, anyio.CancelScope] | None = None

    def __enter__(self) -> Follower:
        self._following.add(self)
        return self

    def __exit__(self, *raised: object) -> None:
        self._following.drop(self)

    @property
    def closed(self) -> bool:
        """Whether the runtime was closed since, or nobody is to follow any more."""
        return self._following.stopped or self._closings != self._following.closings

    def ring(self, run: RunState | None = None) -> None:
        """Something happened: a commit of the run, or the end of the runtime."""
        self._look = self._look or (run is not None and run.status in TERMINAL)
        self._rung = True  # first this and then the look at the nap; `_sleep` does it the other way around
        if self._nap is not None:
            loop, scope = self._nap
            with suppress(RuntimeError):  # that loop was closed: nobody sleeps there any more
                loop.call_soon_threadsafe(scope.cancel)

    async def next_page(self) -> list[LedgerEntry]:
        """The next records, as soon as there are any; none at the end. Raises `UnknownRun`."""
        while not self.closed:
            self._rung = False
            # The state before the records: whatever a run wrote that has ended is stored then.
            ended = self._look and await self._has_ended()
            if self.closed:
                break
            found = await self._following.journal.stored.records(self.run_id, after=self._offset, limit=PAGE)
            if found:
                page = [
                    LedgerEntry(offset=offset, record=record_dict(record))
                    for offset, record in enumerate(found, self._offset + 1)
                ]
                self._offset += len(page)
                return page
            if ended or not self._follow:
                break
            await self._sleep()
        return []

    async def _has_ended(self) -> bool:
        self._look = False
        loaded = await self._following.journal.load(self.run_id)
        ended = loaded.run.status in TERMINAL
        self._look = self._look or ended  # until the end is reached: it may be taken back
        return ended

    async def _sleep(self) -> None:
        with anyio.CancelScope() as scope:
            self._nap = (asyncio.get_running_loop(), scope)
            try:
                if not (self._rung or self.closed):
                    await self._following.clock.sleep(self._poll_seconds)
                    self._look = True  # another process may have ended the run
            finally:
                self._nap = None


class FollowsLedgers:
    """What following adds to `AsyncRuntime`."""

    _journal: Journal
    _clock: Clock

    @cached_property
    def _following(self) -> Following:
        return Following(self._journal, self._clock)

    def follow_ledger(
        self, run_id: str, *, after: int = 0, follow: bool = True, poll_seconds: float = 0.5
    ) -> AsyncGenerator[LedgerEntry, None]:
        """The run's records behind number `after`, each as a `LedgerEntry`: what is stored, then what comes.

        It ends behind the last record of a run that has ended, and when the runtime is closed; with `follow=False` at
        the end of what is stored. To go on later, give the `offset` of the last entry as `after`. Commits of this
        runtime come at once, those of other processes after at most `poll_seconds`. Raises `UnknownRun`.

        >>> async for entry in rt.follow_ledger(run_id):
        ...     print(entry.offset, entry.record["status"])
        """
        return _entries(Follower(self._following, run_id, after=after, follow=follow, poll_seconds=poll_seconds))

    def stop_following(self) -> None:
        """End every `follow_ledger`, those that are under way and those to come; all else goes on until `aclose`.

        For a server that is to shut down and waits for its open responses to end before it closes the runtime. May be
        called from any thread, and twice.
        """
        self._following.stop()


async def _entries(follower: Follower) -> AsyncGenerator[LedgerEntry, None]:
    with follower:
        while page := await follower.next_page():
            for entry in page:
                if follower.closed:
                    return
                yield entry


def blocking_entries(follower: Follower) -> Generator[LedgerEntry, None, None]:
    """The same for a thread without a loop; it blocks while there is nothing to give."""
    with follower:
        while page := drive(follower.next_page):
            for entry in page:
                if follower.closed:
                    return
                yield entry
