"""Garbage collection: contents that no metadata file names, and drafts of writers that died.

Mark without holding anybody up, from the metadata files alone. Only if something is to go, take the turn of all
artifacts, look at what changed meanwhile, and sweep. A content that is stored again is touched, so its grace begins
anew. While a metadata file is damaged nobody knows what it names, and no content is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..drafts import DRAFT, abandoned, os_errors
from .disk import Place
from .locks import Turns
from .metas import Look, look

_BLOB = re.compile(r"([0-9a-f]{64})\.bin", re.ASCII)


def report(
    *,
    dry_run: bool,
    blobs_total: int = 0,
    blobs_referenced: int = 0,
    blobs_deleted: int = 0,
    bytes_reclaimed: int = 0,
    errors: Iterable[str] = (),
) -> dict[str, Any]:
    """The report of a collection."""
    return {
        "dry_run": dry_run,
        "blobs_total": blobs_total,
        "blobs_referenced": blobs_referenced,
        "blobs_deleted": blobs_deleted,
        "bytes_reclaimed": bytes_reclaimed,
        "errors": list(errors),
    }


def check_grace(grace_s: Any) -> None:
    """Raise ValueError for what is no number of seconds."""
    if not isinstance(grace_s, int | float) or not grace_s >= 0:
        raise ValueError(f"grace_s must be 0 or more seconds, found {grace_s!r:.80}.")


def collect(place: Place, turns: Turns, *, now: float, dry_run: bool, grace_s: float) -> dict[str, Any]:
    """Delete what nobody needs and what is older than the grace, `now` being seconds since 1970; the report."""
    check_grace(grace_s)
    old = now - grace_s
    first = look(place.refs, {})
    blobs = {found[1]: path for path in _files(place.blobs) if (found := _BLOB.fullmatch(path.name))}
    sweep = _Sweep(dry_run=dry_run)
    spare = _spare(blobs, first, old)
    drafts = [path for folder in (place.blobs, place.refs) for path in _files(folder) if _is_old_draft(path, old)]
    errors = _unaccounted(first)
    if dry_run:
        sweep.blobs(spare)
        sweep.drafts(drafts)
    elif spare or drafts:
        with turns.of_all():
            again = look(place.refs, first.seen)
            errors = _unaccounted(again)
            sweep.blobs(_spare(spare, again, old))
            sweep.drafts(drafts)
    return report(
        dry_run=dry_run,
        blobs_total=len(blobs),
        blobs_referenced=len(blobs.keys() & _named(first)),
        blobs_deleted=sweep.deleted,
        bytes_reclaimed=sweep.reclaimed,
        errors=[*errors, *sweep.errors],
    )


def _unaccounted(found: Look) -> list[str]:
    return [f"No content was deleted, because any may be meant: {error}" for error in found.damaged.values()]


def _named(found: Look) -> set[str | None]:
    return {seen.meta.blob_id for seen in found.seen.values()}


def _spare(blobs: dict[str, Path], found: Look, old: float) -> dict[str, Path]:
    """The contents that nobody names and that are old enough; none while anything is in doubt."""
    if found.damaged:
        return {}
    named = _named(found)
    return {blob_id: path for blob_id, path in blobs.items() if blob_id not in named and _touched(path) <= old}


def _is_old_draft(path: Path, old: float) -> bool:
    return path.name.endswith(DRAFT) and _touched(path) <= old


def _touched(path: Path) -> float:
    """When the file was last written to or touched; never, if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _files(folder: Path) -> list[Path]:
    with os_errors(folder):
        try:
            return list(folder.iterdir())
        except FileNotFoundError:  # nothing was stored yet
            return []


class _Sweep:
    """Deletes files and keeps count; what cannot be deleted is an error of the report."""

    def __init__(self, *, dry_run: bool) -> None:
        self._dry_run = dry_run
        self.deleted = self.reclaimed = 0
        self.errors: list[str] = []

    def blobs(self, spare: dict[str, Path]) -> None:
        """Delete contents."""
        for path in spare.values():
            self.deleted += self._delete(path)

    def drafts(self, drafts: Iterable[Path]) -> None:
        """Delete drafts, except those whose writers live."""
        for path in drafts:
            with abandoned(path) as left:
                if left:
                    self._delete(path)

    def _delete(self, path: Path) -> bool:
        try:
            size = path.stat().st_size
            if not self._dry_run:
                path.unlink()
        except OSError as error:
            self.errors.append(f"{path}: it cannot be deleted ({error}).")
            return False
        self.reclaimed += size
        return True
