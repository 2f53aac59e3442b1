"""Finds damage in a write-ahead log before SQLite reads it.

SQLite takes the log up to the first frame whose checksum is wrong and forgets the rest, which is right for a
transaction that a power failure cut short: only the last one can be. With damage further up it would forget
transactions that had been acknowledged, without a word. Each frame's checksum builds on the one before, so whether
whole transactions follow a damaged one can be told.

Only for logs that are flushed with every commit: without that a power failure may leave holes as a matter of course.
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

from ...core.errors import StoreCorrupt

#: a longer log is left to SQLite: reading this one takes a slow machine about a second
_MOST_BYTES = 16 << 20

#: a log that another process writes to may look damaged at one glance, not at all of them
_GLANCES = 3

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_MASK = 0xFFFFFFFF

Sums = tuple[int, int]


def check_log(path: str) -> None:
    """Raise StoreCorrupt if the log beside this database holds whole transactions that SQLite would forget."""
    log = Path(f"{path}-wal")
    for _ in range(_GLANCES):
        if not _is_damaged(log):
            return
    raise StoreCorrupt(
        f"{log}: the write-ahead log is damaged, and opening {path} would lose commits that follow the damage. Keep a "
        "copy of both files; then restore a backup, or delete the log to go on without anything that it holds."
    )


def _is_damaged(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            head = file.read(_HEADER.size)
            size = log.stat().st_size
            if len(head) < _HEADER.size or size > _MOST_BYTES:
                return False
            found = _has_gap(file, head, size)
            file.seek(0)
            return found and file.read(_HEADER.size) == head  # else it was begun anew meanwhile
    except OSError:  # there is none; or SQLite will meet the same, and say so
        return False


def _has_gap(file: BinaryIO, head: bytes, size: int) -> bool:
    magic, _, page_size, _, *salt, sum1, sum2 = _HEADER.unpack(head)
    big = bool(magic & 1)
    whole = 512 <= page_size <= 65_536 and size >= _HEADER.size + _FRAME.size + page_size
    if magic & ~1 != _MAGIC or _sums(head[:24], (0, 0), big) != (sum1, sum2):
        return size > _HEADER.size + _FRAME.size + 512  # the header is flushed before the first frame is written
    if not whole:
        return False
    before: Sums = (sum1, sum2)
    broken = ended = False  # a frame was wrong; and the transaction that it belongs to has ended
    while True:
        frame, page = file.read(_FRAME.size), file.read(page_size)
        if len(page) < page_size:
            return False
        _, commit, salt1, salt2, *stored = _FRAME.unpack(frame)
        if [salt1, salt2] != salt and not broken:
            broken = True  # the end of the log, or a frame whose head is damaged
        elif [salt1, salt2] == salt:
            right = _sums(page, _sums(frame[:8], before, big), big) == tuple(stored)
            if right and ended and commit:
                return True
            broken = broken or not right
            ended = ended or (broken and bool(commit))
        before = (stored[0], stored[1])


def _sums(data: bytes, before: Sums, big: bool) -> Sums:
    words = array("I", data)
    if big != (sys.byteorder == "big"):
        words.byteswap()
    first, second = before
    pairs = iter(words)
    for one, two in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second
