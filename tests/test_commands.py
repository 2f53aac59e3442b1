"""Commands and cursors: the same answers from memory, from a file of lines and from SQLite, blocking and awaited."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncInMemoryCommandCursorStore,
    AsyncInMemoryCommandStore,
    AsyncJsonFileCommandCursorStore,
    AsyncJsonlCommandStore,
    AsyncSqliteCommandCursorStore,
    AsyncSqliteCommandStore,
    CommandAppendResult,
    CommandCursorStore,
    CommandRecord,
    CommandStore,
    DeletableCommandStore,
    InMemoryCommandCursorStore,
    InMemoryCommandStore,
    InvalidId,
    JsonFileCommandCursorStore,
    JsonlCommandStore,
    SqliteCommandCursorStore,
    SqliteCommandStore,
    SqliteDatabase,
    StoreCorrupt,
    StoreFull,
    StoreUnclear,
    UnsafeValue,
)

from .scale import scaled

if sys.platform != "win32":
    import fcntl

ROOT = Path(__file__).parent.parent


class Awaited:
    """An async store, called as a blocking one."""

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store, self._runner = store, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        assert inspect.iscoroutinefunction(method)
        return lambda *args, **options: self._runner.run(method(*args, **options))


STORES: dict[str, Callable[[Path, SqliteDatabase], Any]] = {
    "memory": lambda folder, db: InMemoryCommandStore(),
    "jsonl": lambda folder, db: JsonlCommandStore(folder),
    "sqlite": lambda folder, db: SqliteCommandStore(db),
    "async memory": lambda folder, db: AsyncInMemoryCommandStore(),
    "async jsonl": lambda folder, db: AsyncJsonlCommandStore(folder),
    "async sqlite": lambda folder, db: AsyncSqliteCommandStore(db),
}
CURSORS: dict[str, Callable[[Path, SqliteDatabase], Any]] = {
    "memory": lambda folder, db: InMemoryCommandCursorStore(),
    "file": lambda folder, db: JsonFileCommandCursorStore(folder / "deep" / "cursor.json"),
    "sqlite": lambda folder, db: SqliteCommandCursorStore(db),
    "async memory": lambda folder, db: AsyncInMemoryCommandCursorStore(),
    "async file": lambda folder, db: AsyncJsonFileCommandCursorStore(folder / "deep" / "cursor.json"),
    "async sqlite": lambda folder, db: AsyncSqliteCommandCursorStore(db),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SqliteDatabase]:
    with SqliteDatabase(tmp_path / "commands.db") as database:
        yield database


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def made(kinds: dict[str, Any], kind: str, folder: Path, db: SqliteDatabase, runner: asyncio.Runner) -> Any:
    store = kinds[kind](folder, db)
    return Awaited(store, runner) if kind.startswith("async") else store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, db: SqliteDatabase, runner: asyncio.Runner) -> Any:
    return made(STORES, request.param, tmp_path, db, runner)


@pytest.fixture(params=CURSORS)
def cursors(request: pytest.FixtureRequest, tmp_path: Path, db: SqliteDatabase, runner: asyncio.Runner) -> Any:
    return made(CURSORS, request.param, tmp_path, db, runner)


def command(command_id: str = "c1", run_id: str = "r", **other: Any) -> CommandRecord:
    fields = {"type": "resume", "payload": {"n": 1}, "ts": "2026-01-31T09:00:00+00:00", **other}
    return CommandRecord(command_id, run_id, **fields)


def ids(page: tuple[list[CommandRecord], int]) -> str:
    return " ".join(record.command_id for record in page[0])


# -- appending and reading


def test_commands_are_numbered_and_come_back_as_they_were(store):
    first = command("c1", payload={"ä": [1, None, {"b": 2.5}]}, client_id="me", seq=99)
    assert store.append(first) == CommandAppendResult(accepted=True, duplicate=False, seq=1)
    assert store.append(command("c2")).seq == 2
    records, cursor = store.list_after(after=0)
    assert cursor == 2
    assert records[0] == CommandRecord("c1", "r", "resume", first.payload, first.ts, "me", 1)
    assert records[0].to_json() == {
        "command_id": "c1", "run_id": "r", "type": "resume", "payload": first.payload, "ts": first.ts,
        "client_id": "me", "seq": 1,
    }  # fmt: skip
    assert records[1].client_id is None


def test_the_same_command_is_appended_once(store):
    assert store.append(command("c1")).accepted
    store.append(command("c2"))
    again = store.append(command("c1", payload={"other": True}))
    assert again == CommandAppendResult(accepted=False, duplicate=True, seq=1)
    records, _ = store.list_after(after=0)
    assert [record.payload for record in records] == [{"n": 1}, {"n": 1}]


def test_a_blank_id_becomes_a_fresh_one(store):
    for blank in ("", " "):
        assert store.append(command(blank)).accepted
    found = [record.command_id for record in store.list_after(after=0)[0]]
    assert len(set(found)) == 2
    assert all(len(bytes.fromhex(command_id)) == 16 for command_id in found)


def test_readers_go_on_from_their_cursor(store):
    assert (store.list_after(after=0), store.get_last_seq()) == (([], 0), 0)
    for number in range(1, 6):
        store.append(command(f"c{number}"))
    page = store.list_after(after=0, limit=2)
    assert (ids(page), page[1]) == ("c1 c2", 2)
    page = store.list_after(after=2, limit=2)
    assert (ids(page), page[1]) == ("c3 c4", 4)
    assert ids(store.list_after(after=4)) == "c5"
    assert store.list_after(after=5) == ([], 5)
    assert store.list_after(after=77) == ([], 77)
    assert ids(store.list_after(after=0, limit=0)) == ids(store.list_after(after=0, limit=-3)) == "c1"
    assert store.get_last_seq() == 5


def test_the_commands_of_a_run_are_forgotten_and_no_number_is_given_twice(store):
    for number, run_id in enumerate("rsrsr", 1):
        store.append(command(f"c{number}", run_id))
    assert store.delete_by_run("r") == 3
    assert store.delete_by_run("r") == store.delete_by_run("nobody") == 0
    page = store.list_after(after=0)
    assert (ids(page), page[1]) == ("c2 c4", 4)
    assert store.get_last_seq() == 5
    assert store.append(command("c1")) == CommandAppendResult(accepted=True, duplicate=False, seq=6)
    assert store.append(command("c2")).duplicate
    assert store.delete_by_run("s") == 2
    assert store.delete_by_run("r") == 1
    assert store.get_last_seq() == 6
    assert store.append(command("c9")).seq == 7
    assert ids(store.list_after(after=0, limit=1)) == "c9"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"run_id": ""}, InvalidId), ({"run_id": None}, InvalidId), ({"run_id": "../r"}, InvalidId),
        ({"type": ""}, InvalidId), ({"type": " "}, InvalidId), ({"type": 5}, InvalidId), ({"ts": None}, InvalidId),
        ({"client_id": 5}, InvalidId), ({"command_id": None}, InvalidId), ({"command_id": "\ud800"}, InvalidId),
        ({"payload": None}, UnsafeValue), ({"payload": []}, UnsafeValue),
        ({"payload": {"n": float("nan")}}, UnsafeValue),
        ({"payload": {"b": b""}}, UnsafeValue), ({"payload": {"s": "\ud800"}}, UnsafeValue),
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_nothing_is_appended(store, wrong, error):
    with pytest.raises(error):
        store.append(CommandRecord(**{**command().to_json(), **wrong}))
    assert store.get_last_seq() == 0


@pytest.mark.parametrize(
    "wrong", [{"after": -1}, {"after": None}, {"after": 2**63}, {"after": "1"}, {"after": 0, "limit": None}]
)
def test_a_question_that_makes_no_sense_is_refused(store, wrong):
    with pytest.raises(ValueError, match="must be a whole number"):
        store.list_after(**wrong)


def test_texts_of_all_kinds_and_numbers_of_any_size_are_kept(store):
    payload = {"nul": "\0", "line": "a\nb\r\n\u2028c", "big": 10**400, "emoji": "\N{SNOWMAN}" * 3, "": {}}
    store.append(command("id \0 \n é", type="type\n", payload=payload, client_id="\0"))
    store.append(command("c2"))
    records, _ = store.list_after(after=0)
    assert len(records) == 2
    assert (records[0].command_id, records[0].payload, records[0].type) == ("id \0 \n é", payload, "type\n")
    assert store.append(command("id \0 \n é")).duplicate


def test_raw_secrets_are_not_kept(store, tmp_path, db):
    store.append(command(payload={"api_key": "sk-very-secret"}))
    assert store.list_after(after=0)[0][0].payload == {"api_key": {"$redacted": "api_key"}}
    db.checkpoint("TRUNCATE")
    assert not [path for path in tmp_path.iterdir() if path.is_file() and b"sk-very-secret" in path.read_bytes()]


def test_what_is_handed_out_is_not_what_is_held(store):
    given = command(payload={"list": [1]})
    store.append(given)
    given.payload["list"].append(2)
    store.list_after(after=0)[0][0].payload["list"].append(3)
    assert store.list_after(after=0)[0][0].payload == {"list": [1]}


def test_the_stores_are_what_they_are_called(tmp_path, db):
    for make in STORES.values():
        assert isinstance(make(tmp_path, db), CommandStore)
        assert isinstance(make(tmp_path, db), DeletableCommandStore)
    for make in CURSORS.values():
        assert isinstance(make(tmp_path, db), CommandCursorStore)


async def test_a_store_is_the_store_of_its_async_twin(tmp_path):
    stores: list[Any] = [InMemoryCommandStore(), JsonlCommandStore(tmp_path)]
    for store in stores:
        await store.aio.append(command())
        assert await asyncio.to_thread(store.get_last_seq) == 1
        assert store.aio.sync is store
    cursors: list[Any] = [InMemoryCommandCursorStore(), JsonFileCommandCursorStore(tmp_path / "c")]
    for cursor in cursors:
        await cursor.aio.save(5)
        assert await asyncio.to_thread(cursor.load) == 5


def append_together(stores: list[Any]) -> None:
    """A thread per store appends the same commands; each of them is there once."""
    count = scaled(20, 500)
    results: list[CommandAppendResult] = []
    together = threading.Barrier(len(stores))

    def append(store: Any) -> None:
        together.wait()
        results.extend(store.append(command(f"c{number}")) for number in range(count))

    threads = [threading.Thread(target=append, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count * len(stores)
    assert sum(result.accepted for result in results) == count
    assert {result.seq for result in results} == set(range(1, count + 1))
    assert len(stores[0].list_after(after=0)[0]) == count


@pytest.mark.parametrize("kind", ["memory", "jsonl", "sqlite"])
def test_threads_append_each_command_once(kind, tmp_path, db):
    append_together([STORES[kind](tmp_path, db)] * 4)


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_store_objects_append_each_command_once(kind, tmp_path, db):
    append_together([STORES[kind](tmp_path, db) for _ in range(4)])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_file_is_changed_only_by_whoever_holds_its_lock(tmp_path, monkeypatch):
    store = JsonlCommandStore(tmp_path)
    held: list[bool] = []

    def spy(name: str) -> None:
        real = getattr(store, name)

        def call(*args: Any) -> Any:
            with (tmp_path / "commands.jsonl.lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(False)
                except BlockingIOError:
                    held.append(True)
            return real(*args)

        monkeypatch.setattr(store, name, call)

    for name in ("_add", "_mend", "_replace"):
        spy(name)
    store.append(command("c1"))
    with (tmp_path / "commands.jsonl").open("a") as file:
        file.write("torn")
    store.append(command("c2"))
    store.delete_by_run("r")
    assert held == [True] * 4
    with (tmp_path / "commands.jsonl.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


# -- cursors


def test_a_cursor_is_what_was_saved_last(cursors):
    assert cursors.load() == 0
    for value in (5, 3, 2**63 - 1, 0):
        cursors.save(value)
        assert cursors.load() == value


@pytest.mark.parametrize("wrong", [-1, None, "5", 1.0, True, 2**63])
def test_what_is_no_cursor_is_refused(cursors, wrong):
    cursors.save(7)
    with pytest.raises(ValueError, match="cursor must be a whole number"):
        cursors.save(wrong)
    assert cursors.load() == 7


def test_a_cursor_in_memory_begins_where_it_is_told():
    assert InMemoryCommandCursorStore(initial=4).load() == InMemoryCommandCursorStore(4).load() == 4
    with pytest.raises(ValueError, match="initial"):
        InMemoryCommandCursorStore(-1)


def test_each_consumer_has_its_own_cursor(db):
    one, two = SqliteCommandCursorStore(db), SqliteCommandCursorStore(db, consumer_id="other")
    one.save(1)
    two.save(2)
    assert (one.load(), two.load(), SqliteCommandCursorStore(db, consumer_id="gateway_runner").load()) == (1, 2, 1)
    with pytest.raises(InvalidId):
        SqliteCommandCursorStore(db, consumer_id="")


def test_a_cursor_file_that_is_damaged_is_not_the_beginning(tmp_path):
    path = tmp_path / "cursor.json"
    store = JsonFileCommandCursorStore(path)
    store.save(12)
    assert json.loads(path.read_text())["cursor"] == 12
    for damage in ("", "{", '{"cursor": "12"}', '{"cursor": -1}', "[]", "null"):
        path.write_text(damage)
        with pytest.raises(StoreCorrupt, match=str(path)):
            store.load()
    path.write_text("13")
    assert store.load() == 13
    assert [name for name in os.listdir(tmp_path) if "part" in name] == []


# -- the file of lines


def test_a_database_and_a_file_are_read_by_another_object(tmp_path, db):
    pairs: list[Any] = [(JsonlCommandStore(tmp_path), JsonlCommandStore(tmp_path)), (SqliteCommandStore(db),) * 2]
    for one, other in pairs:
        one.append(command("c1"))
        assert other.append(command("c1")).duplicate
        other.append(command("c2"))
        assert ids(one.list_after(after=1)) == "c2"
        one.delete_by_run("r")
        assert other.list_after(after=0) == ([], 0)
        assert other.append(command("c3")).seq == 3
        assert ids(one.list_after(after=0)) == "c3"


def test_the_file_holds_a_json_object_per_line(tmp_path):
    store = JsonlCommandStore(tmp_path, filename="mine.jsonl")
    store.append(command("c1"))
    store.append(command("c2", payload={"text": "two\nlines"}))
    lines = (tmp_path / "mine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in store.list_after(after=0)[0]]


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\0", ".hidden", None])
def test_a_file_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(InvalidId):
        JsonlCommandStore(tmp_path, filename=name)


def test_nothing_is_made_before_the_first_append(tmp_path):
    store = JsonlCommandStore(tmp_path / "new")
    assert (store.list_after(after=0), store.get_last_seq(), store.delete_by_run("r")) == (([], 0), 0, 0)
    assert not (tmp_path / "new").exists()


def test_a_line_that_was_never_finished_is_cut_off_and_swallows_none(tmp_path, caplog):
    store = JsonlCommandStore(tmp_path)
    store.append(command("c1"))
    path = tmp_path / "commands.jsonl"
    whole = path.read_bytes()
    line = whole.replace(b"c1", b"c2").replace(b'"seq":1', b'"seq":2')
    for end in range(1, len(line)):
        path.write_bytes(whole + line[:end])
        torn = JsonlCommandStore(tmp_path)
        assert ids(torn.list_after(after=0)) == "c1"
        assert path.read_bytes() == whole + line[:end]  # reading repairs nothing: its writer may be alive
        finished = end == len(line) - 1
        caplog.clear()
        result = torn.append(command("c3"))
        assert ("cut off" in caplog.text) is not finished
        assert result.seq == (3 if finished else 2)
        assert ids(JsonlCommandStore(tmp_path).list_after(after=0)) == ("c1 c2 c3" if finished else "c1 c3")


CALLS: list[Callable[[Any], Any]] = [
    lambda store: store.append(command("new")),
    lambda store: store.list_after(after=0),
    lambda store: store.delete_by_run("r"),
]


def test_a_damaged_line_is_corrupt_and_stays_as_it_is(tmp_path):
    store = JsonlCommandStore(tmp_path)
    for number in range(3):
        store.append(command(f"c{number}"))
    path = tmp_path / "commands.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damage in (b"{}\n", b"x\n", b"\n", lines[0], lines[1].replace(b'"seq":2', b'"seq":1'), b'{"last_seq":"x"}\n'):
        path.write_bytes(lines[0] + damage + lines[2])
        damaged = path.read_bytes()
        for call in CALLS:
            with pytest.raises(StoreCorrupt, match=f"byte {len(lines[0])}"):
                call(JsonlCommandStore(tmp_path))
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    assert ids(JsonlCommandStore(tmp_path).list_after(after=0)) == "c0 c1 c2"


def test_a_disk_that_fails_is_told_and_loses_nothing(tmp_path, monkeypatch):
    store = JsonlCommandStore(tmp_path)
    store.append(command("c1"))
    fsync, failures = os.fsync, [True]

    def failing(descriptor: int) -> None:
        if failures and failures.pop():
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreFull, match=r"commands\.jsonl"):
        store.append(command("c2"))
    assert ids(store.list_after(after=0)) == ids(JsonlCommandStore(tmp_path).list_after(after=0)) == "c1"
    assert store.append(command("c2")).seq == 2
    failures[:] = [True, True]
    with pytest.raises(StoreUnclear, match="same id"):
        store.append(command("c3"))
    assert store.append(command("c3")).seq == 3
    assert ids(store.list_after(after=0)) == "c1 c2 c3"


APPENDER = """
import sys
from abstractruntime import CommandRecord, JsonlCommandStore

