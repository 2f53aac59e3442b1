"""A file of commands, one JSON object per line, as far as it was read: where each command begins, and its id."""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path
from typing import BinaryIO

import msgspec

from ...core.codec import REFUSALS
from .model import CommandRecord, damaged_command, decode_command


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line that is no command: the last number that was given before commands were deleted."""

    last_seq: int


class Lines:
    """What is known of the file: all of it up to `end`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.by_id: dict[str, int] = {}
        self.last = self.end = 0
        self._inode = inode
        self._seqs: list[int] = []
        self._starts: list[int] = []
        #: where the last line begins that was read, and the line: while it is there, the file was only added to
        self._latest = (0, b"")

    def catch_up(self, file: BinaryIO) -> bytes:
        """Read what was added, and return what stands behind the last whole line. Raises StoreCorrupt."""
        inode = os.fstat(file.fileno()).st_ino
        start, line = self._latest
        file.seek(start)
        if inode != self._inode or file.read(len(line)) != line:
            self._begin(inode)
        file.seek(self.end)
        for line in file:
            if not line.endswith(b"\n"):
                return line
            self.note(line)
        return b""

    def note(self, line: bytes) -> None:
        """Take a line as read: the one that begins at `end`."""
        found = self._decoded(line, self.end)
        if isinstance(found, Mark):
            self.last = max(self.last, found.last_seq)
        elif found.seq <= self.last:
            raise damaged_command(f"{self._path}, byte {self.end}", f"number {found.seq} comes after {self.last}")
        else:
            self.last = found.seq
            self.by_id[found.command_id] = found.seq
            self._seqs.append(found.seq)
            self._starts.append(self.end)
        self._latest = (self.end, line)
        self.end += len(line)

    def read(self, file: BinaryIO, after: int = 0, limit: int | None = None) -> list[CommandRecord]:
        """At most so many of the known commands numbered above `after`."""
        first = bisect_right(self._seqs, after)
        stop = len(self._seqs) if limit is None else min(first + limit, len(self._seqs))
        if first == stop:
            return []
        start = self._starts[first]
        file.seek(start)
        data = file.read((self.end if stop == len(self._seqs) else self._starts[stop]) - start)
        found = [self._decoded(line, start) for line in data.splitlines()]
        return [record for record in found if isinstance(record, CommandRecord)]

    def _decoded(self, line: bytes, start: int) -> CommandRecord | Mark:
        try:
            return _decode_mark(line)
        except REFUSALS:
            return decode_command(line, f"{self._path}, byte {start}")


_decode_mark = msgspec.json.Decoder(Mark).decode
