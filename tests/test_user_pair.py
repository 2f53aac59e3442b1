"""Pairs that cannot commit together: a user's own stores, two databases, or a documented method overridden."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from abstractruntime import (
    AsyncRuntime,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    Request,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StepRecord,
    WaitState,
    WorkflowSpec,
)
from abstractruntime.core.backend import Write
from abstractruntime.core.codec import encode_run, record_dict
from abstractruntime.core.errors import RevisionConflict, StoreCorrupt, StoreError
from abstractruntime.storage.base import LedgerStore, RunStore
from abstractruntime.storage.user_pair import UserPair, join_stores

from .faults import ProcessDied

DOCUMENTED = (
    "run_id",
    "workflow_id",
    "status",
    "current_node",
    "vars",
    "waiting",
    "output",
    "error",
    "created_at",
    "updated_at",
    "actor_id",
    "session_id",
    "parent_run_id",
)


class ObjectRuns(RunStore):
    """The simplest store that a user may write: it keeps the very objects it was given."""

    def __init__(self) -> None:
        self.kept: dict[str, RunState] = {}

    def save(self, run: RunState) -> None:
        self.kept[run.run_id] = run

    def load(self, run_id: str) -> RunState | None:
        return self.kept.get(run_id)


class DocumentedRuns(RunStore):
    """A store that knows the thirteen documented fields and writes them as JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def save(self, run: RunState) -> None:
        row = {name: getattr(run, name) for name in DOCUMENTED}
        row["status"] = run.status.value
        row["waiting"] = None if run.waiting is None else msgspec.to_builtins(run.waiting)
        self.kept[run.run_id] = json.dumps(row)

    def load(self, run_id: str) -> RunState | None:
        if run_id not in self.kept:
            return None
        row = json.loads(self.kept[run_id])
        row["status"] = RunStatus(row["status"])
        row["waiting"] = row["waiting"] and WaitState(**row["waiting"])
        return RunState(**row)


class ListLedger(LedgerStore):
    """A ledger that a user may write: dicts in a list."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def append(self, record: StepRecord) -> None:
        self.kept.setdefault(record.run_id, []).append(record_dict(record))

    def list(self, run_id: str) -> list[dict[str, Any]]:
        return list(self.kept.get(run_id, []))


class AsyncDocumentedRuns:
    """The same, asynchronous, and a subclass of nothing."""

    def __init__(self) -> None:
        self.inner = DocumentedRuns()

    async def save(self, run: RunState) -> None:
        await asyncio.sleep(0)
        self.inner.save(run)

    async def load(self, run_id: str) -> RunState | None:
        await asyncio.sleep(0)
        return self.inner.load(run_id)


class AsyncListLedger:
    def __init__(self) -> None:
        self.inner = ListLedger()

    async def append(self, record: StepRecord) -> None:
        await asyncio.sleep(0)
        self.inner.append(record)

    async def list(self, run_id: str) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return self.inner.list(run_id)


class CountingRuns(InMemoryRunStore):
    """Our store with a documented method overridden, as users do to hear of every save."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[str] = []

    def save(self, run: RunState, *, overwrite: bool = False) -> None:
        self.saves.append(str(run.status))
        super().save(run, overwrite=overwrite)


def two_databases(folder: Path) -> tuple[Any, Any]:
    return SqliteRunStore(SqliteDatabase(folder / "runs.db")), SqliteLedgerStore(SqliteDatabase(folder / "ledger.db"))


PAIRS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "objects": lambda folder: (ObjectRuns(), ListLedger()),
    "documented fields": lambda folder: (DocumentedRuns(), ListLedger()),
    "async": lambda folder: (AsyncDocumentedRuns(), AsyncListLedger()),
    "async runs only": lambda folder: (AsyncDocumentedRuns(), ListLedger()),
    "ours and a user's ledger": lambda folder: (InMemoryRunStore(), ListLedger()),
    "a user's runs and ours": lambda folder: (DocumentedRuns(), InMemoryLedgerStore()),
    "an overridden save": lambda folder: (CountingRuns(), InMemoryLedgerStore()),
    "two databases": two_databases,
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    found: tuple[Any, Any] = PAIRS[request.param](tmp_path)
    return found


