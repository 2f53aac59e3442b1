"""What a driver takes to claim, to wake, to hear and to recover runs on SQLite, beside the same without one."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    StepPlan,
    WorkflowRegistry,
    WorkflowSpec,
)
from abstractruntime.core.clock import SYSTEM_CLOCK, SystemClock, iso
from abstractruntime.storage.sqlite.schema import open_connection

from . import recovery
from .table import Row, row
from .workload import Stopwatch

_CLAIMS, _WAKES, _SIGNALS, _TIMERS, _ORPHANS = 2_000, 100, 200, 10_000, 1_000

#: seconds between two timers of an idle driver, and before the first of them
_APART, _BEFORE = 0.02, 0.5

#: seconds that a driver looks at the runs of another process, before that dies
_IN_VAIN = 1.5

#: milliseconds after its due time that a run may move while its driver is idle
_AIM = 20.0


def sleep(run: RunState, ctx: object) -> StepPlan:
    """Wait until the instant in vars."""
    return StepPlan("sleep", Effect(EffectType.WAIT_UNTIL, {"until": run.vars["until"]}, "slept"), "woken")


def hear(run: RunState, ctx: object) -> StepPlan:
    """Wait for an event of the run's session."""
    return StepPlan("hear", Effect(EffectType.WAIT_EVENT, {"name": "go", "scope": "session"}, "heard"), "woken")


