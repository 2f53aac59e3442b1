"""Runs of the published package, as its folders and SQLite files have them, go on in stores of ours."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectOutcome,
    EffectType,
    HashChainedLedgerStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StoreError,
    WaitReason,
    WorkflowSpec,
    verify_ledger_chain,
)
from abstractruntime.storage.importer import aimport_runs, import_runs

AT = "2026-01-31T09:00:00.000000+00:00"
LATER = "2026-01-31T09:05:00.000000+00:00"

TRACES = {"ask": {"node_id": "ask", "steps": [{"ts": AT, "status": "waiting"}], "updated_at": AT}}


def run_doc(run_id: str, status: str = "running", node: str = "work", **fields: Any) -> dict[str, Any]:
    """`dataclasses.asdict` of the published RunState."""
    return {
        "run_id": run_id,
        "workflow_id": "w",
        "status": status,
        "current_node": node,
        "vars": {"given": 1, "_runtime": {}, "_limits": {"max_iterations": 25}},
        "waiting": None,
        "output": None,
        "error": None,
        "created_at": AT,
        "updated_at": LATER,
        "actor_id": None,
        "session_id": "s1",
        "parent_run_id": None,
        **fields,
    }


def record_doc(run_id: str, step_id: str, status: str = "started", **fields: Any) -> dict[str, Any]:
    """`dataclasses.asdict` of the published StepRecord."""
    return {
        "run_id": run_id,
        "step_id": step_id,
        "node_id": "ask",
        "status": status,
        "effect": {"type": "ask_user", "payload": {"prompt": "Go on?"}, "result_key": "answer"},
        "result": None,
        "error": None,
        "started_at": AT,
        "ended_at": None if status == "started" else LATER,
        "actor_id": None,
        "session_id": "s1",
        "attempt": 1,
        "idempotency_key": "k" * 32,
        "prev_hash": None,
        "record_hash": None,
        "signature": None,
        **fields,
    }


def chained(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the hashes that the published chain gives them."""
    before = None
    for record in records:
        record["prev_hash"] = before
        hashed = {k: v for k, v in record.items() if k not in ("record_hash", "signature")}
        text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        before = record["record_hash"] = hashlib.sha256(text.encode()).hexdigest()
    return records


WAIT: dict[str, Any] = {
    "reason": "user",
    "wait_key": "user:waiting:ask:1",
    "until": None,
    "resume_to_node": "done",
    "result_key": "answer",
    "prompt": "Go on?",
    "choices": ["yes", "no"],
    "allow_free_text": False,
    "details": {"form": {"ü": 1}},
}
RUNS = {
    "waits": run_doc("waits", "waiting", "ask", waiting=WAIT, vars={"given": 1, "_runtime": {"node_traces": TRACES}}),
    "runs": run_doc("runs"),
    "sleeps": run_doc(
        "sleeps",
        "waiting",
        waiting={**WAIT, "reason": "until", "until": "2026-01-31T10:00:00+00:00", "wait_key": None, "choices": None},
    ),
    "ended": run_doc("ended", "completed", "done", output={"a": [1.5, None, "ä"]}, parent_run_id="waits"),
    "failed": run_doc("failed", "failed", error="no", vars={}),
}
LEDGERS = {
    "waits": [
        record_doc("waits", "one"),
        record_doc("waits", "one", "waiting", result={"wait": WAIT}),
    ],
    "ended": chained([record_doc("ended", "e1"), record_doc("ended", "e1", "completed", result={"n": 1})]),
    "runs": [record_doc("runs", "r1", effect=None)],
    "gone": [record_doc("gone", "g1"), record_doc("gone", "g1", "failed", error="x")],
}


