"""Drafts: files that get their name when they are whole, so that a reader finds all of a file or the one before.

A draft is locked while its writer lives. The kernel drops the lock of a process that dies, so what it left behind is
known for what it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import StoreUnclear
from ..core.ids import new_id
from .sqlite.failures import translated_os

if sys.platform != "win32":
    import fcntl

#: how the names of drafts end
DRAFT = ".part"


class Draft:
    """A file under a name of its own, to be written, finished, published and closed, in this order.

    With `durable` it is flushed to the disk before it gets its name, and its folder afterwards. Every method raises
    StoreFull, StoreReadOnly or StoreError, and then nothing has changed under the final name.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._durable = durable
        while True:
            self.path = folder / f".{new_id()}{DRAFT}"
            with os_errors(self.path):
                self._file = self.path.open("xb")
                _lock(self._file.fileno())
                if os.fstat(self._file.fileno()).st_nlink:
                    return
            self._file.close()  # taken for a dead writer's in the instant between the two

    def write(self, data: bytes) -> None:
        """Add to the file."""
        with os_errors(self.path):
            self._file.write(data)

    def finish(self) -> None:
        """All is written: let it reach the disk."""
        with os_errors(self.path):
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())

    def publish(self, goal: Path) -> None:
        """Give the file its name, in place of whatever had it.

        Its lock ends here. Raises StoreUnclear when it has the name, but perhaps not for good.
        """
        with os_errors(goal):
            self._file.close()  # some systems rename no open file
            os.replace(self.path, goal)
        try:
            if self._durable:
                flush(goal.parent)
        except OSError as error:
            raise StoreUnclear(
                f"{goal}: it was written, but may be gone when the machine loses power now ({error}). Write it again."
            ) from error

    def close(self) -> None:
        """Remove the file if it was not published."""
        with suppress(OSError):  # what a full disk did not take cannot be written by closing either
            self._file.close()
        with os_errors(self.path):
            self.path.unlink(missing_ok=True)


def write_file(goal: Path, data: bytes, *, durable: bool) -> None:
    """Write a file whole, or leave what was there. Raises as `Draft` does."""
    draft = Draft(goal.parent, durable=durable)
    try:
        draft.write(data)
        draft.finish()
        draft.publish(goal)
    finally:
        draft.close()


def make_folder(folder: Path, *, durable: bool) -> None:
    """Make a folder and those above it where they are missing."""
    with os_errors(folder, "the folder cannot be made"):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing if durable else ():
            flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def abandoned(draft: Path) -> Iterator[bool]:
    """Whether a draft is there and nobody alive writes it; nobody begins to meanwhile."""
    with os_errors(draft):
        try:
            descriptor = os.open(draft, os.O_RDWR)
        except FileNotFoundError:  # it was published or removed
            yield False
            return
    try:
        yield _reserve(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(path: Path, what: str = "it cannot be read or written") -> Iterator[None]:
    """Raise errors of the file system as errors of the store."""
    try:
        yield
    except OSError as error:
        raise translated_os(error, path, what) from error


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _reserve(descriptor: int) -> bool:
    """Whether nobody holds the file; then it is held by the caller until it is closed."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
