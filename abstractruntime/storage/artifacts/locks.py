"""Turns at artifacts: whoever changes one holds one of a few lock files; the artifact's id tells which.

Garbage collection holds them all, so that nobody is between finding a content and writing the metadata that refers
to it. Where there are no locks between processes, only the grace period of the collection protects other processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..turns import turn

#: lock files; so many artifacts may be changed at once
STRIPES = 32


class Turns:
    """The lock files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def of(self, artifact_id: str) -> Iterator[None]:
        """The turn of whoever changes this artifact."""
        with turn(self._path(zlib.crc32(artifact_id.encode()) % STRIPES)):
            yield

    @contextmanager
    def of_all(self) -> Iterator[None]:
        """The turn of all artifacts at once; in one order, so that two who want it do not wait for each other."""
        with ExitStack() as stack:
            for number in range(STRIPES):
                stack.enter_context(turn(self._path(number)))
            yield

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:02}.lock"
