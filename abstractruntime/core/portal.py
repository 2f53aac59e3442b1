"""The one event loop behind the blocking API, and the way back from it to the thread that called.

A daemon thread, one per process and started by the first call, runs the loop. `drive` runs an async function there and
blocks; meanwhile the coroutine may hand sync code back with `here`, and it runs in the blocked thread. So nodes,
policies and ledger callbacks see the thread and the context variables of the program that called, and may themselves
make blocking calls, to any depth.

It works in scripts, in threads, in notebooks and under a running loop, which it blocks like any blocking call. The
thread never keeps the interpreter alive, and after `os.fork` the child starts one of its own. A loop of our own and not
`anyio.run` with a `BlockingPortal`: that one pays a round trip each for start and result, and ends for all callers when
one task calls `sys.exit()`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, Token, copy_context
from functools import partial, wraps
from queue import Empty, SimpleQueue
from threading import Lock, Thread, get_ident
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

import anyio

from .clock import SYSTEM_CLOCK

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

log = logging.getLogger("abstractruntime.portal")

#: seconds that an interrupted call has to end before its caller leaves it
GRACE = 5.0


def call(fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on the portal's loop and block until it ends.

    Returns what it returns and raises what it raises, with its traceback. The coroutine sees a copy of the caller's
    context variables; `here` runs inline in it. An interrupt (Ctrl-C) cancels it as in `drive`. Raises RuntimeError
    when called from the portal's own loop, where it could only wait for itself.
    """
    return _Call(partial(fn, *args, **kwargs), attended=False).run()


