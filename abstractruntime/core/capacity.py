"""How many effects of a type are performed at once: whoever comes when all places are taken waits its turn.

An effect waits before it is promised, so a run in the queue holds no claim and a crash has nothing to repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

_FREE: AbstractAsyncContextManager[None] = nullcontext()


class Capacity:
    """Places per effect type, for the effects of one runtime. Types without a limit never wait.

    `limits={"llm_call": 8}`; raises `ValueError` for what is no number of at least 1. First come, first served.
    """

    def __init__(self, limits: Mapping[str, int] | None) -> None:
        self._limits = {str(kind): _checked(str(kind), limit) for kind, limit in (limits or {}).items()}
        self._places: dict[str, asyncio.Semaphore] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def limited(self) -> Collection[str]:
        """The types whose effects may have to wait."""
        return self._limits.keys()

    def place(self, kind: str) -> AbstractAsyncContextManager[None]:
        """Hold a place for an effect of this type; cancelling the wait for it gives the turn to the next."""
        return self._of(kind) if kind in self._limits else _FREE

    def _of(self, kind: str) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the first use, or a new loop after asyncio.run ended
            self._loop, self._places = loop, {}
        return self._places.setdefault(kind, asyncio.Semaphore(self._limits[kind]))


def _checked(kind: str, limit: int) -> int:
    if type(limit) is not int or limit < 1:
        raise ValueError(f"effect_limits[{kind!r}] must be a whole number of at least 1, found {limit!r}.")
    return limit
