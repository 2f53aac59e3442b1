"""What importing the package costs in a fresh interpreter, beside importing its base dependencies alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from .table import Row, row

_PACKAGE = "abstractruntime"
_DEPENDENCIES = "anyio, aiosqlite, aiofiles, msgspec, asyncio"
_LISTED = 5


def rows(*, rounds: int) -> Iterator[Row]:
    """The row of the import."""
    for modules in (_PACKAGE, _DEPENDENCIES):
        _cpu_seconds(modules)  # writes what is not compiled yet
    found = [(_cpu_seconds(_PACKAGE), _cpu_seconds(_DEPENDENCIES)) for _ in range(rounds)]
    yield row(f"import {_PACKAGE}, CPU", "s", found, "its base dependencies alone", most=0.15)


def most_costly() -> list[str]:
    """The modules whose own import takes longest, without what they import in turn."""
    found: list[tuple[int, str]] = []
    for line in _python("-X", "importtime", "-c", f"import {_PACKAGE}").stderr.splitlines():
        own, _, module = line.removeprefix("import time:").rpartition("|")
        microseconds = own.partition("|")[0].strip()
        if microseconds.isdigit():
            found.append((int(microseconds), module.strip()))
    return [f"{microseconds:>8,} us  {module}" for microseconds, module in sorted(found, reverse=True)[:_LISTED]]


def _cpu_seconds(modules: str) -> float:
    """User and system time, above that of a bare interpreter."""
    program = f"from time import process_time; bare = process_time(); import {modules}; print(process_time() - bare)"
    return float(_python("-c", program).stdout)


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter that keeps what it compiled, as a user's does whatever this one was told."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