def drive(fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `call`, and the blocked thread meanwhile runs what the coroutine hands to `here`, in order.

    Whatever was handed over before the coroutine ended has run when this returns. An exception that is no `Exception`
    (KeyboardInterrupt from Ctrl-C, SystemExit in a function that is served) cancels the coroutine and is raised again
    once that has ended, or after `GRACE` seconds; until then functions are still served, so that it can end in order.
    A second interrupt leaves at once. A coroutine that somebody else cancels raises
    `concurrent.futures.CancelledError` here.
    """
    return _Call(partial(fn, *args, **kwargs), attended=True).run()


def attended() -> bool:
    """Whether a blocked caller waits to run what is handed to `here`; where none does, `here` would run it inline.

    For the hot path, which saves a coroutine when it knows that it need not wait.
    """
    current = _CURRENT.get()
    return current is not None and current.attended()


async def here(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a sync function in the thread that is blocked in `drive`, and await its result; else run it inline.

    Inline also means: in a task that outlived the call it belonged to, because that thread has left, and on any other
    loop than the portal's. The function sees the context variables of its thread, and those named by `carry` as they
    are in this coroutine. Its exception is raised here. Cancelling the await withdraws a function that has not begun;
    one that runs is left to end, and its result is dropped.
    """
    current = _CURRENT.get()
    if current is None or not current.attended():
        return fn(*args, **kwargs)
    return await current.serve(partial(fn, *args, **kwargs))


def carry(var: ContextVar[T]) -> ContextVar[T]:
    """Let every `here` carry this variable's value into the caller's thread, and so into calls made from there.

    >>> CHAIN = carry(ContextVar("chain", default=()))
    """
    _CARRIED.append(var)
    return var


def twin(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A blocking method made of an async one, for a class that keeps its async object in `aio`.

    Signature and docstring are those of the async method; it runs under `drive`::

        class SqliteRunStore:
            save = twin(AsyncSqliteRunStore.save)
    """

    @wraps(method)
    def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return drive(method, self.aio, *args, **kwargs)

    return blocking


class _Outcome(NamedTuple):
    value: Any = None
    error: BaseException | None = None


class _Box:
    """An outcome on its way from one thread to the other.

    It is taken out when it arrives: an error whose traceback leads to something that still holds it would be a cycle,
    and keep the variables of all its frames until the next garbage collection.
    """

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome = _Outcome()

    def take(self) -> Any:
        """Return the value or raise the error."""
        (value, error), self.outcome = self.outcome, _Outcome()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error


class _Request(_Box):
    """A function to run in the caller's thread, and the future that says when it has."""

    __slots__ = ("_carried", "_fn", "reply")

    def __init__(self, fn: partial[Any], reply: asyncio.Future[None]) -> None:
        super().__init__()
        self._fn = fn
        self._carried = [(var, value) for var in _CARRIED if (value := var.get(_UNSET)) is not _UNSET]
        self.reply = reply

    def perform(self) -> None:
        """Run it, in the caller's thread. What is no `Exception` ends the whole call instead of being an answer."""
        if self.reply.cancelled():
            return
        tokens: list[Token[Any]] = [var.set(value) for var, value in self._carried]
        try:
            self.outcome = _Outcome(self._fn())
        except Exception as error:  # a border between threads: it is raised again in the coroutine that asked
            self.outcome = _Outcome(error=error)
        finally:
            for token in reversed(tokens):
                token.var.reset(token)
        self.reply.get_loop().call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        if not self.reply.done():
            self.reply.set_result(None)
        elif self.outcome.error is not None:
            log.warning("%s failed after the call was cancelled", _name(self._fn), exc_info=self.outcome.error)
            self.outcome = _Outcome()


class _Call(_Box, Generic[T]):
    """One crossing from a blocked thread to the loop.

    The coroutine's side runs on the loop alone and the caller's side in its thread alone; between them there are only
    the inbox, where None says that the coroutine has ended, and callbacks handed to the loop, which come in order.
    """

    __slots__ = ("_attended", "_called_off", "_context", "_fn", "_inbox", "_pending", "_portal", "_scope", "_under_way")

    def __init__(self, fn: partial[Coroutine[Any, Any, T]], *, attended: bool) -> None:
        super().__init__()
        self._portal = _portal_of_this_process(fn)
        self._fn = fn
        self._attended = attended
        self._context = copy_context()
        self._inbox: SimpleQueue[_Request | None] = SimpleQueue()
        self._pending: set[asyncio.Future[None]] = set()
        #: of the coroutine while it runs
        self._scope: anyio.CancelScope | None = None
        #: from when its task is made until it has ended; and whether it was cancelled before it came to run
        self._under_way = self._called_off = False

    # In the caller's thread

    def run(self) -> T:
        try:
            self._portal.loop.call_soon_threadsafe(self._begin)
            # Without a timeout: it wakes at once, and on POSIX a signal still interrupts it in the main thread.
            while (request := self._inbox.get()) is not None:
                request.perform()
        except BaseException as interrupt:  # Ctrl-C, or sys.exit() in a served function: raised again below
            self._stop(interrupt)
            raise
        if isinstance(self.outcome.error, asyncio.CancelledError):
            # Raised as it is, it would cancel the task of a caller that blocks a loop of its own.
            raise concurrent.futures.CancelledError(f"{_name(self._fn)} was cancelled")
        result: T = self.take()
        return result

    def _stop(self, interrupt: BaseException) -> None:
        """Cancel the coroutine and wait for its end, for so long."""
        give_up = SYSTEM_CLOCK.monotonic() + GRACE
        loop = self._portal.loop
        try:
            loop.call_soon_threadsafe(self._cancel)
            while (request := self._inbox.get(timeout=max(0.0, give_up - SYSTEM_CLOCK.monotonic()))) is not None:
                request.perform()
        except Empty:
            loop.call_soon_threadsafe(self._abandon)
            interrupt.add_note(f"The call did not end within {GRACE:g} s of its cancellation and was left behind.")
        except BaseException:  # a second Ctrl-C: leave at once
            loop.call_soon_threadsafe(self._abandon)
            raise
        else:
            if isinstance(self.outcome.error, Exception):
                interrupt.add_note(f"While it was cancelled, the call failed: {self.outcome.error!r}")

    # On the loop

    def attended(self) -> bool:
        """Whether the caller is there to serve this very code: a worker thread or another loop may inherit the link."""
        return self._attended and get_ident() == self._portal.ident

    async def serve(self, fn: partial[R]) -> R:
        reply: asyncio.Future[None] = self._portal.loop.create_future()
        request = _Request(fn, reply)
        self._pending.add(reply)
        try:
            self._inbox.put(request)
            await reply
        finally:
            self._pending.discard(reply)
        result: R = request.take()
        return result

    def _begin(self) -> None:
        self._under_way = True
        task = self._portal.loop.create_task(self._main(), context=self._context)
        self._portal.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._portal.tasks.discard)

    async def _main(self) -> None:
        _CURRENT.set(self)
        try:
            # Rather than Task.cancel(): what the coroutine shields stays shielded. Made here and not in `_begin`, for
            # outside of tasks anyio does not know which loop it is on where sniffio is installed.
            with anyio.CancelScope() as self._scope:
                if self._called_off:
                    self._scope.cancel()
                self.outcome = _Outcome(await self._fn())
        except BaseException as error:  # a border between threads: it is raised again in the caller's
            self.outcome = _Outcome(error=error)
        self._attended, self._under_way, self._scope = False, False, None
        self._inbox.put(None)

    def _cancel(self) -> None:
        if not self._under_way:  # the interrupt came before the coroutine began, or after its end was read
            self._inbox.put(None)
            return
        self._called_off = True
        if self._scope is not None:
            self._scope.cancel()
        self._withdraw()

    def _abandon(self) -> None:
        self._attended = False
        self._withdraw()

    def _withdraw(self) -> None:
        """Nobody will answer what was asked up to now."""
        for reply in self._pending:
            reply.cancel()


class _Portal:
    """The thread and its loop."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        ready: SimpleQueue[tuple[asyncio.AbstractEventLoop, int]] = SimpleQueue()
        Thread(target=self._run, args=(ready,), name="abstractruntime-portal", daemon=True).start()
        self.loop, self.ident = ready.get()

    def _run(self, ready: SimpleQueue[tuple[asyncio.AbstractEventLoop, int]]) -> None:
        loop = asyncio.new_event_loop()
        ready.put((loop, get_ident()))
        root: asyncio.Task[None] | None = None
        while True:
            if root is None or root.done():  # done: somebody cancelled every task there is
                root = loop.create_task(anyio.sleep_forever())
            try:
                loop.run_until_complete(root)
            except BaseException:  # sys.exit() in a task stops a loop; who awaits that task is told, the others go on
                log.exception("A task or a callback tried to stop the loop that all blocking calls share; it goes on")

    def keep_tasks(self) -> None:
        """Hold every task of the loop for good: its thread, which holds this object, outlives the interpreter."""
        self.tasks.update(asyncio.all_tasks(self.loop))


_UNSET: Any = object()
_CARRIED: list[ContextVar[Any]] = []
_CURRENT: ContextVar[_Call[Any] | None] = ContextVar("abstractruntime_portal_call", default=None)

_lock = Lock()
_portal: _Portal | None = None
_inherited: list[_Portal | None] = []


def _portal_of_this_process(fn: partial[Any]) -> _Portal:
    global _portal
    if _portal is None:
        with _lock:
            if _portal is None:
                _portal = _Portal()
    if get_ident() == _portal.ident:
        raise RuntimeError(
            f"{_name(fn)} was called through the blocking API from the loop thread that would have to run it. "
            "In async code, and in sync code that an async runtime calls inline, use the async class and await it."
        )
    return _portal


def _name(fn: partial[Any]) -> str:
    """The function's name alone: its arguments may hold what no log should."""
    return getattr(fn.func, "__qualname__", None) or type(fn.func).__qualname__


def _start_anew_after_fork() -> None:
    """The thread did not come along. What is left of it is kept: closing its selector would deafen the parent's."""
    global _lock, _portal
    _inherited.append(_portal)
    _lock, _portal = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)


def _exit_quietly() -> None:
    """Tasks that a program left behind would complain, one by one, when its variables are cleared away."""
    if _portal is not None:
        _portal.keep_tasks()


atexit.register(_exit_quietly)
