"""Stores in memory: nothing handed out is aliased, a save is guarded, and queries mean what the contract says."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    Effect,
    EffectCall,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
    WorkflowSpec,
)
from abstractruntime.core.backend import Write
from abstractruntime.core.codec import encode_records, encode_run, record_dict
from abstractruntime.core.errors import InvalidId, RevisionConflict, UnsafeValue
from abstractruntime.core.models import Intent
from abstractruntime.storage.base import Backend, due_first, index_row, newest_first, run_filter

from .scale import scaled

NOW = "2026-01-31T09:00:00.000000+00:00"


def a_run(run_id: str = "r", **fields: Any) -> RunState:
    run = RunState.new(workflow_id="w", entry_node="n", vars={"list": [1], "deep": {"x": {}}})
    return replace(run, run_id=run_id, **fields)


def a_record(run_id: str = "r", **fields: Any) -> StepRecord:
    return replace(StepRecord(run_id, "own", "n", StepStatus.COMPLETED, {"payload": [1]}, {"a": [1]}), **fields)


def an_intent() -> Intent:
    return Intent(step_id="r:0.1", seq=0, node_id="n", effect=Effect("pay"), key="k", started_at=NOW, token="t")


@pytest.fixture
def runs() -> InMemoryRunStore:
    return InMemoryRunStore()


@pytest.fixture
def ledger() -> InMemoryLedgerStore:
    return InMemoryLedgerStore()


def loaded(runs: InMemoryRunStore, run_id: str = "r") -> RunState:
    run = runs.load(run_id)
    assert run is not None
    return run


# -- nothing is aliased


def test_a_saved_run_does_not_follow_its_object(runs: InMemoryRunStore):
    run = a_run(waiting=WaitState(WaitReason.EVENT, "door", details={"a": [1]}), output={"o": [1]})
    runs.save(run)
    run.vars["list"].append(2)
    run.vars["new"] = 1
    run.output["o"].append(2)
    assert run.waiting is not None
    assert run.waiting.details is not None
    run.waiting.details["a"].append(2)
    run.current_node = "elsewhere"
    found = loaded(runs)
    assert found.vars == {"list": [1], "deep": {"x": {}}}
    assert found.output == {"o": [1]}
    assert found.waiting is not None
    assert found.waiting.details == {"a": [1]}
    assert found.current_node == "n"


@pytest.mark.parametrize(
    "read",
    [
        lambda runs: runs.load("r"),
        lambda runs: runs.list_runs()[0],
        lambda runs: runs.list_children(parent_run_id="p")[0],
        lambda runs: runs.list_due_wait_until(now_iso=NOW)[0],
        lambda runs: runs.create_if_absent(a_run())[0],
    ],
    ids=["load", "list_runs", "list_children", "list_due_wait_until", "create_if_absent"],
)
def test_a_run_that_was_read_can_be_changed_without_changing_the_stored_one(
    runs: InMemoryRunStore, read: Callable[[InMemoryRunStore], RunState]
):
    wait = WaitState(WaitReason.UNTIL, until=NOW, details={"a": [1]})
    runs.save(a_run(status=RunStatus.WAITING, waiting=wait, parent_run_id="p"))
    before = loaded(runs)
    one, other = read(runs), read(runs)
    assert one == other == before
    one.vars["list"].append(2)
    one.status = RunStatus.FAILED
    assert one.waiting is not None
    assert one.waiting.details is not None
    one.waiting.details["a"].append(2)
    assert loaded(runs) == other == before


def test_a_row_of_the_index_can_be_changed_without_changing_the_run(runs: InMemoryRunStore):
    runs.save(a_run(vars={"_run_lifecycle": {"archived": [1]}}))
    row = runs.list_run_index()[0]
    row["run_lifecycle"]["archived"].append(2)
    assert runs.list_run_index()[0]["run_lifecycle"] == {"archived": [1]}


def test_an_appended_record_does_not_follow_its_object(ledger: InMemoryLedgerStore):
    record = a_record()
    ledger.append(record)
    record.result["a"].append(2)
    record.finish_failure("no")
    assert ledger.list("r")[0]["result"] == {"a": [1]}
    assert ledger.list("r")[0]["status"] == "completed"


def test_records_that_were_read_can_be_changed_without_changing_the_ledger(ledger: InMemoryLedgerStore):
    ledger.append(a_record())
    found = ledger.list("r")
    found[0]["result"]["a"].append(2)
    found.clear()
    assert ledger.list("r")[0]["result"] == {"a": [1]}


async def test_a_state_from_the_runtime_can_be_changed_without_changing_the_run():
    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("n", Effect("ask_user", {"prompt": "?"}, "answer"), "n")

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "n", {"n": node})
    given = {"list": [1]}
    rt = AsyncRuntime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    run_id = await rt.start(workflow=workflow, vars=given)
    given["list"].append(2)
    state = await rt.tick(workflow=workflow, run_id=run_id)
    assert state.vars["list"] == [1]
    state.vars["list"].append(3)
    assert (await rt.get_state(run_id)).vars["list"] == [1]
    answer = {"text": ["yes"]}
    state = await rt.resume(workflow=workflow, run_id=run_id, wait_key=None, payload=answer, max_steps=0)
    answer["text"].append("no")
    assert (await rt.get_state(run_id)).vars["answer"] == {"text": ["yes"]}


async def test_a_result_that_its_handler_goes_on_to_change_does_not_change_the_run():
    kept: list[str] = []

    def handler(call: EffectCall) -> EffectOutcome:
        kept.append(call.node_id)
        return EffectOutcome.completed(kept)

    def first(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("first", Effect("h", {}, "first"), "second")

    def second(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("second", Effect("h", {}, "second"), "end")

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output={"first": run.vars["first"], "second": run.vars["second"]})

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "first", {"first": first, "second": second, "end": end})
    stores = InMemoryRunStore(), InMemoryLedgerStore()
    rt = AsyncRuntime(run_store=stores[0], ledger_store=stores[1], effect_handlers={"h": handler})
    state = await rt.run(workflow)
    assert state.output == {"first": ["first"], "second": ["first", "second"]}


async def test_what_a_node_changed_before_it_raised_is_dropped():
    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["list"].append(2)
        raise LookupError("no")

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "n", {"n": node})
    rt = AsyncRuntime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    run_id = await rt.start(workflow=workflow, vars={"list": [1]})
    for _ in range(2):
        with pytest.raises(LookupError):
            await rt.tick(workflow=workflow, run_id=run_id)
        assert (await rt.get_state(run_id)).vars["list"] == [1]


# -- save


def test_an_unknown_run_is_inserted_at_revision_one(runs: InMemoryRunStore):
    run = a_run()
    runs.save(run)
    assert run.revision == 1
    assert run.commit_id is not None
    assert loaded(runs) == run


def test_a_run_that_comes_from_elsewhere_keeps_its_revision(runs: InMemoryRunStore):
    run = a_run(revision=7, records=9)
    runs.save(run)
    assert (run.revision, loaded(runs).revision, loaded(runs).records) == (7, 7, 0)


def test_a_save_at_the_stored_revision_writes_and_raises_it_in_place(runs: InMemoryRunStore):
    run = a_run()
    for revision in (1, 2, 3):
        run.vars["n"] = revision
        runs.save(run)
        assert run.revision == loaded(runs).revision == revision
        assert run.commit_id == loaded(runs).commit_id
    assert loaded(runs).vars["n"] == 3


def test_what_was_loaded_and_changed_can_be_saved(runs: InMemoryRunStore):
    runs.save(a_run())
    run = loaded(runs)
    run.vars["seen"] = True
    run.status = RunStatus.FAILED
    runs.save(run)
    assert (loaded(runs).vars["seen"], loaded(runs).status) == (True, RunStatus.FAILED)


@pytest.mark.parametrize("stale", [0, 1, 3])
def test_a_save_at_another_revision_is_refused_and_names_both_and_the_way_out(runs: InMemoryRunStore, stale: int):
    run = a_run()
    runs.save(run)
    runs.save(run)
    before = loaded(runs)
    other = a_run(revision=stale, vars={"lost": True})
    with pytest.raises(RevisionConflict) as caught:
        runs.save(other)
    assert (caught.value.run_id, caught.value.expected, caught.value.found) == ("r", stale, 2)
    for part in ("'r'", "at revision 2", f"from revision {stale}", "Load the run", "overwrite=True"):
        assert part in str(caught.value)
    assert loaded(runs) == before
    assert other.revision == stale


def test_the_second_of_two_who_loaded_the_same_run_is_refused(runs: InMemoryRunStore):
    runs.save(a_run())
    one, other = loaded(runs), loaded(runs)
    runs.save(one)
    with pytest.raises(RevisionConflict):
        runs.save(other)


def test_an_overwrite_replaces_what_is_stored_whatever_its_revision(runs: InMemoryRunStore):
    run = a_run()
    runs.save(run)
    runs.save(run)
    fresh = a_run(vars={"fresh": True})
    runs.save(fresh, overwrite=True)
    assert (fresh.revision, loaded(runs).revision) == (3, 3)
    assert loaded(runs).vars == {"fresh": True}


def test_an_overwrite_by_an_object_built_without_engine_fields_keeps_the_stored_ones(runs: InMemoryRunStore):
    engine: dict[str, Any] = {
        "intent": an_intent(),
        "owner": "o",
        "fingerprint": "f",
        "workflow_version": "1",
        "identity": "i",
        "records": 0,
    }
    runs.save(a_run(revision=5, **engine))
    runs.save(a_run(vars={"fresh": True}), overwrite=True)
    found = loaded(runs)
    assert {name: getattr(found, name) for name in engine} == engine
    assert (found.revision, found.vars) == (6, {"fresh": True})


def test_an_overwrite_of_an_unknown_run_inserts_it(runs: InMemoryRunStore):
    run = a_run()
    runs.save(run, overwrite=True)
    assert loaded(runs).revision == run.revision == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"vars": {"a": [math.nan]}}, "vars.a[0]"),
        ({"vars": {"a": {1}}}, "vars.a"),
        ({"vars": {"\ud800": 1}}, "vars"),
        ({"output": {"a": b"x"}}, "output.a"),
        ({"waiting": WaitState(WaitReason.EVENT, "k", details={"a": math.inf})}, "waiting"),
    ],
)
def test_what_json_cannot_carry_is_refused_and_nothing_is_stored(
    runs: InMemoryRunStore, fields: dict[str, Any], path: str
):
    with pytest.raises(UnsafeValue) as caught:
        runs.save(a_run(**fields))
    assert caught.value.path.startswith(path)
    assert runs.load("r") is None


def test_what_json_changes_is_stored_as_it_reads_back(runs: InMemoryRunStore):
    runs.save(a_run(vars={"pair": (1, 2), 3: None}))
    assert loaded(runs).vars == {"pair": [1, 2], "3": None}


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "a\\b", "x" * 201, "a\nb", None, 5])
def test_an_id_that_could_be_a_path_is_refused(runs: InMemoryRunStore, run_id: Any):
    with pytest.raises(InvalidId):
        runs.save(a_run(run_id))


def test_the_instant_of_a_wait_is_stored_as_utc(runs: InMemoryRunStore):
    wait = WaitState(WaitReason.UNTIL, until="2026-01-31T10:00:00+01:00")
    runs.save(a_run(status=RunStatus.WAITING, waiting=wait))
    waiting = loaded(runs).waiting
    assert waiting is not None
    assert waiting.until == NOW
    with pytest.raises(ValueError, match="'soon' is no instant"):
        runs.save(a_run("other", waiting=WaitState(WaitReason.UNTIL, until="soon")))


def test_an_unknown_run_loads_as_none(runs: InMemoryRunStore):
    assert runs.load("r") is None


def test_only_the_first_of_two_creates_a_run(runs: InMemoryRunStore):
    first, made = runs.create_if_absent(a_run(vars={"n": 1}))
    second, made_again = runs.create_if_absent(a_run(vars={"n": 2}))
    assert (made, made_again) == (True, False)
    assert first.vars == second.vars == loaded(runs).vars == {"n": 1}


def test_a_deleted_run_is_gone_and_says_whether_it_was_there(runs: InMemoryRunStore):
    runs.save(a_run())
    assert runs.delete("r")
    assert not runs.delete("r")
    assert runs.load("r") is None
    assert runs.list_runs() == []


def test_of_threads_that_save_at_once_each_revision_has_one_winner(runs: InMemoryRunStore):
    runs.save(a_run(vars={"n": 0}))
    rounds, threads = scaled(50, 1000), 4

    def add() -> None:
        for _ in range(rounds):
            while True:
                run = loaded(runs)
                run.vars["n"] += 1
                try:
                    runs.save(run)
                    break
                except RevisionConflict:
                    continue

    workers = [threading.Thread(target=add) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert loaded(runs).vars["n"] == rounds * threads
    assert loaded(runs).revision == rounds * threads + 1


# -- the ledger


def test_records_are_listed_in_the_order_they_were_appended(ledger: InMemoryLedgerStore):
    records = [a_record(step_id=str(number)) for number in range(5)]
    for record in records:
        ledger.append(record)
    ledger.append(a_record("other"))
    assert ledger.list("r") == [record_dict(record) for record in records]
    assert (ledger.count("r"), ledger.count("other"), ledger.count("unknown")) == (5, 1, 0)
    assert ledger.list("unknown") == []


def test_the_same_record_appended_twice_is_two_entries(ledger: InMemoryLedgerStore):
    record = a_record(status=StepStatus.STARTED)
    ledger.append(record)
    ledger.append(record.finish_success({"ok": True}))
    assert [entry["status"] for entry in ledger.list("r")] == ["started", "completed"]


def test_a_deleted_ledger_is_gone_and_says_how_much_it_was(ledger: InMemoryLedgerStore):
    for _ in range(3):
        ledger.append(a_record())
    ledger.append(a_record("other"))
    assert ledger.delete("r") == 3
    assert ledger.delete("r") == 0
    assert ledger.list("r") == []
    assert ledger.count("other") == 1


def test_a_record_without_a_run_is_refused(ledger: InMemoryLedgerStore):
    with pytest.raises(InvalidId):
        ledger.append(a_record(""))


@pytest.mark.parametrize("field", ["effect", "result"])
def test_a_record_that_json_cannot_carry_is_refused(ledger: InMemoryLedgerStore, field: str):
    with pytest.raises(UnsafeValue):
        ledger.append(a_record("r", **{field: {"payload": math.nan}}))
    assert ledger.list("r") == []


# -- queries, beside their reference meaning


def many_runs(seed: int) -> list[RunState]:
    rng = random.Random(seed)
    instants = [f"2026-01-31T0{hour}:00:00.000000+00:00" for hour in range(10)]
    found = []
    for number in range(40):
        status = rng.choice(list(RunStatus))
        wait = None
        if status is RunStatus.WAITING:
            wait = WaitState(rng.choice(list(WaitReason)), "k", until=rng.choice([None, *instants]))
        run = a_run(
            f"run{number}",
            status=status,
            waiting=wait,
            workflow_id=rng.choice(["w", "v"]),
            session_id=rng.choice([None, "s", "t"]),
            parent_run_id=rng.choice([None, "p", "q"]),
            actor_id=rng.choice([None, "ann"]),
            updated_at=rng.choice(instants),
            created_at=rng.choice(instants),
        )
        if rng.random() < 0.2:
            run.vars = {"_runtime": {"control": {"paused": True}}, "_run_lifecycle": {"n": number}}
        found.append(run)
    return found


def ids(found: list[RunState]) -> list[str]:
    return [run.run_id for run in found]


@pytest.fixture
def stored(runs: InMemoryRunStore, seed: int) -> list[RunState]:
    """Forty random runs that are in the store, as they are stored."""
    for run in many_runs(seed):
        runs.save(run)
    return [loaded(runs, f"run{number}") for number in range(40)]


@pytest.mark.parametrize("status", [None, *RunStatus])
@pytest.mark.parametrize("workflow_id", [None, "w", "none"])
def test_runs_are_listed_newest_first_by_any_filter(
    runs: InMemoryRunStore, stored: list[RunState], status: RunStatus | None, workflow_id: str | None
):
    for reason in (None, *WaitReason):
        filters: dict[str, Any] = {"status": status, "wait_reason": reason, "workflow_id": workflow_id}
        expected = newest_first(filter(run_filter(**filters), stored))
        assert runs.list_runs(**filters) == expected
        assert runs.list_runs(**filters, limit=3) == expected[:3]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (5, 5), (0, 100), (-3, 1), (1000, 120)])
def test_a_limit_of_nothing_means_a_hundred_and_less_means_one(runs: InMemoryRunStore, limit: int, count: int):
    for number in range(120):
        runs.save(a_run(f"run{number}"))
    assert len(runs.list_runs(limit=limit)) == count
    assert len(runs.list_run_index(limit=limit)) == count
    assert len(runs.list_runs()) == 100


def test_due_waits_are_listed_earliest_first_and_paused_ones_left_out(runs: InMemoryRunStore, stored: list[RunState]):
    for hour in range(11):
        now = f"2026-01-31T{hour:02}:00:00.000000+00:00"
        expected = due_first(stored, now)
        assert runs.list_due_wait_until(now_iso=now) == expected
        assert runs.list_due_wait_until(now_iso=now, limit=2) == expected[:2]
    assert not any(run.paused for run in runs.list_due_wait_until(now_iso="2027-01-01T00:00:00.000000+00:00"))


@pytest.mark.parametrize("now", ["2026-01-31T09:00:00Z", "2026-01-31T09:00:00+00:00", "2026-01-31T10:00:00+01:00"])
def test_the_instant_asked_for_may_be_written_in_any_way(runs: InMemoryRunStore, now: str):
    runs.save(a_run(status=RunStatus.WAITING, waiting=WaitState(WaitReason.UNTIL, until=NOW)))
    assert ids(runs.list_due_wait_until(now_iso=now)) == ["r"]


def test_children_are_listed_oldest_first(runs: InMemoryRunStore, stored: list[RunState]):
    children = [run for run in stored if run.parent_run_id == "p"]
    assert runs.list_children(parent_run_id="p") == children
    for status in RunStatus:
        expected = [run for run in children if run.status is status]
        assert runs.list_children(parent_run_id="p", status=status) == expected
    assert runs.list_children(parent_run_id="unknown") == []


def test_the_index_has_a_narrow_row_per_run(runs: InMemoryRunStore, stored: list[RunState]):
    assert runs.list_run_index() == [index_row(run) for run in newest_first(stored)]
    for session in ("s", "none"):
        expected = [index_row(run) for run in newest_first(stored) if run.session_id == session]
        assert runs.list_run_index(session_id=session) == expected
    roots = [index_row(run) for run in newest_first(stored) if not run.parent_run_id]
    assert runs.list_run_index(root_only=True) == roots
    done = [row for row in roots if row["status"] == "completed" and row["workflow_id"] == "w"]
    assert runs.list_run_index(status=RunStatus.COMPLETED, workflow_id="w", root_only=True) == done


# -- joined: one atomic commit


@pytest.fixture
def backend(runs: InMemoryRunStore, ledger: InMemoryLedgerStore) -> Backend:
    joint = runs.join(ledger)
    assert joint is not None
    return joint


def a_write(run: RunState, expected: int | None, records: list[StepRecord] | None = None, **fields: Any) -> Write:
    given = records or []
    return Write(
        run=run, data=encode_run(run), expected=expected, records=encode_records(given), count=len(given), **fields
    )


async def test_a_write_stores_state_records_and_requests_together(
    backend: Backend, runs: InMemoryRunStore, ledger: InMemoryLedgerStore
):
    await backend.commit(a_write(a_run("other", revision=1), None))
    asked = Request(run_id="other", kind="cancel", by="r", at=NOW)
    unknown = Request(run_id="unknown", kind="cancel", by="r", at=NOW)
    record = a_record(idempotency_key="k", commit_id="c")
    await backend.commit(
        a_write(a_run(revision=1), None, [record, a_record()], lookup_key="k", requests=(asked, asked, unknown))
    )
    assert loaded(runs).revision == 1
    assert ledger.count("r") == 2
    found = await backend.load("other")
    assert found is not None
    assert found.requests == (asked,)
    assert [r.idempotency_key for r in await backend.find("r", "k")][:1] == ["k"]
    assert await backend.find("r", "another") == []
    assert await backend.landed("r", "c")
    assert not await backend.landed("r", "d")
    assert await backend.records("r", after=1) == [a_record(started_at=(await backend.records("r"))[1].started_at)]
    assert len(await backend.records("r", limit=1)) == 1


@pytest.mark.parametrize(
    "write",
    [
        a_write(a_run(revision=1), None, [a_record()]),
        a_write(a_run(revision=3), 2, [a_record()], expected_records=1),
        a_write(a_run(revision=2), 0, [a_record()], expected_records=1),
        a_write(a_run(revision=2), 1, [a_record()], expected_records=0),
        a_write(a_run(revision=2), 1, [a_record()], expected_records=2),
        a_write(a_run(revision=2), 1, [a_record()], expected_records=1, answered=1),
        a_write(a_run("gone", revision=2), 1, [a_record("gone")]),
    ],
    ids=["exists", "too new", "too old", "fewer records", "more records", "no request stands", "unknown"],
)
async def test_a_write_whose_guard_does_not_hold_stores_nothing_at_all(
    backend: Backend, ledger: InMemoryLedgerStore, write: Write
):
    await backend.commit(a_write(a_run("other", revision=1), None))
    await backend.commit(a_write(a_run(revision=1), None, [a_record()]))
    before = await backend.load("r")
    asks = replace(write, requests=(Request(run_id="other", kind="cancel", by="r", at=NOW),))
    with pytest.raises(RevisionConflict):
        await backend.commit(asks)
    assert await backend.load("r") == before
    assert (ledger.count("r"), ledger.count("gone")) == (1, 0)
    other = await backend.load("other")
    assert other is not None
    assert other.requests == ()


async def test_a_standing_request_refuses_every_write_that_does_not_answer_it(backend: Backend):
    await backend.commit(a_write(a_run(revision=1), None))
    asked = Request(run_id="r", kind="cancel", by="other", at=NOW)
    await backend.commit(a_write(a_run("other", revision=1), None, requests=(asked,)))
    with pytest.raises(RevisionConflict, match="a request stands"):
        await backend.commit(a_write(a_run(revision=2), 1))
    assert await backend.claims(["r", "other", "unknown"]) == {"r": (None, True), "other": (None, False)}
    await backend.commit(a_write(a_run(revision=2, intent=an_intent()), 1, answered=1))
    found = await backend.load("r")
    assert found is not None
    assert found.requests == ()
    assert await backend.claims(["r"]) == {"r": ("t", False)}


async def test_an_ended_run_is_not_asked_for_anything(backend: Backend):
    await backend.commit(a_write(a_run(revision=1, status=RunStatus.COMPLETED), None))
    asked = Request(run_id="r", kind="cancel", by="other", at=NOW)
    await backend.commit(a_write(a_run("other", revision=1), None, requests=(asked,)))
    found = await backend.load("r")
    assert found is not None
    assert found.requests == ()


async def test_a_record_appended_by_hand_makes_the_next_commit_look_again(
    backend: Backend, ledger: InMemoryLedgerStore
):
    await backend.commit(a_write(a_run(revision=1), None))
    ledger.append(a_record())
    with pytest.raises(RevisionConflict, match="its ledger grew"):
        await backend.commit(a_write(a_run(revision=2), 1, [a_record()]))
    found = await backend.load("r")
    assert found is not None
    assert found.run.records == 1
    await backend.commit(a_write(a_run(revision=2), 1, [a_record()], expected_records=1))
    assert ledger.count("r") == 2


# -- which pairs are joint


def test_any_two_of_ours_in_memory_are_a_joint_pair(runs: InMemoryRunStore, ledger: InMemoryLedgerStore):
    for one in (runs, runs.aio, AsyncInMemoryRunStore()):
        for other in (ledger, ledger.aio, AsyncInMemoryLedgerStore()):
            assert one.join(other) is not None


def test_a_store_whose_documented_methods_were_overridden_is_not_joined(ledger: InMemoryLedgerStore):
    class Saves(InMemoryRunStore):
        def save(self, run: RunState, *, overwrite: bool = False) -> None:
            super().save(run, overwrite=overwrite)

    class Lists(InMemoryLedgerStore):
        def list(self, run_id: str) -> list[dict[str, Any]]:
            return super().list(run_id)

    class Named(InMemoryRunStore):
        """Adds nothing that the runtime would have to call."""

    assert Saves().join(ledger) is None
    assert InMemoryRunStore().join(Lists()) is None
    assert InMemoryRunStore().join(object()) is None
    assert Named().join(ledger) is not None


async def test_the_async_stores_are_the_same_stores(runs: InMemoryRunStore, ledger: InMemoryLedgerStore):
    run = a_run()
    await runs.aio.save(run)
    await ledger.aio.append(a_record())
    assert runs.aio.sync is runs
    assert await runs.aio.load("r") == runs.load("r") == run
    assert await runs.aio.create_if_absent(a_run()) == (run, False)
    assert await runs.aio.list_runs() == runs.list_runs()
    assert await runs.aio.list_run_index() == runs.list_run_index()
    assert await runs.aio.list_children(parent_run_id="p") == []
    assert await runs.aio.list_due_wait_until(now_iso=NOW) == []
    assert await ledger.aio.list("r") == ledger.list("r")
    assert await ledger.aio.count("r") == 1
    with pytest.raises(RevisionConflict):
        await runs.aio.save(a_run())
    await runs.aio.save(a_run(), overwrite=True)
    assert await runs.aio.delete("r")
    assert await ledger.aio.delete("r") == 1
    assert (runs.load("r"), ledger.list("r")) == (None, [])
