"""A folder of runs and ledgers: one atomic commit of a step, in plain files.

The rename of a run's file is the commit. The file holds, as `pending`, what the commit writes elsewhere: the records
of its ledger, requests to other runs, and messages. That is then written there, and the run's next commit drops it.
Until it is there, whoever reads a ledger reads it together with what is pending; so a crash in between loses nothing. A
landing leaves the state alone: its commit is the append to the ledger, whose lines count together or not at all. What
an error left undone is done first when the run, or the one it was meant for, is next written.

An object is used by any number of threads; each operation runs whole under its lock. It blocks on file calls.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from weakref import WeakSet

from msgspec.structs import replace

from ...core.backend import Loaded, Write
from ...core.chain import linked
from ...core.codec import decode_records, encode_run
from ...core.errors import StoreCorrupt, StoreError, StoreUnclear, StoreVanished
from ...core.models import RunState, StepRecord
from ..sqlite.failures import translated_os
from .files import Files
from .index import Index, Row, sweep
from .ledger import Ledger
from .lock import FolderLock
from .names import ledger_file, run_file
from .owing import Owing, check_guard
from .speaking import Speaking
from .streams import StreamFiles
from .texts import Beside, Pending, Placed, read_run, run_text

log = logging.getLogger("abstractruntime.storage")

_FOLDERS: WeakSet[Folder] = WeakSet()


class Folder(Owing, Speaking):
    """The runs and ledgers of one folder. Only the process that holds its lock writes; others may read."""

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.path, self.files = path, files or Files()
        self._lock = FolderLock(path)
        self._seen = False
        self.begin()
        _FOLDERS.add(self)

    def begin(self) -> None:
        """Know nothing."""
        self.guard = threading.RLock()
        #: whether this process writes here, so that what is known of the files is trusted; seen at each operation
        self._owning = False
        self._begin_anew()

    # -- reading

    def index(self) -> Index:
        """What listings look at. Raises StoreCorrupt that names a file that cannot be read."""
        index = self.runs()
        index.recheck()
        return index

    def runs(self) -> Index:
        """The runs that can be read, and the files that cannot."""
        if not self._owning:
            self._index.refresh()
        return self._index

    def load(self, run_id: str) -> Loaded | None:
        """The run as it is stored, with what stands beside it."""
        found = self._stored(run_id)
        if found is None:
            return None
        run, beside = found
        ledger = self._ledger(run_id, beside)
        run.records, run.chain_head = ledger.count, ledger.head
        return Loaded(run=run, requests=beside.requests)

    def state(self, run_id: str) -> RunState | None:
        """The run alone, as its file has it."""
        found = self._stored(run_id)
        if found is None:
            return None
        run, beside = found
        run.records, run.chain_head = beside.records or 0, beside.chain_head
        return run

    def ledger(self, run_id: str) -> Ledger:
        """The run's ledger with all that belongs to it; empty for an unknown run."""
        known = self._ledgers.get(run_id)
        if self._owning and known is not None and not known.stale:
            return known
        found = self._stored(run_id)
        return self._ledger(run_id, None if found is None else found[1])

    def landed(self, run_id: str, commit_id: str) -> bool:
        """Whether the commit is in the state or the ledger, for good: what may not survive is written anew before."""
        found = self._stored(run_id)
        there = found is not None and found[0].commit_id == commit_id
        if not there and all(record.commit_id != commit_id for record in self.ledger(run_id).records()):
            return False
        if self._owning:
            self._settle(run_id)
        return True

    # -- writing

    def commit(self, write: Write) -> None:
        """Make the write durable, whole. See `core.backend.Backend`."""
        run_id = write.run.run_id
        self._own()
        row = self._row(run_id)
        ledger = self.ledger(run_id)
        self._settle(run_id)
        check_guard(write, row, ledger.count)
        also, messages = self._checked_others(write), self._placed(write)
        if write.landing and not (write.requests or also or messages):
            records = decode_records(write.records, run_id)
            ledger.append(records, write.lookup_key)
            return
        beside = self._beside(write, row, ledger, also, messages)
        run, data = write.run, write.data
        if write.landing:
            stored = self._stored(run_id)
            assert stored is not None
            run, data = stored[0], encode_run(stored[0])
        self._write_run(run, data, beside)
        assert beside.pending is not None
        ledger.owe(beside.pending.records, beside.pending.lookup_key, beside.chain_head)
        self._deliver(run_id, beside.pending)
        try:
            self._settle(run_id)
        except StoreError as error:
            log.warning("Run %s: its commit landed, but not all that it writes is in its place yet: %s", run_id, error)

    def append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        """Add one record behind the last one of its run, as a link of its chain if there is one or shall be."""
        self._own()
        ledger = self.ledger(record.run_id)
        if chain or ledger.head is not None:
            (record,) = linked([record], ledger.head)
        self._settle(record.run_id)
        ledger.append([record])
        return record

    def delete_run(self, run_id: str) -> bool:
        """Forget the run; its ledger stays."""
        self._own()
        self._streams.clear(f"run:{run_id}")
        name = run_file(run_id)
        if name not in self._index.damaged:
            if self._row(run_id) is None:
                return False
            self.ledger(run_id)
            self._settle(run_id)
        try:
            there = self.files.remove(self.path / name)
        except StoreUnclear:
            self._index.reread(name)
            raise
        self._index.drop(run_id)
        self._streams.known.leave(run_id)
        return there

    def delete_ledger(self, run_id: str) -> int:
        """Forget the run's records; the run stays."""
        self._own()
        path = self.path / ledger_file(run_id)
        try:
            count = self.ledger(run_id).count
        except StoreCorrupt:  # to delete it is one way out
            count = (self.files.read(path) or b"").count(b"\n")
        self._row(run_id)
        self._settle(run_id)
        row = self._index.rows.get(run_id)
        if row is not None and row.beside.records:  # else it would miss them
            found = self._stored(run_id)
            assert found is not None
            beside = replace(row.beside, records=0, chain_head=None, pending=None)
            self._write_run(found[0], encode_run(found[0]), beside)
        self._ledgers.pop(run_id, None)
        self.files.remove(path)
        return count

    # -- whose folder it is

    def __enter__(self) -> Folder:
        """Begin an operation. Raises StoreVanished."""
        self.guard.acquire()
        try:
            self._owning = self._lock.held()
            if not self._owning:
                if self._lock.taken:
                    self._lock.let_go()
                    self._begin_anew()
                if self._seen and not self.path.is_dir():
                    raise self._vanished()
        except BaseException:
            self.guard.release()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.guard.release()

    def _begin_anew(self) -> None:
        """Forget what is known of the files, but not who uses this object."""
        self._index = Index(self.path, self.files)
        self._ledgers: dict[str, Ledger] = {}
        #: runs whose files another run's commit has left to be written, and that other run
        self._owed: dict[str, str] = {}
        self._streams = StreamFiles(self.path, self.files)

    def _own(self) -> None:
        """Be the process that writes here, or raise a StoreError that names it."""
        if self._owning:
            return
        if not self._seen:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise translated_os(error, self.path, "the folder cannot be made") from error
        self._lock.take()
        self._owning = self._seen = True
        self._begin_anew()
        sweep(self.path)
        self._index.refresh()
        self._hear(self._streams)
        for run_id, row in list(self._index.rows.items()):
            pending = row.beside.pending
            if pending is None:
                continue
            self._deliver(run_id, pending)
            try:
                if self._is_behind(run_id):
                    self.ledger(run_id)
                self._settle(run_id)
            except StoreError as error:
                log.warning("Run %s: what its last commit writes is not in its place yet: %s", run_id, error)

    def _is_behind(self, run_id: str) -> bool:
        """Whether the ledger was written before the run's file, as after a crash; what is missing shows when read."""
        try:
            ledger = os.stat(self.path / ledger_file(run_id))
            return ledger.st_mtime_ns < os.stat(self.path / run_file(run_id)).st_mtime_ns
        except OSError:
            return True

    def _vanished(self) -> StoreVanished:
        return StoreVanished(
            f"{self.path}: the folder was deleted or moved away. Nothing was written. Put it or a backup in its place; "
            "this store then goes on with it."
        )

    # -- pieces

    def _stored(self, run_id: str) -> tuple[RunState, Beside] | None:
        """What the run's file holds, with what the files of others have for it. Raises StoreCorrupt."""
        path = self.path / run_file(run_id)
        text = self.files.read(path)
        found = None if text is None else self._parsed(run_id, text, path)
        if not self._owning:
            self._index.refresh()
        row = self._index.rows.get(run_id)
        if found is None and row is not None and self._owning:
            raise StoreCorrupt(f"{path}: the file of run {run_id!r} is missing. Put it or a backup in its place.")
        left = None if self._owning and run_id not in self._owed else self._index.left_behind(run_id)
        if found is None:
            return None if left is None else (left, Beside())
        run, beside = found
        if not self._owning:  # nobody may have written here since a crash
            row = self._index.with_requests(run, beside)
        if row is not None:  # which also knows the requests that are not in its file yet
            beside = replace(beside, requests=row.beside.requests, asked=row.beside.asked)
        return (run if left is None or left.revision <= run.revision else left), beside

    def _parsed(self, run_id: str, text: bytes, path: Path) -> tuple[RunState, Beside]:
        run, beside = read_run(text, path)
        if run.run_id != run_id:
            raise StoreCorrupt(
                f"{path}: it holds run {run.run_id!r} and not {run_id!r}. Where the file system does not tell upper "
                "from lower case, ids must differ in more than that."
            )
        self._seen = True
        return run, beside

    def _row(self, run_id: str) -> Row | None:
        """The run's row. Raises StoreCorrupt for a run that cannot be read."""
        self._pay(run_id)
        name = run_file(run_id)
        if name in self._index.damaged or (run_id not in self._index.rows and os.path.exists(self.path / name)):
            self._stored(run_id)  # says why it cannot be read
            self._index.reread(name)
        return self._index.rows.get(run_id)

    def _ledger(self, run_id: str, beside: Beside | None) -> Ledger:
        known = self._ledgers.get(run_id)
        if self._owning and known is not None and not known.stale:
            return known
        path = self.path / ledger_file(run_id)
        ledger = Ledger(self.files, path, run_id, beside, unsure=known is not None, owned=self._owning)
        if self._owning:
            self._ledgers[run_id] = ledger
        return ledger

    def _beside(
        self,
        write: Write,
        row: Row | None,
        ledger: Ledger,
        also: tuple[RunState, ...],
        messages: tuple[Placed, ...],
    ) -> Beside:
        """What stands beside the run with this commit, and what is pending of it."""
        run = write.run
        old = Beside() if row is None else row.beside
        records = tuple(decode_records(write.records, run.run_id))
        ours = tuple(request for request in write.requests if request.run_id == run.run_id)
        kept = Row(run, replace(old, requests=old.requests if write.landing else ()), 0)
        for request in ours:
            kept.ask(request, run.commit_id or "")
        return Beside(
            number=self._index.next_number() if row is None else row.number,
            records=ledger.count + len(records),
            chain_head=run.chain_head if records and run.chain_head is not None else ledger.head,
            requests=kept.beside.requests,
            asked=kept.beside.asked,
            pending=Pending(
                records=records,
                lookup_key=write.lookup_key,
                requests=self._addressed(run.run_id, write.requests),
                also=also,
                messages=messages,
                commit_id=run.commit_id,
            ),
        )

    def _settle(self, run_id: str) -> None:
        """Write what earlier writes of this run left undone. Raises StoreError when that does not go.

        First its file, for what it writes elsewhere must not survive it.
        """
        self._write_down(run_id)
        ledger = self._ledgers.get(run_id)
        if ledger is not None and not ledger.settled:
            ledger.settle()
        row = self._index.rows.get(run_id)
        if row is not None and row.beside.pending is not None:
            self._streams.settle(placed.message.stream for placed in row.beside.pending.messages)
        self._settle_requests(run_id)
        self._settle_others(run_id)

    def _write_run(self, run: RunState, data: bytes, beside: Beside) -> None:
        name = run_file(run.run_id)
        old = self._index.rows.get(run.run_id)
        number = beside.number or (self._index.next_number() if old is None else old.number)
        beside = replace(beside, number=number)
        try:
            self.files.put(self.path / name, run_text(data, beside))
        except StoreUnclear:
            try:
                self._look_again(run.run_id, old)
            except StoreError as error:  # whoever needs the file next is told
                log.warning("Run %s: its file cannot be looked at: %s", run.run_id, error)
            raise
        row = self._index.put(run, beside, number)
        row.owes = () if old is None else old.owes
        self._streams.hear(run.run_id, row.hearing)

    def _look_again(self, run_id: str, old: Row | None) -> None:
        """After a write that may have landed: take what is there as it is, which may not survive."""
        self._index.reread(run_file(run_id))
        self._ledgers.pop(run_id, None)  # it is read again, together with what is pending now
        row = self._index.rows.get(run_id)
        self._streams.hear(run_id, None if row is None else row.hearing)
        if row is None:
            return
        row.unsure = True
        if row.beside.pending is not None:
            self._deliver(run_id, row.beside.pending)
        if old is not None and old.dirty:
            missing = [request for request in old.beside.requests if request not in row.beside.requests]
            if missing and row.revision == old.revision:
                row.beside, row.dirty = replace(row.beside, requests=old.beside.requests, asked=old.beside.asked), True


def _begin_after_fork() -> None:
    """The child knows nothing, and no thread of the parent's is there that could let go of a lock."""
    for folder in _FOLDERS:
        folder.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_after_fork)
