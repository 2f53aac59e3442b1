"""Snapshots and their stores: three stores, sync and async, give the same answers; nothing is lost or aliased."""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import logging
import math
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from abstractruntime import (
    InMemorySnapshotStore,
    InvalidId,
    InvalidSnapshot,
    JsonSnapshotStore,
    RunState,
    RunStatus,
    Snapshot,
    SnapshotStore,
    SqliteDatabase,
    SqliteSnapshotStore,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnclear,
    UnsafeValue,
    WaitReason,
    WaitState,
    diff_snapshots,
)

from .states import flying, question, running, timer, waiting


class Blocking:
    """An async store for blocking tests."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        assert inspect.iscoroutinefunction(method)

        async def called(*args: Any, **options: Any) -> Any:
            return await method(*args, **options)

        return lambda *args, **options: asyncio.run(called(*args, **options))


KINDS = ("memory", "json", "sqlite")


@pytest.fixture(params=[f"{kind}{way}" for kind in KINDS for way in ("", " async")])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    kind, _, way = request.param.partition(" ")
    with SqliteDatabase(tmp_path / "snapshots.db") as database:
        made: Any = {
            "memory": InMemorySnapshotStore,
            "json": lambda: JsonSnapshotStore(tmp_path / "snapshots"),
            "sqlite": lambda: SqliteSnapshotStore(database),
        }[kind]()
        yield Blocking(made.aio) if way else made


def snapshot(snapshot_id: str = "s1", run_id: str = "r", **fields: Any) -> Snapshot:
    return Snapshot(snapshot_id, run_id, run_state={"vars": {"deep": [1, {"x": None}]}}, **fields)


def test_all_are_snapshot_stores():
    for kind in (InMemorySnapshotStore, JsonSnapshotStore, SqliteSnapshotStore):
        assert issubclass(kind, SnapshotStore)


# What is kept


def test_the_documented_fields_come_first_and_in_order():
    fields = Snapshot.__struct_fields__
    documented = [
        "snapshot_id",
        "run_id",
        "step_id",
        "name",
        "description",
        "tags",
        "created_at",
        "updated_at",
        "run_state",
    ]
    assert list(fields) == [*documented, "position", "chain_head"]
    made = Snapshot("s", "r")
    assert (made.step_id, made.name, made.description, made.tags, made.run_state) == (None, "", None, [], {})


def test_a_snapshot_of_a_run_is_plain_json_and_what_a_reload_gives(store):
    run = waiting(question(details={"kind": "x"}), chain_head="abc")
    made = Snapshot.from_run(run=run, name="here", description="why", tags=["a", "b"], step_id="r:1.1")
    assert json.loads(json.dumps(made.run_state)) == made.run_state
    assert type(made.run_state["status"]) is str
    assert (made.run_state["status"], made.run_state["waiting"]["reason"]) == ("waiting", "user")
    assert list(made.run_state)[:13] == list(RunState.__struct_fields__[:13])
    assert len(made.run_state["waiting"]) == 9
    assert (made.position, made.chain_head, made.step_id) == (5, "abc", "r:1.1")
    store.save(made)
    loaded = store.load(made.snapshot_id)
    assert loaded == made
    assert loaded.as_run() == run


@pytest.mark.parametrize("run", [running(), waiting(timer()), waiting(question()), flying(), flying(paused=True)])
def test_the_run_of_a_snapshot_is_the_run(run: RunState):
    assert Snapshot.from_run(run=run, name="x").as_run() == run


def test_nothing_is_aliased(store):
    run = running(vars={"items": [1]})
    made = Snapshot.from_run(run=run, name="x", tags=["t"])
    run.vars["items"].append(2)
    assert made.run_state["vars"] == {"items": [1]}
    store.save(made)
    made.run_state["vars"]["items"].append(3)
    made.tags.append("u")
    one = store.load(made.snapshot_id)
    assert (one.run_state["vars"], one.tags) == ({"items": [1]}, ["t"])
    one.run_state["vars"]["items"].append(4)
    one.as_run().vars["items"].append(5)
    assert store.load(made.snapshot_id).run_state["vars"] == {"items": [1]}
    assert store.list()[0].run_state["vars"] == {"items": [1]}


def test_a_save_sets_updated_at_in_place_and_keeps_created_at(store):
    made = snapshot(created_at="2020-01-01T00:00:00.000000+00:00", updated_at="2020-01-01T00:00:00.000000+00:00")
    store.save(made)
    assert made.updated_at > "2026"
    assert store.load("s1") == made
    made.name = "renamed"
    store.save(made)
    assert [(one.name, one.created_at[:4]) for one in store.list()] == [("renamed", "2020")]


def test_deleting_says_whether_there_was_one(store):
    store.save(snapshot())
    assert (store.delete("s1"), store.delete("s1"), store.load("s1"), store.list()) == (True, False, None, [])


def test_secrets_are_not_kept(store):
    made = snapshot()
    made.run_state = {"vars": {"api_key": "sk-123", "max_tokens": 3}}
    store.save(made)
    assert store.load("s1").run_state == {"vars": {"api_key": {"$redacted": "api_key"}, "max_tokens": 3}}
    run = running(vars={"password": "x"})
    assert Snapshot.from_run(run=run, name="x").run_state["vars"] == {"password": {"$redacted": "password"}}


def test_odd_texts_are_kept(store):
    made = snapshot(name="a\x00b \U0001f600 ünï", description="\n\t\"'", tags=["", "\x00"])
    made.run_state = {"vars": {"": "\x00", "big": 10**400, "small": 5e-324, "text": "\u2028"}}
    store.save(made)
    assert store.load("s1") == made


# What is refused, and loses nothing

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
BAD: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "NaN": ({"run_state": {"vars": {"x": math.nan}}}, UnsafeValue),
    "infinity": ({"run_state": {"vars": {"x": math.inf}}}, UnsafeValue),
    "a huge number": ({"run_state": {"vars": {"x": 10**5000}}}, UnsafeValue),
    "a lone surrogate": ({"run_state": {"vars": {"x": "\ud800"}}}, UnsafeValue),
    "a surrogate in a name": ({"name": "\ud800"}, UnsafeValue),
    "a cycle": ({"run_state": {"vars": CYCLE}}, UnsafeValue),
    "a set": ({"run_state": {"vars": {1}}}, UnsafeValue),
    "a state that is no dict": ({"run_state": [1]}, UnsafeValue),
    "a name that is no text": ({"name": 5}, UnsafeValue),
    "tags that are no list": ({"tags": "abc"}, UnsafeValue),
    "a tag that is no text": ({"tags": [1]}, UnsafeValue),
    "a position that is no number": ({"position": "5"}, UnsafeValue),
    "a time that is no text": ({"created_at": 5}, UnsafeValue),
    "no run id": ({"run_id": ""}, InvalidId),
    "a path as run id": ({"run_id": "../r"}, InvalidId),
    "no id": ({"snapshot_id": ""}, InvalidId),
    "a path": ({"snapshot_id": "../../etc/passwd"}, InvalidId),
    "a folder": ({"snapshot_id": ".."}, InvalidId),
    "a null byte": ({"snapshot_id": "a\x00b"}, InvalidId),
    "a long id": ({"snapshot_id": "a" * 201}, InvalidId),
    "a sign that a file name may not have": ({"snapshot_id": "a*b"}, InvalidId),
    "an id of another alphabet": ({"snapshot_id": "ä"}, InvalidId),
    "an id that is no text": ({"snapshot_id": 5}, InvalidId),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_kept_is_refused_and_nothing_changes(store, what: str, tmp_path: Path):
    fields, error = BAD[what]
    store.save(snapshot())
    kept, files = store.load("s1"), sorted(tmp_path.rglob("*"))
    bad = snapshot()
    for name, value in fields.items():
        setattr(bad, name, value)
    with pytest.raises(error):
        store.save(bad)
    assert store.list() == [kept]
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("what", [name for name, (fields, _) in BAD.items() if "snapshot_id" in fields])
def test_an_id_that_is_none_is_not_looked_up(store, what: str):
    for method in (store.load, store.delete):
        with pytest.raises(InvalidId):
            method(BAD[what][0]["snapshot_id"])


def test_what_is_no_snapshot_is_refused(store):
    with pytest.raises(TypeError, match="expected a Snapshot, found a dict"):
        store.save({"snapshot_id": "s"})
    with pytest.raises(UnsafeValue, match="expected a list of texts"):
        Snapshot.from_run(run=running(), name="x", tags="abc")
    with pytest.raises(UnsafeValue, match=r"run_state\.vars\.x"):
        Snapshot.from_run(run=running(vars={"x": math.nan}), name="x")


NO_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "holds no run"),
    "another run": ({**asdict(running()), "run_id": "other"}, "holds the state of run 'other'"),
    "no status": ({**asdict(running()), "status": "dancing"}, "holds no run"),
    "a wait without a reason": ({**asdict(running()), "status": "waiting", "waiting": {}}, "holds no run"),
    "a wait without one": ({**asdict(running()), "status": "waiting"}, "holds a run that waits for nothing"),
    "no instant": (
        {**asdict(running()), "status": "waiting", "waiting": {"reason": "until", "until": "x"}},
        "holds no",
    ),
}


@pytest.mark.parametrize("what", NO_RUNS)
def test_a_snapshot_that_holds_no_run_says_so(what: str):
    state, problem = NO_RUNS[what]
    with pytest.raises(InvalidSnapshot, match=problem):
        Snapshot("s", "r", run_state=state).as_run()


def test_a_snapshot_of_a_program_that_built_its_state_by_hand_is_a_run():
    wait = {"reason": "until", "until": "2026-01-31T10:00:00Z"}
    state = {"run_id": "r", "workflow_id": "w", "status": "waiting", "current_node": "n", "vars": {}, "waiting": wait}
    run = Snapshot("s", "r", run_state=state).as_run()
    assert run.status is RunStatus.WAITING
    assert run.waiting == WaitState(WaitReason.UNTIL, until="2026-01-31T10:00:00.000000+00:00")


# Lists

TEXTS = st.sampled_from(["", "a", "A", "before", "BEFORE the answer", "ä", "Ä"])
SNAPSHOTS = st.builds(
    Snapshot,
    st.sampled_from(["s1", "s2", "s3", "s4", "S1"]),
    st.sampled_from(["r", "q"]),
    name=TEXTS,
    description=st.none() | TEXTS,
    tags=st.lists(TEXTS, max_size=2),
    created_at=st.integers(0, 3).map(lambda n: f"2026-01-31T09:0{n}:00.000000+00:00"),
    run_state=st.fixed_dictionaries({"vars": st.dictionaries(TEXTS, st.integers(), max_size=2)}),
    position=st.integers(0, 5),
)


def told(found: list[Snapshot]) -> list[Snapshot]:
    return [replace(one, updated_at="") for one in found]


@given(
    doings=st.lists(SNAPSHOTS | st.sampled_from(["s1", "s2", "s9"]), max_size=10),
    run_id=st.sampled_from([None, "r", "z"]),
    tag=st.none() | TEXTS,
    query=st.none() | TEXTS,
    limit=st.sampled_from([-1, 0, 1, 2, 100]),
)
def test_all_stores_agree_with_a_plain_list(tmp_path_factory, doings, run_id, tag, query, limit):
    folder = tmp_path_factory.mktemp("agree")
    held: dict[str, Snapshot] = {}
    with SqliteDatabase(":memory:") as database:
        stores = [InMemorySnapshotStore(), JsonSnapshotStore(folder), SqliteSnapshotStore(database)]
        for doing in doings:
            if isinstance(doing, str):
                assert [one.delete(doing) for one in stores] == [held.pop(doing, None) is not None] * 3
                continue
            for one in stores:
                one.save(replace(doing))
            held[doing.snapshot_id] = doing
        wanted = [
            one
            for one in sorted(held.values(), key=lambda one: one.snapshot_id)
            if run_id in (None, one.run_id)
            and (not tag or tag.lower() in [own.lower() for own in one.tags])
            and (query or "").lower() in f"{one.name}\n{one.description or ''}".lower()
        ]
        wanted.sort(key=lambda one: one.created_at, reverse=True)
        wanted = wanted[: max(1, limit) if limit else 100]
        for one in stores:
            assert told(one.list(run_id=run_id, tag=tag, query=query, limit=limit)) == told(wanted)
            for snapshot_id in ("s1", "s2", "S1", "s9"):
                loaded = one.load(snapshot_id)
                assert told([loaded] if loaded else []) == told([held[snapshot_id]] if snapshot_id in held else [])


def test_a_list_is_cut_at_its_limit_the_newest_first(store):
    for number in range(4):
        store.save(snapshot(f"s{number}", created_at=f"2026-01-0{1 + number % 2}T00:00:00.000000+00:00"))
    for limit, expected in ((2, "13"), (3, "130"), (-5, "1"), (0, "1302"), (100, "1302")):
        assert [one.snapshot_id for one in store.list(limit=limit)] == [f"s{number}" for number in expected]
    assert store.list(run_id="r", limit=1) == store.list(limit=1)
    assert store.list(run_id="") == []


# Files


def test_a_file_of_another_version_is_read(tmp_path: Path):
    """As documented programs left it: statuses as text, no position, fields that nobody knows any more."""
    state = {**asdict(running()), "status": "running", "unknown": 1}
    about = {"snapshot_id": "s1", "run_id": "r", "step_id": None, "name": "old", "description": None, "tags": ["t"]}
    times = {"created_at": "2024-01-01T00:00:00+00:00", "updated_at": "2024-01-01T00:00:00+00:00"}
    (tmp_path / "snapshot_s1.json").write_text(json.dumps({**about, **times, "run_state": state, "more": 2}, indent=2))
    store = JsonSnapshotStore(tmp_path)
    found = store.load("s1")
    assert found is not None
    assert (found.name, found.tags, found.position, found.as_run()) == ("old", ["t"], 0, running())
    assert store.list(tag="T") == [found]


def test_a_file_is_indented_json_under_its_documented_name(tmp_path: Path):
    store = JsonSnapshotStore(str(tmp_path / "deep" / "folder"))
    assert (store.list(), store.load("s1"), store.delete("s1")) == ([], None, False)
    assert list(tmp_path.iterdir()) == []
    store.save(snapshot())
    (file,) = (tmp_path / "deep" / "folder").iterdir()
    assert file.name == "snapshot_s1.json"
    assert file.read_text().startswith('{\n  "snapshot_id": "s1",\n')


CORRUPT = {
    "empty": b"",
    "torn": b'{"snapshot_id": "s1", "run_id": "r", "run_st',
    "no snapshot": b"[]",
    "no text": b"\xff\xfe",
    "another's": b'{"snapshot_id": "s2", "run_id": "r"}',
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_file_is_an_error_and_a_list_gives_the_others(tmp_path: Path, caplog, what: str):
    store = JsonSnapshotStore(tmp_path)
    store.save(snapshot("s0"))
    file = tmp_path / "snapshot_s1.json"
    file.write_bytes(CORRUPT[what])
    with pytest.raises(StoreCorrupt, match=r"snapshot_s1\.json"):
        store.load("s1")
    with caplog.at_level(logging.WARNING):
        assert [one.snapshot_id for one in store.list()] == ["s0"]
    assert "snapshot_s1.json" in caplog.text
    assert file.read_bytes() == CORRUPT[what]
    store.save(snapshot("s1"))
    assert len(store.list()) == 2
    assert store.delete("s1")


@pytest.mark.parametrize("column", ["about", "data"])
def test_any_bit_of_a_row_that_flips_is_found_and_a_list_gives_the_others(tmp_path: Path, caplog, column: str, seed):
    rng = random.Random(seed)
    with SqliteDatabase(tmp_path / "s.db") as database:
        store = SqliteSnapshotStore(database)
        for snapshot_id in ("s0", "s1"):
            store.save(snapshot(snapshot_id, name="a name", tags=["t"]))
        kept = store.load("s1")
        select = f"SELECT {column} FROM snapshots WHERE snapshot_id = 's1'"
        whole: bytes = on(database, lambda connection: connection.execute(select).fetchone()[0])
        start = len('{"crc":"12345678"') if column == "about" else 0  # there a flip harms nothing
        for place in rng.sample(range(start * 8, len(whole) * 8), 40):
            rotten = bytearray(whole)
            rotten[place // 8] ^= 1 << place % 8
            put(database, column, bytes(rotten))
            with pytest.raises(StoreCorrupt, match="Restore it from a backup, or delete it"):
                store.load("s1")
            caplog.clear()
            assert [one.snapshot_id for one in store.list()] == ["s0"]
            assert "Snapshot s1 is left out of a list" in caplog.text
        put(database, column, whole)
        assert store.load("s1") == kept
        put(database, column, b"{")
        assert store.delete("s1")


def on(database: SqliteDatabase, operation: Callable[[sqlite3.Connection], Any]) -> Any:
    return asyncio.run(database.backend.write(operation))


def put(database: SqliteDatabase, column: str, data: bytes) -> None:
    update = f"UPDATE snapshots SET {column} = ? WHERE snapshot_id = 's1'"
    on(database, lambda connection: connection.execute(update, (data,)).rowcount)


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreError), (errno.EROFS, StoreReadOnly)]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, call, code, error):
    store = JsonSnapshotStore(tmp_path)
    store.save(snapshot(name="old"))

    def failing(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(error, match=tmp_path.name):
            store.save(snapshot(name="new"))
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot_s1.json"]
    assert [one.name for one in store.list()] == ["old"]


def test_a_file_is_flushed_before_its_name_and_its_name_before_the_call_returns(tmp_path: Path, monkeypatch):
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        done.append("flush the folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush the file")
        fsync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", replaced)
    store = JsonSnapshotStore(tmp_path)
    store.save(snapshot())
    assert done == ["flush the file", "rename", "flush the folder"]
    done.clear()
    store.delete("s1")
    assert done == ["flush the folder"]


def test_a_folder_that_cannot_be_flushed_is_told_as_unclear(tmp_path: Path, monkeypatch):
    store = JsonSnapshotStore(tmp_path)
    store.save(snapshot())
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreUnclear, match="may be gone when the machine loses power now"):
        store.save(snapshot(name="new"))


def test_many_threads_save_the_same_snapshot_and_it_is_always_whole(tmp_path: Path):
    async def main() -> set[int]:
        store = JsonSnapshotStore(tmp_path).aio
        await store.save(snapshot(position=0))
        saves = [store.save(snapshot(position=number)) for number in range(1, 30)]
        loads = [store.load("s1") for _ in range(30)]
        found = (await asyncio.gather(*saves, *loads))[29:]
        return {one.position for one in found if one is not None}

    assert asyncio.run(main()) <= set(range(30))
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot_s1.json"]


# Differences


def differences(before: Any, after: Any) -> list[tuple[str, str, Any, Any]]:
    found = diff_snapshots(Snapshot("a", "r", run_state=before), Snapshot("b", "r", run_state=after))
    return [(entry["op"], entry["path"], entry["before"], entry["after"]) for entry in found]


def test_a_difference_names_the_path_and_both_values():
    before = {"vars": {"a": 1, "gone": {"x": 1}, "list": [1, 2, 3], "same": [{"y": 0}]}, "status": "waiting"}
    after = {"vars": {"a": "1", "list": [1, 5], "new": None, "same": [{"y": 0}]}, "status": "running"}
    assert differences(before, after) == [
        ("changed", "/status", "waiting", "running"),
        ("changed", "/vars/a", 1, "1"),
        ("removed", "/vars/gone", {"x": 1}, None),
        ("changed", "/vars/list/1", 2, 5),
        ("removed", "/vars/list/2", 3, None),
        ("added", "/vars/new", None, None),
    ]


def test_paths_are_json_pointers_and_true_is_not_one():
    assert differences({"a/b": {"~": 1}}, {"a/b": {"~": True}}) == [("changed", "/a~1b/~0", 1, True)]
    assert differences({"n": 1}, {"n": 1.0}) == []
    assert differences({"n": []}, {"n": {}}) == [("changed", "/n", [], {})]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab/~"), inner, max_size=3),
    max_leaves=8,
)


@given(before=st.dictionaries(st.sampled_from("ab"), JSON), after=st.dictionaries(st.sampled_from("ab"), JSON))
def test_applying_a_difference_gives_the_other_state(before: dict[str, Any], after: dict[str, Any]):
    found = differences(before, after)
    state = json.loads(json.dumps(before))
    gone = [entry for entry in reversed(found) if entry[0] == "removed"]  # of a list, the last item first
    for op, path, old, new in [*gone, *(entry for entry in found if entry[0] != "removed")]:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        place: Any = state
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key: Any = int(last) if isinstance(place, list) else last
        if op == "removed":
            assert place.pop(key) == old
        elif op == "added":
            place.insert(key, new) if isinstance(place, list) else place.update({key: new})
        else:
            assert place[key] == old
            place[key] = new
    assert json.dumps(state, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert differences(before, json.loads(json.dumps(before))) == []
