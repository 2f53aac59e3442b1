"""The documented stores on SQLite, as programs use them, and their queries held to the meaning in `storage.base`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core import portal
from abstractruntime.core.backend import Write
from abstractruntime.core.codec import copy_of_run, encode_records, encode_run
from abstractruntime.core.errors import InvalidId, RevisionConflict, UnsafeValue
from abstractruntime.core.models import Request, RunState, RunStatus, StepRecord, StepStatus, WaitReason, WaitState
from abstractruntime.storage.base import (
    DeletableLedgerStore,
    DeletableRunStore,
    LedgerStore,
    QueryableRunStore,
    RunStore,
)
from abstractruntime.storage.metrics import metrics_of
from abstractruntime.storage.sqlite import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
)

AT = "2026-01-31T09:00:00.000000+00:00"


@pytest.fixture
def database(tmp_path) -> Iterator[SqliteDatabase]:
    with SqliteDatabase(tmp_path / "runs.sqlite3") as made:
        yield made


@pytest.fixture
def runs(database) -> SqliteRunStore:
    return SqliteRunStore(database)


@pytest.fixture
def ledgers(database) -> SqliteLedgerStore:
    return SqliteLedgerStore(database)


def run(run_id: str = "r", **fields: Any) -> RunState:
    return RunState(run_id, "w", fields.pop("status", RunStatus.RUNNING), "n", **fields)


def record(run_id: str = "r", step_id: str = "s", **fields: Any) -> StepRecord:
    return StepRecord(run_id, step_id, "n", fields.pop("status", StepStatus.COMPLETED), **fields)


def test_the_stores_are_what_the_documented_interfaces_ask_for(database):
    for store in (SqliteRunStore(database), AsyncSqliteRunStore(database)):
        assert isinstance(store, RunStore)
        assert isinstance(store, QueryableRunStore)
        assert isinstance(store, DeletableRunStore)
    for ledger in (SqliteLedgerStore(database), AsyncSqliteLedgerStore(database)):
        assert isinstance(ledger, LedgerStore)
        assert isinstance(ledger, DeletableLedgerStore)


def test_a_saved_run_is_loaded_as_it_was_and_shares_nothing_with_what_is_stored(runs):
    state = run(vars={"list": [1]}, output={"a": None}, waiting=None, actor_id="a", session_id="s")
    runs.save(state)
    assert (state.revision, state.commit_id is not None) == (1, True)
    first, second = runs.load("r"), runs.load("r")
    assert first == second == state
    first.vars["list"].append(2)
    assert runs.load("r") == state
    assert runs.load("unknown") is None


def test_saving_raises_the_revision_in_place_so_that_the_same_object_can_be_saved_again(runs):
    state = run()
    for revision in (1, 2, 3):
        runs.save(state)
        assert state.revision == revision
    stale = copy_of_run(state)
    runs.save(state)
    stale.vars["mine"] = True
    with pytest.raises(RevisionConflict) as caught:
        runs.save(stale)
    assert (caught.value.expected, caught.value.found) == (3, 4)
    runs.save(stale, overwrite=True)
    assert stale.revision == 5
    assert runs.load("r").vars == {"mine": True}


async def test_overwriting_wins_against_whoever_is_faster(tmp_path):
    async with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        store = AsyncSqliteRunStore(database)
        await store.save(run())
        moved: list[int] = []
        load = database.backend.load

        async def load_and_be_overtaken(run_id: str) -> Any:
            loaded = await load(run_id)
            if len(moved) < 2:
                moved.append(len(moved))
                assert loaded is not None
                other = loaded.run
                overtaking = AsyncSqliteRunStore(database)
                database.backend.load = load  # type: ignore[method-assign]
                await overtaking.save(copy_of_run(other))
                database.backend.load = load_and_be_overtaken  # type: ignore[method-assign]
            return loaded

        database.backend.load = load_and_be_overtaken  # type: ignore[method-assign]
        await store.save(run(vars={"last": True}), overwrite=True)
        found = await load("r")
        assert found is not None
        assert (found.run.revision, found.run.vars) == (4, {"last": True})


def test_what_json_cannot_carry_is_refused_and_named(runs, ledgers):
    with pytest.raises(UnsafeValue, match=r"vars\.a"):
        runs.save(run(vars={"a": object()}))
    with pytest.raises(UnsafeValue, match=r"result\.a"):
        ledgers.append(record(result={"a": float("nan")}))
    assert runs.load("r") is None
    assert ledgers.list("r") == []


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a\nb", "x" * 300])
def test_an_id_that_could_be_none_is_refused(runs, ledgers, bad):
    with pytest.raises(InvalidId):
        runs.save(run(bad))
    with pytest.raises(InvalidId):
        ledgers.append(record(bad))
    assert isinstance(InvalidId(), ValueError)
    assert runs.load(bad) is None


def test_create_if_absent_inserts_once(runs):
    first, created = runs.create_if_absent(run(vars={"first": True}))
    assert created
    assert first.revision == 1
    second, created = runs.create_if_absent(run(vars={"second": True}))
    assert not created
    assert second.vars == {"first": True}


async def test_of_many_that_create_one_run_at_once_one_does(tmp_path):
    async with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        store = AsyncSqliteRunStore(database)
        winners: list[int] = []

        async def create(number: int) -> None:
            found, created = await store.create_if_absent(run(vars={"number": number}))
            if created:
                winners.append(number)
            assert "number" in found.vars

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(create, number)
        loaded = await store.load("r")
        assert loaded is not None
        assert [loaded.vars["number"]] == winners


def test_a_deleted_run_is_forgotten_and_its_ledger_stays(runs, ledgers):
    runs.save(run(status=RunStatus.WAITING, waiting=WaitState(WaitReason.UNTIL, None, AT), session_id="s"))
    ledgers.append(record())
    assert runs.delete("r")
    assert not runs.delete("r")
    assert not runs.delete("unknown")
    assert runs.load("r") is None
    assert runs.list_runs() == runs.list_due_wait_until(now_iso=AT) == runs.list_run_index(session_id="s") == []
    assert len(ledgers.list("r")) == 1
    runs.save(run())
    assert runs.load("r").records == 1
    ledgers.append(record(step_id="s2"))
    assert [row["step_id"] for row in ledgers.list("r")] == ["s", "s2"]


def test_a_deleted_ledger_is_forgotten_and_its_run_stays(runs, ledgers, database):
    runs.save(run())
    for number in range(3):
        ledgers.append(record(step_id=f"s{number}"))
    assert runs.load("r").records == 3
    assert ledgers.delete("r") == 3
    assert ledgers.delete("r") == ledgers.delete("unknown") == 0
    assert ledgers.list("r") == []
    assert runs.load("r").records == 0
    ledgers.append(record(step_id="anew"))
    assert ledgers.list_after(run_id="r", after=0)[1] == 1
    ledgers.append(record("ledger only"))
    assert ledgers.delete("ledger only") == 1
    connection = database.connection()
    assert [row["run_id"] for row in connection.execute("SELECT run_id FROM runs")] == ["r"]
    connection.close()


def test_a_ledger_needs_no_run_and_a_run_that_comes_later_goes_on_with_it(runs, ledgers):
    ledgers.append(record(step_id="before"))
    ledgers.append(record(step_id="before too"))
    assert runs.load("r") is None
    assert not runs.delete("r")
    state = run(session_id="s")
    runs.save(state)
    assert runs.load("r").records == 2
    assert [found.run_id for found in runs.list_runs(workflow_id="w")] == ["r"]
    ledgers.append(record(step_id="after"))
    assert [row["step_id"] for row in ledgers.list("r")] == ["before", "before too", "after"]
    runs.save(state)


def test_records_come_back_as_plain_dicts_in_the_order_they_were_appended(ledgers):
    made = record(result={"a": 1}, effect={"type": "host", "payload": {}, "result_key": None})
    ledgers.append(made)
    [row] = ledgers.list("r")
    assert row["status"] == "completed"
    assert type(row["status"]) is str
    assert (row["result"], row["effect"]) == (made.result, made.effect)
    assert row.keys() >= {"run_id", "step_id", "node_id", "attempt", "prev_hash", "started_at"}


def test_secrets_do_not_reach_the_ledger(ledgers):
    ledgers.append(record(result={"api_key": "sk-1"}))
    assert ledgers.list("r")[0]["result"] == {"api_key": {"$redacted": "api_key"}}


def test_a_ledger_is_read_page_by_page_with_a_cursor(ledgers):
    for number in range(7):
        ledgers.append(record(step_id=f"s{number}"))
    seen: list[str] = []
    cursor = 0
    while True:
        page, cursor = ledgers.list_after(run_id="r", after=cursor, limit=3)
        if not page:
            break
        seen += [row["step_id"] for row in page]
    assert (seen, cursor) == ([f"s{number}" for number in range(7)], 7)
    assert ledgers.list_after(run_id="r", after=99) == ([], 99)
    assert ledgers.list_after(run_id="unknown", after=0) == ([], 0)
    assert ledgers.count("r") == 7
    assert ledgers.count_many(["r", "unknown"]) == {"r": 7, "unknown": 0}


@given(st.lists(st.integers(1, 4), max_size=8), st.integers(-1, 30), st.integers(0, 10) | st.none())
def test_any_part_of_a_ledger_is_that_part_of_the_whole(sizes, after, limit):
    with SqliteDatabase(":memory:") as database:
        state, total = run(), 0
        for size in [0, *sizes]:
            expected, state.revision = state.revision or None, state.revision + 1
            new = [record(step_id=f"s{number}") for number in range(total, total + size)]
            portal.call(
                database.backend.commit,
                Write(
                    run=state,
                    data=encode_run(state),
                    expected=expected,
                    expected_records=total,
                    records=encode_records(new),
                    count=size,
                ),
            )
            total += size
        found = portal.call(database.backend.records, "r", after=after, limit=limit)
        names = [f"s{number}" for number in range(total)][max(0, after) :]
        assert [one.step_id for one in found] == (names if limit is None else names[:limit])
        assert SqliteLedgerStore(database).count("r") == total


def test_metrics_count_what_was_completed(ledgers):
    llm: dict[str, Any] = {"type": "llm_call", "payload": {"tool_calls": [{}, {}]}}
    tools: dict[str, Any] = {**llm, "type": "tool_calls"}
    for effect, usage in (
        (llm, {"total_tokens": 10, "input_tokens": 99}),
        (llm, {"input_tokens": 3, "output_tokens": 4}),
        (llm, {"prompt_tokens": 1, "completion_tokens": 1}),
        (llm, {"prompt_tokens": "many", "completion_tokens": True}),
        (llm, None),
        (tools, {"total_tokens": 1_000}),
        (None, None),
    ):
        ledgers.append(record(effect=effect, result={"usage": usage}))
    ledgers.append(record(effect=llm, result=None))
    ledgers.append(record(effect={"type": "tool_calls", "payload": None}))
    ledgers.append(record(effect=llm, status=StepStatus.STARTED, result={"usage": {"total_tokens": 1}}))
    assert ledgers.metrics_many(["r", "unknown"]) == {
        "r": {"steps": 9, "llm_calls": 6, "tool_calls": 2, "tokens_total": 19},
        "unknown": metrics_of([]),
    }


def test_a_pair_on_one_database_is_joint_and_any_other_is_not(database, tmp_path):
    class Counting(SqliteLedgerStore):
        def append(self, record: StepRecord) -> None:
            super().append(record)

    class Named(SqliteRunStore):
        """Overrides no documented method."""

    pairs = [
        (runs, ledgers)
        for runs in (SqliteRunStore, AsyncSqliteRunStore)
        for ledgers in (SqliteLedgerStore, AsyncSqliteLedgerStore)
    ]
    for runs, ledgers in pairs:
        assert runs(database).join(ledgers(database)) is database.backend
    assert Named(database).join(SqliteLedgerStore(database)) is database.backend
    assert SqliteRunStore(database).join(Counting(database)) is None
    assert SqliteRunStore(database).join(object()) is None
    with SqliteDatabase(tmp_path / "runs.sqlite3") as other:
        assert SqliteRunStore(database).join(SqliteLedgerStore(other)) is None


def test_a_run_that_is_saved_with_another_session_is_found_there(runs):
    state = run(session_id="before", parent_run_id="p")
    runs.save(state)
    state.session_id, state.parent_run_id, state.workflow_id = "after", None, "other"
    state.status = RunStatus.COMPLETED
    runs.save(state)
    assert runs.list_run_index(session_id="before") == runs.list_children(parent_run_id="p") == []
    assert [row["run_id"] for row in runs.list_run_index(session_id="after", root_only=True)] == ["r"]
    assert [found.run_id for found in runs.list_runs(workflow_id="other")] == ["r"]


def test_a_request_that_stands_is_kept_when_a_host_saves_the_run_over_it(database, runs):
    """A plain save meets a conflict and says why; overwriting answers it, as the contract of prepare_save says."""
    state, other = run(), run("other")
    runs.save(state)
    asked = Request(run_id="r", kind="pause", by="tester", at=AT)
    portal.call(database.backend.commit, Write(run=other, data=encode_run(other), expected=None, requests=(asked,)))
    with pytest.raises(RevisionConflict, match="a pause request stands"):
        runs.save(state)
    runs.save(state, overwrite=True)
    runs.save(state)


def test_the_files_of_a_closed_database_are_one(tmp_path):
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        SqliteRunStore(database).save(run())
    assert os.listdir(tmp_path) == ["x.sqlite3"]
