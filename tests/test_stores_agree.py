"""All stores agree: the same operations, in any order, give the same answers and the same errors everywhere.

In memory, on a SQLite file and on a SQLite database in memory, each blocking and awaited. What is each store's own is
left out: the random id of a commit, and the number of ledger records in a run, which a run store in memory knows only
together with its ledger.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from abstractruntime import (
    AbstractRuntimeError,
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    HashChainedLedgerStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    ObservableLedgerStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)

from .scale import scaled

IDS = st.sampled_from(["a", "b", "c", "d", "e", "ä"])
INSTANTS = st.integers(0, 4).map(lambda minute: f"2026-01-31T09:0{minute}:00.000000+00:00")
WORKFLOWS = st.sampled_from(["w1", "w2"])
SOMEBODY = st.sampled_from([None, "x", "y", ""])
KEYS = st.sampled_from([None, "k1", "k2"])
REASONS = st.sampled_from(WaitReason)
STATUSES = st.sampled_from([*RunStatus, RunStatus.WAITING, RunStatus.RUNNING])
LIMITS = st.sampled_from([-1, 0, 1, 2, 3, 100])
VARS = st.sampled_from(
    [
        {},
        {"n": [1, {"deep": None}]},
        {"_runtime": {"control": {"paused": True}}},
        {"_runtime": "not a dict", "_run_lifecycle": [1]},
        {"_run_lifecycle": {"stage": "late"}},
        {"bad": float("nan")},
    ]
)


@st.composite
def waits(draw: st.DrawFn) -> WaitState:
    wait = WaitState(draw(REASONS), draw(KEYS), draw(st.none() | INSTANTS), "next", "answer")
    wait.prompt, wait.choices = draw(st.sampled_from([None, "Well?"])), draw(st.sampled_from([None, ["yes", 1]]))
    wait.details = draw(st.sampled_from([None, {"wait_id": "own"}, {"kind": "pause"}]))
    if draw(st.integers(0, 5)) == 0:  # the stand-in of a paused run is known by its key
        wait.wait_key, wait.details = "pause:a", {"kind": "pause"}
    return wait


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """What a host may change in a run. A run may say that it waits and not for what, or the other way around."""
    status = draw(STATUSES)
    waiting = status is RunStatus.WAITING if draw(st.integers(0, 9)) else draw(st.booleans())
    return {
        "status": status,
        "waiting": draw(waits()) if waiting else None,
        "vars": draw(VARS),
        "updated_at": draw(INSTANTS),
        "current_node": draw(st.sampled_from(["n", "m"])),
        "output": draw(st.sampled_from([None, {"a": 1}])),
    }


ORIGINS = st.fixed_dictionaries(
    {
        "workflow_id": WORKFLOWS,
        "session_id": SOMEBODY,
        "actor_id": SOMEBODY,
        "parent_run_id": st.sampled_from([None, "a", "b", ""]),
        "created_at": INSTANTS,
    }
)
RUN_QUERIES = st.fixed_dictionaries(
    {"limit": LIMITS},
    optional={
        "status": STATUSES | st.sets(STATUSES, max_size=3) | st.just("nonsense"),
        "wait_reason": REASONS,
        "workflow_id": WORKFLOWS,
        "session_id": SOMEBODY,
        "actor_id": SOMEBODY,
        "parent_run_id": st.sampled_from(["a", "b", "", "nobody"]),
        "root_only": st.booleans(),
    },
)
WAIT_QUERIES = st.fixed_dictionaries(
    {"limit": LIMITS},
    optional={
        "reason": REASONS,
        "wait_key": KEYS,
        "workflow_id": WORKFLOWS,
        "session_id": SOMEBODY,
        "actor_id": SOMEBODY,
        "parent_run_id": st.sampled_from(["a", "b", "", "nobody"]),
        "run_id": IDS,
        "due_before": INSTANTS | st.just("nonsense"),
        "include_paused": st.booleans(),
    },
)


class Pair:
    """A run store and a ledger store of one kind, and one way to call them."""

    def __init__(self, name: str, runs: Any, ledgers: Any, runner: asyncio.Runner) -> None:
        self.name, self.runs, self.ledgers, self._runner = name, runs, ledgers, runner
        #: a run as it was loaded earlier, by id
        self.held: dict[str, RunState] = {}

    def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if inspect.iscoroutinefunction(method):
            return self._runner.run(method(*args, **options))
        return method(*args, **options)

    def pages(self, method: Callable[..., Any], query: dict[str, Any]) -> list[list[dict[str, Any]]]:
        found, cursor = [], None
        while True:
            page = self.call(method, **query, cursor=cursor)
            found.append(page.items)
            cursor = page.cursor
            if cursor is None:
                return found
            assert len(found) < 20, "the pages have no end"


def comparable(value: Any) -> Any:
    """What must be equal: of a run, all but what each store has of its own."""
    if isinstance(value, RunState):
        return {
            name: getattr(value, name)
            for name in RunState.__struct_fields__
            if name not in ("commit_id", "records", "chain_head")
        }
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, dict) and "record_hash" in value:  # a record, which may be chained
        return {name: item for name, item in value.items() if name not in ("prev_hash", "record_hash")}
    return value


def every_layer(runs: Any, ledgers: Any) -> tuple[Any, Any]:
    """The pair with all decorators around it; nothing here is so large that it is moved out."""
    artifacts = InMemoryArtifactStore()
    ledgers = HashChainedLedgerStore(OffloadingLedgerStore(ledgers, artifact_store=artifacts))
    return OffloadingRunStore(runs, artifact_store=artifacts), ObservableLedgerStore(ledgers)


class Agreement(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.databases: list[SqliteDatabase] = []
        self.pairs: list[Pair] = []
        #: runs that were created under an id that had a ledger: SQLite lists them where the ledger was begun
        self.elsewhere: set[str] = set()
        #: of a walk over pages: method, query, and per store the cursor of the next page
        self.walk: tuple[str, dict[str, Any], list[Any]] | None = None

    @initialize(some=st.lists(st.tuples(IDS, ORIGINS, changes()), min_size=3, max_size=8))
    def open(self, some: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
        memory = InMemoryRunStore(), InMemoryLedgerStore()
        self._add("memory", *memory)
        self._add("memory, awaited", AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore())
        for path in (":memory:", Path(self.folder.name) / "blocking.db"):
            db = self._database(path)
            self._add(str(path), SqliteRunStore(db), SqliteLedgerStore(db))
        for path in (":memory:", Path(self.folder.name) / "awaited.db"):
            db = self._database(path)
            self._add(f"{path}, awaited", AsyncSqliteRunStore(db), AsyncSqliteLedgerStore(db))
        folder = Path(self.folder.name)
        blocking, awaited = folder / "blocking", folder / "awaited"
        self._add("json", JsonFileRunStore(blocking, durability="none"), JsonlLedgerStore(blocking, durability="none"))
        self._add(
            "json, awaited",
            AsyncJsonFileRunStore(awaited, durability="none"),
            AsyncJsonlLedgerStore(awaited, durability="none"),
        )
        self._add("memory, every layer", *every_layer(InMemoryRunStore(), InMemoryLedgerStore()))
        db = self._database(folder / "layers.db")
        self._add("sqlite, every layer", *every_layer(SqliteRunStore(db), SqliteLedgerStore(db)))
        for run_id, origins, change in some:
            self.save_a_new_object(run_id, origins, change, True)

    def _database(self, path: Any) -> SqliteDatabase:
        self.databases.append(SqliteDatabase(path, synchronous="NORMAL"))
        return self.databases[-1]

    def _add(self, name: str, runs: Any, ledgers: Any) -> None:
        self.pairs.append(Pair(name, runs, ledgers, self.runner))

    def teardown(self) -> None:
        for database in self.databases:
            database.close()
        self.runner.close()
        self.folder.cleanup()

    def agreed(self, operation: Callable[[Pair], Any], seen: Callable[[Any], Any] = comparable) -> Any:
        """What the operation gives everywhere; an error counts by its type."""
        found: list[Any] = []
        for pair in self.pairs:
            try:
                found.append(seen(operation(pair)))
            except (AbstractRuntimeError, ValueError) as error:
                found.append(type(error))
            assert found[-1] == found[0], f"{pair.name}: {found[-1]} is not {self.pairs[0].name}: {found[0]}"
        return found[0]

    def _born(self, run_id: str) -> None:
        memory = self.pairs[0]
        if memory.runs.load(run_id) is None and memory.ledgers.count(run_id):
            self.elsewhere.add(run_id)

    # -- what changes the stores

    @rule(run_id=IDS, origins=ORIGINS, change=changes(), overwrite=st.booleans())
    def save_a_new_object(self, run_id: str, origins: dict[str, Any], change: dict[str, Any], overwrite: bool) -> None:
        self._born(run_id)
        run = RunState(run_id, **origins, **change)
        self.agreed(lambda pair: pair.call(pair.runs.save, copy.deepcopy(run), overwrite=overwrite))

    @rule(run_id=IDS, origins=ORIGINS, change=changes())
    def create_if_absent(self, run_id: str, origins: dict[str, Any], change: dict[str, Any]) -> None:
        self._born(run_id)
        run = RunState(run_id, **origins, **change)
        self.agreed(lambda pair: pair.call(pair.runs.create_if_absent, copy.deepcopy(run)))

    @rule(run_id=IDS, change=changes())
    def load_change_and_save(self, run_id: str, change: dict[str, Any]) -> None:
        def operation(pair: Pair) -> Any:
            run = pair.call(pair.runs.load, run_id)
            if run is None:
                return None
            for name, value in copy.deepcopy(change).items():
                setattr(run, name, value)
            pair.call(pair.runs.save, run)
            return run

        self.agreed(operation)

    @rule(run_id=IDS)
    def hold_on_to_a_run(self, run_id: str) -> None:
        def operation(pair: Pair) -> Any:
            run = pair.call(pair.runs.load, run_id)
            if run is not None:
                pair.held[run_id] = run
            return run

        self.agreed(operation)

    @precondition(lambda self: self.pairs and self.pairs[0].held)
    @rule(data=st.data(), overwrite=st.booleans(), status=STATUSES)
    def save_what_was_held(self, data: st.DataObject, overwrite: bool, status: RunStatus) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.pairs[0].held)))
        self._born(run_id)

        def operation(pair: Pair) -> Any:
            run = pair.held[run_id]
            run.status = status
            pair.call(pair.runs.save, run, overwrite=overwrite)
            return run

        self.agreed(operation)

    @rule(run_id=IDS)
    def delete_a_run(self, run_id: str) -> None:
        self.agreed(lambda pair: pair.call(pair.runs.delete, run_id))
        self.elsewhere.discard(run_id)

    @rule(
        run_id=IDS | st.just(""), status=st.sampled_from(StepStatus), kind=st.sampled_from(["llm_call", "tool_calls"])
    )
    def append_a_record(self, run_id: str, status: StepStatus, kind: str) -> None:
        effect = {"type": kind, "payload": {"tool_calls": [1, 2]}, "result_key": None}
        result = {"usage": {"input_tokens": 3, "output_tokens": 4}}
        at = "2026-01-31T09:00:00.000000+00:00"
        record = StepRecord(run_id, "s", "n", status, effect, result, started_at=at)
        self.agreed(lambda pair: pair.call(pair.ledgers.append, copy.deepcopy(record)))

    @rule(run_id=IDS)
    def delete_a_ledger(self, run_id: str) -> None:
        self.agreed(lambda pair: pair.call(pair.ledgers.delete, run_id))

    # -- what looks at them

    @rule(run_id=IDS, after=st.integers(-1, 6), limit=st.integers(-1, 4))
    def read_a_ledger(self, run_id: str, after: int, limit: int) -> None:
        self.agreed(lambda pair: pair.call(pair.ledgers.list, run_id))
        self.agreed(lambda pair: pair.call(pair.ledgers.list_after, run_id=run_id, after=after, limit=limit))
        self.agreed(lambda pair: pair.call(pair.ledgers.count, run_id))

    @rule()
    def read_all_ledgers(self) -> None:
        ids = ["a", "b", "c", "unknown"]
        self.agreed(lambda pair: pair.call(pair.ledgers.count_many, ids))
        self.agreed(lambda pair: pair.call(pair.ledgers.metrics_many, iter(ids)))

    @rule(
        filters=st.fixed_dictionaries(
            {"limit": LIMITS}, optional={"status": STATUSES, "wait_reason": REASONS, "workflow_id": WORKFLOWS}
        ),
        now=INSTANTS,
    )
    def list_runs(self, filters: dict[str, Any], now: str) -> None:
        self.agreed(lambda pair: pair.call(pair.runs.list_runs, **filters))
        self.agreed(lambda pair: pair.call(pair.runs.list_due_wait_until, now_iso=now, limit=filters["limit"]))

    @rule(
        filters=st.fixed_dictionaries(
            {"limit": LIMITS, "root_only": st.booleans()},
            optional={"status": STATUSES, "workflow_id": WORKFLOWS, "session_id": SOMEBODY},
        ),
        parent=st.sampled_from(["a", "b", "", "nobody"]),
        status=st.none() | STATUSES,
    )
    def list_index_and_children(self, filters: dict[str, Any], parent: str, status: RunStatus | None) -> None:
        self.agreed(lambda pair: pair.call(pair.runs.list_run_index, **filters))
        self.agreed(
            lambda pair: pair.call(pair.runs.list_children, parent_run_id=parent, status=status),
            lambda runs: sorted((run.run_id, run.status) for run in runs),
        )

    @rule(query=RUN_QUERIES)
    def find_runs(self, query: dict[str, Any]) -> None:
        self._agreed_pages("find_runs", query)
        self._agreed_pages("find_runs", {"limit": 2})

    @rule(query=WAIT_QUERIES)
    def find_waits(self, query: dict[str, Any]) -> None:
        self._agreed_pages("find_waits", query)
        self._agreed_pages("find_waits", {"limit": 2})

    def _agreed_pages(self, method: str, query: dict[str, Any]) -> None:
        def in_any_order(pages: list[list[dict[str, Any]]]) -> Any:
            return sorted((row for page in pages for row in page), key=lambda row: row["run_id"])

        self.agreed(
            lambda pair: pair.pages(getattr(pair.runs, method), query),
            in_any_order if self.elsewhere else comparable,
        )

    @rule(query=RUN_QUERIES)
    def begin_to_walk_over_runs(self, query: dict[str, Any]) -> None:
        self.walk = ("find_runs", query, [None] * len(self.pairs))
        self.walk_on()

    @rule(query=WAIT_QUERIES)
    def begin_to_walk_over_waits(self, query: dict[str, Any]) -> None:
        self.walk = ("find_waits", query, [None] * len(self.pairs))
        self.walk_on()

    @precondition(lambda self: self.walk is not None)
    @rule()
    def walk_on(self) -> None:
        """The next page, whatever was done since the one before."""
        assert self.walk is not None
        method, query, cursors = self.walk
        following: list[Any] = []

        def operation(pair: Pair) -> Any:
            cursor = cursors[self.pairs.index(pair)]
            page = pair.call(getattr(pair.runs, method), **query, cursor=cursor)
            following.append(page.cursor)
            return page.items, page.cursor is None

        if self.elsewhere:
            self.walk = None
            return
        self.agreed(operation)
        self.walk = (method, query, following) if following and following[0] is not None else None


Agreement.TestCase.settings = settings(
    max_examples=scaled(20, 1_000), stateful_step_count=scaled(30, 60), deadline=None, print_blob=True
)
TestAllStoresAgree = Agreement.TestCase
