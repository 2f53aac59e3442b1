"""A chained ledger shows what was done to it: every way to change the past, on every backend, in every nesting."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncHashChainedLedgerStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectOutcome,
    HashChainedLedgerStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    ObservableLedgerStore,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StepRecord,
    StepStatus,
    StoreCorrupt,
    StoreError,
    verify_ledger_chain,
)
from abstractruntime.core.chain import linked
from abstractruntime.core.codec import encode_records
from abstractruntime.core.models import RunState
from abstractruntime.storage.user_pair import as_record

from .scale import scaled
from .worlds import flow, one

GOLDEN = Path(__file__).parent / "golden"


def record(run_id: str = "r", number: int = 1, **fields: Any) -> StepRecord:
    given = {"result": {"n": number, "text": "Grüße"}, "started_at": "2026-01-31T09:00:00+00:00", **fields}
    return StepRecord(run_id, f"{run_id}:{number}.1", "n", StepStatus.COMPLETED, **given)


def by_hand(row: dict[str, Any], before: str | None) -> str:
    """The hash as the documentation says it is made, with nothing but the standard library."""
    later, outside = ("commit_id", "reused_from"), ("record_hash", "signature")
    hashed = {key: row[key] for key in row if key not in outside and not (key in later and row[key] is None)}
    hashed["prev_hash"] = before
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- the report


def chain(*numbers: int) -> list[dict[str, Any]]:
    ledger = HashChainedLedgerStore(InMemoryLedgerStore())
    for number in numbers:
        ledger.append(record(number=number))
    return ledger.list("r")


def test_an_empty_ledger_verifies():
    assert verify_ledger_chain([]) == {
        "ok": True,
        "count": 0,
        "errors": [],
        "first_bad_index": None,
        "head_hash": None,
        "computed_head_hash": None,
    }


def test_each_record_holds_the_hash_of_the_one_before_and_anybody_can_compute_it():
    rows = chain(1, 2, 3)
    before = None
    for row in rows:
        assert row["prev_hash"] == before
        assert row["record_hash"] == by_hand(row, before)
        before = row["record_hash"]
    report = verify_ledger_chain(rows)
    assert report["ok"]
    assert report["head_hash"] == report["computed_head_hash"] == before


def test_a_chain_verifies_after_its_way_through_json():
    assert verify_ledger_chain(json.loads(json.dumps(chain(1, 2, 3))))["ok"]


def test_a_chain_of_the_first_layout_verifies():
    """Golden: three records as the published package chained them, without the fields that came later."""
    rows = json.loads((GOLDEN / "chain_1.json").read_text(encoding="utf-8"))
    report = verify_ledger_chain(rows)
    assert report["ok"], report
    assert report["count"] == 3
    assert verify_ledger_chain(rows, head=report["head_hash"], count=3)["ok"]
    rows[1]["result"]["n"] = 4
    assert verify_ledger_chain(rows)["first_bad_index"] == 1


def test_a_bad_first_record_is_reported_as_the_first():
    rows = chain(1, 2)
    rows[0]["result"]["n"] = 9
    report = verify_ledger_chain(rows)
    assert report["first_bad_index"] == 0
    (error,) = report["errors"]
    assert error == {
        "index": 0,
        "type": "record_hash_mismatch",
        "stored": rows[0]["record_hash"],
        "computed": by_hand(rows[0], None),
    }


def test_a_record_without_a_hash_ends_the_check():
    rows = chain(1, 2, 3)
    rows[1]["record_hash"] = None
    report = verify_ledger_chain(rows)
    assert not report["ok"]
    assert report["errors"] == [{"index": 1, "type": "missing_record_hash"}]


@pytest.mark.parametrize("garbage", [None, 7, "text", [1]])
def test_what_is_no_record_is_reported(garbage):
    rows: list[Any] = chain(1, 2, 3)
    rows[2] = garbage
    report = verify_ledger_chain(rows)
    assert report["first_bad_index"] == 2
    assert report["errors"][0] == {"index": 2, "type": "not_a_record"}


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1, 2}])
def test_a_value_that_no_ledger_can_hold_is_a_mismatch_or_an_error_of_the_report_and_raises_nothing(value):
    rows = chain(1, 2)
    rows[0]["result"] = value
    assert verify_ledger_chain(rows)["first_bad_index"] == 0


# -- tampering with what is stored

Rows = list[dict[str, Any]]


def edited(rows: Rows, where: int) -> Rows:
    rows[where]["result"] = {"changed": True}
    return rows


def deleted(rows: Rows, where: int) -> Rows:
    return rows[:where] + rows[where + 1 :]


def reordered(rows: Rows, where: int) -> Rows:
    other = (where + 1) % len(rows)
    rows[where], rows[other] = rows[other], rows[where]
    return rows


def inserted(rows: Rows, where: int) -> Rows:
    return [*rows[:where], copy.deepcopy(rows[0]), *rows[where:]]


def truncated(rows: Rows, where: int) -> Rows:
    return rows[:where]


def replaced_tail(rows: Rows, where: int) -> Rows:
    """A forger who knows the rule makes a new end whose hashes are right; only the checkpoint tells."""
    head = rows[where - 1]["record_hash"] if where else None
    tail = [as_record({**row, "result": {"forged": True}}, "main") for row in rows[where:]]
    return rows[:where] + [show(link) for link in linked(tail, head)]


def show(link: StepRecord) -> dict[str, Any]:
    ledger = InMemoryLedgerStore()
    ledger.append(link)
    return ledger.list(link.run_id)[0]


TAMPERING: list[Callable[[Rows, int], Rows]] = [edited, deleted, reordered, inserted, truncated, replaced_tail]


class Memory:
    """Stores in memory, and a hand that reaches into them."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.ledger = InMemoryRunStore(), InMemoryLedgerStore()

    def put(self, run_id: str, rows: Rows) -> None:
        self.ledger._ledgers[run_id] = [encode_records([as_record(row, "main")]) for row in rows]
        self.ledger._starts[run_id] = list(range(1, len(rows) + 1))

    def close(self) -> None:
        pass


