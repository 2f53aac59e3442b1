"""One connection in its own thread, and the queue in front of it.

aiosqlite gives the thread and answers to the event loop that asked. A lane asks it once: for a pump that runs in the
thread for as long as the lane is open, takes operations from a queue and hands results back to whichever loop each
came from. So a lane belongs to no loop: any number of loops and threads use it at once, and none of them may spoil it
by being closed. The one call to aiosqlite is made on the portal's loop, which is never closed.

Whatever queued up while the last batch was on its way is the next batch; a lone operation never waits for company.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from enum import Enum
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any
from weakref import WeakSet

import aiosqlite
from msgspec import Struct

from ...core import portal
from ...core.errors import StoreClosed
from ...core.shielding import finish
from .batch import Failed, Operation

log = logging.getLogger("abstractruntime.storage.sqlite")

#: operations of one batch: at some 10 microseconds each, nobody waits long for the end of one
MOST_OPERATIONS = 512

#: of more operations than this only half are taken at once: while these are flushed, the loop prepares the next
WORTH_HALVING = 64

#: seconds that a cancelled caller waits for what it started
CARRIED_THROUGH = 60.0

Connect = Callable[[], sqlite3.Connection]
Run = Callable[[sqlite3.Connection, Sequence[Operation]], list[Any]]


class _State(Enum):
    IDLE = "not opened yet, or failed to open"
    OPEN = "opening or open"
    CLOSING = "takes nothing more, and a farewell is in the queue"
    CLOSED = "closed for good"


_OPEN = _State.OPEN


class _Ticket(Struct, eq=False):
    """An operation on its way, and who waits for it. Only the waiter's loop touches `future` and `settled`."""

    operation: Operation | None
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[Any] | None = None
    settled: bool = False


