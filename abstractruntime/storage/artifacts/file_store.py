"""Artifacts in a folder: one file per content, however many artifacts share it, and one per artifact's metadata."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ...core.clock import SYSTEM_CLOCK, Clock
from ...core.errors import UnknownArtifact
from ..drafts import Draft, flush, os_errors, write_file
from .aio import AsyncArtifacts
from .catalog import Catalog
from .collecting import collect
from .content import CHUNK, checked_chunks, is_sound
from .describing import wav_media
from .disk import Durability, Place
from .keeping import KeptArtifacts
from .locks import Turns
from .metas import encode_meta, read_meta
from .models import Artifact, ArtifactMetadata, damaged
from .refs import ContentDigest, check_artifact_id


class FileArtifactStore(KeptArtifacts):
    """Artifacts in files below `base_dir`, for any number of threads and processes; `.aio` is for async callers.

    `artifacts/blobs/<blob_id>.bin` holds a content, once; `artifacts/refs/<artifact_id>.meta` what is known of an
    artifact, as JSON; `artifacts/artifact_catalog.sqlite3` makes listing quicker and may be deleted at any time.

    With `durability="full"` (default) what was acknowledged has reached the disk. `"none"` leaves that to the operating
    system: it survives the death of the process, but not the machine's loss of power. Contents are checked against
    their SHA-256 whenever they are read, and metadata against a checksum. A store needs no closing.

    >>> store = FileArtifactStore("~/data")  # doctest: +SKIP
    >>> ref = artifact_ref(store.store_text("a long report", run_id="run-1").artifact_id)  # doctest: +SKIP
    """

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full", clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock=clock)
        self._place = Place(base_dir, durability)
        self._turns = Turns(self._place.locks)
        self._catalog = Catalog(self._place.catalog, self._place.refs)

    @property
    def aio(self) -> AsyncFileArtifactStore:
        """This store for async callers."""
        return AsyncFileArtifactStore._around(self)

    def load(self, artifact_id: str) -> Artifact | None:
        """See `ArtifactStore.load`."""
        found = self._opened(artifact_id)
        if found is None:
            return None
        meta, file = found
        with file, os_errors(self._place.blob(str(meta.blob_id))):
            content = file.read()
        if not is_sound(BytesIO(content), str(meta.blob_id)):
            raise damaged(artifact_id, f"the SHA-256 of {self._place.blob(str(meta.blob_id))} is another")
        return Artifact(meta, content)

    def exists(self, artifact_id: str) -> bool:
        """See `ArtifactStore.exists`."""
        return self._place.meta(check_artifact_id(artifact_id)).exists()

    def open(self, artifact_id: str) -> BinaryIO:
        """See `ArtifactStore.open`."""
        meta, file = self._found(artifact_id)
        try:
            with os_errors(self._place.blob(str(meta.blob_id))):
                for _ in checked_chunks(file, artifact_id, meta.blob_id):
                    pass
                file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def iter_content(self, artifact_id: str, *, chunk_size: int = CHUNK) -> Generator[bytes, None, None]:
        """See `ArtifactStore.iter_content`."""
        meta, file = self._found(artifact_id)
        with file, os_errors(self._place.blob(str(meta.blob_id))):
            yield from checked_chunks(file, artifact_id, meta.blob_id, chunk_size)

    def content_path(self, artifact_id: str) -> Path | None:
        """See `ArtifactStore.content_path`."""
        meta = self.get_metadata(artifact_id)
        path = None if meta is None else self._place.blob(str(meta.blob_id))
        return path if path is not None and path.exists() else None

    def delete(self, artifact_id: str) -> bool:
        """See `ArtifactStore.delete`. Damaged metadata can be deleted too."""
        path = self._place.meta(check_artifact_id(artifact_id))
        if not path.exists():
            return False
        with self._turn(artifact_id), os_errors(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            if self._place.durable:
                flush(path.parent)
            return True

    def gc(self, *, dry_run: bool = True, grace_s: float = 3600.0) -> dict[str, Any]:
        """See `ArtifactStore.gc`. Safe beside writers in this process and in others; drafts of dead writers go too.

        While the metadata of an artifact is damaged no content is deleted, and `errors` tells why.
        """
        now = self._clock.now().timestamp()
        return collect(self._place, self._turns, now=now, dry_run=dry_run, grace_s=grace_s)

    def rebuild_catalog(self) -> int:
        """Make the catalog anew from the metadata files; how many artifacts there are. It is never necessary."""
        return self._catalog.rebuild()

    def _inbox(self, run_id: str | None) -> _FileInbox:
        self._place.make()
        return _FileInbox(self._place, run_id)

    @contextmanager
    def _turn(self, artifact_id: str) -> Iterator[None]:
        self._place.make()
        with self._turns.of(artifact_id):
            yield

    def _read(self, artifact_id: str) -> ArtifactMetadata | None:
        return read_meta(self._place.meta(artifact_id))

    def _write(self, meta: ArtifactMetadata) -> None:
        write_file(self._place.meta(meta.artifact_id), encode_meta(meta), durable=self._place.durable)

    def _all(self) -> Iterable[ArtifactMetadata]:
        return self._catalog.metas()

    def _found(self, artifact_id: str) -> tuple[ArtifactMetadata, BinaryIO]:
        found = self._opened(artifact_id)
        if found is None:
            raise UnknownArtifact(artifact_id)
        return found

    def _opened(self, artifact_id: str) -> tuple[ArtifactMetadata, BinaryIO] | None:
        """The metadata and the open content; None when there is no such artifact."""
        missing: ArtifactMetadata | None = None
        while (meta := self.get_metadata(artifact_id)) is not None:
            path = self._place.blob(str(meta.blob_id))
            with os_errors(path):
                try:
                    return meta, path.open("rb")
                except FileNotFoundError:
                    if missing is not None and missing.blob_id == meta.blob_id:
                        raise damaged(artifact_id, f"{path} is missing") from None
                    missing = meta  # unless the artifact was deleted and its content collected in this instant
        return None


class _FileInbox:
    """A content on its way into a folder: held in memory if it came whole, else in a draft."""

    def __init__(self, place: Place, run_id: str | None) -> None:
        self._place = place
        self._held = b""
        self._draft: Draft | None = None
        self.digest = ContentDigest(run_id)

    def hold(self, content: bytes) -> None:
        self.digest.update(content)
        self._held = content

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        if self._draft is None:
            self._draft = Draft(self._place.blobs, durable=self._place.durable)
        self._draft.write(chunk)

    def finish(self) -> None:
        if self._draft is not None:  # before the turn, which others wait for
            self._draft.finish()

    def media(self, content_type: str) -> dict[str, Any]:
        if self._draft is None:
            return wav_media(content_type, BytesIO(self._held))
        with os_errors(self._draft.path), self._draft.path.open("rb") as file:
            return wav_media(content_type, file)

    def keep(self) -> None:
        path = self._place.blob(self.digest.blob_id)
        with os_errors(path):
            if self._is_kept(path):
                return
        if self._draft is None:
            write_file(path, self._held, durable=self._place.durable)
        else:
            self._draft.publish(path)

    def close(self) -> None:
        if self._draft is not None:
            self._draft.close()

    def _is_kept(self, path: Path) -> bool:
        """Whether the content is there already, and sound; then it is as good as written now."""
        try:
            with path.open("rb") as file:
                if not is_sound(file, self.digest.blob_id):
                    return False
        except FileNotFoundError:
            return False
        os.utime(path)
        if self._place.durable:  # whoever wrote it may not have come so far, or may not care
            flush(path)
            flush(path.parent)
        return True


class AsyncFileArtifactStore(AsyncArtifacts):
    """`FileArtifactStore` for async callers; `.sync` is the store itself, used in worker threads."""

    def __init__(self, base_dir: str | Path, *, durability: Durability = "full", clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(FileArtifactStore(base_dir, durability=durability, clock=clock))

    async def rebuild_catalog(self) -> int:
        """See `FileArtifactStore.rebuild_catalog`."""
        assert isinstance(self.sync, FileArtifactStore)
        return await self._run(self.sync.rebuild_catalog)
