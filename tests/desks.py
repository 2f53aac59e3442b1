"""A database with everything that is done on it, for tests that take the ground from under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StepRecord,
    StepStatus,
    StoreError,
    WorkflowSpec,
)
from abstractruntime.core import portal
from abstractruntime.storage.sqlite import watch

from .checks import check_ledger


def begin(run: RunState, ctx: Any) -> StepPlan:
    run.vars["begun"] = True
    return StepPlan("begin", Effect("act", {}, "act"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"act": run.vars["act"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("trouble", "begin", {"begin": begin, "end": end})


async def act(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.completed({"attempt": call.attempt})


class Desk:
    """A database with its stores and a runtime, blocking or async behind blocking calls; one run `r` was started."""

    def __init__(self, path: Path, facade: str = "sync", handler: Any = act, **options: Any) -> None:
        handlers = {"act": handler}
        self.database = SqliteDatabase(path, **options)
        self.runs: Any = SqliteRunStore(self.database)
        self.ledgers: Any = SqliteLedgerStore(self.database)
        self.rt: Any = Runtime(run_store=self.runs, ledger_store=self.ledgers, effect_handlers=handlers)
        if facade == "async":
            self.runs = Blocking(AsyncSqliteRunStore(self.database))
            self.ledgers = Blocking(AsyncSqliteLedgerStore(self.database))
            self.rt = Blocking(
                AsyncRuntime(run_store=self.runs.aio, ledger_store=self.ledgers.aio, effect_handlers=handlers)
            )

    def start(self) -> None:
        self.rt.start(workflow=WORKFLOW, run_id="r")

    def tick(self) -> RunState:
        state: RunState = self.rt.tick(workflow=WORKFLOW, run_id="r")
        return state

    def renew(self) -> None:
        portal.call(self.database.backend.renew, "owner", 2**60)

    def ways_in(self) -> dict[str, Callable[[], object]]:
        """Every kind of use."""
        return {
            "load": partial(self.runs.load, "r"),
            "list_runs": self.runs.list_runs,
            "save": partial(self.runs.save, RunState("other", "w", RunStatus.RUNNING, "n", vars={"x": "x" * 9_000})),
            "append": partial(self.ledgers.append, StepRecord("r", "s", "n", StepStatus.COMPLETED, None, None)),
            "list": partial(self.ledgers.list, "r"),
            "start": partial(self.rt.start, workflow=WORKFLOW, run_id="another", vars={"x": "x" * 9_000}),
            "tick": self.tick,
            "get_state": partial(self.rt.get_state, "r"),
            "renew": self.renew,
            "plain connection": lambda: self.database.connection().close(),
            "backup": lambda: self.database.backup(f"{self.database.path}.copy", overwrite=True),
            "check": self.database.check,
        }

    def is_refused(self, kind: type[StoreError], *, but: frozenset[str] = frozenset()) -> None:
        """Each way in raises an error of this kind, which names the file."""
        for name, way in self.ways_in().items():
            if name in but:
                continue
            with pytest.raises(StoreError) as caught:
                way()
            assert type(caught.value) is kind, (name, caught.value)
            assert self.database.path in str(caught.value), name

    def ends(self) -> None:
        """The run goes on from where it was to its end, and its ledger proves it."""
        state = self.tick()
        assert state.status is RunStatus.COMPLETED, state.error
        check_ledger(state, self.ledgers.list("r"))

    def close(self) -> None:
        self.rt.close()
        self.database.close()


class Blocking:
    """An async object whose methods block."""

    def __init__(self, aio: Any) -> None:
        self.aio = aio

    def __getattr__(self, name: str) -> Any:
        return partial(portal.call, getattr(self.aio, {"close": "aclose"}.get(name, name)))


@pytest.fixture(params=["sync", "async"])
def facade(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def desk(path: Path, facade: str) -> Iterator[Desk]:
    made = Desk(path, facade, busy_timeout=0.05)
    made.start()
    yield made
    made.close()


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch looks at the file, not only one in a second."""
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.0)
