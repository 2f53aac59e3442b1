"""What the commit of one run writes to others: requests that stand at them, and their new states.

They are in the file of the run that commits, as `pending`, until they are in the files of the others. Whoever reads
another run reads it together with what is owed to it, and nobody writes it before that is written.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable

from msgspec.structs import replace

from ...core.backend import Write
from ...core.codec import encode_run
from ...core.errors import RevisionConflict, StoreError
from ...core.models import Request, RunState
from .index import Index, Row
from .ledger import Ledger
from .names import run_file
from .streams import StreamFiles
from .texts import Addressed, Beside, Pending

log = logging.getLogger("abstractruntime.storage")


class Owing:
    """The part of a folder that lets one run's commit write to others."""

    _index: Index
    #: runs whose files another run's commit has left to be written, and that other run
    _owed: dict[str, str]
    _streams: StreamFiles

    @abstractmethod
    def ledger(self, run_id: str) -> Ledger:
        """The run's ledger."""

    @abstractmethod
    def _stored(self, run_id: str) -> tuple[RunState, Beside] | None:
        """What the run's file holds."""

    @abstractmethod
    def _row(self, run_id: str) -> Row | None:
        """What is known of the run."""

    @abstractmethod
    def _write_run(self, run: RunState, data: bytes, beside: Beside) -> None:
        """Replace the run's file."""

    def _checked_others(self, write: Write) -> tuple[RunState, ...]:
        """The other runs that the write leaves behind; RevisionConflict unless each is what it was computed from."""
        found = []
        for other in write.also:
            row = self._row(other.run.run_id)
            if other.if_absent and row is not None:
                continue
            check_guard(other, row, self.ledger(other.run.run_id).count)
            found.append(other.run)
        return tuple(found)

    def _addressed(self, sender: str, requests: Iterable[Request]) -> tuple[Addressed, ...]:
        """The requests that somebody is there for; the unknown and the ended are passed over."""
        found = []
        for request in requests:
            row = self._index.rows.get(request.run_id)
            if request.run_id == sender:
                continue
            if row is not None and not row.ended:
                found.append(Addressed(request, row.number))
            elif run_file(request.run_id) in self._index.damaged:
                log.warning("Run %s cannot be read, so a %s request is lost", request.run_id, request.kind)
        return tuple(found)

    def _deliver(self, sender: str, pending: Pending) -> None:
        """Let requests stand where they are meant for, and messages wait for their streams; `_settle` writes both."""
        for addressed in pending.requests:
            row = self._index.rows.get(addressed.request.run_id)
            if row is not None:
                row.take(addressed, pending)
        self._streams.owe(pending.messages)
        self._index.rows[sender].owes = tuple(addressed.request.run_id for addressed in pending.requests)
        self._owed.update(dict.fromkeys((other.run_id for other in pending.also), sender))

    def _settle_requests(self, run_id: str) -> None:
        """Write the files of those that requests went out to."""
        row = self._index.rows.get(run_id)
        if row is not None:
            for other in row.owes:
                self._write_down(other)
            row.owes = ()

    def _write_down(self, run_id: str) -> None:
        """Write the run's file anew if requests came in since, or if it may not survive."""
        row = self._index.rows.get(run_id)
        if row is not None and (row.dirty or row.unsure):
            self._pay(run_id)
            found = self._stored(run_id)
            assert found is not None
            run, beside = found
            self._write_run(run, encode_run(run), beside)

    def _settle_others(self, run_id: str) -> None:
        """Write the files of other runs that this run's commit wrote, and then forget them."""
        self._write_down(run_id)  # what it writes elsewhere must not survive it, nor what it has forgotten come back
        row = self._index.rows.get(run_id)
        pending = None if row is None else row.beside.pending
        if pending is None or not pending.also:
            return
        others = [other.run_id for other in pending.also]
        for other_id in others:
            self._owed.pop(other_id, None)
        try:
            for other in pending.also:
                self._apply(other)
            found = self._stored(run_id)
            assert found is not None
            run, beside = found  # forgotten now, or a run that is deleted later would come back
            self._write_run(run, encode_run(run), replace(beside, pending=replace(pending, also=())))
        except StoreError:
            self._owed.update(dict.fromkeys(others, run_id))
            raise

    def _apply(self, other: RunState) -> None:
        row = self._row(other.run_id)
        if row is not None and row.revision >= other.revision:  # it was done before, and may yet not survive
            self._write_down(other.run_id)
            return
        beside = Beside(records=self.ledger(other.run_id).count) if row is None else row.beside
        self._write_run(other, encode_run(other), beside)

    def _pay(self, run_id: str) -> None:
        """Do first what another run's commit has left to do here. Raises StoreError when that does not go."""
        if run_id in self._owed:
            self._settle_others(self._owed[run_id])
            self._owed.pop(run_id, None)


def check_guard(write: Write, row: Row | None, records: int) -> None:
    """Raise RevisionConflict unless the write was computed from what is stored."""
    run_id, revision = write.run.run_id, None if row is None else row.revision
    if write.expected is None:
        if row is not None:
            raise RevisionConflict(run_id, 0, revision, "a run of this id exists")
    elif row is None or revision != write.expected:
        raise RevisionConflict(run_id, write.expected, revision)
    elif records != write.expected_records:
        raise RevisionConflict(
            run_id, write.expected, revision, f"its ledger has {records} records and not {write.expected_records}"
        )
    elif not write.landing and len(row.beside.requests) != write.answered:
        raise RevisionConflict(run_id, write.expected, revision, "a request stands that is not answered")
