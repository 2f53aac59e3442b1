"""No room on the disk, or somebody in the way: nothing is lost, no run fails, and it passes."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from abstractruntime import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StepRecord,
    StepStatus,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    WorkflowSpec,
)
from abstractruntime.core import portal

from . import desks
from .desks import Desk
from .outside import performances
from .test_sqlite_commit import run, write

ROOT = Path(__file__).parent.parent
facade, path, desk = desks.facade, desks.path, desks.desk

#: why a test fails for now


def fill(desk: Desk) -> None:
    """Let the file grow no more: no page can be had, as on a full disk."""
    portal.call(
        desk.database.backend.write, lambda connection: connection.execute("PRAGMA max_page_count = 1").rowcount
    )


def make_room(desk: Desk) -> None:
    lines = "PRAGMA max_page_count = 1000000"
    portal.call(desk.database.backend.write, lambda connection: connection.execute(lines).rowcount)


def test_without_room_every_write_says_so_and_with_room_the_same_objects_go_on(desk):
    fill(desk)
    for name in ("save", "start"):
        with pytest.raises(StoreFull, match="nothing was written"):
            desk.ways_in()[name]()
    assert desk.runs.load("r").status is RunStatus.RUNNING
    make_room(desk)
    for name in ("save", "start"):
        desk.ways_in()[name]()
    desk.ends()


WAYS = ["limit", *(["disk"] if os.geteuid() == 0 and sys.platform == "linux" else [])]


OPENER = """
import sys
from pathlib import Path
from abstractruntime import StoreFull
from tests.desks import Desk
from tests.full_disk_worker import Disk
way, folder = sys.argv[1], Path(sys.argv[2])
disk = Disk(way, folder)
desk = Desk(folder / "old.db")
desk.start()
desk.close()
for name in ("old.db", "new.db", "deep/new.db"):
    disk.fill()
    desk = Desk(folder / name)
    desk.is_refused(StoreFull)
    disk.make_room()
    desk.start()
    desk.ends()
    desk.close()
    print(name)
"""


@contextmanager
def disk_of(way: str, folder: Path) -> Iterator[None]:
    """A small disk of its own at this folder, if it is to be filled."""
    if way == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True)  # noqa: S607
    try:
        yield
    finally:
        if way == "disk":
            subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_opened_on_a_full_disk_says_so_on_every_way_in_and_opens_when_there_is_room(tmp_path, way):
    with disk_of(way, tmp_path):
        command = [sys.executable, "-c", OPENER, way, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["old.db", "new.db", "deep/new.db"]), done.stderr


@pytest.fixture(scope="module", params=[(way, facade) for way in WAYS for facade in ("async", "sync")], ids="-".join)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Counter[str]]:
    """What a process told whose disk was full in the middle of 50 runs, and how often each key was performed."""
    way, facade = request.param
    folder = tmp_path_factory.mktemp("disk")
    world = tmp_path_factory.mktemp("world") / "world"
    with disk_of(way, folder):
        command = [sys.executable, "-m", "tests.full_disk_worker", way, facade, str(folder), str(world), "50"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), Counter(performance.key for performance in performances(world))


def test_a_full_disk_fails_no_run_of_a_fleet_and_with_room_all_come_to_their_ends(fleet):
    told, performed = fleet
    assert set(told["errors"]) == {"StoreFull: True"}
    assert set(told["while_full"]) <= {"running", "completed"}
    assert told["while_full"]["running"] > 0
    assert told["after"] == {"completed": 50}
    assert told["miscounted"] == []
    assert len(performed) == 150


def test_a_full_disk_makes_no_effect_of_a_fleet_happen_twice(fleet):
    _, performed = fleet
    assert set(performed.values()) == {1}


@pytest.mark.parametrize("trouble", ["full", "busy"])
def test_an_outcome_that_could_not_be_settled_is_settled_by_the_next_tick(path, facade, trouble):
    performed: list[str] = []

    async def act(call: EffectCall) -> EffectOutcome:
        performed.append(call.key)
        if len(performed) == 1:
            if trouble == "full":
                await desk.database.backend.write(lambda c: c.execute("PRAGMA max_page_count = 1").rowcount)
            else:
                await asyncio.to_thread(plain.execute, "BEGIN IMMEDIATE")
        return EffectOutcome.completed({"text": "x" * 20_000})

    desk = Desk(path, facade, act, busy_timeout=0.05)
    plain = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    desk.start()
    with pytest.raises(StoreFull if trouble == "full" else StoreBusy):
        desk.tick()
    if trouble == "full":
        make_room(desk)
    else:
        plain.execute("ROLLBACK")
    plain.close()
    desk.ends()
    desk.close()
    assert len(performed) == 1


# Locked files


def test_a_locked_file_is_busy_for_every_write_and_fails_no_run(desk, path):
    plain = sqlite3.connect(path, isolation_level=None)
    plain.execute("BEGIN IMMEDIATE")
    for name in ("save", "append", "start", "tick", "renew"):
        with pytest.raises(StoreBusy, match="busy_timeout"):
            desk.ways_in()[name]()
    assert desk.rt.get_state("r").status is RunStatus.RUNNING
    plain.execute("ROLLBACK")
    plain.close()
    desk.ends()


def test_a_store_in_trouble_does_not_fail_an_effect_that_looks_at_another_run(path):
    def ask(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("ask", Effect("vars_query", {"path": "x", "target_run_id": "other"}, "found"), "end")

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output={"found": run.vars["found"]})

    workflow: WorkflowSpec[Any] = WorkflowSpec("asks", "ask", {"ask": ask, "end": end})
    with SqliteDatabase(path) as database:
        store = SqliteRunStore(database)
        store.save(RunState("other", "w", RunStatus.RUNNING, "n"))
        portal.call(database.backend.write, lambda c: c.execute("UPDATE states SET data = x'7b'").rowcount)
        rt = Runtime(run_store=store, ledger_store=SqliteLedgerStore(database))
        rt.start(workflow=workflow, run_id="r")
        with suppress(StoreCorrupt):
            rt.tick(workflow=workflow, run_id="r")
        assert rt.get_state("r").status is RunStatus.RUNNING


async def test_what_shares_a_batch_with_a_write_that_finds_no_room_is_not_acknowledged_and_lost(path):
    """SQLite gives up the whole transaction then, and with it what the others had written."""
    async with SqliteDatabase(path) as database:
        store, backend = AsyncSqliteRunStore(database), database.backend
        await store.save(RunState("small", "w", RunStatus.RUNNING, "n"))
        await backend.write(lambda c: c.execute("PRAGMA max_page_count = 1").rowcount)
        big = StepRecord("small", "s", "n", StepStatus.COMPLETED, None, {"x": "x" * 100_000})
        holding, held = Event(), Event()

        def hold(connection: sqlite3.Connection) -> None:
            held.set()
            holding.wait(30)

        first = asyncio.create_task(backend.write(hold))
        await asyncio.to_thread(held.wait, 30)
        step = asyncio.create_task(backend.commit(write(run("small", 2), 1, hot=True)))
        appending = asyncio.create_task(AsyncSqliteLedgerStore(database).append(big))
        while database.backend._writer._queue.qsize() < 2:  # noqa: ASYNC110 - both share the next batch
            await asyncio.sleep(0)
        holding.set()
        await first
        with pytest.raises(StoreFull):
            await appending
        try:
            await step
        except StoreFull:
            expected = 1
        else:
            expected = 2
        found = await store.load("small")
        assert found is not None
        assert found.revision == expected
