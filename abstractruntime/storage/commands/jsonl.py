"""Commands in a file of JSON lines, for any number of threads and processes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from ...core.codec import encode
from ...core.errors import InvalidId, StoreCorrupt, StoreUnclear
from ...core.ids import check_id, check_text
from ..drafts import Draft, flush, make_folder, os_errors
from ..turns import turn
from .aio import ThreadedCommandStore
from .lines import Lines, Mark
from .model import CommandAppendResult, CommandPage, CommandRecord, CommandStore, checked, checked_window, page_of

log = logging.getLogger("abstractruntime.storage.commands")


class JsonlCommandStore(CommandStore):
    """Commands in `base_dir/filename`, one JSON object per line; `.aio` is the same store for async callers.

    A command that was acknowledged has reached the disk. A line that its writer did not finish is cut off by the next
    append, with a warning; nothing behind it is lost. Any other damage is StoreCorrupt. What was read once is not read
    again: a store keeps the number, the place and the id of each command in memory.
    """

    def __init__(self, base_dir: str | Path, *, filename: str = "commands.jsonl") -> None:
        folder = Path(base_dir).expanduser().absolute()
        if check_id(filename, "filename").startswith("."):
            raise InvalidId(f"filename must not begin with a dot, found {filename!r}.")
        self._path = folder / filename
        self._lines = Lines(self._path)
        self._lock = threading.Lock()

    @property
    def aio(self) -> AsyncJsonlCommandStore:
        """This store for async callers."""
        return AsyncJsonlCommandStore._around(self)

    def append(self, record: CommandRecord) -> CommandAppendResult:
        """See `CommandStore.append`."""
        clean = checked(record)
        with self._changing():
            known = self._lines.by_id.get(clean.command_id)
            if known is not None:
                flush(self._path)  # whoever wrote it may have died before it was safe
                return CommandAppendResult(accepted=False, duplicate=True, seq=known)
            seq = self._lines.last + 1
            line = encode(replace(clean, seq=seq)) + b"\n"
            self._add(line)
            self._lines.note(line)
            return CommandAppendResult(accepted=True, duplicate=False, seq=seq)

    def list_after(self, *, after: int, limit: int = 1000) -> CommandPage:
        """See `CommandStore.list_after`."""
        after, limit = checked_window(after, limit)
        with self._reading() as file:
            return page_of(self._lines.read(file, after, limit) if file else [], after)

    def get_last_seq(self) -> int:
        """See `CommandStore.get_last_seq`."""
        with self._reading() as file:
            return self._lines.last if file else 0

    def delete_by_run(self, run_id: str) -> int:
        """See `DeletableCommandStore.delete_by_run`. The file is written anew."""
        check_text(run_id, "run_id")
        if not self._path.exists():
            return 0
        with self._changing() as file:
            records = self._lines.read(file)
            kept = [record for record in records if record.run_id != run_id]
            if len(kept) < len(records):
                self._replace([*kept, Mark(self._lines.last)])
            return len(records) - len(kept)

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO | None]:
        """The open file, read up to its end; None where there is none."""
        with self._lock, os_errors(self._path):
            try:
                file = self._path.open("rb")
            except FileNotFoundError:
                yield None
                return
            with file:
                self._lines.catch_up(file)  # what is torn at its end may be on its way just now
                yield file

    @contextmanager
    def _changing(self) -> Iterator[BinaryIO]:
        """The open file, read up to its end and whole there, while nobody else changes it."""
        make_folder(self._path.parent, durable=True)
        with self._lock, turn(self._path.with_name(f"{self._path.name}.lock")), os_errors(self._path):
            if not self._path.exists():
                self._path.touch()
                flush(self._path.parent)
            with self._path.open("rb") as file:
                torn = self._lines.catch_up(file)
                if torn:
                    self._mend(torn)
                yield file

    def _mend(self, torn: bytes) -> None:
        """A line that wants only its end gets it; any other that was not finished is cut off. Nobody was told of it."""
        with self._path.open("ab", buffering=0) as file:
            try:
                self._lines.note(torn + b"\n")
            except StoreCorrupt:
                log.warning("%s: cut off %d bytes of a command that was never finished", self._path, len(torn))
                file.truncate(self._lines.end)
            else:
                file.write(b"\n")
            os.fsync(file.fileno())

    def _add(self, line: bytes) -> None:
        """Write the line and let it reach the disk, or take it back."""
        with self._path.open("ab", buffering=0) as file:
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                self._take_back(file, error)
                raise

    def _take_back(self, file: FileIO, error: OSError) -> None:
        try:
            file.truncate(self._lines.end)
            os.fsync(file.fileno())
        except OSError:
            raise StoreUnclear(
                f"{self._path}: the command may or may not be there ({error}). Append it again under the same id."
            ) from error

    def _replace(self, lines: list[CommandRecord | Mark]) -> None:
        draft = Draft(self._path.parent, durable=True)
        try:
            for line in lines:
                draft.write(encode(line) + b"\n")
            draft.finish()
            draft.publish(self._path)
        finally:
            draft.close()


class AsyncJsonlCommandStore(ThreadedCommandStore):
    """`JsonlCommandStore` for async callers; `.sync` is the store itself, used in worker threads."""

    def __init__(self, base_dir: str | Path, *, filename: str = "commands.jsonl") -> None:
        super().__init__(JsonlCommandStore(base_dir, filename=filename))