def in_folder(folder: Path) -> Path:
    folder.mkdir()
    for run_id, doc in RUNS.items():
        (folder / f"run_{run_id}.json").write_text(json.dumps(doc, indent=2, ensure_ascii=False))
    for run_id, records in LEDGERS.items():
        (folder / f"ledger_{run_id}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def in_sqlite(path: Path, *, wal: bool = False) -> tuple[Path, sqlite3.Connection]:
    connection = sqlite3.connect(path)
    if wal:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript("""
        CREATE TABLE runs (run_id TEXT PRIMARY KEY, workflow_id TEXT, status TEXT, wait_reason TEXT, wait_until TEXT,
            parent_run_id TEXT, actor_id TEXT, session_id TEXT, created_at TEXT, updated_at TEXT, run_json TEXT);
        CREATE TABLE ledger (run_id TEXT, seq INTEGER, record_json TEXT, PRIMARY KEY (run_id, seq));
        CREATE TABLE ledger_heads (run_id TEXT PRIMARY KEY, last_seq INTEGER);
    """)
    for run_id, doc in RUNS.items():
        connection.execute(
            "INSERT INTO runs (run_id, workflow_id, status, created_at, run_json) VALUES (?, ?, ?, ?, ?)",
            (run_id, "w", doc["status"], AT, json.dumps(doc, ensure_ascii=False)),
        )
    for run_id, records in LEDGERS.items():
        rows = [(run_id, seq, json.dumps(record)) for seq, record in enumerate(records, 1)]
        connection.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)
    connection.commit()
    if not wal:
        connection.close()
    return path, connection


