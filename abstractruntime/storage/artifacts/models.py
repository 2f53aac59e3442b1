"""What is known of an artifact: its metadata, what it is and where it comes from, and who looked at it."""

from __future__ import annotations

from typing import Any, Self

import msgspec
from msgspec import Struct, field

from ...core.codec import REFUSALS, decode, encode
from ...core.errors import StoreCorrupt

DESCRIPTOR_SCHEMA = "abstractruntime.artifact_descriptor.v1"


class _Dictable(Struct):
    """A model that becomes a JSON dict and can be made from one."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as a JSON dict, aliased with nothing here."""
        plain: dict[str, Any] = decode(encode(self))
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` gave. Unknown keys are ignored; raises ValueError naming the field that does not fit."""
        try:
            return msgspec.convert(decode(encode(data)), cls)
        except REFUSALS as error:
            raise ValueError(f"This is no {cls.__name__}: {error}") from error


class ArtifactDescriptor(_Dictable):
    """What an artifact is, what made it and what it belongs to. A store fills in what it can tell by itself."""

    schema: str = DESCRIPTOR_SCHEMA
    version: int = 1
    #: what it is to its users (`report`, `memory_note`); from the tag `kind` when not given
    semantic_kind: str | None = None
    #: how to show it: image, audio, video, code, json, markdown, html, text, document or binary
    render_kind: str | None = None
    #: image, audio, video, text or document, where that is known
    modality: str | None = None
    task: str | None = None
    #: where the kinds come from: `content_type` when the store told them by it, else `caller`
    classification_source: str | None = None
    session_id: str | None = None
    workflow_id: str | None = None
    node_id: str | None = None
    step_id: str | None = None
    effect_id: str | None = None
    turn_id: str | None = None
    ledger_cursor: int | str | None = None
    parent_run_id: str | None = None
    actor_id: str | None = None
    producer: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    #: of a WAV file `channels`, `sample_rate` (Hz), `sample_width` (bytes), `frames` and `duration_s` (seconds)
    media: dict[str, Any] = {}
    source_refs: list[Any] = []
    links: dict[str, Any] = {}
    security: dict[str, Any] = {}
    actions: dict[str, Any] = {}


class ArtifactAccessStats(_Dictable):
    """How often an artifact was looked at, as told by `record_access`: nothing else changes it."""

    access_count: int = 0
    metadata_access_count: int = 0
    content_access_count: int = 0
    preview_count: int = 0
    download_count: int = 0
    last_accessed_at: str | None = None
    last_action: str | None = None
    last_actor_id: str | None = None
    last_session_id: str | None = None
    last_run_id: str | None = None
    #: how often each action was told
    actions: dict[str, int] = {}


class ArtifactMetadata(_Dictable):
    """What a store keeps beside the content. What a store hands out is a copy: changing it changes nothing stored."""

    artifact_id: str
    content_type: str
    size_bytes: int
    created_at: str
    #: SHA-256 of the content in hex; artifacts with the same content share it
    blob_id: str | None = None
    run_id: str | None = None
    tags: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    descriptor: ArtifactDescriptor = field(default_factory=ArtifactDescriptor)
    access: ArtifactAccessStats = field(default_factory=ArtifactAccessStats)


class Artifact(Struct):
    """A content together with what is known of it."""

    metadata: ArtifactMetadata
    content: bytes

    @property
    def artifact_id(self) -> str:
        """The id, as in `metadata`."""
        return self.metadata.artifact_id

    @property
    def content_type(self) -> str:
        """The content type, as in `metadata`."""
        return self.metadata.content_type

    def as_text(self, encoding: str = "utf-8") -> str:
        """The content as text. Raises UnicodeDecodeError (a ValueError) where it is none."""
        return self.content.decode(encoding)

    def as_json(self) -> Any:
        """The JSON value that the content holds. Raises ValueError where it holds none."""
        try:
            return decode(self.content)
        except REFUSALS as error:
            raise ValueError(f"The content of artifact {self.artifact_id!r} is no JSON: {error}") from error


def copy_of_metadata(meta: ArtifactMetadata) -> ArtifactMetadata:
    """A deep copy, to be handed out."""
    return _decode(encode(meta))


def damaged(artifact_id: str, what: str) -> StoreCorrupt:
    """The error of a content that is not what was stored."""
    return StoreCorrupt(
        f"The content of artifact {artifact_id!r} cannot be given out: {what}. Store the same content again, which "
        "repairs it for every artifact that shares it, or restore it from a backup."
    )


_decode = msgspec.json.Decoder(ArtifactMetadata).decode
