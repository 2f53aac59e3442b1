"""`find_runs` and `find_waits` of the stores: pages, cursors, what counts as a wait, and which index leads."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncSqliteRunStore,
    InMemoryRunStore,
    InvalidCursor,
    Page,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteRunStore,
    StoreCorrupt,
    WaitReason,
    WaitState,
)
from abstractruntime.core import kernel
from abstractruntime.core.codec import encode_run
from abstractruntime.core.models import TERMINAL
from abstractruntime.storage.listing import Query, RunQuery, WaitQuery
from abstractruntime.storage.sqlite import finding
from abstractruntime.storage.sqlite.finding import find
from abstractruntime.storage.sqlite.narrow import narrow_run

from .scale import scaled
from .states import STAMP, kernel_commit

AT = "2026-01-31T09:00:00.000000+00:00"
LATER = "2026-01-31T10:00:00.000000+00:00"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield InMemoryRunStore()
        return
    with SqliteDatabase(tmp_path / "runs.db") as database:
        yield SqliteRunStore(database)


def run(run_id: str, status: RunStatus = RunStatus.RUNNING, **fields: Any) -> RunState:
    return RunState(run_id, fields.pop("workflow_id", "w"), status, "n", created_at=AT, updated_at=AT, **fields)


def waiting(run_id: str, reason: WaitReason = WaitReason.USER, until: str | None = None, **fields: Any) -> RunState:
    wait = WaitState(reason, f"key:{run_id}", until, "next", "answer", "Well?", ["yes", "no"], False)
    return run(run_id, RunStatus.WAITING, waiting=wait, **fields)


def ids(page: Page) -> list[str]:
    return [row["run_id"] for row in page.items]


def walk(method: Any, **wanted: Any) -> list[list[str]]:
    """The ids of all pages, from the first to the end."""
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = method(**wanted, cursor=cursor)
        pages.append(ids(page))
        cursor = page.cursor
        if cursor is None:
            return pages


def test_pages_come_newest_first_and_the_last_one_says_that_it_is_the_last(store):
    for number in range(5):
        store.save(run(f"r{number}"))
    assert walk(store.find_runs, limit=2) == [["r4", "r3"], ["r2", "r1"], ["r0"]]
    assert walk(store.find_runs, limit=5) == [["r4", "r3", "r2", "r1", "r0"]]
    assert walk(store.find_runs, workflow_id="other") == [[]]


def test_a_limit_above_all_there_is_finds_all(store):
    for run_id in "ab":
        store.save(waiting(run_id))
    assert ids(store.find_runs(limit=10**30)) == ids(store.find_waits(limit=10**30)) == ["b", "a"]
    assert len(store.list_runs(limit=10**30)) == len(store.list_run_index(limit=10**30)) == 2


def test_a_cursor_skips_and_repeats_nothing_whatever_happens_between_two_pages(store):
    for number in range(6):
        store.save(run(f"r{number}"))
    first = store.find_runs(limit=3)
    for run_id in ("r1", "r4"):
        moved = store.load(run_id)
        moved.status, moved.updated_at = RunStatus.COMPLETED, LATER
        store.save(moved)
    store.save(run("new"))
    store.delete("r3")  # the one that the cursor stands at
    assert ids(first) == ["r5", "r4", "r3"]
    assert ids(store.find_runs(limit=3, cursor=first.cursor)) == ["r2", "r1", "r0"]


def test_several_statuses_are_one_list_in_one_order(store):
    some = [RunStatus.FAILED, RunStatus.RUNNING, RunStatus.FAILED, RunStatus.COMPLETED, RunStatus.RUNNING]
    for number, status in enumerate(some):
        store.save(run(f"r{number}", status))
    wanted = {RunStatus.FAILED, RunStatus.RUNNING}
    assert walk(store.find_runs, status=wanted, limit=2) == [["r4", "r2"], ["r1", "r0"]]
    assert walk(store.find_runs, status=("failed",)) == [["r2", "r0"]]
    assert walk(store.find_runs, status=[]) == [[]]
    with pytest.raises(ValueError, match="'stuck' is not a valid RunStatus"):
        store.find_runs(status="stuck")
    with pytest.raises(ValueError, match="'weather' is not a valid WaitReason"):
        store.find_waits(reason="weather")
    with pytest.raises(ValueError, match="'soon' is no instant"):
        store.find_waits(due_before="soon")


def test_a_wait_says_all_that_is_needed_to_ask_and_to_resume(store):
    state = waiting("r", until=LATER, actor_id="ann", session_id="s", parent_run_id="p")
    assert state.waiting is not None
    state.waiting.details = {"wait_id": "user:r:n:1", "kind": "form"}
    store.save(state)
    assert store.find_waits().items == [
        {
            "run_id": "r",
            "workflow_id": "w",
            "session_id": "s",
            "actor_id": "ann",
            "parent_run_id": "p",
            "node_id": "n",
            "reason": "user",
            "wait_key": "key:r",
            "wait_id": "user:r:n:1",
            "until": LATER,
            "resume_to_node": "next",
            "prompt": "Well?",
            "choices": ["yes", "no"],
            "allow_free_text": False,
            "details": {"wait_id": "user:r:n:1", "kind": "form"},
            "paused": False,
            "waiting_since": AT,
        }
    ]


def test_what_nobody_can_answer_is_no_wait_unless_asked_for(store):
    for state in (waiting("answerable"), run("ended", RunStatus.COMPLETED), run("bare", RunStatus.WAITING)):
        store.save(state)
    store.save(kernel_commit(kernel.pause(run("held"), None, STAMP)).run)
    event = waiting("held-event", WaitReason.EVENT, until=AT)
    store.save(kernel_commit(kernel.pause(event, None, STAMP)).run)
    assert ids(store.find_waits()) == ["answerable"]
    found = {row["run_id"]: row for row in store.find_waits(include_paused=True).items}
    assert {run_id: row["paused"] for run_id, row in found.items()} == {
        "answerable": False,
        "held": True,
        "held-event": True,
    }
    assert found["held"]["details"] == {"kind": "pause"}
    assert ids(store.find_waits(due_before=LATER, include_paused=True)) == [], "time does not count while it is paused"


def test_what_the_children_of_a_run_wait_for_is_found_by_their_parent(store):
    for number in range(4):
        until = AT if number % 2 else None
        store.save(waiting(f"child{number}", until=until, parent_run_id="p", actor_id="ann" if number else "bob"))
    for state in (waiting("stranger", until=AT, parent_run_id="q"), waiting("root", until=AT)):
        store.save(state)
    assert walk(store.find_waits, parent_run_id="p", limit=3) == [["child3", "child2", "child1"], ["child0"]]
    assert ids(store.find_waits(parent_run_id="p", actor_id="bob", reason=WaitReason.USER)) == ["child0"]
    assert ids(store.find_waits(parent_run_id="p", due_before=LATER)) == ["child1", "child3"]
    assert ids(store.find_waits(parent_run_id="nobody")) == []


def test_due_waits_come_earliest_first_and_page_by_due_time(store):
    minutes = [5, 1, 1, 9, 3, 1]
    for number, minute in enumerate(minutes):
        store.save(waiting(f"r{number}", WaitReason.UNTIL, f"2026-01-31T09:0{minute}:00.000000+00:00"))
    store.save(waiting("no-deadline"))
    assert walk(store.find_waits, due_before="2026-01-31T09:05:00Z", limit=2) == [["r1", "r2"], ["r5", "r4"], ["r0"]]
    assert walk(store.find_waits, due_before="2026-01-31T10:05:00+01:00", workflow_id="w", wait_key="key:r4") == [
        ["r4"]
    ]
    for instant in (datetime(2026, 1, 31, 9, 1, tzinfo=UTC), datetime(2026, 1, 31, 9, 1)):
        assert walk(store.find_waits, due_before=instant) == [["r1", "r2", "r5"]]


@pytest.mark.parametrize(
    "cursor", ["", "nonsense", "memory.runs.x", "other.runs.1", "memory.runs.1.2", "sqlite.runs.9" * 9, 5, b"x"]
)
def test_a_bad_cursor_is_refused(store, cursor):
    with pytest.raises(InvalidCursor, match="None to begin at the first page") as caught:
        store.find_runs(cursor=cursor)
    assert isinstance(caught.value, ValueError)
    assert caught.value.cursor == cursor
    with pytest.raises(InvalidCursor):
        store.find_waits(cursor=cursor, due_before=AT)


def test_a_cursor_of_another_query_or_kind_of_store_is_refused(store, tmp_path):
    for number in range(3):
        store.save(waiting(f"r{number}", WaitReason.UNTIL, AT))
    runs, waits = store.find_runs(limit=1).cursor, store.find_waits(limit=1).cursor
    due = store.find_waits(limit=1, due_before=LATER).cursor
    assert None not in (runs, waits, due)
    for method, cursor, options in (
        ("find_runs", waits, {}),
        ("find_waits", runs, {}),
        ("find_waits", due, {}),
        ("find_waits", waits, {"due_before": LATER}),
    ):
        with pytest.raises(InvalidCursor):
            getattr(store, method)(cursor=cursor, **options)
    with SqliteDatabase(tmp_path / "other.db") as database:
        other = SqliteRunStore(database) if isinstance(store, InMemoryRunStore) else InMemoryRunStore()
        with pytest.raises(InvalidCursor, match="on a store of this kind"):
            other.find_runs(cursor=runs)


async def test_lists_go_on_while_a_writer_writes_and_miss_nothing_that_was_there(tmp_path):
    """Every run that stood before the first page is on one page, once; the writer never waits for a reader."""
    async with SqliteDatabase(tmp_path / "runs.db") as database:
        store = AsyncSqliteRunStore(database)
        stood = [f"old-{number}" for number in range(scaled(60, 2_000))]
        for run_id in stood:
            await store.save(run(run_id))
        done = asyncio.Event()

        async def write() -> int:
            for number in itertools.count():
                if done.is_set():
                    return number
                moved = await store.load(stood[number % len(stood)])
                assert moved is not None
                moved.status = RunStatus.RUNNING if moved.status is RunStatus.WAITING else RunStatus.WAITING
                await store.save(moved)
                await store.save(run(f"new-{number}", RunStatus.WAITING))
            raise AssertionError

        writer = asyncio.create_task(write())
        for _ in range(5):
            seen: list[str] = []
            page = await store.find_runs(limit=7)
            while True:
                seen += ids(page)
                if page.cursor is None:
                    break
                page = await store.find_runs(limit=7, cursor=page.cursor)
            assert len(seen) == len(set(seen))
            assert [run_id for run_id in seen if run_id.startswith("old")] == stood[::-1]
        done.set()
        assert await writer > 0


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a few workflows, sessions and actors: common and rare ones, in any state. Only for reading."""
    path = tmp_path_factory.mktemp("many") / "runs.db"
    with SqliteDatabase(path) as database:
        store = SqliteRunStore(database)
        for number in range(40):
            rare = number % 10 == 0
            origin = {"workflow_id": "rare" if rare else "w", "session_id": "rare" if rare else "s", "actor_id": "a"}
            if number % 4 == 0:
                until = LATER if number % 8 == 0 else None
                store.save(waiting(f"r{number}", WaitReason.EVENT if number % 20 else WaitReason.USER, until, **origin))
            else:
                status = [RunStatus.COMPLETED, RunStatus.RUNNING, RunStatus.FAILED][number % 3]
                store.save(run(f"r{number}", status, parent_run_id="p" if number % 5 else None, **origin))
    return path


