"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta


class StillClock:
    """Time for tests: it moves only by `advance`, which wakes the sleepers whose time has come."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 31, 9, tzinfo=UTC)
        self._passed = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._passed

    @property
    def naps(self) -> list[float]:
        """Seconds that each sleeper still has to go, shortest first."""
        return sorted(due - self._passed for due, future in self._sleepers if not future.done())

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._passed += seconds
        for due, future in self._sleepers:
            if due <= self._passed and not future.done():
                future.get_loop().call_soon_threadsafe(_wake, future)
        self._sleepers = [(due, future) for due, future in self._sleepers if due > self._passed]

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._passed + seconds, future))
        await future


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
