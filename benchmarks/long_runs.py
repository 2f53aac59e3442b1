"""What must not grow: the cost of a step with the length of its run, and memory with the number of waiting runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from abstractruntime import AsyncRuntime, AsyncSqliteLedgerStore, AsyncSqliteRunStore, SqliteDatabase

from .lives import QUESTION
from .table import Row, row
from .workload import drive, warm, workflow

_LATE, _MEASURED = 5_000, 200
_WAITING = 10_000

#: a service that has so many runs waiting, and drives one: what it keeps in memory, in bytes
_SERVICE = """
import asyncio, gc, sys
from pathlib import Path
from benchmarks.long_runs import wait_on

asyncio.run(wait_on(Path(sys.argv[1]), int(sys.argv[2])))
gc.collect()
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(fields["VmRSS"].split()[0]) * 1024)
"""


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of long runs and of many waiting ones."""
    late = max(50, round(_LATE * scale))
    measured = max(10, round(_MEASURED * scale))
    costs = [_on_sqlite(folder, late, measured) for _ in range(rounds)]
    yield row(f"CPU of step {late:,} of one run, SQLite FULL", "us", costs, "of its step 10", most_ratio=1.1)
    if sys.platform == "linux":
        waiting = max(100, round(_WAITING * scale))
        yield row(
            f"memory of a service, {waiting:,} runs waiting",
            "bytes",
            [_memory(folder, waiting)],
            "10 waiting",
            most_ratio=1.05,
        )


def _on_sqlite(folder: Path, late: int, measured: int) -> tuple[float, float]:
    with TemporaryDirectory(dir=folder) as name:
        return asyncio.run(_long(Path(name, "runtime.sqlite3"), late, measured))


async def _long(file: Path, late: int, measured: int) -> tuple[float, float]:
    database, spec = SqliteDatabase(file), workflow("inside")
    runtime = AsyncRuntime(run_store=AsyncSqliteRunStore(database), ledger_store=AsyncSqliteLedgerStore(database))
    async with database, runtime:
        ids = await warm(runtime, spec, 1)
        await drive(runtime, spec, ids, 8)
        early = await drive(runtime, spec, ids, measured)
        await drive(runtime, spec, ids, late - measured - 10)
        return (await drive(runtime, spec, ids, measured)).cpu, early.cpu


async def wait_on(file: Path, waiting: int) -> None:
    """Start so many runs that wait for a person, a thousand at a time, and one more at the end."""
    database = SqliteDatabase(file)
    runtime = AsyncRuntime(run_store=AsyncSqliteRunStore(database), ledger_store=AsyncSqliteLedgerStore(database))
    async with database, runtime:
        for start in range(0, waiting, 1000):
            await asyncio.gather(*(runtime.run(QUESTION) for _ in range(min(1000, waiting - start))))
    async with SqliteDatabase(file) as database:  # as a service does that was started later
        runtime = AsyncRuntime(run_store=AsyncSqliteRunStore(database), ledger_store=AsyncSqliteLedgerStore(database))
        await runtime.run(QUESTION)


def _memory(folder: Path, waiting: int) -> tuple[float, float]:
    with TemporaryDirectory(dir=folder) as name:
        many, few = Path(name, "many.sqlite3"), Path(name, "few.sqlite3")
        for file, count in ((many, waiting), (few, 10)):
            asyncio.run(wait_on(file, count))
        return _resident(many), _resident(few)


def _resident(file: Path) -> float:
    """The memory of a fresh process that drives one run among those that wait in the file."""
    command = [sys.executable, "-c", _SERVICE, str(file), "0"]
    found = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    return float(found.stdout)
