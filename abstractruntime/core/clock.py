"""Time as an object: the one place that reads the clock or sleeps.

Instants are stored as UTC text of fixed width (`2026-01-31T09:00:00.000000+00:00`), so that they sort as text. What
a user gives is parsed by `parse_instant`: ISO 8601, a trailing `Z` allowed, a text without offset taken as UTC.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec


class Clock(Protocol):
    """What the runtime needs of time. Give your own to skip days in a test."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def iso(at: datetime) -> str:
    """UTC text of fixed width: `iso(datetime(2026, 1, 31, tzinfo=UTC)) == "2026-01-31T00:00:00.000000+00:00"`."""
    text: str = msgspec.to_builtins(at if at.tzinfo is UTC else at.astimezone(UTC))  # quicker than isoformat
    return f"{text[:-1]}+00:00" if len(text) == _WITH_MICROSECONDS else f"{text[:-1]}.000000+00:00"


def utc_now_iso() -> str:
    """The machine's present instant as stored text."""
    return iso(SYSTEM_CLOCK.now())


def parse_instant(text: str) -> datetime:
    """Read an ISO 8601 instant as UTC; `ValueError` names the text that is none.

    >>> parse_instant("2026-01-31T10:00:00+02:00")
    datetime.datetime(2026, 1, 31, 8, 0, tzinfo=datetime.timezone.utc)
    """
    try:
        at = datetime.fromisoformat(text.strip())
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{text!r} is no instant; write ISO 8601, as in 2026-01-31T09:00:00+00:00") from error


def micros(text: str) -> int:
    """Microseconds since 1970 of an instant as text: what stores index."""
    return epoch_micros(parse_instant(text))


def instant_text(at: int) -> str:
    """The instant so many microseconds after 1970, as stored text."""
    return iso(_EPOCH + at * _MICROSECOND)


def epoch_micros(at: datetime) -> int:
    """Microseconds since 1970 of an aware instant."""
    return (at - _EPOCH) // _MICROSECOND


_WITH_MICROSECONDS = len("2026-01-31T00:00:00.000001Z")
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
