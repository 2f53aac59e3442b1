"""Artifact stores for async callers: every method runs the blocking one in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, Self, TypeVar

from aiofiles.base import AiofilesContextManager
from aiofiles.threadpool.binary import AsyncBufferedReader

from ...core.shielding import finish
from ...core.threads import WorkerThreads
from . import base
from .base import Descriptor, Details, Tags
from .content import CHUNK, check_bytes
from .describing import DEFAULT_TYPE, check_about
from .keeping import KeptArtifacts
from .models import Artifact, ArtifactMetadata

P = ParamSpec("P")
T = TypeVar("T")

#: a content in pieces: an open binary file, or any iterable of bytes, async or not
Source = base.Source | AsyncIterable[bytes]

#: calls of one store that go on at once
_THREADS = 8

#: seconds that a cancelled stream waits for its last piece and the removal of its draft
_CLEARS_UP_WITHIN = 10.0


class AsyncArtifacts:
    """The methods of `ArtifactStore`, awaited. A cancelled call leaves at once, and what it began still ends whole."""

    def __init__(self, sync: KeptArtifacts) -> None:
        self.sync = sync
        self._threads = WorkerThreads(_THREADS)

    @classmethod
    def _around(cls, sync: KeptArtifacts) -> Self:
        made = cls.__new__(cls)
        AsyncArtifacts.__init__(made, sync)
        return made

    async def store(
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
        return await self._run(
            self.sync.store,
            content,
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    async def load(self, artifact_id: str) -> Artifact | None:
        """See `ArtifactStore.load`."""
        return await self._run(self.sync.load, artifact_id)

    async def get_metadata(self, artifact_id: str) -> ArtifactMetadata | None:
        """See `ArtifactStore.get_metadata`."""
        return await self._run(self.sync.get_metadata, artifact_id)

    async def exists(self, artifact_id: str) -> bool:
        """See `ArtifactStore.exists`."""
        return await self._run(self.sync.exists, artifact_id)

    async def delete(self, artifact_id: str) -> bool:
        """See `ArtifactStore.delete`."""
        return await self._run(self.sync.delete, artifact_id)

    async def list_by_run(self, run_id: str) -> list[ArtifactMetadata]:
        """See `ArtifactStore.list_by_run`."""
        return await self._run(self.sync.list_by_run, run_id)

    async def list_all(self, *, limit: int = 1000) -> list[ArtifactMetadata]:
        """See `ArtifactStore.list_all`."""
        return await self._run(self.sync.list_all, limit=limit)

    async def store_text(
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
        """See `ArtifactStore.store_text`."""
        return await self._run(
            self.sync.store_text,
            text,
            content_type=content_type,
            encoding=encoding,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    async def store_json(
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
        """See `ArtifactStore.store_json`."""
        return await self._run(
            self.sync.store_json,
            data,
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    async def store_file(
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
        """See `ArtifactStore.store_file`."""
        return await self._run(
            self.sync.store_file,
            path,
            content_type=content_type,
            run_id=run_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            artifact_id=artifact_id,
        )

    async def load_text(self, artifact_id: str, encoding: str = "utf-8") -> str | None:
        """See `ArtifactStore.load_text`."""
        return await self._run(self.sync.load_text, artifact_id, encoding)

    async def load_json(self, artifact_id: str) -> Any:
        """See `ArtifactStore.load_json`."""
        return await self._run(self.sync.load_json, artifact_id)

    def open(self, artifact_id: str) -> AiofilesContextManager[AsyncBufferedReader]:
        """See `ArtifactStore.open`; the file is one of `aiofiles`, whose methods are awaited.

        >>> async with store.open(artifact_id) as file:  # doctest: +SKIP
        ...     head = await file.read(1024)
        """
        return AiofilesContextManager(self._open(artifact_id))

    async def _open(self, artifact_id: str) -> AsyncBufferedReader:
        opening = asyncio.ensure_future(self._run(self.sync.open, artifact_id))
        try:
            return AsyncBufferedReader(await asyncio.shield(opening), loop=None, executor=None)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def content_path(self, artifact_id: str) -> Path | None:
        """See `ArtifactStore.content_path`."""
        return await self._run(self.sync.content_path, artifact_id)

    async def search(
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
        """See `ArtifactStore.search`."""
        return await self._run(
            self.sync.search,
            run_id=run_id,
            content_type=content_type,
            tags=tags,
            semantic_kind=semantic_kind,
            render_kind=render_kind,
            modality=modality,
            session_id=session_id,
            workflow_id=workflow_id,
            node_id=node_id,
            created_after=created_after,
            created_before=created_before,
            offset=offset,
            order=order,
            limit=limit,
        )

    async def count(self, **filters: Any) -> int:
        """See `ArtifactStore.count`."""
        return await self._run(self.sync.count, **filters)

    async def facet_counts(self, field: str, **filters: Any) -> dict[str, int]:
        """See `ArtifactStore.facet_counts`."""
        return await self._run(self.sync.facet_counts, field, **filters)

    async def stats(self, *, facets: Iterable[str] | None = None, **filters: Any) -> dict[str, Any]:
        """See `ArtifactStore.stats`."""
        return await self._run(self.sync.stats, facets=facets, **filters)

    async def delete_by_run(self, run_id: str) -> int:
        """See `ArtifactStore.delete_by_run`."""
        return await self._run(self.sync.delete_by_run, run_id)

    async def update_metadata(
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
        return await self._run(
            self.sync.update_metadata,
            artifact_id,
            tags=tags,
            metadata=metadata,
            descriptor=descriptor,
            replace_tags=replace_tags,
            replace_metadata=replace_metadata,
        )

    async def record_access(
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
        return await self._run(
            self.sync.record_access,
            artifact_id,
            action=action,
            actor_id=actor_id,
            session_id=session_id,
            run_id=run_id,
            at=at,
        )

    async def gc(self, *, dry_run: bool = True, grace_s: float = 3600.0) -> dict[str, Any]:
        """See `ArtifactStore.gc`."""
        return await self._run(self.sync.gc, dry_run=dry_run, grace_s=grace_s)

    async def store_stream(
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
        """See `ArtifactStore.store_stream`. The source may be an async iterable too; any other is read in a thread."""
        if not isinstance(source, AsyncIterable):
            return await self._run(
                self.sync.store_stream,
                source,
                content_type=content_type,
                run_id=run_id,
                tags=tags,
                metadata=metadata,
                descriptor=descriptor,
                artifact_id=artifact_id,
            )
        about = check_about(content_type, run_id, tags, metadata, descriptor, artifact_id)
        inbox = await self._run(self.sync._inbox, run_id)
        try:
            number = 0
            async for chunk in source:
                await self._whole(inbox.write, check_bytes(chunk, f"source[{number}]"))
                number += 1
            return await self._whole(self.sync._land, about, inbox)
        finally:
            await finish(self._run(inbox.close), within=_CLEARS_UP_WITHIN)

    async def iter_content(self, artifact_id: str, *, chunk_size: int = CHUNK) -> AsyncGenerator[bytes, None]:
        """See `ArtifactStore.iter_content`."""
        chunks = self.sync.iter_content(artifact_id, chunk_size=chunk_size)
        try:
            while (chunk := await self._whole(next, chunks, None)) is not None:
                yield chunk
        finally:
            await finish(self._run(chunks.close), within=_CLEARS_UP_WITHIN)

    async def _run(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self._threads.run(partial(method, *args, **kwargs))
        return result

    async def _whole(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `_run`, and a cancelled caller waits for the thread, which uses what is to be cleared up next."""
        running = asyncio.ensure_future(self._run(method, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await finish(running, within=_CLEARS_UP_WITHIN)
            raise


def _close_opened(opening: asyncio.Future[BinaryIO]) -> None:
    """Nobody is left who could close the file."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
