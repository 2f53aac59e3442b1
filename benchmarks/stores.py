"""What decorators and other backends cost: each beside the plain pair, or beside the bare file calls it stands on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abstractruntime import (
    AsyncHashChainedLedgerStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncObservableLedgerStore,
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    EffectCall,
    EffectOutcome,
    FileArtifactStore,
    InMemoryArtifactStore,
    SqliteDatabase,
)

from .table import Row, row
from .workload import Spent, Stopwatch, drive, handle, warm, workflow

#: runs that move at the same time, and steps of each in a full benchmark
_RUNS, _STEPS = 100, 100

#: bytes of a result that is moved out, and of an artifact
_LARGE, _ARTIFACT = 64 << 10, 1 << 20

#: artifacts that are stored, and files that are written
_ARTIFACTS = 64

Decorate = Callable[[Any, Any, Path], tuple[Any, Any]]


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """All rows about stores. `scale` is the amount of work relative to a full benchmark."""
    steps = max(2, round(_STEPS * scale))
    for what, decorate, handler in (
        ("hash-chained ledger", _chained, handle),
        ("observed ledger", _observed, handle),
        ("offloading, nothing large", _offloading, handle),
        ("offloading, 64 KiB results", _offloading, _handle_large),
        ("chained, observed, offloading", _all, handle),
    ):
        pairs = []
        for _ in range(rounds):
            plain = asyncio.run(_on_sqlite(folder, _plain, handler, steps))
            pairs.append((asyncio.run(_on_sqlite(folder, decorate, handler, steps)).rate, plain.rate))
        baseline = "the same without the decorators"
        yield row(f"outside steps, SQLite FULL, {_RUNS} runs: {what}", "steps/s", pairs, baseline)
    for runs, count in ((1, max(2, round(200 * scale))), (_RUNS, max(2, round(10 * scale)))):
        pairs = []
        for _ in range(rounds):
            figure = asyncio.run(_on_files(folder, runs, count))
            pairs.append((figure.rate, _raw_files(folder, figure.steps).rate))
        name = "1 run" if runs == 1 else f"{runs} runs"
        yield row(f"inside steps, JSON files full, {name}", "steps/s", pairs, "write, flush, rename, flush folder")
    count = max(2, round(_ARTIFACTS * scale))
    pairs = [(_artifacts(folder, count).rate, _raw_blobs(folder, count).rate) for _ in range(rounds)]
    yield row("artifacts of 1 MiB stored", "1/s", pairs, "write, flush, rename, flush folder")


def _plain(runs: Any, ledger: Any, folder: Path) -> tuple[Any, Any]:
    return runs, ledger


def _chained(runs: Any, ledger: Any, folder: Path) -> tuple[Any, Any]:
    return runs, AsyncHashChainedLedgerStore(ledger)


def _observed(runs: Any, ledger: Any, folder: Path) -> tuple[Any, Any]:
    observed = AsyncObservableLedgerStore(ledger)
    observed.subscribe(lambda record: None)
    return runs, observed


def _offloading(runs: Any, ledger: Any, folder: Path) -> tuple[Any, Any]:
    options: dict[str, Any] = {"artifact_store": InMemoryArtifactStore(), "max_inline_bytes": 4096}
    return AsyncOffloadingRunStore(runs, **options), AsyncOffloadingLedgerStore(ledger, **options)


def _all(runs: Any, ledger: Any, folder: Path) -> tuple[Any, Any]:
    return _offloading(runs, _observed(runs, AsyncHashChainedLedgerStore(ledger), folder)[1], folder)


async def _handle_large(call: EffectCall) -> EffectOutcome:
    """A large result, another one each time."""
    return EffectOutcome.completed({"text": call.key + "x" * _LARGE})


async def _on_sqlite(folder: Path, decorate: Decorate, handler: Any, steps: int) -> Spent:
    with TemporaryDirectory(dir=folder) as name:
        database = SqliteDatabase(Path(name, "runtime.sqlite3"))
        stores = decorate(AsyncSqliteRunStore(database), AsyncSqliteLedgerStore(database), Path(name))
        async with database:
            return await _driven(stores, "outside", handler, _RUNS, steps)


async def _on_files(folder: Path, runs: int, steps: int) -> Spent:
    with TemporaryDirectory(dir=folder) as name:
        stores = AsyncJsonFileRunStore(name), AsyncJsonlLedgerStore(name)
        return await _driven(stores, "inside", handle, runs, steps)


async def _driven(stores: tuple[Any, Any], kind: str, handler: Any, runs: int, steps: int) -> Spent:
    spec = workflow(kind)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(
            AsyncRuntime(run_store=stores[0], ledger_store=stores[1], effect_handlers={"host": handler})
        )
        ids = await warm(runtime, spec, runs)
        return await drive(runtime, spec, ids, steps)


def _raw_files(folder: Path, commits: int) -> Spent:
    with TemporaryDirectory(dir=folder) as name, Stopwatch() as watch:
        for number in range(commits):
            _write(Path(name), f"run_{number % 10}.json", b"x" * 1500)
    return watch.spent(commits)


def _artifacts(folder: Path, count: int) -> Spent:
    contents = [os.urandom(_ARTIFACT) for _ in range(count)]
    with TemporaryDirectory(dir=folder) as name:
        store = FileArtifactStore(name)
        store.store(b"opened", run_id="r")
        with Stopwatch() as watch:
            for content in contents:
                store.store(content, run_id="r")
    return watch.spent(count)


def _raw_blobs(folder: Path, count: int) -> Spent:
    contents = [os.urandom(_ARTIFACT) for _ in range(count)]
    with TemporaryDirectory(dir=folder) as name, Stopwatch() as watch:
        for number, content in enumerate(contents):
            _write(Path(name), str(number), content)
    return watch.spent(count)


def _write(folder: Path, name: str, content: bytes) -> None:
    """A file that is whole or not there, durable: what every store of files does at least."""
    draft = folder / "draft"
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / name)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
