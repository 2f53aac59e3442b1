"""The contract of artifact stores: seven methods to implement, and what follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ...core.codec import encode, json_safe
from ...core.errors import UnknownArtifact
from .content import CHUNK, chunks_of
from .describing import DEFAULT_TYPE
from .models import Artifact, ArtifactDescriptor, ArtifactMetadata, copy_of_metadata
from .refs import check_artifact_id
from .searching import DEFAULT_FACETS, facet, filters_of, in_order, window

Tags = Mapping[str, str] | None
Details = Mapping[str, Any] | None
Descriptor = ArtifactDescriptor | Mapping[str, Any] | None
#: a content in pieces: an open binary file, or any iterable of bytes
Source = BinaryIO | Iterable[bytes]


class ArtifactStore(ABC):
    """Keeps large contents out of runs: vars hold a ref, the store the bytes.

    A store of your own implements the seven abstract methods; the others are made of them, whole contents in memory,
    and may be overridden. `update_metadata`, `record_access` and `gc` cannot be made of them: without its own, a store
    raises NotImplementedError. Wherever an id is taken, `InvalidId` (a ValueError) is raised for what can be none.
    """

    @abstractmethod
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
        """Keep a content and return its metadata, with the id that a ref needs.

        Without `artifact_id` it is computed from content and run. The same content stored again under the same id adds
        tags and metadata; what was known, and `created_at`, stays. Raises `ArtifactConflict` for an id that stands for
        another content or run, `UnsafeValue` for metadata that is no JSON. Raw secrets in tags, metadata and descriptor
        are redacted; the content is kept as it is.
        """

    @abstractmethod
    def load(self, artifact_id: str) -> Artifact | None:
        """The artifact with its content, or None. Raises StoreCorrupt when it is damaged."""

    @abstractmethod
    def get_metadata(self, artifact_id: str) -> ArtifactMetadata | None:
        """What is known of the artifact, or None. Raises StoreCorrupt when that is damaged."""

    @abstractmethod
    def exists(self, artifact_id: str) -> bool:
        """Whether there is such an artifact, be it damaged or not."""

    @abstractmethod
    def delete(self, artifact_id: str) -> bool:
        """Forget the artifact; whether there was one. Its content goes with the next `gc` if no other shares it."""

    @abstractmethod
    def list_by_run(self, run_id: str) -> list[ArtifactMetadata]:
        """The artifacts of a run, newest first."""

    @abstractmethod
    def list_all(self, *, limit: int = 1000) -> list[ArtifactMetadata]:
        """All artifacts, newest first; a limit of 0 or less means all of them."""

    # Storing

    def store_text(
        self,
        text: str,
        *,
        content_type: str = "text/plain",
        encoding: str = "utf-8",
        run_id: str | None = None,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        artifact_id: str | None = None,
    ) -> ArtifactMetadata:
        """Keep a text: see `store`. Raises UnicodeEncodeError (a ValueError) where `encoding` cannot hold it."""
        return self.store(
            text.encode(encoding),
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    def store_json(
        self,
        data: Any,
        *,
        content_type: str = "application/json",
        run_id: str | None = None,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        artifact_id: str | None = None,
    ) -> ArtifactMetadata:
        """Keep a JSON value, compact and in UTF-8: see `store`. Raises `UnsafeValue` for what JSON cannot carry."""
        return self.store(
            encode(json_safe(data, "data")),
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

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
        """Keep a content that comes in pieces, from an open binary file or an iterable of bytes: see `store`.

        A file store never has more than a piece in memory. When the source raises, nothing is kept.
        """
        return self.store(
            b"".join(chunks_of(source)),
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    def store_file(
        self,
        path: str | Path,
        *,
        content_type: str = DEFAULT_TYPE,
        run_id: str | None = None,
        tags: Tags = None,
        metadata: Details = None,
        descriptor: Descriptor = None,
        artifact_id: str | None = None,
    ) -> ArtifactMetadata:
        """Keep a copy of a file's content, piece by piece: see `store_stream`. Raises OSError if it cannot be read."""
        with Path(path).expanduser().open("rb") as source:
            return self.store_stream(
                source,
                content_type=content_type,
                run_id=run_id,
                tags=tags,
                metadata=metadata,
                descriptor=descriptor,
                artifact_id=artifact_id,
            )

    # Reading

    def load_text(self, artifact_id: str, encoding: str = "utf-8") -> str | None:
        """The content as text, or None."""
        found = self.load(artifact_id)
        return None if found is None else found.as_text(encoding)

    def load_json(self, artifact_id: str) -> Any:
        """The JSON value in the content, or None."""
        found = self.load(artifact_id)
        return None if found is None else found.as_json()

    def open(self, artifact_id: str) -> BinaryIO:
        """The content as a binary file that can be read and sought in; yours to close.

        It is checked first, from its beginning to its end. Raises `UnknownArtifact` and StoreCorrupt.
        """
        return BytesIO(self._loaded(artifact_id).content)

    def iter_content(self, artifact_id: str, *, chunk_size: int = CHUNK) -> Generator[bytes, None, None]:
        """The content in pieces of `chunk_size` bytes, checked while they are read.

        Where it is damaged, StoreCorrupt is raised in place of the last piece: what came before must not be trusted
        until the end is reached. Raises `UnknownArtifact` at the first piece.
        """
        content = self._loaded(artifact_id).content
        for start in range(0, len(content), chunk_size):
            yield content[start : start + chunk_size]

    def content_path(self, artifact_id: str) -> Path | None:
        """The file that holds the content, not checked and not to be written to; None where there is none."""
        check_artifact_id(artifact_id)
        return None

    # Finding

    def search(
        self,
        *,
        run_id: str | None = None,
        content_type: str | None = None,
        tags: Tags = None,
        semantic_kind: str | None = None,
        render_kind: str | None = None,
        modality: str | None = None,
        session_id: str | None = None,
        workflow_id: str | None = None,
        node_id: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        offset: int = 0,
        order: str = "desc",
        limit: int = 1000,
    ) -> list[ArtifactMetadata]:
        """The artifacts for which all that is given holds exactly, newest first, or oldest first with `order="asc"`.

        `tags` must all be there, among others. `created_after` and `created_before` are ISO 8601 instants, the first
        included and the second not. A limit of 0 or less means all. Raises ValueError for what makes no sense.
        """
        filters = {
            "run_id": run_id,
            "content_type": content_type,
            "tags": tags,
            "semantic_kind": semantic_kind,
            "render_kind": render_kind,
            "modality": modality,
            "session_id": session_id,
            "workflow_id": workflow_id,
            "node_id": node_id,
            "created_after": created_after,
            "created_before": created_before,
        }
        found = window(in_order(self._matching(filters), order), offset, limit)
        return [copy_of_metadata(meta) for meta in found]

    def count(self, **filters: Any) -> int:
        """How many artifacts match the filters of `search`."""
        return len(self._matching(filters))

    def facet_counts(self, field: str, **filters: Any) -> dict[str, int]:
        """How many of the matching artifacts have each value of a field of `search`, or of a tag as in `tags.kind`.

        The most frequent first; artifacts without a value are not counted. Raises ValueError for an unknown field.
        """
        return facet(self._matching(filters), field)

    def stats(self, *, facets: Iterable[str] | None = None, **filters: Any) -> dict[str, Any]:
        """Of the matching artifacts `total`, `total_bytes` and `facets`: the counts of each field that is asked for.

        Bytes are counted once per artifact, shared or not. `filters` are those in force, `source` tells where the
        numbers come from, and `exact` that none is an estimate.
        """
        found = self._matching(filters)
        return {
            "total": len(found),
            "total_bytes": sum(meta.size_bytes for meta in found),
            "facets": {name: facet(found, name) for name in (DEFAULT_FACETS if facets is None else facets)},
            "filters": filters_of(filters).told(),
            "exact": True,
            "source": type(self).__name__,
        }

    # Changing

    def delete_by_run(self, run_id: str) -> int:
        """Forget all artifacts of a run; how many there were."""
        return sum(self.delete(meta.artifact_id) for meta in self.list_by_run(run_id))

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
        """Change what is known of the artifact, and return it; None when there is no such artifact.

        What is given is laid over what is there, or takes its place with `replace_tags` and `replace_metadata`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot change metadata.")

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
        """Note in `access` that somebody looked at the artifact; None when there is no such artifact.

        The actions `metadata`, `content`, `preview` and `download` have counters of their own; any other text is
        counted in `access.actions` alone. `at` is an ISO 8601 instant, by default now.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no account of accesses.")

    def gc(self, *, dry_run: bool = True, grace_s: float = 3600.0) -> dict[str, Any]:
        """Delete the contents that no artifact has any more, unless they were stored or touched within `grace_s`.

        With `dry_run` nothing is deleted, and the report tells what would be: `dry_run, blobs_total, blobs_referenced,
        blobs_deleted, bytes_reclaimed, errors`.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to collect.")

    def _matching(self, filters: Mapping[str, Any]) -> list[ArtifactMetadata]:
        matches = filters_of(filters).matches
        return [meta for meta in self.list_all(limit=0) if matches(meta)]

    def _loaded(self, artifact_id: str) -> Artifact:
        found = self.load(artifact_id)
        if found is None:
            raise UnknownArtifact(artifact_id)
        return found