class Woken:
    """Workflows that end as soon as they are woken, and when that was, by run."""

    def __init__(self) -> None:
        self.at: dict[str, datetime] = {}
        self._changed = asyncio.Event()
        self.registry = WorkflowRegistry()
        self.sleep: WorkflowSpec[Any] = WorkflowSpec("sleep", "sleep", {"sleep": sleep, "woken": self._woken})
        self.hear: WorkflowSpec[Any] = WorkflowSpec("hear", "hear", {"hear": hear, "woken": self._woken})
        for workflow in (self.sleep, self.hear, recovery.WORK):
            self.registry.register(workflow)

    def _woken(self, run: RunState, ctx: object) -> StepPlan:
        self.at[run.run_id] = SYSTEM_CLOCK.now()
        self._changed.set()
        return StepPlan("woken", complete_output={})

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds, which only a run that is woken can change."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class _Later(SystemClock):
    """The machine's clock, so much later."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


def rows(folder: Path, *, rounds: int, scale: float) -> Iterator[Row]:
    """The rows of the driver."""
    found = [_measured(folder, scale) for _ in range(rounds)]
    claims, wakes, signals, timers, orphans = ([one[index] for one in found] for index in range(5))
    count = _sized(_CLAIMS, scale)
    yield row(f"claims of a driver, {count:,} new runs", "claims/s", claims, "raw sqlite3, a claim and an end each")
    for index, name in enumerate(("p50", "p99")):
        pairs = [(figure[index], baseline[index]) for figure, baseline in wakes]
        yield row(f"due to running, idle driver, {name}", "ms", pairs, "asyncio.sleep until then", most=_AIM)
    for index, name in enumerate(("p50", "p99")):
        pairs = [(figure[index], baseline[index]) for figure, baseline in signals]
        yield row(f"event sent to next step, {name}", "ms", pairs, "one commit of raw sqlite3, from a loop")
    yield row(f"{_sized(_TIMERS, scale):,} timers due at once, to their ends", "s", timers, "ticked by hand, at once")
    what = f"{_sized(_ORPHANS, scale):,} orphans, from SIGKILL"
    for index, name in enumerate(("to the first claim", "to their ends, driven")):
        pairs = [(figure[index], baseline[index]) for figure, baseline in orphans]
        yield row(f"{what} {name}", "s", pairs, "as many new runs, driven")


def _sized(full: int, scale: float) -> int:
    return max(10, round(full * scale))


def _measured(folder: Path, scale: float) -> tuple[Any, ...]:
    with TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        return (
            (asyncio.run(_claims(place, _sized(_CLAIMS, scale))), _raw_claims(place, _sized(_CLAIMS, scale))),
            (
                asyncio.run(wakes(place / "wakes.db", _sized(_WAKES, scale))),
                asyncio.run(_sleeps(_sized(_WAKES, scale))),
            ),
            asyncio.run(_signals(place, _sized(_SIGNALS, scale))),
            asyncio.run(_timers(place, _sized(_TIMERS, scale))),
            _orphans(place, _sized(_ORPHANS, scale)),
        )


# -- claims


async def _claims(folder: Path, runs: int) -> float:
    """Claims per second, from the first to the last."""
    times = await _driven(folder / "claims.db", runs, started_before=True)
    return (runs - 1) / (times[-1] - times[0])


async def _driven(file: Path, runs: int, *, started_before: bool) -> list[float]:
    """When each effect of so many new runs was performed."""
    times, ended = list[float](), asyncio.Event()
    act = _noting(times, runs, ended)
    registry = Woken().registry
    async with AsyncRuntime.open(f"sqlite:///{file}", effect_handlers={"act": act}) as rt:
        if started_before:
            await asyncio.gather(*(rt.start(workflow=recovery.WORK) for _ in range(runs)))
        async with AsyncScheduler(rt, registry):
            if not started_before:
                await asyncio.gather(*(rt.start(workflow=recovery.WORK) for _ in range(runs)))
            await ended.wait()
    return times


def _raw_claims(folder: Path, runs: int) -> float:
    connection = open_connection(str(folder / "raw.db"), synchronous="FULL", busy_timeout=30.0)
    connection.execute("CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, owner TEXT, ended INTEGER)")
    connection.executemany("INSERT INTO jobs (owner) VALUES (?)", [(None,)] * runs)
    claim = (
        "UPDATE jobs SET owner = 'me' WHERE id = (SELECT min(id) FROM jobs WHERE id > ? AND owner IS NULL) RETURNING id"
    )
    last = 0
    try:
        with Stopwatch() as watch:
            for _ in range(runs):
                connection.execute("BEGIN IMMEDIATE")
                ((last,),) = connection.execute(claim, (last,)).fetchall()
                connection.execute("COMMIT")
                connection.execute("UPDATE jobs SET ended = 1 WHERE id = ?", (last,))
    finally:
        connection.close()
    return runs / watch.seconds


# -- wakes


async def wakes(file: Path, count: int) -> tuple[float, float]:
    """Milliseconds between due and running, p50 and p99, of timers that come one by one."""
    woken = Woken()
    async with AsyncRuntime.open(f"sqlite:///{file}") as rt, AsyncScheduler(rt, woken.registry):
        due = {await rt.start(workflow=woken.sleep, vars={"until": iso(at)}): at for at in _instants(count)}
        await woken.until(lambda: due.keys() <= woken.at.keys())
    return _percentiles([(woken.at[run_id] - at).total_seconds() for run_id, at in due.items()])


async def _sleeps(count: int) -> tuple[float, float]:
    async def late(at: datetime) -> float:
        await SYSTEM_CLOCK.sleep((at - SYSTEM_CLOCK.now()).total_seconds())
        return (SYSTEM_CLOCK.now() - at).total_seconds()

    return _percentiles(await asyncio.gather(*(late(at) for at in _instants(count))))


def _instants(count: int) -> list[datetime]:
    first = SYSTEM_CLOCK.now() + timedelta(seconds=_BEFORE + count * 0.005)  # time to start them
    return [first + timedelta(seconds=_APART * number) for number in range(count)]


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    found = sorted(seconds)
    return tuple(found[int((len(found) - 1) * part)] * 1000 for part in (0.5, 0.99))  # type: ignore[return-value]


# -- events


async def _signals(folder: Path, count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Milliseconds from `emit_event` to the node that follows, and those of a commit that a loop waits for."""
    woken, sent = Woken(), dict[str, datetime]()
    names = [f"run-{number}" for number in range(count)]
    async with AsyncRuntime.open(f"sqlite:///{folder}/signals.db") as rt:
        await asyncio.gather(*(rt.run(woken.hear, run_id=name, session_id=name) for name in names))
        async with AsyncScheduler(rt, woken.registry):
            for name in names:
                sent[name] = SYSTEM_CLOCK.now()
                await rt.emit_event(name="go", session_id=name, payload={})
                await woken.until(lambda name=name: name in woken.at)  # type: ignore[misc]
    figures = [(woken.at[name] - sent[name]).total_seconds() for name in names]
    return _percentiles(figures), _percentiles(await _commits(folder / "commits.db", count))


