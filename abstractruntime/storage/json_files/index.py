"""What is known of the runs of a folder, so that a listing does not read every file again."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ...core.clock import SYSTEM_CLOCK, epoch_micros, micros
from ...core.codec import encode_run
from ...core.errors import StoreCorrupt
from ...core.models import TERMINAL, Request, RunState
from ..listing import asks_of
from ..sqlite.failures import translated_os
from ..standing import Standings, standing_of
from ..streams import hearing_of
from .files import Files
from .names import id_of_run_file, run_file
from .texts import Addressed, Beside, Pending, read_run

log = logging.getLogger("abstractruntime.storage")

_Stamp = tuple[int, int, int]


class Row:
    """A stored run: its guards, and the narrow part of it that listings look at."""

    __slots__ = (
        "beside",
        "commit_id",
        "dirty",
        "ended",
        "hearing",
        "narrow",
        "number",
        "owes",
        "revision",
        "root",
        "stamp",
        "tokens",
        "unsure",
    )

    def __init__(self, run: RunState, beside: Beside, number: int, stamp: _Stamp | None = None) -> None:
        self.number, self.stamp = number, stamp
        self.revision, self.commit_id = run.revision, run.commit_id
        self.ended = run.status in TERMINAL
        self.root, self.tokens = run.root_run_id, run.tokens
        self.narrow = encode_run(_narrow(run))
        self.hearing = hearing_of(run)
        #: as in the file; requests that came in since are in it while `dirty`
        self.beside = beside
        self.dirty = False
        #: whether the file as it is may not survive, because a flush failed
        self.unsure = False
        #: the runs whose files must have this run's requests before its next commit forgets them
        self.owes: tuple[str, ...] = ()

    def ask(self, request: Request, commit_id: str) -> None:
        """Let a request stand here, unless it came in before, one of its kind stands, or the run has ended."""
        name = f"{commit_id}:{request.kind}"
        beside = self.beside
        if self.ended or name in beside.asked or any(other.kind == request.kind for other in beside.requests):
            return
        self.beside = replace(beside, requests=(*beside.requests, request), asked=(*beside.asked, name))
        self.dirty = True

    def take(self, addressed: Addressed, pending: Pending) -> None:
        """Let a request of another run's commit stand here, if it was meant for this very run."""
        if addressed.number == self.number:
            self.ask(addressed.request, pending.commit_id or "")