class Sqlite:
    """Stores in a file, and a hand with SQL."""

    def __init__(self, folder: Path) -> None:
        self.db = SqliteDatabase(folder / "runs.db", synchronous="NORMAL")
        self.runs, self.ledger = SqliteRunStore(self.db), SqliteLedgerStore(self.db)

    def put(self, run_id: str, rows: Rows) -> None:
        with closing(sqlite3.connect(self.db.path)) as connection:
            (run,) = connection.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            connection.execute("DELETE FROM ledger WHERE run = ?", (run,))
            connection.executemany(
                "INSERT INTO ledger (run, seq, count, data) VALUES (?, ?, 1, ?)",
                [(run, seq, encode_records([as_record(row, "main")])) for seq, row in enumerate(rows, 1)],
            )
            connection.commit()

    def close(self) -> None:
        self.db.close()


KINDS: dict[str, Any] = {"memory": Memory, "sqlite": Sqlite}


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    made = KINDS[request.param](tmp_path)
    yield made
    made.close()


def a_life(place: Any) -> Runtime:
    """A run with an effect that is performed, one that waits, an answer, and an end: a ledger of many kinds."""
    rt = Runtime(
        run_store=place.runs,
        ledger_store=HashChainedLedgerStore(place.ledger),
        effect_handlers={"fetch": lambda call: EffectOutcome.completed({"price": 1.5, "name": "Käse"})},
    )
    workflow = flow(
        "work",
        work=lambda run, ctx: StepPlan("work", Effect("fetch", {"shop": "north"}, "found"), "ask"),
        ask=lambda run, ctx: StepPlan("ask", Effect("ask_user", {"prompt": "Buy?"}, "answer"), "end"),
    )
    run_id = rt.start(workflow=workflow, run_id="main")
    rt.tick(workflow=workflow, run_id=run_id)
    rt.resume(workflow=workflow, run_id=run_id, wait_key=None, payload={"text": "yes"})
    return rt


def test_an_untouched_ledger_verifies_against_its_checkpoint(place):
    with a_life(place) as rt:
        report = rt.verify_ledger("main")
        state = rt.get_state("main")
        assert report["ok"], report
        assert report["count"] == state.records == len(rt.get_ledger("main")) >= 6
        assert report["head_hash"] == state.chain_head


@pytest.mark.parametrize("tamper", TAMPERING)
def test_tampering_is_found_wherever_it_is_done(place, tamper):
    with a_life(place) as rt:
        stored = rt.get_ledger("main")
        for where in range(len(stored)):
            place.put("main", tamper(copy.deepcopy(stored), where))
            report = rt.verify_ledger("main")
            assert not report["ok"], f"{tamper.__name__} at {where} was not found"
            latest = len(stored) - 1 if tamper is replaced_tail else where + 1  # its hashes are right but for the last
            assert report["first_bad_index"] <= latest, report
        place.put("main", stored)
        assert rt.verify_ledger("main")["ok"]


def test_a_cut_tail_is_found_by_the_checkpoint_alone(place):
    with a_life(place) as rt:
        stored = rt.get_ledger("main")
        place.put("main", stored[:-2])
        assert verify_ledger_chain(rt.get_ledger("main"))["ok"]
        report = rt.verify_ledger("main")
        kinds = [(error["type"], error["index"]) for error in report["errors"]]
        assert ("count_mismatch", len(stored) - 2) in kinds
        assert {kind for kind, _ in kinds} == {"count_mismatch", "head_mismatch"}


