"""Turns across threads and processes: whoever holds a lock file has it. The kernel takes it from a process that dies.

Where there is no `fcntl`, only the threads of one process take turns.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .drafts import os_errors

if sys.platform != "win32":
    import fcntl

_ONLY_TURN = threading.RLock()


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for the lock file at `path`, which is made when it is missing, and hold it. Not for the event loop.

    A thread that holds it must not ask for it again.
    """
    if sys.platform == "win32":
        with _ONLY_TURN:
            yield
        return
    # A descriptor of its own: the lock belongs to the open file, so threads keep each other out too.
    with os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile shares the open file
    finally:
        os.close(descriptor)
