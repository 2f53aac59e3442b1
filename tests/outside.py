"""The world outside the runtime, for tests of several processes: a file with one line per performed effect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from abstractruntime import EffectCall


class Performance(NamedTuple):
    """One performed effect: its idempotency key, the process that did it and in which attempt."""

    key: str
    pid: int
    attempt: int


def perform(world: Path, call: EffectCall) -> None:
    """Do it for good. One write to a file opened for appending, so lines of several processes never mix."""
    line = f"{call.key} {os.getpid()} {call.attempt}\n".encode()
    descriptor = os.open(world, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def performances(world: Path) -> list[Performance]:
    """What was done, in order."""
    if not world.exists():
        return []
    rows = (line.split() for line in world.read_text().splitlines())
    return [Performance(key, int(pid), int(attempt)) for key, pid, attempt in rows]
