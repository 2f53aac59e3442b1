"""How many effects are performed at once, per type and per concurrency key: whoever comes too late waits its turn.

An effect waits before it is promised, so a run in the queue holds no claim and a crash has nothing to repeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias

from . import portal
from .models import Effect

log = logging.getLogger("abstractruntime")

#: what a host gives as `concurrency_key=`: what an effect shares with those that are counted with it, or None
ConcurrencyKey: TypeAlias = Callable[[Effect], str | None]

_FREE: AbstractAsyncContextManager[None] = nullcontext()


class Line:
    """How many effects of the tick of a run stand in line.

    `changed` is called with 1 when the first comes, and with -1 when the last leaves.
    Once `closed` says so, the tick is to begin nothing more: who stands in line stays there.
    """

    __slots__ = ("_changed", "closed", "length", "run_id")

    def __init__(self, run_id: str, changed: Callable[[int], None], closed: Callable[[], bool]) -> None:
        self.run_id, self._changed, self.closed, self.length = run_id, changed, closed, 0

    @contextmanager
    def stood_in(self) -> Iterator[None]:
        """Stand in line while the block runs."""
        self.length += 1
        if self.length == 1:
            self._changed(1)
        try:
            yield
        finally:
            self.length -= 1
            if self.length == 0:
                self._changed(-1)


#: the line of the tick that the calls around us belong to, where somebody asked for it
LINE: ContextVar[Line | None] = portal.carry(ContextVar("abstractruntime_line", default=None))

#: the types and keys of which the calls around us hold a place: what an effect does for itself needs no second one
_HELD: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("abstractruntime_held", default=())


@contextmanager
def line_of(run_id: str, *, nested: bool) -> Iterator[Line | None]:
    """The line of a tick of this run while the block runs, if it has one.

    A task that an effect began, and that ticks on its own account, has neither that effect's line nor its places.
    """
    line = LINE.get()
    if nested or (line is not None and line.run_id == run_id):
        yield line
        return
    before, held = LINE.set(None), _HELD.set(())
    try:
        yield None
    finally:
        _HELD.reset(held)
        LINE.reset(before)


class Capacity:
    """Places per effect type and per key, for the effects of one runtime. What has no limit never waits.

    `limits={"llm_call": 8}` is per type. With `key`, of all effects for which it says the same, `key_limit` are
    performed at once; or as many as the mapping `key_limit` says of this key, without a limit where it says nothing.
    Raises `ValueError` for what is no number of at least 1. First come, first served, in each line.
    """

    def __init__(
        self,
        limits: Mapping[str, int] | None,
        key: ConcurrencyKey | None = None,
        key_limit: int | Mapping[str, int] | None = None,
    ) -> None:
        if (key is None) != (key_limit is None):
            raise ValueError("concurrency_key says what is counted together and key_limit how much of it: give both.")
        self._limits = _checked_all("effect_limits", limits or {})
        self._key, self._each, self._keys = key, None, dict[str, int]()
        if isinstance(key_limit, Mapping):
            self._keys = _checked_all("key_limit", key_limit)
        elif key_limit is not None:
            self._each = _checked("key_limit", key_limit)
        self._places: dict[tuple[str, str], _Places] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def may_wait(self, effect: Effect) -> bool:
        """Whether the effect may have to wait."""
        return effect.type in self._limits or self._limit_of_key(effect) is not None

    def place(self, effect: Effect) -> AbstractAsyncContextManager[None]:
        """Hold the places that the effect needs; cancelling the wait for them gives the turn to the next."""
        wanted = []
        found = self._limit_of_key(effect)
        if found is not None:
            wanted.append(("key", *found))
        if effect.type in self._limits:
            wanted.append(("type", str(effect.type), self._limits[effect.type]))
        return self._held(wanted) if wanted else _FREE

    def _limit_of_key(self, effect: Effect) -> tuple[str, int] | None:
        if self._key is None:
            return None
        try:
            key = self._key(effect)
        except Exception:  # a boundary: the effect is to be performed whatever the host's function says
            log.exception("concurrency_key could not say the key of %s; it has no limit", effect.type)
            return None
        limit = self._each if key is not None and self._each is not None else self._keys.get(key or "")
        return None if key is None or limit is None else (str(key), limit)

    @asynccontextmanager
    async def _held(self, wanted: list[tuple[str, str, int]]) -> AsyncIterator[None]:
        """The place of the key comes first, so those who wait for a busy key hold nothing that others could use."""
        async with AsyncExitStack() as stack:
            for kind, name, limit in wanted:
                if (kind, name) not in _HELD.get():
                    await stack.enter_async_context(self._one((kind, name), limit))
            yield

    @asynccontextmanager
    async def _one(self, name: tuple[str, str], limit: int) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the first use, or a new loop after asyncio.run ended
            self._loop, self._places = loop, {}
        here = self._places
        places = here.setdefault(name, _Places(limit))
        places.users += 1
        try:
            line = LINE.get()
            if line is not None and places.free.locked():
                with line.stood_in():
                    await _turn_of(places.free, line)
            else:
                await places.free.acquire()
            token = _HELD.set((*_HELD.get(), name))
            try:
                yield
            finally:
                _HELD.reset(token)
                places.free.release()
        finally:
            places.users -= 1
            if not places.users:  # there may be any number of keys
                del here[name]


async def _turn_of(free: asyncio.Semaphore, line: Line) -> None:
    """Return with a place, unless the line is closed by then: that ends by being cancelled alone."""
    await free.acquire()
    if line.closed():
        free.release()
        await asyncio.get_running_loop().create_future()


class _Places:
    """The places of one type or key, and how many hold one or wait for it."""

    __slots__ = ("free", "users")

    def __init__(self, limit: int) -> None:
        self.free, self.users = asyncio.Semaphore(limit), 0


def _checked_all(option: str, limits: Mapping[str, int]) -> dict[str, int]:
    return {str(name): _checked(f"{option}[{str(name)!r}]", limit) for name, limit in limits.items()}


def _checked(what: str, limit: int) -> int:
    if type(limit) is not int or limit < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, found {limit!r}.")
    return limit
