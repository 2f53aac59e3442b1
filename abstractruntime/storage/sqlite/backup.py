"""A copy of a database that is in use: taken in steps, checked, and put in its place whole or not at all."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

from ...core.errors import StoreClosed, StoreCorrupt, StoreError
from ...core.ids import new_id
from .failures import FROM_SQLITE, translated, translated_os
from .integrity import check, stop_at
from .statements import QUERIES

_DELETE_LEASES = QUERIES["delete_leases"]

#: pages per step: a mebibyte
_PAGES = 256

#: what SQLite keeps beside a database that is open, or was not closed
_BESIDE = ("-wal", "-shm", "-journal")


def check_target(path: str, target: Path, *, overwrite: bool) -> None:
    """Refuse a target that must not be written over. Raises FileExistsError, ValueError and StoreError."""
    if target.is_dir():
        raise StoreError(f"{target}: this is a folder. Name a file in it for the backup.")
    if target.exists() and os.path.samefile(path, target):
        raise ValueError(f"{target} is the database itself. Name another file for the backup.")
    for name in _BESIDE:
        if os.path.exists(f"{target}{name}"):
            raise StoreError(
                f"{target}: {target.name}{name} lies beside it: a database of this name is open or was not closed, "
                "and would spoil a backup put there. Choose another name, or close that database."
            )
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already. Choose another name, or call with overwrite=True.")


def back_up(source: sqlite3.Connection, path: str, target: Path, *, overwrite: bool, stop: Event) -> None:
    """Copy what `source` sees now to `target`, which appears, or is replaced, in one instant at the end."""
    draft = target.with_name(f".{target.name}.{new_id()[:12]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IMODE(os.stat(path).st_mode))
    except OSError as error:
        raise translated_os(error, target) from error
    os.close(descriptor)
    try:
        _copy(source, path, draft, stop)
        _finish(draft, path, stop)
        _flush(draft)
        _publish(draft, target, overwrite=overwrite)
        _flush(target.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise translated_os(error, target) from error
    finally:
        for name in ("", *_BESIDE):
            with suppress(FileNotFoundError):
                os.unlink(f"{draft}{name}")


def _copy(source: sqlite3.Connection, path: str, draft: Path, stop: Event) -> None:
    def go_on(status: int, remaining: int, total: int) -> None:
        if stop.is_set():
            raise StoreClosed(
                f"{path}: the backup was stopped, because the database was closed or the caller cancelled."
            )

    try:
        # One snapshot for all steps. Without it SQLite begins again whenever somebody commits, and in a busy database
        # never ends. It holds up nobody: writers go on behind it.
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except FROM_SQLITE as error:
        raise translated(error, path) from error
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # a draft that breaks off is thrown away, and flushed at the end
            copy.execute("PRAGMA synchronous = OFF")
            source.backup(copy, pages=_PAGES, progress=go_on)
    except FROM_SQLITE as error:
        raise _of_copying(error, path, draft) from error
    finally:
        source.rollback()


def _finish(draft: Path, path: str, stop: Event) -> None:
    """Make the draft a file that stands alone, in which nobody holds a run, and check it."""
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            stop_at(copy, stop)
            copy.execute("PRAGMA synchronous = OFF")
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute(_DELETE_LEASES)
            check(copy, str(draft), full=False)
    except FROM_SQLITE as error:
        raise _of_copying(error, path, draft) from error
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{path}: its copy failed the check, so the database itself is damaged. {error}") from error


def _of_copying(error: Exception, path: str, draft: Path) -> BaseException:
    """What an error means: it is the draft's, but what was just written is not damaged by itself."""
    damaged = isinstance(translated(error, path), StoreCorrupt)
    return translated(error, path if damaged else str(draft))


def _publish(draft: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(draft, target)
        return
    try:
        os.link(draft, target)  # unlike a renaming it fails when somebody else was faster
    except OSError as error:  # that, or a file system without hard links
        if target.exists():
            raise FileExistsError(
                f"{target} was made by somebody else during the backup; it was left alone."
            ) from error
        os.rename(draft, target)


def _flush(place: Path) -> None:
    if os.name == "nt" and place.is_dir():
        return
    descriptor = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