store = JsonlCommandStore(sys.argv[1])
for number in range(10**9):
    result = store.append(CommandRecord(f"{sys.argv[2]}-{number}", "r", "t", {"text": "x" * 3000}, "now"))
    print(result.seq, flush=True)
    if number == int(sys.argv[3]):
        break
"""


def test_processes_append_together_and_a_killed_one_loses_nothing(tmp_path):
    rounds = scaled(30, 1000)

    def start(name: str, last: int, out: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", APPENDER, str(tmp_path / "store"), name, str(last)]
        return subprocess.Popen(command, cwd=ROOT, stdout=out)

    with (tmp_path / "told").open("wb") as told:
        steady = start("steady", rounds, subprocess.DEVNULL)
        killed = start("killed", -1, told)
        try:
            while (tmp_path / "told").stat().st_size < 20:
                assert killed.poll() is None
            killed.kill()
            killed.wait()
            assert steady.wait() == 0
        finally:
            steady.kill()
            killed.kill()
    store = JsonlCommandStore(tmp_path / "store")
    store.append(command("last"))
    records, cursor = store.list_after(after=0, limit=10**6)
    assert [record.seq for record in records] == list(range(1, cursor + 1))
    assert len({record.command_id for record in records}) == len(records)
    by_seq = {record.seq: record.command_id for record in records}
    lines = (tmp_path / "told").read_bytes().splitlines(keepends=True)
    assert all(by_seq[int(line)].startswith("killed") for line in lines if line.endswith(b"\n"))
    assert sum(record.command_id.startswith("steady") for record in records) == rounds + 1


def test_a_payload_that_was_damaged_in_the_database_is_corrupt(tmp_path, db):
    store = SqliteCommandStore(db)
    store.append(command("c1"))
    connection = db.connection()
    connection.execute("UPDATE commands SET payload = CAST('{' AS BLOB)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorrupt, match="command 1"):
        store.list_after(after=0)