async def _commits(file: Path, count: int) -> list[float]:
    connection = open_connection(str(file), synchronous="FULL", busy_timeout=30.0)
    connection.execute("CREATE TABLE events (data TEXT)")

    def commit() -> sqlite3.Cursor:
        return connection.execute("INSERT INTO events VALUES ('go')")

    took = []
    for _ in range(count):
        begun = time.perf_counter()
        await asyncio.to_thread(commit)
        took.append(time.perf_counter() - begun)
    connection.close()
    return took


# -- timers


async def _timers(folder: Path, count: int) -> tuple[float, float]:
    """Seconds that runs take whose timers are all due, with a driver, and ticked by hand."""
    found = []
    for driven in (True, False):
        woken, at = Woken(), SYSTEM_CLOCK.now() + timedelta(hours=1)
        url = f"sqlite:///{folder}/timers-{driven}.db"
        async with AsyncRuntime.open(url) as rt:
            names = [f"run-{number}" for number in range(count)]
            vars = {"until": iso(at)}
            await asyncio.gather(*(rt.run(woken.sleep, run_id=name, vars=vars) for name in names))
        async with AsyncRuntime.open(url, clock=_Later(timedelta(hours=2))) as rt:
            with Stopwatch() as watch:
                if driven:
                    async with AsyncScheduler(rt, woken.registry):
                        await woken.until(lambda woken=woken: len(woken.at) == count)  # type: ignore[misc]
                else:
                    await asyncio.gather(*(rt.tick(workflow=woken.sleep, run_id=name) for name in names))
        found.append(watch.seconds)
    return found[0], found[1]


# -- orphans


def _orphans(folder: Path, count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds from the SIGKILL of a process to the first and the last effect that another performs for it."""
    file = folder / "orphans.db"
    command = [sys.executable, "-c", recovery.VICTIM, str(file), str(count)]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "all in flight\n"
        found = asyncio.run(_taken_over(file, count, victim.kill))
    begun = time.perf_counter()
    undisturbed = asyncio.run(_driven(folder / "undisturbed.db", count, started_before=False))
    return found, (undisturbed[0] - begun, undisturbed[-1] - begun)


async def _taken_over(file: Path, count: int, kill: Callable[[], None]) -> tuple[float, float]:
    times, ended = list[float](), asyncio.Event()
    async with (
        AsyncRuntime.open(f"sqlite:///{file}", effect_handlers={"act": _noting(times, count, ended)}) as rt,
        AsyncScheduler(rt, Woken().registry),
    ):
        await SYSTEM_CLOCK.sleep(_IN_VAIN)
        assert not times
        killed = time.perf_counter()
        kill()
        await ended.wait()
    return times[0] - killed, times[-1] - killed


def _noting(times: list[float], count: int, ended: asyncio.Event) -> Callable[[EffectCall], Awaitable[EffectOutcome]]:
    """A handler that notes when it is called, and sets `ended` at the last of so many calls."""

    async def act(call: EffectCall) -> EffectOutcome:
        times.append(time.perf_counter())
        if len(times) == count:
            ended.set()
        return EffectOutcome.completed("done")

    return act
