"""The border to sqlite3 and the file system: what their errors mean for a store."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from pathlib import Path

from ...core.errors import (
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreTooLarge,
    StoreUnclear,
    StoreVanished,
)

if sys.platform != "win32":
    import resource

#: what sqlite3 raises; the second where its own message would quote damaged text out of the file
FROM_SQLITE = (sqlite3.Error, UnicodeDecodeError)

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
#: extended codes of SQLITE_IOERR that say that the content is wrong and not the disk: DATA and CORRUPTFS
_CORRUPT_EXTENDED = {sqlite3.SQLITE_IOERR | 32 << 8, sqlite3.SQLITE_IOERR | 33 << 8}
#: SQLITE_READONLY_DBMOVED
_MOVED = sqlite3.SQLITE_READONLY | 4 << 8
#: SQLITE_IOERR_WRITE
_WRITE_FAILED = sqlite3.SQLITE_IOERR | 3 << 8
_ADVICE = {
    sqlite3.SQLITE_IOERR: "the disk could not be read or written; check it and the permissions of the folder",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check its permissions and how many files are open",
    sqlite3.SQLITE_PERM: "the file may not be opened; check its permissions",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
}
#: what SQLite says when the reason is to be found in the file system
_LOOK = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_FULL_ERRNO = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY_ERRNO = {errno.EROFS, errno.EACCES, errno.EPERM}

#: a disk with less is full: the index of a log alone takes half of it
_ROOM = 65_536

_MAKE_ROOM = "the disk is full; nothing was written. Make room and try again"
_UNREADABLE = "this is no readable SQLite database"
_ALLOW = "nothing was written. Give this process write permission to the file and its folder, and try again"


def translated(error: BaseException, path: str) -> BaseException:
    """The `StoreError` that says what an error of sqlite3 means for this file; any other error as it is."""
    if isinstance(error, UnicodeDecodeError):
        return caused(StoreCorrupt(f"{path}: {_UNREADABLE} ({error}). Restore it from a backup."), error)
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    return caused(_meaning(code, error, path), error)


def translated_os(error: OSError, path: Path | str, what: str = "it cannot be made or opened") -> StoreError:
    """The `StoreError` that says what an error of the file system means for a file or folder of the store."""
    found: StoreError
    if error.errno in _FULL_ERRNO:
        found = StoreFull(f"{path}: {_MAKE_ROOM} ({error}).")
    elif error.errno in _READ_ONLY_ERRNO:
        found = StoreReadOnly(f"{path}: {what}; {_ALLOW} ({error}).")
    else:
        found = StoreError(f"{path}: {what}; nothing was written ({error}). Check the path.")
    return caused(found, error)


def commit_failed(error: Exception, path: str) -> StoreError:
    """What a failing COMMIT means: nothing was written when there was no room for it, else it is unclear.

    The frame that makes a transaction count is the last one written to the log, before it is flushed. So a commit
    that could not be written never landed; one whose flush failed may be there after a crash.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    found = translated(error, path)
    if (code & 0xFF == sqlite3.SQLITE_FULL or code == _WRITE_FAILED) and isinstance(found, StoreFull | StoreReadOnly):
        return found
    text = f"{path}: the commit may or may not have landed ({error}). Look for it before writing again."
    return caused(StoreUnclear(text), error)


def given_up(error: BaseException, path: str) -> StoreError:
    """SQLite rolled a whole transaction back because of one statement's error: the same for all of its members."""
    kind = type(error) if isinstance(error, StoreFull | StoreReadOnly | StoreCorrupt) else StoreError
    return caused(kind(f"{path}: SQLite gave up the transaction; nothing was written ({error})."), error)


def caused(error: StoreError, cause: BaseException) -> StoreError:
    """The error, with its cause as `raise ... from` would set it."""
    error.__cause__ = cause
    return error


def check_writable(path: str) -> None:
    """Raise StoreReadOnly unless SQLite may write to the file, to those beside it and to their folder.

    Asked before a connection is opened: SQLite opens a read-only file without a word, and a connection that began
    read-only stays so when the permission is back.
    """
    if Path(path).is_dir():
        raise StoreError(f"{path}: this is a folder and cannot be opened as a database. Name a file in it.")
    for place in (str(Path(path).parent), path, f"{path}-wal", f"{path}-shm"):
        if _is_locked(place):
            raise StoreReadOnly(f"{path}: {place} may not be written to; {_ALLOW}.")


def _meaning(code: int | None, error: Exception, path: str) -> StoreError:
    primary = None if code is None else code & 0xFF
    if primary in _BUSY:
        return StoreBusy(
            f"{path}: another process kept the database locked for longer than busy_timeout ({error}). Nothing was "
            "written. Look for a process that holds a transaction open, or raise busy_timeout."
        )
    if primary in _CORRUPT or code in _CORRUPT_EXTENDED:
        return StoreCorrupt(f"{path}: {_UNREADABLE} ({error}). Restore it from a backup.")
    if code == _MOVED:
        return vanished(path)
    if primary == sqlite3.SQLITE_INTERRUPT:
        return StoreClosed(f"{path}: stopped half-way, because the database was closed or the caller cancelled.")
    if primary == sqlite3.SQLITE_FULL:
        return StoreFull(f"{path}: {_MAKE_ROOM} ({error}).")
    if primary == sqlite3.SQLITE_READONLY:
        return StoreReadOnly(f"{path}: the file or its folder may not be written to; {_ALLOW} ({error}).")
    if primary == sqlite3.SQLITE_TOOBIG:
        return StoreTooLarge(
            f"{path}: a value is larger than SQLite can store ({error}); nothing was written. Keep it outside, in an "
            "artifact or a file, and store what names it."
        )
    if primary in _LOOK:
        found = _seen_in_the_file_system(path)
        if found is not None:
            return found
    advice = _ADVICE.get(primary or 0, "the database refused it")
    return StoreError(f"{path}: {advice} ({error}{f', code {code}' if code else ''}).")


def vanished(path: str) -> StoreVanished:
    """The error of a file that is not where it was opened."""
    return StoreVanished(
        f"{path}: the file that was opened here was deleted or replaced, so nothing more is written to it. Put it or "
        "a backup in its place, close this SqliteDatabase and open a new one."
    )


def _seen_in_the_file_system(path: str) -> StoreError | None:
    """SQLite says only that a file could not be opened, read or written; the reason may be plain to see."""
    try:
        check_writable(path)
        room = _room(Path(path).parent)
        longest = max(os.stat(name).st_size for name in (path, f"{path}-wal") if os.path.exists(name))
    except StoreError as error:
        return error
    except (OSError, ValueError):
        return None
    if room is not None and room < _ROOM:
        return StoreFull(f"{path}: {_MAKE_ROOM} ({room} bytes are left).")
    limit = _file_size_limit()
    if limit is not None and longest > limit - _ROOM:
        return StoreFull(
            f"{path}: nothing was written, for a file may have {limit} bytes here. Raise the limit (ulimit -f)."
        )
    return None


def _room(folder: Path) -> int | None:
    """Bytes left on the disk, where that can be asked. What shutil.disk_usage does, without its import."""
    if sys.platform == "win32":
        return None
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _file_size_limit() -> int | None:
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _is_locked(place: str) -> bool:
    """Whether it is there and may not be written to; what is beside a database may come and go meanwhile."""
    return not _may_write(place) and os.path.exists(place) and not _may_write(place)


def _may_write(place: str) -> bool:
    return os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
