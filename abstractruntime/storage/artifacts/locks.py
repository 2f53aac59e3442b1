"""Turns at artifacts, across threads and processes: whoever changes one holds one of a few lock files.

An artifact's id tells which file. Garbage collection holds them all, so that nobody is between finding a content and
writing the metadata that refers to it. The kernel drops the locks of a process that dies. Where there is no `fcntl`,
the threads of one process take turns, and only the grace period of the collection protects those of others.
"""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..drafts import os_errors

if sys.platform != "win32":
    import fcntl

#: lock files; so many artifacts may be changed at once
STRIPES = 32

_ONLY_TURN = threading.RLock()


class Turns:
    """The lock files in one folder. Blocks until it is one's turn: not for the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def of(self, artifact_id: str) -> Iterator[None]:
        """The turn of whoever changes this artifact."""
        with self._held(zlib.crc32(artifact_id.encode()) % STRIPES):
            yield

    @contextmanager
    def of_all(self) -> Iterator[None]:
        """The turn of all artifacts at once; in one order, so that two who want it do not wait for each other."""
        with ExitStack() as stack:
            for number in range(STRIPES):
                stack.enter_context(self._held(number))
            yield

    @contextmanager
    def _held(self, number: int) -> Iterator[None]:
        if sys.platform == "win32":
            with _ONLY_TURN:
                yield
            return
        # A descriptor per turn: flock belongs to the open file, so threads keep each other out too.
        path = self._folder / f"{number:02}.lock"
        with os_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile shares the open file
        finally:
            os.close(descriptor)
