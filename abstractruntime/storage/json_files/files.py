"""The file operations of a folder, one by one, and what their errors mean.

A small class of its own, so that a test can let the process die, or the disk fail, at each of them. An fsync that
failed is never repeated: the kernel may have dropped what it could not write. What it left is written anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...core.errors import StoreError, StoreUnclear
from ..sqlite.failures import translated_os

#: a name was not changed for sure when the system says one of these
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Files:
    """Reads, appends to and replaces files. With `durable` all that is written has reached the disk on return."""

    def __init__(self, *, durable: bool = True) -> None:
        self.durable = durable

    # -- the operations that may fail

    def open(self, path: Path, flags: int) -> int:
        """Open a file for writing."""
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o644)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file off, and go on at its end."""
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, size, os.SEEK_SET)

    def fsync(self, descriptor: int) -> None:
        """Wait until the file has reached the disk."""
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Let the source take the target's name, all at once."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Delete the file."""
        path.unlink()

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in the folder have reached the disk; does nothing where a folder cannot be opened."""
        if not hasattr(os, "O_DIRECTORY"):
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # -- what is made of them

    def read(self, path: Path, start: int = 0) -> bytes | None:
        """What is in the file from there on; None for no file. Raises StoreError."""
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: it cannot be read ({error}). Check the disk and the path.") from error

    def put(self, path: Path, data: bytes) -> None:
        """Replace the file, all at once, by way of a hidden one beside it.

        Raises StoreUnclear when it may or may not be replaced, another StoreError when it is not.
        """
        beside = path.with_name(f".{path.name}.tmp")
        try:
            descriptor = self.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                self.write(descriptor, data)
                if self.durable:
                    self.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            with suppress(OSError):  # it is in nobody's way, and opening the folder removes it
                self.unlink(beside)
            raise translated_os(error, path, "it cannot be written") from error
        self._clearly(path, lambda: self.replace(beside, path))

    def remove(self, path: Path) -> bool:
        """Delete the file; whether there was one. Raises StoreUnclear as `put` does."""
        if not os.path.exists(path):
            return False
        self._clearly(path, lambda: self.unlink(path))
        return True

    def append(self, path: Path, at: int, data: bytes) -> None:
        """Write behind the first `at` bytes of the file, in place of what is there.

        Raises StoreUnclear when it may or may not be there, another StoreError when it is not.
        """
        try:
            # one that is there and empty was made by an append that failed, which did not flush its name
            new = at == 0 or not os.path.exists(path)
            descriptor = self.open(path, os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            raise translated_os(error, path, "it cannot be written") from error
        try:
            self._write_at(descriptor, path, at, data)
            if self.durable:
                self._finally(path, lambda: self.fsync(descriptor))
        finally:
            os.close(descriptor)
        if self.durable and new:
            self._finally(path, lambda: self.sync_folder(path.parent))

    def _write_at(self, descriptor: int, path: Path, at: int, data: bytes) -> None:
        try:
            self.truncate(descriptor, at)
            self.write(descriptor, data)
        except OSError as error:
            try:
                self.truncate(descriptor, at)
            except OSError:
                raise _unclear(path, error) from error
            raise translated_os(error, path, "it cannot be written") from error

    def _clearly(self, path: Path, change: Callable[[], None]) -> None:
        """Change a name, and make that durable."""
        try:
            change()
        except OSError as error:
            if error.errno in _REFUSED:
                raise translated_os(error, path, "it cannot be written") from error
            raise _unclear(path, error) from error
        if self.durable:
            self._finally(path, lambda: self.sync_folder(path.parent))

    def _finally(self, path: Path, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OSError as error:
            raise _unclear(path, error) from error


def _unclear(path: Path, error: OSError) -> StoreUnclear:
    return StoreUnclear(
        f"{path}: the write may or may not survive ({error}). Look for it before writing again, and check the disk."
    )