def test_any_flipped_character_is_found(place, seed):
    rng = random.Random(seed)
    with a_life(place) as rt:
        stored = rt.get_ledger("main")
        for _ in range(scaled(40, 2_000)):
            rows = copy.deepcopy(stored)
            where = rng.randrange(len(rows))
            text = json.dumps(rows[where], ensure_ascii=False)
            position = rng.randrange(len(text))
            other = chr(ord(text[position]) ^ (1 << rng.randrange(5)))
            flipped = text[:position] + other + text[position + 1 :]
            try:
                rows[where] = json.loads(flipped)
                if show(as_record(rows[where], "main")) == stored[where]:
                    continue  # the name of a field that holds nothing: the record says the same
                place.put("main", rows)
            except (ValueError, StoreCorrupt):
                continue  # it could not even be stored as a record: reading it would have said so
            try:
                assert not rt.verify_ledger("main")["ok"], f"{text[position]!r} to {other!r} at {position}: {flipped}"
            except StoreCorrupt:
                continue


async def test_records_cut_off_while_effects_of_a_step_land_are_found(tmp_path):
    """Landings leave the stored state as it is: the head beside it must move with them."""
    path = tmp_path / "runs.db"
    async with SqliteDatabase(path) as db:
        landed = asyncio.Event()

        async def slow(call: Any) -> EffectOutcome:
            if call.payload["n"] == 3:
                landed.set()
                await asyncio.sleep(0.05)
            return EffectOutcome.completed(call.payload["n"])

        workflow = flow(
            "work",
            work=lambda run, ctx: StepPlan(
                "work", effects=[Effect("slow", {"n": n}, f"r.n{n}") for n in range(4)], next_node="end", max_parallel=1
            ),
        )
        ledger = AsyncHashChainedLedgerStore(AsyncSqliteLedgerStore(db))
        async with AsyncRuntime(
            run_store=AsyncSqliteRunStore(db), ledger_store=ledger, effect_handlers={"slow": slow}
        ) as rt:
            run_id = await rt.start(workflow=workflow, run_id="main")
            tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=run_id))
            await landed.wait()
            report = await rt.verify_ledger(run_id)
            assert report["ok"], report
            assert report["count"] >= 6
            await tick
            report = await rt.verify_ledger(run_id)
            assert report["ok"], report
            assert (await rt.get_state(run_id)).chain_head == report["head_hash"]


# -- who chains


@pytest.mark.parametrize(
    "nest",
    [
        lambda inner: HashChainedLedgerStore(ObservableLedgerStore(inner)),
        lambda inner: ObservableLedgerStore(HashChainedLedgerStore(inner)),
        lambda inner: HashChainedLedgerStore(HashChainedLedgerStore(inner)),
    ],
    ids=["outside", "inside", "twice"],
)
def test_any_nesting_chains_once(place, nest):
    ledger = nest(place.ledger)
    with Runtime(run_store=place.runs, ledger_store=ledger) as rt:
        workflow = one("answer_user", {"message": "hello"})
        run_id = rt.start(workflow=workflow, run_id="r")
        rt.tick(workflow=workflow, run_id=run_id)
        ledger.append(record("r"))
        assert rt.verify_ledger(run_id)["ok"]
        assert verify_ledger_chain(ledger.list(run_id))["ok"]


def test_a_chain_is_carried_on_by_a_runtime_and_an_append_without_the_decorator(place):
    workflow = one("ask_user", {"prompt": "Go on?"})
    with Runtime(run_store=place.runs, ledger_store=HashChainedLedgerStore(place.ledger)) as rt:
        rt.start(workflow=workflow, run_id="r")
        rt.tick(workflow=workflow, run_id="r")
    with Runtime(run_store=place.runs, ledger_store=place.ledger) as plain:
        place.ledger.append(record("r"))
        plain.resume(workflow=workflow, run_id="r", wait_key=None, payload="yes")
        report = plain.verify_ledger("r")
        assert report["ok"], report
        assert all(row["record_hash"] for row in plain.get_ledger("r"))


def test_a_host_that_saves_a_run_leaves_its_chain_alone(place):
    workflow = one("ask_user", {"prompt": "Go on?"})
    with Runtime(run_store=place.runs, ledger_store=HashChainedLedgerStore(place.ledger)) as rt:
        rt.start(workflow=workflow, run_id="r")
        rt.tick(workflow=workflow, run_id="r")
        run = place.runs.load("r")
        run.chain_head, run.vars["note"] = "of the host's own", 1
        place.runs.save(run)
        rt.resume(workflow=workflow, run_id="r", wait_key=None, payload="yes")
        assert rt.verify_ledger("r")["ok"]


