"""The file: how it is made, found, refused, shared between processes, and read years later.

`python -m tests.test_sqlite_database` writes the golden file of a new schema version; it is made once and kept.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import EffectOutcome, HashChainedLedgerStore, Runtime
from abstractruntime.core.errors import StoreBusy, StoreCorrupt, StoreError, StoreSchemaTooNew
from abstractruntime.core.event_keys import read_event_key
from abstractruntime.core.models import RunState, RunStatus, StepRecord, StepStatus, WaitReason, WaitState
from abstractruntime.core.portal import call
from abstractruntime.storage.sqlite import (
    AsyncSqliteRunStore,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    schema,
    statements,
)

from .scale import scaled
from .worlds import one, statuses

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(GOLDEN.glob("sqlite_schema_*.sqlite3"))
AT = "2026-01-31T09:00:00.000000+00:00"


def golden_run() -> RunState:
    return RunState(
        run_id="golden-1",
        workflow_id="w",
        status=RunStatus.WAITING,
        current_node="ask",
        vars={"text": "Grüße", "list": [1, 2.5, None, True]},
        waiting=WaitState(
            WaitReason.USER, "user:golden-1", AT, "next", "answer", "Go on?", ["yes", "no"], False, {"a": 1}
        ),
        created_at=AT,
        updated_at=AT,
        actor_id="actor",
        session_id="session",
    )


def golden_record() -> StepRecord:
    return StepRecord(
        run_id="golden-1",
        step_id="golden-1:1.1",
        node_id="ask",
        status=StepStatus.WAITING,
        effect={"type": "ask_user", "payload": {"prompt": "Go on?"}, "result_key": "answer"},
        result={"wait": {"reason": "user"}},
        started_at=AT,
        ended_at=AT,
        idempotency_key="k",
    )


def write_golden(path: Path) -> None:
    with SqliteDatabase(path) as database:
        SqliteRunStore(database).save(golden_run())
        SqliteLedgerStore(database).append(golden_record())
        child = RunState("golden-2", "w", RunStatus.COMPLETED, "n", output={"a": 1}, created_at=AT, updated_at=AT)
        child.parent_run_id = "golden-1"
        SqliteRunStore(database).save(child)
        rt = Runtime(run_store=SqliteRunStore(database), ledger_store=SqliteLedgerStore(database))
        rt.start(workflow=one("answer_user", {"message": "hello"}), run_id="golden-3")
        rt.tick(workflow=one("answer_user", {"message": "hello"}), run_id="golden-3")
        outside = {"host": lambda call: EffectOutcome.completed("done")}
        with Runtime(  # closed, for it takes a lease, whose lock would stay beside the file
            run_store=SqliteRunStore(database), ledger_store=SqliteLedgerStore(database), effect_handlers=outside
        ) as host:
            host.start(workflow=one("host", {"amount": 5}), run_id="golden-4")
            host.tick(workflow=one("host", {"amount": 5}), run_id="golden-4")
        chained = HashChainedLedgerStore(SqliteLedgerStore(database))
        with Runtime(run_store=SqliteRunStore(database), ledger_store=chained) as rt:
            rt.start(workflow=one("answer_user", {"message": "hello"}), run_id="golden-5")
            rt.tick(workflow=one("answer_user", {"message": "hello"}), run_id="golden-5")
        with Runtime(run_store=SqliteRunStore(database), ledger_store=SqliteLedgerStore(database)) as rt:
            rt.run(one("wait_event", {"name": "paid"}), run_id="golden-6", session_id="golden")
            rt.emit_event(name="billed", session_id="golden", event_id="golden-event")
        tokens = {"usage": {"input_tokens": 20, "output_tokens": 5}}
        model = {"llm_call": lambda call: EffectOutcome.completed(tokens)}
        with Runtime(
            run_store=SqliteRunStore(database), ledger_store=SqliteLedgerStore(database), effect_handlers=model
        ) as rt:
            rt.start(workflow=one("llm_call"), run_id="golden-7", parent_run_id="golden-2")
            rt.tick(workflow=one("llm_call"), run_id="golden-7")
            rt.start(workflow=one("llm_call"), run_id="golden-8")


each_version = pytest.mark.parametrize("golden", VERSIONS, ids=lambda path: path.stem)


def test_there_is_a_golden_file_of_every_version():
    assert {path.name for path in VERSIONS} == {f"sqlite_schema_{n}.sqlite3" for n in range(1, schema.LATEST + 1)}
    for number, path in enumerate(VERSIONS, 1):
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA user_version").fetchone() == (number,)
        connection.close()


@each_version
def test_a_file_of_any_version_opens_and_reads(tmp_path, golden):
    path = Path(shutil.copy(golden, tmp_path))
    with SqliteDatabase(path) as database:
        runs, ledgers = SqliteRunStore(database), SqliteLedgerStore(database)
        found = runs.load("golden-1")
        assert found is not None
        expected = golden_run()
        expected.revision, expected.records, expected.commit_id = 1, 1, found.commit_id
        assert found == expected
        assert [record["step_id"] for record in ledgers.list("golden-1")] == ["golden-1:1.1"]
        assert [run.run_id for run in runs.list_due_wait_until(now_iso=AT)] == ["golden-1"]
        assert [run.output for run in runs.list_children(parent_run_id="golden-1")] == [{"a": 1}]
        assert [row["run_id"] for row in runs.find_runs(workflow_id="w").items] == ["golden-2", "golden-1"]
        assert [row["prompt"] for row in runs.find_waits(reason=WaitReason.USER, actor_id="actor").items] == ["Go on?"]
        if golden.stem != "sqlite_schema_1":  # from the second on, one record may stand for two
            assert statuses(ledgers.list("golden-3")) == ["started", "completed", "completed", "completed"]
        if golden.stem not in ("sqlite_schema_1", "sqlite_schema_2"):  # from the third on, the end repeats no effect
            effects = [record["effect"] for record in ledgers.list("golden-4")[:2]]
            assert effects == [{"type": "host", "payload": {"amount": 5}, "result_key": "result"}] * 2
        if golden.stem not in ("sqlite_schema_1", "sqlite_schema_2", "sqlite_schema_3"):  # from the fourth on, chains
            with Runtime(run_store=runs, ledger_store=ledgers) as rt:
                assert rt.verify_ledger("golden-5")["head_hash"]
                assert rt.verify_ledger("golden-5")["ok"]
        if golden.stem not in [f"sqlite_schema_{n}" for n in range(1, 5)]:  # from the fifth on, events
            with Runtime(run_store=runs, ledger_store=ledgers) as rt:
                assert rt.emit_event(name="billed", session_id="golden", event_id="golden-event")["delivered"] == 0
                assert rt.emit_event(name="paid", session_id="golden")["delivered_to"] == ["golden-6"]
        if golden.stem not in [f"sqlite_schema_{n}" for n in range(1, 6)]:  # from the sixth on, tokens of trees
            with Runtime(run_store=runs, ledger_store=ledgers) as rt:
                assert rt.get_token_usage("golden-7") == {"run": 25, "tree": 25}
                assert rt.get_token_usage("golden-1") == {"run": 0, "tree": 25}
        due = {row.run_id for row in call(database.backend.due, AT, limit=10)}
        assert "golden-1" in due
        if golden.stem not in [f"sqlite_schema_{n}" for n in range(1, 7)]:  # from the seventh on, what runs is indexed
            assert "golden-8" in due
        database.check(full=True)
        runs.save(found)


def schema_of(path: Path) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    connection.close()
    return found


@each_version
def test_an_old_file_gets_the_schema_of_a_new_one(tmp_path, golden):
    old, new = Path(shutil.copy(golden, tmp_path)), tmp_path / "new.sqlite3"
    for path in (old, new):
        with SqliteDatabase(path) as database:
            assert SqliteRunStore(database).load("unknown") is None
    assert schema_of(old) == schema_of(new)


def test_runs_of_an_old_file_get_the_run_at_the_top_of_their_tree(tmp_path):
    path = Path(shutil.copy(GOLDEN / "sqlite_schema_5.sqlite3", tmp_path))
    parents = {"a": None, "b": "a", "c": "b", "d": "gone", "e": "", "x": "y", "y": "x", "self": "self"}
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO runs (run_id, parent_run_id) VALUES (?, ?)", parents.items())
    connection.commit()
    connection.close()
    with SqliteDatabase(path) as database:
        runs, ledgers = SqliteRunStore(database), SqliteLedgerStore(database)
        child = runs.load("golden-2")
        assert child is not None
        assert child.root_run_id == "golden-1"
        database.check(full=True)
        runs.save(child)
        database.check(full=True)
        with Runtime(run_store=runs, ledger_store=ledgers) as rt:
            below = rt.start(workflow=one("answer_user"), parent_run_id="golden-2")
            assert rt.get_state(below).root_run_id == "golden-1"
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT run_id, root FROM runs WHERE length(run_id) < 5"))
    connection.close()
    assert {found["x"], found["y"], found["self"]} <= {"x", "y", "self"}
    assert {name: found[name] for name in "abcde"} == {"a": None, "b": "a", "c": "a", "d": "gone", "e": None}


def test_waits_for_events_of_an_old_file_listen_from_then_on(tmp_path):
    path = Path(shutil.copy(GOLDEN / "sqlite_schema_4.sqlite3", tmp_path))
    keys = {2: "evt:session:s1:order:paid", 3: "evt:global:global:*", 4: "evt:session:s1", 5: "evt:galaxy:x:paid"}
    connection = sqlite3.connect(path)
    for run, key in keys.items():
        connection.execute("INSERT INTO waits (run, branch, reason, wait_key) VALUES (?, 0, 'event', ?)", (run, key))
    paused = b'{"vars":{"_runtime":{"control":{"paused":true}}}}'
    connection.execute("INSERT INTO runs (id, run_id) VALUES (6, 'paused')")
    connection.execute("INSERT INTO states (id, revision, records, data) VALUES (6, 1, 0, ?)", (paused,))
    connection.execute("INSERT INTO waits (run, branch, reason, wait_key) VALUES (6, 0, 'event', 'evt:run:x:paid')")
    connection.commit()
    connection.close()
    with SqliteDatabase(path) as database:
        SqliteRunStore(database).load("golden-1")
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT run, stream, name FROM waits WHERE run > 1 ORDER BY run").fetchall()
    connection.close()
    assert rows == [*((run, *(read_event_key(key) or (None, None))) for run, key in keys.items()), (6, None, None)]


def test_migrations_are_numbered_without_gaps_and_the_file_says_which_it_has(tmp_path):
    assert [number for number, _ in statements.migrations()] == list(range(1, schema.LATEST + 1))
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        connection = database.connection()
        assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.LATEST
        connection.close()


def test_the_hot_write_touches_no_column_of_an_index(tmp_path):
    """SQLite maintains an index when a statement sets one of its columns, changed or not."""
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        connection = database.connection()
        indexes = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'states'")
        text = " ".join(row["sql"] for row in indexes)
        connection.close()
    assert "rest_at" in text
    for column in ("revision", "records", "data"):
        assert column not in text


def test_every_query_can_be_prepared_and_says_why_it_is_there(tmp_path):
    folder = Path(statements.__file__).parent / "sql"
    text = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.sql"))
    assert text.count("-- name: ") == len(statements.QUERIES)
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        connection = database.connection()
        for query in statements.QUERIES.values():
            named = dict.fromkeys(re.findall(r":(\w+)", query))
            assert "?1" not in query  # which some Pythons take for a name
            connection.execute(f"EXPLAIN {query}", named if ":" in query else [None] * query.count("?"))
        connection.close()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("runs_at_rest", "states_at_rest"),
        ("runs_running", "states_running"),
        ("runs_of_session", "runs_by_session"),
        ("runs_due", "waits_by_due"),
        ("children_of_run", "runs_by_parent"),
        ("records_after", "ledger_by_run"),
        ("records_by_key", "ledger_by_key"),
        ("requests_of_run", "requests_by_run"),
    ],
)
def test_no_query_scans_a_table(tmp_path, query, index):
    text = statements.QUERIES[query]
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        connection = database.connection()
        named = dict.fromkeys(re.findall(r":(\w+)", text))
        rows = connection.execute(f"EXPLAIN QUERY PLAN {text}", named if ":" in text else [None] * text.count("?"))
        plan = " ".join(row["detail"] for row in rows)
        connection.close()
    assert index in plan
    assert "SCAN" not in plan or query == "runs_running"  # which walks its partial index


async def test_the_folder_is_made_and_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    async with SqliteDatabase("~/deep/er/runs.sqlite3") as database:
        assert database.path == str(tmp_path / "deep" / "er" / "runs.sqlite3")
        assert await AsyncSqliteRunStore(database).load("r") is None
    assert (tmp_path / "deep" / "er" / "runs.sqlite3").exists()
    assert repr(database) == f"SqliteDatabase({database.path!r})"


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(("synchronous", "number"), [("FULL", 2), ("NORMAL", 1)])
async def test_a_commit_has_reached_the_disk_unless_told_otherwise(tmp_path, synchronous, number):
    async with SqliteDatabase(tmp_path / "x.sqlite3", synchronous=synchronous) as database:
        pragmas = [
            await database.backend.write(partial(pragma, name=name))
            for name in ("synchronous", "journal_mode", "busy_timeout")
        ]
    assert pragmas == [number, "wal", 30_000]


def test_another_level_of_durability_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'"FULL" or "NORMAL", found \'OFF\''):
        SqliteDatabase(tmp_path / "x.sqlite3", synchronous="OFF")  # type: ignore[arg-type]


def test_a_plain_connection_is_the_callers_own(tmp_path):
    with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        SqliteRunStore(database).save(golden_run())
        connection = database.connection()
        row = connection.execute("SELECT run_id, workflow_id FROM runs").fetchone()
        connection.close()
        assert (row["run_id"], row["workflow_id"]) == ("golden-1", "w")
        assert SqliteRunStore(database).load("golden-1") is not None


def test_in_memory_there_is_one_connection_and_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SqliteDatabase(":memory:") as database, SqliteDatabase(":memory:") as other:
        runs, ledgers = SqliteRunStore(database), SqliteLedgerStore(database)
        runs.save(golden_run())
        ledgers.append(golden_record())
        assert runs.load("golden-1") is not None
        assert len(ledgers.list("golden-1")) == 1
        assert SqliteRunStore(other).load("golden-1") is None
        with pytest.raises(StoreError, match="no second connection"):
            database.connection()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "x.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.LATEST + 1}")
    connection.close()
    with SqliteDatabase(path) as database:
        with pytest.raises(StoreSchemaTooNew, match="Upgrade abstractruntime"):
            SqliteRunStore(database).load("r")
        with pytest.raises(StoreSchemaTooNew):
            database.connection()
    assert schema_of(path) == []


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "x.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE runs (run_id TEXT PRIMARY KEY, run_json TEXT)")
    connection.close()
    with SqliteDatabase(path) as database, pytest.raises(StoreError, match="did not make"):
        SqliteRunStore(database).load("r")
    assert [row[1] for row in schema_of(path) if row[0] == "table"] == ["runs"]


def test_a_file_that_is_no_database_is_corrupt(tmp_path):
    path = tmp_path / "x.sqlite3"
    path.write_bytes(b"This is no database. " * 100)
    with SqliteDatabase(path) as database, pytest.raises(StoreCorrupt, match="no readable SQLite database"):
        SqliteRunStore(database).load("r")
    assert path.read_bytes().startswith(b"This is no database. ")


def test_a_damaged_page_is_corrupt_and_not_an_empty_store(tmp_path):
    path = tmp_path / "x.sqlite3"
    with SqliteDatabase(path) as database:
        SqliteRunStore(database).save(golden_run())
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with SqliteDatabase(path) as database, pytest.raises(StoreCorrupt):
        SqliteRunStore(database).load("golden-1")


def test_a_path_that_is_a_folder_says_so(tmp_path):
    with SqliteDatabase(tmp_path) as database, pytest.raises(StoreError, match="cannot be opened"):
        SqliteRunStore(database).load("r")


OPENER = """
import sys
from abstractruntime.core.models import RunState, RunStatus
from abstractruntime.storage.sqlite import SqliteDatabase, SqliteRunStore
sys.stdin.readline()
with SqliteDatabase(sys.argv[1]) as database:
    SqliteRunStore(database).save(RunState(sys.argv[2], "w", RunStatus.RUNNING, "n"))
