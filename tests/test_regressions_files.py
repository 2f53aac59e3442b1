"""What goes wrong elsewhere: readers that block writers, connections that pile up, prompts that are rewritten."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
)

from . import worlds
from .scale import scaled
from .worlds import World, flow, one

world = worlds.world


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    with SqliteDatabase(tmp_path / "runs.db", busy_timeout=0.5) as database:
        yield database


def save(store: SqliteRunStore, run_id: str) -> None:
    store.save(RunState.new(workflow_id="w", entry_node="a", run_id=run_id))


def test_a_reader_in_the_middle_of_a_long_read_does_not_block_the_writer(database: SqliteDatabase) -> None:
    store = SqliteRunStore(database)
    save(store, "before")
    with closing(database.connection()) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM states").fetchone()[0] == 1
        for number in range(20):
            save(store, f"meanwhile-{number}")
        assert reader.execute("SELECT count(*) FROM states").fetchone()[0] == 1, "a reader keeps what it began with"
    assert len(store.list_runs()) == 21


def test_a_listing_under_writes_skips_no_run_that_was_there_when_it_began(database: SqliteDatabase) -> None:
    store = SqliteRunStore(database)
    saved: list[str] = []

    def write() -> None:
        for number in range(scaled(150, 5_000)):
            save(store, f"r{number}")
            saved.append(f"r{number}")

    writer = threading.Thread(target=write)
    writer.start()
    listings = 0
    while writer.is_alive():
        there = set(saved)
        assert there <= {run.run_id for run in store.list_runs(limit=1_000_000)}
        listings += 1
    writer.join()
    assert listings > 1
    assert len(store.list_runs(limit=1_000_000)) == len(saved)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files of the process in /proc")
def test_however_many_threads_use_a_file_it_is_open_twice_and_not_at_all_once_closed(database: SqliteDatabase) -> None:
    store, ledger = SqliteRunStore(database), SqliteLedgerStore(database)

    def use(number: int) -> None:
        save(store, f"r{number}")
        assert store.load(f"r{number}")
        assert ledger.list(f"r{number}") == []

    for _ in range(3):
        threads = [threading.Thread(target=use, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(12):
            store.delete(f"r{number}")
    assert opened(database.path) == 2, "one writes and one reads"
    database.close()
    assert opened(database.path) == 0


def opened(path: str) -> int:
    descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in descriptors if os.path.lexists(link)].count(path)


async def test_a_prompt_reaches_handler_and_ledger_word_for_word_and_nothing_is_added_to_it(world: World) -> None:
    asked: list[dict[str, Any]] = []

    async def model(call: EffectCall) -> EffectOutcome:
        asked.append(call.payload)
        return EffectOutcome.completed({"content": "Paris"})

    payload = {
        "prompt": "What is the capital of France?",
        "system_prompt": "Be brief.",
        "messages": [{"role": "user", "content": "Hello"}],
        "params": {"temperature": 0.0},
    }
    rt = world.runtime({"llm_call": model})
    given = {"context": {"messages": [{"role": "user", "content": "Hello"}]}}
    state = await rt.run(one("llm_call", payload), vars=given, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert asked == [payload]
    records = [r for r in await rt.get_ledger("r") if (r["effect"] or {}).get("type") == "llm_call"]
    assert records[0]["effect"]["payload"] == payload
    assert state.vars["context"] == given["context"]


async def test_every_entry_takes_a_session_and_its_records_tell_it(world: World) -> None:
    rt = world.runtime()
    work = one("answer_user", {"message": "hello"})
    started = await rt.start(workflow=work, session_id="s")
    await rt.tick(workflow=work, run_id=started)
    run = await rt.run(flow("end"), session_id="s")
    for run_id in (started, run.run_id):
        assert (await rt.get_state(run_id)).session_id == "s"
        assert {record["session_id"] for record in await rt.get_ledger(run_id)} == {"s"}
