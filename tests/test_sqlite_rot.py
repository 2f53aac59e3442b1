"""Bits that flip on the disk: found when read or by `check(full=True)`, never believed; and nothing else is lost."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    HashChainedLedgerStore,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StoreError,
)
from abstractruntime.core.errors import StoreCorrupt

from .scale import scaled
from .worlds import one

RUNS = [f"run-{number}" for number in range(12)]


def write(path: Path) -> None:
    """Runs that wait, with vars of many sizes, and one that ended; half of them chained."""
    with SqliteDatabase(path) as db:
        for chained in (False, True):
            ledger: Any = SqliteLedgerStore(db)
            rt = Runtime(
                run_store=SqliteRunStore(db), ledger_store=HashChainedLedgerStore(ledger) if chained else ledger
            )
            for number, run_id in enumerate(RUNS[chained::2]):
                workflow = one("ask_user" if number else "answer_user", {"prompt": "Go on?", "message": "hello"})
                rt.start(workflow=workflow, run_id=run_id, vars={"text": "abc" * 40 * number**2, "n": number})
                rt.tick(workflow=workflow, run_id=run_id)
            rt.close()


def everything(path: Path) -> dict[str, Any]:
    """What each run and each ledger reads as, or the error that says that it cannot."""
    found: dict[str, Any] = {}
    with SqliteDatabase(path, busy_timeout=0) as db:
        runs, ledger = SqliteRunStore(db), SqliteLedgerStore(db)
        for run_id in RUNS:
            for what, read in (("run", runs.load), ("ledger", ledger.list)):
                try:
                    found[f"{what} {run_id}"] = read(run_id)
                except StoreError as error:
                    found[f"{what} {run_id}"] = error
    return found


def damage_is_told(path: Path) -> bool:
    try:
        with SqliteDatabase(path, busy_timeout=0) as db:
            db.check(full=True)
    except StoreError:
        return True
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rot") / "whole.db"
    write(path)
    assert not damage_is_told(path)
    return path


def test_a_flipped_bit_is_told_or_does_nothing(whole, tmp_path, seed):
    rng, before = random.Random(seed), everything(whole)
    assert not [value for value in before.values() if isinstance(value, StoreError)]
    data, told, alone = whole.read_bytes(), 0, 0
    rounds = scaled(60, 4_000)
    for number in range(rounds):
        path = tmp_path / f"{number}.db"
        flipped = bytearray(data)
        position, bit = rng.randrange(len(data)), rng.randrange(8)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        where = f"bit {bit} of byte {position}"
        try:
            after = everything(path)
        except StoreError:
            told += 1
            continue
        errors = {name for name, value in after.items() if isinstance(value, StoreError)}
        wrong = {name for name in before if name not in errors and after[name] != before[name]}
        if errors or wrong or damage_is_told(path):
            told += 1
            assert damage_is_told(path), f"{where}: {errors or wrong} and the check finds nothing"
        for name in wrong:  # rows that an index does not lead to any more are missing until the check tells
            rows = before[name] if isinstance(before[name], list) else []
            assert all(row in rows for row in after[name] or ()), f"{where}: {name} reads as something else"
        alone += len(errors) == 1
        shutil.rmtree(f"{path}-owners", ignore_errors=True)
    print(f"{told} of {rounds} told, {alone} of them cost one run or ledger")
    assert told >= alone > 0


def test_damaged_text_in_the_schema_is_told_as_such(whole, tmp_path):
    """The sqlite3 module quotes it in its message, and raised UnicodeDecodeError where it is no UTF-8."""
    data, path = whole.read_bytes(), tmp_path / "damaged.db"
    path.write_bytes(data.replace(b"CREATE TABLE", b"CREATE\xa9TABLE", 1).replace(b"states", b"stat\xa9s"))
    with SqliteDatabase(path, busy_timeout=0) as db, pytest.raises(StoreCorrupt):
        SqliteRunStore(db).load("r")


def test_a_truncated_file_is_told(whole, tmp_path, seed):
    rng, data = random.Random(seed), whole.read_bytes()
    for number in range(scaled(20, 500)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(data[: rng.randrange(1, len(data))])
        assert damage_is_told(path)


def test_a_state_and_a_record_that_were_changed_by_hand_are_told_with_the_way_out(whole, tmp_path):
    path = Path(shutil.copy(whole, tmp_path / "hand.db"))
    with SqliteDatabase(path) as db:
        sql = db.connection()
        sql.execute("UPDATE states SET data = replace(data, '\"n\":3', '\"n\":4')")
        sql.close()
        with pytest.raises(StoreCorrupt, match=r"run 'run-6'.*checksum.*without its crc member"):
            SqliteRunStore(db).load("run-6")
        run = SqliteRunStore(db).load("run-4")
        assert run is not None
        assert run.vars["n"] == 2
        with pytest.raises(StoreCorrupt, match=r"run 'run-6'.*run 'run-7'"):
            db.check(full=True)


def test_columns_that_say_something_else_than_the_data_are_told(whole, tmp_path):
    for number, change in enumerate(
        (
            "UPDATE states SET status = 'failed' WHERE id = 3",
            "UPDATE states SET revision = revision + 1 WHERE id = 3",
            "UPDATE runs SET workflow_id = 'other' WHERE id = 3",
            "UPDATE waits SET wait_key = 'other' WHERE run = 3",
            "DELETE FROM waits WHERE run = 3",
            "DELETE FROM ledger WHERE run = 3",
            "UPDATE states SET head = 'other' WHERE head IS NOT NULL",
            "UPDATE ledger SET count = 1 WHERE run = 3",
        )
    ):
        path = Path(shutil.copy(whole, tmp_path / f"{number}.db"))
        with SqliteDatabase(path) as db:
            sql = db.connection()
            assert sql.execute(change).rowcount, change
            sql.close()
            with pytest.raises(StoreCorrupt, match="database is damaged"):
                db.check(full=True)