@pytest.fixture(params=["folder", "sqlite"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return in_folder(tmp_path / "old") if request.param == "folder" else in_sqlite(tmp_path / "old.db")[0]


@pytest.fixture(params=["memory", "sqlite", "json"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()}
    elif request.param == "json":
        folder = tmp_path / "new"
        yield {"run_store": JsonFileRunStore(folder), "ledger_store": JsonlLedgerStore(folder)}
    else:
        with SqliteDatabase(tmp_path / "new.db") as db:
            yield {"run_store": SqliteRunStore(db), "ledger_store": SqliteLedgerStore(db)}


def contents(place: Path) -> dict[str, bytes]:
    """Every file of the source, with its content."""
    paths = place.iterdir() if place.is_dir() else place.parent.glob(f"{place.name}*")
    return {path.name: path.read_bytes() for path in paths}


def test_runs_and_ledgers_come_as_they_are_and_the_source_is_left_alone(source, stores):
    before = contents(source)
    report = import_runs(source, **stores)
    assert contents(source) == before
    assert (report.runs, report.records, report.skipped, report.errors) == (5, 7, 0, ())
    runs, ledgers = stores["run_store"], stores["ledger_store"]
    for run_id, doc in RUNS.items():
        run = runs.load(run_id)
        for name, value in doc.items():
            if name != "waiting":
                assert getattr(run, name) == value, (run_id, name)
        if doc["waiting"] is not None:
            wait = {key: getattr(run.waiting, key) for key in WAIT}
            until = doc["waiting"]["until"]
            assert wait == {**doc["waiting"], "until": until and "2026-01-31T10:00:00.000000+00:00"}
            assert isinstance(run.waiting.reason, WaitReason)
        assert run.records == len(LEDGERS.get(run_id, []))
    for run_id, records in LEDGERS.items():
        found = ledgers.list(run_id)
        assert [{key: record[key] for key in record_doc("", "")} for record in found] == records
    assert [run.run_id for run in runs.list_due_wait_until(now_iso="2026-01-31T11:00:00Z")] == ["sleeps"]
    assert [run.run_id for run in runs.list_children(parent_run_id="waits")] == ["ended"]


def test_a_chained_ledger_keeps_its_hashes_and_is_chained_on(source, stores):
    import_runs(source, **stores)
    run, ledger = stores["run_store"].load("ended"), stores["ledger_store"].list("ended")
    assert run.chain_head == LEDGERS["ended"][-1]["record_hash"]
    report = verify_ledger_chain(ledger, head=run.chain_head, count=run.records)
    assert report["ok"], report
    assert stores["run_store"].load("waits").chain_head is None


def test_an_import_can_be_repeated_and_overwritten(source, stores):
    import_runs(source, **stores)
    again = import_runs(source, **stores)
    assert (again.runs, again.records, again.skipped, again.errors) == (0, 0, 6, ())
    run = stores["run_store"].load("runs")
    run.vars["given"] = 2
    stores["run_store"].save(run)
    assert import_runs(source, **stores).skipped == 6
    assert stores["run_store"].load("runs").vars["given"] == 2
    over = import_runs(source, **stores, overwrite=True)
    assert (over.runs, over.records, over.skipped, over.errors) == (5, 7, 0, ())
    assert stores["run_store"].load("runs").vars["given"] == 1
    assert len(stores["ledger_store"].list("waits")) == 2


def test_an_import_that_was_cut_off_between_ledger_and_state_goes_on(source):
    class OwnRuns(InMemoryRunStore):
        def save(self, run: RunState, *, overwrite: bool = False) -> None:
            if self.broken:
                raise StoreError("no")
            super().save(run, overwrite=overwrite)

        broken = True

    runs, ledgers = OwnRuns(), InMemoryLedgerStore()
    report = import_runs(source, run_store=runs, ledger_store=ledgers)
    assert {problem.run_id for problem in report.errors} == set(RUNS)
    runs.broken = False
    report = import_runs(source, run_store=runs, ledger_store=ledgers)
    assert (report.runs, report.errors) == (5, ())
    assert {run_id: ledgers.count(run_id) for run_id in LEDGERS} == {k: len(v) for k, v in LEDGERS.items()}


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(
    "w",
    "work",
    {
        "work": lambda run, ctx: StepPlan("work", Effect("act", {"of": run.vars["given"]}, "acted"), "ask"),
        "ask": lambda run, ctx: StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "done"),
        "done": lambda run, ctx: StepPlan("done", complete_output={"answer": run.vars["answer"]}),
    },
)


async def test_a_run_that_waited_is_resumed_and_one_that_ran_is_ticked(source, stores):
    await aimport_runs(source, **stores)
    handlers = {"act": lambda call: EffectOutcome.completed({"done": call.payload["of"]})}
    async with AsyncRuntime(**stores, effect_handlers=handlers) as rt:
        assert (await rt.get_state("waits")).vars["_runtime"]["node_traces"] == TRACES
        state = await rt.resume(workflow=WORKFLOW, run_id="waits", wait_key=WAIT["wait_key"], payload={"choice": "yes"})
        assert (state.status, state.output) == (RunStatus.COMPLETED, {"answer": {"choice": "yes"}})
        state = await rt.tick(workflow=WORKFLOW, run_id="runs")
        assert (state.status, state.vars["acted"]) == (RunStatus.WAITING, {"done": 1})
        ledger = await rt.get_ledger("runs")
        assert ledger[0]["step_id"] == "r1"
        assert len(ledger) == state.records > 1


def test_a_damaged_run_is_reported_and_the_others_come(tmp_path):
    folder = in_folder(tmp_path / "old")
    (folder / "run_runs.json").write_text('{"run_id": "runs", "stat')
    (folder / "run_waits.json").write_text(json.dumps(run_doc("waits", "waiting", waiting={"wait_key": "no reason"})))
    (folder / "run_failed.json").write_text(json.dumps(run_doc("failed", "failed", updated_at="yesterday")))
    lines = (folder / "ledger_ended.jsonl").read_text().splitlines()
    (folder / "ledger_ended.jsonl").write_text(f"garbage\n{lines[1]}\n")
    stores: dict[str, Any] = {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()}
    report = import_runs(folder, **stores)
    assert {Path(problem.file).name for problem in report.errors} == {
        "run_runs.json",
        "run_waits.json",
        "run_failed.json",
        "run_ended.json",
    }
    assert not report.ok
    assert report.runs == 1
    assert stores["run_store"].load("sleeps").status is RunStatus.WAITING
    assert stores["run_store"].load("ended") is None


def test_a_damaged_row_of_sqlite_is_reported_and_the_others_come(tmp_path):
    path, _ = in_sqlite(tmp_path / "old.db")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET run_json = '{' WHERE run_id = 'runs'")
        connection.execute("UPDATE ledger SET record_json = 'x' WHERE run_id = 'ended' AND seq = 2")
    connection.close()
    report = import_runs(path, run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    assert {problem.run_id for problem in report.errors} == {"runs", "ended"}
    assert report.runs == 3


def test_what_a_crash_of_the_published_package_left_in_a_ledger_is_sorted_out(tmp_path):
    folder = in_folder(tmp_path / "old")
    torn = json.dumps(record_doc("waits", "two"))[:60]
    with (folder / "ledger_waits.jsonl").open("a") as file:
        file.write(torn)
    both = "".join(json.dumps(record) for record in LEDGERS["ended"])
    (folder / "ledger_ended.jsonl").write_text(both)
    ledgers = InMemoryLedgerStore()
    report = import_runs(folder, run_store=InMemoryRunStore(), ledger_store=ledgers)
    assert [problem.run_id for problem in report.errors] == ["waits"]
    assert "crash" in report.errors[0].reason
    assert report.runs == 5
    assert (ledgers.count("waits"), ledgers.count("ended")) == (2, 2)


def test_a_log_beside_a_sqlite_file_is_read_too_and_left_alone(tmp_path):
    path, connection = in_sqlite(tmp_path / "old.db", wal=True)
    before = contents(path)
    assert before["old.db-wal"]
    report = import_runs(path, run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
    assert report.runs == 5
    assert contents(path) == before
    connection.close()


def test_what_json_stores_of_ours_wrote_comes_with_what_is_pending(tmp_path):
    folder = tmp_path / "ours"
    stores: dict[str, Any] = {"run_store": JsonFileRunStore(folder), "ledger_store": JsonlLedgerStore(folder)}
    import_runs(in_folder(tmp_path / "old"), **stores)
    (folder / "ledger_waits.jsonl").unlink()  # as if the process had died before it was written
    ledgers = InMemoryLedgerStore()
    report = import_runs(folder, run_store=InMemoryRunStore(), ledger_store=ledgers)
    assert (report.runs, report.errors) == (5, ())
    assert ledgers.count("waits") == 2


def test_a_ledger_is_chained_where_it_is_imported_if_that_is_asked_for(source):
    ledgers = HashChainedLedgerStore(InMemoryLedgerStore())
    runs = InMemoryRunStore()
    import_runs(source, run_store=runs, ledger_store=ledgers)
    for run_id in ("waits", "ended"):
        assert verify_ledger_chain(ledgers.list(run_id))["ok"]


def test_raw_secrets_of_the_source_are_not_stored(tmp_path):
    folder = in_folder(tmp_path / "old")
    doc = run_doc("secret", vars={"api_key": "sk-very-secret"})
    (folder / "run_secret.json").write_text(json.dumps(doc))
    runs = InMemoryRunStore()
    import_runs(folder, run_store=runs, ledger_store=InMemoryLedgerStore())
    run = runs.load("secret")
    assert run is not None
    assert "api_key" in run.vars
    assert "sk-very-secret" not in str(run.vars)


@pytest.mark.parametrize("name", ["nothing", "text", "ours.db"])
def test_what_is_no_source_is_refused(tmp_path, name):
    (tmp_path / "text").write_text("hello, this is no database at all" * 50)
    with SqliteDatabase(tmp_path / "ours.db") as db:
        SqliteRunStore(db).save(RunState("r", "w", RunStatus.RUNNING, "n"))
    with pytest.raises(StoreError, match=name):
        import_runs(tmp_path / name, run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