class Lane:
    """A connection that opens at the first operation. `connect` and `run` are called in its thread alone.

    `run` gets a batch of operations and returns the outcome of each. A lane that failed to open fails what was
    queued and tries again with the next operation. After a fork the child's lane opens anew.
    """

    def __init__(self, name: str, connect: Connect, run: Run) -> None:
        self._name, self._connect, self._run_batch = name, connect, run
        self._begin()
        _LANES.add(self)

    def _begin(self) -> None:
        self._lock = Lock()
        self._state = _State.IDLE
        self._queue: SimpleQueue[_Ticket] = SimpleQueue()
        self._raw: sqlite3.Connection | None = None
        self._connection: aiosqlite.Connection | None = None
        self._serving: asyncio.Task[None] | None = None

    async def run(self, operation: Operation, *, carry: bool = False) -> Any:
        """What the operation returns or raises.

        With `carry` a cancelled caller waits for the end of the operation, at most `CARRIED_THROUGH` seconds, before
        the cancellation is raised; without, it leaves at once and the result is dropped.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        ticket = _Ticket(operation, loop, future)
        # Put first, look second: a pump that ends says so first and looks for tickets second, so none is forgotten.
        self._queue.put(ticket)
        if self._state is not _OPEN:
            self._start()
        try:
            return await future
        except asyncio.CancelledError:
            if carry and not ticket.settled:
                ticket.future = loop.create_future()
                await finish(ticket.future, within=CARRIED_THROUGH)
            raise

    async def close(self) -> None:
        """Run what is queued and close the connection; what comes later raises StoreClosed."""
        with self._lock:
            if self._state in (_State.IDLE, _State.CLOSED):
                self._state = _State.CLOSED
                return
            self._state = _State.CLOSING
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._queue.put(_Ticket(None, loop, future))
        self._fail_if_closed()
        await future

    def abandon(self) -> None:
        """Close without waiting: for a database that was dropped and never closed."""
        if self._state is _State.OPEN:
            self._state = _State.CLOSING
            self._queue.put(_Ticket(None))

    # Opening and failing, in any thread

    def _start(self) -> None:
        with self._lock:
            if self._state is _State.IDLE:
                self._state = _State.OPEN
                Thread(target=self._open, name=f"{self._name}-opener", daemon=True).start()
                return
        self._fail_if_closed()

    def _open(self) -> None:
        try:
            portal.call(self._serve)
        except BaseException as error:  # a boundary between threads: raised where the operations are awaited
            with self._lock:
                self._state = _State.IDLE if self._state is _State.OPEN else _State.CLOSED
                self._fail_queued(error)

    async def _serve(self) -> None:
        connection = aiosqlite.Connection(self._connected, 64)
        # aiosqlite has no option for it, and a lane that nobody closed must not keep the process alive.
        connection._thread.daemon = True
        await connection
        self._connection = connection
        self._serving = asyncio.create_task(self._finished(connection), name=self._name)

    async def _finished(self, connection: aiosqlite.Connection) -> None:
        await in_thread(connection, self._pump)
        await connection.close()

    def _fail_if_closed(self) -> None:
        with self._lock:
            if self._state is _State.CLOSED:
                self._fail_queued(StoreClosed(f"{self._name} was closed. Make a new SqliteDatabase."))

    def _fail_queued(self, error: BaseException) -> None:
        tickets = []
        while not self._queue.empty():
            tickets.append(self._queue.get())
        # All are taken before the first is handed back: what somebody tries then is not this failure's any more.
        _hand_back([(ticket, None if ticket.operation is None else Failed(error)) for ticket in tickets])

    # In the connection's thread

    def _connected(self) -> sqlite3.Connection:
        self._raw = self._connect()
        return self._raw

    def _pump(self) -> None:
        queue, raw = self._queue, self._raw
        assert raw is not None
        farewell: _Ticket | None = None
        while farewell is None:
            tickets = [queue.get()]
            waiting = queue.qsize()
            waiting = waiting // 2 if waiting > WORTH_HALVING else waiting
            tickets += [queue.get() for _ in range(min(waiting, MOST_OPERATIONS - 1))]
            if self._state is not _State.OPEN:
                farewell, tickets = self._before_farewell(tickets)
            if tickets:
                _hand_back(list(zip(tickets, self._outcomes(raw, tickets), strict=True)))
            tickets = []  # an idle lane holds on to no run
        raw.close()
        self._raw, self._state = None, _State.CLOSED
        self._fail_if_closed()
        _hand_back([(farewell, None)])

    def _before_farewell(self, tickets: list[_Ticket]) -> tuple[_Ticket | None, list[_Ticket]]:
        last = next((index for index, ticket in enumerate(tickets) if ticket.operation is None), None)
        if last is None:
            return None, tickets
        for late in tickets[last + 1 :]:
            self._queue.put(late)  # to be failed like whatever else comes after the end
        return tickets[last], tickets[:last]

    def _outcomes(self, raw: sqlite3.Connection, tickets: list[_Ticket]) -> list[Any]:
        try:
            return self._run_batch(raw, [ticket.operation for ticket in tickets if ticket.operation is not None])
        except BaseException as error:  # a boundary between threads: raised where the operations are awaited
            log.exception("%s: a batch of %d operations failed", self._name, len(tickets))
            if raw.in_transaction:
                raw.rollback()
            return [Failed(error)] * len(tickets)


async def in_thread(connection: aiosqlite.Connection, function: Callable[[], None]) -> None:
    """Run a function in the connection's thread: the one private call to aiosqlite, whose public ones are too fine."""
    execute: Any = connection._execute
    await execute(function)


def _hand_back(outcomes: Sequence[tuple[_Ticket, Any]]) -> None:
    """One wake-up per loop, however many of its tasks wait. Nobody waits on a loop that was closed."""
    loops = {ticket.loop for ticket, _ in outcomes}
    for loop in loops:
        if loop is None:
            continue
        own = outcomes if len(loops) == 1 else [pair for pair in outcomes if pair[0].loop is loop]
        try:
            loop.call_soon_threadsafe(_settle, own)
        except RuntimeError:
            log.debug("The loop that waited for %d operations was closed", len(own))


def _settle(outcomes: Sequence[tuple[_Ticket, Any]]) -> None:
    for ticket, outcome in outcomes:
        ticket.settled = True
        future = ticket.future
        if future is None or future.done():
            continue
        if isinstance(outcome, Failed):
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)


_LANES: WeakSet[Lane] = WeakSet()
_INHERITED: list[Any] = []


def _start_anew_after_fork() -> None:
    """The threads did not come along. Their connections are kept: closing one would meddle with the parent's locks."""
    for lane in list(_LANES):
        _INHERITED.append((lane._raw, lane._connection, lane._serving, lane._queue))
        closed = lane._state in (_State.CLOSING, _State.CLOSED)
        lane._begin()
        if closed:
            lane._state = _State.CLOSED


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)