class Index:
    """The rows of a folder, by run id, and the files that cannot be read, by name."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self.rows: dict[str, Row] = {}
        self.standings = Standings()
        self.damaged: dict[str, StoreCorrupt] = {}
        self._last = 0
        self._known: dict[str, str] = {}

    def next_number(self) -> int:
        """The number of a new run: above all others, and never again that of a run that was deleted."""
        self._last = max(self._last + 1, epoch_micros(SYSTEM_CLOCK.now()))
        return self._last

    def refresh(self) -> None:
        """Read what is new or changed since the last time. Raises StoreError for a folder that cannot be read."""
        found: dict[str, os.DirEntry[str]] = {}
        try:
            with os.scandir(self._folder) as entries:
                found = {entry.name: entry for entry in entries if id_of_run_file(entry.name) is not None}
        except FileNotFoundError:
            pass  # no folder yet, no runs
        except OSError as error:
            raise translated_os(error, self._folder, "the folder cannot be read") from error
        for name in self._known.keys() - found.keys():
            self._forget(self._known.pop(name))
        for name in self.damaged.keys() - found.keys():
            del self.damaged[name]
        fresh = [(name, *read) for name, entry in found.items() if (read := self._read(name, _stamp(entry)))]
        # what has no number is sorted in by when it was created
        for name, run, beside, stamp in sorted(fresh, key=lambda one: _place(one[1], one[2])):
            old = self.rows.get(run.run_id)
            number = beside.number or (old.number if old is not None else max(self._last + 1, _created(run)))
            self._last = max(self._last, number)
            self._take(run, Row(run, beside, number, stamp))
            self._known[name] = run.run_id

    def reread(self, name: str) -> None:
        """Forget what is known of a file of this name, and read it anew."""
        row = self._forget(self._known.pop(name, ""))
        self.damaged.pop(name, None)
        read = self._read(name, None)
        if read is not None:
            run, beside, _ = read
            number = beside.number or (row.number if row is not None else self.next_number())
            self.put(run, beside, number)

    def put(self, run: RunState, beside: Beside, number: int) -> Row:
        """Take in what was written to the run's file."""
        row = Row(run, beside, number)
        self._take(run, row)
        self._known[run_file(run.run_id)] = run.run_id
        return row

    def drop(self, run_id: str) -> None:
        """Take out a run that was deleted."""
        name = run_file(run_id)
        self._forget(run_id)
        self._known.pop(name, None)
        self.damaged.pop(name, None)

    def _take(self, run: RunState, row: Row) -> None:
        self.rows[run.run_id] = row
        self.standings.put(run.run_id, standing_of(run))

    def _forget(self, run_id: str) -> Row | None:
        self.standings.drop(run_id)
        return self.rows.pop(run_id, None)

    def recheck(self) -> None:
        """Look again at the files that could not be read. Raises StoreCorrupt naming those that still cannot."""
        for name in list(self.damaged):
            self.reread(name)
        if self.damaged:
            errors = list(self.damaged.values())
            more = f" And {len(errors) - 1} more files of this folder are damaged." if len(errors) > 1 else ""
            raise StoreCorrupt(f"{errors[0]}{more} Runs of other files can be loaded; to list them, move it away.")

    def in_order(self) -> list[tuple[int, str, bytes]]:
        """Number, id and narrow bytes of all runs, the newest first."""
        rows = {run_id: (row.number, run_id, row.narrow) for run_id, row in self.rows.items()}
        last = self._last
        for run in self._left_behind():
            last += 1
            number = rows[run.run_id][0] if run.run_id in rows else last
            rows[run.run_id] = (number, run.run_id, encode_run(_narrow(run)))
        return sorted(rows.values(), reverse=True)

    def left_behind(self, run_id: str) -> RunState | None:
        """The run as another run's commit has left it, where that is not in its own file yet."""
        return next((run for run in self._left_behind() if run.run_id == run_id), None)

    def _left_behind(self) -> list[RunState]:
        found = []
        for sender in self.rows.values():
            for run in () if sender.beside.pending is None else sender.beside.pending.also:
                row = self.rows.get(run.run_id)
                if row is None or row.revision < run.revision:
                    found.append(run)
        return found

    def with_requests(self, run: RunState, beside: Beside) -> Row:
        """A row of the run with the requests that other runs' files have for it."""
        row = Row(run, beside, beside.number or self._created_as(run.run_id))
        for other in self.rows.values():
            pending = other.beside.pending
            for addressed in () if pending is None else pending.requests:
                if pending is not None and addressed.request.run_id == run.run_id:
                    row.take(addressed, pending)
        return row

    def _created_as(self, run_id: str) -> int:
        row = self.rows.get(run_id)
        return 0 if row is None else row.number

    def _read(self, name: str, stamp: _Stamp | None) -> tuple[RunState, Beside, _Stamp | None] | None:
        """What the file holds, unless it is known already or cannot be read."""
        row = self.rows.get(self._known.get(name, ""))
        if row is not None and stamp is not None and row.stamp == stamp:
            return None
        path = self._folder / name
        try:
            text = self._files.read(path)
            if text is None:  # deleted meanwhile
                return None
            run, beside = read_run(text, path)
            if run_file(run.run_id) != name:
                raise StoreCorrupt(f"{path}: it holds run {run.run_id!r}, whose file is {run_file(run.run_id)}.")
        except StoreCorrupt as error:
            self.damaged[name] = error
            self._forget(self._known.pop(name, ""))
            return None
        self.damaged.pop(name, None)
        return run, beside, stamp


def sweep(folder: Path) -> None:
    """Remove what writes left that did not come to their end."""
    for path in (*folder.glob(".run_*.json.tmp"), *folder.glob(".ledger_*.jsonl.tmp")):
        try:
            path.unlink()
        except OSError as error:
            log.warning("%s: a file that a crash left cannot be removed (%s)", path, error)


def _stamp(entry: os.DirEntry[str]) -> _Stamp | None:
    try:
        found = entry.stat()
    except OSError:  # whoever reads the file is told why
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _place(run: RunState, beside: Beside) -> tuple[int, str]:
    return beside.number or _created(run), run.run_id


def _created(run: RunState) -> int:
    try:
        return max(1, micros(run.created_at))
    except ValueError:  # of a run that others wrote, anything may be in it
        return 1


def _narrow(run: RunState) -> RunState:
    vars: dict[str, Any] = {}
    if run.paused:
        vars["_runtime"] = {"control": {"paused": True}}
    if run.vars.get("_run_lifecycle") is not None:
        vars["_run_lifecycle"] = run.vars["_run_lifecycle"]
    asking = run.intent if asks_of(run) else None
    return replace(run, vars=vars, output=None, intent=asking)
