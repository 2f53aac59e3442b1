"""How soon runs go on whose process was killed in the middle of their effects, beside runs that nobody killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)

from .table import Row, row
from .workload import Stopwatch

_RUNS = 1000
VICTIM = """
import asyncio, sys
from pathlib import Path
from benchmarks.recovery import hang

asyncio.run(hang(Path(sys.argv[1]), int(sys.argv[2])))
"""


def act(run: RunState, ctx: object) -> StepPlan:
    """One effect outside, and the end."""
    return StepPlan("act", Effect("act", {"amount": 1}, "done"))


WORK: WorkflowSpec[Any] = WorkflowSpec("work", "act", {"act": act})


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """The row of recovery."""
    runs = max(10, round(_RUNS * scale))
    found = [_recovered(folder, runs) for _ in range(rounds)]
    yield row(f"{runs:,} runs after a SIGKILL, to their ends", "s", found, "as many that nobody killed")


def _recovered(folder: Path, runs: int) -> tuple[float, float]:
    with TemporaryDirectory(dir=folder) as name:
        file = Path(name, "runtime.sqlite3")
        command = [sys.executable, "-c", VICTIM, str(file), str(runs)]
        with subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "all in flight\n"
            victim.kill()
        return asyncio.run(_go_on(file, runs)), asyncio.run(_undisturbed(Path(name, "other.sqlite3"), runs))


async def hang(file: Path, runs: int) -> None:
    """Be in the middle of an effect of every run, for ever."""
    inside = 0

    async def act(call: EffectCall) -> EffectOutcome:
        nonlocal inside
        inside += 1
        if inside == runs:
            print("all in flight", flush=True)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    database = SqliteDatabase(file)
    runtime = _runtime(database, act)
    await asyncio.gather(*(runtime.run(WORK, run_id=f"run-{number}") for number in range(runs)))


async def _go_on(file: Path, runs: int) -> float:
    async with SqliteDatabase(file) as database, _runtime(database, _done) as runtime:
        with Stopwatch() as watch:
            ids = (f"run-{number}" for number in range(runs))
            states = await asyncio.gather(*(runtime.tick(workflow=WORK, run_id=run_id) for run_id in ids))
        assert all(state.status is RunStatus.COMPLETED for state in states)
        return watch.seconds


async def _undisturbed(file: Path, runs: int) -> float:
    async with SqliteDatabase(file) as database, _runtime(database, _done) as runtime:
        with Stopwatch() as watch:
            await asyncio.gather(*(runtime.run(WORK, run_id=f"run-{number}") for number in range(runs)))
        return watch.seconds


async def _done(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.completed("done")


def _runtime(database: SqliteDatabase, handler: Any) -> AsyncRuntime:
    return AsyncRuntime(
        run_store=AsyncSqliteRunStore(database),
        ledger_store=AsyncSqliteLedgerStore(database),
        effect_handlers={"act": handler},
    )
