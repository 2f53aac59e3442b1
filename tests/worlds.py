"""Where a test's runs live: runtimes, async or blocking, on one pair of stores, and the small workflows they run.

A test takes the fixture `world` (both facades, memory and SQLite) or `async_world` (AsyncRuntime alone), hung into its
module as `world = worlds.world`. Under both facades it awaits the same calls.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    InMemoryLedgerStore,
    InMemoryRunStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    WorkflowSpec,
)

from .clocks import StillClock
from .faults import FaultyRunStore

#: a bound for every wait of a test, so that a defect fails instead of hanging
PATIENCE = 30.0


class Awaited:
    """A blocking runtime for async tests: every blocking call blocks a thread of its own and is awaited."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.rt, "close" if name == "aclose" else name)
        if inspect.iscoroutinefunction(getattr(AsyncRuntime, name, None)):
            return partial(asyncio.to_thread, member)
        return member


class World:
    """One pair of stores and a still clock; every runtime made on them is closed in the end."""

    def __init__(
        self, facade: str, kind: str, folder: Path, *, synchronous: Literal["FULL", "NORMAL"] = "FULL"
    ) -> None:
        self.facade, self.kind, self._synchronous = facade, kind, synchronous
        self.clock = StillClock()
        self.path = folder / "runs.db"
        self._memory = (InMemoryRunStore(), InMemoryLedgerStore())
        self._databases: list[SqliteDatabase] = []
        self._runtimes: list[Any] = []

    def stores(self) -> tuple[Any, Any]:
        """A fresh pair of handles on the same runs and ledgers, as another process would open them."""
        runs, ledgers = self._memory
        if self.kind == "memory":
            if self.facade == "sync":
                return runs, ledgers
            return AsyncInMemoryRunStore(runs), AsyncInMemoryLedgerStore(ledgers)
        if self.kind == "json":
            folder = self.path.with_suffix("")
            durability: Literal["full", "none"] = "full" if self._synchronous == "FULL" else "none"
            if self.facade == "sync":
                return JsonFileRunStore(folder, durability=durability), JsonlLedgerStore(folder, durability=durability)
            return (
                AsyncJsonFileRunStore(folder, durability=durability),
                AsyncJsonlLedgerStore(folder, durability=durability),
            )
        database = SqliteDatabase(self.path, synchronous=self._synchronous)
        self._databases.append(database)
        if self.facade == "sync":
            return SqliteRunStore(database), SqliteLedgerStore(database)
        return AsyncSqliteRunStore(database), AsyncSqliteLedgerStore(database)

    def runtime(self, handlers: dict[str, Any] | None = None, **options: Any) -> Any:
        """A runtime whose methods are awaited, be it `AsyncRuntime` or `Runtime`."""
        return self.faulty_runtime(handlers, **options)[0]

    def faulty_runtime(
        self, handlers: dict[str, Any] | None = None, *, at: int = 0, mode: str = "die_before", **options: Any
    ) -> tuple[Any, FaultyRunStore]:
        """The same, and its run store, whose write number `at` goes wrong; writes are counted in `.backend.writes`."""
        runs, ledgers = options.pop("stores", None) or self.stores()
        options.setdefault("clock", self.clock)
        store = FaultyRunStore(runs, at=at, mode=mode)
        given = {"run_store": store if at else runs, "ledger_store": ledgers, "effect_handlers": handlers, **options}
        rt: Any = Awaited(Runtime(**given)) if self.facade == "sync" else AsyncRuntime(**given)
        self._runtimes.append(rt)
        return rt, store

    async def close(self) -> None:
        """Close what was made so far; what is stored stays, also in memory."""
        for rt in self._runtimes:
            await rt.aclose()
        for database in self._databases:
            await database.aclose()
        self._runtimes, self._databases = [], []


@pytest.fixture(params=["async-memory", "async-sqlite", "sync-memory", "sync-sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Both facades on both kinds of stores."""
    facade, kind = request.param.split("-")
    made = World(facade, kind, tmp_path)
    yield made
    await made.close()


@pytest.fixture(params=["memory", "sqlite"])
async def async_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """`AsyncRuntime` on both kinds of stores."""
    made = World("async", request.param, tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def sqlite_world(tmp_path: Path) -> AsyncIterator[World]:
    """`AsyncRuntime` on SQLite, for what memory does not have: a writer's thread, leases that others see."""
    made = World("async", "sqlite", tmp_path)
    yield made
    await made.close()


class Gate:
    """A door that handlers of any thread and loop wait at, and the test opens."""

    def __init__(self) -> None:
        self.inside = 0
        self._waiting: list[Future[None]] = []
        self._open = False

    def _enter(self) -> Future[None]:
        self.inside += 1
        future: Future[None] = Future()
        self._waiting.append(future)
        if self._open:
            future.set_result(None)
        return future

    async def passed(self) -> None:
        """Wait at the door, in an async handler."""
        await asyncio.wrap_future(self._enter())

    def passed_blocking(self) -> None:
        """Wait at the door, in a sync handler."""
        self._enter().result(PATIENCE)

    def open(self) -> None:
        self._open = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


async def a_moment() -> None:
    """Let others move. A loop that only turns keeps the interpreter from their threads for most of the time."""
    await asyncio.sleep(0.001)


async def eventually(condition: Callable[[], object]) -> None:
    """Let the event loop turn until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await a_moment()


def ask(node: str, kind: str, payload: dict[str, Any] | None = None, key: str | None = None, then: str | None = "end"):
    """A node that always asks for this effect."""

    def plan(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan(node, Effect(kind, payload or {}, key), then)

    return plan


def go(node: str, then: str):
    """A node that only goes on."""

    def plan(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan(node, next_node=then)

    return plan


def end(run: RunState, ctx: Any) -> StepPlan:
    """The end of most test workflows: its output is what the author's vars hold."""
    return StepPlan("end", complete_output={k: v for k, v in run.vars.items() if not k.startswith("_")})


def flow(entry: str, *, workflow_id: str = "flow", options: dict[str, Any] | None = None, **nodes: Any) -> Any:
    """A workflow of these nodes and `end`."""
    return WorkflowSpec(workflow_id, entry, {**nodes, "end": end}, **(options or {}))


def one(kind: str, payload: dict[str, Any] | None = None, key: str | None = "result", then: str | None = "end") -> Any:
    """A workflow of one effect, asked for by the node `work`, and `end`."""
    return flow("work", work=ask("work", kind, payload, key, then))


def chain(*steps: Effect) -> Any:
    """A workflow of these effects, one after the other."""
    nodes: dict[str, Any] = {}
    for number, effect in enumerate(steps):
        then = f"s{number + 1}" if number + 1 < len(steps) else "end"
        nodes[f"s{number}"] = partial(_plan, StepPlan(f"s{number}", effect, then))
    return flow("s0", **nodes)


def _plan(plan: StepPlan, run: RunState, ctx: Any) -> StepPlan:
    return plan


def statuses(ledger: list[dict[str, Any]], kind: str | None = None) -> list[str]:
    """The statuses in a ledger, in order; of one effect type when it is given."""
    return [record["status"] for record in ledger if kind is None or (record["effect"] or {}).get("type") == kind]