#: a query, and the index that must lead it, by itself and in the order of the page
PLANS: list[tuple[Query, str]] = [
    (RunQuery(), "SEARCH r USING INTEGER PRIMARY KEY"),
    (RunQuery(root_only=True), "SEARCH r USING INTEGER PRIMARY KEY"),
    (RunQuery(workflow_id="w"), "runs_by_workflow"),
    (RunQuery(session_id="s"), "runs_by_session"),
    (RunQuery(actor_id="a"), "runs_by_actor"),
    (RunQuery(parent_run_id="p"), "runs_by_parent"),
    (RunQuery(status=RunStatus.RUNNING), "states_by_status"),
    (RunQuery(status=[RunStatus.FAILED, RunStatus.WAITING]), "states_by_status"),
    (RunQuery(wait_reason=WaitReason.USER), "waits_by_reason"),
    (RunQuery(workflow_id="rare", session_id="s", actor_id="a"), "runs_by_workflow"),
    (RunQuery(workflow_id="w", session_id="rare", actor_id="a", status=TERMINAL), "runs_by_session"),
    (RunQuery(workflow_id="w", wait_reason=WaitReason.USER), "waits_by_reason"),
    (RunQuery(workflow_id="w", status=[RunStatus.FAILED]), "states_by_status"),
    (RunQuery(workflow_id="nobody", wait_reason=WaitReason.USER, root_only=True), "runs_by_workflow"),
    (WaitQuery(), "SEARCH w USING PRIMARY KEY"),
    (WaitQuery(run_id="r4"), "INDEX sqlite_autoindex_runs_1"),
    (WaitQuery(wait_key="key:r4", workflow_id="rare"), "waits_by_key"),
    (WaitQuery(reason=WaitReason.EVENT), "waits_by_reason"),
    (WaitQuery(workflow_id="rare", reason=WaitReason.EVENT), "runs_by_workflow"),
    (WaitQuery(session_id="rare"), "runs_by_session"),
    (WaitQuery(actor_id="a"), "runs_by_actor"),
    (WaitQuery(parent_run_id="p"), "runs_by_parent"),
    (WaitQuery(due_before=LATER), "waits_by_due"),
    (WaitQuery(due_before=LATER, reason=WaitReason.USER), "waits_by_reason"),
    (WaitQuery(due_before=AT, workflow_id="w", actor_id="a"), "waits_by_due"),
]


