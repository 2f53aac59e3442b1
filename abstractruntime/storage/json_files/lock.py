"""The lock of a folder: one process writes. It is a file that the kernel unlocks when its process dies, however.

The file says who holds it. Where there is no `fcntl`, nothing is locked.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from weakref import WeakSet

from msgspec import Struct

from ...core.clock import utc_now_iso
from ...core.codec import REFUSALS, decode, encode
from ...core.errors import StoreError
from ..sqlite.failures import translated_os

if sys.platform != "win32":
    import fcntl

NAME = ".abstractruntime.lock"

_LOCKS: WeakSet[FolderLock] = WeakSet()


class _Holder(Struct):
    pid: int
    host: str
    since: str


class FolderLock:
    """Held from `take` until the object or the process is gone. Blocks on file calls: not for the event loop."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor: int | None = None
        _LOCKS.add(self)

    @property
    def taken(self) -> bool:
        """Whether this object took it, and may still hold it."""
        return self._descriptor is not None

    def held(self) -> bool:
        """Whether this object holds it: not when the file was deleted or replaced, with its folder or alone."""
        if self._descriptor is None:
            return False
        try:
            there, ours = os.stat(self._path), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise translated_os(error, self._path) from error
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def take(self) -> None:
        """Hold it, or raise a StoreError that names who does."""
        self.let_go()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise translated_os(error, self._path, "the folder cannot be locked") from error
        try:
            if not _try_lock(descriptor):
                raise StoreError(
                    f"{self._path.parent}: {_holder(descriptor)} writes to this folder, and one process may. Nothing "
                    "was written. Stop that process, or use a SqliteDatabase, which many processes may share."
                )
            holder = _Holder(os.getpid(), socket.gethostname(), utc_now_iso())
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, encode(holder) + b"\n")
        except OSError as error:
            os.close(descriptor)
            raise translated_os(error, self._path, "the folder cannot be locked") from error
        except StoreError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def let_go(self) -> None:
        """Hold it no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.let_go()


def _holder(descriptor: int) -> str:
    """Who says in the file that it holds the lock."""
    try:
        found = decode(os.read(descriptor, 1_000))
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (OSError, KeyError, *REFUSALS):
        return "another process"


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go_after_fork() -> None:
    """The child shares the open file of its parent: it holds nothing, and must not keep the lock alive."""
    for lock in _LOCKS:
        lock.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
