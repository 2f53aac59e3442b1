"""Commits on SQLite: what lands, what is refused and why, and what a batch of many does when one of them fails."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from abstractruntime.core.backend import Write
from abstractruntime.core.codec import encode_records, encode_run
from abstractruntime.core.errors import RevisionConflict
from abstractruntime.core.models import (
    Effect,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from abstractruntime.storage.sqlite import SqliteDatabase
from abstractruntime.storage.sqlite.backend import SqliteBackend
from abstractruntime.storage.sqlite.batch import Failed, Writer
from abstractruntime.storage.sqlite.schema import open_connection

from .scale import scaled

AT = "2026-01-31T09:00:00.000000+00:00"


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    async with SqliteDatabase(tmp_path / "runs.sqlite3") as database:
        yield database.backend


def run(run_id: str = "r", revision: int = 1, **fields: Any) -> RunState:
    made = RunState(run_id, "w", fields.pop("status", RunStatus.RUNNING), "n", created_at=AT, updated_at=AT, **fields)
    made.revision = revision
    made.commit_id = f"{run_id}@{revision}"
    return made


def waiting(until: str | None = None) -> dict[str, Any]:
    return {"status": RunStatus.WAITING, "waiting": WaitState(WaitReason.USER, "key", until)}


def write(state: RunState, expected: int | None, *, before: int = 0, count: int = 0, **fields: Any) -> Write:
    records = [
        StepRecord(state.run_id, f"s{number}", "n", StepStatus.COMPLETED, started_at=AT, commit_id=state.commit_id)
        for number in range(before + 1, before + count + 1)
    ]
    return Write(
        run=state,
        data=encode_run(state),
        expected=expected,
        expected_records=before,
        records=encode_records(records),
        count=count,
        **fields,
    )


def request(run_id: str = "r", kind: Literal["cancel", "pause"] = "cancel") -> Request:
    return Request(run_id=run_id, kind=kind, by="tester", at=AT)


async def test_what_was_committed_is_what_is_loaded(backend):
    state = run(vars={"a": [1, {"b": None}], "text": "ä\u0000"}, session_id="s")
    await backend.commit(write(state, None, count=2))
    loaded = await backend.load("r")
    assert loaded is not None
    state.records = 2
    assert loaded.run == state
    assert loaded.run is not state
    assert loaded.requests == ()
    assert [record.step_id for record in await backend.records("r")] == ["s1", "s2"]


async def test_a_step_is_refused_when_the_run_moved_on_and_nothing_of_it_is_stored(backend):
    await backend.commit(write(run(), None))
    await backend.commit(write(run(revision=2), 1, hot=True))
    for hot in (True, False):
        with pytest.raises(RevisionConflict) as caught:
            await backend.commit(write(run(revision=2, vars={"lost": True}), 1, count=1, hot=hot))
        assert (caught.value.run_id, caught.value.expected, caught.value.found) == ("r", 1, 2)
    loaded = await backend.load("r")
    assert loaded is not None
    assert (loaded.run.revision, loaded.run.vars, loaded.run.records) == (2, {}, 0)


async def test_a_step_of_a_run_that_is_gone_is_refused_and_never_inserts_one(backend):
    for expected_found in (None, None):
        with pytest.raises(RevisionConflict) as caught:
            await backend.commit(write(run(revision=2), 1, hot=True))
        assert caught.value.found is expected_found
    await backend.commit(write(run(), None, count=1))
    await backend.commit(write(run(revision=2), 1, before=1, hot=True))
    await backend.write(partial(_forget, run_id="r"))  # behind the writer's back, so that it still knows the integer
    with pytest.raises(RevisionConflict, match="is gone"):
        await backend.commit(write(run(revision=3), 2, before=1, hot=True))
    assert await backend.load("r") is None


def _forget(connection: sqlite3.Connection, run_id: str) -> None:
    connection.execute("DELETE FROM states WHERE id = (SELECT id FROM runs WHERE run_id = ?)", (run_id,))


async def test_a_run_is_inserted_once(backend):
    await backend.commit(write(run(), None))
    with pytest.raises(RevisionConflict, match="a run of this id exists") as caught:
        await backend.commit(write(run(vars={"second": True}), None, count=1))
    assert caught.value.found == 1
    assert await backend.records("r") == []


async def test_a_step_meets_a_conflict_when_a_record_came_between(backend):
    await backend.commit(write(run(), None))
    await backend.append(StepRecord("r", "s1", "n", StepStatus.COMPLETED))
    with pytest.raises(RevisionConflict, match="its ledger has 1 records and not 0"):
        await backend.commit(write(run(revision=2), 1, hot=True))
    await backend.commit(write(run(revision=2), 1, before=1, count=1, hot=True))
    assert [record.step_id for record in await backend.records("r")] == ["s1", "s2"]


async def test_a_step_fails_while_a_request_stands_and_lands_when_it_answers(backend):
    await backend.commit(write(run(), None))
    await backend.commit(write(run("other"), None, requests=(request(),)))
    with pytest.raises(RevisionConflict, match="a cancel request stands"):
        await backend.commit(write(run(revision=2), 1, hot=True))
    loaded = await backend.load("r")
    assert loaded is not None
    assert loaded.requests == (request(),)
    await backend.commit(write(run(revision=2), 1, answered=1))
    loaded = await backend.load("r")
    assert loaded is not None
    assert loaded.requests == ()
    await backend.commit(write(run(revision=3), 2, hot=True))
    with pytest.raises(RevisionConflict, match="stands no more"):
        await backend.commit(write(run(revision=4), 3, answered=1))


async def test_a_request_stands_once_per_kind_and_only_at_runs_that_have_not_ended(backend):
    await backend.commit(write(run(), None))
    await backend.commit(write(run("ended", status=RunStatus.FAILED), None))
    asked = (request(), request(kind="pause"), request(), request("ended"), request("unknown"))
    await backend.commit(write(run("other"), None, requests=asked))
    await backend.commit(write(run("third"), None, requests=(request(),)))
    loaded, ended = await backend.load("r"), await backend.load("ended")
    assert loaded is not None
    assert ended is not None
    assert [standing.kind for standing in loaded.requests] == ["cancel", "pause"]
    assert ended.requests == ()


async def test_claims_tell_the_token_of_each_intent_and_whether_a_cancel_stands(backend):
    intent = Intent(step_id="r:1.1", seq=1, node_id="n", effect=Effect("host"), key="k", started_at=AT, token="t")
    await backend.commit(write(run(intent=intent, owner="o"), None))
    await backend.commit(write(run("asked"), None))
    await backend.commit(write(run("other"), None, requests=(request("asked"), request("r", "pause"))))
    found = await backend.claims(["r", "asked", "other", "unknown"])
    assert found == {"r": ("t", False), "asked": (None, True), "other": (None, False)}
    assert await backend.claims([]) == {}


async def test_a_commit_that_landed_is_found_by_its_id_in_the_state_or_in_the_ledger(backend):
    await backend.commit(write(run(), None, count=1))
    await backend.commit(write(run(revision=2), 1, before=1, hot=True))
    assert await backend.landed("r", "r@2")
    assert await backend.landed("r", "r@1")
    assert not await backend.landed("r", "r@3")
    assert not await backend.landed("unknown", "r@1")


async def test_records_are_found_by_the_key_they_were_written_under(backend):
    await backend.commit(write(run(), None, count=2, lookup_key="k"))
    await backend.commit(write(run(revision=2), 1, before=2, count=1, hot=True))
    await backend.commit(write(run(revision=3), 2, before=3, count=1, hot=True, lookup_key="k"))
    assert [record.step_id for record in await backend.find("r", "k")] == ["s1", "s2", "s4"]
    assert await backend.find("r", "other") == await backend.find("unknown", "k") == []


async def test_the_rows_that_wait_are_those_of_waiting_runs(backend):
    async def waits() -> list[tuple[Any, ...]]:
        rows = "SELECT r.run_id, w.reason, w.wait_key, w.due FROM waits w JOIN runs r ON r.id = w.run ORDER BY 1"
        found: list[tuple[Any, ...]] = await backend.read(lambda connection: connection.execute(rows).fetchall())
        return found

    await backend.commit(write(run(), None))
    assert await waits() == []
    await backend.commit(write(run(revision=2, **waiting(AT)), 1))
    assert await waits() == [("r", "user", "key", 1_769_850_000_000_000)]
    paused = {"_runtime": {"control": {"paused": True}}}
    await backend.commit(write(run(revision=3, vars=paused, **waiting(AT)), 2))
    assert await waits() == [("r", "user", "key", None)]
    await backend.commit(write(run(revision=4), 3))
    assert await waits() == []


async def test_only_the_culprit_of_a_batch_fails(backend):
    """A hundred runs step at once; some were moved on behind their back, one asks for what SQLite cannot hold."""
    names = [f"r{number}" for number in range(100)]
    for name in names:
        await backend.commit(write(run(name), None))
    stale = {"r7", "r50", "r99"}
    for name in stale:
        await backend.commit(write(run(name, 2), 1, hot=True))
    outcomes: dict[str, BaseException | None] = {}

    async def step(name: str) -> None:
        try:
            too_large = 2**70 if name == "r20" else 2
            await backend.commit(write(run(name, too_large), 1, count=1, hot=name != "r20"))
            outcomes[name] = None
        except (RevisionConflict, OverflowError) as error:
            outcomes[name] = error

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(step, name)
    assert {name for name, error in outcomes.items() if error} == stale | {"r20"}
    for name in names:
        loaded = await backend.load(name)
        assert loaded is not None
        assert len(await backend.records(name)) == loaded.run.records == (0 if name in stale | {"r20"} else 1)


def test_two_steps_of_one_run_in_one_batch_land_in_their_order(tmp_path):
    connection = open_connection(str(tmp_path / "x"), synchronous="NORMAL", busy_timeout=1)
    writer = Writer("x")
    for kinds in ((True, True), (False, False), (True, False), (False, True)):
        name = f"r{kinds}"
        batch = [write(run(name), None)]
        batch.append(write(run(name, 2, **({} if any(kinds) else waiting())), 1, count=1, hot=kinds[0]))
        batch.append(write(run(name, 3), 2, before=1, count=1, hot=kinds[1]))
        assert writer(connection, batch) == [None, None, None]
    assert connection.execute("SELECT count(*) FROM waits").fetchone() == (0,)
    assert {row[0] for row in connection.execute("SELECT revision FROM states")} == {3}
    connection.close()


def dump(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that is stored, named by run ids, because the integers may differ."""
    return {
        "states": connection.execute(
            "SELECT r.run_id, workflow_id, revision, records, requested, status, rest_at, owner, s.data"
            " FROM states s JOIN runs r ON r.id = s.id ORDER BY 1"
        ).fetchall(),
        "ledger": connection.execute(
            "SELECT r.run_id, seq, count, lookup_key, data FROM ledger l JOIN runs r ON r.id = l.run ORDER BY 1, 2"
        ).fetchall(),
        "waits": connection.execute(
            "SELECT r.run_id, reason, wait_key, due FROM waits w JOIN runs r ON r.id = w.run ORDER BY 1"
        ).fetchall(),
        "requests": connection.execute(
            "SELECT r.run_id, q.data FROM requests q JOIN runs r ON r.id = q.run ORDER BY 1, q.id"
        ).fetchall(),
    }


