"""Deleting a run with all that is its own, and nothing that another still names.

The state goes last, so that whatever stops a deletion half-way, the same call finishes it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from msgspec import Struct

from .core import kernel
from .core.codec import encode, encode_records, encode_run
from .core.errors import EffectInFlight, RevisionConflict, RunNotEnded, StoreError, UnknownRun
from .core.ids import check_id
from .core.journal import Journal
from .core.leases import Leases
from .core.models import TERMINAL
from .engine import Engine
from .performer import Performer
from .storage.offloading import Shelf
from .storage.user_pair import call

#: how a run, a record or a snapshot names an artifact, in JSON or in a text that holds JSON
_NAMED = re.compile(rb'"(?:\$artifact|artifact_id)\\*"\s*:\s*\\*"([^"\\]+)')

#: rows of a page of runs
_PAGE = 500


class DeletedRun(Struct, frozen=True, kw_only=True):
    """What `delete_run` has deleted: whether there was a run, and how many of each."""

    run: bool = False
    records: int = 0
    artifacts: int = 0
    snapshots: int = 0
    commands: int = 0


class DeletesRuns:
    """What deleting adds to `AsyncRuntime`."""

    _journal: Journal
    _leases: Leases
    _performer: Performer
    _engine: Engine
    _run_store: Any
    _ledger_store: Any
    _snapshot_store: Any

    async def delete_run(self, run_id: str, *, force: bool = False, command_store: Any = None) -> DeletedRun:
        """Delete a run that has ended: state, ledger, snapshots, artifacts, and its commands in `command_store`.

        With `force` also one that has not ended, which is cancelled first. An artifact of the run stays while a state,
        a ledger or a snapshot of another run names it; all of them are read when the run has artifacts. Runs that it
        started stay. When it was stopped half-way, the same call finishes it; for an unknown run it deletes what is
        left under the id.

        Raises `RunNotEnded`, `EffectInFlight` while somebody alive performs an effect of the run, StoreError for a
        store that cannot delete, or be searched.
        """
        check_id(run_id, "run_id")
        for store in (self._run_store, self._ledger_store):
            if not callable(getattr(store, "delete", None)):
                raise StoreError(f"{store!r} cannot delete; nothing was deleted. Give it a method delete(run_id).")
        await self._end_for_good(run_id, force)
        artifacts = await self._own_artifacts(run_id)
        snapshots = await self._delete_snapshots(run_id)
        commands = 0 if command_store is None else int(await call(command_store.delete_by_run, run_id))
        deleted = [await call(store.delete, artifact_id) for store, artifact_id in artifacts]
        records = int(await call(self._ledger_store.delete, run_id))
        run = bool(await call(self._run_store.delete, run_id))
        return DeletedRun(
            run=run, records=records, artifacts=sum(map(bool, deleted)), snapshots=snapshots, commands=commands
        )

    async def _end_for_good(self, run_id: str, force: bool) -> None:
        """Return when the run has ended and nobody works for it."""
        while True:
            try:
                run = await self._engine.change(run_id, lambda run, stamp: None)  # answers requests
            except UnknownRun:
                return
            if run.intent is not None and run.intent.token is not None and await self._leases.is_held(run):
                raise EffectInFlight(
                    f"Run {run_id!r} performs an effect at node {run.intent.node_id!r}; nothing was deleted. Cancel "
                    "the run, or wait until the effect has landed."
                )
            if run.status in TERMINAL:
                return
            if not force:
                raise RunNotEnded(
                    f"Run {run_id!r} is {run.status}; nothing was deleted. Cancel it first, or pass force=True."
                )
            ended = kernel.cancel(run, "Deleted", "delete_run", self._performer.stamp())
            try:
                if ended is not None:
                    await self._journal.commit(ended)
                return
            except RevisionConflict:
                continue

    async def _delete_snapshots(self, run_id: str) -> int:
        if self._snapshot_store is None:
            return 0
        deleted = 0
        while True:
            found = await call(self._snapshot_store.list, run_id=run_id, limit=_PAGE)
            gone = sum([bool(await call(self._snapshot_store.delete, one.snapshot_id)) for one in found])
            deleted += gone
            if not gone:
                return deleted

    async def _own_artifacts(self, run_id: str) -> list[tuple[Any, str]]:
        """The artifacts of the run that no other run names, each with its store."""
        stores = {id(store): store for store in self._artifact_stores()}
        own = [
            (store, str(found.artifact_id))
            for store in stores.values()
            for found in await call(store.list_by_run, run_id)
        ]
        wanted = {artifact_id for _, artifact_id in own}
        if wanted:
            async for data in self._of_others(run_id):
                wanted -= {name.decode() for name in _NAMED.findall(data)}
        return [(store, artifact_id) for store, artifact_id in own if artifact_id in wanted]

    def _artifact_stores(self) -> Iterable[Any]:
        shelves = [getattr(store, "shelf", None) for store in (self._run_store, self._ledger_store)]
        stores = [self._engine.attach["_runtime_artifact_store"]]
        stores += [shelf.store for shelf in shelves if isinstance(shelf, Shelf)]
        return (store for store in stores if store is not None)

    async def _of_others(self, run_id: str) -> AsyncIterator[bytes]:
        """States, ledgers and snapshots of all other runs, as bytes, as they are stored."""
        async for other in _run_ids(self._run_store):
            if other == run_id:
                continue
            loaded = await self._journal.stored.load(other)
            if loaded is not None:
                yield encode_run(loaded.run)
            yield encode_records(await self._journal.stored.records(other))
        if self._snapshot_store is not None:
            for snapshot in await call(self._snapshot_store.list, limit=2**31):
                if snapshot.run_id != run_id:
                    yield encode(snapshot.run_state)


async def _run_ids(run_store: Any) -> AsyncIterator[str]:
    find_runs = getattr(run_store, "find_runs", None)
    if not callable(find_runs):
        raise StoreError(
            f"{run_store!r} cannot be searched, so nobody can tell which artifacts of the run another names; nothing "
            "was deleted. Give it a method find_runs(), or delete the artifacts of the run yourself first."
        )
    cursor = None
    while True:
        page = await call(find_runs, limit=_PAGE, cursor=cursor)
        for row in page.items:
            yield row["run_id"]
        cursor = page.cursor
        if cursor is None:
            return
