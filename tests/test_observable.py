"""Observers of a ledger store hear of what is durable, once each, in order, and can do no harm."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncObservableLedgerStore,
    AsyncRuntime,
    HashChainedLedgerStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    ObservableLedgerStore,
    ObservableLedgerStoreProtocol,
    OffloadingRunStore,
    QueryableRunStore,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepRecord,
    StepStatus,
)
from abstractruntime.core.errors import StoreError

from .faults import FaultyRunStore, ProcessDied
from .test_ledger_chain import DictLedger, DictRuns
from .worlds import one

Rows = list[dict[str, Any]]


def record(run_id: str = "r", number: int = 1) -> StepRecord:
    return StepRecord(run_id, f"{run_id}:{number}.1", "n", StepStatus.COMPLETED, result={"n": number})


def test_a_direct_append_is_told_as_list_shows_it():
    ledger, told = ObservableLedgerStore(InMemoryLedgerStore()), Rows()
    ledger.subscribe(told.append)
    ledger.append(record(number=1))
    ledger.append(record(number=2))
    assert told == ledger.list("r")


def test_a_run_filter_an_unsubscribe_and_a_clearing_hold():
    ledger = ObservableLedgerStore(InMemoryLedgerStore())
    one_run, all_runs, cleared = Rows(), Rows(), Rows()
    stop = ledger.subscribe(one_run.append, run_id="a")
    stop_all = ledger.subscribe(all_runs.append)
    ledger.append(record("a"))
    ledger.append(record("b"))
    stop(), stop(), stop_all()
    ledger.subscribe(cleared.append)
    ledger.clear_subscribers()
    ledger.append(record("a"))
    assert [row["run_id"] for row in one_run] == ["a"]
    assert [row["run_id"] for row in all_runs] == ["a", "b"]
    assert cleared == []


def test_what_a_subscriber_raises_is_logged_and_the_others_hear(caplog):
    ledger, told = ObservableLedgerStore(InMemoryLedgerStore()), Rows()

    def broken(row: dict[str, Any]) -> None:
        raise RuntimeError("a subscriber's own trouble")

    ledger.subscribe(broken)
    ledger.subscribe(told.append)
    with caplog.at_level(logging.ERROR):
        ledger.append(record())
    assert len(told) == len(ledger.list("r")) == 1
    assert "a subscriber's own trouble" in caplog.text


def test_each_subscriber_gets_a_dict_of_its_own():
    ledger, told = ObservableLedgerStore(InMemoryLedgerStore()), Rows()
    ledger.subscribe(lambda row: row["result"].clear())
    ledger.subscribe(told.append)
    ledger.append(record())
    assert told[0]["result"] == {"n": 1} == ledger.list("r")[0]["result"]


def pairs(tmp_path: Any) -> dict[str, tuple[Any, Any]]:
    db = SqliteDatabase(tmp_path / "runs.db", synchronous="NORMAL")
    return {
        "memory": (InMemoryRunStore(), InMemoryLedgerStore()),
        "sqlite": (SqliteRunStore(db), SqliteLedgerStore(db)),
        "user's own": (DictRuns(), DictLedger()),
    }


@pytest.mark.parametrize(
    ("kind", "chained"),
    [("memory", False), ("sqlite", False), ("user's own", False), ("memory", True), ("sqlite", True)],
)
def test_what_a_runtime_commits_is_told_once_as_it_is_listed(kind, chained, tmp_path):
    runs, inner = pairs(tmp_path)[kind]
    ledger = ObservableLedgerStore(HashChainedLedgerStore(inner) if chained else inner)
    told = Rows()
    ledger.subscribe(told.append)
    workflow = one("ask_user", {"prompt": "Go on?"})
    with Runtime(run_store=runs, ledger_store=ledger) as rt:
        assert rt.ledger_store is ledger
        rt.start(workflow=workflow, run_id="r")
        rt.tick(workflow=workflow, run_id="r")
        rt.resume(workflow=workflow, run_id="r", wait_key=None, payload="yes")
        listed = rt.get_ledger("r")
    assert told == listed
    assert len(told) == len({(row["step_id"], row["status"]) for row in told}) == 5


async def test_an_async_runtime_tells_too():
    ledger, told = AsyncObservableLedgerStore(AsyncInMemoryLedgerStore()), Rows()
    ledger.subscribe(told.append)
    async with AsyncRuntime(run_store=AsyncInMemoryRunStore(), ledger_store=ledger) as rt:
        await rt.run(one("answer_user", {"message": "hello"}), run_id="r")
    assert told == await ledger.list("r")


@pytest.mark.parametrize("mode", ["die_before", "lost_with_error"])
def test_nothing_is_told_that_did_not_become_durable(mode, tmp_path):
    runs, inner = pairs(tmp_path)["sqlite"]
    ledger, told = ObservableLedgerStore(inner), Rows()
    ledger.subscribe(told.append)
    workflow = one("answer_user", {"message": "hello"})
    with Runtime(run_store=FaultyRunStore(runs, at=2, mode=mode), ledger_store=ledger) as rt:
        rt.start(workflow=workflow, run_id="r")
        if mode == "die_before":
            with pytest.raises(ProcessDied):
                rt.tick(workflow=workflow, run_id="r")
            assert told == inner.list("r") == []
        else:
            rt.tick(workflow=workflow, run_id="r")
            assert told == inner.list("r")


def test_an_append_that_fails_is_not_told():
    class Full(DictLedger):
        def append(self, record: StepRecord) -> None:
            raise StoreError("no room")

    ledger, told = ObservableLedgerStore(Full()), Rows()
    ledger.subscribe(told.append)
    with pytest.raises(StoreError, match="no room"):
        ledger.append(record())
    assert told == []


def test_the_protocol_knows_what_can_be_subscribed_to():
    assert isinstance(ObservableLedgerStore(InMemoryLedgerStore()), ObservableLedgerStoreProtocol)
    assert isinstance(
        HashChainedLedgerStore(ObservableLedgerStore(InMemoryLedgerStore())), ObservableLedgerStoreProtocol
    )
    assert not isinstance(InMemoryLedgerStore(), ObservableLedgerStoreProtocol)


def test_what_a_decorator_shows_of_its_inner_store_is_there_for_protocols_of_newer_pythons():
    """From Python 3.12 on they look for members without asking `__getattr__`."""
    ledger = HashChainedLedgerStore(ObservableLedgerStore(InMemoryLedgerStore()))
    runs = OffloadingRunStore(InMemoryRunStore(), artifact_store=InMemoryArtifactStore())
    assert isinstance(runs, QueryableRunStore)
    for store, names in ((ledger, ["subscribe", "list_after"]), (runs, ["list_runs", "list_children", "delete"])):
        for name in names:
            assert inspect.getattr_static(store, name) is not None


def test_a_subclass_that_overrides_append_is_a_users_store():
    class Counting(ObservableLedgerStore):
        appended = 0

        def append(self, record: StepRecord) -> None:
            self.appended += 1
            super().append(record)

    ledger = Counting(InMemoryLedgerStore())
    with Runtime(run_store=InMemoryRunStore(), ledger_store=ledger) as rt:
        rt.run(one("answer_user", {"message": "hello"}), run_id="r")
        assert ledger.appended == len(rt.get_ledger("r")) == 4


def test_the_rest_of_the_inner_store_shows_through():
    inner = InMemoryLedgerStore()
    ledger = ObservableLedgerStore(inner)
    ledger.append(record())
    assert ledger.inner is inner
    assert ledger.count("r") == 1
    assert ledger.list_after(run_id="r", after=0)[1] == 1
    assert ledger.count_many(["r", "s"]) == {"r": 1, "s": 0}
    assert ledger.delete("r") == 1
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ledger.nonsense