@pytest.mark.parametrize(("query", "index"), PLANS)
def test_every_query_is_led_by_an_index_in_the_order_of_the_page(many, monkeypatch, query, index):
    asked: list[tuple[str, dict[str, Any]]] = []
    rows = finding._Source.rows

    def noted(source: finding._Source, name: str, filters: dict[str, Any]) -> sqlite3.Cursor:
        asked.append((name, filters))
        return rows(source, name, filters)

    monkeypatch.setattr(finding._Source, "rows", noted)
    with SqliteDatabase(many) as database:
        connection = database.connection()
        find(connection, query)
        assert asked
        for name, filters in asked:
            text = finding.with_terms(name, frozenset(filters))
            plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", filters)]
            assert index in plan[0], plan
            wrong = [step for step in plan if "B-TREE" in step or re.match(r"SCAN (?!json_each)", step)]
            assert not wrong, plan
        connection.close()


def test_a_filter_that_is_not_given_leaves_no_term_behind():
    assert finding.with_terms("find_waits_due", frozenset({"by_due", "after_due", "after_run", "limit"})) == (
        "SELECT w.run, r.run_id, s.data FROM waits w CROSS JOIN runs r ON r.id = w.run CROSS JOIN states s "
        "ON s.id = w.run WHERE w.due <= :by_due AND (w.due, w.run) > (:after_due, :after_run) "
        "ORDER BY w.due, w.run LIMIT :limit"
    )
    for name in ("find_runs", "find_runs_of_status", "find_waits", "find_waits_of_runs", "some_runs", "some_waits"):
        kept = set(re.findall(r":(\w+)", finding.with_terms(name, frozenset({"before", "limit", "most"}))))
        assert kept <= {"before", "limit", "most"}


