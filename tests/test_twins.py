"""Every sync class has an async twin: the same methods, the same parameters, one blocking and one awaited."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from abstractruntime.runtime import AsyncRuntime
from abstractruntime.scheduler import AsyncScheduledRuntime, AsyncScheduler, ScheduledRuntime, Scheduler
from abstractruntime.storage.artifacts import (
    AsyncFileArtifactStore,
    AsyncInMemoryArtifactStore,
    FileArtifactStore,
    InMemoryArtifactStore,
)
from abstractruntime.storage.commands import (
    AsyncInMemoryCommandCursorStore,
    AsyncInMemoryCommandStore,
    AsyncJsonFileCommandCursorStore,
    AsyncJsonlCommandStore,
    AsyncSqliteCommandCursorStore,
    AsyncSqliteCommandStore,
    InMemoryCommandCursorStore,
    InMemoryCommandStore,
    JsonFileCommandCursorStore,
    JsonlCommandStore,
    SqliteCommandCursorStore,
    SqliteCommandStore,
)
from abstractruntime.storage.in_memory import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
)
from abstractruntime.storage.json_files import (
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    JsonFileRunStore,
    JsonlLedgerStore,
)
from abstractruntime.storage.ledger_chain import AsyncHashChainedLedgerStore, HashChainedLedgerStore
from abstractruntime.storage.observable import AsyncObservableLedgerStore, ObservableLedgerStore
from abstractruntime.storage.offloading import (
    AsyncOffloadingLedgerStore,
    AsyncOffloadingRunStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
)
from abstractruntime.storage.snapshots import (
    AsyncInMemorySnapshotStore,
    AsyncJsonSnapshotStore,
    AsyncSqliteSnapshotStore,
    InMemorySnapshotStore,
    JsonSnapshotStore,
    SqliteSnapshotStore,
)
from abstractruntime.storage.sqlite import (
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    SqliteLedgerStore,
    SqliteRunStore,
)
from abstractruntime.sync import Runtime

PAIRS: list[tuple[type, type]] = [
    (Runtime, AsyncRuntime),
    (Scheduler, AsyncScheduler),
    (ScheduledRuntime, AsyncScheduledRuntime),
    (InMemoryRunStore, AsyncInMemoryRunStore),
    (InMemoryLedgerStore, AsyncInMemoryLedgerStore),
    (SqliteRunStore, AsyncSqliteRunStore),
    (SqliteLedgerStore, AsyncSqliteLedgerStore),
    (HashChainedLedgerStore, AsyncHashChainedLedgerStore),
    (ObservableLedgerStore, AsyncObservableLedgerStore),
    (OffloadingRunStore, AsyncOffloadingRunStore),
    (OffloadingLedgerStore, AsyncOffloadingLedgerStore),
    (InMemoryArtifactStore, AsyncInMemoryArtifactStore),
    (FileArtifactStore, AsyncFileArtifactStore),
    (JsonFileRunStore, AsyncJsonFileRunStore),
    (JsonlLedgerStore, AsyncJsonlLedgerStore),
    (InMemorySnapshotStore, AsyncInMemorySnapshotStore),
    (JsonSnapshotStore, AsyncJsonSnapshotStore),
    (SqliteSnapshotStore, AsyncSqliteSnapshotStore),
    (InMemoryCommandStore, AsyncInMemoryCommandStore),
    (JsonlCommandStore, AsyncJsonlCommandStore),
    (SqliteCommandStore, AsyncSqliteCommandStore),
    (InMemoryCommandCursorStore, AsyncInMemoryCommandCursorStore),
    (JsonFileCommandCursorStore, AsyncJsonFileCommandCursorStore),
    (SqliteCommandCursorStore, AsyncSqliteCommandCursorStore),
]
#: what closing and `with` are called in the two worlds
ASYNC_NAMES = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
#: what only the sync one has: the way to the other, and old names
SYNC_ONLY = {"aio", "_run_store", "_ctx"}
#: a blocking tick may wait longer for the next attempt than one on a shared loop
OTHER_DEFAULTS = {
    (Runtime, "__init__", "max_inline_backoff"),
    # it works in threads, and leaves new runs to their callers, as documented
    *((Scheduler, "__init__", name) for name in ("poll_interval_s", "concurrency", "eager")),
}
#: what is iterated over is a generator of its world
OTHER_RETURNS = {
    "AsyncGenerator[LedgerEntry, None]": "Generator[LedgerEntry, None, None]",
    "AsyncGenerator[bytes, None]": "Generator[bytes, None, None]",
    "AiofilesContextManager[AsyncBufferedReader]": "BinaryIO",
}
#: constructors of stores differ where the one is built around the other
OWN_CONSTRUCTORS = {InMemoryRunStore, InMemoryLedgerStore, InMemorySnapshotStore}

each_pair = pytest.mark.parametrize(("sync", "aio"), PAIRS, ids=[sync.__name__ for sync, _ in PAIRS])


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public members of a class, and those of `with`, as they stand in the class."""
    for name in dir(cls):
        if not name.startswith("_") or name in {"__enter__", "__exit__", "__aenter__", "__aexit__"}:
            yield name, inspect.getattr_static(cls, name)


def async_name(sync: str) -> str:
    return ASYNC_NAMES.get(sync, sync)


def shape(function: Any) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and annotation of each parameter."""
    return [
        (parameter.name, parameter.kind, parameter.default, str(parameter.annotation))
        for parameter in inspect.signature(function).parameters.values()
    ]


@each_pair
def test_both_classes_have_the_same_public_members(sync, aio):
    ours = {async_name(name) for name, _ in members(sync)} - SYNC_ONLY
    assert ours == {name for name, _ in members(aio)} - SYNC_ONLY


@each_pair
def test_each_method_takes_the_same_parameters_and_gives_the_same(sync, aio):
    theirs = dict(members(aio))
    for name, ours in members(sync):
        if name in SYNC_ONLY or not inspect.isfunction(ours):
            continue
        other = theirs[async_name(name)]
        assert shape(ours) == shape(other), name
        if name != "__enter__":  # each gives itself
            found, expected = (inspect.signature(method).return_annotation for method in (ours, other))
            assert str(found) == OTHER_RETURNS.get(str(expected), str(expected)), name


@each_pair
def test_the_sync_one_never_returns_a_coroutine(sync, aio):
    assert [name for name, member in members(sync) if inspect.iscoroutinefunction(member)] == []


@each_pair
def test_every_member_of_both_says_what_it_does(sync, aio):
    for cls in (sync, aio):
        undocumented = [
            name for name, _ in members(cls) if not name.startswith("__") and not inspect.getdoc(getattr(cls, name))
        ]
        assert undocumented == [], cls.__name__


@each_pair
def test_both_are_built_with_the_same_arguments(sync, aio):
    if sync in OWN_CONSTRUCTORS:
        assert [default for _, _, default, _ in shape(sync.__init__)[1:]] == []
        return
    for ours, theirs in zip(shape(sync.__init__), shape(aio.__init__), strict=True):
        if (sync, "__init__", ours[0]) in OTHER_DEFAULTS:
            ours, theirs = (ours[0], ours[1], None, ours[3]), (theirs[0], theirs[1], None, theirs[3])
        assert ours == (*theirs[:3], theirs[3].removeprefix("Async"))  # each is built around its own
