"""Where the files of an artifact store lie, and how one is written so that it is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from ...core.ids import new_id
from ..sqlite.failures import translated_os
from .locks import share

Durability = Literal["full", "none"]

BLOB, META, DRAFT = ".bin", ".meta", ".part"


class Place:
    """The folders of one store. With `full` everything is flushed to the disk before it counts as written."""

    def __init__(self, base_dir: str | Path, durability: Durability) -> None:
        if durability not in ("full", "none"):
            raise ValueError(f'durability must be "full" or "none", found {durability!r}.')
        self.full = durability == "full"
        root = Path(base_dir).expanduser().absolute() / "artifacts"
        self.blobs, self.refs, self.locks = root / "blobs", root / "refs", root / "locks"
        self.catalog = root / "artifact_catalog.sqlite3"
        self._made = False

    def blob(self, blob_id: str) -> Path:
        """The file of a content."""
        return self.blobs / f"{blob_id}{BLOB}"

    def meta(self, artifact_id: str) -> Path:
        """The file of an artifact's metadata."""
        return self.refs / f"{artifact_id}{META}"

    def make(self) -> None:
        """Make the folders, once."""
        if not self._made:
            for folder in (self.blobs, self.refs, self.locks):
                with os_errors(folder, "the folder cannot be made"):
                    self._make(folder)
            self._made = True

    def flush(self, path: Path) -> None:
        """With `full`, flush a file or a folder to the disk."""
        if not self.full or (os.name == "nt" and path.is_dir()):
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            self.flush(path.parent)


class Draft:
    """A file under a name of its own until it is whole. Garbage collection leaves it alone while its writer lives."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        while True:
            self.path = folder / f".{new_id()}{DRAFT}"
            with os_errors(self.path):
                self._file = self.path.open("xb")
                share(self._file.fileno())
                if os.fstat(self._file.fileno()).st_nlink:
                    return
            self._file.close()  # collected in the instant between the two

    def write(self, data: bytes) -> None:
        """Add to the file."""
        with os_errors(self.path):
            self._file.write(data)

    def finish(self) -> None:
        """All is written: let it reach the disk."""
        with os_errors(self.path):
            self._file.flush()
            if self._place.full:
                os.fsync(self._file.fileno())

    def publish(self, goal: Path) -> None:
        """Give the finished file its name, in place of whatever had it, for good. Only in an artifact's turn."""
        with os_errors(goal):
            self._file.close()  # some systems rename no open file
            os.replace(self.path, goal)
            self._place.flush(goal.parent)

    def close(self) -> None:
        """Remove the file if it was not published."""
        with suppress(OSError):  # what a full disk did not take cannot be written by closing either
            self._file.close()
        with os_errors(self.path):
            self.path.unlink(missing_ok=True)


def write_file(place: Place, goal: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there. Raises StoreFull, StoreReadOnly and StoreError."""
    draft = Draft(place, goal.parent)
    try:
        draft.write(data)
        draft.finish()
        draft.publish(goal)
    finally:
        draft.close()


@contextmanager
def os_errors(path: Path, what: str = "it cannot be read or written") -> Iterator[None]:
    """Raise errors of the file system as errors of the store."""
    try:
        yield
    except OSError as error:
        raise translated_os(error, path, what) from error