def test_a_narrow_reading_sees_what_listings_show_and_nothing_else():
    vars = {"mine": ["x"] * 5, "_run_lifecycle": {"a": 1}, "_runtime": {"effect_seq": 7, "control": {"paused": True}}}
    state = waiting("r", until=LATER, vars=vars, actor_id="a", session_id="s", parent_run_id="p")
    seen = narrow_run(encode_run(state), "r")
    for query in (RunQuery(), WaitQuery()):
        assert query.row(seen) == query.row(state)
    assert seen.vars == {"_run_lifecycle": {"a": 1}, "_runtime": {"control": {"paused": True}}}


@pytest.mark.parametrize(
    "odd", [{"_runtime": 5}, {"_runtime": {"control": [1]}}, {"_runtime": {"control": {"paused": "yes"}}}]
)
def test_an_author_may_keep_anything_under_the_names_that_listings_read(store, odd):
    store.save(waiting("r", vars=odd))
    assert [row["paused"] for row in store.find_waits().items] == [False]
    assert ids(store.find_runs()) == [row["run_id"] for row in store.list_run_index()] == ["r"]


@pytest.mark.parametrize("list_them", ["find_runs", "find_waits", "list_run_index"])
def test_a_damaged_run_is_named(tmp_path, list_them):
    with SqliteDatabase(tmp_path / "runs.db") as database:
        store = SqliteRunStore(database)
        store.save(waiting("hurt"))
        connection = database.connection()
        connection.execute("UPDATE states SET data = substr(data, 1, 50)")
        connection.close()
        with pytest.raises(StoreCorrupt, match="run 'hurt' cannot be read"):
            getattr(store, list_them)()


def test_large_vars_are_passed_over(tmp_path):
    """A page of runs costs less than loading one of them builds: nothing of what the authors keep becomes an object."""
    big = {f"k{number}": [number, str(number)] for number in range(scaled(20_000, 200_000))}
    with SqliteDatabase(tmp_path / "runs.db") as database:
        store = SqliteRunStore(database)
        store.save(waiting("r", vars=big))
        loaded = store.load("r")
        assert loaded is not None
        data = encode_run(loaded)
    tracemalloc.start()
    narrow_run(data, "r")
    assert tracemalloc.get_traced_memory()[1] < len(data) / 10
    tracemalloc.stop()