class Bank:
    """The world outside, which counts what it did."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def charge(self, call: EffectCall) -> EffectOutcome:
        self.calls[call.key] += 1
        return EffectOutcome.completed({"charged": call.payload["amount"], "receipt": [1, {"x": None}]})


def pay(run: RunState, ctx: Any) -> StepPlan:
    run.vars["round"] = run.vars.get("round", 0) + 1
    follow = "pay" if run.vars["round"] < 3 else "ask"
    return StepPlan("pay", Effect("charge", {"amount": 5}, f"paid{run.vars['round']}"), follow)


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"answer": run.vars["answer"], "paid": run.vars["paid3"]["charged"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("w", "pay", {"pay": pay, "ask": ask, "end": end})
WHOLE_LEDGER = [
    *[("pay", "started"), ("pay", "completed")] * 3,
    ("ask", "started"),
    ("ask", "waiting"),
    ("ask", "completed"),
    ("end", "completed"),
    ("end", "completed"),
]


def runtime(pair: tuple[Any, Any], bank: Bank, **options: Any) -> AsyncRuntime:
    handlers = {"charge": bank.charge, **options.pop("effect_handlers", {})}
    return AsyncRuntime(run_store=pair[0], ledger_store=pair[1], effect_handlers=handlers, **options)


def told(ledger: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["node_id"], str(record["status"])) for record in ledger]


async def test_a_workflow_runs_from_start_to_end(pair: tuple[Any, Any]):
    bank = Bank()
    async with runtime(pair, bank) as rt:
        state = await rt.run(WORKFLOW, run_id="r")
        assert (state.status, bank.calls.total(), len(bank.calls)) == (RunStatus.WAITING, 3, 3)
        assert state.waiting is not None
        state = await rt.resume(
            workflow=WORKFLOW, run_id="r", wait_key=state.waiting.wait_key, payload="yes", resume_id="once"
        )
        assert state.status is RunStatus.COMPLETED
        assert state.output == {"answer": "yes", "paid": 5}
        again = await rt.resume(workflow=WORKFLOW, run_id="r", wait_key=None, payload="yes", resume_id="once")
        assert again.output == state.output
        assert told(await rt.get_ledger("r")) == WHOLE_LEDGER
        assert bank.calls.total() == 3


async def test_every_step_can_be_taken_by_another_process(pair: tuple[Any, Any]):
    bank = Bank()
    await runtime(pair, bank).start(workflow=WORKFLOW, run_id="r")
    for _ in range(4):
        state = await runtime(pair, bank).tick(workflow=WORKFLOW, run_id="r", max_steps=1)
    assert state.status is RunStatus.WAITING
    await runtime(pair, bank).resume(workflow=WORKFLOW, run_id="r", wait_key=None, payload="yes", max_steps=0)
    state = await runtime(pair, bank).tick(workflow=WORKFLOW, run_id="r")
    assert state.output == {"answer": "yes", "paid": 5}
    assert told(await runtime(pair, bank).get_ledger("r")) == WHOLE_LEDGER
    assert (bank.calls.total(), len(bank.calls)) == (3, 3)


async def test_pause_limits_and_cancel_work_as_elsewhere(pair: tuple[Any, Any]):
    bank = Bank()
    rt = runtime(pair, bank)
    await rt.start(workflow=WORKFLOW, run_id="r")
    assert (await rt.pause_run("r")).paused
    assert (await rt.tick(workflow=WORKFLOW, run_id="r")).paused
    assert bank.calls.total() == 0
    await rt.update_limits("r", {"max_tokens": 7})
    state = await rt.resume_run("r")
    assert (state.status, state.vars["_limits"]["max_tokens"]) == (RunStatus.RUNNING, 7)
    assert (await rt.tick(workflow=WORKFLOW, run_id="r")).status is RunStatus.WAITING
    state = await rt.cancel_run("r", reason="enough")
    assert (state.status, state.error) == (RunStatus.CANCELLED, "enough")
    assert told(await rt.get_ledger("r"))[-1] == ("ask", "completed")


def test_the_blocking_runtime_takes_any_pair_too(pair: tuple[Any, Any]):
    bank = Bank()
    with Runtime(run_store=pair[0], ledger_store=pair[1], effect_handlers={"charge": bank.charge}) as rt:
        run_id = rt.start(workflow=WORKFLOW)
        assert rt.tick(workflow=WORKFLOW, run_id=run_id).status is RunStatus.WAITING
        state = rt.resume(workflow=WORKFLOW, run_id=run_id, wait_key=None, payload="yes")
        assert state.output == {"answer": "yes", "paid": 5}
        assert rt.run_store is pair[0]
        assert told(rt.get_ledger(run_id)) == WHOLE_LEDGER


async def test_an_overridden_save_hears_of_every_state():
    runs = CountingRuns()
    await runtime((runs, InMemoryLedgerStore()), Bank()).run(WORKFLOW, run_id="r")
    assert runs.saves == ["running"] * 7 + ["waiting"]


# -- a crash between the ledger and the state


class Crashes:
    """Lets a store die at its k-th write, before it or after it."""

    def __init__(self, store: Any, method: str, *, after: bool = False) -> None:
        self._store, self._method, self._after = store, method, after
        self.at = 0
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return self._write if name == self._method else getattr(self._store, name)

    def _write(self, value: Any) -> None:
        self.writes += 1
        if self.writes == self.at and not self._after:
            raise ProcessDied("before a write")
        getattr(self._store, self._method)(value)
        if self.writes == self.at:
            raise ProcessDied("after a write")


async def live(pair: tuple[Any, Any], bank: Bank, **options: Any) -> RunState:
    """What a host does with the run in one life of its process; every part may be repeated by the next life."""
    rt = runtime(pair, bank, **options)
    if rt.run_store.load("r") is None:
        await rt.start(workflow=WORKFLOW, run_id="r")
    state = await rt.tick(workflow=WORKFLOW, run_id="r")
    if state.status is RunStatus.WAITING:
        state = await rt.resume(workflow=WORKFLOW, run_id="r", wait_key=None, payload="yes", resume_id="once")
    return state


@pytest.mark.parametrize("runs", [ObjectRuns, DocumentedRuns])
@pytest.mark.parametrize("at", range(1, 10))
async def test_an_effect_whose_end_is_in_the_ledger_is_not_performed_again(runs: type[Any], at: int):
    store, ledger, bank = runs(), ListLedger(), Bank()
    crashing = Crashes(store, "save")
    crashing.at = at
    with pytest.raises(ProcessDied):
        await live((crashing, ledger), bank)
    state = await live((store, ledger), bank)
    assert state.output == {"answer": "yes", "paid": 5}
    assert set(bank.calls.values()) == {1}, "an effect was performed twice"
    assert len(bank.calls) == 3


@pytest.mark.parametrize("runs", [ObjectRuns, DocumentedRuns])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 12))
async def test_a_crash_at_an_append_repeats_at_most_the_effect_whose_end_was_not_written(
    runs: type[Any], at: int, after: bool
):
    store, ledger, bank = runs(), ListLedger(), Bank()
    crashing = Crashes(ledger, "append", after=after)
    crashing.at = at
    with pytest.raises(ProcessDied):
        await live((store, crashing), bank)
    ends = told(ledger.kept.get("r", [])).count(("pay", "completed"))
    performed = bank.calls.total()
    state = await live((store, ledger), bank)
    assert state.output == {"answer": "yes", "paid": 5}
    assert len(bank.calls) == 3
    assert bank.calls.total() == 3 + performed - ends
    assert performed - ends <= 1


@pytest.mark.parametrize("rule", ["fail", "ask"])
async def test_what_the_ledger_knows_is_not_unknown_whatever_the_policy_says_of_that(rule: Any):
    store, ledger, bank = ObjectRuns(), ListLedger(), Bank()
    crashing = Crashes(store, "save")
    crashing.at = 3  # the settle of the first effect: its end is in the ledger
    policy = DefaultEffectPolicy(unknown_rules={"charge": rule})
    with pytest.raises(ProcessDied):
        await live((crashing, ledger), bank, effect_policy=policy)
    assert told(ledger.kept["r"]) == [("pay", "started"), ("pay", "completed")]
    state = await live((store, ledger), bank, effect_policy=policy)
    assert state.output == {"answer": "yes", "paid": 5}
    assert set(bank.calls.values()) == {1}


async def test_a_reused_end_says_which_step_it_came_from():
    store, ledger, bank = DocumentedRuns(), ListLedger(), Bank()
    crashing = Crashes(store, "save")
    crashing.at = 3
    with pytest.raises(ProcessDied):
        await live((crashing, ledger), bank)
    await live((store, ledger), bank)
    reused = [record for record in ledger.kept["r"] if record["reused_from"]]
    assert [record["reused_from"] for record in reused] == ["r:0.1"]
    assert reused[0]["result"] == ledger.kept["r"][1]["result"]


# -- what such a pair cannot do, and says


async def test_a_request_to_another_run_is_refused_and_says_what_it_needs():
    def stop_other(call: EffectCall) -> EffectOutcome:
        asked = Request(run_id="other", kind="cancel", by=call.run.run_id, at=call.now)
        return EffectOutcome.completed("asked", requests=(asked,))

    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("n", Effect("stop", {}, "stopped"))

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "n", {"n": node})
    rt = runtime((ObjectRuns(), ListLedger()), Bank(), effect_handlers={"stop": stop_other})
    state = await rt.run(workflow, run_id="r")
    assert state.status is RunStatus.FAILED
    assert state.error == "Requests to other runs need stores that commit together"


async def test_a_write_with_requests_stores_nothing():
    store, ledger = ObjectRuns(), ListLedger()
    run = RunState.new(workflow_id="w", entry_node="n", run_id="r")
    asked = Request(run_id="other", kind="cancel", by="r", at=run.created_at)
    write = Write(run=run, data=encode_run(run), expected=None, requests=(asked,))
    with pytest.raises(StoreError, match="Requests to other runs"):
        await UserPair(store, ledger).commit(write)
    assert store.kept == {}


@pytest.mark.parametrize(
    ("runs", "ledger", "missing"),
    [
        (object(), ListLedger(), "no save and no load"),
        (ObjectRuns(), object(), "no append and no list"),
        (ListLedger(), ObjectRuns(), "no save and no load"),
        (None, None, "no save and no load"),
    ],
)
def test_what_is_no_pair_of_stores_is_refused_and_says_what_is_missing(runs: Any, ledger: Any, missing: str):
    with pytest.raises(TypeError, match=missing):
        join_stores(runs, ledger)


async def test_a_store_that_returns_no_run_is_told_as_corrupt():
    class Dicts(ObjectRuns):
        def load(self, run_id: str) -> Any:
            return {"run_id": run_id}

    with pytest.raises(StoreCorrupt, match=r"Dicts\.load\('r'\) returned a dict"):
        await UserPair(Dicts(), ListLedger()).load("r")


async def test_a_ledger_that_holds_no_record_is_told_as_corrupt():
    ledger = ListLedger()
    ledger.kept["r"] = [{"nonsense": True}]
    with pytest.raises(StoreCorrupt, match="The ledger of run 'r'"):
        await UserPair(ObjectRuns(), ledger).records("r")


async def test_what_a_store_raises_reaches_the_caller_and_the_run_goes_on_when_it_recovers():
    class Full(ObjectRuns):
        full = False

        def save(self, run: RunState) -> None:
            if self.full:
                raise OSError("disk full")
            super().save(run)

    store, ledger, bank = Full(), ListLedger(), Bank()
    rt = runtime((store, ledger), bank)
    await rt.start(workflow=WORKFLOW, run_id="r")
    store.full = True
    with pytest.raises(OSError, match="disk full"):
        await rt.tick(workflow=WORKFLOW, run_id="r")
    store.full = False
    assert (await rt.tick(workflow=WORKFLOW, run_id="r")).status is RunStatus.WAITING
    assert set(bank.calls.values()) == {1}


# -- guards


def at_revision(revision: int, **fields: Any) -> RunState:
    run = RunState.new(workflow_id="w", entry_node="n", run_id="r", vars=fields)
    run.revision = revision
    return run


@pytest.mark.parametrize("runs", [ObjectRuns, DocumentedRuns])
async def test_a_write_computed_from_another_revision_is_refused(runs: type[Any]):
    ledger = ListLedger()
    backend = UserPair(runs(), ledger)
    one, two = at_revision(1), at_revision(2)
    await backend.commit(Write(run=one, data=encode_run(one), expected=None))
    await backend.commit(Write(run=two, data=encode_run(two), expected=1))
    for expected in (None, 1, 3):
        with pytest.raises(RevisionConflict):
            await backend.commit(Write(run=two, data=encode_run(two), expected=expected))
    found = await backend.load("r")
    assert found is not None
    assert found.run.revision == 2


@pytest.mark.parametrize("runs", [ObjectRuns, DocumentedRuns, AsyncDocumentedRuns])
async def test_of_writers_that_race_one_wins(runs: type[Any]):
    backend = UserPair(runs(), ListLedger())
    first = at_revision(1)
    await backend.commit(Write(run=first, data=encode_run(first), expected=None))
    rivals = [at_revision(2, mine=number) for number in range(10)]
    ends = await asyncio.gather(
        *(backend.commit(Write(run=run, data=encode_run(run), expected=1)) for run in rivals), return_exceptions=True
    )
    assert [type(end) for end in ends if end is not None] == [RevisionConflict] * 9


async def test_an_object_that_a_store_keeps_is_never_the_one_in_use():
    store = ObjectRuns()
    rt = runtime((store, ListLedger()), Bank())
    await rt.start(workflow=WORKFLOW, run_id="r", vars={"mine": [1]})
    state = await rt.tick(workflow=WORKFLOW, run_id="r", max_steps=1)
    state.vars["mine"].append(2)
    (await rt.get_state("r")).vars["mine"].append(3)
    assert store.kept["r"].vars["mine"] == [1]
