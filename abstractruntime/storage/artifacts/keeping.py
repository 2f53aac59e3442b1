"""What the stores of ours do alike: a content is taken in, then kept together with its metadata in one turn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

from msgspec.structs import replace

from ...core.clock import SYSTEM_CLOCK, Clock, iso
from ...core.ids import check_optional, check_text
from .base import ArtifactStore, Descriptor, Details, Source, Tags
from .content import check_bytes, chunks_of
from .describing import (
    DEFAULT_TYPE,
    About,
    check_about,
    check_descriptor,
    check_dict,
    check_tags,
    instant,
    merged,
    overlaid,
)
from .models import ArtifactAccessStats, ArtifactMetadata
from .refs import ContentDigest, check_artifact_id
from .searching import filters_of

#: actions that have a counter of their own
_COUNTERS = {
    "metadata": "metadata_access_count",
    "content": "content_access_count",
    "preview": "preview_count",
    "download": "download_count",
}


class Inbox(Protocol):
    """A content on its way into a store."""

    digest: ContentDigest

    def hold(self, content: bytes) -> None:
        """Take a whole content that is in memory anyway."""

    def write(self, chunk: bytes) -> None:
        """Take the next piece."""

    def finish(self) -> None:
        """Say that all has come."""

    def media(self, content_type: str) -> dict[str, Any]:
        """What the content says of itself."""

    def keep(self) -> None:
        """Make it one of the store's contents, unless it is already. Called in the artifact's turn."""

    def close(self) -> None:
        """Drop what was not kept."""


class KeptArtifacts(ArtifactStore):
    """An artifact store made of a way to keep contents, a way to keep metadata, and turns."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock

    # Each store's own ways

    @abstractmethod
    def _inbox(self, run_id: str | None) -> Inbox:
        """Begin to take a content in."""

    @abstractmethod
    def _turn(self, artifact_id: str) -> AbstractContextManager[None]:
        """Nobody else changes this artifact meanwhile, and no content is collected."""

    @abstractmethod
    def _read(self, artifact_id: str) -> ArtifactMetadata | None:
        """A fresh copy of the metadata, or None. Raises StoreCorrupt."""

    @abstractmethod
    def _write(self, meta: ArtifactMetadata) -> None:
        """Put the metadata in the place of what is there."""

    @abstractmethod
    def _all(self) -> Iterable[ArtifactMetadata]:
        """The metadata of all artifacts that can be read, not copied."""

    # The documented methods

    def store(
        self,
        content: bytes,
        *,
        content_type: str = DEFAULT_TYPE,
        run_id: str | None = None,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        artifact_id: str | None = None,
    ) -> ArtifactMetadata:
        """See `ArtifactStore.store`."""
        about = check_about(content_type, run_id, tags, metadata, descriptor, artifact_id)
        with closing(self._inbox(run_id)) as inbox:
            inbox.hold(check_bytes(content, "content"))
            return self._land(about, inbox)

    def store_stream(
        self,
        source: Source,
        *,
        content_type: str = DEFAULT_TYPE,
        run_id: str | None = None,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        artifact_id: str | None = None,
    ) -> ArtifactMetadata:
        """See `ArtifactStore.store_stream`."""
        about = check_about(content_type, run_id, tags, metadata, descriptor, artifact_id)
        with closing(self._inbox(run_id)) as inbox:
            for chunk in chunks_of(source):
                inbox.write(chunk)
            return self._land(about, inbox)

    def get_metadata(self, artifact_id: str) -> ArtifactMetadata | None:
        """See `ArtifactStore.get_metadata`."""
        return self._read(check_artifact_id(artifact_id))

    def list_by_run(self, run_id: str) -> list[ArtifactMetadata]:
        """See `ArtifactStore.list_by_run`."""
        return self.search(run_id=check_text(run_id, "run_id"), limit=0)

    def list_all(self, *, limit: int = 1000) -> list[ArtifactMetadata]:
        """See `ArtifactStore.list_all`."""
        return self.search(limit=limit)

    def update_metadata(
        self,
        artifact_id: str,
        *,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        replace_tags: bool = False,
        replace_metadata: bool = False,
    ) -> ArtifactMetadata | None:
        """See `ArtifactStore.update_metadata`."""
        new_tags, new_metadata = check_tags(tags), check_dict(metadata, "metadata")
        new_descriptor = check_descriptor(descriptor)
        with self._turn(check_artifact_id(artifact_id)):
            found = self._read(artifact_id)
            if found is None:
                return None
            changed = replace(
                found,
                tags=new_tags if replace_tags else {**found.tags, **new_tags},
                metadata=new_metadata if replace_metadata else {**found.metadata, **new_metadata},
                descriptor=overlaid(found.descriptor, new_descriptor),
            )
            self._write(changed)
            return changed

    def record_access(
        self,
        artifact_id: str,
        *,
        action: str,
        actor_id: str | None = None,
        session_id: str | None = None,
        run_id: str | None = None,
        at: str | None = None,
    ) -> ArtifactMetadata | None:
        """See `ArtifactStore.record_access`."""
        check_text(action, "action")
        who = {
            "last_actor_id": check_optional(actor_id, "actor_id"),
            "last_session_id": check_optional(session_id, "session_id"),
            "last_run_id": check_optional(run_id, "run_id"),
            "last_accessed_at": iso(self._clock.now()) if at is None else instant(at),
        }
        with self._turn(check_artifact_id(artifact_id)):
            found = self._read(artifact_id)
            if found is None:
                return None
            changed = replace(found, access=replace(_counted(found.access, action), **who))
            self._write(changed)
            return changed

    def _matching(self, filters: Mapping[str, Any]) -> list[ArtifactMetadata]:
        matches = filters_of(filters).matches
        return [meta for meta in self._all() if matches(meta)]

    def _land(self, about: About, inbox: Inbox) -> ArtifactMetadata:
        """Keep what has come: first the content, then the metadata, so that no metadata ever lacks its content."""
        inbox.finish()
        meta = about.metadata_of(inbox.digest, inbox.media(about.content_type), iso(self._clock.now()))
        with self._turn(meta.artifact_id):
            earlier = self._read(meta.artifact_id)
            if earlier is not None:
                meta = merged(earlier, meta)
            inbox.keep()
            self._write(meta)
        return meta


def _counted(access: ArtifactAccessStats, action: str) -> ArtifactAccessStats:
    counted = replace(
        access,
        access_count=access.access_count + 1,
        last_action=action,
        actions={**access.actions, action: access.actions.get(action, 0) + 1},
    )
    if action in _COUNTERS:
        name = _COUNTERS[action]
        setattr(counted, name, getattr(counted, name) + 1)
    return counted
