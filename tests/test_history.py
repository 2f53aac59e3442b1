"""A run's history as one JSON value, and the workflow that it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    RUN_HISTORY_BUNDLE_VERSION_V1,
    AsyncInMemoryArtifactStore,
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    Effect,
    FileArtifactStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RevisionConflict,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StoreError,
    UnknownRun,
    UnsafeValue,
    WorkflowSpec,
    aexport_run_history_bundle,
    export_run_history_bundle,
    persist_workflow_snapshot,
)
from abstractruntime.history import apersist_workflow_snapshot

from . import worlds
from .clocks import StillClock
from .test_restore import UserLedger, UserRuns


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect("ask_user", {"prompt": "Go on?"}, "answer"), "end")


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("talk", "ask", {"ask": ask, "end": worlds.end})


@pytest.fixture(params=["memory", "sqlite"])
def stores(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "memory":
        yield InMemoryRunStore(), InMemoryLedgerStore()
        return
    with SqliteDatabase(tmp_path / "runs.db") as database:
        yield SqliteRunStore(database), SqliteLedgerStore(database)


def lived(stores: tuple[Any, Any], clock: StillClock, run_id: str = "r", answer: Any = "yes", **start: Any) -> None:
    """A run that waited a minute for its answer."""
    with Runtime(run_store=stores[0], ledger_store=stores[1], clock=clock) as rt:
        rt.start(workflow=WORKFLOW, run_id=run_id, **start)
        rt.tick(workflow=WORKFLOW, run_id=run_id)
        clock.advance(60)
        rt.resume(workflow=WORKFLOW, run_id=run_id, wait_key=None, payload=answer)


def export(stores: tuple[Any, Any], run_id: str = "r", **options: Any) -> dict[str, Any]:
    bundle = export_run_history_bundle(run_id=run_id, run_store=stores[0], ledger_store=stores[1], **options)
    assert json.loads(json.dumps(bundle)) == bundle, "it is plain JSON"
    return bundle


def test_a_bundle_has_all_that_is_stored_of_a_run(stores):
    lived(stores, StillClock(), vars={"task": "t"}, actor_id="ann", session_id="s")
    bundle = export(stores)
    assert list(bundle) == [
        "version",
        "generated_at",
        "root_run_id",
        "run",
        "workflow_snapshot",
        "input_data",
        "ledgers",
        "timeline",
        "session",
    ]
    assert (bundle["version"], bundle["root_run_id"]) == (RUN_HISTORY_BUNDLE_VERSION_V1, "r")
    assert (bundle["workflow_snapshot"], bundle["session"]) == (None, None)
    run = bundle["run"]
    assert set(run) == {
        *("run_id", "workflow_id", "status", "current_node", "created_at", "updated_at", "actor_id", "session_id"),
        *("parent_run_id", "error", "waiting"),
    }
    assert (run["status"], run["current_node"], run["actor_id"], run["waiting"]) == ("completed", "end", "ann", None)
    assert bundle["input_data"] == {"task": "t", "answer": "yes"}
    (ledger,) = bundle["ledgers"].values()
    assert ledger["items"] == [{"cursor": n, "record": r} for n, r in enumerate(stores[1].list("r"), 1)]
    assert {name: ledger[name] for name in ledger if name != "items"} == {
        "run_id": "r",
        "total": 5,
        "cursor_start": 1,
        "cursor_end": 5,
        "artifacts": [],
    }
    told = [(entry["cursor"], entry["status"], entry["effect_type"]) for entry in bundle["timeline"]]
    assert told == [
        (2, "waiting", "ask_user"),
        (3, "completed", "resume"),
        (4, "completed", None),
        (5, "completed", "emit_event"),
    ]
    assert bundle["timeline"][0] == {
        "run_id": "r",
        "cursor": 2,
        "node_id": "ask",
        "status": "waiting",
        "effect_type": "ask_user",
        "started_at": "2026-01-31T09:00:00.000000+00:00",
        "ended_at": "2026-01-31T09:00:00.000000+00:00",
        "duration_ms": 0.0,
    }


def test_a_run_that_waits_says_for_what(stores):
    with Runtime(run_store=stores[0], ledger_store=stores[1]) as rt:
        rt.start(workflow=WORKFLOW, run_id="r")
        rt.tick(workflow=WORKFLOW, run_id="r")
    waiting = export(stores)["run"]["waiting"]
    assert (waiting["reason"], waiting["prompt"], len(waiting)) == ("user", "Go on?", 9)


def test_the_tail_of_a_ledger_keeps_its_numbers(stores):
    lived(stores, StillClock())
    for most, cursors in ((2, [4, 5]), (5, [1, 2, 3, 4, 5]), (0, [5]), (99, [1, 2, 3, 4, 5])):
        (ledger,) = export(stores, ledger_max_items=most)["ledgers"].values()
        assert [item["cursor"] for item in ledger["items"]] == cursors
        assert (ledger["cursor_start"], ledger["cursor_end"], ledger["total"]) == (cursors[0], 5, 5)
    (ledger,) = export(stores, ledger_mode="full", ledger_max_items=1)["ledgers"].values()
    assert len(ledger["items"]) == 5


def test_a_run_without_records_and_a_step_in_flight_are_told():
    stores = UserRuns(), UserLedger()
    stores[0].save(RunState.new(workflow_id="w", entry_node="n", run_id="r"))
    (ledger,) = export(stores)["ledgers"].values()
    assert (ledger["cursor_start"], ledger["cursor_end"], ledger["items"]) == (0, 0, [])
    lived((InMemoryRunStore(), ledgers := InMemoryLedgerStore()), StillClock())
    stores[1].kept = ledgers.list("r")[:1]
    (entry,) = export(stores)["timeline"]
    assert (entry["status"], entry["ended_at"], entry["duration_ms"]) == ("started", None, None)


def test_subruns_are_in_it_and_the_timeline_is_of_all(stores):
    clock = StillClock()
    for run_id, parent in (("r", None), ("a", "r"), ("b", "a"), ("c", "r"), ("x", None)):
        lived(stores, clock, run_id, parent_run_id=parent)
        clock.advance(1)
    bundle = export(stores)
    assert list(bundle["ledgers"]) == ["r", "a", "c", "b"]
    times = [entry["ended_at"] for entry in bundle["timeline"]]
    assert times == sorted(times)
    assert [entry["run_id"] for entry in bundle["timeline"]] == [name for name in "rabc" for _ in range(4)]
    assert list(export(stores, include_subruns=False)["ledgers"]) == ["r"]


def test_runs_that_name_each_other_as_parents_are_told_once():
    runs = InMemoryRunStore()
    for run_id, parent in (("r", "a"), ("a", "r")):
        runs.save(RunState.new(workflow_id="w", entry_node="n", run_id=run_id, parent_run_id=parent))
    assert list(export((runs, InMemoryLedgerStore()))["ledgers"]) == ["r", "a"]


def test_a_session_is_the_turns_of_its_root_runs(stores):
    clock = StillClock()
    for run_id, session, parent in (
        ("one", "s", None),
        ("two", "s", None),
        ("r", "s", None),
        ("sub", "s", "r"),
        ("x", "t", None),
    ):
        lived(stores, clock, run_id, session_id=session, parent_run_id=parent, vars={"by": run_id})
    session = export(stores, include_session=True)["session"]
    assert session["session_id"] == "s"
    assert [turn["run_id"] for turn in session["turns"]] == ["one", "two", "r"]
    assert session["turns"][0]["input_data"] == {"by": "one", "answer": "yes"}
    assert session["turns"][0]["status"] == "completed"
    assert [
        turn["run_id"] for turn in export(stores, include_session=True, session_turn_limit=1)["session"]["turns"]
    ] == ["r"]
    lived(stores, clock, "alone")
    assert export(stores, "alone", include_session=True)["session"] is None


def test_large_input_is_moved_out_and_artifacts_are_listed(stores, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("ABSTRACTRUNTIME_MAX_INLINE_BYTES", "100")
    lived(stores, StillClock(), vars={"large": "x" * 500, "small": [1]})
    assert export(stores)["input_data"]["large"] == "x" * 500
    for artifacts in (InMemoryArtifactStore(), FileArtifactStore(tmp_path / "artifacts"), AsyncInMemoryArtifactStore()):
        bundle = export(stores, artifact_store=artifacts)
        (name,) = bundle["input_data"]["large"].values()
        assert bundle["input_data"] == {"large": {"$artifact": name}, "small": [1], "answer": "yes"}
        (listed,) = export(stores, artifact_store=artifacts)["ledgers"]["r"]["artifacts"]
        assert (listed["artifact_id"], listed["tags"]["source"]) == (name, "history")
    assert stores[0].load("r").vars["large"] == "x" * 500


async def test_async_callers_and_async_stores():
    runs, ledgers = InMemoryRunStore(), InMemoryLedgerStore()
    lived((runs, ledgers), StillClock())
    bundle = await aexport_run_history_bundle(
        run_id="r", run_store=AsyncInMemoryRunStore(runs), ledger_store=AsyncInMemoryLedgerStore(ledgers)
    )
    assert bundle["ledgers"] == export((runs, ledgers))["ledgers"]
    reference = await apersist_workflow_snapshot(
        run_store=AsyncInMemoryRunStore(runs),
        artifact_store=AsyncInMemoryArtifactStore(),
        run_id="r",
        workflow_id="talk",
        snapshot={},
        format="json",
    )
    kept = runs.load("r")
    assert kept is not None
    assert kept.vars["_runtime"]["workflow_snapshot"] == reference


def test_what_cannot_be_exported_is_an_error():
    stores = UserRuns(), UserLedger()
    bad: Any
    for bad in ("", "  ", None):
        with pytest.raises(ValueError, match="run_id"):
            export(stores, bad)
    with pytest.raises(UnknownRun) as error:
        export(stores, "nobody")
    assert isinstance(error.value, KeyError)
    stores[0].save(RunState.new(workflow_id="w", entry_node="n", run_id="r", session_id="s"))
    with pytest.raises(ValueError, match="ledger_mode must be 'tail' or 'full', found 'head'"):
        export(stores, ledger_mode="head")
    with pytest.raises(StoreError, match="cannot list the runs of a session"):
        export(stores, include_session=True)


# The workflow


def keep(stores: tuple[Any, Any], artifacts: Any, snapshot: Any, format: str = "json") -> dict[str, Any]:
    return persist_workflow_snapshot(
        run_store=stores[0],
        artifact_store=artifacts,
        run_id="r",
        workflow_id="talk",
        snapshot=snapshot,
        format=format,
    )


@pytest.mark.parametrize(
    ("snapshot", "content", "kind"),
    [
        ({"nodes": ["ä"]}, '{"nodes":["ä"]}'.encode(), "application/json"),
        ("text", b"text", "text/plain"),
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
    ],
)
def test_a_workflow_is_kept_once_and_the_bundle_names_it(stores, snapshot, content, kind):
    lived(stores, StillClock())
    artifacts = InMemoryArtifactStore()
    reference = keep(stores, artifacts, snapshot)
    assert list(reference) == ["workflow_id", "format", "sha256", "artifact_id", "created_at"]
    assert (reference["workflow_id"], reference["format"]) == ("talk", "json")
    assert reference["sha256"] == hashlib.sha256(content).hexdigest()
    kept = artifacts.load(reference["artifact_id"])
    assert kept is not None
    assert (kept.content, kept.content_type, kept.metadata.run_id) == (content, kind, "r")
    assert keep(stores, artifacts, {"another": 1}, "yaml") == reference, "the first call wins"
    assert len(artifacts.list_all()) == 1
    run = stores[0].load("r")
    assert run.vars["_runtime"]["workflow_snapshot"] == reference
    assert export(stores)["workflow_snapshot"] == reference


def test_a_run_goes_on_behind_it(stores):
    with Runtime(run_store=stores[0], ledger_store=stores[1]) as rt:
        rt.start(workflow=WORKFLOW, run_id="r")
        rt.tick(workflow=WORKFLOW, run_id="r")
        reference = keep(stores, InMemoryArtifactStore(), {})
        state = rt.resume(workflow=WORKFLOW, run_id="r", wait_key=None, payload="yes")
        assert state.output == {"answer": "yes"}
        assert state.vars["_runtime"]["workflow_snapshot"] == reference


def test_a_run_that_moves_meanwhile_loses_nothing(stores):
    class Moving:
        """A store whose run is moved between its load and its save, once."""

        def __init__(self) -> None:
            self.conflicts = 0

        def load(self, run_id: str) -> Any:
            return stores[0].load(run_id)

        def save(self, run: RunState) -> None:
            if self.conflicts == 0:
                other = stores[0].load("r")
                other.vars["moved"] = True
                stores[0].save(other)
            try:
                stores[0].save(run)
            except RevisionConflict:
                self.conflicts += 1
                raise

    lived(stores, StillClock())
    moving = Moving()
    reference = keep((moving, None), InMemoryArtifactStore(), {})
    vars = stores[0].load("r").vars
    assert (moving.conflicts, vars["moved"], vars["_runtime"]["workflow_snapshot"]) == (1, True, reference)


def test_what_cannot_be_kept_is_an_error_and_changes_nothing(stores):
    lived(stores, StillClock())
    before, artifacts = stores[0].load("r"), InMemoryArtifactStore()
    with pytest.raises(UnsafeValue):
        keep(stores, artifacts, {"x": float("nan")})
    with pytest.raises(UnknownRun):
        persist_workflow_snapshot(
            run_store=stores[0], artifact_store=artifacts, run_id="q", workflow_id="w", snapshot={}, format="json"
        )
    assert (stores[0].load("r"), artifacts.list_all()) == (before, [])
