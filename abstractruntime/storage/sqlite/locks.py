"""An owner's lock: a file that the kernel unlocks when its process dies, however it dies.

One file per owner in a folder beside the database. `flock` belongs to the open file, so a second look from the same
process sees the lock too. Where there is no `fcntl`, the expiry of the lease alone tells who is dead.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from ...core.errors import StoreError
from ...core.ids import check_id
from .failures import translated_os

if sys.platform != "win32":
    import fcntl

HAVE_LOCKS = sys.platform != "win32"

#: path of every lock file that this process holds, and its descriptor
_HELD: dict[Path, int] = {}


class OwnerLocks:
    """The locks of the owners that work on one database. Blocks on file calls: not for the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, owner: str) -> None:
        """Hold the owner's lock until `release` or the end of the process; does nothing when it is held already."""
        path = self._path(owner)
        if not HAVE_LOCKS or path in _HELD:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise translated_os(error, path) from error
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise StoreError(f"{path}: another process holds the lock of owner {owner!r}. Owners must have unique ids.")
        _HELD[path] = descriptor

    def release(self, owner: str) -> None:
        """Give the lock up and remove its file."""
        path = self._path(owner)
        descriptor = _HELD.pop(path, None)
        if descriptor is not None:
            _remove(path)
            os.close(descriptor)

    def is_held(self, owner: str) -> bool:
        """Whether a living process, perhaps this one, holds the owner's lock; the file of a dead owner is removed."""
        path = self._path(owner)
        if not HAVE_LOCKS or path in _HELD:
            return True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise translated_os(error, path) from error
        try:
            if not _try_lock(descriptor):
                return True
            _remove(path)
            return False
        finally:
            os.close(descriptor)

    def _path(self, owner: str) -> Path:
        return self._folder / check_id(owner, "owner")


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # what is left of a dead owner is in nobody's way
        path.unlink()


def _let_go_after_fork() -> None:
    """The child shares the open files of its parent, and would keep its locks alive when the parent dies."""
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
