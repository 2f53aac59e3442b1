"""A folder as the backend that the runtime commits to: see `storage.base.Backend`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from ...core.backend import Due
from ...core.models import Message, StepRecord
from ...core.shielding import finish
from ...core.streams import DEFAULT_KEPT, EVER, Listening, Unread
from ...core.threads import WorkerThreads
from ..base import Loaded, Write
from .files import Files
from .folder import Folder

T = TypeVar("T")

Durability = Literal["full", "none"]

#: seconds that a cancelled caller waits for the end of its write
CARRIED_THROUGH = 60.0

_threads = WorkerThreads(8)
_guard = threading.Lock()
#: the folders that are used in this process, by their real paths
_folders: WeakValueDictionary[str, Folder] = WeakValueDictionary()


class JsonBackend:
    """Runs and ledgers of one folder. Usable from any number of event loops and threads at once.

    Every operation runs whole in a worker thread. All objects on one real path share what is known of the folder, and
    the stricter durability of them holds for all.
    """

    atomic = True
    shared = False

    def __init__(self, path: Path, durability: Durability) -> None:
        if durability not in ("full", "none"):
            raise ValueError(f'durability must be "full" or "none", found {durability!r}.')
        self.path, self._durability = path, durability
        self._folder: Folder | None = None

    def is_on(self, other: JsonBackend) -> bool:
        """Whether both are on one folder."""
        return self.path == other.path or os.path.realpath(self.path) == os.path.realpath(other.path)

    async def read(self, operation: Callable[[Folder], T]) -> T:
        """Run a reading function of the folder; a cancelled caller leaves at once."""
        found: T = await _threads.run(self._on_folder, operation)
        return found

    async def write(self, operation: Callable[[Folder], T]) -> T:
        """Run a writing function of the folder, whole, even if the caller is cancelled meanwhile."""
        task: asyncio.Task[T] = asyncio.ensure_future(_threads.run(self._on_folder, operation))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                await finish(task, within=CARRIED_THROUGH)
            raise

    async def load(self, run_id: str) -> Loaded | None:
        return await self.read(lambda folder: folder.load(run_id))

    async def commit(self, write: Write) -> None:
        await self.write(lambda folder: folder.commit(write))

    async def append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        """Add one record behind the last one of its run, as a link of its chain if there is one or shall be."""
        return await self.write(lambda folder: folder.append(record, chain=chain))

    async def send(self, messages: Iterable[Message], *, keep: int = DEFAULT_KEPT) -> None:
        sent = tuple(messages)
        await self.write(lambda folder: folder.send(sent, keep))

    async def next_message(self, stream: str, name: str, read: Mapping[str, int], since: str) -> Unread | None:
        return await self.write(lambda folder: folder.unread(stream, name, read, since))

    async def listening(self, message: Message, *, limit: int = 10_000) -> Listening:
        return await self.write(lambda folder: folder.listening(message, limit))

    async def nudged(self, *, stream: str | None = None, since: str = EVER, limit: int = 100) -> list[str]:
        return await self.write(lambda folder: folder.nudged(stream, since, limit))

    async def due(
        self,
        now: str,
        *,
        limit: int,
        passing: Collection[str] = (),
        watched: Collection[str] = (),
        owner: str = "",
    ) -> list[Due]:
        def look(folder: Folder) -> list[Due]:
            index = folder.runs()
            nudged = folder.nudged(None, EVER, len(index.rows))
            asked = [run_id for run_id, row in index.rows.items() if row.beside.requests]
            return index.standings.due(nudged, asked, now=now, limit=limit, passing=(*passing, *watched))

        return await self.write(look)

    async def next_due(self, after: str) -> str | None:
        return await self.read(lambda folder: folder.runs().standings.next(after))

    async def landed(self, run_id: str, commit_id: str) -> bool:
        return await self.write(lambda folder: folder.landed(run_id, commit_id))

    async def find(self, run_id: str, key: str) -> list[StepRecord]:
        return await self.read(lambda folder: folder.ledger(run_id).find(key))

    async def records(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        return await self.read(lambda folder: folder.ledger(run_id).records(after, limit))

    async def renew(self, owner: str, until: int) -> None:
        """Nothing to write: the owner lives in the process that holds the folder, which knows it."""

    async def release(self, owner: str) -> None:
        """Nothing to give up."""

    async def alive(self, owner: str, now: int) -> bool:
        """No other process can hold anything here."""
        return False

    async def tree_tokens(self, root_run_id: str) -> int:
        def look(folder: Folder) -> int:
            rows = folder.index().rows.items()
            return sum(row.tokens for run_id, row in rows if root_run_id in (run_id, row.root))

        return await self.read(look)

    async def claims(self, run_ids: Iterable[str]) -> dict[str, tuple[str | None, bool]]:
        wanted = [*run_ids]

        def look(folder: Folder) -> dict[str, tuple[str | None, bool]]:
            found: dict[str, tuple[str | None, bool]] = {}
            for run_id in wanted:
                loaded = folder.load(run_id)
                if loaded is not None:
                    intent = loaded.run.intent
                    cancel = any(request.kind == "cancel" for request in loaded.requests)
                    found[run_id] = (intent.token if intent else None, cancel)
            return found

        return await self.read(look)

    def _on_folder(self, operation: Callable[[Folder], T]) -> T:
        if self._folder is None:
            self._folder = _folder_at(self.path)
        if self._durability == "full":
            self._folder.files.durable = True
        with self._folder as folder:
            return operation(folder)


def _folder_at(path: Path) -> Folder:
    real = os.path.realpath(path)
    with _guard:
        found = _folders.get(real)
        if found is None:
            found = _folders[real] = Folder(Path(real), Files(durable=False))
        return found


def _begin_after_fork() -> None:
    """The threads did not come along."""
    global _threads, _guard
    _threads, _guard = WorkerThreads(8), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_after_fork)
