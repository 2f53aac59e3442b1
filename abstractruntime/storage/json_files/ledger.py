"""One ledger file: where its records begin, what a crash left at its end, and how it grows.

A record is a line. The end of the file may be torn: an append that a crash cut off is no record, and is cut off before
the next one is written. What is damaged and cannot come from such a crash is StoreCorrupt, and nothing is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ...core.codec import fill
from ...core.errors import StoreCorrupt, StoreUnclear
from ...core.models import StepRecord
from .files import Files
from .texts import Beside, Line, lines_of, read_line

log = logging.getLogger("abstractruntime.storage")


class Ledger:
    """The ledger of one run as it is in its file, with the lines that belong there and are not there yet."""

    def __init__(
        self, files: Files, path: Path, run_id: str, beside: Beside | None, *, unsure: bool = False, owned: bool = True
    ) -> None:
        self._files, self._path, self._run_id = files, path, run_id
        #: where each record begins, and where the last one ends
        self._starts: list[int] = []
        self._end = 0
        self._open_ended = False
        #: what a commit wrote into the run's file and not here yet
        self._missing: list[bytes] = []
        #: whether what the file holds may not have reached the disk
        self._unsure = unsure
        #: whether the file must be looked at again, by a new object, because a write of it is unclear
        self.stale = False
        self.head: str | None = None
        data = files.read(path) or b""
        bad = self._scan(data)
        self._reconcile(beside or Beside(), bad)
        #: says what a crash left at its end
        self.torn = ""
        if self._end < len(data):
            self.torn = f"its last {len(data) - self._end} bytes are what a crash left of an append; they are no record"
            # of another process it may be an append under way
            log.log(logging.WARNING if owned else logging.DEBUG, "%s: %s", path, self.torn)

    @property
    def count(self) -> int:
        """How many records there are."""
        return len(self._starts) + len(self._missing)

    @property
    def settled(self) -> bool:
        """Whether all records are in the file and have reached the disk."""
        return not self._missing and not self._unsure

    def settle(self) -> None:
        """Write what is not there yet, and anew what may not have reached the disk."""
        if self._missing:
            self._write([])
        if self._unsure:
            data = (self._files.read(self._path) or b"")[: self._end]
            try:
                self._files.put(self._path, data)
            except StoreUnclear:
                self.stale = True
                raise
            self._unsure = False

    def append(self, records: Sequence[StepRecord], lookup_key: str | None = None) -> None:
        """Add records, all or none. Raises StoreUnclear when that cannot be said, another StoreError for none."""
        self._write(lines_of(tuple(records), lookup_key, together=True))
        self.head = records[-1].record_hash

    def owe(self, records: Sequence[StepRecord], lookup_key: str | None, head: str | None) -> None:
        """Take in records that a commit of the run's file wrote; `settle` writes them here."""
        self._missing += lines_of(tuple(records), lookup_key)
        self.head = head

    def records(self, after: int = 0, limit: int | None = None) -> list[StepRecord]:
        """Records numbered above `after`, oldest first."""
        found = [record for record, _ in self._read(after, limit)]
        fill(found, lambda: reversed([record for record, _ in self._read(0, after)]))
        return found

    def find(self, lookup_key: str) -> list[StepRecord]:
        """The records of commits with this key, oldest first."""
        everything = self._read(0, None)
        fill([record for record, _ in everything], tuple)
        return [record for record, line in everything if line.lookup == lookup_key]

    def _read(self, after: int, limit: int | None) -> list[tuple[StepRecord, Line]]:
        last = self.count if limit is None else min(self.count, after + limit)
        if after >= last:
            return []
        start = self._starts[after] if after < len(self._starts) else self._end
        end = self._starts[last] if last < len(self._starts) else self._end
        data = (self._files.read(self._path, start) or b"")[: end - start]
        lines = [line for line in data.split(b"\n") if line.strip()]
        lines += [line[:-1] for line in self._missing[max(0, after - len(self._starts)) :]]
        found = []
        for number, line in enumerate(lines[: last - after], after + 1):
            try:
                found.append(read_line(line))
            except ValueError as error:
                raise self._corrupt(f"record {number} cannot be read: {error}") from error
        if len(found) != last - after:
            raise self._corrupt(f"it has fewer than the {self.count} records that were written")
        return found

    def _write(self, lines: list[bytes]) -> None:
        some = [*self._missing, *lines]
        gap = b"\n" if self._open_ended else b""
        try:
            self._files.append(self._path, self._end, gap + b"".join(some))
        except StoreUnclear:
            self.stale = True
            raise
        self._end += len(gap)
        for line in some:
            self._starts.append(self._end)
            self._end += len(line)
        self._open_ended, self._missing = False, []

    # -- looking at the file

    def _scan(self, data: bytes) -> str | None:
        """Find the good records; what is wrong behind them, unless it is what a crash leaves."""
        position, group = 0, 0
        for number, text in enumerate(data.split(b"\n"), 1):
            start, position = position, position + len(text) + 1
            if not text.strip():
                continue
            try:
                record, line = read_line(text)
                if line.run_id != self._run_id:
                    raise ValueError(f"it is of run {line.run_id!r}")
                group = self._next_of_group(group, line.part)
            except ValueError as error:
                self._cut(group)
                wrong = f"line {number}: {error}"
                if _any_good(data[position:]):
                    raise self._corrupt(f"{wrong}. Good lines follow, so no crash did it") from error
                return None if position > len(data) or b"\0" in data[start:] else wrong
            self._starts.append(start)
            self._end = min(position, len(data))
            self._open_ended = position > len(data)
            self.head = record.record_hash
        self._cut(group)
        return None

    def _next_of_group(self, group: int, part: tuple[int, int] | None) -> int:
        """How many lines of a group that is not complete there are with this one."""
        number, of = part or (1, 1)
        if number != group + 1:
            raise ValueError(f"it is part {number} of {of} and stands behind part {group}")
        return 0 if number == of else number

    def _cut(self, group: int) -> None:
        """Take back the first lines of a group that did not become complete."""
        if group:
            self._end, self._open_ended = self._starts[-group], False
            del self._starts[-group:]
            self.head = self._read(len(self._starts) - 1, 1)[0][0].record_hash if self._starts else None

    def _reconcile(self, beside: Beside, bad: str | None) -> None:
        """Compare with what the run's file says, which also has the last records."""
        known, there = beside.records or 0, len(self._starts)
        pending = beside.pending
        lines = lines_of(pending.records, pending.lookup_key) if pending is not None else []
        if there < known - len(lines):
            raise self._corrupt(bad or f"it has {there} records, and the run's file says {known}")
        if bad is not None and there >= known:
            raise self._corrupt(bad)
        if there < known:
            self._missing = lines[there - known :]
        if there <= known and beside.records is not None:
            self.head = beside.chain_head

    def _corrupt(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self._path}: {what}. Nothing was changed. Restore the file from a backup; the ledgers of other runs are "
            "not affected."
        )


def _any_good(data: bytes) -> bool:
    for text in data.split(b"\n"):
        try:
            read_line(text)
        except ValueError:
            continue
        return True
    return False