def test_a_ledger_that_was_begun_without_a_chain_says_so(place):
    place.ledger.append(record("r", 1))
    chained = HashChainedLedgerStore(place.ledger)
    chained.append(record("r", 2))
    chained.append(record("r", 3))
    rows = chained.list("r")
    assert verify_ledger_chain(rows)["errors"] == [{"index": 0, "type": "missing_record_hash"}]
    assert verify_ledger_chain(rows[1:])["ok"]


def test_a_ledger_from_before_its_run_keeps_its_chain(place):
    chained = HashChainedLedgerStore(place.ledger)
    chained.append(record("r", 1))
    workflow = one("answer_user", {"message": "hello"})
    with Runtime(run_store=place.runs, ledger_store=chained) as rt:
        rt.start(workflow=workflow, run_id="r")
        rt.tick(workflow=workflow, run_id="r")
        report = rt.verify_ledger("r")
        assert report["ok"], report
        assert report["count"] > 1


def test_after_its_ledger_was_deleted_a_run_begins_a_new_chain(place):
    with a_life(place) as rt:
        place.ledger.delete("main")
        assert rt.verify_ledger("main")["ok"]
        HashChainedLedgerStore(place.ledger).append(record("main"))
        report = rt.verify_ledger("main")
        assert report["ok"], report
        assert report["count"] == 1


def test_two_handles_in_many_threads_make_one_chain(place):
    handles = [HashChainedLedgerStore(place.ledger) for _ in range(2)]

    def write(worker: int) -> None:
        for number in range(10):
            handles[worker % 2].append(record("r", worker * 100 + number))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = verify_ledger_chain(handles[0].list("r"))
    assert report["ok"], report
    assert report["count"] == 40


def test_processes_that_append_to_one_ledger_make_one_chain(tmp_path):
    program = """
import sys
from abstractruntime import HashChainedLedgerStore, SqliteDatabase, SqliteLedgerStore, StepRecord, StepStatus
with SqliteDatabase(sys.argv[1]) as db:
    ledger = HashChainedLedgerStore(SqliteLedgerStore(db))
    for number in range(25):
        ledger.append(StepRecord("r", f"{sys.argv[2]}.{number}", "n", StepStatus.COMPLETED))
"""
    path = str(tmp_path / "runs.db")
    workers = [subprocess.Popen([sys.executable, "-c", program, path, str(number)]) for number in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    with SqliteDatabase(path) as db:
        report = verify_ledger_chain(SqliteLedgerStore(db).list("r"))
    assert report["ok"], report
    assert report["count"] == 75


# -- around stores of users


class DictLedger:
    """A user's ledger store, as the documentation shows one."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def append(self, record: StepRecord) -> None:
        self.rows.setdefault(record.run_id, []).append(show(record))

    def list(self, run_id: str) -> list[dict[str, Any]]:
        return self.rows.get(run_id, [])


class DictRuns:
    def __init__(self) -> None:
        self.runs: dict[str, RunState] = {}

    def save(self, run: RunState) -> None:
        self.runs[run.run_id] = copy.deepcopy(run)

    def load(self, run_id: str) -> RunState | None:
        return copy.deepcopy(self.runs.get(run_id))


def test_a_users_own_ledger_is_chained_when_it_is_appended_to():
    ledger = HashChainedLedgerStore(DictLedger())
    for number in range(3):
        ledger.append(record(number=number))
    assert verify_ledger_chain(ledger.list("r"))["ok"]


async def test_a_users_own_ledger_is_chained_by_many_tasks():
    ledger = AsyncHashChainedLedgerStore(DictLedger())
    await asyncio.gather(*(ledger.append(record(number=number)) for number in range(20)))
    report = verify_ledger_chain(await ledger.list("r"))
    assert report["ok"], report
    assert report["count"] == 20


@pytest.mark.parametrize("pair", ["user's own", "two databases"])
def test_a_chain_refuses_stores_that_do_not_commit_together(pair, tmp_path):
    if pair == "two databases":
        runs: Any = SqliteRunStore(SqliteDatabase(tmp_path / "a.db"))
        ledger: Any = SqliteLedgerStore(SqliteDatabase(tmp_path / "b.db"))
    else:
        runs, ledger = DictRuns(), DictLedger()
    with pytest.raises(StoreError, match=r"do not commit together.*same database"):
        AsyncRuntime(run_store=runs, ledger_store=HashChainedLedgerStore(ledger))


def test_without_the_decorator_no_hash_is_kept(place):
    workflow = one("answer_user", {"message": "hello"})
    with Runtime(run_store=place.runs, ledger_store=place.ledger) as rt:
        rt.start(workflow=workflow, run_id="r")
        state = rt.tick(workflow=workflow, run_id="r")
        assert state.chain_head is None
        assert {row["record_hash"] for row in rt.get_ledger("r")} == {None}
