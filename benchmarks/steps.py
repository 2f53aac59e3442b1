"""Durable steps per second, processor time per step and bytes per step, on SQLite and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    SqliteDatabase,
)

from . import raw
from .table import Row, row
from .workload import KINDS, WARM_UP, Spent, drive, handle, warm, workflow

#: how many runs move at the same time, and how many steps each of them takes in a full benchmark
_STEPS = {1: 2000, 10: 500, 100: 200, 1000: 30}

#: ratios to raw sqlite3 that are aimed at
_AIMS = {1: 0.7, 100: 0.5, 1000: 0.5}

#: the number of runs whose processor time and bytes are shown
_TYPICAL = 100


class Round(msgspec.Struct, frozen=True):
    """One measurement and its baseline."""

    figure: Spent
    baseline: Spent
    #: steps of one commit, on average
    batch: float = 0.0
    disk_bytes: int = 0
    data_bytes: int = 0


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """All rows about steps. `scale` is the number of steps relative to a full benchmark."""
    cases = [(kind, runs) for kind in KINDS for runs in _STEPS]
    on_sqlite: dict[tuple[str, int], list[Round]] = {case: [] for case in cases}
    in_memory: dict[tuple[str, int], list[Round]] = {case: [] for case in cases}
    for _ in range(rounds):
        for kind, runs in cases:
            steps = max(2, round(_STEPS[runs] * scale))
            on_sqlite[kind, runs].append(_on_sqlite(folder, kind, runs, steps))
            in_memory[kind, runs].append(asyncio.run(_in_memory(kind, runs, steps)))
    for (kind, runs), found in on_sqlite.items():
        batch = sum(one.batch for one in found) / len(found)
        what = f"{kind} steps, SQLite FULL, {_runs(runs)}"
        baseline = f"raw sqlite3, same rows, {batch:.0f} per commit"
        yield row(what, "steps/s", _rates(found), baseline, least_ratio=_AIMS.get(runs))
    for (kind, runs), found in in_memory.items():
        yield row(f"{kind} steps, in memory, {_runs(runs)}", "steps/s", _rates(found), "encode into a dict")
    for where, measured in (("SQLite FULL", on_sqlite), ("in memory", in_memory)):
        for kind in KINDS:
            cpu = [(one.figure.cpu, one.baseline.cpu) for one in measured[kind, _TYPICAL]]
            yield row(f"CPU per {kind} step, {where}, {_runs(_TYPICAL)}", "us", cpu, "the same writer's CPU")
    for kind in KINDS:
        grown = [
            (one.disk_bytes / one.figure.steps, one.data_bytes / one.figure.steps) for one in on_sqlite[kind, _TYPICAL]
        ]
        yield row(f"disk per {kind} step, {_runs(_TYPICAL)}", "bytes", grown, "bytes of its records")


def _on_sqlite(folder: Path, kind: str, runs: int, steps: int) -> Round:
    with TemporaryDirectory(dir=folder) as name:
        file, other = Path(name, "runtime.sqlite3"), Path(name, "raw.sqlite3")
        figure, recorder = asyncio.run(_driven_on_sqlite(file, other, kind, runs, steps))
        commits = sum(len(batch) for batch in recorder.batches)
        assert commits == figure.steps * (2 if kind == "outside" else 1)
        return Round(
            figure,
            # the logs are gone, carried over by the last connection that closed
            disk_bytes=file.stat().st_size - other.stat().st_size,
            data_bytes=recorder.data_bytes,
            batch=commits / len(recorder.batches),
            baseline=raw.write_to_sqlite(other, recorder.batches, figure.steps),
        )


async def _driven_on_sqlite(file: Path, other: Path, kind: str, runs: int, steps: int) -> tuple[Spent, raw.Recorder]:
    """Drive runs on a database in `file`, then as far again with every batch noted, for what that costs is not theirs.

    `other` is a copy from before the noted half.
    """
    database, spec = SqliteDatabase(file), workflow(kind)
    runtime = AsyncRuntime(
        run_store=AsyncSqliteRunStore(database),
        ledger_store=AsyncSqliteLedgerStore(database),
        effect_handlers={"host": handle},
    )
    async with database, runtime:
        ids = await warm(runtime, spec, runs)
        figure = await drive(runtime, spec, ids, steps)
        raw.copy(database, other)
        recorder = raw.Recorder(database)
        await drive(runtime, spec, ids, steps)
        return figure, recorder


async def _in_memory(kind: str, runs: int, steps: int) -> Round:
    run_store, ledger_store = InMemoryRunStore(), InMemoryLedgerStore()
    spec = workflow(kind)
    async with AsyncRuntime(
        run_store=run_store, ledger_store=ledger_store, effect_handlers={"host": handle}
    ) as runtime:
        ids = await warm(runtime, spec, runs)
        figure = await drive(runtime, spec, ids, steps)
    return Round(figure, raw.write_to_dict(run_store, ledger_store, ids, figure.steps + WARM_UP * runs))


def _rates(found: list[Round]) -> list[tuple[float, float]]:
    return [(one.figure.rate, one.baseline.rate) for one in found]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