"""


def test_several_processes_may_make_the_same_file_at_once(tmp_path):
    path = tmp_path / "x.sqlite3"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path), f"r{number}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(scaled(5, 30))
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    with SqliteDatabase(path) as database:
        assert len(SqliteRunStore(database).list_runs()) == len(processes)


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


def test_a_write_waits_for_another_process_and_then_lands(tmp_path, blockbuster):
    blockbuster.deactivate()
    path = tmp_path / "x.sqlite3"

    async def main(process: subprocess.Popen[str]) -> None:
        async with SqliteDatabase(path) as database:
            store = AsyncSqliteRunStore(database)
            saving = asyncio.create_task(store.save(golden_run()))
            assert await store.load("golden-1") is None  # readers are not held up
            assert not saving.done()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            await saving
            assert await store.load("golden-1") is not None

    with SqliteDatabase(path) as database:
        SqliteRunStore(database).load("make the file")
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        asyncio.run(main(process))


def test_opening_waits_for_another_process_too(tmp_path):
    path = tmp_path / "x.sqlite3"
    sqlite3.connect(path).close()
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with SqliteDatabase(path, busy_timeout=0.01) as database, pytest.raises(StoreBusy):
            SqliteRunStore(database).load("r")
        process.communicate("\n", timeout=30)
    with SqliteDatabase(path, busy_timeout=0.01) as database:
        assert SqliteRunStore(database).load("r") is None


if __name__ == "__main__":
    write_golden(GOLDEN / f"sqlite_schema_{schema.LATEST}.sqlite3")
