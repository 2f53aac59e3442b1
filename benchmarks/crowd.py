"""What 100,000 runs that wait cost a driver: its memory, a list of them, and how soon one of them is woken."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectType,
    RunState,
    SqliteDatabase,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK
from abstractruntime.storage.sqlite.schema import open_connection

from .driving import wakes
from .table import Row, row

_RUNS, _AT_ONCE, _LISTED, _LISTS, _WAKES = 100_000, 1_000, 100, 20, 30

#: seconds of which the processor time of an idle driver is taken
_IDLE = 3.0

_REPORT = """
import asyncio, sys
from pathlib import Path
from benchmarks.crowd import report

asyncio.run(report(Path(sys.argv[1]), float(sys.argv[2])))
"""
_RAW_LIST = """
SELECT r.run_id, r.workflow_id, s.data FROM waits w JOIN states s ON s.id = w.run JOIN runs r ON r.id = w.run
ORDER BY w.run DESC LIMIT ?
"""


def ask(run: RunState, ctx: object) -> StepPlan:
    """Wait for an answer, or a time that is far away."""
    payload = {"wait_key": f"key-{run.vars['number']}", "until": "2100-01-01T00:00:00Z"}
    return StepPlan("ask", Effect(EffectType.WAIT_EVENT, payload, "answer"))


ASK: WorkflowSpec[Any] = WorkflowSpec("ask", "ask", {"ask": ask})


class Report(msgspec.Struct):
    """What one process found: MB, milliseconds, and milliseconds of processor time per second."""

    rss: float
    list_waits: float
    raw_list: float
    wake: float
    idle: float


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of the crowd, which is made once."""
    runs = max(100, round(_RUNS * scale))
    with TemporaryDirectory(dir=folder) as name:
        asyncio.run(_gather(Path(name, "crowd.db"), runs))
        asyncio.run(_gather(Path(name, "few.db"), 1))
        idle = max(0.5, _IDLE * scale)
        crowd, few = Path(name, "crowd.db"), Path(name, "few.db")
        pairs = [(_reported(crowd, idle), _reported(few, idle)) for _ in range(rounds)]
    what, none = f"{runs:,} runs wait", "while one waits"
    yield row(f"memory of a driver, {what}", "MB", [(many.rss, one.rss) for many, one in pairs], none)
    yield row(f"processor time, idle, {what}", "ms/s", [(many.idle, one.idle) for many, one in pairs], none)
    yield row(f"due to running, p50, {what}", "ms", [(many.wake, one.wake) for many, one in pairs], none)
    lists = [(many.list_waits, many.raw_list) for many, _ in pairs]
    yield row(f"a page of {_LISTED} waits, {what}", "ms", lists, "raw sqlite3, undecoded")


async def _gather(file: Path, runs: int) -> None:
    async with SqliteDatabase(file, synchronous="NORMAL") as database:
        stores: dict[str, Any] = {
            "run_store": AsyncSqliteRunStore(database),
            "ledger_store": AsyncSqliteLedgerStore(database),
        }
        async with AsyncRuntime(**stores) as rt:
            for first in range(0, runs, _AT_ONCE):
                numbers = range(first, min(runs, first + _AT_ONCE))
                await asyncio.gather(*(rt.run(ASK, vars={"number": number}) for number in numbers))


def _reported(file: Path, idle: float) -> Report:
    command = [sys.executable, "-c", _REPORT, str(file), str(idle)]
    found = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(found.stdout, type=Report)


async def report(file: Path, seconds: float) -> None:
    """Measure in this process, with so many idle seconds, and print what was found."""
    registry = WorkflowRegistry()
    registry.register(ASK)
    async with AsyncRuntime.open(f"sqlite:///{file}") as rt:
        async with AsyncScheduler(rt, registry):
            await SYSTEM_CLOCK.sleep(0.2)
            begun = time.process_time()
            await SYSTEM_CLOCK.sleep(seconds)
            idle = (time.process_time() - begun) / seconds * 1000
            rss = _rss()
        took = []
        for _ in range(_LISTS):
            start = time.perf_counter()
            await rt.find_waits(limit=_LISTED)
            took.append(time.perf_counter() - start)
    raw = _raw_list(file)
    wake, _ = await wakes(file, _WAKES)
    print(
        msgspec.json.encode(
            Report(rss=rss, list_waits=median(took) * 1000, raw_list=raw, wake=wake, idle=idle)
        ).decode()
    )


def _raw_list(file: Path) -> float:
    connection = open_connection(str(file), synchronous="FULL", busy_timeout=30.0)
    try:
        return _median(lambda: connection.execute(_RAW_LIST, (_LISTED,)).fetchall())
    finally:
        connection.close()


def _median(work: Callable[[], object]) -> float:
    took = []
    for _ in range(_LISTS):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return median(took) * 1000


def _rss() -> float:
    """MB of this process that are in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 1.0  # only Linux says so in a file
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