def random_write(rng: random.Random) -> Write:
    name, expected = f"r{rng.randrange(6)}", rng.choice([None, 1, 1, 2, 2, 3])
    status = rng.choice([RunStatus.RUNNING, RunStatus.RUNNING, RunStatus.WAITING, RunStatus.COMPLETED])
    wait = waiting(rng.choice([None, AT])) if status is RunStatus.WAITING else {"status": status}
    hot = status is RunStatus.RUNNING and expected is not None and rng.random() < 0.8
    asked = () if hot or rng.random() < 0.8 else (request(f"r{rng.randrange(6)}", rng.choice(["cancel", "pause"])),)
    return write(
        run(name, 1 if expected is None else expected + 1, vars={"x": rng.random()}, **wait),
        expected,
        before=0 if expected is None else rng.choice([0, 0, 0, 1]),
        count=rng.choice([0, 0, 0, 1]),
        answered=0 if hot else rng.choice([0, 0, 0, 1]),
        requests=asked,
        hot=hot,
    )


def test_a_batch_means_the_same_as_its_members_one_by_one(tmp_path, seed):
    rng = random.Random(seed)
    together, apart = (
        open_connection(str(tmp_path / name), synchronous="NORMAL", busy_timeout=1) for name in ("together", "apart")
    )
    batches, singles = Writer("together"), Writer("apart")
    landed = 0
    for _ in range(scaled(150, 5_000)):
        batch = [random_write(rng) for _ in range(rng.choice([1, 2, 3, 8]))]
        if rng.random() < 0.5:  # steps of known runs, so that whole batches land too
            rows = apart.execute("SELECT run_id, revision, records FROM states s JOIN runs r ON r.id = s.id").fetchall()
            batch = [
                write(run(name, revision + 1, vars={"x": rng.random()}), revision, before=records, count=2, hot=True)
                for name, revision, records in rows
            ]
        # Requests come last: writes that queued up together have no order among each other, and this keeps one.
        asking = [member for member in batch if member.requests]
        batch = [member for member in batch if not member.requests] + asking[:1]
        if rng.random() < 0.2:
            batches(together, [_clear])
            singles(apart, [_clear])
        outcomes = batches(together, batch)
        expected = [singles(apart, [member])[0] for member in batch]
        assert [describe(outcome) for outcome in outcomes] == [describe(outcome) for outcome in expected]
        assert dump(together) == dump(apart)
        landed += sum(outcome is None for outcome in outcomes)
    assert landed > 30
    together.close()
    apart.close()


