"""Who performs what: the owner's lease, the effects it has in flight, and how it hears that one is not wanted.

An owner is one runtime in one process. Its lease is one narrow row that says until when it is known to live; beside
it stands an OS lock that the kernel drops when the process dies. A claim on an effect is a token in the run's intent,
written by the commit that claims it, so fencing is the same guard as every commit's: whoever takes over writes
another token, and a late settle finds it there.

One task per owner, alive while effects are in flight, renews the lease and reads back the claims, so a cancel or a
take-over from another process reaches the handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from .backend import Backend
from .clock import Clock, epoch_micros
from .errors import RuntimeClosed, StoreClosed, StoreError, StoreUnclear
from .ids import Ids
from .models import RunState
from .outcomes import CancelSignal, EffectOutcome

log = logging.getLogger("abstractruntime.leases")

#: the owners of this process: nobody knows better than they what is in flight
_PEERS: WeakValueDictionary[str, Leases] = WeakValueDictionary()


def _start_anew_after_fork() -> None:
    """A child process holds nothing of what its parent holds, and may not speak in its name."""
    inherited = list(_PEERS.values())
    _PEERS.clear()
    for leases in inherited:
        leases.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)


class Flight:
    """One effect that this owner performs, while the block runs that is entered with it."""

    __slots__ = ("_flights", "_loop", "_task", "_withdrawn", "claimed", "run_id", "signal", "token")

    def __init__(self, flights: dict[str, Flight], run_id: str, token: str) -> None:
        self._flights, self.run_id, self.token = flights, run_id, token
        self.signal = CancelSignal()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._withdrawn = False
        #: whether the commit of the claim has landed: before that, others cannot know of it
        self.claimed = False

    def __enter__(self) -> Flight:
        self._flights[self.token] = self
        return self

    def __exit__(self, *raised: object) -> None:
        del self._flights[self.token]

    async def attend(self, work: Coroutine[Any, Any, EffectOutcome]) -> EffectOutcome:
        """Await the handler; a cancelled outcome when `cancel` ends it, while the caller's own cancellation is raised.

        Told apart as `asyncio.timeout` does it, by counting what this flight itself asked of the task.
        """
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            outcome = await work
        except asyncio.CancelledError as error:
            if task.cancelling() == 0:  # nobody cancelled us: something that the handler awaited was
                return EffectOutcome.failed(f"Effect handler raised exception: {type(error).__name__} {error}")
            if not self._withdrawn or task.uncancel() > 0:
                raise
            return EffectOutcome.cancelled()
        finally:
            self._task = None
        if self._withdrawn:  # the handler took no notice
            task.uncancel()
        return outcome

    def cancel(self) -> None:
        """Tell the handler to stop. Safe from any thread."""
        self.signal.set()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if self._task is not None and not self._withdrawn:
            self._withdrawn = True
            self._task.cancel()


class Leases:
    """The claims of one owner on one backend."""

    def __init__(self, backend: Backend, clock: Clock, seconds: float) -> None:
        self._backend, self._clock = backend, clock
        self._length = timedelta(seconds=seconds)
        self._interval = min(1.0, seconds / 3)
        self.begin()

    def begin(self) -> None:
        """Become an owner of a fresh name that holds nothing; `next_id()` is a fresh commit id of it."""
        ids = Ids()
        self.owner, self.next_id = ids.owner, ids.next
        self._flights: dict[str, Flight] = {}
        self._until: datetime | None = None
        self._half = self._length / 2
        self._closed = False
        self._renewing: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heart: asyncio.Task[None] | None = None
        _PEERS[self.owner] = self

    async def ensure(self) -> None:
        """Return when the lease runs for at least another half of its length: before every claim.

        Raises `RuntimeClosed` after `close()`.
        """
        if self._closed:
            raise RuntimeClosed("This runtime was closed and claims no effect any more. Make a new one.")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the first use, or a new loop after asyncio.run ended
            self._loop, self._renewing, self._heart = loop, asyncio.Lock(), None
        if self._short_of(self._half):
            assert self._renewing is not None
            async with self._renewing:
                if self._short_of(self._half):
                    await self._renew()

    async def still_holds(self, flight: Flight) -> bool:
        """Whether the claim is still ours, asked just before its effect is performed.

        A process that was stopped for longer than its lease may have lost it; otherwise no store is asked.
        """
        if self._until is not None and self._until > self._clock.now():
            return True
        await self.ensure()
        claims = await self._backend.claims([flight.run_id])
        token, _ = claims.get(flight.run_id, (flight.token, False))
        return token == flight.token

    def flight(self, run_id: str, token: str) -> Flight:
        """A claim, to be held for as long as a block runs; enter it at once."""
        if self._heart is None or self._heart.done():
            self._heart = asyncio.get_running_loop().create_task(self._beat(), name="abstractruntime-lease")
        return Flight(self._flights, run_id, token)

    @property
    def performs(self) -> bool:
        """Whether an effect is in flight here."""
        return bool(self._flights)

    def cancel_flight(self, run_id: str) -> None:
        """Tell the handlers of this run, in this process, to stop."""
        for peer in list(_PEERS.values()):
            for flight in list(peer._flights.values()):
                if flight.run_id == run_id:
                    flight.cancel()

    async def is_held(self, run: RunState) -> bool:
        """Whether somebody alive performs the run's intent."""
        assert run.intent is not None
        if run.owner is None:
            return False
        peer = _PEERS.get(run.owner)
        if peer is not None:
            return run.intent.token in peer._flights
        return await self._backend.alive(run.owner, epoch_micros(self._clock.now()))

    async def close(self) -> None:
        """Give up the lease, for good. Effects still in flight may be taken over."""
        self._closed = True
        if self._heart is not None and self._loop is asyncio.get_running_loop():
            self._heart.cancel()
        if self._until is not None:
            self._until = None
            try:
                await self._release()
            except StoreError as error:
                log.warning("Owner %s could not give up its lease, which expires by itself: %s", self.owner, error)

    async def _release(self) -> None:
        try:
            await self._backend.release(self.owner)
        except StoreUnclear:
            await self._backend.release(self.owner)  # giving it up twice does no harm

    def _short_of(self, span: timedelta) -> bool:
        return self._until is None or self._until - self._clock.now() < span

    async def _renew(self) -> None:
        until = self._clock.now() + self._length
        try:
            await self._backend.renew(self.owner, epoch_micros(until))
        except StoreUnclear:
            await self._backend.renew(self.owner, epoch_micros(until))  # writing it twice does no harm
        self._until = until

    async def _beat(self) -> None:
        last = self._clock.monotonic()
        while self._flights:
            await self._clock.sleep(self._interval)
            now = self._clock.monotonic()
            if self._flights and now - last > self._length.total_seconds():
                log.error("The event loop was blocked for %.1f s, longer than the lease: runs may be lost", now - last)
            last = now
            try:
                if self._short_of(self._length * 2 / 3):
                    await self._renew()
                await self._hear()
            except StoreClosed:
                return  # whoever closed the store has no use for a lease
            except Exception:  # a boundary: the next beat tries again, and an expired lease is what fences us
                log.exception("Owner %s could not renew its lease", self.owner)

    async def _hear(self) -> None:
        """Cancel what was withdrawn or taken over behind our back."""
        flights = [flight for flight in self._flights.values() if flight.claimed]
        claims = await self._backend.claims({flight.run_id for flight in flights})
        for flight in flights:
            token, cancel = claims.get(flight.run_id, (flight.token, False))
            if flight.token in self._flights and (token != flight.token or cancel):
                log.info("Run %s: its effect was withdrawn or taken over", flight.run_id)
                flight.cancel()
