"""Artifacts in memory: for tests and for work that need not outlive the process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from ...core.clock import SYSTEM_CLOCK, Clock
from .aio import AsyncArtifacts
from .collecting import check_grace, report
from .describing import wav_media
from .keeping import KeptArtifacts
from .models import Artifact, ArtifactMetadata, copy_of_metadata
from .refs import ContentDigest, check_artifact_id


class InMemoryArtifactStore(KeptArtifacts):
    """Artifacts in memory, deduplicated by content. Thread-safe; `.aio` is the same store for async callers."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock=clock)
        self._lock = threading.RLock()
        self._metas: dict[str, ArtifactMetadata] = {}
        #: content by its id
        self._blobs: dict[str, bytes] = {}
        #: when each content was last stored, in seconds of the clock's `monotonic`
        self._touched: dict[str, float] = {}

    @property
    def aio(self) -> AsyncInMemoryArtifactStore:
        """This store for async callers."""
        return AsyncInMemoryArtifactStore._around(self)

    def load(self, artifact_id: str) -> Artifact | None:
        """See `ArtifactStore.load`."""
        with self._lock:
            meta = self.get_metadata(artifact_id)
            return None if meta is None else Artifact(meta, self._blobs[str(meta.blob_id)])

    def exists(self, artifact_id: str) -> bool:
        """See `ArtifactStore.exists`."""
        return check_artifact_id(artifact_id) in self._metas

    def delete(self, artifact_id: str) -> bool:
        """See `ArtifactStore.delete`."""
        with self._lock:
            return self._metas.pop(check_artifact_id(artifact_id), None) is not None

    def gc(self, *, dry_run: bool = True, grace_s: float = 3600.0) -> dict[str, Any]:
        """See `ArtifactStore.gc`."""
        check_grace(grace_s)
        with self._lock:
            used = {meta.blob_id for meta in self._metas.values()}
            limit = self._clock.monotonic() - grace_s
            spare = [blob for blob in self._blobs if blob not in used and self._touched[blob] <= limit]
            found = report(
                dry_run=dry_run,
                blobs_total=len(self._blobs),
                blobs_referenced=len(used),
                blobs_deleted=len(spare),
                bytes_reclaimed=sum(len(self._blobs[blob]) for blob in spare),
            )
            for blob in () if dry_run else spare:
                del self._blobs[blob], self._touched[blob]
            return found

    def _inbox(self, run_id: str | None) -> _MemoryInbox:
        return _MemoryInbox(self, run_id)

    @contextmanager
    def _turn(self, artifact_id: str) -> Iterator[None]:
        with self._lock:
            yield

    def _read(self, artifact_id: str) -> ArtifactMetadata | None:
        found = self._metas.get(artifact_id)
        return None if found is None else copy_of_metadata(found)

    def _write(self, meta: ArtifactMetadata) -> None:
        self._metas[meta.artifact_id] = copy_of_metadata(meta)

    def _all(self) -> Iterable[ArtifactMetadata]:
        with self._lock:
            return list(self._metas.values())

    def _put(self, blob_id: str, content: bytes) -> None:
        self._blobs.setdefault(blob_id, content)
        self._touched[blob_id] = self._clock.monotonic()


class _MemoryInbox:
    """A content on its way into a store in memory."""

    def __init__(self, store: InMemoryArtifactStore, run_id: str | None) -> None:
        self._store = store
        self._chunks: list[bytes] = []
        self.digest = ContentDigest(run_id)

    def hold(self, content: bytes) -> None:
        self.write(content)

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self._chunks.append(chunk)

    def finish(self) -> None:
        self._chunks = [b"".join(self._chunks)]  # of one piece this makes no copy

    def media(self, content_type: str) -> dict[str, Any]:
        return wav_media(content_type, BytesIO(self._chunks[0]))

    def keep(self) -> None:
        self._store._put(self.digest.blob_id, self._chunks[0])

    def close(self) -> None:
        self._chunks.clear()


class AsyncInMemoryArtifactStore(AsyncArtifacts):
    """`InMemoryArtifactStore` for async callers; `.sync` is the store itself, used in worker threads."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(InMemoryArtifactStore(clock=clock))
