"""All stores agree on messages: what is sent, read, due and dropped, also after they were opened anew."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    RunState,
    RunStatus,
    SqliteDatabase,
    WaitReason,
    WaitState,
)
from abstractruntime.core import kernel
from abstractruntime.core.errors import RevisionConflict
from abstractruntime.core.event_keys import LISTENS, event_key
from abstractruntime.core.journal import prepare
from abstractruntime.core.models import Commit, Message
from abstractruntime.core.streams import read_on

from .scale import scaled

RUNS = st.sampled_from(["a", "b", "c"])
STREAMS = st.sampled_from(["session:s", "session:x:y", "global:global", "run:a"])
NAMES = st.sampled_from(["red", "blue", "x:blue"])
WANTED = NAMES | st.just("*")
INSTANTS = st.integers(0, 5).map(lambda minute: f"2026-01-31T09:0{minute}:00.000000+00:00")
READ: st.SearchStrategy[dict[str, int]] = st.just({}) | st.fixed_dictionaries(
    {"": st.integers(0, 6)}, optional={"red": st.integers(1, 9), "blue": st.integers(1, 9)}
)
MESSAGES = st.lists(
    st.builds(
        Message,
        stream=STREAMS,
        name=NAMES,
        message_id=st.integers(0, 40).map(str),
        at=INSTANTS,
        data=st.sampled_from([{}, {"n": 1}, {"ü": [None, {"a": 0.5}]}]),
    ),
    min_size=1,
    max_size=4,
)
KEEP = st.sampled_from([1, 3, 10])


@st.composite
def runs(draw: st.DrawFn) -> RunState:
    """A run that waits for an event, or for something else, or does not wait; paused now and then."""
    stream, name = draw(STREAMS), draw(WANTED)
    key = event_key(stream, name)
    wait = WaitState(
        draw(st.sampled_from([WaitReason.EVENT] * 3 + [WaitReason.USER])),
        wait_key=key,
        until=draw(st.none() | INSTANTS),
        resume_to_node=draw(st.sampled_from(["n", None])),
        details=draw(st.sampled_from([None, {LISTENS: [stream, name]}, {LISTENS: 3}])),
    )
    waits = draw(st.sampled_from([True, True, False]))
    run = RunState(
        run_id=draw(RUNS),
        workflow_id="w",
        status=RunStatus.WAITING if waits else RunStatus.RUNNING,
        current_node="n",
        vars=draw(st.sampled_from([{}, {}, {"_runtime": {"control": {"paused": True}}}])),
        waiting=wait if waits else None,
        created_at=draw(INSTANTS | st.just("long ago")),
    )
    read = draw(READ)
    run.read = {stream: read} if read else {}
    return run


class Agreement(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.databases: list[SqliteDatabase] = []
        self.path = Path(self.folder.name)
        memory = AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore()
        json = AsyncJsonFileRunStore(self.path / "json", durability="none")
        self.stores: dict[str, Any] = {
            "memory": memory[0],
            "sqlite": self._sqlite(self.path / "runs.db"),
            "sqlite in memory": self._sqlite(":memory:"),
            "json": json,
        }
        self.ledgers: dict[str, Any] = {"memory": memory[1]}
        self.ledgers["json"] = AsyncJsonlLedgerStore(self.path / "json", durability="none")

    def _sqlite(self, path: Any) -> Any:
        self.databases.append(SqliteDatabase(path, synchronous="NORMAL"))
        return AsyncSqliteRunStore(self.databases[-1])

    def backend(self, name: str) -> Any:
        store = self.stores[name]
        ledger = self.ledgers.get(name)
        return store.join(ledger if ledger is not None else AsyncSqliteLedgerStore(store.db))

    def agreed(self, operation: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        found: list[Any] = []
        for name, store in self.stores.items():
            try:
                found.append(self.runner.run(_awaited(operation, store, self.backend(name))))
            except RevisionConflict as error:
                found.append(type(error))
            assert found[-1] == found[0], f"{name}: {found[-1]} is not memory: {found[0]}"
        return found[0]

    def teardown(self) -> None:
        for database in self.databases:
            database.close()
        self.runner.close()
        self.folder.cleanup()

    @rule(messages=MESSAGES, keep=KEEP)
    def send(self, messages: list[Message], keep: int) -> None:
        for message in messages:  # of several streams, one after the other
            self.send_many_on_one([message], message.stream, keep)

    @rule(messages=MESSAGES, stream=STREAMS, keep=KEEP)
    def send_many_on_one(self, messages: list[Message], stream: str, keep: int) -> None:
        on_one = [Message(**{**{f: getattr(m, f) for f in m.__struct_fields__}, "stream": stream}) for m in messages]
        self.agreed(lambda store, backend: backend.send(on_one, keep=keep))

    def possible(self, run: RunState) -> RunState:
        """Nobody has read what was never there."""
        for key, read in run.read.items():
            last = self.stores["memory"].sync._streams.stream(key).last
            run.read[key] = {name: min(position, last) for name, position in read.items()}
        return run

    @rule(run=runs().map(copy.deepcopy))
    def save(self, run: RunState) -> None:
        self.possible(run)

        async def operation(store: Any, backend: Any) -> None:
            saved = copy.deepcopy(run)
            await store.save(saved, overwrite=True)

        self.agreed(operation)

    @rule(run=runs().map(copy.deepcopy), messages=MESSAGES, keep=KEEP)
    def create_with_messages(self, run: RunState, messages: list[Message], keep: int) -> None:
        """All of the commit lands, or nothing."""
        self.possible(run)

        async def operation(store: Any, backend: Any) -> None:
            stamp = kernel.Stamp("2026-01-31T09:00:00.000000+00:00", "c")
            made = Commit(run=kernel.create(run, stamp).run, messages=tuple(messages))
            await backend.commit(prepare(made, keep=keep))

        self.agreed(operation)

    @rule(run_id=RUNS, messages=MESSAGES, keep=KEEP)
    def step_with_messages(self, run_id: str, messages: list[Message], keep: int) -> None:
        """A run that stops waiting, or goes on running, and says something."""

        async def operation(store: Any, backend: Any) -> None:
            loaded = await backend.load(run_id)
            if loaded is not None:
                new = kernel.create(loaded.run, kernel.Stamp("2026-01-31T09:00:00.000000+00:00", "c")).run
                new.revision, new.status, new.waiting = loaded.run.revision + 1, RunStatus.RUNNING, None
                commit = Commit(run=new, before=loaded.run, messages=tuple(messages))
                await backend.commit(prepare(commit, keep=keep))

        self.agreed(operation)

    @rule(run_id=RUNS)
    def delete(self, run_id: str) -> None:
        self.agreed(lambda store, backend: store.delete(run_id))

    @rule(stream=STREAMS, name=WANTED, read=READ, since=INSTANTS)
    def next_message(self, stream: str, name: str, read: dict[str, int], since: str) -> None:
        found = self._next(stream, name, read, since)
        while found is not None:  # walk on to the end: in order, nothing twice
            position, read = found.position, read_on(read, found, wildcard=name == "*")
            found = self._next(stream, name, read, since)
            assert found is None or (found.position > position and found.missed == 0)

    def _next(self, stream: str, name: str, read: dict[str, int], since: str) -> Any:
        return self.agreed(lambda store, backend: backend.next_message(stream, name, read, since))

    @rule(messages=MESSAGES, limit=st.sampled_from([1, 10]))
    def listening(self, messages: list[Message], limit: int) -> None:
        self.agreed(lambda store, backend: backend.listening(messages[0], limit=limit))

    @rule(stream=STREAMS, limit=st.sampled_from([1, 10]))
    def nudged_of_a_stream(self, stream: str, limit: int) -> None:
        self.agreed(lambda store, backend: backend.nudged(stream=stream, limit=limit))

    @invariant()
    def nudged(self) -> None:
        self.agreed(lambda store, backend: backend.nudged(limit=10))

    @rule()
    def open_anew(self) -> None:
        self.stores["sqlite"] = self._sqlite(self.path / "runs.db")

        async def forget(store: Any, backend: Any) -> None:
            folder = getattr(backend, "_folder", None)
            if folder is not None:
                folder._lock.let_go()
                folder.begin()

        self.agreed(forget)


async def _awaited(operation: Callable[[Any, Any], Awaitable[Any]], store: Any, backend: Any) -> Any:
    return await operation(store, backend)


Agreement.TestCase.settings = settings(
    max_examples=scaled(25, 1_000), stateful_step_count=scaled(30, 60), deadline=None, print_blob=True
)
TestAllStoresAgreeOnMessages = Agreement.TestCase
