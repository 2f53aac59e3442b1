"""Snapshots as JSON files, one each, written whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...core.codec import encode
from ...core.errors import StoreCorrupt, StoreUnclear
from ..base import checked_limit
from ..drafts import flush, make_folder, os_errors, write_file
from .base import SnapshotStore, newest_created_first, snapshot_filter
from .model import Snapshot, admitted, check_snapshot_id, decode_snapshot
from .threaded import ThreadedSnapshotStore

log = logging.getLogger("abstractruntime.storage")

_PREFIX, _SUFFIX = "snapshot_", ".json"


class JsonSnapshotStore(SnapshotStore):
    """Snapshots in a folder, as `snapshot_<id>.json`. Usable from threads and processes at once.

    The folder is made by the first `save`. A file is durable when `save` returns, and a crash leaves the old one or the
    new one. A file that cannot be read raises `StoreCorrupt` in `load`; `list` warns of it and gives the others.
    """

    def __init__(self, base_dir: str | Path) -> None:
        self.base_dir = Path(base_dir).expanduser()

    @property
    def aio(self) -> AsyncJsonSnapshotStore:
        """This store for async callers."""
        return AsyncJsonSnapshotStore(self.base_dir)

    def save(self, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`. Raises `StoreFull`, `StoreReadOnly` or another `StoreError` of the disk."""
        clean = admitted(snapshot)
        make_folder(self.base_dir, durable=True)
        write_file(self._path(clean.snapshot_id), msgspec.json.format(encode(clean), indent=2), durable=True)
        snapshot.updated_at = clean.updated_at

    def load(self, snapshot_id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        path = self._path(snapshot_id)
        data = _read(path)
        return None if data is None else decode_snapshot(data, snapshot_id, str(path))

    def delete(self, snapshot_id: str) -> bool:
        """See `SnapshotStore.delete`."""
        path = self._path(snapshot_id)
        with os_errors(path, "it cannot be deleted"):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        try:
            flush(self.base_dir)
        except OSError as error:
            raise StoreUnclear(f"{path}: it is deleted, but may be back after a power cut ({error}).") from error
        return True

    def list(
        self, *, run_id: str | None = None, tag: str | None = None, query: str | None = None, limit: int = 100
    ) -> list[Snapshot]:
        """See `SnapshotStore.list`."""
        found = filter(snapshot_filter(run_id, tag, query), self._all())
        return newest_created_first(found)[: checked_limit(limit)]

    def _all(self) -> Iterator[Snapshot]:
        for path in self.base_dir.glob(f"{_PREFIX}*{_SUFFIX}"):
            snapshot_id = path.name[len(_PREFIX) : -len(_SUFFIX)]
            data = _read(path)
            if data is None:  # deleted meanwhile
                continue
            try:
                yield decode_snapshot(data, snapshot_id, str(path))
            except StoreCorrupt as error:
                log.warning("A snapshot is left out of a list: %s", error)

    def _path(self, snapshot_id: str) -> Path:
        return self.base_dir / f"{_PREFIX}{check_snapshot_id(snapshot_id)}{_SUFFIX}"


class AsyncJsonSnapshotStore(ThreadedSnapshotStore):
    """`JsonSnapshotStore` for async callers; `.sync` is the store itself."""

    def __init__(self, base_dir: str | Path) -> None:
        super().__init__(JsonSnapshotStore(base_dir))


def _read(path: Path) -> bytes | None:
    with os_errors(path, "it cannot be read"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
