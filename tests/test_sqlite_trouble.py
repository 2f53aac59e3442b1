"""What goes wrong below a SQLite store, on every way in: told by class, nothing lost, no run failed, and passing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import abstractruntime
from abstractruntime import (
    AsyncRuntime,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StoreCorrupt,
    StoreError,
    StoreSchemaTooNew,
    StoreVanished,
)
from abstractruntime.storage.sqlite import failures
from abstractruntime.storage.sqlite.batch import Operation
from abstractruntime.storage.sqlite.schema import LATEST
from abstractruntime.storage.sqlite.watch import Place, Watch

from . import desks
from .checks import check_ledger
from .clocks import StillClock
from .desks import WORKFLOW, Desk

ROOT = Path(__file__).parent.parent
facade, path, desk, attentive = desks.facade, desks.path, desks.desk, desks.attentive


def test_every_error_of_a_store_is_exported_and_drawn_in_the_tree():
    kinds = {"StoreFull", "StoreReadOnly", "StoreVanished", "StoreBusy", "StoreCorrupt", "StoreSchemaTooNew"}
    for name in kinds:
        assert issubclass(getattr(abstractruntime, name), StoreError)
        assert name in abstractruntime.__all__
        assert f"─ {name} " in (abstractruntime.core.errors.__doc__ or "")


# Newer versions


@pytest.mark.usefixtures("attentive")
def test_a_file_that_a_newer_version_takes_over_while_it_is_open_is_refused_from_then_on(desk, path):
    desk.tick()
    plain = sqlite3.connect(path)
    plain.execute(f"PRAGMA user_version = {LATEST + 1}")
    desk.is_refused(StoreSchemaTooNew)
    plain.execute(f"PRAGMA user_version = {LATEST}")
    plain.close()
    desk.ends()


def test_a_file_of_a_newer_version_is_refused_on_every_way_in(path, facade):
    desk = Desk(path)
    desk.start()
    desk.close()
    plain = sqlite3.connect(path)
    plain.execute(f"PRAGMA user_version = {LATEST + 1}")
    plain.close()
    desk = Desk(path, facade)
    desk.is_refused(StoreSchemaTooNew)
    plain = sqlite3.connect(path)
    plain.execute(f"PRAGMA user_version = {LATEST}")
    plain.close()
    desk.ends()
    desk.close()


# Damage


def stored(path: Path) -> None:
    """A closed database with a run that has begun, and enough beside it for many pages."""
    desk = Desk(path)
    desk.start()
    for number in range(50):
        desk.runs.save(RunState(f"filling-{number}", "w", RunStatus.COMPLETED, "n", vars={"x": "x" * 3_000}))
    desk.close()


def garbage(content: bytearray) -> None:
    content[:100] = b"\xde\xad" * 50


def half_a_page(content: bytearray) -> None:
    content[len(content) // 2 :] = b""


def all_but_the_header(content: bytearray) -> None:
    content[4096:] = os.urandom(len(content) - 4096)


@pytest.mark.parametrize("damage", [garbage, half_a_page, all_but_the_header])
def test_a_damaged_file_is_corrupt_on_every_way_in_and_left_as_it_is(path, facade, damage):
    stored(path)
    whole = path.read_bytes()
    content = bytearray(whole)
    damage(content)
    path.write_bytes(content)
    desk = Desk(path, facade)
    desk.is_refused(StoreCorrupt, but=frozenset({"plain connection"} if damage is all_but_the_header else ()))
    desk.close()
    if damage is garbage:
        assert path.read_bytes() == content
    path.write_bytes(whole)
    desk = Desk(path, facade)
    desk.ends()
    desk.close()


def test_a_torn_page_in_the_middle_fails_what_needs_it_and_the_check_finds_it(path):
    stored(path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"filling-30") // 4096 * 4096
    content[place : place + 2048] = bytes(2048)
    path.write_bytes(content)
    desk = Desk(path)
    with pytest.raises(StoreCorrupt):
        desk.runs.list_runs()
    with pytest.raises(StoreCorrupt, match=r"damaged|readable"):
        desk.database.check()
    with pytest.raises(StoreCorrupt, match=r"damaged|readable"):
        desk.database.backup(f"{path}.copy")
    assert not Path(f"{path}.copy").exists()
    desk.close()


def test_an_empty_file_is_a_new_database(path, facade):
    path.touch()
    desk = Desk(path, facade)
    desk.start()
    desk.ends()
    desk.close()


# Read-only files


def test_without_permission_it_says_so_and_with_it_the_same_objects_go_on(facade):
    with tempfile.TemporaryDirectory() as folder:  # where another user may enter, unlike in pytest's
        command = [sys.executable, "-m", "tests.read_only_worker", folder, facade]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.split() == ["file", "folder", "no-folder", "lock"]


# Files that vanish


def deleted(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other.db")
    with SqliteDatabase(other) as database:
        SqliteRunStore(database).load("make the file")
    os.replace(other, path)


def without_its_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def without_its_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.usefixtures("attentive")
@pytest.mark.parametrize("how", [deleted, replaced, without_its_log, without_its_folder])
def test_a_file_that_vanishes_while_it_is_open_is_missed_on_every_way_in(tmp_path, facade, how):
    path = tmp_path / "folder" / "runs.db"
    desk = Desk(path, facade)
    desk.start()
    desk.runs.load("r")
    copy = desk.database.backup(tmp_path / "copy.db")
    how(path)
    before = sorted(os.listdir(path.parent)) if path.parent.exists() else None
    beside = frozenset({"plain connection", "backup", "check"} if how is without_its_log else ())
    desk.is_refused(StoreVanished, but=beside)
    if not beside:
        assert (sorted(os.listdir(path.parent)) if path.parent.exists() else None) == before, "something was made"
    desk.close()
    path.parent.mkdir(exist_ok=True)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(copy, path)
    desk = Desk(path, facade)
    desk.ends()
    desk.close()


@pytest.mark.usefixtures("attentive")
def test_a_file_that_comes_back_is_gone_on_with(desk, path):
    desk.runs.load("r")
    path.rename(path.with_name("away"))
    desk.is_refused(StoreVanished)
    path.with_name("away").rename(path)
    desk.ends()


def test_a_batch_that_begins_a_second_after_the_file_vanished_is_refused(path):
    """What is promised: looked at most once a second, so what is within it may still be acknowledged, and no more."""
    clock = StillClock()
    batches: list[int] = []

    def run(connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
        batches.append(len(operations))
        return ["done"]

    def operation(connection: sqlite3.Connection) -> None:
        raise AssertionError("no batch of this test runs what it is given")

    place = Place(str(path), check_log=False)
    watched = Watch(place, partial(place.open, partial(sqlite3.connect, path)), run, clock=clock)
    path.touch()
    connection = watched.connect()
    assert watched.run(connection, [operation]) == ["done"]
    path.unlink()
    clock.advance(0.99)
    assert watched.run(connection, [operation]) == ["done"]
    clock.advance(0.01)
    for _ in range(2):
        (outcome,) = watched.run(connection, [operation])
        assert isinstance(outcome.error, StoreVanished)
    assert batches == [1, 1]
    connection.close()


@pytest.mark.usefixtures("attentive")
async def test_a_vanished_file_is_noticed_while_an_effect_is_in_flight_and_the_run_goes_on_elsewhere(tmp_path):
    path, copy = tmp_path / "runs.db", tmp_path / "copy.db"

    async def act(call: EffectCall) -> EffectOutcome:
        await asyncio.to_thread(vanish)
        return EffectOutcome.completed({"attempt": call.attempt})

    def vanish() -> None:
        if not copy.exists():
            database.backup(copy)
            path.unlink()

    async with SqliteDatabase(path) as database:
        stores: dict[str, Any] = {"run_store": SqliteRunStore(database), "ledger_store": SqliteLedgerStore(database)}
        rt = AsyncRuntime(**stores, effect_handlers={"act": act})
        await rt.start(workflow=WORKFLOW, run_id="r")
        with pytest.raises(StoreVanished, match="deleted or replaced"):
            await rt.tick(workflow=WORKFLOW, run_id="r")
        with pytest.raises(StoreVanished):
            await rt.get_state("r")
        with suppress(StoreVanished):  # until closing is quiet about it
            await rt.aclose()
    async with SqliteDatabase(copy) as database:
        stores = {"run_store": SqliteRunStore(database), "ledger_store": SqliteLedgerStore(database)}
        async with AsyncRuntime(**stores, effect_handlers={"act": act}) as rt:
            state = await rt.tick(workflow=WORKFLOW, run_id="r")
            assert state.output == {"act": {"attempt": 2}}
            check_ledger(state, await rt.get_ledger("r"))


@pytest.mark.usefixtures("attentive")
def test_a_runtime_whose_file_vanished_can_be_closed(path, facade):
    desk = Desk(path, facade)
    desk.start()
    desk.tick()
    path.unlink()
    desk.close()


# Paths that cannot be


def test_a_path_that_is_a_folder_says_so_on_every_way_in(tmp_path, facade):
    desk = Desk(tmp_path, facade)
    desk.is_refused(StoreError)
    with pytest.raises(StoreError, match="is a folder"):
        desk.start()
    desk.close()


def test_a_folder_that_cannot_be_made_says_so_on_every_way_in(tmp_path, facade):
    (tmp_path / "in the way").touch()
    desk = Desk(tmp_path / "in the way" / "runs.db", facade)
    desk.is_refused(StoreError)
    with pytest.raises(StoreError, match="folder cannot be made"):
        desk.start()
    (tmp_path / "in the way").unlink()
    desk.start()
    desk.ends()
    desk.close()


def test_a_log_that_goes_while_it_is_looked_at_makes_no_file_read_only(tmp_path, monkeypatch):
    """The last connection of another process to close takes it away; opening then failed for a permission."""
    path = tmp_path / "runs.db"
    for name in (path, tmp_path / "runs.db-wal"):
        name.touch()
    look = failures._may_write

    def gone(place: str) -> bool:
        if place.endswith("-wal"):
            Path(place).unlink(missing_ok=True)
        return look(place)

    monkeypatch.setattr(failures, "_may_write", gone)
    failures.check_writable(str(path))