def _clear(connection: sqlite3.Connection) -> None:
    for table in ("states", "ledger", "waits", "requests", "runs"):
        connection.execute(f"DELETE FROM {table}")


def describe(outcome: Any) -> str:
    return str(outcome.error) if isinstance(outcome, Failed) else repr(outcome)


async def test_the_integer_of_a_deleted_run_is_never_given_to_another(backend):
    """Processes remember which integer stands for which run; it must not come to stand for another one."""

    async def integer(run_id: str) -> int:
        found: int = await backend.read(
            lambda connection: connection.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()[0]
        )
        return found

    await backend.commit(write(run("first"), None))
    first = await integer("first")
    await backend.write(lambda connection: connection.execute("DELETE FROM states").rowcount)
    await backend.write(lambda connection: connection.execute("DELETE FROM runs").rowcount)
    await backend.commit(write(run("second"), None))
    assert await integer("second") > first
    with pytest.raises(RevisionConflict, match="is gone"):
        await backend.commit(write(run("first", 2), 1, hot=True))


async def test_a_writer_forgets_the_oldest_integers_and_looks_them_up_again(backend, monkeypatch):
    monkeypatch.setattr("abstractruntime.storage.sqlite.batch._REMEMBERED", 3)
    for number in range(5):
        await backend.commit(write(run(f"r{number}"), None))
    for number in range(5):
        await backend.commit(write(run(f"r{number}", 2), 1, hot=True))
        loaded = await backend.load(f"r{number}")
        assert loaded is not None
        assert loaded.run.revision == 2
